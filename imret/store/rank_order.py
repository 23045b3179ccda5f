"""The order of hits: by falling score, equal scores by id, also where a limit cuts among equals."""

from __future__ import annotations

import math
from collections.abc import Callable

from imret.store.types import Point

_TIE_SPARE = 8  # asked for beyond the limit, to see whether the last score is shared
_TIE_MAX = 10_000


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


def _score(point: Point) -> float:
    return -math.inf if point.score is None else point.score
