"""Copies of the pictures of hits in a folder, named by rank so that they stay in order.

Hides how a copy is whole or absent and never takes the place of another file, and names that grow too long.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imret.errors import DataError
from imret.files import replace_if_absent

if TYPE_CHECKING:
    from imret.retrieval.results import Hit

_CHUNK_BYTES = 1 << 20
_LONGEST_SUFFIX = 32  # bytes; what follows the last dot of a longer one is no type of file
# With these, no later picture fares better.
_CLOSED_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


def copy_hits(hits: Sequence[Hit], folder: str | os.PathLike[str]) -> tuple[int, list[tuple[str, str]]]:
    """Copy the files of hits into a folder, named by rank: 001_owl.jpg.

    Nothing is overwritten. A file of that name with the same bytes is taken for the copy, so that a second
    run changes nothing; one with other bytes gets a neighbour, 001_owl-2.jpg, rather than an error: ranks
    change with every query, and two searches copied into one folder should both arrive.

    A copy is written under a temporary name and appears when it is whole. It keeps the file's times and, as
    far as the folder's file system can, its permissions.

    Args:
        hits: What to copy.
        folder: Where to; made, with its parents, if missing.

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
    limit = _name_limit(target)
    failed = []
    for hit in hits:
        source = Path(hit.path)
        try:
            with _opened(source) as data:
                _copy(source, data, target, f"{hit.rank:0{digits}}_{source.name}", limit)
        except OSError as error:
            failed.append((hit.path, error.strerror or str(error)))
    return len(hits) - len(failed), failed


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    # Without O_NONBLOCK, opening a named pipe that has taken a picture's place waits for a writer for ever.
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_NONBLOCK), "rb") as data:
        if not stat.S_ISREG(os.fstat(data.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield data


def _copy(source: Path, data: BinaryIO, folder: Path, name: str, limit: int) -> None:
    # What is there already is not written a second time; it need not even have room.
    place, is_copied = _place(folder, name, limit, source)
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
            shutil.copyfileobj(data, out, _CHUNK_BYTES)
        with contextlib.suppress(OSError):  # a memory card keeps no permissions; the picture counts
            shutil.copystat(source, part)
        while not is_copied:
            try:
                replace_if_absent(part, place)
                return
            except FileExistsError:
                place, is_copied = _place(folder, name, limit, source)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _place(folder: Path, name: str, limit: int, source: Path) -> tuple[Path, bool]:
    """Return the first name that is free or holds the source's bytes, and whether it holds them."""
    number = 1
    while True:
        place = folder / _fitting(name, "" if number == 1 else f"-{number}", limit)
        if not os.path.lexists(place):
            return place, False
        with contextlib.suppress(OSError):  # what cannot be read is some other file
            if place.is_file() and filecmp.cmp(place, source, shallow=False):
                return place, True
        number += 1


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
