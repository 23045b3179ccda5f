"""What the samples of a TIFF picture mean: grey, colours, inks, palettes, how opaque they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from imret.images.formats.tiff import directory as tags
from imret.images.formats.tiff.directory import DamagedTiffError, Directory
from imret.images.formats.tiff.layout import (
    CIELAB,
    FLOAT,
    ICCLAB,
    INT,
    MIN_IS_WHITE,
    PALETTE,
    RGB,
    SEPARATED,
    UINT,
    Layout,
)
from imret.images.levels import Levels, used_levels

_LAB_ROWS = 64  # converted at a time
_MODES = {RGB: "RGB", SEPARATED: "CMYK", CIELAB: "LAB", ICCLAB: "LAB", PALETTE: "RGB"}


def mode_of(layout: Layout) -> str:
    """Return Pillow's name of what `to_picture` makes."""
    if layout.alpha is None or layout.photometric in (CIELAB, ICCLAB):
        return _MODES.get(layout.photometric, "L")
    return "RGB" if layout.is_associated else "RGBA"


def to_picture(
    samples: NDArray[Any], directory: Directory, layout: Layout, on_note: Callable[[str], object]
) -> Image.Image:
    """Return samples as a picture of 8 bits: grey, RGB, RGBA, CMYK or LAB.

    Args:
        samples: From `imret.images.formats.tiff.samples.read_samples`.
        directory: The picture's.
        layout: Of that.
        on_note: As for `imret.images.decode.load_image`.
    """
    colors, alpha = samples[..., : layout.n_colors], None
    if layout.alpha is not None:
        alpha = Levels(0.0, _opaque(layout)).to_bytes(samples[..., -1])
        if tags.EXTRA_SAMPLES not in directory and not alpha.any():
            alpha = None  # a fourth sample that is nothing, and said to be nothing
    if layout.photometric == PALETTE:
        image = Image.fromarray(_palette(directory, layout)[colors[..., 0]])
    elif layout.photometric in (CIELAB, ICCLAB):
        return _lab(colors, layout)
    else:
        image = _from_colors(colors, directory, layout, on_note)
    if alpha is None:
        return image if layout.alpha is None else image.convert(mode_of(layout))
    mask = Image.fromarray(alpha)
    rgb = image.convert("RGB")
    if layout.is_associated:
        # What is multiplied by its alpha lies over white when the rest of white is added.
        rest = ImageChops.invert(mask)
        return ImageChops.add(rgb, Image.merge("RGB", (rest, rest, rest)))
    rgb.putalpha(mask)
    return rgb


def _from_colors(
    colors: NDArray[Any], directory: Directory, layout: Layout, on_note: Callable[[str], object]
) -> Image.Image:
    if layout.photometric == SEPARATED:
        levels = Levels(0.0, _opaque(layout))  # little ink is a pale picture
    else:
        kind = {INT: "i", FLOAT: "f"}.get(layout.sample_format, "u")
        levels = used_levels(colors, bits=layout.bits, kind=kind, nothing=_nothing(directory))
    if levels.note:
        on_note(levels.note)
    values = levels.to_bytes(colors)
    if layout.photometric == MIN_IS_WHITE:
        np.subtract(255, values, out=values)
    mode = _MODES.get(layout.photometric, "L")
    return Image.frombytes(mode, (layout.width, layout.height), np.ascontiguousarray(values).data)


def _opaque(layout: Layout) -> float:
    """Return the value of alpha that hides what is behind; as much of an ink hides the paper."""
    if layout.sample_format == FLOAT:
        return 1.0
    return float((1 << (layout.bits if layout.sample_format == UINT else layout.bits - 1)) - 1)


def _nothing(directory: Directory) -> float | None:
    """Return the value that maps have where nothing was measured.

    Source: GDAL's GTiff driver, tag 42113.
    """
    try:
        return float(directory.text(tags.GDAL_NODATA))
    except ValueError:
        return None


def _palette(directory: Directory, layout: Layout) -> NDArray[np.uint8]:
    """Return the colours of a palette, (colours, 3).

    They have 16 bits each; some scanners write 8, which libtiff's own tools tell from that, too.
    """
    n = 1 << layout.bits
    table = directory.numbers(tags.COLOR_MAP, 3 * n)
    if len(table) < 3 * n:
        raise DamagedTiffError(f"a palette of {len(table) // 3:,} colours for {layout.bits} bits")
    scaled = table if table.max() <= 255 else table >> 8
    return np.ascontiguousarray(scaled.reshape(3, n).T).astype(np.uint8)


def _lab(colors: NDArray[Any], layout: Layout) -> Image.Image:
    """Return Lab as Pillow has it: L from 0 to 255, a and b as signed bytes.

    Source: TIFF Revision 6.0, section 23; Photoshop's technical notes (2002) for ICC Lab and 16 bits.
    """
    lab = np.empty(colors.shape, np.uint8)
    for top in range(0, layout.height, _LAB_ROWS):
        rows = colors[top : top + _LAB_ROWS]
        if layout.sample_format == FLOAT:  # L in [0, 100], a and b in [-128, 127], as they are defined
            scaled = np.rint(np.nan_to_num(rows) * np.array([2.55, 1.0, 1.0]))
            bounds = np.array([0.0, -128.0, -128.0]), np.array([255.0, 127.0, 127.0])
            lab[top : top + _LAB_ROWS] = np.clip(scaled, *bounds).astype(np.int16).astype(np.uint8)
        else:
            whole = rows.astype(np.uint16) >> (layout.bits - 8)
            lab[top : top + _LAB_ROWS] = whole.astype(np.uint8)
    if layout.photometric == ICCLAB:
        lab[..., 1:] ^= 128  # there from 0 to 255
    return Image.frombytes("LAB", (layout.width, layout.height), lab.data)
