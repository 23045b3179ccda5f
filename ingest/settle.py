"""What a run does about folders that overlap or have moved: decided from the collection, before any model.

Sources that lie within a folder that is ingested become parts of it; a folder within a source is refused. A
folder that holds the pictures of a source that is gone is that source, moved, unless it is said not to be.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError
from imret.escape import escape_control, escape_undecodable
from imret.sources.moved import Agreement, compare
from imret.sources.overlap import covers, path_within
from imret.sources.presence import folder_state
from imret.sources.stored import exact_source, find_source, give_places, is_slip_of, no_such_source
from imret.store import Collection, Store
from imret.store.payload import path_of, source_of
from ingest.sources import FolderSource


@dataclass(frozen=True)
class Moved:
    """A source that is gone, whose pictures are in a folder.

    Attributes:
        old: The source, as the collection names it.
        new: The folder.
        agreement: How many of its pictures are there.
    """

    old: str
    new: FolderSource
    agreement: Agreement


@dataclass
class Settlement:
    """What is to be done about other sources before the folders of a run are ingested.

    Attributes:
        moved: Sources that have become one of the folders.
        absorbed: Sources that lie within one of the folders, and that folder.
        notes: Sentences for people.
    """

    moved: list[Moved] = field(default_factory=list)
    absorbed: list[tuple[str, FolderSource]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def taken_over(self) -> set[str]:
        """The sources that are none any more when this has been carried out."""
        return {one.old for one in self.moved} | {old for old, _ in self.absorbed}


def settle(
    store: Store,
    sources: Sequence[FolderSource],
    *,
    collection: str = DEFAULT_COLLECTION,
    moved_from: Sequence[str] = (),
    second_copy: bool = False,
) -> Settlement:
    """Decide what becomes of the other sources of a collection; changes nothing.

    Args:
        store: An open store.
        sources: The folders of the run.
        collection: Name; it need not exist.
        moved_from: Sources that have moved to one of the folders, each to the one that holds its pictures.
        second_copy: A folder that holds the pictures of a source that is gone is a copy all the same.

    Raises:
        DataError: If two of the folders overlap, one lies within another source, one seems to be a source
            that has moved though neither `moved_from` nor `second_copy` says so, or `moved_from` names what
            is no source or has not moved there.
    """
    _check_named(sources)
    settlement = Settlement()
    if store.live(collection) is None:
        if moved_from:
            raise no_such_source(moved_from[0], (), collection)
        return settlement
    with closing(store.open(collection)) as opened:
        stored = opened.facet("source")
        for old in moved_from:
            _settle_moved_from(opened, stored, sources, old, settlement)
        named = {escape_undecodable(source.root) for source in sources}
        others = {
            other: exact_source(opened, other) for other in stored.keys() - named - settlement.taken_over
        }
        for source in sources:
            for other, place in others.items():
                if covers(place, source.root):
                    raise _lies_within(source, other, collection)
                if covers(source.root, place):
                    settlement.absorbed.append((other, source))
        if not second_copy:
            away = {other: place for other, place in others.items() if other not in settlement.taken_over}
            found = _look_for_moved(opened, stored, sources, away)
            questions = [one for one in found if is_question(one)]
            if questions:
                raise _moved_error(questions, collection)
            settlement.notes += [_note(one, collection) for one in found]
    return settlement


def notes_after(
    target: Collection, sources: Sequence[FolderSource], *, collection: str = DEFAULT_COLLECTION
) -> list[str]:
    """Return what is to be told when the folders have been ingested: whose pictures they hold as well.

    A source that is gone, and moved to a place within a folder that is ingested anyway, shows only then.
    """
    stored = target.facet("source")
    named = {escape_undecodable(source.root) for source in sources}
    away = {other: exact_source(target, other) for other in stored.keys() - named}
    found = _look_for_moved(target, stored, sources, away)
    return [_note(one, collection) for one in found if one.agreement.settled]


def find_moved(
    store: Store, sources: Sequence[FolderSource], *, collection: str = DEFAULT_COLLECTION
) -> list[Moved]:
    """Return the sources that are gone and seem to have become one of the folders.

    Those of which `settle` would say that it has to be told.
    """
    if store.live(collection) is None:
        return []
    with closing(store.open(collection)) as opened:
        stored = opened.facet("source")
        named = {escape_undecodable(source.root) for source in sources}
        away = {other: exact_source(opened, other) for other in stored.keys() - named}
        away = {o: place for o, place in away.items() if not any(covers(s.root, place) for s in sources)}
        return [one for one in _look_for_moved(opened, stored, sources, away) if is_question(one)]


def is_question(one: Moved) -> bool:
    """Whether a source seems to have moved, and is not stored at both places already."""
    return one.agreement.moved and not one.agreement.settled


def carry_out(settlement: Settlement, versions: Iterable[Collection]) -> dict[str, int]:
    """Give the pictures of moved and absorbed sources their new places, with their vectors.

    Args:
        settlement: From `settle`.
        versions: Of the collection: the live one first.

    Returns:
        For each of those sources how many pictures it had.
    """
    counts: dict[str, int] = {}
    for version in versions:
        for one in settlement.moved:
            n = _take_over(version, one.old, one.new, one.agreement.below)
            counts.setdefault(one.old, n)
        for old, source in settlement.absorbed:
            counts.setdefault(old, _take_over(version, old, source, None))
    return counts


def _take_over(version: Collection, old: str, source: FolderSource, below: str | None) -> int:
    """Give the pictures of a source places in a folder.

    Args:
        version: Of the collection.
        old: The source.
        source: The folder.
        below: The path below it that they get; None for the one that the source has there itself.
    """

    def place(payload: Mapping[str, Any]) -> tuple[str, str]:
        above = path_within(source_of(payload), source.root) if below is None else below
        return source.root, f"{above}/{path_of(payload)}" if above else path_of(payload)

    def renew(payload: dict[str, Any]) -> dict[str, Any]:
        if below == "":  # what is the first folder below the source stays it
            return payload
        category, _, file = str(payload["path"]).partition("/")
        without = {name: value for name, value in payload.items() if name != "category"}
        return without | ({"category": category} if source.categories and file else {})

    return give_places(version, old, place, renew=renew)


def _check_named(sources: Sequence[FolderSource]) -> None:
    for one, other in combinations(sources, 2):
        if one.root == other.root:
            raise DataError(f"the folder {_shown(one.root)} is named twice. Name it once.")
        outer, inner = sorted((one.root, other.root), key=len)
        if covers(outer, inner):
            raise DataError(
                f"{_shown(inner)} lies within {_shown(outer)}, so its pictures would be stored twice. "
                f"Name {_shown(outer)} alone."
            )


def _settle_moved_from(
    opened: Collection,
    stored: Mapping[str, int],
    sources: Sequence[FolderSource],
    named: str,
    settlement: Settlement,
) -> None:
    """Find which of the folders a source has become, as somebody said that it has."""
    old = find_source(named, stored)
    roots = {escape_undecodable(source.root) for source in sources}
    if old is None:
        if roots & stored.keys() and not any(is_slip_of(named, other) for other in stored.keys() - roots):
            # Said again after a run that was stopped: it is done.
            settlement.notes.append(f"{_shown(named)} is no source of {opened.name!r} (any more)")
            return
        raise no_such_source(named, stored, opened.name)
    if old in roots:
        raise DataError(f"{_shown(named)} is one of the folders to ingest; it cannot have moved to another.")
    found = [Moved(old, source, compare(opened, old, source.root)) for source in sources]
    best = max(found, key=lambda one: one.agreement.found)
    if best.agreement.found == 0:
        raise DataError(
            f"none of the {best.agreement.sampled} pictures of {old!r} that were looked for are in "
            f"{_shown(best.new.root)}. If it is that folder all the same: "
            f"imret sources rename {_shown(old)} {_shown(best.new.root)} --no-check{_flag(opened.name)}"
        )
    settlement.moved.append(best)


def _look_for_moved(
    opened: Collection,
    stored: Mapping[str, int],
    sources: Sequence[FolderSource],
    away: Mapping[str, str],
) -> list[Moved]:
    """Return the sources that are gone, or empty, of which the folders hold some pictures."""
    moved = []
    for old, place in sorted(away.items()):
        if folder_state(place) not in ("gone", "empty"):
            continue
        found = []
        for source in sources:
            # A folder that the collection knows is looked through only at the old places, at every run.
            new = escape_undecodable(source.root) not in stored
            found.append(Moved(old, source, compare(opened, old, source.root, anywhere=new)))
        best = max(found, key=lambda one: one.agreement.found)
        if best.agreement.found:
            moved.append(best)
    return moved


def _lies_within(source: FolderSource, other: str, collection: str) -> DataError:
    return DataError(
        f"{_shown(source.root)} lies within {_shown(other)}, a source of collection {collection!r}: its "
        "pictures would be stored twice.\n"
        f"Ingest that folder: imret ingest {_shown(other)}{_flag(collection)}"
    )


def _moved_error(found: Sequence[Moved], collection: str) -> DataError:
    lines = []
    for one in found:
        lines += [question(one), f"If it has: {_command(one, collection)}"]
    lines.append("If it is a second copy, and the other will be back: the same command with --second-copy")
    return DataError("\n".join(lines))


def question(one: Moved) -> str:
    """Return in words what speaks for a move."""
    return f"{_what_was_found(one)}. Has it moved there?"


def _what_was_found(one: Moved) -> str:
    state = "empty" if folder_state(one.old) == "empty" else "gone"
    agreement = one.agreement
    return (
        f"{_shown(one.old)} is {state}, and of {agreement.sampled} of its pictures that were looked for "
        f"{agreement.found} are in {_shown(one.new.root)}"
    )


def _note(one: Moved, collection: str) -> str:
    if one.agreement.settled:
        return (
            f"{_shown(one.old)} is gone, and its pictures are stored as those of {_shown(one.new.root)}, "
            "too; "
            f"if it is gone for good: imret sources forget {_shown(one.old)}{_flag(collection)}"
        )
    return f"{_what_was_found(one)}; if that is where it went: {_command(one, collection)}"


def _command(one: Moved, collection: str) -> str:
    return f"imret ingest {_shown(one.new.root)} --moved-from {_shown(one.old)}{_flag(collection)}"


def advice_for_gone(source: str, collection: str = DEFAULT_COLLECTION) -> str:
    """Return what can be done about a source that is not there."""
    flag = _flag(collection)
    return (
        f"If it has moved: imret ingest NEW --moved-from {_shown(source)}{flag}\n"
        f"If it is gone for good: imret sources forget {_shown(source)}{flag}"
    )


def _shown(path: str) -> str:
    """Return a path as a word of a command."""
    return shlex.quote(escape_control(path))


def _flag(collection: str) -> str:
    return "" if collection == DEFAULT_COLLECTION else f" --collection {collection}"
