"""How many pictures a search finds, in all and of each category, without fetching them.

Without a least score every picture that passes the filter is found sooner or later, so the store counts them.
With one, the ranking is followed down to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.spelling import composed
from imret.retrieval.conditions import conditions_on
from imret.retrieval.limits import MAX_DEPTH
from imret.retrieval.prompts import Names
from imret.retrieval.query import Query, terms_of
from imret.retrieval.query_vector import QueryEmbedder
from imret.retrieval.ranking import combined
from imret.retrieval.search_options import SearchOptions
from imret.store import Collection, Filter, Match

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder

# How far a ranking is followed, step by step; the last is as far as a search of the API goes.
_STEPS = (1_024, 4_096, MAX_DEPTH)

_CATEGORIES = ("categories", "not_categories")


@dataclass(frozen=True)
class HitCounts:
    """How many pictures a search finds, near copies included.

    Attributes:
        categories: By category, whatever categories are asked for: what a search for that one alone finds.
        uncategorised: Those of no category, counted likewise.
        hits: Those of the categories that are asked for.
        complete: Whether all are counted; False where there are more than a ranking is followed for, and the
            numbers are of the best MAX_DEPTH.
    """

    categories: Mapping[str, int]
    uncategorised: int
    hits: int
    complete: bool


def count_hits(
    collection: Collection,
    query: Query,
    options: SearchOptions,
    *,
    encoder: QueryEncoder,
    fetch: Callable[[str], bytes] | None = None,
    names: Names | None = None,
) -> HitCounts:
    """Return how many pictures `imret.retrieval.search.find_hits` finds if its limit lets it.

    Args:
        collection: What is asked.
        query: As there.
        options: As there; how many hits, how they are ordered, folded and grouped does not matter.
        encoder: The collection's.
        fetch: As there.
        names: What categories are called.

    Raises:
        What `find_hits` raises.
    """
    terms = terms_of(query)
    embedder = QueryEmbedder(collection, lambda: encoder, options.template, fetch, names=lambda: names or {})
    vector = embedder.embed(terms)
    least = -1.0 if options.min_score is None else options.min_score
    if options.relevant:
        least = max(least, embedder.relevance_threshold(terms, vector))
    conditions = conditions_on(collection, options)
    among = combined(*(one.filter for one in conditions if one.field not in _CATEGORIES))
    only, never = (
        {name for one in conditions if one.field == field for name in one.names} for field in _CATEGORIES
    )
    hidden = None
    if embedder.hashes and not options.include_self:
        hidden = Match("sha256", tuple(embedder.hashes))
    counts, n_uncategorised, complete = _by_category(collection, vector, among, hidden, least)
    wanted = (only or set(counts)) - never
    n_hits = sum(n for category, n in counts.items() if category in wanted)
    if not options.categories:
        n_hits += n_uncategorised
    return HitCounts(counts, n_uncategorised, n_hits, complete)


def composed_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts of categories with those that are one name in two spellings added up, most first."""
    added: Counter[str] = Counter()
    for category, n in counts.items():
        added[composed(category)] += n
    return dict(sorted(added.items(), key=lambda pair: (-pair[1], pair[0])))


def _by_category(
    collection: Collection,
    vector: NDArray[np.float32],
    filter_: Filter,
    hidden: Match | None,
    least: float,
) -> tuple[dict[str, int], int, bool]:
    """Return counts by category, the number of those that have none, and whether these are all."""
    if math.isinf(least):
        return {}, 0, True
    if least > -1:
        without = combined(filter_, Filter(must_not=(hidden,)) if hidden else None)
        found, complete = _down_to(collection, vector, without, least)
        categories = [category for category in found if isinstance(category, str)]
        return composed_counts(Counter(categories)), len(found) - len(categories), complete
    counts, n_uncategorised = _stored(collection, filter_)
    if hidden is not None:
        # Counted and taken off: to count all but a few takes as long as to look at each.
        off, n_off = _stored(collection, combined(filter_, Filter((hidden,))))
        counts = {category: n - off.get(category, 0) for category, n in counts.items()}
        n_uncategorised -= n_off
    return counts, n_uncategorised, True


def _stored(collection: Collection, filter_: Filter) -> tuple[dict[str, int], int]:
    n_images = collection.count(filter_ or None)
    counts = composed_counts(collection.facet("category", filter_ or None))
    # A collection that is written to meanwhile may have grown between the two questions.
    return counts, max(0, n_images - sum(counts.values()))


def _down_to(
    collection: Collection, vector: NDArray[np.float32], filter_: Filter, least: float
) -> tuple[Sequence[object], bool]:
    """Return the categories of all that score so much, and whether the ranking was followed to their end."""
    good: list[object] = []
    for limit in _STEPS:
        points = collection.search(vector, limit=limit, filter=filter_ or None)
        good = [point.payload.get("category") for point in points if (point.score or 0.0) >= least]
        if len(good) < limit:
            return good, True
    return good, False
