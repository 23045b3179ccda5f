"""Kinds of files that are easily taken wrongly: imret and plain Pillow against what Chromium shows.

    python benchmarks/pixels.py [--model MODEL] [--output FILE.md]

Files of one drawn scene, a kind each (`tests/fakes/drawn_files.py`). Mean difference in levels of 255 to what
Chromium draws on a white canvas, of imret and of Pillow's convert("RGB"); with --model, cosine of the
embeddings.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from imret import Encoder
from imret.images.decode import load_image
from tests.browser.test_pixels import PIXELS
from tests.fakes.drawn_files import shown_alike


def as_shown(page: Any, media_type: str, data: bytes) -> Image.Image:
    """Return what a page draws of a file."""
    url = f"data:image/{media_type};base64,{base64.b64encode(data).decode('ascii')}"
    width, height, pixels = page.evaluate(PIXELS, url)
    shown = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)
    return Image.fromarray(np.ascontiguousarray(shown[..., :3]))


def by_pillow(data: bytes) -> Image.Image | None:
    """Return what open_clip's own transform would begin with; None where Pillow refuses the file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return Image.fromarray(np.asarray(image.convert("RGB")))  # without its profile
    except (OSError, ValueError, SyntaxError):
        return None


def row(kind: str, shown: Image.Image, data: bytes, encoder: Encoder | None) -> str:
    """Return a row of the table."""
    cells = [kind]
    for image in (load_image(data), by_pillow(data)):
        if image is None or image.size != shown.size:
            cells += ["refused"] + (["-"] if encoder else [])
            continue
        cells.append(f"{np.abs(np.asarray(image).astype(int) - np.asarray(shown)).mean():.1f}")
        if encoder:
            one, other = encoder.encode_images([image, shown])
            cells.append(f"{float(one @ other):.3f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    encoder = Encoder(arguments.model, device="cpu", precision="fp32") if arguments.model else None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto("about:blank")
        names = [
            "kind",
            "imret",
            *(["cosine"] if encoder else []),
            "Pillow",
            *(["cosine"] if encoder else []),
        ]
        lines = [
            "# What is shown, and what a model gets",
            "",
            f"{date.today()}, Chromium {browser.version}, ",
        ]
        lines[-1] += f"Pillow {Image.__version__}" + (f", {Path(arguments.model).name}" if encoder else "")
        lines += ["", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        for kind, (media_type, data, _) in shown_alike().items():
            lines.append(row(kind, as_shown(page, media_type, data), data, encoder))
        browser.close()
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
