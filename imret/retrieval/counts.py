"""How many pictures a search finds, in all and of each category, without fetching them.

Without a least score every picture that passes the filter is found sooner or later, so the store counts them.
With one, the ranking is followed down to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from imret.datasets.spelling import composed
from imret.retrieval.conditions import Asked
from imret.retrieval.limits import MAX_DEPTH
from imret.retrieval.ranking import combined
from imret.retrieval.results import HitCounts
from imret.store import Collection, Filter

# How far a ranking is followed, step by step; the last is as far as a search of the API goes.
_STEPS = (1_024, 4_096, MAX_DEPTH)

_CATEGORIES = ("categories", "not_categories")


def count_hits(asked: Asked) -> HitCounts:
    """Return how many pictures a search finds if its limit lets it.

    Args:
        asked: The search; how many hits, how they are ordered, folded and grouped does not matter.
    """
    among = combined(*(one.filter for one in asked.conditions if one.field not in _CATEGORIES))
    only, never = (
        {name for one in asked.conditions if one.field == field for name in one.names}
        for field in _CATEGORIES
    )
    images, n_without = _stored(asked.collection, among)
    counts, n_uncategorised, complete = _by_category(asked, among, images, n_without)
    wanted = (only or set(counts)) - never
    n_hits = sum(n for category, n in counts.items() if category in wanted)
    if not only:
        n_hits += n_uncategorised
    return HitCounts(counts, n_uncategorised, n_hits, complete, images)


def composed_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts of categories with those that are one name in two spellings added up, most first."""
    added: Counter[str] = Counter()
    for category, n in counts.items():
        added[composed(category)] += n
    return dict(sorted(added.items(), key=lambda pair: (-pair[1], pair[0])))


def _by_category(
    asked: Asked, among: Filter, images: Mapping[str, int], n_without: int
) -> tuple[Mapping[str, int], int, bool]:
    """Return counts by category, the number of those that have none, and whether these are all.

    Args:
        asked: The search.
        among: Its conditions but for those on categories.
        images: How many pictures of each category meet them, whatever they score.
        n_without: How many of no category.
    """
    if asked.min_score == math.inf:
        return {}, 0, True
    if asked.min_score > -1:
        found, complete = _down_to(asked, among)
        categories = [category for category in found if isinstance(category, str)]
        return composed_counts(Counter(categories)), len(found) - len(categories), complete
    if not asked.is_without_itself:
        return images, n_without, True
    # Counted and taken off: to count all but a few takes as long as to look at each.
    off, n_off = _stored(asked.collection, combined(among, asked.itself))
    return {category: n - off.get(category, 0) for category, n in images.items()}, n_without - n_off, True


def _stored(collection: Collection, filter_: Filter) -> tuple[dict[str, int], int]:
    n_images = collection.count(filter_ or None)
    counts = composed_counts(collection.facet("category", filter_ or None))
    # A collection that is written to meanwhile may have grown between the two questions.
    return counts, max(0, n_images - sum(counts.values()))


def _down_to(asked: Asked, among: Filter) -> tuple[Sequence[object], bool]:
    """Return the categories of all that score enough, and whether the ranking was followed to their end."""
    filter_ = combined(among, Filter(must_not=asked.itself.must)) if asked.is_without_itself else among
    good: list[object] = []
    for limit in _STEPS:
        points = asked.collection.search(asked.vector, limit=limit, filter=filter_ or None)
        good = [p.payload.get("category") for p in points if (p.score or 0.0) >= asked.min_score]
        if len(good) < limit:
            return good, True
    return good, False
