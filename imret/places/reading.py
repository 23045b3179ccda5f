"""Bytes of a place, from a path or a URL: reads that fail are tried again from where they failed.

What is not there, or refused, is not tried again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from imret.errors import DataError
from imret.places.names import is_url
from imret.places.stores import NotThere, Refused, explained, open_object

T = TypeVar("T")

BLOCK_BYTES = 8 << 20  # of one request
# Seconds between tries; each block that comes begins them anew. Beyond these a minute has gone.
PAUSES_S = (0.2, 0.5, 1, 2, 4, 8, 15, 30)


def patiently(read: Callable[[], T], *, pauses_s: tuple[float, ...] | None = None) -> T:
    """Return what a function returns; where it fails as a network does, call it again after a while.

    Raises:
        DataError: If it fails every time, or for a reason that stays.
    """
    for pause_s in PAUSES_S if pauses_s is None else pauses_s:
        try:
            return read()
        except (NotThere, Refused):
            raise
        except DataError:
            time.sleep(pause_s)
    return read()


class PatientFile:
    """An object that is read in pieces from anywhere in it, by any thread.

    Args:
        url: Its URL, canonical.

    Raises:
        DataError: If it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._file: Any = patiently(lambda: open_object(url))
        self.size_bytes: int = self._file.size()

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return n bytes from an offset on; fewer only at the end of the object.

        Raises:
            DataError: If they cannot be read, with all patience.
        """
        parts: list[bytes] = []
        end = min(offset + n_bytes, self.size_bytes)
        while offset < end:
            part = patiently(lambda at=offset: self._read(at, min(BLOCK_BYTES, end - at)))  # type: ignore[misc]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, offset: int, n_bytes: int) -> bytes:
        try:
            data = bytes(self._file.read_at(n_bytes, offset))
        except OSError as error:
            raise explained(self.url, error) from error
        if not data:
            raise DataError(
                f"{self.url!r} ends at {offset:,} bytes, and had {self.size_bytes:,} a moment ago."
            )
        return data

    def close(self) -> None:
        """Close it."""
        self._file.close()


def read_whole(url: str) -> bytes:
    """Return the content of an object.

    Raises:
        DataError: If it cannot be read.
    """
    file = PatientFile(url)
    try:
        return file.read_at(0, file.size_bytes)
    finally:
        file.close()


def read_range(place: str, offset: int, n_bytes: int) -> bytes:
    """Return a part of a file or an object; fewer bytes only where it ends before.

    Args:
        place: A path, or a canonical URL.
        offset: Where the part begins.
        n_bytes: How long it is.

    Raises:
        OSError: If the file of a path cannot be read.
        DataError: If the object of a URL cannot.
    """
    if not is_url(place):
        with open(place, "rb", buffering=0) as file:
            return os.pread(file.fileno(), n_bytes, offset)
    remote = PatientFile(place)
    try:
        return remote.read_at(offset, n_bytes)
    finally:
        remote.close()
