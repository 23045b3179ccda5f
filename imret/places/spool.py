"""A container's bytes on this machine: its own file where it lies here, else a copy without a name.

The copy is in the folder for temporary files (TMPDIR), and goes when nobody holds it any more, or by a kill.
It is fetched in blocks, several at a time, each tried again where it fails: so a container is read once over
the network, in few long requests, whatever is then read of it and in what order.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from imret.errors import DataError
from imret.files import irregular
from imret.places.names import is_url
from imret.places.reading import BLOCK_BYTES, PatientFile
from imret.places.stores import Stored, look_up

_AT_ONCE = 4  # blocks
_LEFT_BYTES = 256 << 20  # what a copy leaves free of the disk


@dataclass(frozen=True, slots=True)
class Member:
    """A part of a spool: a picture in a container."""

    spool: Spool
    at: int
    size_bytes: int

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            OSError: If they cannot be read, or end too early.
        """
        data = self.spool.read_at(self.at, self.size_bytes)
        if len(data) < self.size_bytes:
            raise OSError(0, f"the file ends within it, after {len(data):,} of {self.size_bytes:,} bytes")
        return data


class Spool:
    """A container that is open; closed when nobody holds it or a member of it.

    Args:
        place: Its path or canonical URL.

    Attributes:
        size_bytes, mtime_ns: Of the container, when it was opened.

    Raises:
        DataError: If it cannot be opened or copied.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        if is_url(place):
            self._descriptor, self.size_bytes, self.mtime_ns = _copied(place)
        else:
            self._descriptor, self.size_bytes, self.mtime_ns = _opened(place)
        weakref.finalize(self, os.close, self._descriptor)

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return n bytes from an offset on; fewer only at the end. Any thread may ask."""
        parts: list[bytes] = []
        while n_bytes > 0:
            part = os.pread(self._descriptor, n_bytes, offset)
            if not part:
                break
            parts.append(part)
            offset, n_bytes = offset + len(part), n_bytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def open(self) -> BinaryIO:
        """Open it to read from its beginning; to be closed before the spool is let go."""
        # By the descriptor: the copy has no name. Each opening has a position of its own.
        return open(
            f"/proc/self/fd/{self._descriptor}" if os.path.isdir("/proc/self/fd") else self._duplicate(), "rb"
        )

    def _duplicate(self) -> int:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.dup(self._descriptor)

    def is_replaced(self) -> bool:
        """Whether something else is at the place by now than what was opened."""
        if is_url(self.place):
            (now,) = look_up([self.place])
            return now is None or (now.size_bytes, now.mtime_ns) != (self.size_bytes, self.mtime_ns)
        try:
            info = os.stat(self.place)
        except OSError:
            return True
        mine = os.fstat(self._descriptor)
        return (info.st_ino, info.st_size, info.st_mtime_ns) != (mine.st_ino, self.size_bytes, self.mtime_ns)


def _opened(path: str) -> tuple[int, int, int]:
    try:
        if what := irregular(path):
            raise DataError(f"{path!r} is {what}, not a file.")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"cannot read {path!r}: {error.strerror}.") from error
    info = os.fstat(descriptor)
    return descriptor, info.st_size, info.st_mtime_ns


def _copied(url: str) -> tuple[int, int, int]:
    for is_last in (False, True):
        before = _known(url)
        copy = _copy(url, before)
        if _known(url) == before:
            return copy, before.size_bytes, before.mtime_ns
        os.close(copy)
        if is_last:
            break
    raise DataError(f"{url!r} was replaced twice while it was read. Run this again when it stays as it is.")


def _known(url: str) -> Stored:
    (found,) = look_up([url])
    if found is None or found.is_folder:
        raise DataError(f"{url!r} is not there any more. Was it replaced? Run this again.")
    return found


def _copy(url: str, known: Stored) -> int:
    folder = Path(tempfile.gettempdir())
    free = os.statvfs(folder)
    if known.size_bytes > free.f_bavail * free.f_frsize - _LEFT_BYTES:
        raise DataError(
            f"{url!r} has {known.size_bytes:,} bytes, and the disk of {str(folder)!r}, where it is copied to "
            "while it is read, has no room for them. Name another folder: TMPDIR=FOLDER."
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        descriptor = os.dup(file.fileno())
    try:
        remote = PatientFile(url)
        try:

            def fetch(offset: int) -> None:
                os.pwrite(descriptor, remote.read_at(offset, BLOCK_BYTES), offset)

            with ThreadPoolExecutor(_AT_ONCE, "imret-fetch") as pool:
                for _ in pool.map(fetch, range(0, remote.size_bytes, BLOCK_BYTES)):
                    pass
        finally:
            remote.close()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
