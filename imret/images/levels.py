"""Which value is black and which is white in a picture of more than 8 bits, and its values as bytes.

Microscopes, thermal cameras, depth sensors and maps write values that fill a small part of what their type
can hold: as they are, they make a black or grey card. So where less than an eighth is used, that part is
shown from black to white, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]

# Less than this part of the whole range in use, and the picture is stretched to it.
_NARROW = 1 / 8
# Of so many values one may be off at either end: sensors have dead and hot pixels.
_ONE_OFF_IN = 10_000
_FEW = 1_000  # among fewer values, each counts
_SAMPLE = 1_000_000  # pixels in which the ends are looked for
_BEYOND = 1e30  # not a number, or what maps have where nothing was measured: no picture has such values
_AT_ONCE = 4_000_000  # values converted at a time: each takes 8 bytes then

# Floats, and integers wider than 16 bits, say nowhere what is white; these are the usual.
_FLOAT_WHITES = (1.0, 255.0, 65535.0)
_WIDE_WHITES = (255.0, 65535.0)


@dataclass(frozen=True, slots=True)
class Levels:
    """The values that are shown as black and as white.

    Attributes:
        black: This value and below it.
        white: This value and above it.
        note: What a person should know of it, None if the file's type says it.
    """

    black: float
    white: float
    note: str | None = None

    def to_bytes(self, values: Values) -> NDArray[np.uint8]:
        """Return values, (H, W) or (H, W, C), as [0, 255]; what is not finite is black."""
        scale = 255.0 / max(self.white - self.black, 1e-300)
        table = None
        if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
            every = np.arange(1 << 8 * values.dtype.itemsize, dtype=np.float64)
            table = np.clip(np.rint((every - self.black) * scale), 0.0, 255.0).astype(np.uint8)
        result = np.empty(values.shape, np.uint8)
        for rows in _bands(values.shape):
            if table is not None:
                result[rows] = table[values[rows]]
                continue
            with np.errstate(invalid="ignore", over="ignore"):
                part = values[rows].astype(np.float64)
                part -= self.black
                part *= scale
            np.nan_to_num(part, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            result[rows] = np.clip(np.rint(part, out=part), 0.0, 255.0, out=part)
        return result


def used_levels(
    values: Values, *, bits: int | None = None, kind: str | None = None, nothing: float | None = None
) -> Levels:
    """Return which values of a picture to show as black and as white.

    Unsigned integers of up to 24 bits span what their bits can hold, signed ones that are never negative the
    half above zero. Wider ones and floats say nowhere what is white: [0, 1] (floats), [0, 255] and
    [0, 65,535] are taken for whole ranges, then what an integer's bits can hold. Where less than an eighth of
    that is used, or values are negative, or above all of these, it is the used range: from the lowest to the
    highest, but for one in ten thousand at either end, and for what is not finite.

    Args:
        values: (H, W) or (H, W, C), of one kind: colours, but not their transparency.
        bits: How many each has in its file; those of the type, if not given.
        kind: NumPy's letter for what it is there: u, i or f; that of the type, if not given.
        nothing: A value that says that nothing was measured, if there is one.
    """
    kind, bits = kind or values.dtype.kind, bits or 8 * values.dtype.itemsize
    low, high = _used(values, nothing)
    if low >= 0.0:
        full = 0.0 if kind == "f" else float((1 << (bits - 1 if kind == "i" else bits)) - 1)
        whites = _FLOAT_WHITES if kind == "f" else (*_WIDE_WHITES, full) if bits > 24 else (full,)
        white = next((white for white in whites if high <= white), None)
        is_deep = kind == "f" or bits > 8
        if white is not None and not (is_deep and 0.0 < high - low < white * _NARROW):
            return Levels(0.0, white)
    if low == high:
        return Levels(min(low, 0.0), max(high, 0.0))
    return Levels(
        low, high, f"its values are from {low:.6g} to {high:.6g}, shown stretched from black to white"
    )


def _used(values: Values, nothing: float | None) -> tuple[float, float]:
    """Return the lowest and the highest value, but for the few that may be faults of a sensor."""
    height, width = values.shape[:2]
    if height * width <= _SAMPLE:
        sample = values.reshape(-1)
    else:
        # By chance, not each so and so many: pictures have stripes.
        at = np.random.default_rng(0).integers(0, height * width, _SAMPLE)
        sample = values[at // width, at % width].reshape(-1)
    if sample.dtype.kind == "f":
        sample = sample[np.abs(sample) < _BEYOND]
    if nothing is not None:
        sample = sample[sample != nothing]
    if not len(sample):
        return 0.0, 0.0
    off = -(-len(sample) // _ONE_OFF_IN) if len(sample) >= _FEW else 0
    ends = np.partition(sample.astype(sample.dtype.newbyteorder("=")), (off, len(sample) - 1 - off))
    return float(ends[off]), float(ends[len(sample) - 1 - off])


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    each = max(1, int(np.prod(shape[1:])))
    step = max(1, _AT_ONCE // each)
    for start in range(0, shape[0], step):
        yield slice(start, start + step)
