"""Small JPEGs of pictures for pages and contact sheets."""

from __future__ import annotations

import base64
import io

from PIL import Image

from imret.errors import ImageError
from imret.images.decode import REDUCING_GAP, Source
from imret.images.decode_memory import loaded

# Longer side of a picture on a contact sheet or a report; shown at half of it, to be sharp on a dense screen.
THUMBNAIL_PIXELS = 240
LARGE_THUMBNAIL_PIXELS = 420  # where one search has the page to itself

_MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_PROFILE_BYTES = 1 << 14


def to_jpeg(image: Image.Image, *, max_side: int | None = None, quality: int = 80) -> bytes:
    """Return the bytes of a JPEG of a picture, made smaller where it is too large, never larger.

    Carries no metadata (no EXIF, so no place and no camera; no XMP, no comment) but a colour profile for RGB
    that `load_image` left with the picture: without it, photos in Display P3 look pale. sRGB needs none.

    Args:
        image: From `load_image`.
        max_side: Pixels of the longer side at most. JPEG itself ends at 65,500.
        quality: libjpeg's, in [1, 95].
    """
    side = min(max_side or _MAX_JPEG_SIDE, _MAX_JPEG_SIDE)
    longer = max(image.size)
    if longer > side:
        width, height = (max(1, round(length * side / longer)) for length in image.size)
        plain = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    else:
        plain = image
    profile, info, out = _profile(image), image.info, io.BytesIO()
    plain.info = {}  # Pillow would write the comment that it found
    try:
        plain.save(out, "JPEG", quality=quality, icc_profile=profile)
    finally:
        image.info = info
    return out.getvalue()


def _profile(image: Image.Image) -> bytes | None:
    """Return the ICC profile to hand on; browsers read it, this process does not.

    Source: ICC.1:2022, section 7.2.6: bytes 16 to 19 name the colour space of the pixels.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or profile[16:20] != b"RGB " or len(profile) > _MAX_PROFILE_BYTES:
        return None
    return None if b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile else profile


def thumbnail(source: Source, pixels: int = THUMBNAIL_PIXELS) -> str | None:
    """Return a picture as the data URI of a JPEG, its longer side `pixels`; None if it is unreadable."""
    try:
        with loaded(source, max_side=pixels) as image:
            data = to_jpeg(image, max_side=pixels, quality=85)
    except ImageError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
