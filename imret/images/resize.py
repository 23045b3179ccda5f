"""A picture file to the pixels that a model takes, fast: for ingest, training, evaluation and queries.

Large JPEGs are decoded at a half, a quarter or an eighth of their size where that is enough, and resized by
PyTorch's vectorised kernel for bytes. That kernel and Pillow's round alike but for a level or two in a
channel; IMRET_RESIZE=exact decodes whole and resizes with Pillow: to the pixel open_clip's own transform, of
every picture whose colours are what it takes them for (see `imret.images.decode`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imret.images.decode import Picture, Reduced, Resample, Source, load_image, load_to_cover
from imret.images.notes import OnNote, ignore_note
from imret.images.preprocess import Preprocess
from imret.settings import read_settings

Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
Extent: TypeAlias = tuple[float, float]  # width and height of the part to resize, from the upper left corner
Resize: TypeAlias = Callable[[Image.Image, tuple[int, int], Resample, Box, Extent], NDArray[np.uint8]]

# Above this many pixels, the picture between resizing and cropping is not made (see `_resize_and_crop`).
_MAX_RESIZED_PIXELS = 16_000_000


def load_pixels(
    source: Source,
    preprocess: Preprocess,
    *,
    exact: bool = False,
    max_pixels: int | None = None,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return what a model takes of a picture, and the picture's own size.

    Args:
        source: As for `load_image`.
        preprocess: Of the model.
        exact: As IMRET_RESIZE=exact, whatever the settings say.
        max_pixels: As for `load_image`.
        reserve: As for `load_image`.
        on_note: As for `load_image`.

    Returns:
        (H, W, 3) uint8, and the (width, height) of the whole picture, upright.

    Raises:
        ImageError: As `load_image`.
    """
    if exact or read_settings().exact_resize:
        image = load_image(source, max_pixels=max_pixels, reserve=reserve, on_note=on_note)
        return fit(image, preprocess, exact=True), image.size
    reduced = load_to_cover(
        source, max(preprocess.size), max_pixels=max_pixels, reserve=reserve, on_note=on_note
    )
    return fit(reduced.image, preprocess, reduced), reduced.size


def prepare() -> None:
    """Load now what the first `load_pixels` would; a second or two."""
    if not read_settings().exact_resize:
        import torch  # noqa: F401


def fit(
    image: Picture, preprocess: Preprocess, reduced: Reduced | None = None, *, exact: bool = False
) -> NDArray[np.uint8]:
    """Return a picture at a model's size: see `fit_image`.

    Args:
        image: Upright RGB.
        preprocess: Of the model.
        reduced: What the image is a fraction of, if it is one.
        exact: Resize as open_clip's own transform does.

    Returns:
        (H, W, 3) uint8.
    """
    return fit_image(
        image,
        size=preprocess.size,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill_color,
        resize=pillow_resize if exact else resize,
        reduced=reduced,
    )


def resize(
    image: Picture, size: tuple[int, int], resample: Resample, box: Box, extent: Extent
) -> NDArray[np.uint8]:
    """Resize an RGB picture and crop it, antialiased, as Pillow does but for a level or two.

    Args:
        image: Of mode RGB.
        size: (width, height).
        resample: Pillow's BICUBIC or BILINEAR.
        box: What to keep of it.
        extent: How much of the image to resize, from its upper left corner: all but parts of a pixel.

    Returns:
        (H, W, 3) uint8.

    Source: PyTorch's interpolate(antialias=True) has Pillow's filters (a = -0.5) and, for bytes, its
        fixed-point arithmetic: https://github.com/pytorch/vision/pull/7128
    """
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
        return pillow_resize(image, size, resample, box, extent)  # pads
    import torch  # not above: an ingest that finds nothing new does without

    # (1, 3, H, W), its channels last in memory, which is the kernel's fast path.
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    if size != extent:
        # By the factor, not to the size: the extent may end within a pixel. A pixel more than the size may
        # come of it, which is cut off, but never one less.
        factor = (size[1] / extent[1] * (1 + 1e-12), size[0] / extent[0] * (1 + 1e-12))
        pixels = torch.nn.functional.interpolate(
            pixels, scale_factor=factor, mode=resample.name.lower(), antialias=True, align_corners=False
        )
    kept: NDArray[np.uint8] = pixels[0, :, top:bottom, left:right].permute(1, 2, 0).contiguous().numpy()
    return kept


