"""Kinds of TIFF against the picture that was drawn: imret, Pillow and, where pyvips is installed, libvips.

    python benchmarks/tiff.py [--output FILE.md]

One drawn scene, a file of each kind, written by hand (`tests/fakes/tiff_files.py`). The figures are mean
differences in levels of 255 to what was drawn.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from imret.images.decode import load_image
from tests.fakes.tiff_files import (
    CMYK,
    COMPRESS,
    FLOAT,
    GREY,
    INT,
    PALETTE,
    RGB,
    SCENE,
    SHADES,
    draw,
    scaled,
    tags_of,
    tiff,
)

Pixels = NDArray[Any]


def kinds() -> dict[str, tuple[bytes, Pixels]]:
    """Return a file of each kind, and what was drawn in it: (H, W) or (H, W, 3), 255 is white."""
    opaque = np.full(SHADES.shape, 255, np.uint8)
    opaque[:, 25:] = 102
    share = opaque[..., None] / 255
    inks = np.dstack([255 - SCENE, np.full(SHADES.shape, 51, np.uint8)])
    deep, floats = scaled(SCENE, 16), scaled(SCENE, 32, FLOAT)
    deflate: dict[str, Any] = {"compression": 8, "compress": COMPRESS[8], "predictor": 2}
    palette = np.arange(768) % 256
    small = tags_of(10, 6, 3, 8, RGB, subfile=1), [SCENE[::6, ::5].tobytes()]
    whole = tags_of(SCENE.shape[1], SCENE.shape[0], 3, 8, RGB), [SCENE.tobytes()]
    narrow = np.rint(27000 + SHADES / 255 * 4000).astype(np.uint16)
    return {
        "grey of 16 bits": (draw(scaled(SHADES, 16), 16, GREY), SHADES),
        "grey of 16 bits, zero is white": (draw(scaled(SHADES, 16), 16, 0), 255 - SHADES),
        "grey of 12 bits": (draw(scaled(SHADES, 12), 12, GREY), SHADES),
        "grey of 32 bits": (draw(scaled(SHADES, 32), 32, GREY), SHADES),
        "grey of signed 16 bits": (draw(scaled(SHADES, 16, INT), 16, GREY, format=INT), SHADES),
        "grey in floats": (draw(scaled(SHADES, 32, FLOAT), 32, GREY, format=FLOAT), SHADES),
        "grey of 16 bits, from 27,000 to 31,000": (draw(narrow, 16, GREY), SHADES),
        "RGB of 16 bits": (draw(deep, 16, RGB), SCENE),
        "RGB of 16 bits in planes": (draw(deep, 16, RGB, planar=True), SCENE),
        "RGB of 16 bits in planes, Deflate": (draw(deep, 16, RGB, planar=True, **deflate), SCENE),
        "RGB of 16 bits in tiles": (draw(deep, 16, RGB, tile=16), SCENE),
        "RGB of 4 bits": (draw(scaled(SCENE, 4), 4, RGB), np.rint(SCENE / 17) * 17),
        "RGB of 12 bits": (draw(scaled(SCENE, 12), 12, RGB), SCENE),
        "RGB in floats": (draw(floats, 32, RGB, format=FLOAT), SCENE),
        "RGB in half floats": (draw(floats.astype("f2"), 16, RGB, format=FLOAT), SCENE),
        "RGB and alpha of 16 bits": (
            draw(scaled(np.dstack([SCENE, opaque]), 16), 16, RGB, extra=[2]),
            SCENE * share + 255 * (1 - share),
        ),
        "grey and alpha in planes": (
            draw(np.dstack([SHADES, opaque]), 8, GREY, planar=True, extra=[2]),
            (SHADES[..., None] * share + 255 * (1 - share))[..., 0],
        ),
        "eight bands": (draw(np.dstack([SCENE, SCENE, SCENE[..., :2]]), 8, RGB, extra=[0] * 5), SCENE),
        "inks": (draw(inks, 8, CMYK), SCENE * 0.8),
        "inks and alpha": (
            draw(np.dstack([inks, opaque]), 8, CMYK, extra=[2]),
            SCENE * 0.8 * share + 255 * (1 - share),
        ),
        "palette in 16 bits": (draw(SHADES, 8, PALETTE, tags={320: (3, palette * 257)}), SHADES),
        "palette in 8 bits": (draw(SHADES, 8, PALETTE, tags={320: (3, palette)}), SHADES),
        "orientation 8 as BYTE": (
            draw(SCENE, 8, RGB, tags={274: (1, [8])}),
            SCENE.transpose(1, 0, 2)[::-1],
        ),
        "a thumbnail first": (tiff([small, whole]), SCENE),
    }


def by_pillow(data: bytes) -> Pixels:
    """Return what open_clip's own transform would begin with."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def by_libvips(vips: Any) -> Callable[[bytes], Pixels]:
    """Return a reader by libvips, as its thumbnails are made: upright, sRGB, over white."""

    def read(data: bytes) -> Pixels:
        image = vips.Image.new_from_buffer(data, "").autorot().colourspace("srgb")
        flat = image.flatten(background=[255, 255, 255]) if image.hasalpha() else image
        pixels: Pixels = flat.cast("uchar").numpy()
        return np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels

    return read


def difference(read: Callable[[bytes], Any], data: bytes, drawn: Pixels) -> str:
    """Return how far what is read of a file is from what was drawn, or why it cannot be told."""
    drawn = np.dstack([drawn] * 3) if drawn.ndim == 2 else drawn
    try:
        pixels = np.asarray(read(data)).astype(float)
    except Exception:
        return "refused"
    if pixels.shape != drawn.shape:
        return "{1} x {0}, {2} bands".format(*pixels.shape)
    return f"{np.abs(pixels - drawn).mean():.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.disable()
    readers: dict[str, Callable[[bytes], Any]] = {"imret": load_image, "Pillow": by_pillow}
    versions = [f"Pillow {Image.__version__}"]
    try:
        vips = importlib.import_module("pyvips")
    except ImportError:
        pass
    else:
        readers["libvips"] = by_libvips(vips)
        versions.append("libvips " + ".".join(str(vips.version(part)) for part in range(3)))
    lines = ["# Kinds of TIFF against what was drawn", "", f"{date.today()}, {', '.join(versions)}", ""]
    lines += ["| kind | " + " | ".join(readers) + " |", "|---" * (1 + len(readers)) + "|"]
    for kind, (data, drawn) in kinds().items():
        cells = [difference(read, data, drawn) for read in readers.values()]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
