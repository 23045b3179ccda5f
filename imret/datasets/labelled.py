"""Labelled pictures of a folder: one sub-folder a category."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import Picture, Skipped, but_left_out, walk
from imret.datasets.spelling import composed, path_on_disk
from imret.datasets.unpacked import unpacked
from imret.errors import DataError, counted
from imret.files import sha256_of


@dataclass(frozen=True)
class LabelledFolder:
    """Pictures found in a folder of categories.

    Attributes:
        folder: Where they lie.
        pictures: Sorted by path; each has a category.
        skipped: What is named like a picture and cannot be taken, and why.
    """

    folder: Path
    pictures: list[Picture]
    skipped: list[Skipped]

    @property
    def paths(self) -> list[str]:
        """Paths of the pictures, below the folder."""
        return [picture.path for picture in self.pictures]

    @property
    def categories(self) -> list[str]:
        """Names of the categories, sorted."""
        return sorted({category_of(path) for path in self.paths})


def category_of(path: str) -> str:
    """Return the first folder of a path below the data, in NFC: of two spellings one category."""
    return composed(path.split("/", 1)[0])


def read_labelled(folder: str | os.PathLike[str], exclude: Sequence[str] = ()) -> LabelledFolder:
    """Find the pictures of a folder that lie in a category, opening none; those in tar or Parquet files, too.

    Args:
        folder: One sub-folder per category; or what stands for tar or Parquet files: see `unpacked`.
        exclude: Patterns of what is left out: see `imret.datasets.exclusion.Exclusion`.

    Raises:
        DataError: If there is no such folder, or fewer than two categories hold pictures.
    """
    if not os.fspath(folder):
        raise DataError("no such folder: ''. Is a variable of the shell not set?")
    root = Path(path_on_disk(unpacked(os.fspath(folder), exclude)))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{str(root)!r} {what}. Give a folder with one sub-folder per category.")
    pictures, skipped = [], []
    for entry in walk(os.fspath(root), Exclusion(root, exclude)):
        if isinstance(entry, Skipped):
            skipped.append(entry)
        elif isinstance(entry, Picture) and entry.category is None:
            skipped.append(Skipped(entry.path, "lies in no category's folder"))
        elif isinstance(entry, Picture):
            pictures.append(entry)
    labelled = LabelledFolder(root, sorted(pictures, key=lambda picture: picture.path), skipped)
    if len(labelled.categories) < 2:
        where = f"all in {labelled.categories[0]!r}" if pictures else "in any category"
        if not pictures and not skipped:
            where += but_left_out(os.fspath(root), Exclusion(root, exclude))
        raise DataError(
            f"{str(root)!r} holds {counted(len(pictures)) if pictures else 'no pictures'} {where}, and two "
            "categories are needed to tell apart. Give a folder with one sub-folder per category."
        )
    return labelled


def duplicates_in(train: LabelledFolder, evaluated: LabelledFolder) -> list[str]:
    """Return which of the evaluated pictures are, byte for byte, among the training pictures too.

    Only files that share their size are read.
    """
    of_size: dict[int, list[str]] = {}
    for picture in train.pictures:
        of_size.setdefault(picture.size_bytes, []).append(picture.file_in(train.folder))
    digests: dict[int, set[str]] = {}  # of the training pictures of one size
    duplicates = []
    for picture in evaluated.pictures:
        size = picture.size_bytes
        if size not in of_size:
            continue
        if size not in digests:
            digests[size] = set(filter(None, map(_digest, of_size[size])))
        if _digest(picture.file_in(evaluated.folder)) in digests[size]:
            duplicates.append(picture.path)
    return duplicates


def _digest(file: str) -> str | None:
    with suppress(OSError), open(file, "rb") as data:
        return sha256_of(data)
    return None
