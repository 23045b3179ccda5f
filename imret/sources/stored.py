"""What a collection holds of each source: listed, given another place, forgotten.

The path of a folder is a part of each of its pictures' ids, so a folder that gets another path gets other
points. They keep their vectors: no model is loaded.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from imret.datasets.spelling import composed, path_on_disk
from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError
from imret.escape import escape_undecodable, quoted
from imret.sources.moved import compare, of_source
from imret.sources.overlap import overlap
from imret.sources.presence import FolderState, folder_state
from imret.store import Collection, Filter, Match, Point, Store
from imret.store.payload import path_of, payload_at, point_id, source_of

_BATCH = 256  # points that are read and stored at a time


@dataclass(frozen=True)
class StoredSource:
    """A folder that a collection holds pictures of.

    Attributes:
        folder: Its absolute path, as the collection names it: undecodable bytes are written out.
        images: Pictures that the collection holds of it.
        state: What is there now: "present", "gone", "empty" (nothing in it) or "unreadable".
        exclude: Patterns of what is left out of it: see `imret.datasets.exclusion.Exclusion`.
    """

    folder: str
    images: int
    state: FolderState
    exclude: tuple[str, ...] = ()


def list_sources(store: Store, collection: str = DEFAULT_COLLECTION) -> list[StoredSource]:
    """Return the folders that a collection holds pictures of, by path, and whether they are there now.

    Raises:
        DataError: If there is no such collection.
    """
    with closing(store.open(collection)) as opened:
        excluded = store.excluded(collection)
        return [
            StoredSource(source, images, folder_state(exact_source(opened, source)), excluded.get(source, ()))
            for source, images in sorted(opened.facet("source").items())
        ]


def exact_source(opened: Collection, source: str) -> str:
    """Return the path that opens a source, given how the collection names it; may hold surrogate escapes."""
    if "\\x" not in source:
        return source
    (point, *_) = next(iter(opened.scan(of_source(source), batch_size=1)), [Point("", {"source": source})])
    return source_of(point.payload)


def scan_source(opened: Collection, root: str, *, contents: Set[str] | None = None) -> Iterator[list[Point]]:
    """Yield the points of a folder in batches: not those of another whose name is written out alike.

    Args:
        opened: The collection.
        root: Absolute; may hold surrogate escapes.
        contents: Only pictures of these digests.
    """
    only = of_source(escape_undecodable(root))
    if contents is not None:
        only = Filter(must=(*only.must, Match("sha256", tuple(sorted(contents)))))
    for points in opened.scan(only, batch_size=_BATCH):
        if mine := [point for point in points if source_of(point.payload) == root]:
            yield mine


def count_source(opened: Collection, root: str) -> int:
    """Return how many points of a folder there are, as `scan_source` gives them."""
    if "\\x" not in escape_undecodable(root):
        return opened.count(of_source(root))
    return sum(map(len, scan_source(opened, root)))


def exact_sources(opened: Collection, source: str) -> set[str]:
    """Return the paths that open what a collection names as one source: two may be written out alike."""
    if "\\x" not in source:
        return {source}
    return {source_of(point.payload) for points in opened.scan(of_source(source)) for point in points}


def find_source(named: str, sources: Iterable[str]) -> str | None:
    """Return the source that a user means by a path: as it is stored, relative, with a slash, by a link, or
    in the other normal form of Unicode.

    Returns:
        As the collection names it; None if it is none of the sources.
    """
    if not named:  # which the system takes for the folder that one is in
        return None
    known = set(sources)
    paths = [named, os.path.realpath(named), os.path.abspath(named)]
    for path in map(escape_undecodable, (*paths, os.path.realpath(path_on_disk(named)))):
        if path in known:
            return path
    names = {composed(escape_undecodable(path)) for path in paths}
    alike = [source for source in sorted(known) if composed(source) in names]
    return alike[0] if len(alike) == 1 else None


def naming_options(store: Store, collection: str) -> str:
    """Return the options that name a collection again in a command, each after a blank; none for defaults."""
    named = "" if collection == DEFAULT_COLLECTION else f" --collection {collection}"
    if not store.reason:  # somebody named the store; else it tells why it is this one
        named += f" --db {shlex.quote(store.address)}"
    return named


def no_such_source(store: Store, collection: str, named: str, sources: Iterable[str]) -> DataError:
    """Return the error for a path that is no source, which names those that are like it."""
    near = near_sources(named, sources)
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return DataError(
        f"collection {collection!r} holds no pictures of a folder {quoted(named)}. {meant}"
        f"`imret sources{naming_options(store, collection)}` lists the folders."
    )


def near_sources(named: str, sources: Iterable[str]) -> list[str]:
    """Return up to three sources that a path may have been meant for: mistyped, or elsewhere."""
    path = escape_undecodable(os.path.abspath(named))
    slips = [source for source in sources if is_slip_of(named, source)]
    same_name = [source for source in sources if os.path.basename(source) == os.path.basename(path)]
    return list(dict.fromkeys([*slips, *same_name]))[:3]


def is_slip_of(named: str, source: str) -> bool:
    """Whether a path differs from a source in one of its components, and not by much: it may be mistyped."""
    ours = escape_undecodable(os.path.abspath(named)).split(os.sep)
    theirs = source.split(os.sep)
    differing = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    if len(ours) != len(theirs) or len(differing) != 1:
        return False
    one, other = (part.casefold() for part in differing[0])
    return difflib.SequenceMatcher(None, one, other).ratio() >= 0.75


def rename_source(
    store: Store,
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    collection: str = DEFAULT_COLLECTION,
    check: bool = True,
    on_points: Callable[[int], None] | None = None,
) -> int:
    """Give every picture of a source its place below another folder; its vector stays.

    For a folder that was moved. All points get their new place before the first old one is deleted: killed at
    any moment and called again, it ends in the same state.

    Args:
        store: An open store.
        old: The source: its path, whether it still exists or not.
        new: Where it is now.
        collection: Name.
        check: Refuse a folder that does not hold the pictures of the source, by a sample's content. Without,
            it need not exist here: a folder of another machine.
        on_points: Called with a number of points that have their new place.

    Returns:
        How many pictures of the source there were. 0 if it has been renamed before.

    Raises:
        DataError: If `old` is no source, or `new` lies within a source, or around one, or is one that holds
            pictures of its own, or does not hold those of `old`.
        StoreError: If the store fails. Call it again: what is done stays.
    """
    if not os.fspath(new):
        raise DataError(
            f"the new place of {quoted(os.fspath(old))} is empty. Say where the folder is now: "
            f"imret sources rename {quoted(os.fspath(old))} NEW{naming_options(store, collection)}"
        )
    target = os.path.realpath(path_on_disk(new))
    begun = store.state(collection)
    with closing(store.open(collection)) as opened:
        sources = opened.facet("source")
        source = find_source(os.fspath(old), sources)
        if source is None:
            others = sources.keys() - {escape_undecodable(target)}
            slip = any(is_slip_of(os.fspath(old), other) for other in others)
            if len(others) == len(sources) or slip:
                raise no_such_source(store, collection, os.fspath(old), sources)
            return 0
        where = naming_options(store, collection)
        if len(exact_sources(opened, source)) > 1:
            raise DataError(
                f"{source!r} stands for two folders, whose names differ in bytes that are written out alike. "
                "Give one of them another name on disk, and ingest it."
            )
        excluded = store.excluded(collection)
        _check_rename(opened, source, target, sources, where, excluded)
        if check:
            _check_holds(opened, source, target, where)
        images = sources[source]
    if source in excluded:
        store.exclude(collection, {escape_undecodable(target): excluded[source]})
    for version in versions(store, collection):
        with closing(version):
            give_places(version, source, lambda payload: (target, path_of(payload)), on_points=on_points)
            store.ledger(collection, version.version).forget(source)
    if source in excluded:
        store.exclude(collection, {source: ()})
    store.finish(collection, begun)
    return images


def forget_source(
    store: Store,
    source: str | os.PathLike[str],
    *,
    collection: str = DEFAULT_COLLECTION,
    on_points: Callable[[int], None] | None = None,
) -> int:
    """Remove what a collection holds of a source. The pictures themselves are never touched.

    Args:
        store: An open store.
        source: Its path, whether it still exists or not.
        collection: Name.
        on_points: Called with a number of points that were removed.

    Returns:
        How many pictures of the source there were.

    Raises:
        DataError: If it is no source of the collection.
        StoreError: If the store fails. Call it again: what is done stays.
    """
    begun = store.state(collection)
    with closing(store.open(collection)) as opened:
        sources = opened.facet("source")
    found = find_source(os.fspath(source), sources)
    if found is None:
        raise no_such_source(store, collection, os.fspath(source), sources)
    n_images = 0
    for version in versions(store, collection):
        with closing(version):
            roots = exact_sources(version, found)
            meant = roots & {os.path.realpath(source), os.path.abspath(source)}
            store.ledger(collection, version.version).forget(found)  # before the points that it speaks of
            n_images = n_images or sum(count_source(version, root) for root in meant or roots)
            for root in meant or roots:
                remove_points(version, root, on_points=on_points)
    if found in store.excluded(collection):
        store.exclude(collection, {found: ()})
    store.finish(collection, begun)
    return n_images


def versions(store: Store, collection: str) -> Iterator[Collection]:
    """Open the live version of a collection, then each that another encoder's rebuild has begun."""
    yield store.open(collection)
    live = store.live(collection)
    for identity in store.staged_versions(collection):
        if live is None or identity.fingerprint != live.fingerprint:
            yield store.open_version(collection, identity)


