"""JPEG files that libjpeg or Pillow's reader of their headers would refuse, and how much of one is missing.

Hides markers and scans. A file that ends too early is decoded all the same: libjpeg fills what is missing
with grey. What that is cannot be asked of it, so the file is decoded once more with other bytes in the place
of the missing ones: where the two differ, the first was filled.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from imret.images.decode_bytes import has_scans
from imret.images.formats import broken_copy
from imret.images.formats.broken_copy import end_of_data
from imret.images.formats.spliced import Part, size_of, spliced

_END = b"\xff\xd9"
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 1_000  # ten are usual
_MAX_JUNK_BYTES = 1 << 16  # between two segments
_BLOCK = 1 << 20
_GREY = (127, 128)  # what libjpeg fills with, and its inverse

_NAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "a lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "a JPEG in arithmetic coding"),
    0xF7: "a JPEG-LS",
}
_FRAMES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_TABLES = frozenset((0xC4, 0xCC, 0xDA, 0xDB, 0xDD))


def accepts(head: bytes) -> bool:
    """Whether a file begins as a JPEG, perhaps with something between its first marker and the next."""
    return head[:2] == b"\xff\xd8"


def not_supported(file: IO[bytes]) -> str | None:
    """Return what kind a JPEG is of, if it is a healthy one that cannot be decoded here, as some are."""
    for marker, start, _ in _segments(file):
        if marker in _FRAMES:
            file.seek(start + 4)
            frame = file.read(6)
            if len(frame) == 6 and frame[0] != 8:
                return f"a JPEG of {frame[0]} bits a channel"
            if len(frame) == 6 and frame[5] not in (1, 3, 4):
                return f"a JPEG of {frame[5]} channels"
            return _NAMES.get(marker)
    return None


def without_oddities(file: IO[bytes]) -> IO[bytes] | None:
    """Return a JPEG with those of its segments that decoding needs; None if there is nothing to decode."""
    parts: list[Part] = [b"\xff\xd8"]
    for marker, start, end in _segments(file):
        if marker == 0xDA:
            return spliced(file, [*parts, (start, size_of(file))])
        file.seek(start + 4)
        begin = file.read(min(12, end - start - 4))
        is_of_use = (
            (marker == 0xE0 and begin.startswith(b"JFIF\0") and end - start >= 18)
            or (marker == 0xE1 and begin.startswith(b"Exif\0\0"))
            or (marker == 0xE2 and begin.startswith(b"ICC_PROFILE\0") and end - start > 18)
            or (marker == 0xEE and begin.startswith(b"Adobe") and end - start >= 16)
        )
        if is_of_use or marker in _TABLES or marker in _FRAMES:
            parts.append((start, end))
    return None


def closed(image: JpegImageFile, file: IO[bytes]) -> JpegImageFile | None:
    """Return a JPEG whose end is missing, decoded with an end; None where too little of it is there.

    Of a progressive one, every part of the spectrum must have come once, if not at its full precision.

    Args:
        image: As Pillow opened it, at the fraction at which it is to be decoded.
        file: What it was opened from.
    """
    if not _has_all_scans(image, file):
        return None
    return _like(image, spliced(file, [(0, end_of_data(file)), _END]))


def ends_in_zeros(file: IO[bytes]) -> bool:
    """Whether a JPEG has zeros in the place of its end, as a copy leaves them that was broken off."""
    if not broken_copy.ends_in_zeros(file):
        return False
    file.seek(max(0, end_of_data(file) - 2))
    return file.read(2) != _END


def may_be_filled(image: JpegImageFile) -> bool:
    """Whether the last pixel of a decoded JPEG is of the grey that libjpeg fills with."""
    last = image.getpixel((image.size[0] - 1, image.size[1] - 1))
    channels = last if isinstance(last, tuple) else (last,)
    return all(channel in _GREY for channel in channels)


def missing_share(image: JpegImageFile, file: IO[bytes], *, is_closed: bool) -> float:
    """Return the share of a JPEG's pixels that its file lacks.

    Args:
        image: As Pillow opened it, at the fraction at which it was decoded.
        file: What it was opened from.
        is_closed: Whether the file has an end: then it may lack only what should stand before that. Such a
            one must not come in several scans.
    """
    end = _end_of_scan(file) if is_closed else end_of_data(file)
    other = random.Random(1).randbytes(1 << 12).replace(b"\xff", b"\x01")
    file.seek(max(0, end - 1))
    if file.read(1) == b"\xff":
        other = b"\0" + other  # or it would be a marker
    # Where the interval of restarts that was cut is whole, what follows it is skipped up to its marker.
    other = other + _next_restart(file, end) + other
    several = has_scans(image)
    filled, changed = (
        _like(image, spliced(file, [(0, end), *more, _END]), part=8, is_grey=not several)
        for more in ([], [other])
    )
    # Enlarged chrominance mixes blocks; luminance and black, the last of four channels, do not.
    first = 0 if several else -1
    before, after = (np.atleast_3d(np.asarray(one))[..., first:] for one in (filled, changed))
    differs = (before != after).any(axis=2)
    rows = np.flatnonzero(differs.any(axis=1))
    if not len(rows):
        return 0.0
    # Blocks come in rows of this height, from the left to the right.
    step = max(1, 8 * max((layer[1] for layer in image.layer), default=1) // _fraction(filled))
    height, width = differs.shape
    top = rows[0] // step * step
    column = np.flatnonzero(differs[top : top + step].any(axis=0))[0]
    return float(1 - (top * width + column * min(step, height - top)) / (width * height))


def _like(
    image: JpegImageFile, file: IO[bytes], *, part: int | None = None, is_grey: bool = False
) -> JpegImageFile:
    """Decode a file at the fraction of another, or at one of its own."""
    again = JpegImageFile(file, "")
    part = part or _fraction(image)
    mode = "L" if is_grey and image.mode == "RGB" else None
    again.draft(mode, (max(1, again.size[0] // part), max(1, again.size[1] // part)))
    again.load()
    return again


def _fraction(image: JpegImageFile) -> int:
    return int(image.decoderconfig[0]) if image.decoderconfig else 1


def _segments(file: IO[bytes]) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan's header."""
    size, at = size_of(file), 2
    for _ in range(_MAX_SEGMENTS):
        file.seek(at)
        junk = file.read(_MAX_JUNK_BYTES)
        found = re.search(rb"\xff[\x01-\xfe]", junk)
        if found is None:
            return
        start, marker = at + found.start(), found[0][1]
        file.seek(start + 2)
        if marker in (0x01, *range(0xD0, 0xD9)):  # stand alone
            at = start + 2
            continue
        length = file.read(2)
        end = start + 2 + int.from_bytes(length, "big")
        if len(length) < 2 or marker == 0xD9 or end > size or end < start + 4:
            return
        yield marker, start, end
        if marker == 0xDA:
            return
        at = end


