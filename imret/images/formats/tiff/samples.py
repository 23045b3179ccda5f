"""The samples of a TIFF picture: strips and tiles to one array, whatever their bits, order and compression.

What compresses bytes is undone by libtiff, through Pillow: a chunk is handed to it as a grey picture of
bytes, so that nothing of it is interpreted. Predictors, bits and planes are undone here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imret.images.formats.spliced import size_of
from imret.images.formats.tiff import directory as tags
from imret.images.formats.tiff.directory import DamagedTiffError, Directory, read_at
from imret.images.formats.tiff.layout import BAND_SAMPLES, FLOAT, INT, NO_COMPRESSION, WEBP, Layout

# LZW makes at most 1,400 bytes of one, Deflate 1,032, PackBits 64.
_LIMITED, _MOST_TIMES = frozenset((5, 8, 32946, 32773)), 1500
_BATCH_BYTES = 16_000_000  # decompressed, of the chunks that libtiff gets at a time


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A strip or a tile: where it lies in the picture and in the file."""

    plane: int
    x: int
    y: int
    rows: int
    offset: int
    size: int


def read_samples(file: IO[bytes], directory: Directory, layout: Layout) -> NDArray[Any]:
    """Return the samples of a picture that are wanted, (height, width, channels) of `Layout.kept_type`.

    Args:
        file: The picture's.
        directory: The picture's.
        layout: Of that, which `check_readable` has let pass.

    Raises:
        EOFError: If the file ends before its pixels do.
        DamagedTiffError: If they cannot be read otherwise.
    """
    samples: NDArray[Any] | None = None
    for chunk, start, band in _bands(file, _chunks(directory, layout), layout):
        if samples is None:  # only now: a file that has nothing of what it claims takes nothing
            samples = _black(layout)
        values = _unpack(band, layout, directory.header.order)
        y, width = chunk.y + start, min(layout.chunk[0], layout.width - chunk.x)
        values = values[: layout.height - y, :width]
        into = samples[y : y + len(values), chunk.x : chunk.x + width]
        if layout.is_planar:
            into[..., layout.channels.index(chunk.plane)] = values[..., 0]
        else:
            # A slice where they lie side by side, as all but some alphas do: to pick takes thrice the time.
            last = layout.channels[-1] + 1
            is_row = len(layout.channels) == last
            into[...] = values[..., :last] if is_row else values[..., list(layout.channels)]
    return _black(layout) if samples is None else samples


def _black(layout: Layout) -> NDArray[Any]:
    return np.zeros((layout.height, layout.width, len(layout.channels)), layout.kept_type)


