"""Zeros in the place of a file's end, as a copy leaves them that was broken off."""

from __future__ import annotations

import struct
from typing import IO

from imret.images.formats.isobmff import read_extents
from imret.images.formats.spliced import size_of

_PADDING = 16  # so many zeros are none of the picture
_BLOCK = 1 << 20
_MAX_CHUNKS = 1_000
# So many zeros has no healthy picture at its end: AVIF and HEIC that Pillow writes have none, lossless WebP
# two; lossy WebP has up to one in 30 blocks of 16 x 16 pixels where it is of one colour.
_MOST_ZEROS = 64
_BLOCKS_A_ZERO = 8


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


def has_zeros_for_pixels(file: IO[bytes], file_format: str, size: tuple[int, int]) -> bool:
    """Whether the coded pixels of a WebP, AVIF or HEIC end in zeros, which decode to anything.

    Args:
        file: Open, and can seek.
        file_format: "WEBP", "AVIF" or "HEIF"; of others nothing is known.
        size: (width, height).
    """
    if file_format == "WEBP":
        n = _MOST_ZEROS + size[0] * size[1] // 256 // _BLOCKS_A_ZERO
        extents = _webp_extents(file)
    elif file_format in ("AVIF", "HEIF"):
        n, extents = _MOST_ZEROS, read_extents(file)
    else:
        return False
    for start, end in extents:
        file.seek(max(start, end - n))
        last = file.read(min(n, end - start))
        if last and not last.strip(b"\0"):
            return True
    return False


def _webp_extents(file: IO[bytes]) -> list[tuple[int, int]]:
    """Return where the pixels of a WebP lie, of an animation those of the first frame."""
    at = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            break
        kind, length = struct.unpack("<4sI", header)
        if kind in (b"VP8 ", b"VP8L"):
            return [(at + 8, at + 8 + length)]
        # The chunks of a frame stand in one that begins with its place.
        at += 8 + (16 if kind == b"ANMF" else length + length % 2)
    return []
