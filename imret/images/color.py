"""Every mode of Pillow's to 8-bit RGB: 16 bit, CMYK, palettes, transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

from imret.images.levels import used_levels
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
        values = np.asarray(image)
        levels = used_levels(values)
        if levels.note:
            on_note(levels.note)
        return Image.fromarray(levels.to_bytes(values)).convert("RGB")
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
