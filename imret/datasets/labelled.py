"""Labelled pictures of a folder: one sub-folder a category."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imret.datasets.scan import Found, Skipped, walk
from imret.errors import DataError


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
