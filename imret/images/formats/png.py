"""What imret reads of a PNG by itself: its colours, and which of its chunks Pillow gets to see.

A PNG carries much beside its pixels: texts, a profile, sizes in print, thumbnails. Browsers leave out what is
odd of that and show the pixels; Pillow refuses the whole file. So Pillow gets the chunks of the pixels, and
of the others those that change them, if they are in order.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from PIL import Image

from imret.images.formats.broken_copy import end_of_data, ends_in_zeros
from imret.images.formats.spliced import Part, size_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# So long an ancillary chunk is not looked at, and so long a profile is not unpacked.
_MAX_CHUNK_BYTES = _MAX_PROFILE_BYTES = 4 << 20
# So many chunks are looked at; a photo of 200 megapixels in chunks of 8 KiB has 75,000.
_MAX_CHUNKS = 1_000_000

_BLOCK = 1 << 16

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(slots=True)
class Chunks:
    """What the chunks of a PNG say.

    Attributes:
        parts: Of the file, what Pillow gets to see.
        bits: Of a channel.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA.
        is_interlaced: Whether rows come in seven passes.
        n_colours: Of the palette.
        cicp: Primaries and transfer of cICP, as ITU-T H.273 numbers them.
        brightest: Light level of the brightest pixel in cd/m2, of cLLI.
        profile: Of iCCP, unpacked.
        gamma: Of gAMA: 1 / 2.2 for most pictures.
        is_srgb: Whether there is an sRGB chunk.
    """

    parts: list[Part] = field(default_factory=list)
    bits: int = 8
    colour_type: int = 2
    is_interlaced: bool = False
    n_colours: int = 0
    cicp: tuple[int, int] | None = None
    brightest: int | None = None
    profile: bytes | None = None
    gamma: float | None = None
    is_srgb: bool = False

    def take(self, kind: bytes, data: bytes) -> bool:
        """Take note of an ancillary chunk before the pixels, or behind them; whether Pillow needs it, too."""
        if kind == b"cICP" and len(data) == 4:
            self.cicp = (data[0], data[1])
        elif kind == b"cLLI" and len(data) == 8:
            self.brightest = int.from_bytes(data[:4], "big") // 10_000
        elif kind == b"iCCP":
            self.profile = _unpacked(data)
        elif kind == b"gAMA" and len(data) == 4:
            self.gamma = int.from_bytes(data, "big") / 100_000
        elif kind == b"sRGB" and len(data) == 1:
            self.is_srgb = True
        if kind == b"tRNS":
            if self.colour_type == 3:  # of a longer one, or before the palette, libpng takes nothing
                return 0 < len(data) <= self.n_colours
            return len(data) == {0: 2, 2: 6}.get(self.colour_type)
        is_raw_exif = kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(b"Raw profile type exif\0")
        return kind == b"eXIf" or (is_raw_exif and _is_small_text(kind, data))


def read_chunks(file: IO[bytes], *, to_pixels: bool = False) -> Chunks:
    """Read the chunks of a PNG but for the pixels themselves.

    Args:
        file: Open, and can seek.
        to_pixels: Look at none that stands behind the first of the pixels'.
    """
    found = Chunks()
    size, at = size_of(file), len(SIGNATURE)
    kept, rest = [(0, at)], True
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            rest = False
            break
        length, kind = struct.unpack(">I4s", header)
        end = min(size, at + 12 + length)
        if kind == b"IDAT" and to_pixels:
            break
        is_kept = not kind[0] & 0x20  # critical
        if kind == b"IHDR":
            ihdr = file.read(13)
            if len(ihdr) == 13:
                found.bits, found.colour_type, found.is_interlaced = ihdr[8], ihdr[9], ihdr[12] == 1
        elif kind == b"PLTE":
            found.n_colours = length // 3
        elif not is_kept and length <= _MAX_CHUNK_BYTES and _is_wanted(kind):
            data, crc = file.read(length), file.read(4)
            if len(crc) == 4 and zlib.crc32(kind + data) == int.from_bytes(crc, "big"):
                is_kept = found.take(kind, data)
        if is_kept:
            if kept[-1][1] == at:
                kept[-1] = (kept[-1][0], end)
            else:
                kept.append((at, end))
        at = end
        if kind == b"IEND":
            rest = False
            break
    if rest:  # not looked at
        kept.append((at, size))
    found.parts = list(kept)
    return found


def correct_info(image: Image.Image, chunks: Chunks) -> None:
    """Tell a picture that Pillow has opened of its profile, and of its transparent colour in 8 bits."""
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "L" and chunks.bits in (2, 4):
        image.info["transparency"] = (key & ((1 << chunks.bits) - 1)) * (85 if chunks.bits == 2 else 17)
    elif isinstance(key, tuple) and chunks.bits == 16:
        image.info["transparency"] = tuple(level >> 8 for level in key)
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(level & 0xFF for level in key)
    if chunks.profile is not None:
        image.info["icc_profile"] = chunks.profile
    if chunks.cicp is not None:
        image.info["cicp"], image.info["brightest"] = chunks.cicp, chunks.brightest
    elif chunks.gamma is not None and chunks.profile is None and not chunks.is_srgb:
        image.info["gamma"] = chunks.gamma


def transparent_grey(image: Image.Image) -> Image.Image | None:
    """Return where a decoded picture of 16-bit grey has its transparent level; None without any."""
    key = image.info.get("transparency")
    if image.format != "PNG" or not image.mode.startswith("I") or not isinstance(key, int):
        return None
    import numpy as np

    return Image.fromarray(((np.asarray(image) == key) * np.uint8(255)).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Pixels:
    """What is there of a PNG's pixels.

    Attributes:
        missing: The share that is not there.
        rows: How many from the top are whole; 0 of an interlaced one.
        is_damaged: Whether something is wrong with what is there.
        is_closed: Whether the file goes on to its end: it was written so.
    """

    missing: float
    rows: int
    is_damaged: bool
    is_closed: bool


def may_lack(image: Image.Image, file: IO[bytes]) -> bool:
    """Whether `read_pixels` may find a picture that decoded without a complaint to be damaged or not whole.

    Args:
        image: As Pillow decoded it, which looks at no checksum and leaves what is missing black.
        file: What Pillow read it from.
    """
    if not all(chunk.is_sound for chunk in _pixel_chunks(file)):
        return True
    # Every other row of an interlaced one comes in its last pass.
    row = image.size[1] - 1
    if image.info.get("interlace"):
        row = max(0, row - 1 + row % 2)
    return not any(image.crop((0, row, image.size[0], row + 1)).tobytes())


def read_pixels(file: IO[bytes], size: tuple[int, int]) -> Pixels:
    """Unpack the pixels of a PNG, of which nothing is kept, and say how far that went.

    Args:
        file: Of a PNG, open.
        size: (width, height).
    """
    chunks = read_chunks(file)
    depth = chunks.bits * _CHANNELS.get(chunks.colour_type, 1)
    rows = _Rows(size, depth, is_interlaced=chunks.is_interlaced)
    inflate, is_sound, is_closed = zlib.decompressobj(), True, True
    try:
        for chunk in _pixel_chunks(file):
            is_sound &= chunk.is_sound or not chunk.is_whole
            is_closed &= chunk.is_whole
            for data in _blocks(file, chunk.start, chunk.end):
                data = _unpack(inflate, data, rows)
                if data and not inflate.eof and not is_sound:
                    inflate.decompress(data, 64)  # to its checksum, which may say that the pixels are right
    except zlib.error:
        is_sound = is_sound and rows.left <= 1
    else:
        is_sound |= inflate.eof and not rows.left
    is_damaged = not is_sound or rows.are_damaged
    whole = 0 if chunks.is_interlaced else rows.n // rows.stride
    return Pixels(rows.left / max(1, rows.n + rows.left), whole, is_damaged, is_closed and _has_end(file))


def _unpack(inflate: zlib._Decompress, data: bytes, rows: _Rows) -> bytes:
    """Unpack rows as far as the data goes; return what of it is behind the last."""
    is_full = False
    while (data or is_full) and rows.left and not inflate.eof:
        at_most = min(_BLOCK, rows.left)
        before = inflate.copy() if at_most == rows.left else None
        try:
            unpacked = inflate.decompress(data, at_most)
        except zlib.error:
            # The checksum behind the pixels may be all that is wrong: Pillow loses one row by it.
            if before is not None and at_most > 1:
                rows.take(before.decompress(data, at_most - 1))
            raise
        rows.take(unpacked)
        data, is_full = inflate.unconsumed_tail, len(unpacked) == at_most
    return data


class _Rows:
    """Counts the bytes of rows that are unpacked, and looks at the first of each: how it is filtered."""

    def __init__(self, size: tuple[int, int], depth: int, *, is_interlaced: bool) -> None:
        self.n = self.left = 0
        self.are_damaged = False
        self.stride = 1 + (size[0] * depth + 7) // 8
        self._passes: list[tuple[int, int]] = []  # where each ends, and the bytes of one of its rows
        for x, y, across, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(size[0] - x) // across), -(-(size[1] - y) // down)
            if columns > 0 and rows > 0:
                stride = 1 + (columns * depth + 7) // 8
                self.left += rows * stride
                self._passes.append((self.left, stride))

    def take(self, data: bytes) -> None:
        """Take note of the bytes that follow."""
        for end, stride in self._passes:
            if self.n < end and data:
                part, data = data[: end - self.n], data[end - self.n :]
                # Rows are counted from the end of their pass.
                self.are_damaged |= max(part[(end - self.n) % stride :: stride], default=0) > 4
                self.n += len(part)
                self.left -= len(part)


@dataclass(frozen=True, slots=True)
class _PixelChunk:
    """Where a chunk's data lies, as far as it is there; whether it is there whole, and its checksum right."""

    start: int
    end: int
    is_whole: bool
    is_sound: bool


