"""Which pictures look alike: a perceptual hash of each, confirmed by its colours, and groups of them.

Two pictures are alike if their hashes differ in few bits and their colours by little. The hash alone sees no
colour, and takes shapes on white for one another where there are many; colours alone know no shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imret.images.resize import box_average

# Most bits that differ, and most difference of colour in levels of [0, 255], root mean square. Measured on
# the 937 photos of nature10 (438,000 pairs) and 4,000 drawings of `imret demo` (8 million pairs). Different
# photos differ in 10 bits or more; 22 pairs of drawings differ in 8 or fewer, by 14 levels or more.
# Found of copies of photos: all that are saved anew as JPEG of quality 30, at a quarter of the size, or 15 %
# brighter; nine in ten that are cut by 2 % at every side; a third of grey ones; none that are mirrored. See
# benchmarks/likeness.py.
MOST_BITS = 8
MOST_COLOUR = 12.0

_SIDE = 32  # of the grey picture whose frequencies are taken
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_BLOCK = 1 << 22  # pairs of hashes compared at once: 32 MiB
_COLOUR_BLOCK = 1 << 15  # pairs of colours: 24 MiB


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like, in 200 bytes.

    Attributes:
        bits: 64-bit perceptual hash.
        colours: (8, 8, 3) uint8, the picture made small, at one brightness.
    """

    bits: int
    colours: NDArray[np.uint8]


def look_at(pixels: NDArray[np.uint8]) -> Look:
    """Return what a picture looks like.

    The hash holds, of the 64 lowest frequencies but those without a change along a side, which lie above
    their median: the sign of structure, whatever brightness and contrast. A cosine transform of the picture
    averaged down to 32 x 32; a picture of one colour has none above, so noise decides nothing.

    Args:
        pixels: (H, W, 3) uint8.

    Source: Zauner (2010), Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1;
        its mean filter and resampling are one area average here.
    """
    # No matrix product: many threads look at pictures, and BLAS lets in one at a time.
    small = box_average(pixels, (_SIDE, _SIDE)).astype(np.float32)  # (32, 32, 3)
    dct = _cosines()
    frequencies = (dct @ (small @ _LUMA) @ dct.T)[1:9, 1:9].round(2).ravel()
    bits = int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")
    colours = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    colours *= 128.0 / max(float(colours.mean()), 1.0)
    return Look(bits, colours.round().clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """Return the (32, 32) matrix of the orthonormal discrete cosine transform, type II."""
    k, x = np.arange(_SIDE)[:, None], np.arange(_SIDE)
    matrix = np.cos(np.pi * (2 * x + 1) * k / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    matrix[0] /= np.sqrt(2)
    rounded: NDArray[np.float32] = matrix.astype(np.float32)
    return rounded


def alike(ours: Sequence[Look], others: Sequence[Look] | None = None) -> list[tuple[int, int]]:
    """Return the pairs that look alike, in order.

    Compares every pair of hashes, in blocks: on one core 0.2 s for 10,000 pictures, a minute for 200,000;
    and a microsecond for each pair that is alike.

    Args:
        ours: N looks.
        others: M looks; if None, `ours` are compared among themselves.

    Returns:
        Positions (in ours, in others); among themselves, the first below the second.
    """
    if not ours or (others is not None and not others):
        return []
    ours_bits, ours_colours = _arrays(ours)
    their_bits, their_colours = (ours_bits, ours_colours) if others is None else _arrays(others)
    pairs: list[tuple[int, int]] = []
    start = 0
    while start < len(ours_bits):
        stop = start + max(1, _BLOCK // len(their_bits))
        first = start if others is None else 0  # what lies before was compared from the other side
        differing = np.bitwise_count(ours_bits[start:stop, None] ^ their_bits[None, first:])
        rows, columns = np.nonzero(differing <= MOST_BITS)
        i, j = start + rows, first + columns
        if others is None:
            i, j = i[i < j], j[i < j]
        for few in range(0, len(i), _COLOUR_BLOCK):
            some = slice(few, few + _COLOUR_BLOCK)
            same = _same_colours(ours_colours[i[some]], their_colours[j[some]])
            pairs += zip(i[some][same].tolist(), j[some][same].tolist(), strict=True)
        start = stop
    return pairs


def _arrays(looks: Sequence[Look]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Return the (N,) hashes and (N, 192) colours of N looks."""
    bits = np.fromiter((look.bits for look in looks), dtype=np.uint64, count=len(looks))
    return bits, np.stack([look.colours.ravel() for look in looks])


def _same_colours(ones: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return (P,) whether each of P pairs of (P, 192) colours differs by little."""
    differences = ones.astype(np.float32) - others
    same: NDArray[np.bool_] = np.sqrt((differences**2).mean(axis=1)) <= MOST_COLOUR
    return same


def distinct(looks: Sequence[Look]) -> tuple[list[int], list[int]]:
    """Put equal looks together: thousands of one placeholder would be millions of pairs.

    Returns:
        Positions of the first of each, in order; and for each of N looks, which of those it equals.
    """
    number_of: dict[tuple[int, bytes], int] = {}
    firsts: list[int] = []
    numbers: list[int] = []
    for i, look in enumerate(looks):
        number = number_of.setdefault((look.bits, look.colours.tobytes()), len(firsts))
        if number == len(firsts):
            firsts.append(i)
        numbers.append(number)
    return firsts, numbers


def group(n: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Return for each of n pictures the first of its group: what pairs link, directly or through others.

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
        one, other = sorted((find(i), find(j)))
        first[other] = one
    return np.array([find(i) for i in range(n)], dtype=np.int64)