def give_places(
    opened: Collection,
    source: str,
    place: Callable[[Mapping[str, Any]], tuple[str, str]],
    *,
    renew: Callable[[dict[str, Any]], dict[str, Any]] = lambda payload: payload,
    on_points: Callable[[int], None] | None = None,
) -> int:
    """Give the points of a source other places, with new ids; where there is a point, that one stays.

    Args:
        opened: The version.
        source: As the collection names it.
        place: Gives for a payload the new source and the path below it; never the old ones.
        renew: Changes the new payload on the way.
        on_points: Called with a number of points that have their new place.

    Returns:
        How many points had the old place.
    """
    n_points = opened.count(of_source(source))
    while opened.count(of_source(source)):  # again where another program has added to it meanwhile
        # First all of them, then the first delete: a kill in between leaves the old ones or the new ones
        # whole, which is how a second call can tell them from the pictures of another folder.
        for points in opened.scan(of_source(source), vectors=True, batch_size=_BATCH):
            placed = _placed(points, place)
            known = opened.get(list(placed))
            new = {id_: moved for id_, moved in placed.items() if id_ not in known}
            if new:
                opened.upsert(
                    list(new),
                    np.stack([point.vector for point, _ in new.values() if point.vector is not None]),
                    [renew(payload) for _, payload in new.values()],
                )
                if opened.needs_optimize():
                    opened.optimize()
            if on_points is not None:
                on_points(len(points))
        opened.flush()
        for points in opened.scan(of_source(source), batch_size=_BATCH):
            placed = _placed(points, place)
            known = opened.get(list(placed))
            done = [point.id for point in points if point_id(*place(point.payload)) in known]
            if done:
                opened.delete(done)
    if n_points:
        opened.flush()
        opened.optimize()
    return n_points


