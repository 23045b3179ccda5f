"""What a run does about folders that overlap or have moved: decided from the collection, before any model.

Sources that lie within a folder that is ingested become parts of it; a folder within a source is refused. A
folder that holds the pictures of a source that is gone is that source, moved, unless it is said not to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

from imret.datasets.spelling import composed
from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError
from imret.escape import escape_undecodable, quoted
from imret.files import sha256_if_readable
from imret.sources.moved import Agreement, compare, of_source
from imret.sources.overlap import covers, path_within
from imret.sources.presence import folder_state
from imret.sources.stored import (
    exact_source,
    find_source,
    give_places,
    is_slip_of,
    naming_options,
    no_such_source,
    refuse_mix,
)
from imret.store import Collection, Filter, Match, Point, Store
from imret.store.payload import file_of, path_of, source_of
from ingest.sources import Record, Source

_FEW = 8  # pictures that tell whether two sources hold the same files


@dataclass(frozen=True)
class Moved:
    """A source that is gone, whose pictures are in a folder.

    Attributes:
        old: The source, as the collection names it.
        new: The folder.
        agreement: How many of its pictures are there.
    """

    old: str
    new: Source
    agreement: Agreement


@dataclass
class Settlement:
    """What is to be done about other sources before the folders of a run are ingested.

    Attributes:
        where: The options that name the collection in a command; see `naming_options`.
        moved: Sources that have become one of the folders.
        absorbed: Sources that lie within one of the folders, and that folder.
        notes: Sentences for people.
        new: The folders that were no source before.
    """

    where: str
    moved: list[Moved] = field(default_factory=list)
    absorbed: list[tuple[str, Source]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    new: list[Source] = field(default_factory=list)

    @property
    def taken_over(self) -> set[str]:
        """The sources that are none any more when this has been carried out."""
        return {one.old for one in self.moved} | {old for old, _ in self.absorbed}


def settle(
    store: Store,
    sources: Sequence[Source],
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
    where = naming_options(store, collection)
    settlement = Settlement(where, new=list(sources))
    if store.live(collection) is None:
        if moved_from:
            raise no_such_source(store, collection, moved_from[0], ())
        return settlement
    excluded = store.excluded(collection)
    with closing(store.open(collection)) as opened:
        stored = opened.facet("source")
        settlement.new = [source for source in sources if escape_undecodable(source.root) not in stored]
        for old in moved_from:
            _settle_moved_from(store, opened, stored, sources, old, settlement)
        named = {escape_undecodable(source.root) for source in sources}
        others = {
            other: exact_source(opened, other) for other in stored.keys() - named - settlement.taken_over
        }
        in_units = {other for other in others if _is_of_containers(opened, other)}
        for source in sources:
            for other, place in others.items():
                if not _are_files(source) or other in in_units:
                    continue  # a container has places of its own, wherever it lies
                if covers(place, source.root, excluded.get(other, ())):
                    raise _lies_within(source, other, where)
                if _is_same_folder(place, source.root):
                    raise _same_folder(source, other, where)
                if covers(source.root, place, source.exclusion.patterns):
                    # One that is not there stays by itself: as a part of the folder, --prune would remove it.
                    if folder_state(place) == "present":
                        settlement.absorbed.append((other, source))
                    else:
                        settlement.notes.append(_not_there(other, source, where))
        for source in settlement.new:
            around = _linked_around(opened, source) - settlement.taken_over
            if left_out := {other for other in around if path_within(source.root, others.get(other, other))}:
                raise _still_stored(source, min(left_out), where)
            if around:
                raise _lies_within(source, min(around), where, how="by a link ")
        if not second_copy:
            away = {other: place for other, place in others.items() if other not in settlement.taken_over}
            found = _look_for_moved(opened, stored, sources, away)
            questions = [one for one in found if is_question(one)]
            if questions:
                raise _moved_error(questions)
            settlement.notes += [_note(one, where) for one in found]
    return settlement


def notes_after(settlement: Settlement, target: Collection, sources: Sequence[Source]) -> list[str]:
    """Return what is to be told when the folders have been ingested: whose pictures they hold as well.

    A source that is gone, and moved to a place within a folder that is ingested anyway, shows only then; so
    does one that a new folder holds by a link.
    """
    stored = target.facet("source")
    named = {escape_undecodable(source.root) for source in sources}
    others = {other: exact_source(target, other) for other in stored.keys() - named}
    found = _look_for_moved(target, stored, sources, others)
    notes = [_note(one, settlement.where) for one in found if one.agreement.settled]
    for source in settlement.new:
        notes += _linked_notes(target, source, others, settlement.where)
    return [note for note in notes if note not in settlement.notes]


def find_moved(
    store: Store, sources: Sequence[Source], *, collection: str = DEFAULT_COLLECTION
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
        away = {
            other: place
            for other, place in away.items()
            if not any(
                covers(source.root, place, source.exclusion.patterns)
                for source in sources
                if source.is_folder
            )
        }
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


def _take_over(version: Collection, old: str, source: Source, below: str | None) -> int:
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
        return without | ({"category": composed(category)} if source.categories and file else {})

    return give_places(version, old, place, renew=renew)


def _check_named(sources: Sequence[Source]) -> None:
    for one, other in combinations(sources, 2):
        if one.root == other.root:
            raise DataError(f"the folder {quoted(one.root)} is named twice. Name it once.")
        if not (_are_files(one) and _are_files(other)):
            continue
        outer, inner = sorted((one, other), key=lambda source: len(source.root))
        if covers(outer.root, inner.root, outer.exclusion.patterns):
            raise DataError(
                f"{quoted(inner.root)} lies within {quoted(outer.root)}, so its pictures would be stored "
                f"twice. Name {quoted(outer.root)} alone."
            )


def _are_files(source: Source) -> bool:
    """Whether the pictures of a source are files, or objects, of their own below its root."""
    return source.kind in ("folder", "prefix")


def _is_of_containers(opened: Collection, source: str) -> bool:
    """Whether the pictures of a source, as the collection names it, lie in containers."""
    (first, *_) = next(iter(opened.scan(of_source(source), batch_size=1)), [None])
    return first is not None and "unit" in first.payload


def _settle_moved_from(
    store: Store,
    opened: Collection,
    stored: Mapping[str, int],
    sources: Sequence[Source],
    named: str,
    settlement: Settlement,
) -> None:
    """Find which of the folders a source has become, as somebody said that it has."""
    old = find_source(named, stored)
    roots = {escape_undecodable(source.root) for source in sources}
    if old is None:
        if roots & stored.keys() and not any(is_slip_of(named, other) for other in stored.keys() - roots):
            # Said again after a run that was stopped: it is done.
            settlement.notes.append(f"{quoted(named)} is no source of {opened.name!r} (any more)")
            return
        raise no_such_source(store, opened.name, named, stored)
    if old in roots:
        raise DataError(f"{quoted(named)} is one of the folders to ingest; it cannot have moved to another.")
    if folder_state(exact_source(opened, old)) not in ("gone", "empty"):
        raise DataError(
            f"{quoted(old)} is still there, so it has not moved: what is elsewhere is a copy.\n"
            f"Keep both: the same command with --second-copy; or keep one: imret sources forget {quoted(old)}"
            f"{settlement.where}"
        )
    found = [Moved(old, source, compare(opened, old, source.root)) for source in sources if source.is_folder]
    if not found:
        raise DataError(
            f"{quoted(old)} cannot have moved to {quoted(sources[0].root)}, which is no folder of pictures. "
            f"Say where it is now: imret sources rename {quoted(old)} NEW --no-check{settlement.where}"
        )
    best = max(found, key=lambda one: one.agreement.found)
    if best.agreement.found == 0:
        raise DataError(
            f"none of the {best.agreement.sampled} pictures of {old!r} that were looked for are in "
            f"{quoted(best.new.root)}. If it is that folder all the same: "
            f"imret sources rename {quoted(old)} {quoted(best.new.root)} --no-check{settlement.where}"
        )
    below = best.agreement.below
    refuse_mix(opened, old, best.new.root, stored, settlement.where, below=below)
    settlement.moved.append(best)


def _look_for_moved(
    opened: Collection,
    stored: Mapping[str, int],
    sources: Sequence[Source],
    away: Mapping[str, str],
) -> list[Moved]:
    """Return the sources that are gone, or empty, of which the folders hold some pictures."""
    moved = []
    for old, place in sorted(away.items()):
        if folder_state(place) not in ("gone", "empty"):
            continue
        found = []
        for source in sources:
            if not source.is_folder:
                continue
            # A folder that the collection knows is looked through only at the old places, at every run.
            new = escape_undecodable(source.root) not in stored
            found.append(Moved(old, source, compare(opened, old, source.root, anywhere=new)))
        best = max(found, key=lambda one: one.agreement.found, default=None)
        if best is not None and best.agreement.found:
            moved.append(best)
    return moved


def _is_same_folder(one: str, other: str) -> bool:
    """Whether two paths lead to one folder, mounted twice, or where case makes no difference."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is gone
        return False


