"""TIFF files of any kind, written by hand: for readers of TIFFs, and their benchmark."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

GREY, RGB, PALETTE, CMYK, LAB, CFA = 1, 2, 3, 5, 8, 32803
UINT, INT, FLOAT = 1, 2, 3
HEIGHT, WIDTH = 36, 50

Tags = Mapping[int, tuple[int, Any]]


def scene() -> NDArray[np.uint8]:
    """Draw colours with corners that tell each from the others; (36, 50, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), 255 - x * 2 - y], axis=-1).astype(
        np.uint8
    )
    image[4:14, 6:20] = (220, 40, 30)
    image[18:30, 30:44] = (20, 60, 200)
    return image


SCENE = scene()
SHADES = SCENE[..., 1]


def entry(tag: int, kind: int, values: Any, order: str, is_big: bool) -> tuple[int, int, int, bytes]:
    codes = {1: "B", 2: "s", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q"}
    if isinstance(values, bytes):
        return tag, kind, len(values), values
    values = list(np.ravel(values))
    return tag, kind, len(values), struct.pack(f"{order}{len(values)}{codes[kind]}", *map(int, values))


def tiff(pages: Iterable[tuple[Tags, list[bytes]]], *, order: str = "<", is_big: bool = False) -> bytes:
    """Write a TIFF by hand: of each page its tags, and its strips or tiles; 330 may be such pages, too."""
    word, room, n_code = ("Q", 8, "Q") if is_big else ("I", 4, "H")
    mark = b"II" if order == "<" else b"MM"
    file = bytearray(mark + struct.pack(order + "H", 43 if is_big else 42))
    file += struct.pack(order + "HHQ", 8, 0, 0) if is_big else bytes(4)
    link = len(file) - room

    def write(tags: Tags, chunks: list[bytes]) -> tuple[int, int]:
        tags = dict(tags)
        below = [write(*page)[0] for page in tags[330][1]] if 330 in tags else []
        if below:
            tags[330] = (4, below)
        offsets = []
        for chunk in chunks:
            offsets.append(len(file))
            file.extend(chunk)
        if chunks:
            is_tiled = 322 in tags
            tags.setdefault(324 if is_tiled else 273, (4, offsets))
            tags.setdefault(325 if is_tiled else 279, (4, [len(chunk) for chunk in chunks]))
        file.extend(bytes(len(file) % 2))
        stored = []
        for tag, kind, count, data in (entry(tag, *tags[tag], order, is_big) for tag in sorted(tags)):
            if len(data) > room:
                at = len(file)
                file.extend(data)
                data = struct.pack(order + word, at)
            stored.append(struct.pack(f"{order}HH{word}", tag, kind, count) + data.ljust(room, b"\0"))
        at = len(file)
        file.extend(struct.pack(order + n_code, len(stored)) + b"".join(stored) + bytes(room))
        return at, len(file) - room

    for tags, chunks in pages:
        at, after = write(tags, chunks)
        file[link : link + room] = struct.pack(order + word, at)
        link = after
    return bytes(file)


def tags_of(
    width: int, height: int, samples: int, bits: int, photometric: int | None, **more: Any
) -> dict[int, tuple[int, Any]]:
    """Return the tags that every picture has, and more: compression, format, planar, rows, extra."""
    tags: dict[int, tuple[int, Any]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [more.get("compression", 1)]),
        277: (3, [samples]),
        278: (4, [more.get("rows", height)]),
        284: (3, [2 if more.get("planar") else 1]),
        339: (3, [more.get("format", UINT)] * samples),
    }
    if photometric is not None:
        tags[262] = (3, [photometric])
    for tag, name in ((317, "predictor"), (266, "fill"), (254, "subfile")):
        if name in more:
            tags[tag] = (4 if tag == 254 else 3, [more[name]])
    if "extra" in more:
        tags[338] = (3, more["extra"])
    return tags


def pack_bits(samples: NDArray[Any], bits: int, order: str) -> bytes:
    """Return rows of samples as a file has them."""
    if samples.dtype.kind != "u" or bits in (8, 16, 32, 64):
        return samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    if bits == 24:
        four = samples.astype(order + "u4").view(np.uint8).reshape(-1, 4)
        return (four[:, :3] if order == "<" else four[:, 1:]).tobytes()
    rows = samples.reshape(len(samples), -1).astype(np.uint64)
    each = rows[..., None] >> np.arange(bits - 1, -1, -1).astype(np.uint64) & np.uint64(1)
    return np.packbits(each.astype(np.uint8).reshape(len(rows), -1), axis=1).tobytes()


def draw(
    samples: NDArray[Any], bits: int, photometric: int | None, *, order: str = "<", is_big: bool = False,
    tile: int = 0, **more: Any
) -> bytes:  # fmt: skip
    """Write samples (H, W) or (H, W, S) as a TIFF of any layout; `compress` is what is done to each chunk."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    height, width, n = samples.shape
    tags = tags_of(width, height, n, bits, photometric, **more) | more.get("tags", {})
    planes = [samples[..., [index]] for index in range(n)] if more.get("planar") else [samples]
    chunks = []
    for plane in planes:
        if tile:
            tags |= {322: (4, [tile]), 323: (4, [tile])}
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            parts = [
                padded[y : y + tile, x : x + tile]
                for y in range(0, height, tile)
                for x in range(0, width, tile)
            ]
        else:
            rows = more.get("rows", height)
            parts = [plane[y : y + rows] for y in range(0, height, rows)]
        for part in parts:
            if more.get("predictor") == 2:
                part = np.diff(part, axis=1, prepend=part.dtype.type(0))
            data = pack_bits(part, bits, order)
            if more.get("predictor") == 3:
                data = float_differences(part)
            if more.get("fill") == 2:
                data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
            chunks.append(more.get("compress", bytes)(data))
    if tile:
        del tags[278]
    return tiff([(tags, chunks)], order=order, is_big=is_big)


def float_differences(part: NDArray[Any]) -> bytes:
    """Apply predictor 3: the bytes of a row apart, the highest first, as differences."""
    rows, width, n = part.shape
    size = part.dtype.itemsize
    apart = part.astype(part.dtype.newbyteorder(">")).view(np.uint8).reshape(rows, width * n, size)
    flat = apart.transpose(0, 2, 1).reshape(rows, width * size, n)
    return np.diff(flat, axis=1, prepend=np.uint8(0)).tobytes()


def lzw(data: bytes) -> bytes:
    """Compress by LZW with nothing but literals and clear codes: right, if not small."""
    codes: list[int] = []
    for start in range(0, len(data), 250):
        codes += [256, *data[start : start + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def packbits(data: bytes) -> bytes:
    return b"".join(
        bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128))
    )


COMPRESS = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}


def scaled(image: NDArray[np.uint8], bits: int, kind: int = UINT) -> NDArray[Any]:
    """Return 8 bits as samples of others, in which 255 is white."""
    if kind == FLOAT:
        return (image / 255).astype(f"f{bits // 8}")
    white = (1 << (bits - (kind == INT))) - 1
    size = next(size for size in (1, 2, 4, 8) if bits <= 8 * size)
    values = np.array([round(value * white / 255) for value in range(256)], dtype=np.uint64)[image]
    return values.astype(f"{'i' if kind == INT else 'u'}{size}")
