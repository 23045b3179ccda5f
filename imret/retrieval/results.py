"""What a search gives: ranked pictures, and how many there are of a kind. Loads nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SORTS = ("score", "date", "path")


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
