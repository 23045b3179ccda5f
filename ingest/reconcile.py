"""What a collection lacks, and what it holds too much: decided batch by batch from the collection alone.

Nothing is kept on the side between runs. Hides how unchanged, touched, moved, copied and removed pictures
are told apart; encodes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from imret.datasets.scan import Ignored
from imret.errors import ImageError
from imret.escape import escape_undecodable
from imret.files import sha256_of, sha256_of_bytes
from imret.places.stores import NotThere
from imret.sources.presence import OutOfReach, Presence
from imret.sources.stored import count_source, scan_source
from imret.store import Collection, Filter, Match, Point
from imret.store.payload import make_payload, path_of, source_of
from ingest.content_sample import Sample
from ingest.decode_workers import IN_MEMORY_BYTES
from ingest.prefetch import map_prefetch
from ingest.report import Counters
from ingest.sources import UNKNOWN_SIZE, Record, Source
from ingest.units_met import UnitsMet, count_in_units

PLAN_BATCH = 256  # records looked up in the store at a time
# What is read to be hashed before the stored contents are looked up, and then decoded from memory.
_READ_BYTES = 128 << 20


@dataclass(frozen=True)
class Planned:
    """A picture that needs work.

    Attributes:
        record: The picture.
        known: What the collection holds for its place, if anything.
        duplicate: A stored picture with the same content, vector included, if there is one.
        data: Its bytes, if they have been read: not those of one that is larger than `IN_MEMORY_BYTES`.
        digest: sha256 of its content, if it has been read.
    """

    record: Record
    known: Point | None = None
    duplicate: Point | None = None
    data: bytes | None = None
    digest: str | None = None

    @property
    def held_bytes(self) -> int:
        """What it holds in memory."""
        return 0 if self.data is None else len(self.data)


ALMOST_NONE = 0.1  # of a source's points: with no more files than that, it looks like a mount point

_ALMOST_NONE_LEFT = "holds almost none of its pictures any more; `imret sources forget` takes it out"


class Reconciler:
    """Compares one source with one version of a collection.

    Args:
        target: The version to bring in line.
        source: What it shall equal.
        counters: Where what is settled here is counted.
        sample: Draws the unchanged files whose content is compared; None for all of them.
        hashes_new: Whether new and changed files are read for a content that is stored already.
    """

    def __init__(
        self,
        target: Collection,
        source: Source,
        counters: Counters,
        *,
        sample: Sample | None,
        hashes_new: bool = True,
    ) -> None:
        self.target = target
        self.source = source
        self.counters = counters
        # An empty collection has no duplicates, so a first ingest need not hash before it decodes.
        self._may_hold_duplicates = hashes_new and target.count() > 0
        self._here = escape_undecodable(source.root)
        self._sample = sample
        # Points of files that the walk met. Of two threads, each counts its own: what the plan found stored,
        # and what was written then.
        self._n_known = self._n_added = 0
        self._all_counted = True
        self._unseen: set[str] = set()  # what the walk could not look into
        self._units = UnitsMet(target, source.root) if source.kind == "shards" else None

    def plan(self, pool: Executor) -> Generator[Planned, None, None]:
        """Yield the pictures that need work; settle the others here, in batches of bounded size."""
        with ExitStack() as stack:
            if self.source.reads_ahead > 1:  # waits for a network, not for a core
                pool = stack.enter_context(ThreadPoolExecutor(self.source.reads_ahead, "imret-read"))
            for batch in stack.enter_context(closing(self._looked_up())):
                changed: list[Planned] = []
                same: list[tuple[Record, Point]] = []
                for record, point in batch:
                    self._n_known += point is not None and point.payload.get("source") == self._here
                    if self._units is not None:
                        self._units.meet(record, is_known=point is not None)
                    if point is None or not _same_file(record, point):
                        changed.append(Planned(record, point))
                    else:
                        same.append((record, point))
                if self._sample is None:
                    changed += self._settle_same(same, pool)
                else:
                    self._settle_unchanged(self._sample.draw(same))
                yield from self._read_ahead(changed, pool)
            if self._units is not None:
                self._units.end()
            if self._sample is not None:
                drawn, unread = self._sample.drawn()
                self._settle_unchanged(unread)
                yield from self._with_duplicates(self._settle_same(drawn, pool), pool)

    def _read_ahead(self, changed: list[Planned], pool: Executor) -> Iterator[Planned]:
        """Read what is worth it before it is decoded: to know its content, or for all that is far away."""
        if self._may_hold_duplicates:
            yield from self._with_duplicates(changed, pool)
        elif self.source.reads_ahead > 1:
            for some in _in_bytes(changed, _READ_BYTES):
                yield from _read(some, pool)
        else:
            yield from changed

    def note_added(self, n: int) -> None:
        """Take note of new points for files that the walk met and the collection did not know."""
        self._n_added += n

    def note_deleted(self) -> None:
        """Take note that points were deleted, so that `prune` looks at each of the others."""
        self._all_counted = False

    def is_stored(self) -> bool:
        """Whether there are as many points as files were met that had one or got one."""
        return count_source(self.target, self.source.root) >= self._n_known + self._n_added

    def has_left(self, point: Point) -> bool:
        """Whether a stored picture of this source is clearly no longer at its place."""
        is_mine = source_of(point.payload) == self.source.root
        return is_mine and self.presence([point])[0] == "gone"

    def prune(self, *, missing: bool) -> None:
        """Deal with the points whose file is gone; call it when the plan has been carried out.

        Where the source has as many points as files were met that have one, no file is gone, and no point is
        looked at: each point belongs to one place, and each of those places was met. What another process
        adds to the source meanwhile makes it look; what it deletes can hide as many until the next run.

        One whose content also stands at a place that still exists is what a kill left of a move, or a copy
        that was deleted: it goes. The others go only with `missing`, and so does what is left out by its name
        now, whether it is there or not. What is out of reach never goes. Nor does what is gone where at most
        `ALMOST_NONE` of the source's points have a file: so looks a mount point that something was put into.
        """
        n_with_file = self._n_known + self._n_added
        if self._units is not None:
            self._prune_units(n_with_file, missing=missing)
            return
        n_points = count_source(self.target, self.source.root) - count_in_units(self.target, self.source.root)
        if self._all_counted and n_points == n_with_file:
            return
        few_are_left = n_with_file <= ALMOST_NONE * n_points
        for batch in scan_source(self.target, self.source.root):
            points = [point for point in batch if "unit" not in point.payload]  # not those of its containers
            gone, left_out = [], []
            for point, found in zip(points, self.presence(points), strict=True):
                if found == "gone":
                    gone.append(point)
                elif found == "left out":
                    left_out.append(point)
                elif isinstance(found, OutOfReach):
                    folder = os.path.join(self.source.root, *found.folder.split("/")).rstrip("/") or "/"
                    self.counters.keep(folder, found.reason)
            if gone and (few_are_left or not missing):
                elsewhere = self._contents_still_held(gone)
                kept = [point for point in gone if point.payload["sha256"] not in elsewhere]
                if missing:
                    for _ in kept:
                        self.counters.keep(self.source.root, _ALMOST_NONE_LEFT)
                else:
                    self.counters.count("missing", len(kept), progress=False)
                gone = [point for point in gone if point.payload["sha256"] in elsewhere]
            if not missing:
                self.counters.count("left_out", len(left_out), progress=False)
                left_out = []
            if gone or left_out:
                self.target.delete([point.id for point in (*gone, *left_out)])
                self.counters.count("removed", len(gone) + len(left_out), progress=False)

    def _prune_units(self, n_with_file: int, *, missing: bool) -> None:
        """Do what `prune` does for pictures in containers: each was met in its container, or is gone."""
        assert self._units is not None
        units = self._units.stored()
        few_are_left = n_with_file <= ALMOST_NONE * sum(units.values())
        for unit in units:
            if not self._selects(unit):
                continue
            (state,) = self.source.presence([f"{unit}/"], unseen=self._unseen).values()
            if isinstance(state, OutOfReach):
                for _ in range(units[unit]):
                    self.counters.keep(os.path.join(self.source.root, state.folder), state.reason)
                continue
            for points in self._units.not_met(unit, is_there=state == "here"):
                if missing and not few_are_left:
                    self.target.delete([point.id for point in points])
                    self.counters.count("removed", len(points), progress=False)
                elif missing:
                    for _ in points:
                        self.counters.keep(self.source.root, _ALMOST_NONE_LEFT)
                else:
                    self.counters.count("missing", len(points), progress=False)

    def _selects(self, unit: str) -> bool:
        """Whether a container of the source is one of those that the run is about."""
        selects = getattr(self.source, "selects", None)
        return selects is None or bool(selects(unit))

    def presence(self, points: Sequence[Point]) -> list[Presence]:
        """Return for each point of this source whether its picture is at its place: see `presence`."""
        paths = [path_of(point.payload) for point in points]
        found = self.source.presence(paths, unseen=self._unseen)
        return [found[path] for path in paths]

    def _looked_up(self) -> Generator[list[tuple[Record, Point | None]], None, None]:
        """Yield records with what the collection holds for their places; it answers ahead, in a thread.

        Batches hold different places, so what is written for one changes nothing that is read for the next.
        """
        records = self._records()
        batches = iter(lambda: list(islice(records, PLAN_BATCH)), [])

        def look_up(batch: list[Record]) -> list[tuple[Record, Point | None]]:
            ids = [record.id for record in batch]
            known = self.target.get(ids)
            return [(record, known.get(id_)) for record, id_ in zip(batch, ids, strict=True)]

        with (
            ThreadPoolExecutor(1, "imret-look-up") as line,
            closing(map_prefetch(look_up, batches, line, ahead=lambda: 3)) as answered,
        ):
            yield from answered

    def _records(self) -> Iterator[Record]:
        for entry in self.source.entries():
            if isinstance(entry, Record):
                yield entry
            elif isinstance(entry, Ignored):
                self.counters.ignore(self.source.root, entry)
            else:
                if entry.unseen:
                    self._unseen.add(entry.path)
                self.counters.skip(self.source.root, entry.path, entry.reason)

    def _settle_same(self, pairs: list[tuple[Record, Point]], pool: Executor) -> list[Planned]:
        """Compare the content of files whose size and time are as before; return those with another."""
        same: list[tuple[Record, Point]] = []
        others: list[Planned] = []
        held_bytes = 0
        for some in _in_bytes([Planned(record, point) for record, point in pairs], _READ_BYTES):
            for planned in _read(some, pool):
                assert planned.known is not None
                if planned.digest == planned.known.payload.get("sha256"):
                    same.append((planned.record, planned.known))
                    continue
                held_bytes += planned.held_bytes
                others.append(planned if held_bytes <= _READ_BYTES else replace(planned, data=None))
                # What cannot be read is told when it is decoded.
                self.counters.count("other_content", planned.digest is not None, progress=False)
        self.counters.count("compared", len(pairs), progress=False)
        self._settle_unchanged(same)
        return others

    def _settle_unchanged(self, pairs: list[tuple[Record, Point]]) -> None:
        """Count files that are as they were; what is stored of them may be of another category."""
        refiled = [pair for pair in pairs if pair[1].payload.get("category") != _printable_category(pair[0])]
        self._renew_payloads(refiled, "updated")
        if len(pairs) > len(refiled):
            self.counters.count("unchanged", len(pairs) - len(refiled))

    def _with_duplicates(self, changed: list[Planned], pool: Executor) -> Iterator[Planned]:
        """Hash pictures and look their content up, so that what is stored already is not encoded again."""
        for some in _in_bytes(changed, _READ_BYTES):
            touched: list[tuple[Record, Point]] = []
            hashed: list[Planned] = []
            for planned in _read(some, pool):
                if planned.digest is None:
                    yield planned  # decoding it will say what is wrong
                elif planned.known is not None and planned.known.payload.get("sha256") == planned.digest:
                    touched.append((planned.record, planned.known))
                else:
                    hashed.append(planned)
            self._renew_payloads(touched, "unchanged")
            duplicates = self._duplicates({planned.digest for planned in hashed if planned.digest})
            for planned in hashed:
                duplicate = duplicates.get(planned.digest or "")
                yield planned if duplicate is None else Planned(planned.record, planned.known, duplicate)

    def _duplicates(self, digests: set[str]) -> dict[str, Point]:
        """Return for each content one stored point with its vector, a moved one rather than a copy."""
        duplicates: dict[str, Point] = {}
        if not digests:
            return duplicates
        for points in self.target.scan(_of_contents(digests), vectors=True):
            for point in points:
                digest = point.payload["sha256"]
                if digest not in duplicates or self.has_left(point):
                    duplicates[digest] = point
        return duplicates

    def _renew_payloads(self, pairs: list[tuple[Record, Point]], counted_as: str) -> None:
        """Renew the payload of pictures whose content, and so vector, is the same."""
        if pairs:
            self.target.overwrite_payloads(
                [point.id for _, point in pairs], [payload_like(record, point) for record, point in pairs]
            )
            self.counters.count(counted_as, len(pairs))

    def _contents_still_held(self, gone: list[Point]) -> set[str]:
        digests = {point.payload["sha256"] for point in gone}
        held: set[str] = set()
        for mine in scan_source(self.target, self.source.root, contents=digests):
            for point, found in zip(mine, self.presence(mine), strict=True):
                if found == "here":
                    held.add(point.payload["sha256"])
        return held


def _read(plan: Sequence[Planned], pool: Executor) -> Iterator[Planned]:
    """Yield pictures with their digest, and their bytes if they are few; what was read is not read again."""
    return pool.map(_read_one, plan)


def _read_one(planned: Planned) -> Planned:
    """Return a picture with what was read of it; without, where decoding it will say what is wrong."""
    if planned.digest is not None:
        return planned
    record = planned.record
    try:
        if record.size_bytes > IN_MEMORY_BYTES:
            with record.open() as file:
                return replace(planned, digest=sha256_of(file))
        data = record.read()
    except (OSError, ImageError, NotThere):
        return planned
    return replace(planned, data=data, digest=sha256_of_bytes(data))


def _in_bytes(plan: Iterable[Planned], most: int) -> Iterator[list[Planned]]:
    """Yield pictures in lists of at most so many bytes, by what was listed of them; or of one."""
    some, n_bytes = list[Planned](), 0
    for planned in plan:
        n = min(planned.record.size_bytes, IN_MEMORY_BYTES)
        if some and n_bytes + n > most:
            yield some
            some, n_bytes = [], 0
        some.append(planned)
        n_bytes += n
    if some:
        yield some


def payload_of(
    record: Record, *, sha256: str, width: int, height: int, size_bytes: int | None = None
) -> dict[str, Any]:
    """Return the payload of a record whose content is known; its size where only reading it has told."""
    return make_payload(
        source=record.source,
        path=record.path,
        category=record.category,
        sha256=sha256,
        width=width,
        height=height,
        size_bytes=record.size_bytes if size_bytes is None else size_bytes,
        modified=record.modified,
        unit=record.unit,
        at=record.at,
        caption=record.caption,
        meta=record.meta,
    )


def payload_like(record: Record, point: Point) -> dict[str, Any]:
    """Return the payload of a record whose content is that of a stored point."""
    kept = ("sha256", "width", "height", *(("size_bytes",) if record.size_bytes == UNKNOWN_SIZE else ()))
    return payload_of(record, **{name: point.payload[name] for name in kept})


def _of_contents(digests: set[str]) -> Filter:
    return Filter(must=(Match("sha256", tuple(sorted(digests))),))


def _same_file(record: Record, point: Point) -> bool:
    if record.size_bytes == UNKNOWN_SIZE:  # an address stands for what was there when it was read
        return True
    stored = (point.payload.get("size_bytes"), point.payload.get("modified"))
    return stored == (record.size_bytes, record.modified)


def _printable_category(record: Record) -> str | None:
    return None if record.category is None else escape_undecodable(record.category)
