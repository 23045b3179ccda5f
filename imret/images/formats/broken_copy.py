"""Zeros in the place of a file's end, as a copy leaves them that was broken off."""

from __future__ import annotations

from typing import IO

from imret.images.formats.spliced import size_of

_PADDING = 16  # so many zeros are none of the picture
_BLOCK = 1 << 20


def ends_in_zeros(file: IO[bytes]) -> bool:
    """Whether the last bytes of a file are zeros, more than there are by chance."""
    file.seek(max(0, size_of(file) - _PADDING))
    return not file.read(_PADDING).strip(b"\0")


def end_of_data(file: IO[bytes]) -> int:
    """Return where a file ends, but for the zeros that a copy that was broken off has left at its end."""
    size = end = size_of(file)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        kept = file.read(end - start).rstrip(b"\0")
        if kept:
            end = start + len(kept)
            break
        end = start
    return end if size - end >= _PADDING else size
