"""What every engine's collection checks and orders alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError
from imret.store.filter import INTEGER_FIELDS, MOMENT_FIELDS, check_id, check_scalar, parse_moment
from imret.store.types import Point

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


_TIE_SPARE = 8  # asked for beyond the limit, to see whether the last score is shared


_TIE_MAX = 10_000


def check_name(name: str) -> str:
    """Return a collection's name if it can be one.

    Raises:
        DataError: If not; a name becomes a folder and a part of a URL.
    """
    if not is_name(name):
        raise DataError(
            f"{name!r} cannot name a collection. Use 1 to 100 letters, digits, '.', '_' and '-', "
            "with a letter or digit first."
        )
    return name


def is_name(name: str) -> bool:
    """Whether a text can name a collection."""
    return _NAME.fullmatch(name) is not None


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return ids as a list.

    Raises:
        ValueError: If one is no UUID in canonical form (lower case, with hyphens), or appears twice.
    """
    for one in ids:
        check_id(one)
    if len(set(ids)) != len(ids):
        raise ValueError("the ids of one call must differ")
    return list(ids)


def check_start(start: str | None) -> str | None:
    """Return the id that a scan begins at.

    Raises:
        ValueError: If it is no UUID in canonical form.
    """
    if start is not None:
        check_id(start)
    return start


def check_payloads(payloads: Sequence[Mapping[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return n payloads as plain dicts.

    Raises:
        ValueError: If their number, a float (NaN, infinite), an int (over 64 bits), a text (lone
            surrogates, which are no Unicode) or a moment is wrong.
        TypeError: If a value is no str, int or float, or not of its field's kind.
    """
    if len(payloads) != n:
        raise ValueError(f"{n} ids but {len(payloads)} payloads")
    for payload in payloads:
        for key, value in payload.items():
            if not isinstance(key, str) or not key:
                raise TypeError(f"a payload key is a text of at least one character, not {key!r}")
            check_scalar(key, (str,), "payload key")
            types = (int,) if key in INTEGER_FIELDS else (str,) if key in MOMENT_FIELDS else (str, int, float)
            check_scalar(value, types, f"payload field {key!r}")
            if key in MOMENT_FIELDS:
                parse_moment(value)
    return [dict(payload) for payload in payloads]


def check_vectors(vectors: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return vectors as contiguous float32.

    Raises:
        ValueError: If the shape is another, or a number is not finite.
    """
    array = np.asarray(vectors)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"expected vectors of shape {shape} and floats, got {array.shape} of {array.dtype}")
    if not np.isfinite(array).all():
        # NaN compares with nothing: such a point would be stored, and never found.
        raise ValueError("a vector holds NaN or infinity")
    # Engines normalise in float32: beyond this, squares overflow there. Unit vectors are far from it.
    if array.size and float(np.abs(array).max()) > 1e15:
        raise ValueError("a vector holds a number beyond 1e15")
    return np.ascontiguousarray(array, dtype=np.float32)


def in_rank_order(fetch: Callable[[int], list[Point]], limit: int) -> list[Point]:
    """Return the best `limit` points by falling score, ties by id, also where the limit cuts a tie.

    Engines order equal scores as they please, and so would choose which of them fall behind the limit.
    Asks for more until the group that the limit cuts is complete (up to 10,000 points of one score).

    Args:
        fetch: Gives the best n points by score, scores set.
        limit: Points at most, >= 1.

    Raises:
        ValueError: If the limit is less than 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    ask = limit + _TIE_SPARE
    while True:
        points = sorted(fetch(ask), key=lambda point: (-_score(point), point.id))
        tied_to_the_end = len(points) == ask and _score(points[-1]) == _score(points[limit - 1])
        if not tied_to_the_end or ask >= limit + _TIE_MAX:
            return points[:limit]
        ask = min(ask * 8, limit + _TIE_MAX)


def count_values(points: Iterator[list[Point]], field: str) -> dict[str, int]:
    """Return how often each value of a payload field occurs, unordered."""
    counts: dict[str, int] = {}
    for batch in points:
        for point in batch:
            if field in point.payload:
                value = str(point.payload[field])
                counts[value] = counts.get(value, 0) + 1
    return counts


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts with the most frequent first, then by value.

    Without those of zero: Qdrant still lists a value after its last point is gone.
    """
    there = ((value, n) for value, n in counts.items() if n)
    return dict(sorted(there, key=lambda pair: (-pair[1], pair[0])))


def index_status(points: int, indexed: int) -> str:
    """Return in words how much of a collection the vector index covers."""
    if indexed == 0:
        return "exact scan"
    return "indexed" if indexed >= points else "partly indexed"


def _score(point: Point) -> float:
    return -math.inf if point.score is None else point.score
