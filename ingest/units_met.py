"""Which pictures of each container a run has met, so that those that it has not are known to be gone.

Memory is bounded by one container, and by those of which something is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from imret.escape import escape_undecodable
from imret.sources.moved import of_source
from imret.store import Collection, Filter, Match, Point
from ingest.sources import Record


def count_in_units(target: Collection, root: str) -> int:
    """Return how many points of a source lie in containers."""
    return sum(_stored(target, root).values())


def _stored(target: Collection, root: str) -> dict[str, int]:
    return target.facet("unit", of_source(escape_undecodable(root)))


class UnitsMet:
    """What was met of each container of a source, as its records come, one container after the other.

    Args:
        target: The version that is compared.
        root: The source.
    """

    def __init__(self, target: Collection, root: str) -> None:
        self._target, self._root = target, root
        self._before: dict[str, int] | None = None  # points of each container when the first was met
        self._unit: str | None = None
        self._ids: set[str] = set()
        self._n_known = 0
        self._whole: set[str] = set()  # containers of whose points each was met
        self._met: dict[str, set[str]] = {}  # what was met of the others

    def meet(self, record: Record, *, is_known: bool) -> None:
        """Take note of a picture in a container.

        Args:
            record: The picture.
            is_known: Whether the collection has a point for it already.
        """
        if self._before is None:
            self._before = _stored(self._target, self._root)
        if record.unit != self._unit:
            self.end()
            self._unit = record.unit
        self._ids.add(record.id)
        self._n_known += is_known

    def end(self) -> None:
        """Take note that the container which was met last has been met whole."""
        if self._unit is not None and self._before is not None:
            unit = escape_undecodable(self._unit)
            if self._before.get(unit, 0) > self._n_known:
                self._met[unit] = self._ids
            else:
                self._whole.add(unit)
        self._unit, self._ids, self._n_known = None, set(), 0

    def stored(self) -> dict[str, int]:
        """Return how many points each container has now."""
        return _stored(self._target, self._root)

    def not_met(self, unit: str, *, is_there: bool) -> Iterator[list[Point]]:
        """Yield the points of a container that were not met in it; all, where the container is gone."""
        if is_there and unit in self._whole:
            return
        met = self._met.get(unit, set()) if is_there else set()
        mine = Filter(must=(*of_source(escape_undecodable(self._root)).must, Match("unit", (unit,))))
        for points in self._target.scan(mine):
            if gone := [point for point in points if point.id not in met]:
                yield gone