def _linked_around(opened: Collection, source: Source) -> set[str]:
    """Return the sources that a folder lies within by a link in them, or by one on the way to it."""
    if not source.is_folder:
        return set()
    found = (entry.file for entry in source.entries() if isinstance(entry, Record))
    few = islice((file for file in found if file is not None), _FEW)
    files = {sha256_if_readable(file): os.path.realpath(file) for file in few}
    return {
        point.payload["source"]
        for point in _with_contents(opened, {digest for digest in files if digest is not None})
        if os.path.realpath(file_of(point.payload)) == files[point.payload["sha256"]]
        and any(
            place == source.root or path_within(source.root, place)
            for place in map(os.path.realpath, _folders_above(point))
        )
    }


def _linked_notes(target: Collection, source: Source, others: Mapping[str, str], where: str) -> list[str]:
    """Return what is to be told of sources that a new folder holds by a link in it."""
    notes = []
    here = escape_undecodable(source.root)
    for other, place in sorted(others.items()):
        if covers(source.root, place) or covers(place, source.root):
            continue  # no link, but two runs at once, or one that is not there: the next run sees to it
        few = next(iter(target.scan(of_source(other), batch_size=_FEW)), [])
        files = {os.path.realpath(file_of(point.payload)) for point in few}
        twice = _with_contents(target, {point.payload["sha256"] for point in few}, source=here)
        if any(os.path.realpath(file_of(point.payload)) in files for point in twice):
            notes.append(
                f"{quoted(other)} lies within {quoted(here)} by a link, so its pictures are stored twice; "
                f"to have them once: imret sources forget {quoted(other)}{where}"
            )
    return notes


