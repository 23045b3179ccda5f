"""From a JPEG file to the pixels that a model takes: imret against open_clip's own transform, on one core.

    python benchmarks/decode.py PICTURES [--model MODEL] [--times 7] [--output FILE.md]

Takes the JPEG files below PICTURES whose shorter side is 300 pixels or more, and some of them saved anew at
twelve megapixels (enlarged, with noise as a sensor has it). Each way takes each file in turn, in one thread;
processor time, medians over the rounds, least and most. With --model, how far apart embeddings of both ways
are.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cores
from open_clip.transform import image_transform
from PIL import Image

from imret import Encoder
from imret.images.decode import load_image
from imret.images.preprocess import Preprocess
from imret.images.resize import fit_image, load_pixels

SIZE = 224
PREPROCESS = Preprocess(
    size=(SIZE, SIZE),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bicubic",
    resize_mode="shortest",
    fill_color=0,
)


def enlarged(data: bytes, seed: int) -> bytes:
    """Return a photo as a file of twelve megapixels."""
    image = load_image(data)
    scale = (12_000_000 / (image.width * image.height)) ** 0.5
    size = (16 * round(image.width * scale / 16), 16 * round(image.height * scale / 16))  # as cameras have it
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += np.random.default_rng(seed).normal(0, 3, pixels.shape).astype(np.int16)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def ways() -> dict[str, Callable[[bytes], Any]]:
    """Return the ways to measure, the peer first."""
    transform = image_transform(SIZE, is_train=False)
    return {
        "open_clip's transform": lambda data: transform(Image.open(io.BytesIO(data))),
        "imret, IMRET_RESIZE=exact": lambda data: fit_image(load_image(data), size=(SIZE, SIZE)),
        "imret": lambda data: load_pixels(data, PREPROCESS)[0],
        "decoding alone, whole": lambda data: Image.open(io.BytesIO(data)).load(),
    }


def measure(files: Sequence[bytes], times: int) -> list[str]:
    """Return rows of a table: pictures a second of each way, and against the first."""
    taken: dict[str, list[float]] = {name: [] for name in ways()}
    for _ in range(times + 1):
        for name, way in ways().items():
            started = time.process_time()
            for data in files:
                way(data)
            taken[name].append(len(files) / (time.process_time() - started))
    rates = {name: values[1:] for name, values in taken.items()}  # the first round warms up
    peer = statistics.median(next(iter(rates.values())))
    return [
        f"| {name} | {statistics.median(values):,.1f} | {min(values):,.1f} to {max(values):,.1f} "
        f"| {statistics.median(values) / peer:.2f} |"
        for name, values in rates.items()
    ]


def agreement(model: str, files: Sequence[bytes]) -> str:
    """Return how near the embeddings of the fast and the exact way are."""
    encoder = Encoder(model, device="cpu", precision="fp32")
    fast = encoder.encode_images(files)
    os.environ["IMRET_RESIZE"] = "exact"
    exact = encoder.encode_images(files)
    del os.environ["IMRET_RESIZE"]
    cosines = (fast * exact).sum(axis=1)
    return f"cosine of both ways' embeddings: median {np.median(cosines):.6f}, worst {cosines.min():.6f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--large", type=int, default=8, help="how many of twelve megapixels")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(arguments.pictures.rglob("*.jpg"))]
    small = [data for data in files if min(Image.open(io.BytesIO(data)).size) >= 300][:150]
    every = max(1, len(small) // arguments.large)
    large = [enlarged(data, seed) for seed, data in enumerate(small[::every])]
    lines = [
        "# From a JPEG file to a model's pixels",
        "",
        f"{date.today()}, one thread of {cores()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, Pillow {Image.__version__}",
    ]
    for title, data in (("photos", small), ("photos of twelve megapixels", large)):
        pixels = statistics.mean(np.prod(Image.open(io.BytesIO(photo)).size) for photo in data)
        lines += ["", f"{len(data)} {title}, {pixels / 1e6:.2f} megapixels on average", ""]
        lines += ["| way | pictures/s | least to most | ratio |", "|---|---|---|---|"]
        lines += measure(data, arguments.times)
        if arguments.model:
            lines += ["", agreement(arguments.model, data)]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
