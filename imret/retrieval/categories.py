"""Categories as people type them, in any case, to those that a collection has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from imret.datasets.spelling import composed
from imret.errors import DataError, meant_and_listed, some_of
from imret.store import Collection, Condition, Filter, Match


def with_stored_categories(collection: Collection, filters: Sequence[Filter]) -> list[Filter]:
    """Return filters in which categories are spelled as a collection has them.

    The case of letters does not matter. Where categories differ in nothing else, the one that was typed is
    meant, and all of them if none was typed to the letter.

    Raises:
        DataError: If there is no such category; it names those that there are, nearest spelling first.
    """
    named = [one for filter_ in filters for one in (*filter_.must, *filter_.must_not) if _is_category(one)]
    if not named:
        return list(filters)
    stored = _Stored(collection)

    def spelled(condition: Condition) -> Condition:
        if not isinstance(condition, Match) or not _is_category(condition):
            return condition
        found = (stored.find(value) if isinstance(value, str) else [value] for value in condition.values)
        return replace(condition, values=tuple(dict.fromkeys(name for names in found for name in names)))

    return [
        Filter(tuple(map(spelled, filter_.must)), tuple(map(spelled, filter_.must_not)))
        for filter_ in filters
    ]


def _is_category(condition: Condition) -> bool:
    return isinstance(condition, Match) and condition.field == "category"


class _Stored:
    """The categories of a collection."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection.name
        # In composed form each once; an older imret stored categories as their folders are spelled.
        self._spelled: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        for name in collection.facet("category"):
            known = self._spelled.setdefault(composed(name), [])
            if not known:
                self._folded.setdefault(_folded(name), []).append(composed(name))
            known.append(name)

    def find(self, name: str) -> list[str]:
        """Return the stored names that are meant by one that was typed."""
        meant = [composed(name)]
        if meant[0] not in self._spelled:
            meant = self._folded.get(_folded(name), [])
        if not meant:
            raise self._unknown(name)
        return [stored for one in meant for stored in self._spelled[one]]

    def _unknown(self, name: str) -> DataError:
        existing = list(self._spelled)
        if not existing:
            return DataError(
                f"no category {name!r}: the pictures of collection {self._collection!r} have no categories. "
                "Search without --category."
            )
        meant, listed = meant_and_listed(composed(name), existing)
        return DataError(
            f"no category {some_of([name])!r} in collection {self._collection!r}.{meant}\n"
            f"There are: {some_of(listed)}"
        )


def _folded(name: str) -> str:
    return composed(composed(name).casefold())
