"""A file of parts of another, and of bytes of ours: what a reader of pictures is given in its place."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import IO, TypeAlias

Part: TypeAlias = tuple[int, int] | bytes  # (start, end) in the file, or bytes themselves


class Spliced(io.RawIOBase):
    """Parts one after the other, as a file to read and to seek in; no part of the file is copied.

    Args:
        file: Open, and can seek; it is not closed with this one.
        parts: What to read.
    """

    def __init__(self, file: IO[bytes], parts: Sequence[Part]) -> None:
        super().__init__()
        self._file, self._parts = file, [part for part in parts if _length(part)]
        self._ends = list(accumulate(map(_length, self._parts)))
        self._at = 0  # in this file
        self._part = 0  # the one that lies there

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it can seek: yes."""
        return True

    def tell(self) -> int:
        """Return where the next byte comes from."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to another place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._ends[-1] if self._ends else 0)
        self._at = max(0, start + offset)
        self._part = 0 if self._part and self._at < self._ends[self._part - 1] else self._part
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Return the bytes that follow: fewer than asked for only at the end."""
        found: list[bytes] = []
        left = size if size >= 0 else 1 << 62
        while left > 0 and self._part < len(self._parts):
            part, end = self._parts[self._part], self._ends[self._part]
            inside = self._at - (end - _length(part))
            n = min(left, end - self._at)
            if n <= 0:
                self._part += 1
                continue
            if isinstance(part, bytes):
                data = part[inside : inside + n]
            else:
                self._file.seek(part[0] + inside)
                data = self._file.read(n)
            if not data:
                break  # the file has become shorter
            found.append(data)
            left -= len(data)
            self._at += len(data)
        return b"".join(found)


def spliced(file: IO[bytes], parts: Sequence[Part]) -> IO[bytes]:
    """Return a file of parts; see `Spliced`."""
    return Spliced(file, parts)  # type: ignore[return-value]


def size_of(file: IO[bytes]) -> int:
    """Return how many bytes a file has; it stands at its end then."""
    return file.seek(0, io.SEEK_END)


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]
