"""Near duplicates among pictures: a perceptual hash of each, confirmed by its colours, and clusters of them.

Two pictures are near duplicates if their hashes differ in few bits and their colours by little. The hash
alone sees no colour and confuses simple shapes on white; colours alone know no shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def cluster(hashes: Sequence[ImageHash]) -> NDArray[np.int64]:
    """Return for each of N pictures, (N,), the first of its cluster: likeness links, or a chain of it.

    Whoever is in a cluster is compared no more, so thousands of copies are as quick as as many different
    pictures, and no pair is kept: on one core half a second for 10,000 pictures, a minute for 200,000.
    """
    firsts, numbers = unique(hashes)
    if not firsts:
        return np.zeros(0, dtype=np.int64)
    looks = _Looks([hashes[i] for i in firsts])
    group = np.zeros(len(firsts), dtype=np.int64)
    left = np.arange(len(firsts))  # in no cluster yet
    while left.size:
        first, left = left[0], left[1:]
        group[first] = first
        linked = [first]
        while linked and left.size:
            near = looks.near(looks, linked.pop(), left)
            if near.any():
                group[left[near]] = first
                linked += left[near].tolist()
                left = left[~near]
    positions: NDArray[np.int64] = np.array(firsts, dtype=np.int64)[group[numbers]]
    return positions


def first_near(hashes: Sequence[ImageHash], others: Sequence[ImageHash]) -> NDArray[np.int64]:
    """Return for each of N pictures, (N,), the first of M others that is a near duplicate; -1 for none."""
    found = np.full(len(hashes), -1, dtype=np.int64)
    if not hashes or not others:
        return found
    looks, those = _Looks(hashes), _Looks(others)
    everyone = np.arange(len(others))
    for i in range(len(hashes)):
        near = looks.near(those, i, everyone)
        if near.any():
            found[i] = near.argmax()
    return found


class _Looks:
    """The bits and colours of N hashes, to be compared with one at a time."""

    def __init__(self, hashes: Sequence[ImageHash]) -> None:
        self.bits = np.fromiter((item.bits for item in hashes), dtype=np.uint64, count=len(hashes))
        self.colours = np.stack([item.colours.ravel() for item in hashes])  # (N, 192)
        self.means = np.stack([item.colours.mean(axis=(0, 1)) for item in hashes]).astype(
            np.float32
        )  # (N, 3)

    def near(self, others: _Looks, i: int, among: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some of the others, by their positions, are near duplicates of picture i."""
        near: NDArray[np.bool_] = np.bitwise_count(others.bits[among] ^ self.bits[i]) <= MAX_BITS
        # Means differ by no more than what they are the means of. Pictures of one colour have equal bits.
        for colours, theirs, block, spare in (
            (self.means, others.means, len(among), 0.1),  # of rounding
            (self.colours, others.colours, _COLOUR_BLOCK, 0.0),
        ):
            candidates = np.flatnonzero(near)
            for at in range(0, len(candidates), max(1, block)):
                part = candidates[at : at + block]
                differences = theirs[among[part]].astype(np.float32) - colours[i]
                near[part] = np.sqrt((differences**2).mean(axis=1)) <= MAX_COLOUR_DISTANCE + spare
        return near


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