def _end_of_scan(file: IO[bytes]) -> int:
    """Return where the data of the first scan ends: at the next marker, or with the file."""
    start = next((end for marker, _, end in _segments(file) if marker == 0xDA), None)
    if start is None:
        return size_of(file)
    return next(_markers(file, start), (0, size_of(file)))[1]


def _next_restart(file: IO[bytes], end: int) -> bytes:
    """Return the marker at which a scan that was cut off at a place would have restarted next."""
    last = b""  # of the bytes behind a block
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        block = file.read(end - start) + last
        if found := re.findall(rb"\xff[\xd0-\xd7\xda]", block):
            n = 0 if found[-1] == b"\xff\xda" else (found[-1][1] + 1) & 7
            return bytes((0xFF, 0xD0 + n))
        end, last = start, block[:1]
    return b"\xff\xd0"


def _markers(file: IO[bytes], start: int) -> Iterator[tuple[int, int]]:
    """Yield the markers behind a place, but for those that restart: which, and where."""
    at, last = start, b""
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block:
            return
        for found in re.finditer(rb"\xff[\x01-\xcf\xd8-\xfe]", last + block):
            yield found[0][1], at - len(last) + found.start()
        last, at = block[-1:], at + len(block)


def _has_all_scans(image: JpegImageFile, file: IO[bytes]) -> bool:
    """Whether each channel has come once, of a progressive JPEG in all parts of its spectrum."""
    is_progressive = "progressive" in image.info
    begun: list[tuple[bytes, int, int]] = []
    first = next((start for marker, start, _ in _segments(file) if marker == 0xDA), None)
    if first is None:
        return False
    for marker, at in _scan_headers(file, first):
        if marker != 0xDA:
            continue
        file.seek(at + 4)
        try:
            (n,) = struct.unpack("B", file.read(1))
            body = file.read(2 * n + 3)
            begun.append((body[0 : 2 * n : 2], body[-3], body[-2]))
        except (struct.error, IndexError):
            break
        if len(begun) > _MAX_SCANS:
            return False
    # The last scan may have been cut anywhere; of a sequential JPEG, how far is measured.
    whole = begun[:-1] if is_progressive else begun
    for number, *_ in image.layer:
        seen = [(low, high) for channels, low, high in whole if number in channels]
        if not seen:
            return False
        if is_progressive and not {0, 1, 63} <= {edge for pair in seen for edge in pair}:
            return False
    return bool(image.layer)


def _scan_headers(file: IO[bytes], first: int) -> Iterator[tuple[int, int]]:
    yield 0xDA, first
    yield from _markers(file, first + 2)
