"""How a search is asked beside its query: the one list of parameters that library, command and API share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

from imret.defaults import DEFAULT_COLLECTION
from imret.retrieval.limits import MAX_HITS
from imret.retrieval.results import SORTS

if TYPE_CHECKING:
    from imret.store import Filter


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Where to look, for which pictures, how many of them and in what order.

    Attributes:
        collection: Where to look.
        categories: Only pictures of any of these; empty for all.
        not_categories: No pictures of any of these; those of no category stay.
        where: Only pictures that meet every one of these conditions; see `imret.retrieval.filter_syntax`.
        limit: Hits at most, >= 1; with `group_by`, groups.
        offset: Best hits (groups) to leave out, >= 0.
        min_score: Least cosine, in [-1, 1].
        relevant: Whether to end where the answers end, which may be at once; see `imret.retrieval.relevance`.
        unique: Whether near copies are folded into the best of them; `Hit.folded` counts them, as far as they
            rank among twice as many hits as are asked for. Looks at the files, where they can be read; where
            too few are left, at the next, a thousand at most. That these were not enough is then told.
        group_by: A payload field, "category" say: the best `per_group` hits of each of its values, in the
            order of the best of each. Pictures without the field are in no group.
        per_group: Hits of each group at most, >= 1.
        sort: How the hits that were found are listed: "score", "date" (newest first) or "path".
        template: Whether words, up to three, are put into prompt templates, averaged.
        concepts: Whether words that are or hold the name of a concept ask with what was learnt of it, where
            the collection or its model has concepts; see `imret.retrieval.concept_query`.
        include_self: Whether a picture that is asked for may be among its own hits, as far as it is the same
            file by its bytes.

    Raises:
        ValueError: If a number is out of its range, or the order is unknown.
    """

    collection: str = DEFAULT_COLLECTION
    categories: Sequence[str] = ()
    not_categories: Sequence[str] = ()
    where: Sequence[str] = ()
    limit: int = 10
    offset: int = 0
    min_score: float | None = None
    relevant: bool = False
    unique: bool = False
    group_by: str | None = None
    per_group: int = 3
    sort: str = "score"
    template: bool = True
    concepts: bool = True
    include_self: bool = False

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("per_group", 1), ("offset", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, not {value!r}")
            if int(value) < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
            if int(value) > MAX_HITS:
                raise ValueError(f"{name} must be at most {MAX_HITS:,}, not more")
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise ValueError(f"min_score is a cosine, in [-1, 1], not {self.min_score}")
        if self.sort not in SORTS:
            raise ValueError(f"sort must be one of {', '.join(SORTS)}, not {self.sort!r}")

    def make_filter(self) -> Filter | None:
        """Return the filter that categories and conditions make together; None for all pictures.

        Raises:
            DataError: If a condition cannot be read.
        """
        from imret.retrieval.filter_syntax import make_filter

        return make_filter(categories=self.categories, not_categories=self.not_categories, where=self.where)