def remove_points(opened: Collection, source: str, *, on_points: Callable[[int], None] | None = None) -> None:
    """Delete the points of a folder, and not those of another whose name is written out alike."""
    for points in scan_source(opened, source):
        opened.delete([point.id for point in points])
        if on_points is not None:
            on_points(len(points))
    opened.flush()


def _placed(
    points: list[Point], place: Callable[[Mapping[str, Any]], tuple[str, str]]
) -> dict[str, tuple[Point, dict[str, Any]]]:
    """Return each point with its payload at the new place, by its new id."""
    places = [(point, *place(point.payload)) for point in points]
    return {
        point_id(source, path): (point, payload_at(point.payload, source, path))
        for point, source, path in places
    }


def _check_rename(
    opened: Collection,
    source: str,
    target: str,
    sources: Mapping[str, int],
    where: str,
    excluded: Mapping[str, Sequence[str]],
) -> None:
    """Refuse a new place that would mix or double the pictures of two folders."""
    new = escape_undecodable(target)
    if new == source:
        raise DataError(f"{new!r} is the place of that source already; there is nothing to rename.")
    for other in sources.keys() - {source, new}:
        if overlap(other, new, {**excluded, new: excluded.get(source, ())}):
            relation = "lies within" if len(other) < len(new) else "holds"
            raise DataError(
                f"{new!r} {relation} {other!r}, a source of the collection as well: pictures would be stored "
                "twice.\n"
                f"Ingest the outer one: imret ingest {quoted(min(new, other, key=len))}{where}, "
                f"then: imret sources forget {quoted(source)}{where}"
            )
    refuse_mix(opened, source, target, sources, where)


