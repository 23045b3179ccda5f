"""Every mode of Pillow's to 8-bit RGB: 16 bit, CMYK, palettes, transparency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from imret.images.notes import OnNote, ignore_note


def to_rgb(image: Image.Image, on_note: OnNote = ignore_note) -> Image.Image:
    """Return an image of any mode as 8-bit RGB, transparency over white; always a new one.

    Args:
        image: Decoded.
        on_note: As for `imret.images.decode.load_image`.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if type(image) is Image.Image else image.convert("RGB")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        lab_to_srgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        converted = ImageCms.applyTransform(image, lab_to_srgb)
        assert converted is not None
        return converted
    if image.has_transparency_data:
        # La and PA have no direct way to RGBA
        straight = image  # not a copy, which of a hundred megapixels is 400 MB
        if image.mode != "RGBA":
            straight = image.convert({"La": "LA", "PA": "RGBA"}.get(image.mode, "RGBA")).convert("RGBA")
        over_white = Image.new("RGB", image.size, "white")
        over_white.paste(straight, mask=straight.getchannel("A"))
        return over_white
    return image.convert("RGB")


def _to_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Bring one channel of more than 8 bits to [0, 255] by the range that its values show.

    16-bit integers span 65,535. Wider integers and floats say nowhere what is white: [0, 1]
    (floats), [0, 255] and [0, 65,535] are taken for whole ranges, anything else is stretched from its lowest
    value to its highest.
    """
    levels = np.array(values, dtype=np.float32)
    np.nan_to_num(levels, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if values.dtype.itemsize == 2:
        low, high = 0.0, 65535.0
    elif low >= 0.0:
        whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        low, high = next(((0.0, white) for white in whites if high <= white), (low, high))
    # In place: a hundred megapixels of floats are 400 MB.
    levels -= low
    levels *= 255.0 / max(high - low, 1e-30)
    np.clip(np.rint(levels, out=levels), 0.0, 255.0, out=levels)
    whole: NDArray[np.uint8] = levels.astype(np.uint8)
    return whole
