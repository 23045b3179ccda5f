"""Labelled pictures, embedded by one model; what cannot be read is kept apart, with the reason.

Decoding runs one batch ahead of the model. In memory are two batches of pixels, and the embeddings.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.datasets.scan import Found, Skipped, walk
from imret.errors import DataError, ImageError
from imret.images.decode import Source

if TYPE_CHECKING:
    from imret.models.encoder import Encoder
    from imret.models.lazy_encoder import CachedEncoder

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)

# Pictures decoded before they are encoded together.
_BATCH = 64
# A large photo takes some 100 MB while it is decoded; more threads than this help little.
_THREADS = 16


@dataclass(frozen=True)
class Labelled:
    """Pictures found in a folder of categories.

    Attributes:
        folder: Where they lie.
        paths: Below the folder, sorted; the first part of each is its category.
        skipped: What is named like a picture and cannot be taken, and why.
    """

    folder: Path
    paths: list[str]
    skipped: list[dict[str, str]]

    @property
    def categories(self) -> list[str]:
        """Names of the categories, sorted."""
        return sorted({category_of(path) for path in self.paths})


@dataclass(frozen=True)
class Embedded:
    """Labelled pictures, embedded by one model.

    Attributes:
        paths: N, below the folder.
        labels: (N,) int, index into `categories`.
        categories: Names, sorted; each has a picture.
        vectors: (N, D) unit embeddings.
        skipped: What could not be read, and why.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    categories: list[str]
    vectors: NDArray[np.float32]
    skipped: list[dict[str, str]]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """(Q, N) whether a picture answers the query of each category."""
        relevant: NDArray[np.bool_] = np.arange(len(self.categories))[:, None] == self.labels[None, :]
        return relevant


def category_of(path: str) -> str:
    """Return the first folder of a path below the data."""
    return path.split("/", 1)[0]


def labelled(folder: str | os.PathLike[str]) -> Labelled:
    """Find the pictures of a folder that lie in a category, opening none.

    Raises:
        DataError: If there is no such folder, or fewer than two categories hold pictures.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{str(root)!r} {what}. Give a folder with one sub-folder per category.")
    paths, skipped = [], []
    for entry in walk(str(root)):
        if isinstance(entry, Found) and "/" in entry.path:
            paths.append(entry.path)
        elif isinstance(entry, Found):
            skipped.append({"path": entry.path, "reason": "lies in no category's folder"})
        elif isinstance(entry, Skipped):
            skipped.append({"path": entry.path, "reason": entry.reason})
    found = Labelled(root, sorted(paths), skipped)
    if len(found.categories) < 2:
        where = f"all in {found.categories[0]!r}" if paths else "in any category"
        raise DataError(
            f"{str(root)!r} holds {len(paths) or 'no'} pictures {where}, and two categories are needed to "
            "tell apart. Give a folder with one sub-folder per category."
        )
    return found


def copies_in(train: Labelled, evaluated: Labelled) -> list[str]:
    """Return which of the evaluated pictures are, byte for byte, among the training pictures too.

    Only files that share their size are read.
    """
    of_size: dict[int, list[Path]] = {}
    for path in train.paths:
        file = train.folder / path
        with suppress(OSError):
            of_size.setdefault(file.stat().st_size, []).append(file)
    known: dict[int, set[bytes]] = {}
    copies = []
    for path in evaluated.paths:
        with suppress(OSError):
            file = evaluated.folder / path
            size = file.stat().st_size
            if size not in of_size:
                continue
            if size not in known:
                known[size] = {hashlib.sha256(other.read_bytes()).digest() for other in of_size[size]}
            if hashlib.sha256(file.read_bytes()).digest() in known[size]:
                copies.append(path)
    return copies


def embed(found: Labelled, encoder: Encoder, on_picture: Callable[[], object] = lambda: None) -> Embedded:
    """Embed labelled pictures.

    Raises:
        DataError: If the readable ones are of fewer than two categories.
        ModelError: If the model cannot be loaded.
    """
    vectors, good, unreadable = encode(found.folder, found.paths, encoder, on_picture)
    categories = sorted({category_of(path) for path in good})
    if len(categories) < 2:
        first = f" The first: {unreadable[0]['path']!r}: {unreadable[0]['reason']}" if unreadable else ""
        raise DataError(
            f"of the {len(found.paths):,} pictures in {str(found.folder)!r} only {len(good):,} can be read, "
            f"in {len(categories)} categories, and two are needed.{first}"
        )
    number = {name: i for i, name in enumerate(categories)}
    labels = np.array([number[category_of(path)] for path in good], dtype=np.int64)
    return Embedded(good, labels, categories, vectors, [*found.skipped, *unreadable])


def in_common(sets: Sequence[Embedded]) -> list[Embedded]:
    """Return the same pictures of each; a comparison is paired, so what one model cannot take, none gets."""
    if all(one.paths == sets[0].paths for one in sets):
        return list(sets)
    shared = set.intersection(*(set(one.paths) for one in sets))
    skipped = list({one["path"]: one for found in sets for one in found.skipped}.values())
    result = []
    for one in sets:
        keep = np.array([path in shared for path in one.paths])
        paths = [path for path in one.paths if path in shared]
        categories = sorted({category_of(path) for path in paths})
        number = {name: i for i, name in enumerate(categories)}
        labels = np.array([number[category_of(path)] for path in paths], dtype=np.int64)
        result.append(
            replace(
                one,
                paths=paths,
                labels=labels,
                categories=categories,
                vectors=one.vectors[keep],
                skipped=skipped,
            )
        )
    return result


def encode(
    folder: Path, paths: Sequence[str], encoder: Encoder, on_picture: Callable[[], object] = lambda: None
) -> tuple[NDArray[np.float32], list[str], list[dict[str, str]]]:
    """Return (N, D) embeddings of the readable pictures, their paths, and what is wrong with the others."""
    rows, good, skipped = [], [], []
    for number, some in enumerate(decoded([folder / path for path in paths], encoder)):
        pixels = []
        for path, (_, result) in zip(paths[number * _BATCH :], some, strict=False):
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


def decoded(
    sources: Iterable[Source], encoder: Encoder | CachedEncoder
) -> Iterator[list[tuple[Source, Pixels | str]]]:
    """Yield batches of pictures with their pixels of the model's size, or with why they have none.

    While one batch is used, the next is decoded in threads.

    Args:
        sources: What `load_image` takes, in any number.
        encoder: The model; none of its weights is loaded.
    """
    from imret.images.resize import load_pixels

    def decode(source: Source) -> Pixels | str:
        try:
            return load_pixels(source, encoder.preprocess)[0]
        except (ImageError, OSError) as error:
            return str(error)

    remaining = iter(sources)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        batch = list(islice(remaining, _BATCH))
        ahead = pool.map(decode, batch)
        while batch:
            ready = list(ahead)
            following = list(islice(remaining, _BATCH))
            ahead = pool.map(decode, following)
            yield list(zip(batch, ready, strict=True))
            batch = following
