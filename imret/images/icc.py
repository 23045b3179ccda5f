"""Colour profiles (ICC): which pictures are converted to sRGB, and which are taken as they are.

CLIP models are trained on pixels whose profile nobody read, and profiles near sRGB (Display P3, Adobe RGB,
those of cameras and screens) change nothing that a model sees. Those far from it do: ProPhoto looks pale and
linear light black, and CMYK without its profile has other colours. So a profile is applied where it moves
colours by more than `FAR` levels of 255 on average, and to CMYK always.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# Levels of 255, on average over a grid of colours: Display P3 and Adobe RGB move them by 11, Apple RGB by 15,
# BT.2020 by 19, Wide Gamut and ProPhoto by 23 and 24, linear light with the primaries of sRGB by 41.
FAR = 16.0

_MAX_PROFILE_BYTES = 4 << 20
_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}


def cmyk_to_srgb(image: Image.Image) -> Image.Image | None:
    """Return a picture of mode CMYK as its profile means it; None where it has none that can be used."""
    profile = image.info.get("icc_profile")
    if image.mode != "CMYK" or not isinstance(profile, bytes) or profile[16:20] != b"CMYK":
        return None
    transform = _transform(profile, "CMYK")
    return None if transform is None else ImageCms.applyTransform(image, transform)


def far_to_srgb(image: Image.Image, profile: object) -> Image.Image | None:
    """Return an RGB picture in sRGB, if its profile is far from that; None where it can stay as it is.

    Args:
        image: Of mode RGB, also where the file was grey; changed in place, where that can be.
        profile: ICC, for RGB or for grey.
    """
    if not isinstance(profile, bytes):
        return None
    if profile[16:20] == b"GRAY":
        levels = _grey_levels(profile)
        return None if levels is None else image.point(levels * 3)
    transform = _far_transform(profile) if profile[16:20] == b"RGB " else None
    if transform is None:
        return None
    ImageCms.applyTransform(image, transform, inPlace=True)  # of a hundred megapixels, a copy is 400 MB
    return image


def cicp_of(profile: object) -> tuple[int, int] | None:
    """Return the primaries and transfer that a profile states by number, as those of PQ and HLG do.

    Source: ICC.1:2022, section 9.2.17, the cicp tag.
    """
    if not isinstance(profile, bytes) or b"cicp" not in profile:
        return None
    table = profile[132 : 132 + 12 * min(100, int.from_bytes(profile[128:132], "big"))]
    for at in range(0, len(table) - 11, 12):
        if table[at : at + 4] == b"cicp":
            start = int.from_bytes(table[at + 4 : at + 8], "big")
            tag = profile[start : start + 12]
            return (tag[8], tag[9]) if len(tag) == 12 and tag[:4] == b"cicp" else None
    return None


def gamma_to_srgb(image: Image.Image, gamma: float) -> Image.Image | None:
    """Return an RGB picture whose file states its gamma in sRGB; None if it can stay as it is.

    Args:
        image: Of mode RGB.
        gamma: By what power light became levels: 1 / 2.2 for most pictures.
    """
    if not 0.01 < gamma < 10:
        return None
    light = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    if np.abs(srgb - np.arange(256)).mean() < FAR:
        return None
    return image.point(np.rint(srgb).astype(int).tolist() * 3)


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what brings pixels of a mode to sRGB; None for a profile that cannot be used."""
    if len(profile) > _MAX_PROFILE_BYTES or profile[16:20] != _SPACES[mode]:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=32)
def _far_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    transform = _transform(profile, "RGB")
    if transform is None:
        return None
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    moved = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return transform if np.abs(np.asarray(moved).astype(int) - colours).mean() >= FAR else None


@lru_cache(maxsize=32)
def _grey_levels(profile: bytes) -> list[int] | None:
    transform = _transform(profile, "L")
    if transform is None:
        return None
    levels = np.arange(256, dtype=np.uint8)[None]
    moved = ImageCms.applyTransform(Image.fromarray(levels), transform)
    green = np.asarray(moved)[0, :, 1].astype(int)
    return green.tolist() if np.abs(green - levels[0]).mean() >= FAR else None
