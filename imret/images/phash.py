"""Near duplicates among pictures: a perceptual hash of each, confirmed by its colours, and clusters of them.

Two pictures are near duplicates if their hashes differ in few bits and their colours by little. The hash
alone sees no colour and confuses simple shapes on white; colours alone know no shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imret.images.resize import box_average

# Two near duplicates differ in at most so many bits, and in colour by at most so many levels of [0, 255],
# root mean square. Measured on the 937 photos of nature10 (438,000 pairs) and 4,000 drawings of `imret demo`
# (8 million pairs): different photos differ in 10 bits or more; 22 pairs of drawings differ in 8 bits or
# fewer, and in colour by 14 levels or more. Of altered photos these limits find all that are saved again as
# JPEG of quality 30, at a quarter of the size, or 15 % brighter; nine in ten that are cropped by 2 % at
# every side; a third of those in grey; none that are mirrored. See benchmarks/likeness.py.
MAX_BITS = 8
MAX_COLOUR_DISTANCE = 12.0

_SIDE = 32  # of the grey picture whose frequencies are taken
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_BLOCK = 1 << 22  # pairs of hashes compared at once: 32 MiB
_COLOUR_BLOCK = 1 << 15  # pairs of colours: 24 MiB


@dataclass(frozen=True, slots=True)
class ImageHash:
    """A picture's perceptual hash and colours, in 200 bytes.

    Attributes:
        bits: 64-bit perceptual hash.
        colours: (8, 8, 3) uint8, the picture averaged down, scaled to a mean of 128.
    """

    bits: int
    colours: NDArray[np.uint8]


def compute_hash(pixels: NDArray[np.uint8]) -> ImageHash:
    """Return the perceptual hash and the colours of a picture.

    The picture is averaged down to 32 x 32 and taken through a cosine transform. Each bit says whether one of
    64 low frequencies, those without a change along a side left out, lies above their median, whatever the
    brightness and contrast. Rounding keeps noise from deciding: a picture of one colour has no bit set.

    Args:
        pixels: (H, W, 3) uint8.

    Source: Zauner (2010), Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1;
        its mean filter and resampling are one area average here.
    """
    # No matrix product over the picture: many threads hash at once, and BLAS takes one call at a time.
    small = box_average(pixels, (_SIDE, _SIDE)).astype(np.float32)  # (32, 32, 3)
    dct = _cosines()
    frequencies = (dct @ (small @ _LUMA) @ dct.T)[1:9, 1:9].round(2).ravel()
    bits = int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")
    colours = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    colours *= 128.0 / max(float(colours.mean()), 1.0)
    return ImageHash(bits, colours.round().clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """Return the (32, 32) matrix of the orthonormal discrete cosine transform, type II."""
    k, x = np.arange(_SIDE)[:, None], np.arange(_SIDE)
    matrix = np.cos(np.pi * (2 * x + 1) * k / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    matrix[0] /= np.sqrt(2)
    rounded: NDArray[np.float32] = matrix.astype(np.float32)
    return rounded


def near_duplicates(
    hashes: Sequence[ImageHash], others: Sequence[ImageHash] | None = None
) -> list[tuple[int, int]]:
    """Return the pairs of near duplicates, in order.

    Compares every pair of hashes, in blocks: on one core 0.2 s for 10,000 pictures, a minute for 200,000, and
    a microsecond for each pair found.

    Args:
        hashes: N hashes.
        others: M hashes; if None, `hashes` are compared among themselves.

    Returns:
        Positions (in hashes, in others); among themselves, the first below the second.
    """
    if not hashes or (others is not None and not others):
        return []
    bits, colours = _arrays(hashes)
    other_bits, other_colours = (bits, colours) if others is None else _arrays(others)
    pairs: list[tuple[int, int]] = []
    start = 0
    while start < len(bits):
        stop = start + max(1, _BLOCK // len(other_bits))
        first = start if others is None else 0  # earlier pairs were met from the other side
        differing = np.bitwise_count(bits[start:stop, None] ^ other_bits[None, first:])
        rows, columns = np.nonzero(differing <= MAX_BITS)
        i, j = start + rows, first + columns
        if others is None:
            i, j = i[i < j], j[i < j]
        for at in range(0, len(i), _COLOUR_BLOCK):
            rows, columns = i[at : at + _COLOUR_BLOCK], j[at : at + _COLOUR_BLOCK]
            same = _same_colours(colours[rows], other_colours[columns])
            pairs += zip(rows[same].tolist(), columns[same].tolist(), strict=True)
        start = stop
    return pairs


def _arrays(hashes: Sequence[ImageHash]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Return the (N,) hashes and (N, 192) colours of N hashes."""
    bits = np.fromiter((item.bits for item in hashes), dtype=np.uint64, count=len(hashes))
    return bits, np.stack([item.colours.ravel() for item in hashes])


def _same_colours(colours: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return (P,) whether each of P pairs of (P, 192) colours differs by little."""
    differences = colours.astype(np.float32) - others
    same: NDArray[np.bool_] = np.sqrt((differences**2).mean(axis=1)) <= MAX_COLOUR_DISTANCE
    return same


def unique(hashes: Sequence[ImageHash]) -> tuple[list[int], list[int]]:
    """Merge equal hashes: thousands of copies of one placeholder would be millions of pairs.

    Returns:
        Positions of the first of each, in order; and for each of N hashes, which of those it equals.
    """
    number_of: dict[tuple[int, bytes], int] = {}
    firsts: list[int] = []
    numbers: list[int] = []
    for i, item in enumerate(hashes):
        number = number_of.setdefault((item.bits, item.colours.tobytes()), len(firsts))
        if number == len(firsts):
            firsts.append(i)
        numbers.append(number)
    return firsts, numbers


def cluster(n: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Return for each of n pictures the first of its cluster: those that pairs link, directly or not.

    Args:
        n: How many pictures.
        pairs: Positions below n.
    """
    first = np.arange(n)

    def find(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]  # halve the path for the next one
            i = int(first[i])
        return i

    for i, j in pairs:
        low, high = sorted((find(i), find(j)))
        first[high] = low
    return np.array([find(i) for i in range(n)], dtype=np.int64)
