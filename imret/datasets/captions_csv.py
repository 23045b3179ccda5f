"""A captions file: which pictures it names, what it says of each, and where they lie.

The one set of rules for training, replay and evaluation. Opens no picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from imret.datasets.csv_rows import read_rows, stands_for_nothing
from imret.datasets.spelling import on_disk, path_on_disk
from imret.errors import DataError, counted

# A folder of this name beside a captions file may hold its pictures.
_IMAGES = "images"


def read_captions(file: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read a CSV file with the columns `path` and `caption`; other columns are ignored.

    Args:
        file: UTF-8 CSV with a header line. Paths have forward slashes, and `./a.jpg` is `a.jpg`; a picture
            may have several lines, each another caption. In training a batch takes the captions of one
            place in the list, so keep one order for all pictures, such as from detailed to bare.

    Returns:
        Captions by path, paths and the captions of each in the order of the file; there is one at least.

    Raises:
        DataError: If the file cannot be read, lacks a column, holds an empty path or caption or what stands
            for one (NA), a line of other
            than as many cells as there are columns, or names no picture; the message names the line.
    """
    shown = repr(os.fspath(file))
    captions: dict[str, list[str]] = {}
    for line, row in read_rows(file, ("path", "caption"), kind="captions file"):
        path = Path(row["path"].strip()).as_posix()
        caption = " ".join(row["caption"].split())
        if stands_for_nothing(caption):
            raise DataError(
                f"captions file {shown} has {caption!r} for a caption in line {line}, which other programs "
                "write where there is none. Say what the picture shows, or remove the line."
            )
        if path == "." or not caption:
            what = "path" if path == "." else "caption"
            raise DataError(
                f"captions file {shown} has an empty {what} in line {line}. Fill it in, or remove the line."
            )
        captions.setdefault(path, []).append(caption)
    if not captions:
        raise DataError(f"captions file {shown} names no picture. Write lines of path,caption.")
    return {path: tuple(texts) for path, texts in captions.items()}


def read_captioned(file: str | os.PathLike[str]) -> tuple[Path, dict[str, tuple[str, ...]]]:
    """Read a captions file and find its pictures.

    Args:
        file: As for `read_captions`; paths are relative to the file's folder, or to the folder `images` in
            it.

    Returns:
        What the paths are relative to, and the captions by path, spelled as on disk.

    Raises:
        DataError: If the file is not what it should be, or names a picture that is not there.
    """
    captions = read_captions(file)
    root = Path(path_on_disk(file)).parent
    there = _files(root, captions)
    if len(there) < len(captions) and len(in_images := _files(root / _IMAGES, captions)) > len(there):
        root, there = root / _IMAGES, in_images
    if missing := [path for path in captions if path not in there]:
        raise DataError(
            f"captions file {os.fspath(file)!r} names {counted(len(missing))} not in "
            f"{str(root)!r}, the first {missing[0]!r}. Put them there, or take out their lines."
        )
    spelled: dict[str, tuple[str, ...]] = {}
    for path, texts in captions.items():
        spelled[there[path]] = (*spelled.get(there[path], ()), *texts)
    return root, spelled


def _files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return which of the paths are files, and how they are spelled."""
    # Not Path.is_file, which raises where a cell is too long to be a file's name.
    return {path: file for path, file in on_disk(root, paths).items() if os.path.isfile(root / file)}
