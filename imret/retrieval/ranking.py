"""A query vector to ranked points: near copies folded, and the best few of each value of a field.

What is asked of the collection grows with what is wanted of it, never with what it holds: a server answers
others between two questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.retrieval.search_options import SearchOptions
from imret.store import Collection, Filter, Match, Point

if TYPE_CHECKING:
    from imret.retrieval.dedupe import NearCopies

# Hits asked for at a time while groups are looked for. Payloads travel with them: a thousand take 15 ms.
_WALK_MIN, _WALK_MAX = 64, 1024


def combined(*filters: Filter | None) -> Filter:
    """Return the filter that passes what all of these pass; None passes everything."""
    given = [filter_ for filter_ in filters if filter_ is not None]
    return Filter(
        tuple(condition for filter_ in given for condition in filter_.must),
        tuple(condition for filter_ in given for condition in filter_.must_not),
    )


def best(
    collection: Collection,
    vector: NDArray[np.float32],
    filter_: Filter,
    options: SearchOptions,
    min_score: float,
    copies: NearCopies | None,
) -> list[tuple[Point, int]]:
    """Return points from the offset on with at least a score, and how many near copies each stands for."""
    if math.isinf(min_score) and min_score > 0:
        return []
    n_wanted = options.offset + options.limit
    n_asked = n_wanted if copies is None else 2 * n_wanted
    while True:
        points = collection.search(vector, limit=n_asked, filter=filter_ or None)
        good = [point for point in points if (point.score or 0.0) >= min_score]
        folded = [(point, 0) for point in good] if copies is None else copies.fold(good)
        if len(folded) >= n_wanted or len(good) < n_asked or copies is None:
            return folded[options.offset : n_wanted]
        n_before, n_asked = n_asked, copies.widen(n_asked)
        if n_asked == n_before:
            return folded[options.offset : n_wanted]


def best_of_groups(
    collection: Collection,
    vector: NDArray[np.float32],
    filter_: Filter,
    options: SearchOptions,
    min_score: float,
    copies: NearCopies | None,
) -> list[tuple[Point, int]]:
    """Return the best points of each value of a field, groups in the order of the best of each.

    One ranking is followed until enough groups have been met; only those that are wanted, and of which too
    few were met, are asked for by themselves. (A Qdrant server has a query for groups, but it gives up after
    some rounds, also where there are more; an embedded one has none.)
    """
    if math.isinf(min_score) and min_score > 0:
        return []
    field = str(options.group_by)
    within = replace(options, offset=0, limit=options.per_group)
    met = _nearest_groups(collection, vector, filter_, options, min_score)
    groups: list[tuple[Point, int]] = []
    for value in list(met)[options.offset : options.offset + options.limit]:
        points = met[value][: options.per_group]
        if copies is None and len(points) == options.per_group:
            groups += [(point, 0) for point in points]
        else:
            of_value = combined(filter_, Filter(must=(Match(field, (value,)),)))
            groups += best(collection, vector, of_value, within, min_score, copies)
    return groups


def _nearest_groups(
    collection: Collection,
    vector: NDArray[np.float32],
    filter_: Filter,
    options: SearchOptions,
    min_score: float,
) -> dict[str | int, list[Point]]:
    """Return the values whose best points rank first, in that order, each with its best points as far as met.

    They are as many as are wanted, or all. Each round leaves out the values of the rounds before it, so that
    one large group does not hide the others: every round meets at least one more.
    """
    field, n_wanted = str(options.group_by), options.offset + options.limit
    n_asked = max(_WALK_MIN, min(_WALK_MAX, 4 * n_wanted * options.per_group))
    met: dict[str | int, list[Point]] = {}

    def meet(points: Iterable[Point]) -> bool:
        """Sort points into their groups; says whether those that are good enough have ended."""
        for point in points:
            if (point.score or 0.0) < min_score:
                return True
            if isinstance(value := point.payload.get(field), (str, int)):
                met.setdefault(value, []).append(point)
        return False

    # Not asked beforehand which values there are: to count ten thousand takes as long as a hundred searches.
    points = collection.search(vector, limit=n_asked, filter=filter_ or None)
    if meet(points) or len(met) >= n_wanted:
        return met
    known = {str(value) for value in met}
    left = [value for value in collection.facet(field, filter_ or None) if value not in known]
    while left and len(met) < n_wanted:
        among = combined(filter_, Filter(must=(Match(field, tuple(left)),)))
        points = collection.search(vector, limit=n_asked, filter=among)
        n_met = len(met)
        if meet(points) or len(met) == n_met:
            break
        left = [value for value in left if value not in met]
    return met