def _chunks(directory: Directory, layout: Layout) -> Iterator[_Chunk]:
    """Yield where the chunks of the wanted samples lie."""
    across, down = -(-layout.width // layout.chunk[0]), -(-layout.height // layout.chunk[1])
    planes = layout.channels if layout.is_planar else (0,)
    most = across * down * (max(planes) + 1)
    is_tiled = tags.TILE_OFFSETS in directory
    offsets = directory.numbers(tags.TILE_OFFSETS if is_tiled else tags.STRIP_OFFSETS, most).tolist()
    sizes = directory.numbers(tags.TILE_BYTE_COUNTS if is_tiled else tags.STRIP_BYTE_COUNTS, most).tolist()
    if len(offsets) < most:
        raise DamagedTiffError(f"it says where {len(offsets):,} of its {most:,} strips or tiles are")
    # Nothing needs more than this, and many may claim the whole file.
    largest = 2 * layout.row_bytes * layout.chunk[1] + 1024
    for plane in planes:
        for index in range(across * down):
            row, column = divmod(index, across)
            at, y = plane * across * down + index, row * layout.chunk[1]
            rows = layout.chunk[1] if layout.is_tiled else min(layout.chunk[1], layout.height - y)
            size = sizes[at] if at < len(sizes) else 0
            if offsets[at] == size == 0:
                continue  # a hole, as maps have: nothing but zeros
            wanted = min(size, largest) if size > 0 else largest
            yield _Chunk(plane, column * layout.chunk[0], y, rows, offsets[at], wanted)


def _bands(
    file: IO[bytes], chunks: Iterator[_Chunk], layout: Layout
) -> Iterator[tuple[_Chunk, int, NDArray[np.uint8]]]:
    """Yield some rows of a chunk at a time, decompressed: the chunk, the first row, and (rows, row_bytes)."""
    step = max(1, BAND_SAMPLES // (layout.chunk[0] * layout.in_chunk))
    if layout.compression == NO_COMPRESSION:
        for chunk in chunks:
            for start in range(0, min(chunk.rows, layout.height - chunk.y), step):
                rows = min(step, chunk.rows - start, layout.height - chunk.y - start)
                data = read_at(file, chunk.offset + start * layout.row_bytes, rows * layout.row_bytes)
                band = np.frombuffer(data, np.uint8).reshape(rows, -1)
                yield chunk, start, _REVERSED[band] if layout.is_reversed else band
        return
    together = _BATCH_BYTES // (layout.row_bytes * layout.chunk[1]) if layout.compression != WEBP else 1
    for batch in _batches(chunks, max(1, together)):
        packed = [_read_up_to(file, chunk, layout) for chunk in batch]
        if layout.compression == WEBP:
            grey = _from_webp(packed[0], layout, batch[0].rows)
        else:
            grey = _decompress(packed, layout, batch[0].rows)
        for index, chunk in enumerate(batch):
            for start in range(0, min(chunk.rows, layout.height - chunk.y), step):
                rows, top = min(step, chunk.rows - start), index * chunk.rows + start
                yield chunk, start, np.asarray(grey.crop((0, top, layout.row_bytes, top + rows)))


def _batches(chunks: Iterator[_Chunk], most: int) -> Iterator[list[_Chunk]]:
    """Yield chunks together that have as many rows each."""
    batch: list[_Chunk] = []
    for chunk in chunks:
        if batch and (len(batch) >= most or chunk.rows != batch[0].rows):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def _read_up_to(file: IO[bytes], chunk: _Chunk, layout: Layout) -> bytes:
    size = max(1, min(chunk.size, size_of(file) - chunk.offset))
    n_bytes = chunk.rows * layout.row_bytes
    if layout.compression in _LIMITED and n_bytes > _MOST_TIMES * (size + 64):
        # Told before room is made for it.
        raise EOFError(f"{n_bytes:,} bytes of pixels cannot be in {size:,} bytes")
    return read_at(file, chunk.offset, size)


def _decompress(chunks: Sequence[bytes], layout: Layout, rows: int) -> Image.Image:
    """Have libtiff undo the compression of chunks; (len(chunks) * rows, row_bytes) grey."""
    n = len(chunks)
    entries = 10
    arrays = 8 + 2 + 12 * entries + 4
    lengths = [len(chunk) for chunk in chunks]
    at, offsets = arrays + 8 * n, []
    for length in lengths:
        offsets.append(at)
        at += length
    file = io.BytesIO()
    file.write(struct.pack("<2sHIH", b"II", 42, 8, entries))
    for tag, value in (
        (tags.IMAGE_WIDTH, layout.row_bytes),
        (tags.IMAGE_LENGTH, n * rows),
        (tags.BITS_PER_SAMPLE, 8),
        (tags.COMPRESSION, layout.compression),
        (tags.PHOTOMETRIC, 1),
        (tags.FILL_ORDER, 2 if layout.is_reversed else 1),
        (tags.STRIP_OFFSETS, offsets),
        (tags.SAMPLES_PER_PIXEL, 1),
        (tags.ROWS_PER_STRIP, rows),
        (tags.STRIP_BYTE_COUNTS, lengths),
    ):
        if isinstance(value, int):
            file.write(struct.pack("<HHII", tag, 4, 1, value))
        else:
            where = arrays + (4 * n if tag == tags.STRIP_BYTE_COUNTS else 0)
            file.write(struct.pack("<HHII", tag, 4, n, where if n > 1 else value[0]))
    file.write(struct.pack(f"<I{n}I{n}I", 0, *offsets, *lengths))
    for data in chunks:
        file.write(data)
    file.seek(0)
    opened = TiffImageFile(file)
    codec, _, _, arguments = opened.tile[0]
    # Not `opened.load()`, which has Pillow's limit of pixels: these are bytes.
    return Image.frombytes("L", opened.size, file.getbuffer(), codec, arguments)


def _from_webp(data: bytes, layout: Layout, rows: int) -> Image.Image:
    opened = WebPImageFile(io.BytesIO(data))
    if opened.size != (layout.chunk[0], rows):
        raise DamagedTiffError(f"a WebP of {opened.size[0]} x {opened.size[1]} where a tile should be")
    plain = opened.convert("RGBA" if layout.n_samples == 4 else "RGB")
    return Image.frombytes("L", (layout.row_bytes, rows), plain.tobytes())


# Each byte with its bits the other way round.
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


def _unpack(band: NDArray[np.uint8], layout: Layout, order: str) -> NDArray[Any]:
    """Return the samples in rows of bytes, (rows, chunk width, samples of a pixel in the chunk)."""
    bits, width, each = layout.bits, layout.chunk[0], layout.in_chunk
    shape = (len(band), width, each)
    if bits not in (8, 16, 32, 64):
        packed = _packed_24 if bits == 24 else _packed
        return packed(band, layout, order).reshape(shape)
    size = bits // 8
    if layout.predictor == 3:
        # The bytes of all numbers of a row lie apart, the highest first, as differences.
        differences = band.reshape(len(band), width * size, each)
        bytes_apart = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(len(band), size, width * each)
        values: NDArray[Any] = np.ascontiguousarray(bytes_apart.transpose(0, 2, 1)).view(f">f{size}")
    else:
        whole = np.ascontiguousarray(band).view(f"{order}u{size}").astype(f"=u{size}", copy=False)
        if layout.predictor == 2:
            whole = np.cumsum(whole.reshape(shape), axis=1, dtype=whole.dtype)
        letter = {INT: "i", FLOAT: "f"}.get(layout.sample_format, "u")
        values = whole.view(f"={letter}{size}")
    with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond what a float holds
        return values.reshape(shape).astype(layout.kept_type, copy=False)


def _packed(band: NDArray[np.uint8], layout: Layout, order: str) -> NDArray[Any]:
    """Return integers packed bit by bit, the highest bit first whatever the file's order."""
    n = layout.chunk[0] * layout.in_chunk
    first_bit = np.arange(n, dtype=np.int64) * layout.bits
    first_byte, shift = first_bit >> 3, (32 - layout.bits - (first_bit & 7)).astype(np.uint32)
    padded = np.pad(band, ((0, 0), (0, 4)))
    values = np.zeros((len(band), n), np.uint32)
    for index in range(4):
        values |= padded[:, first_byte + index].astype(np.uint32) << np.uint32(24 - 8 * index)
    values >>= shift
    values &= np.uint32((1 << layout.bits) - 1)
    return values.astype(layout.kept_type)


def _packed_24(band: NDArray[np.uint8], layout: Layout, order: str) -> NDArray[Any]:
    parts = band.reshape(len(band), -1, 3).astype(np.uint32)
    first, middle, last = (parts[..., index] for index in ((0, 1, 2) if order == ">" else (2, 1, 0)))
    whole: NDArray[Any] = first << 16 | middle << 8 | last
    return whole
