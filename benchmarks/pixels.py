"""Kinds of picture files that readers easily take wrongly: imret beside libvips and Chromium.

    python benchmarks/pixels.py [--model MODEL] [--output FOLDER]

One drawn scene is written as a file of each kind (`tests/fakes/drawn_files.py`). What is right is what
Chromium shows, in a canvas over white. How far imret, Pillow and libvips are from it: levels of 255 on
average, and with --model the cosine of the embeddings. Pillow is asked as open_clip's own transform asks it
(convert to RGB), libvips as its users do (turned, profile to sRGB, over white); that needs
`pip install 'pyvips[binary]'`. Chromium is the system's.

Writes benchmarks/results/pixels-DATE.md.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for what the tests draw

from imret import Encoder
from imret.errors import ImageError
from imret.images.decode import load_image
from tests.browser.canvas import PIXELS_OF_URL, find_chromium
from tests.fakes.drawn_files import shown_alike

NOT_INSTALLED = "not installed"

Pixels = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Read:
    """What one reader makes of a file: its pixels, or why it has none."""

    pixels: Pixels | None
    reason: str = ""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    encoder = Encoder(arguments.model, device="cpu", precision="fp32") if arguments.model else None
    rows = []
    with chromium_pixels() as (version, show):
        for kind, (media_type, data, _) in shown_alike().items():
            rows.append((kind, show(data, media_type), [read(data) for read in (ours, pillow, vips)]))
    text = table(rows, version, encoder)
    arguments.output.mkdir(exist_ok=True)
    (arguments.output / f"pixels-{date.today().isoformat()}.md").write_text(text, encoding="utf-8")
    print(text)


@contextmanager
def chromium_pixels() -> Iterator[tuple[str, Any]]:
    """Yield the version of Chromium, and what gives the pixels that it shows of a file."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto("about:blank")

        def show(data: bytes, media_type: str) -> Read:
            url = f"data:image/{media_type};base64,{base64.b64encode(data).decode('ascii')}"
            try:
                width, height, pixels = page.evaluate(PIXELS_OF_URL, url)
            except Error as error:
                return Read(None, str(error).splitlines()[0])
            rgba = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)
            return Read(rgba[..., :3])

        yield browser.version, show
        browser.close()


def ours(data: bytes) -> Read:
    """Read a file as imret does."""
    try:
        return Read(np.asarray(load_image(data)))
    except ImageError as error:
        return Read(None, str(error))


def pillow(data: bytes) -> Read:
    """Read a file as open_clip's own transform does."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return Read(np.asarray(image.convert("RGB")))
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        return Read(None, str(error))


def vips(data: bytes) -> Read:
    """Read a file with libvips."""
    if importlib.util.find_spec("pyvips") is None:
        return Read(None, NOT_INSTALLED)
    import pyvips

    try:
        image = pyvips.Image.new_from_buffer(data, "").autorot()
        if image.get_typeof("icc-profile-data"):
            image = image.icc_transform("srgb")
        image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=255)
        pixels = image.cast("uchar").numpy()
    except pyvips.Error as error:
        return Read(None, str(error).strip().splitlines()[0])
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Read(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3])


def table(rows: list[tuple[str, Read, list[Read]]], version: str, encoder: Encoder | None) -> str:
    """Return the results as Markdown."""
    named = f"Pillow {Image.__version__}, libvips {vips_version()}, Chromium {version}"
    lines = [
        "# Kinds of picture files, and what readers make of them",
        "",
        f"{date.today().isoformat()}; {named}. Command: `python benchmarks/pixels.py"
        + (" --model MODEL`." if encoder else "`."),
        "How far from what Chromium shows, in levels of 255 on average"
        + ("; and the cosine of the embeddings." if encoder else "."),
        "",
        "| kind | imret | Pillow | libvips |",
        "|---|---|---|---|",
    ]
    for kind, right, reads in rows:
        lines.append(f"| {kind} | " + " | ".join(cell(right, read, encoder) for read in reads) + " |")
    return "\n".join(lines) + "\n"


def vips_version() -> str:
    """Return the version of libvips, or that there is none."""
    if importlib.util.find_spec("pyvips") is None:
        return "(not installed)"
    import pyvips

    return ".".join(str(pyvips.version(part)) for part in range(3))


def cell(right: Read, read: Read, encoder: Encoder | None) -> str:
    """Return how far what was read is from what is right."""
    if right.pixels is None:
        return f"(Chromium: {right.reason[:60]})"
    if read.pixels is None:
        return read.reason if read.reason == NOT_INSTALLED else "refused"
    if read.pixels.shape != right.pixels.shape:
        return f"another size: {read.pixels.shape[1]} x {read.pixels.shape[0]}"
    apart = np.abs(read.pixels.astype(int) - right.pixels).mean()
    if encoder is None:
        return f"{apart:.1f}"
    images = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in (right.pixels, read.pixels)]
    one, other = encoder.encode_images(images)
    return f"{apart:.1f}, {float(one @ other):.3f}"


if __name__ == "__main__":
    main()