def pillow_resize(
    image: Image.Image, size: tuple[int, int], resample: Resample, box: Box, extent: Extent
) -> NDArray[np.uint8]:
    """Resize to (width, height) and crop, with Pillow, as open_clip's transform does.

    Returns:
        (H, W, 3) uint8, what is in the box.
    """
    resized = image if size == extent else image.resize(size, resample, box=(0, 0, *extent))
    return np.array(resized.crop(box), dtype=np.uint8)


def fit_image(
    image: Image.Image,
    *,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
    fill_color: int = 0,
    resize: Resize = pillow_resize,
    reduced: Reduced | None = None,
) -> NDArray[np.uint8]:
    """Resize an RGB image to a model's size: pixel for pixel what open_clip's own transform makes of it.

    Args:
        image: From `load_image`.
        size: (H, W) in pixels.
        interpolation: "bicubic" or "bilinear" ("random" is bicubic, as in open_clip).
        resize_mode: "shortest" resizes the shorter side and crops the centre, "longest" resizes the longer
            side and pads, "squash" gives up the aspect ratio.
        fill_color: Grey value in [0, 255] of the padding.
        resize: Resizes to (width, height) and crops in place of Pillow, as that of `imret.images.resize`
            does.
        reduced: What the image is a fraction of, if it is one.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If a mode or interpolation is unknown.
    """
    if interpolation not in ("bicubic", "bilinear", "random"):
        raise ValueError(f"unknown interpolation {interpolation!r}")
    resample = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    if image.mode != "RGB":
        image = load_image(image)
    height, width = size
    whole = image.size if reduced is None else reduced.size
    extent: Extent = image.size if reduced is None else reduced.extent
    if resize_mode == "squash":
        return resize(image, (width, height), resample, (0, 0, width, height), extent)
    if resize_mode == "shortest":
        if height != width:
            resample = Image.Resampling.BICUBIC  # open_clip 3.3 passes no interpolation on here
        return _resize_and_crop(image, _covering(whole, size), size, resample, resize, extent)
    if resize_mode == "longest":
        ratio = max(whole[0] / width, whole[1] / height)
        # A side of a very long picture would round to nothing; open_clip fails on it.
        inner = (max(1, round(whole[0] / ratio)), max(1, round(whole[1] / ratio)))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        fitted = np.full((height, width, 3), fill_color, dtype=np.uint8)
        fitted[top : top + inner[1], left : left + inner[0]] = resize(
            image, inner, resample, (0, 0, *inner), extent
        )
        return fitted
    raise ValueError(f"unknown resize mode {resize_mode!r}")


def box_average(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a picture made small, each pixel the average of the area that it covers.

    Args:
        pixels: (H, W, 3) uint8.
        size: (h, w), no larger than the picture.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = size
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def _covering(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) that makes an image cover (H, W), rounded as open_clip rounds."""
    (width, height), (out_height, out_width) = image, size
    if out_height == out_width:  # torchvision's Resize: truncates
        longer = int(out_width * max(width, height) / min(width, height))
        return (out_width, longer) if width <= height else (longer, out_width)
    ratio = min(height / out_height, width / out_width)  # open_clip's ResizeKeepRatio: rounds
    return round(width / ratio), round(height / ratio)


def _resize_and_crop(
    image: Image.Image,
    resized: tuple[int, int],
    size: tuple[int, int],
    resample: Resample,
    resize: Resize,
    extent: Extent,
) -> NDArray[np.uint8]:
    """Resize to (width, height) `resized`, then crop the centre (H, W)."""
    height, width = size
    left, top = round((resized[0] - width) / 2.0), round((resized[1] - height) / 2.0)
    if resized == image.size or resized[0] * resized[1] <= _MAX_RESIZED_PIXELS:
        return resize(image, resized, resample, (left, top, left + width, top + height), extent)
    # A 1 x 50,000 picture would become 224 x 11,200,000. Resample only what the crop keeps. Pillow still
    # reads the neighbours outside the box; it may take its two passes in the other order, which rounds
    # hard edges otherwise by some levels.
    across, down = extent[0] / resized[0], extent[1] / resized[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return np.array(image.resize((width, height), resample, box=box), dtype=np.uint8)
