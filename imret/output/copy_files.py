"""Copies of the pictures of hits in a folder, named by rank so that they stay in order.

Hides how a copy is whole or absent and never takes the place of another file, and names that grow too long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imret.errors import DataError, ImageError
from imret.files import replace_if_absent
from imret.images.opening import suffix_of
from imret.sources.opened import Door, is_plain_file, own_door

if TYPE_CHECKING:
    from imret.retrieval.results import Hit

_CHUNK_BYTES = 1 << 20
_LONGEST_SUFFIX = 32  # bytes; what follows the last dot of a longer one is no type of file
# With these, no later picture fares better.
_CLOSED_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


def copy_hits(
    hits: Sequence[Hit], folder: str | os.PathLike[str], *, door: Door | None = None
) -> tuple[int, list[tuple[str, str]]]:
    """Copy the files of hits into a folder, named by rank: 001_owl.jpg.

    Nothing is overwritten. A file of that name with the same bytes is taken for the copy, so that a second
    run changes nothing; one with other bytes gets a neighbour, 001_owl-2.jpg, rather than an error: ranks
    change with every query, and two searches copied into one folder should both arrive.

    A copy is written under a temporary name and appears when it is whole. It keeps the file's times and, as
    far as the folder's file system can, its permissions; one out of a container or a bucket has the time of
    that.

    Args:
        hits: What to copy.
        folder: Where to; made, with its parents, if missing.
        door: Opens the pictures; None for `own_door`.

    Returns:
        How many are there now, and the path and reason of each that is not.

    Raises:
        DataError: If the folder cannot be made, or nothing can be written to it.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the folder {os.fspath(folder)!r}: {error.strerror}.\n"
            "Name another one: --copy-to DIR"
        ) from error
    digits = max(3, len(str(max((hit.rank for hit in hits), default=0))))
    limit, door = _name_limit(target), door or own_door()
    failed = []
    for hit in hits:
        try:
            with door.open(hit.payload, hit.path) as data:
                _copy(hit, data, target, f"{hit.rank:0{digits}}_{_name_of(hit, data)}", limit)
        except ImageError as error:
            failed.append((hit.path, str(error)))
        except OSError as error:
            failed.append((hit.path, error.strerror or str(error)))
    return len(hits) - len(failed), failed


def _copy(hit: Hit, data: BinaryIO, folder: Path, name: str, limit: int) -> None:
    # What is there already is not written a second time; it need not even have room.
    place, is_copied = _place(folder, name, limit, data)
    if is_copied:
        return
    try:
        handle, part = tempfile.mkstemp(dir=folder, prefix=".part-")
    except OSError as error:
        if error.errno in _CLOSED_FOLDER:
            raise DataError(
                f"cannot write to the folder {os.fspath(folder)!r}: {error.strerror}.\n"
                "Name another one: --copy-to DIR"
            ) from error
        raise
    try:
        with os.fdopen(handle, "wb") as out:
            data.seek(0)
            shutil.copyfileobj(data, out, _CHUNK_BYTES)
        with contextlib.suppress(
            OSError, KeyError, ValueError
        ):  # a memory card keeps no permissions; the picture counts
            _keep_stat(hit, part)
        while not is_copied:
            try:
                replace_if_absent(part, place)
                return
            except FileExistsError:
                place, is_copied = _place(folder, name, limit, data)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _name_of(hit: Hit, data: BinaryIO) -> str:
    name = os.path.basename(hit.path)
    if is_plain_file(hit.payload) or os.path.splitext(name)[1]:
        return name
    return name + suffix_of(data)  # a row of a Parquet file is called by its key


def _keep_stat(hit: Hit, copy: str) -> None:
    if is_plain_file(hit.payload):
        shutil.copystat(hit.path, copy)
        return
    modified = datetime.fromisoformat(str(hit.payload["modified"]).replace("Z", "+00:00")).timestamp()
    os.utime(copy, (modified, modified))


def _place(folder: Path, name: str, limit: int, data: BinaryIO) -> tuple[Path, bool]:
    """Return the first name that is free or holds these bytes, and whether it holds them."""
    number = 1
    while True:
        place = folder / _fitting(name, "" if number == 1 else f"-{number}", limit)
        if not os.path.lexists(place):
            return place, False
        with contextlib.suppress(OSError):  # what cannot be read is some other file
            if place.is_file() and _holds(place, data):
                return place, True
        number += 1


def _holds(file: Path, data: BinaryIO) -> bool:
    """Whether a file has the bytes of an open one."""
    size = data.seek(0, os.SEEK_END)
    data.seek(0)
    with open(file, "rb") as other:
        if os.fstat(other.fileno()).st_size != size:
            return False
        while chunk := data.read(_CHUNK_BYTES):
            if chunk != other.read(len(chunk)):
                return False
        return True


def _fitting(name: str, mark: str, limit: int) -> str:
    """Return a name with a mark before its suffix, its stem cut where it has more bytes than the limit."""
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > _LONGEST_SUFFIX:
        stem, suffix = name, ""
    # By characters, so that none is cut in half.
    while len(os.fsencode(stem + mark + suffix)) > limit:
        stem = stem[:-1]
    return stem + mark + suffix


def _name_limit(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):  # file systems that do not say
        return 255
