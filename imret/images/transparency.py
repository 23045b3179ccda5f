"""What is seen of a decoded picture, in RGB: transparency over white, also where Pillow knows of none."""

from __future__ import annotations

from typing import TypeAlias

from PIL import Image

from imret.images.color import to_rgb
from imret.images.formats.png import transparent_grey
from imret.images.notes import OnNote

Box: TypeAlias = tuple[int, int, int, int]


def first_frame(image: Image.Image) -> Box | None:
    """Return the place of a GIF's first frame, if that is smaller than the picture. Ask before decoding."""
    if image.format != "GIF" or not getattr(image, "tile", None):
        return None
    left, top, right, bottom = image.tile[0][1]  # type: ignore[attr-defined]
    return None if (left, top, right, bottom) == (0, 0, *image.size) else (left, top, right, bottom)


def over_white(image: Image.Image, on_note: OnNote, frame: Box | None = None) -> Image.Image:
    """Return a decoded picture as RGB; a new one, unless the caller can do with this.

    A BMP whose alpha is zero everywhere has none (screenshots, exports): so Windows shows it. Around a GIF's
    first frame there is nothing, whatever its palette calls the background: so browsers show it.

    Args:
        image: Decoded.
        on_note: As for `imret.images.decode.load_image`.
        frame: From `first_frame`.
    """
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    unseen = transparent_grey(image)
    rgb = to_rgb(image, on_note)
    if unseen is not None:
        rgb.paste("white", mask=unseen)
    if frame is not None:
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgb.crop(frame), frame[:2])
        return canvas
    return rgb