def _with_contents(opened: Collection, digests: set[str], *, source: str | None = None) -> Iterator[Point]:
    """Yield the stored pictures of some contents, of one source or of all."""
    if digests:
        mine = () if source is None else (Match("source", (source,)),)
        for points in opened.scan(Filter(must=(Match("sha256", tuple(sorted(digests))), *mine))):
            yield from points


def _folders_above(point: Point) -> Iterator[str]:
    """Yield the folders on the way from a stored picture's source to the picture, those below the source."""
    parts = path_of(point.payload).split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        yield os.path.join(source_of(point.payload), *parts[:depth])


def _lies_within(source: Source, other: str, where: str, *, how: str = "") -> DataError:
    return DataError(
        f"{quoted(source.root)} lies {how}within {quoted(other)}, a source of the collection: its "
        "pictures would be stored twice.\n"
        f"Ingest that folder: imret ingest {quoted(other)}{where}"
    )


def _still_stored(source: Source, other: str, where: str) -> DataError:
    return DataError(
        f"{quoted(source.root)} is left out of {quoted(other)}, a source of the collection, but pictures of "
        "it are stored there still, and would be stored twice.\n"
        f"Take them out first: imret ingest {quoted(other)} --prune{where}\n"
        f"or take it in again: imret ingest {quoted(other)} --no-exclude{where}"
    )


def _not_there(other: str, source: Source, where: str) -> str:
    return (
        f"{quoted(other)}, a source that lies within {quoted(source.root)}, is not there now, and stays a "
        f"source of its own; if it is gone for good: imret sources forget {quoted(other)}{where}"
    )


def _same_folder(source: Source, other: str, where: str) -> DataError:
    return DataError(
        f"{quoted(source.root)} is {quoted(other)}, a source of the collection, by another name: "
        "its pictures would be stored twice.\n"
        f"Ingest it by the name that is known: imret ingest {quoted(other)}{where}\n"
        f"or give it this one: imret sources rename {quoted(other)} {quoted(source.root)}{where}"
    )


def _moved_error(found: Sequence[Moved]) -> DataError:
    options = " ".join(f"--moved-from {quoted(one.old)}" for one in found)
    return DataError(
        "\n".join(
            [
                *(question(one) for one in found),
                f"If so: the same command with {options}",
                "If it is a second copy, and the other will be back: the same command with --second-copy",
            ]
        )
    )


def question(one: Moved) -> str:
    """Return in words what speaks for a move."""
    return f"{_what_was_found(one)}. Has it moved there?"


def _what_was_found(one: Moved) -> str:
    state = "empty" if folder_state(one.old) == "empty" else "gone"
    agreement = one.agreement
    return (
        f"{quoted(one.old)} is {state}, and {agreement.found} of {agreement.sampled} pictures of it that "
        f"were looked for are in {quoted(one.new.root)}"
    )


def _note(one: Moved, where: str) -> str:
    if one.agreement.settled:
        return (
            f"{quoted(one.old)} is gone, and its pictures are stored as those of {quoted(one.new.root)}, "
            "too; "
            f"if it is gone for good: imret sources forget {quoted(one.old)}{where}"
        )
    return (
        f"{_what_was_found(one)}; if that is where it went: the same command with "
        f"--moved-from {quoted(one.old)}"
    )


def advice_for_gone(source: str, where: str) -> str:
    """Return what can be done about a source that is not there.

    Args:
        source: As the collection names it.
        where: From `naming_options`.
    """
    return (
        f"If it has moved: imret ingest NEW --moved-from {quoted(source)}{where}\n"
        f"If it is gone for good: imret sources forget {quoted(source)}{where}"
    )
