"""Labelled pictures of tar and Parquet files laid out as a folder, for what reads each of them many times.

CATEGORY/UNIT-KEY.jpg      as it lies in the file
captions.csv               what is said of each, where anything is
"""

from __future__ import annotations

import atexit
import csv
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from imret.datasets.exclusion import Exclusion
from imret.datasets.find_shards import find_shards
from imret.datasets.scan import Ignored, Skipped, looks_like_picture
from imret.datasets.shards import PARQUET, TAR, ShardPicture, is_shard, read_shard
from imret.errors import DataError
from imret.places.listing import Unlisted, list_tree

CAPTIONS_NAME = "captions.csv"
_LEFT_BYTES = 256 << 20  # of the disk


def unpacked(name: str, exclude: Sequence[str] = ()) -> str:
    """Return a folder with the pictures that a name stands for, one sub-folder a category.

    Where it stands for tar or Parquet files, that is a folder for temporary files (TMPDIR), which is removed
    when the program ends; any other name is returned as it is. Pictures in no category, and what cannot be
    taken, are left out.

    Args:
        name: A path, a URL, or a pattern with braces.
        exclude: Patterns of what is left out of the files: see `imret.datasets.exclusion.Exclusion`.

    Raises:
        DataError: If a file cannot be read or the disk has no room, or no picture has a category.
    """
    found = find_shards(name)
    if found is None:
        return name
    folder = Path(tempfile.mkdtemp(prefix="imret-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    captions: list[tuple[str, str]] = []
    n_pictures = 0
    for root, units in found.items():
        for picture in _pictures(root, units, Exclusion("", exclude)):
            if picture.category is None:
                continue
            path = _path(picture)
            _write(folder / path, picture.content.read(), name)
            n_pictures += 1
            if picture.caption is not None:
                captions.append((path, " ".join(picture.caption.split())))
    if not n_pictures:
        raise DataError(
            f"no picture in {name!r} has a category: no column or key 'category' says one, and none lies in "
            "a folder of its file. Write it there, or give a folder with one sub-folder per category."
        )
    if captions:
        with open(folder / CAPTIONS_NAME, "w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([("path", "caption"), *captions])
    return str(folder)


def _pictures(root: str, units: set[str] | None, exclusion: Exclusion) -> Iterator[ShardPicture]:
    for unit in sorted(_all_in(root) if units is None else units):
        for entry in read_shard(root, unit, exclusion):
            if isinstance(entry, ShardPicture):
                yield entry
            elif isinstance(entry, Skipped) and entry.unseen:
                raise DataError(f"{entry.path!r} in {root!r}: {entry.reason}")
            else:
                assert isinstance(entry, (Skipped, Ignored))


def _all_in(root: str) -> set[str]:
    """Return the containers in a folder or prefix, without what img2dataset says of a tar file beside it."""
    listed = [one for one in list_tree(root) if not isinstance(one, Unlisted)]
    names = {path for path, _ in listed if is_shard(path)}
    return {n for n in names if not (n.endswith(PARQUET) and n.removesuffix(PARQUET) + TAR in names)}


def _path(picture: ShardPicture) -> str:
    """Return where a picture lies in the folder; always the same for the same."""
    category = (picture.category or "").replace("/", "-").replace("\0", "").strip(".") or "-"
    name = picture.path.replace("/", "-")
    return f"{category[:100]}/{name if looks_like_picture(name) else name + '.jpg'}"


def _write(file: Path, data: bytes, name: str) -> None:
    try:
        free = os.statvfs(tempfile.gettempdir())
        if len(data) > free.f_bavail * free.f_frsize - _LEFT_BYTES:
            raise OSError(28, "no space left on it")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
    except OSError as error:
        raise DataError(
            f"the pictures of {name!r} are laid out in {tempfile.gettempdir()!r} while they are used, which "
            f"cannot be written: {error.strerror}. Name another folder: TMPDIR=FOLDER."
        ) from error
