"""A search's results: hits, what is to be said of them, how many there are of a kind. Loads nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SORTS = ("score", "date", "path")
# Of pictures that are good enough, so many are counted where a search found nothing.
MANY = 1_000


class SearchWarning(UserWarning):
    """What a search left undone."""


@dataclass(frozen=True)
class Hit:
    """One ranked result.

    Attributes:
        rank: 1 for the best.
        score: Cosine of query and picture, in [-1, 1].
        id: Point id in the collection.
        path: Absolute path of the picture; may hold surrogate escapes.
        category: Its category, or None.
        payload: Everything stored beside its vector.
        folded: Near copies that it stands for; 0 unless they were asked to be folded.
    """

    rank: int
    score: float
    id: str
    path: str
    category: str | None
    payload: dict[str, Any] = field(repr=False)
    folded: int = 0


@dataclass(frozen=True)
class WithoutCondition:
    """What a search that found nothing would have found without one of its conditions.

    Attributes:
        conditions: A field of `imret.retrieval.search_options.SearchOptions` with its value, of `where` one
            of its texts ("filter" for a `Filter` that was given). Several: only all together give a hit.
        kept: How many pictures meet the others; of those that `of` are good enough, MANY at most.
        of: By which field they are good enough: "relevant", "min_score", or "" where any score is.
        score: Of the best of them.
        path: Its path.
    """

    conditions: tuple[tuple[str, Any], ...]
    kept: int
    of: str
    score: float
    path: str


@dataclass(frozen=True)
class HitCounts:
    """How many pictures a search finds, near copies included.

    Attributes:
        categories: By category, whatever categories are asked for: what a search for that one alone finds.
        uncategorised: Those of no category, counted likewise.
        hits: Those of the categories that are asked for.
        complete: Whether all are counted; False where there are more than a ranking is followed for, and the
            numbers are of the best `imret.retrieval.limits.MAX_DEPTH`.
        images: How many there are of each category under the other conditions, whatever is asked for.
    """

    categories: Mapping[str, int]
    uncategorised: int
    hits: int
    complete: bool
    images: Mapping[str, int]


@dataclass(frozen=True)
class ConceptUse:
    """The part that a concept had in a query.

    Attributes:
        name: Of the concept.
        whole: Whether the words were its name; else they hold it.
        strength: How far it moved the words, in [0, 1]; 1 where it is the whole.
        images: How many pictures it was learnt from.
    """

    name: str
    whole: bool
    strength: float
    images: int


class Hits(list[Hit]):
    """The hits of one search in order, and what is to be said of them.

    Attributes:
        left_out: How many pictures were left out because they are, by their bytes, what is asked with.
        emptied_by: Of no hits: which conditions, each left out alone, would give some.
        remarks: What was noticed of the pictures that were asked with, in sentences.
        counts: How many there are, if that was wanted.
        concepts: Those that had a part in the query.
    """

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        *,
        left_out: int = 0,
        emptied_by: Iterable[WithoutCondition] = (),
        remarks: Iterable[str] = (),
        counts: HitCounts | None = None,
        concepts: Iterable[ConceptUse] = (),
    ) -> None:
        super().__init__(hits)
        self.left_out = left_out
        self.emptied_by = tuple(emptied_by)
        self.remarks = tuple(remarks)
        self.counts = counts
        self.concepts = tuple(concepts)

    @property
    def notes(self) -> list[str]:
        """What is to be said of them, in sentences; mostly empty."""
        from imret.retrieval.notes import notes_of

        return notes_of(self)


@dataclass(frozen=True)
class Facet:
    """How often a value of a payload field occurs.

    Attributes:
        value: Of the field.
        hits: Among the hits.
        images: In the whole collection.
    """

    value: str
    hits: int
    images: int


def sort_hits(hits: Iterable[Hit], order: str) -> list[Hit]:
    """Return hits in one of SORTS: as they rank, the newest first, or by path."""
    if order == "date":
        return sorted(hits, key=lambda hit: str(hit.payload.get("modified", "")), reverse=True)
    return sorted(hits, key=(lambda hit: hit.path) if order == "path" else (lambda hit: hit.rank))
