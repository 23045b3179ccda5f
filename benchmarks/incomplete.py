"""How much a missing part changes an embedding: what MOST_MISSING of incomplete.py rests on.

    python benchmarks/incomplete.py PICTURES --model MODEL [--limit 200] [--output FILE.md]

Of each JPEG below PICTURES a share of the last rows is made grey, as libjpeg fills what a file lacks. Cosine
of its embedding to that of the whole picture: median, the lowest of twenty, and the worst.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np
from machine import cores
from PIL import Image

from imret import Encoder
from imret.images.decode import load_image

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20, 0.30, 0.50)


def cut(image: Image.Image, share: float) -> Image.Image:
    """Return a picture whose last rows are grey."""
    filled = image.copy()
    filled.paste((128, 128, 128), (0, round(image.height * (1 - share)), *image.size))
    return filled


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = sorted(arguments.pictures.rglob("*.jpg"))
    files = files[:: max(1, len(files) // arguments.limit)][: arguments.limit]
    encoder = Encoder(arguments.model, device="cpu", precision="fp32")
    images = [load_image(file) for file in files]
    whole = encoder.encode_images(images)
    lines = [
        "# A missing part of a picture, and its embedding",
        "",
        f"{date.today()}, {len(images)} photos, {Path(encoder.model_id).name}, {cores()}",
        "",
        "| missing | median | lowest of twenty | worst |",
        "|---|---|---|---|",
    ]
    for share in SHARES:
        cosines = (encoder.encode_images([cut(image, share) for image in images]) * whole).sum(axis=1)
        lines.append(
            f"| {100 * share:.0f} % | {np.median(cosines):.3f} | {np.quantile(cosines, 0.05):.3f} "
            f"| {cosines.min():.3f} |"
        )
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
