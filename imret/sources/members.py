"""A part of a file as a file: the member of a tar, known by its offset, its length and its hash.

What is read is compared with the hash that ingest stored, so an offset into a tar that has been replaced
since gives nothing, and nobody has to be asked whether offsets still hold.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable
from typing import IO, BinaryIO, cast

from imret.sources.named_roots import GONE_SINCE, NotThere

# Smaller pictures are held in memory; larger ones are read from the disk, where they are or are spooled to.
IN_MEMORY_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20


class Part(io.RawIOBase):
    """Some bytes of a file, as a file of its own; closing it closes the other."""

    def __init__(self, file: IO[bytes], at: int, size: int) -> None:
        self._file, self._at, self._size, self._position = file, at, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._at + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_part(file: BinaryIO, at: int, size: int, sha256: str) -> BinaryIO:
    """Return a part of an open file, which it takes over, at its start, if it is what ingest has read.

    Args:
        file: Can seek.
        at: Offset of the first byte.
        size: Bytes.
        sha256: Of them, in hex.

    Raises:
        NotThere: If it is something else by now; the file is then closed.
    """
    try:
        if at + size > file.seek(0, os.SEEK_END):
            raise NotThere(GONE_SINCE)
        if size <= IN_MEMORY_BYTES:
            with file:
                file.seek(at)
                return io.BytesIO(checked(file.read(size), sha256))
        part = io.BufferedReader(Part(file, at, size), _CHUNK_BYTES)
        digest = hashlib.sha256()
        while chunk := part.read(_CHUNK_BYTES):
            digest.update(chunk)
        if part.tell() != size or digest.hexdigest() != sha256:
            raise NotThere(GONE_SINCE)
        part.seek(0)
        return cast(BinaryIO, part)
    except BaseException:
        file.close()
        raise


def spooled(chunks: Iterable[bytes], sha256: str) -> BinaryIO:
    """Return what comes in pieces as a file at its start: on disk, without a name.

    Raises:
        NotThere: If it is not what ingest has read.
    """
    digest = hashlib.sha256()
    file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - returned open
    try:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise NotThere(GONE_SINCE)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)


def checked(data: bytes, sha256: str) -> bytes:
    """Return bytes that are what ingest has read.

    Raises:
        NotThere: If they are not.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise NotThere(GONE_SINCE)
    return data
