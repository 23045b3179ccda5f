"""How well copies of pictures are told from different ones: what the limits of `imret.images.phash` stand on.

    python benchmarks/likeness.py data/train [--size 252]

Takes the pictures of a folder for different ones, and prints how near the nearest two of them are; then how
many copies, saved anew, made smaller, brightened or cut, are found; then what hashing and comparing cost.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.records import list_pictures
from imret.images.decode import load_image
from imret.images.phash import MAX_BITS, MAX_COLOUR_DISTANCE, ImageHash, compute_hash, near_duplicates
from imret.images.resize import fit_image


def copies(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Yield what people do to a picture before they put it into a folder once more."""
    width, height = image.size
    for quality in (30, 75):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        yield f"JPEG of quality {quality}", load_image(file.getvalue())
    for part in (2, 4):
        size = (max(1, width // part), max(1, height // part))
        yield f"1/{part} of the size", image.resize(size, Image.Resampling.LANCZOS)
    brighter = (np.asarray(image) * 1.15).clip(0, 255).astype(np.uint8)
    yield "15 % brighter", Image.fromarray(brighter)
    yield "grey", image.convert("L").convert("RGB")
    yield "mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for share in (0.02, 0.05):
        x, y = round(width * share), round(height * share)
        yield f"cut by {share:.0%} at every side", image.crop((x, y, width - x, height - y))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=252, help="pixels that pictures are fitted to")
    arguments = parser.parse_args()

    def hash_of(image: Image.Image) -> ImageHash:
        return compute_hash(fit_image(image, size=(arguments.size, arguments.size)))

    paths = [picture.path for picture in list_pictures(arguments.folder)]
    matches: Counter[str] = Counter()
    hashes = []
    for path in paths:
        image = load_image(arguments.folder / path)
        hashes.append(hash_of(image))
        for what, copy in copies(image):
            matches[what] += len(near_duplicates([hashes[-1]], [hash_of(copy)]))

    bits = np.array([item.bits for item in hashes], dtype=np.uint64)
    differing: Counter[int] = Counter()
    nearest = (999.0, "", "")
    for i in range(len(bits) - 1):
        row = np.bitwise_count(bits[i] ^ bits[i + 1 :])
        differing.update(row[row <= 16].tolist())
        for j in np.flatnonzero(row <= MAX_BITS):
            colours = hashes[i].colours.astype(float) - hashes[i + 1 + int(j)].colours
            levels = float(np.sqrt((colours**2).mean()))
            nearest = min(nearest, (levels, paths[i], paths[i + 1 + int(j)]))
    print(
        f"{len(paths):,} pictures, {len(paths) * (len(paths) - 1) // 2:,} pairs; limits {MAX_BITS} bits and"
    )
    print(f"{MAX_COLOUR_DISTANCE:g} levels. Pairs by bits: {dict(sorted(differing.items()))}")
    if nearest[1]:
        print(f"nearest in colour within {MAX_BITS} bits: {nearest[0]:.1f} levels, {nearest[1]} {nearest[2]}")
    print(f"taken for copies: {len(near_duplicates(hashes))} pairs")
    for what, count in matches.items():
        print(f"{count / len(paths):7.1%}  of copies found that are {what}")

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (arguments.size, arguments.size, 3), np.uint8)
    for threads in (1, 16):
        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(compute_hash, [noise] * 1000))
            print(f"{1000 / (time.perf_counter() - began):6.0f} hashes a second in {threads} threads")
    for n in (10_000, 50_000):
        many = [ImageHash(int(value), hashes[0].colours) for value in rng.integers(0, 1 << 63, n)]
        began = time.perf_counter()
        near_duplicates(many)
        print(f"{time.perf_counter() - began:6.2f} s to compare {n:,} pictures")


if __name__ == "__main__":
    main()
