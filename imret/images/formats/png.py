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

from imret.images.formats.spliced import Part, size_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# So long an ancillary chunk is not looked at, and so long a profile is not unpacked.
_MAX_CHUNK_BYTES = _MAX_PROFILE_BYTES = 4 << 20
# So many chunks are looked at; a photo of 200 megapixels in chunks of 8 KiB has 75,000.
_MAX_CHUNKS = 1_000_000

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
            return len(data) == {0: 2, 2: 6}.get(self.colour_type) or self.colour_type == 3
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


def missing_rows(file: IO[bytes], size: tuple[int, int]) -> tuple[float, int]:
    """Return which share of a PNG's pixels is missing, and how many rows from the top are whole.

    Args:
        file: Of a PNG, open.
        size: (width, height).
    """
    chunks = read_chunks(file)
    depth = chunks.bits * _CHANNELS.get(chunks.colour_type, 1)
    passes = _ADAM7 if chunks.is_interlaced else ((0, 0, 1, 1),)
    expected = 0
    for x, y, across, down in passes:
        columns, rows = -(-(size[0] - x) // across), -(-(size[1] - y) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * depth + 7) // 8)
    got = _unpacked_bytes(file, expected)
    whole = 0 if chunks.is_interlaced else got // (1 + (size[0] * depth + 7) // 8)
    return 1 - got / max(1, expected), whole


def _unpacked_bytes(file: IO[bytes], at_most: int) -> int:
    """Return how many bytes the pixels of a PNG unpack to; nothing of them is kept."""
    inflate, n = zlib.decompressobj(), 0
    for data in _pixel_data(file):
        while data and n < at_most and not inflate.eof:
            try:
                n += len(inflate.decompress(data, 1 << 16))
            except zlib.error:
                return n
            data = inflate.unconsumed_tail
    return min(n, at_most)


def _pixel_data(file: IO[bytes]) -> Iterator[bytes]:
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IDAT":
            left = length
            while left and (data := file.read(min(left, 1 << 16))):
                left -= len(data)
                yield data
        elif kind == b"IEND":
            return
        at += 12 + length


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
