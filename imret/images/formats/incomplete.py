"""Pictures a part of which is missing: which are taken with a note, and which are refused.

One rule for JPEG and PNG: with at most `MOST_MISSING` of its pixels missing, a picture is taken, the rest is
grey, and it is noted; a file that its program closed without having all of it is always taken, and noted. A
PNG whose pixels are not what its checksums say is damaged. All else that ends too early (WebP, GIF, BMP,
AVIF, HEIC) is refused, for their readers give no part of it.
"""

from __future__ import annotations

import math
from typing import IO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from imret.errors import ImageError
from imret.images.color import to_rgb
from imret.images.decode_bytes import has_scans
from imret.images.formats import jpeg, png
from imret.images.formats.broken_copy import has_zeros_for_pixels
from imret.images.notes import OnNote

# Embeddings of photos a tenth of which is grey have a cosine of 0.99 to those of the whole photo at the
# median; with three tenths it is 0.94. Measured by benchmarks/incomplete.py.
MOST_MISSING = 0.10

_GREY = (128, 128, 128)  # as libjpeg fills


def what_is_there(image: Image.Image, file: IO[bytes], on_note: OnNote) -> Image.Image | None:
    """Return a picture whose decoding failed as far as it is there; None if that is not known.

    Args:
        image: As Pillow opened it.
        file: What Pillow read it from.
        on_note: Told how much is missing.

    Raises:
        ImageError: If that is too much, or it is of a kind that is not read here, and healthy perhaps.
    """
    if isinstance(image, JpegImageFile):
        if (kind := jpeg.not_supported(file)) is not None:
            raise ImageError(f"not supported: {kind}")
        return _jpeg(image, file, on_note)
    if isinstance(image, PngImageFile):
        return _png(image, file, on_note)
    return None


def refuse_zeros(image: Image.Image, file: IO[bytes]) -> None:
    """Refuse a picture that would decode to garbage, as it has zeros in the place of its end.

    Args:
        image: As Pillow opened it.
        file: What Pillow read it from.

    Raises:
        ImageError: If it is one.
    """
    if image.format is not None and has_zeros_for_pixels(file, image.format, image.size):
        raise ImageError(
            f"a damaged {image.format} picture: its end is zeros, as a copy that was broken off leaves them"
        )


def note_if_filled(image: JpegImageFile, file: IO[bytes], on_note: OnNote) -> None:
    """Note how much is missing of a JPEG that decoded without a complaint, where it looks so at its end.

    Args:
        image: Decoded.
        file: What Pillow read it from.
        on_note: Told how much is missing.
    """
    if not jpeg.may_be_filled(image) or has_scans(image):  # nothing is grey for want of a last scan
        return
    try:
        missing = jpeg.missing_share(image, file, is_closed=True)
    except Exception:
        return  # it is good as it is
    if missing > 0:
        on_note(_words(missing))


def _jpeg(image: JpegImageFile, file: IO[bytes], on_note: OnNote) -> Image.Image | None:
    again = jpeg.closed(image, file)
    if again is None:
        return None
    if "progressive" in image.info:
        on_note("the file is cut off: some of the finest detail is missing")
    else:
        _tell(jpeg.missing_share(image, file, is_closed=False), "JPEG", on_note)
    again.info = image.info
    return again


def _png(image: PngImageFile, file: IO[bytes], on_note: OnNote) -> Image.Image:
    found = png.read_pixels(file, image.size)
    if found.is_damaged:
        raise ImageError(
            "a damaged PNG picture: its pixels do not match its checksums, or cannot be unpacked"
        )
    if found.missing > 0 and image.info.get("interlace"):
        raise ImageError(f"a truncated PNG picture: {_percent(found.missing)} of it are missing")
    if found.missing > 0 or not found.is_closed:
        _tell(found.missing, "PNG", on_note, is_closed=found.is_closed)
    image.tile = []  # so that Pillow takes what is decoded for all
    if not found.missing:
        return image
    rgb = to_rgb(image, on_note)
    rgb.paste(_GREY, (0, min(found.rows, image.size[1]), *image.size))
    return rgb


def _tell(missing: float, kind: str, on_note: OnNote, *, is_closed: bool = False) -> None:
    if missing > MOST_MISSING and not is_closed:
        raise ImageError(f"a truncated {kind} picture: {_words(missing)}")
    on_note(_words(missing) if missing > 0 else "the file is cut off behind its last pixels")


def _words(missing: float) -> str:
    return f"the last {_percent(missing)} are missing"


def _percent(share: float) -> str:
    return f"{math.ceil(100 * share)} %"
