"""Labelled pictures, embedded by one model; what cannot be read is kept apart, with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError, ImageError
from imret.folders import Found, walk
from imret.images import fit_image, load_image

if TYPE_CHECKING:
    from imret.encoder import Encoder

# Pictures decoded before they are encoded together.
_BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """Labelled pictures, embedded by one model.

    Attributes:
        paths: N, below the folder.
        labels: (N,) int, index into `categories`.
        categories: Names, sorted.
        vectors: (N, D) unit embeddings.
        skipped: What could not be read, and why.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    categories: list[str]
    vectors: NDArray[np.float32]
    skipped: list[dict[str, str]]


def labelled(folder: Path) -> list[str]:
    """Return the pictures of a folder that lie in a category, by path below it."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{str(folder)!r} {what}. Give a folder with one sub-folder per category.")
    paths = sorted(
        entry.path for entry in walk(str(folder)) if isinstance(entry, Found) and "/" in entry.path
    )
    if len({path.split("/", 1)[0] for path in paths}) < 2:
        raise DataError(
            f"{str(folder)!r} holds {len(paths)} pictures in fewer than two categories. "
            "Give a folder with one sub-folder per category."
        )
    return paths


def embed(folder: Path, paths: Sequence[str], encoder: Encoder, on_picture: Callable[[], object]) -> Embedded:
    vectors, good, skipped = encode(folder, paths, encoder, on_picture)
    of = [path.split("/", 1)[0] for path in good]
    categories = sorted(set(of))
    if len(categories) < 2:
        raise DataError(f"of the pictures in {str(folder)!r} only {len(good)} can be read, in one category")
    labels = np.array([categories.index(name) for name in of], dtype=np.int64)
    return Embedded(good, labels, categories, vectors, skipped)


def encode(
    folder: Path, paths: Sequence[str], encoder: Encoder, on_picture: Callable[[], object]
) -> tuple[NDArray[np.float32], list[str], list[dict[str, str]]]:
    """Return (N, D) embeddings of the readable pictures, their paths, and what is wrong with the others."""
    fit = encoder.preprocess

    def decode(path: str) -> NDArray[np.uint8] | str:
        try:
            return fit_image(
                load_image(folder / path),
                size=fit.size,
                interpolation=fit.interpolation,
                resize_mode=fit.resize_mode,
                fill_color=fit.fill_color,
            )
        except (ImageError, OSError) as error:
            return str(error)

    rows, good, skipped = [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _BATCH):
            some = paths[start : start + _BATCH]
            pixels = []
            for path, result in zip(some, pool.map(decode, some), strict=True):
                if isinstance(result, str):
                    skipped.append({"path": path, "reason": result})
                else:
                    pixels.append(result)
                    good.append(path)
                on_picture()
            if pixels:
                rows.append(encoder.encode_pixels(np.stack(pixels)))
    vectors = np.concatenate(rows) if rows else np.zeros((0, encoder.dim), np.float32)
    return vectors, good, skipped
