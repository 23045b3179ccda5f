"""What imret reads of an AVIF or HEIC by itself: its colours (colr, clli), and where its pixels lie (iloc).

Source: ISO/IEC 14496-12 (boxes, colr), ISO/IEC 23008-12 (item properties), ISO/IEC 14496-12 clli.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, TypeAlias

Cicp: TypeAlias = tuple[int, int]  # primaries and transfer, as ITU-T H.273 numbers them

_MAX_META_BYTES = 16 << 20
_MAX_BOXES = 10_000
_CODED = (b"av01", b"hvc1", b"hev1", b"avc1", b"vvc1", b"jpeg", b"j2k1")


def read_colours(file: IO[bytes]) -> tuple[Cicp | None, int | None]:
    """Return the primaries and transfer of the picture, and the light level of its brightest pixel in cd/m2.

    Each is None where the file does not state it. What is broken states nothing.

    Args:
        file: Open, and can seek.
    """
    try:
        return _of_primary_item(_meta_box(file))
    except (struct.error, IndexError, ValueError):
        return None, None


def read_extents(file: IO[bytes]) -> list[tuple[int, int]]:
    """Return start and end of the parts of a file that hold coded pictures, but for thumbnails.

    What is broken states nothing.

    Args:
        file: Open, and can seek.
    """
    try:
        boxes = dict(_boxes(_meta_box(file)))
        iinf, iref = boxes[b"iinf"], boxes.get(b"iref", b"")
        coded: set[int] = set()
        for kind, data in _boxes(iinf[6 if iinf[0] == 0 else 8 :]):
            if kind == b"infe" and data[0] in (2, 3):
                n = 2 if data[0] == 2 else 4
                if data[6 + n : 10 + n] in _CODED:
                    coded.add(int.from_bytes(data[4 : 4 + n], "big"))
        n = 4 if iref[:1] == b"\1" else 2
        thumbnails = {int.from_bytes(data[:n], "big") for kind, data in _boxes(iref[4:]) if kind == b"thmb"}
        return list(_extents(boxes[b"iloc"], coded - thumbnails))
    except (struct.error, IndexError, KeyError, ValueError):
        return []


def _extents(iloc: bytes, wanted: set[int]) -> Iterator[tuple[int, int]]:
    version, at = iloc[0], 6
    offset_bytes, length_bytes, base_bytes = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4
    index_bytes = iloc[5] & 15 if version else 0

    def number(n: int) -> int:
        nonlocal at
        if at + n > len(iloc):
            raise ValueError("an iloc box that is too short")
        at += n
        return int.from_bytes(iloc[at - n : at], "big")

    wide = 4 if version == 2 else 2
    for _ in range(min(_MAX_BOXES, number(wide))):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)  # of the file itself
        base = number(base_bytes)
        for _ in range(number(2)):
            number(index_bytes)
            start, length = base + number(offset_bytes), number(length_bytes)
            if item in wanted and method == 0 and length:
                yield start, start + length


def _meta_box(file: IO[bytes]) -> bytes:
    """Return what is in the meta box, without its version."""
    at = 0
    for _ in range(100):
        file.seek(at)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        start = 8
        if size == 1:
            size, start = struct.unpack(">Q", header[8:16])[0], 16
        if kind == b"meta":
            if not start + 4 <= size <= _MAX_META_BYTES:
                break
            file.seek(at + start + 4)
            return file.read(size - start - 4)
        if size < start:
            break
        at += size
    raise ValueError("no meta box")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = 8
        if size == 1:
            size, start = struct.unpack_from(">Q", data, at + 8)[0], 16
        end = len(data) if size == 0 else at + size
        if end < at + start:
            return
        yield kind, data[at + start : end]
        at = end


def _of_primary_item(meta: bytes) -> tuple[Cicp | None, int | None]:
    boxes = dict(_boxes(meta))
    properties_box = list(_boxes(boxes.get(b"iprp", b"")))
    properties = list(_boxes(dict(properties_box).get(b"ipco", b"")))
    pitm = boxes.get(b"pitm", b"")
    item = int.from_bytes(pitm[4:6] if pitm[:1] == b"\0" else pitm[4:8], "big")
    mine: list[int] = []
    for kind, data in properties_box:
        if kind == b"ipma":
            mine = mine or _properties_of(data, item)
    # The tiles of a grid may state what the grid itself does not.
    of_item = [properties[i - 1] for i in mine if 0 < i <= len(properties)]
    cicp: Cicp | None = None
    brightest: int | None = None
    for kind, data in [*of_item, *properties]:
        if kind == b"colr" and data[:4] == b"nclx" and cicp is None:
            cicp = struct.unpack_from(">HH", data, 4)
        elif kind == b"clli" and brightest is None:
            brightest = struct.unpack_from(">H", data)[0] or None
    return cicp, brightest


def _properties_of(ipma: bytes, wanted: int) -> list[int]:
    """Return the numbers, from 1, of the properties of an item."""
    is_wide, id_bytes = ipma[3] & 1, 4 if ipma[0] else 2
    at = 8
    for _ in range(min(_MAX_BOXES, int.from_bytes(ipma[4:8], "big"))):
        item, n = int.from_bytes(ipma[at : at + id_bytes], "big"), ipma[at + id_bytes]
        at += id_bytes + 1
        width = 2 if is_wide else 1
        if item == wanted:
            mask = 0x7FFF if is_wide else 0x7F  # the first bit says whether it is essential
            return [
                int.from_bytes(ipma[at + width * i : at + width * (i + 1)], "big") & mask for i in range(n)
            ]
        at += n * width
    return []