def _pixel_chunks(file: IO[bytes]) -> Iterator[_PixelChunk]:
    size = end_of_data(file) if ends_in_zeros(file) else size_of(file)
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8 or at + 8 > size:
            return
        length, kind = struct.unpack(">I4s", header)
        start, end = at + 8, at + 8 + length
        if kind == b"IDAT":
            is_whole, crc = end + 4 <= size, zlib.crc32(kind)
            if is_whole:
                for data in _blocks(file, start, end):
                    crc = zlib.crc32(data, crc)
            is_sound = is_whole and crc == int.from_bytes(file.read(4), "big")
            yield _PixelChunk(start, min(end, size), is_whole, is_sound)
        elif kind == b"IEND":
            return
        at = end + 4


def _blocks(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (data := file.read(min(end - start, _BLOCK))):
        start += len(data)
        yield data


def _has_end(file: IO[bytes]) -> bool:
    """Whether the last chunk that is there is the one that ends a PNG."""
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return False
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return True
        at += 12 + length
    return False


def _is_wanted(kind: bytes) -> bool:
    return kind in (b"tRNS", b"eXIf", b"iCCP", b"cICP", b"cLLI", b"gAMA", b"sRGB", b"tEXt", b"zTXt", b"iTXt")


def _unpacked(data: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk: a name, a zero, the way it is packed, and that."""
    name, _, packed = data.partition(b"\0")
    if not 0 < len(name) < 80 or packed[:1] != b"\0":
        return None
    try:
        inflate = zlib.decompressobj()
        profile = inflate.decompress(packed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflate.eof else None


def _is_small_text(kind: bytes, data: bytes) -> bool:
    """Whether a text is one that Pillow takes: packed as it knows, and not large."""
    _, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return len(rest) <= 1 << 18
    if kind == b"iTXt" or rest[:1] != b"\0":
        return False
    try:
        inflate = zlib.decompressobj()
        inflate.decompress(rest[1:], 1 << 18)
    except zlib.error:
        return False
    return inflate.eof