def refuse_mix(
    opened: Collection, source: str, target: str, sources: Mapping[str, int], where: str, *, below: str = ""
) -> None:
    """Refuse to give the pictures of a source places in a folder that has pictures of its own.

    Args:
        opened: The collection.
        source: As the collection names it.
        target: The folder, absolute.
        sources: Pictures of each source of the collection.
        where: From `naming_options`.
        below: The path below the folder that the places are at.

    Raises:
        DataError: If the folder is a source, and neither's pictures are all among the other's.
    """
    new = escape_undecodable(target)
    if new in sources:
        n_both = _count_at_both(opened, source, target, below)
        # One within the other is a rename that was stopped, or the same folder ingested at both places.
        if n_both not in (sources[source], sources[new]):
            raise DataError(
                f"{new!r} is a source of its own, with {sources[new]:,} pictures, of which {n_both:,} are at "
                f"the place of the same one of {source!r}: a rename would mix two folders.\n"
                f"If all are there now: imret ingest {quoted(new)}{where}, "
                f"then: imret sources forget {quoted(source)}{where}"
            )


def _count_at_both(opened: Collection, source: str, target: str, below: str) -> int:
    """Return how many pictures of a source are stored at the same place below another one, too."""
    above = f"{below}/" if below else ""
    n_both = 0
    for points in opened.scan(of_source(source), batch_size=_BATCH):
        places = {point_id(target, above + path_of(point.payload)): point for point in points}
        n_both += sum(
            there.payload.get("sha256") == places[id_].payload.get("sha256")
            for id_, there in opened.get(list(places)).items()
        )
    return n_both


def _check_holds(opened: Collection, source: str, target: str, where: str) -> None:
    """Refuse a folder that does not hold the pictures of a source."""
    anyway = f"Rename all the same: imret sources rename {quoted(source)} {quoted(target)} --no-check{where}"
    if folder_state(target) != "present":
        state = folder_state(target)
        what = {"gone": "does not exist here", "empty": "is empty"}.get(state, "cannot be read")
        raise DataError(
            f"{escape_undecodable(target)!r} {what}, so it cannot be told whether it holds the pictures of "
            f"{source!r}. {anyway}"
        )
    agreement = compare(opened, source, target)
    if agreement.below:
        within = os.path.join(target, agreement.below)
        raise DataError(
            f"the pictures of {source!r} are in {escape_undecodable(within)!r}. "
            f"Say so: imret sources rename {quoted(source)} {quoted(within)}{where}"
        )
    if not agreement.moved:
        raise DataError(
            f"{agreement.found} of {agreement.sampled} pictures of {source!r} that were looked for are in "
            f"{escape_undecodable(target)!r}: too few for the same folder at another place. {anyway}"
        )
