"""What is excluded from the folders of a run: what was said, or what is remembered with them.

A folder that takes over the pictures of another takes over what was excluded from it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from imret.datasets.exclusion import below
from imret.escape import escape_undecodable
from imret.sources.overlap import path_within
from imret.store import Store
from ingest.settle import Settlement
from ingest.sources import Source


def recalled(store: Store, sources: Sequence[Source], collection: str) -> list[Source]:
    """Return the folders, with what is remembered of those of which nothing was said."""
    remembered = store.excluded(collection)
    return [
        source.excluding(remembered[escape_undecodable(source.root)])
        if source.exclude is None and escape_undecodable(source.root) in remembered
        else source
        for source in sources
    ]


def inherited(
    store: Store, sources: Sequence[Source], collection: str, settlement: Settlement
) -> list[Source]:
    """Return the folders, with what was excluded from the sources that become them, or parts of them."""
    remembered = store.excluded(collection)
    return [_inheriting(source, settlement, remembered) for source in sources]


def _inheriting(source: Source, settlement: Settlement, remembered: Mapping[str, Sequence[str]]) -> Source:
    if source.exclude == ():  # it was said that nothing is
        return source
    places = [(old, path_within(old, source.root)) for old, new in settlement.absorbed if new is source]
    if source.exclude is None:
        places += [(one.old, one.agreement.below) for one in settlement.moved if one.new is source]
    patterns = [
        below(place, pattern) if place else pattern
        for old, place in places
        for pattern in remembered.get(old, ())
    ]
    return source.excluding((*(source.exclude or ()), *patterns)) if patterns else source


def to_remember(sources: Sequence[Source], settlement: Settlement) -> dict[str, tuple[str, ...]]:
    """Return the patterns by source, empty for those of which nothing is to be remembered (any more)."""
    patterns: dict[str, tuple[str, ...]] = dict.fromkeys(settlement.taken_over, ())
    return patterns | {
        escape_undecodable(source.root): source.exclude for source in sources if source.exclude is not None
    }
