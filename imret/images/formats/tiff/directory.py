"""The directories (IFDs) of a TIFF file: what is said of each of its pictures, before any of them is decoded.

Values are read when they are asked for, and never more of them than were asked for: nothing that a hostile
file claims takes memory or time.

Source: TIFF Revision 6.0 (1992), section 2; the BigTIFF design (2007) for 64-bit offsets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from imret.errors import ImageError
from imret.images.formats.spliced import size_of

# Tags, by their names in the specification.
NEW_SUBFILE_TYPE, SUBFILE_TYPE = 254, 255
IMAGE_WIDTH, IMAGE_LENGTH = 256, 257
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL = 273, 274, 277
ROWS_PER_STRIP, STRIP_BYTE_COUNTS, PLANAR_CONFIGURATION = 278, 279, 284
PREDICTOR, COLOR_MAP = 317, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 322, 323, 324, 325
SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 330, 332, 338, 339
JPEG_TABLES, YCBCR_SUBSAMPLING = 347, 530
ICC_PROFILE, GDAL_NODATA = 34675, 42113

# Types of whole numbers: BYTE, SHORT, LONG, SBYTE, UNDEFINED, SSHORT, SLONG, IFD, LONG8, SLONG8, IFD8.
_INTEGERS = {
    **{1: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4"},
    **{16: "u8", 17: "i8", 18: "u8"},
}
_SHORT = 3
# A directory has some twenty entries, that of a camera a hundred.
_MAX_ENTRIES = 4096
_MUCH = 1 << 16


class DamagedTiffError(Exception):
    """A file that contradicts itself. The message says how."""


def not_supported(what: str) -> ImageError:
    """Return the refusal of a file that may be whole, whose kind is not read."""
    return ImageError(f"not supported: a TIFF with {what}; the file itself may be whole")


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """The first bytes of a file.

    Attributes:
        order: "<" or ">", which byte of a number comes first.
        is_big: Whether offsets have 64 bits.
        first: Offset of the first directory.
    """

    order: Literal["<", ">"]
    is_big: bool
    first: int

    @classmethod
    def read(cls, file: IO[bytes]) -> TiffHeader:
        """Read it from the start of a file.

        Raises:
            EOFError: If there is no whole header.
        """
        head = read_at(file, 0, 8)
        order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
        # Some writers mixed up the order of this number: as it can only be one of two, both are taken.
        if 43 in head[2:4]:
            return cls(order, True, struct.unpack(order + "Q", read_at(file, 8, 8))[0])
        return cls(order, False, struct.unpack(order + "I", head[4:8])[0])


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return bytes of a file.

    Raises:
        EOFError: If it ends before.
        DamagedTiffError: If it can have no such byte.
    """
    if not 0 <= offset < 1 << 63:
        raise DamagedTiffError("it points to a place that no file has")
    # Asked first: room is made for what is asked for, not for what there is.
    if size > _MUCH and offset + size > size_of(file):
        raise EOFError(f"it ends before byte {offset + size:,}")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise EOFError(f"it ends before byte {offset + size:,}")
    return data


@dataclass(frozen=True, slots=True)
class _Entry:
    at: int  # where it stands
    type: int
    count: int
    value: bytes  # or where that is


class Directory:
    """What a file says of one of its pictures.

    Args:
        file: Open, and can seek.
        header: Of the file.
        offset: Where the directory begins.

    Attributes:
        header: As given.
        offset: As given.
        next: Offset of the directory of the next page; 0 is none.

    Raises:
        EOFError: If the file ends before.
        DamagedTiffError: If it has more entries than any has, or lies at no place of a file.
    """

    def __init__(self, file: IO[bytes], header: TiffHeader, offset: int) -> None:
        self.header, self.offset = header, offset
        self._file = file
        order, word = header.order, "Q" if header.is_big else "I"
        self._entry_format = f"{order}HH{word}{8 if header.is_big else 4}s"
        size, n_size = struct.calcsize(self._entry_format), 8 if header.is_big else 2
        (n,) = struct.unpack(order + ("Q" if header.is_big else "H"), read_at(file, offset, n_size))
        if n > _MAX_ENTRIES:
            raise DamagedTiffError(f"a directory of {n:,} entries")
        data = read_at(file, offset + n_size, n * size)
        self._entries: dict[int, _Entry] = {}
        for index, (tag, kind, count, value) in enumerate(struct.iter_unpack(self._entry_format, data)):
            # Of two with one tag the first counts, as for libtiff.
            self._entries.setdefault(tag, _Entry(offset + n_size + index * size, kind, count, value))
        file.seek(offset + n_size + n * size)
        after = file.read(struct.calcsize(word))
        # Some files end with their last directory.
        self.next: int = struct.unpack(order + word, after)[0] if len(after) == struct.calcsize(word) else 0

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def numbers(self, tag: int, most: int) -> NDArray[np.int64]:
        """Return the first values of a tag of whole numbers, empty if it is not there or of another type.

        Args:
            tag: Its number.
            most: How many to read at most.

        Raises:
            EOFError: If the file ends before them.
        """
        entry = self._entries.get(tag)
        if entry is None or entry.type not in _INTEGERS:
            return np.zeros(0, np.int64)
        kind = np.dtype(_INTEGERS[entry.type]).newbyteorder(self.header.order)
        data = self._data(entry, kind.itemsize, most)
        # An offset of more than 63 bits becomes negative, and leads nowhere.
        return np.frombuffer(data, kind).astype(np.int64)

    def number(self, tag: int, default: int = 0) -> int:
        """Return the one value of a tag, or the first."""
        values = self.numbers(tag, 1)
        return int(values[0]) if len(values) else default

    def text(self, tag: int, most: int = 1000) -> str:
        """Return the text of a tag, empty if there is none."""
        entry = self._entries.get(tag)
        if entry is None or entry.type not in (1, 2, 7):
            return ""
        return self._data(entry, 1, most).split(b"\0")[0].decode("latin-1").strip()

    def data(self, tag: int, most: int) -> bytes:
        """Return the bytes of a tag, empty if there are none, or more than that."""
        entry = self._entries.get(tag)
        if entry is None or entry.type not in (1, 7) or entry.count > most:
            return b""
        return self._data(entry, 1, most)

    def is_short(self, tag: int) -> bool:
        """Whether a tag is one SHORT, as most are meant to be."""
        entry = self._entries.get(tag)
        return entry is not None and entry.type == _SHORT and entry.count == 1

    def as_short(self, tag: int, value: int) -> tuple[int, bytes]:
        """Return where a tag stands that is there, and how it would read as one SHORT."""
        stored = struct.pack(self.header.order + "H", value)
        return self._entries[tag].at, struct.pack(self._entry_format, tag, _SHORT, 1, stored)

    def _data(self, entry: _Entry, each: int, most: int) -> bytes:
        n = min(entry.count, most) * each
        if entry.count * each <= len(entry.value):
            return entry.value[:n]
        (offset,) = struct.unpack(self.header.order + ("Q" if self.header.is_big else "I"), entry.value)
        return read_at(self._file, offset, n)
