"""What one search asks of a collection beside its query, and of no hits: which of that left none.

Hides that every condition can be left out again: a category, a text of `where`, a least score, the offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret.datasets.spelling import composed
from imret.retrieval.categories import with_stored_categories
from imret.retrieval.filter_syntax import in_any_spelling, make_filter
from imret.retrieval.ranking import best, best_of_groups, combined
from imret.retrieval.results import MANY, WithoutCondition
from imret.retrieval.search_options import SearchOptions
from imret.store import Collection, Filter, Match, Point
from imret.store.payload import file_of

if TYPE_CHECKING:
    from imret.retrieval.dedupe import NearCopies

# A search that found nothing is asked so many times more at most, once for each of its conditions.
_MOST_CONDITIONS = 8


@dataclass(frozen=True)
class Condition:
    """One condition on pictures.

    Attributes:
        field: Of `SearchOptions`; or "filter".
        value: Of it; of `where` one of its texts.
        filter: What it means, categories as the collection has them.
    """

    field: str
    value: Any
    filter: Filter

    @property
    def names(self) -> set[str]:
        """The values of its matches, composed: of `categories` and `not_categories` the categories."""
        matches = (one for one in (*self.filter.must, *self.filter.must_not) if isinstance(one, Match))
        return {composed(str(value)) for match in matches for value in match.values}


def conditions_on(
    collection: Collection, options: SearchOptions, filter: Filter | None = None
) -> list[Condition]:
    """Return the conditions that pictures of a collection have to meet.

    Raises:
        DataError: If a condition cannot be read or a category does not exist.
    """
    categories, not_categories = tuple(options.categories), tuple(options.not_categories)
    read = [
        ("categories", categories, make_filter(categories=categories)),
        ("not_categories", not_categories, make_filter(not_categories=not_categories)),
        *(("where", text, make_filter(where=[text])) for text in options.where),
        ("filter", True, in_any_spelling(filter or Filter())),
    ]
    given = [(field, value, meant) for field, value, meant in read if meant]
    stored = with_stored_categories(collection, [meant for _, _, meant in given])
    return [Condition(field, value, meant) for (field, value, _), meant in zip(given, stored, strict=True)]


@dataclass(frozen=True)
class Asked:
    """One search, its query made a vector.

    Attributes:
        collection: What is asked.
        vector: (D,) unit vector of the query.
        options: How many, from which score and rank on, in groups or not.
        conditions: On pictures; those that stand in the options are not looked at there.
        hashes: Of the pictures that are asked with, SHA-256 in hex.
        good_from: The score from which pictures are good matches; looked at where `relevant` is asked for.
    """

    collection: Collection
    vector: NDArray[np.float32]
    options: SearchOptions
    conditions: tuple[Condition, ...] = ()
    hashes: tuple[str, ...] = ()
    good_from: float = -math.inf

    @property
    def itself(self) -> Filter:
        """What pictures meet that are, by their bytes, what is asked with; empty where it is words."""
        return Filter((Match("sha256", self.hashes),)) if self.hashes else Filter()

    @property
    def is_without_itself(self) -> bool:
        """Whether those are left out."""
        return bool(self.hashes) and not self.options.include_self

    @property
    def filter(self) -> Filter:
        """Which pictures are looked among."""
        met = combined(*(condition.filter for condition in self.conditions))
        return combined(met, Filter(must_not=self.itself.must)) if self.is_without_itself else met

    @property
    def min_score(self) -> float:
        """The least score of a hit."""
        least = -math.inf if self.options.min_score is None else self.options.min_score
        return max(least, self.good_from) if self.options.relevant else least

    def find(self, copies: NearCopies | None = None) -> list[tuple[Point, int]]:
        """Return points, best first, and how many near copies each stands for."""
        ranked = best if self.options.group_by is None else best_of_groups
        return ranked(self.collection, self.vector, self.filter, self.options, self.min_score, copies)

    def count_left_out(self) -> int:
        """Return how many pictures are no hits only because they are what is asked with; MANY at most."""
        if not self.is_without_itself:
            return 0
        met = combined(self.itself, *(condition.filter for condition in self.conditions))
        return self._count_good(met)

    def emptied_by(self) -> list[WithoutCondition]:
        """Return which conditions, each left out alone, would give hits; where none would, all together."""
        if self.options.offset and (after := self._without([("offset", self.options.offset)])):
            return [after]
        # Whoever asks for page after page asks for the first page without a condition.
        asked = replace(self, options=replace(self.options, offset=0))
        named = asked._named()[:_MOST_CONDITIONS]
        alone = [without for one in named if (without := asked._without([one]))]
        if alone or len(named) < 2:
            return alone
        for together in ([one for one in named if one[0] != "include_self"], named):
            if without := asked._without(together):
                return [without]
        return []

    def _named(self) -> list[tuple[str, Any]]:
        options = self.options
        named = [(condition.field, condition.value) for condition in self.conditions]
        named += [("relevant", True)] if options.relevant else []
        named += [("min_score", options.min_score)] if options.min_score is not None else []
        named += [("group_by", options.group_by)] if options.group_by is not None else []
        return named + ([("include_self", True)] if self.is_without_itself else [])

    def _without(self, named: Iterable[tuple[str, Any]]) -> WithoutCondition | None:
        """Return what would be found without some of what is asked; None if nothing."""
        named = list(named)
        fields = {field for field, _ in named}
        options = replace(
            self.options,
            limit=1,
            per_group=1,
            offset=0 if "offset" in fields else self.options.offset,
            relevant=self.options.relevant and "relevant" not in fields,
            min_score=None if "min_score" in fields else self.options.min_score,
            group_by=None if "group_by" in fields else self.options.group_by,
            include_self=self.options.include_self or "include_self" in fields,
        )
        kept = tuple(one for one in self.conditions if (one.field, one.value) not in named)
        asked = replace(self, options=options, conditions=kept)
        found = asked.find()
        if not found:
            return None
        point, _ = found[0]
        of = ""
        if options.relevant or options.min_score is not None:
            of = "relevant" if options.relevant and asked.min_score == self.good_from else "min_score"
        return WithoutCondition(
            conditions=tuple(named),
            kept=asked._count_good(asked.filter),
            of=of,
            score=float(point.score or 0.0),
            path=file_of(point.payload),
        )

    def _count_good(self, filter: Filter) -> int:
        """Count what passes a filter, is in a group if groups are asked for, and scores enough."""
        field, least = self.options.group_by, self.min_score
        if math.isinf(least):
            if least > 0:
                return 0
            if field is not None:
                return sum(self.collection.facet(field, filter or None).values())
            return self.collection.count(filter or None)
        points = self.collection.search(self.vector, limit=MANY, filter=filter or None)
        return sum(
            (point.score or 0.0) >= least and (field is None or field in point.payload) for point in points
        )
