"""Reconcile a collection with folders: after a run that ends well, the collection equals the folders.

Scanning and decoding run ahead in threads, encoding runs in the caller's thread, storing runs behind;
bounded queues join them, so memory does not grow with the number of pictures. Nothing is kept on the
side: what to do follows from the collection alone, so a killed run is resumed by running again.
The stages are plain functions over batches.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from imret.encoder import Encoder
from imret.errors import DataError, ImageError, ModelMismatch
from imret.images import fit_image, load_image
from imret.payload import make_payload, path_of, printable
from imret.store import Collection, Filter, Identity, Match, Point, Store
from ingest.report import Report
from ingest.sources import FolderSource, Ignored, Record, Skipped

PLAN_BATCH = 256  # records looked up in the store at a time
FLUSH_EVERY_S = 10.0  # at most this much work is at risk from a power cut; a kill loses nothing

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """A picture that needs work.

    Attributes:
        record: The picture.
        known: What the collection holds for its place, if anything.
        twin: A stored picture with the same content, vector included, if there is one.
    """

    record: Record
    known: Point | None = None
    twin: Point | None = None


@dataclass(frozen=True)
class Decoded:
    """A picture ready for the image tower: pixels (H, W, 3) uint8 at model size, and its payload."""

    planned: Planned
    pixels: NDArray[np.uint8]
    payload: dict[str, Any]


def ingest(
    store: Store,
    sources: Sequence[FolderSource],
    *,
    encoder: Encoder,
    collection: str = "photos",
    prune: bool = False,
    rebuild: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int = 100_000_000,
    on_total: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Make a collection equal to folders of pictures, doing only what is needed.

    New and changed pictures are decoded and encoded; moved ones keep their vector; unchanged ones cost
    one stat. A bad file is skipped and reported. Anything worse (the store lost, the encoder failing)
    raises, and what was stored by then stays: the next run continues there.

    Args:
        store: Where the collection lives.
        sources: Folders; a picture belongs to the folder it was found through.
        encoder: Makes the vectors; its towers load only if there is something to encode.
        collection: Name; made if it is new.
        prune: Delete the points of pictures that are gone from these folders.
        rebuild: With an encoder other than the collection's, build a new version beside the live one and
            switch to it when it is complete. Without it such an encoder is refused.
        batch_size: Pictures per encode; default 32 on a CPU, 256 on a GPU.
        workers: Decode threads; default one per core.
        max_pixels: Larger pictures are skipped, before decoding.
        on_total: Called with the number of files to expect, once known.
        on_progress: Called with a number of pictures dealt with.
        on_stage: Called with "index" when the pictures are stored and the index is built.

    Returns:
        The account of the run.

    Raises:
        DataError: If no folder holds a picture, or one holds none any more though the collection has
            pictures from it and `prune` is set (an unmounted drive looks like that), or if a rebuild
            would lose pictures of folders that were not named.
        ModelMismatch: If the collection was made by another encoder and `rebuild` is not set.
        StoreError: If the store fails; what it acknowledged stays.
    """
    started = time.monotonic()
    for source in sources:
        _check_not_empty(source, store, collection, prune=prune)
    identity = Identity(encoder.model_id, encoder.fingerprint, encoder.dim)
    target, live = _target(store, collection, identity, sources, rebuild=rebuild)
    report = Report(
        collection=collection,
        store=store.address,
        engine=store.engine,
        model=identity.model,
        fingerprint=identity.fingerprint,
        sources=[printable(source.root) for source in sources],
    )
    run = _Run(
        target,
        encoder,
        report,
        batch_size=batch_size or (32 if encoder.device == "cpu" else 256),
        workers=workers or os.cpu_count() or 1,
        max_pixels=max_pixels,
        on_progress=on_progress or (lambda n: None),
    )
    try:
        if on_total is not None:
            threading.Thread(target=lambda: on_total(sum(s.count() for s in sources)), daemon=True).start()
        for source in sources:
            run.reconcile(source, prune=prune)
        if on_stage is not None:
            on_stage("index")
        target.flush()
        target.optimize()
        if not live:
            store.switch(collection, identity)
        report.complete = True
    finally:
        report.seconds = time.monotonic() - started
    return report


def _check_not_empty(source: FolderSource, store: Store, name: str, *, prune: bool) -> None:
    """Refuse a folder that holds no picture, before anything is made or removed for it."""
    if any(not isinstance(entry, Ignored) for entry in source.entries()):
        return
    folder, n_stored = printable(source.root), 0
    if store.live(name) is not None:
        with closing(store.open(name)) as live:
            n_stored = live.count(_of(source))
    if n_stored == 0:
        raise DataError(
            f"no pictures in {folder!r}. Expected files such as .jpg or .png, in one sub-folder per category."
        )
    if prune:
        raise DataError(
            f"{folder!r} holds no picture any more, but the collection holds {n_stored} from it. "
            "Is its drive mounted? Nothing was removed."
        )


def _of(source: FolderSource) -> Filter:
    return Filter(must=(Match("source", (printable(source.root),)),))


def _target(
    store: Store, name: str, identity: Identity, sources: Sequence[FolderSource], *, rebuild: bool
) -> tuple[Collection, bool]:
    """Return the version to fill, and whether it is the live one already."""
    live = store.live(name)
    if live is None:
        target = store.open_version(name, identity)
        # There is nothing to protect yet: a first ingest can be searched while it runs.
        store.switch(name, identity)
        return target, True
    if live.fingerprint == identity.fingerprint:
        return store.open_version(name, identity), True
    named = " ".join(_quoted(source.root) for source in sources)
    if not rebuild:
        raise ModelMismatch(
            f"collection {name!r} was built with {live.model!r} ({live.fingerprint[:8]}), "
            f"but this ingest uses {identity.model!r} ({identity.fingerprint[:8]}).\n"
            f"Ingest with --model {live.model}, or embed every picture again with the new model: "
            f"imret ingest {named} --model {identity.model} --rebuild"
        )
    with closing(store.open(name)) as old:
        kept = set(old.facet("source"))
    left_out = sorted(kept - {printable(source.root) for source in sources})
    if left_out:
        also = " ".join(_quoted(folder) for folder in left_out)
        raise DataError(
            f"collection {name!r} also holds pictures from {also}; a rebuild without them would lose them.\n"
            f"Name every folder: imret ingest {named} {also} --model {identity.model} --rebuild, "
            f"or fill another collection with --collection NAME"
        )
    return store.open_version(name, identity), False


def _quoted(folder: str) -> str:
    return f"'{printable(folder)}'" if " " in folder else printable(folder)


class _Run:
    """One run over one version of a collection: the stages, joined by bounded queues."""

    def __init__(
        self,
        target: Collection,
        encoder: Encoder,
        report: Report,
        *,
        batch_size: int,
        workers: int,
        max_pixels: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self.target = target
        self.encoder = encoder
        self.report = report
        self.batch_size = batch_size
        self.workers = workers
        self.max_pixels = max_pixels
        self.on_progress = on_progress
        # An empty collection has no twins, so a first ingest need not hash before it decodes.
        self.may_hold_twins = target.count() > 0
        self.moved_away: set[str] = set()
        self.counting = threading.Lock()  # the scan and the store both count
        self.last_flush = time.monotonic()

    def reconcile(self, source: FolderSource, *, prune: bool) -> None:
        """Bring the points of one source in line with its folder."""
        with ThreadPoolExecutor(1, "imret-store") as writer, ThreadPoolExecutor(self.workers, "imret-decode") as pool:
            writes: deque[Future[None]] = deque()
            batches = _run_ahead(self._batches(source, pool), depth=2)
            try:
                for decoded, twins in batches:
                    points = [self._reused(planned) for planned in twins]
                    if decoded:
                        vectors = self.encoder.encode_pixels(np.stack([one.pixels for one in decoded]))
                        self.report.encoded += len(decoded)
                        points += [
                            (one.planned, vector, one.payload)
                            for one, vector in zip(decoded, vectors, strict=True)
                        ]
                    writes.append(writer.submit(self._write, points, source))
                    while len(writes) > 2 or (writes and writes[0].done()):
                        writes.popleft().result()
                while writes:
                    writes.popleft().result()
            finally:
                batches.close()
                for write in writes:
                    write.cancel()
        self._sweep(source, prune=prune)

    def _batches(
        self, source: FolderSource, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Decoded], list[Planned]]]:
        """Yield what to encode, in full batches, and what only needs its twin's vector."""
        decoded: list[Decoded] = []
        twins: list[Planned] = []
        for outcome in _map_ahead(self._decode, self._plan(source, pool), pool, ahead=2 * self.batch_size):
            if isinstance(outcome, Decoded):
                decoded.append(outcome)
            elif isinstance(outcome, Planned):
                twins.append(outcome)
            else:
                self._skip(source, outcome)
            if len(decoded) == self.batch_size or len(twins) == PLAN_BATCH:
                yield decoded, twins
                decoded, twins = [], []
        if decoded or twins:
            yield decoded, twins

    def _plan(self, source: FolderSource, pool: ThreadPoolExecutor) -> Iterator[Planned]:
        """Yield the pictures that need work; settle the others here."""
        records = self._records(source)
        while batch := list(islice(records, PLAN_BATCH)):
            known = self.target.get([record.id for record in batch])
            changed: list[Planned] = []
            refiled: list[tuple[Record, Point]] = []
            for record in batch:
                point = known.get(record.id)
                if point is None or not _same_file(record, point):
                    changed.append(Planned(record, point))
                elif _category(point) != _printable_category(record):
                    refiled.append((record, point))
                else:
                    self._count("unchanged")
            self._refile(refiled, "updated")
            yield from self._with_twins(changed, source, pool) if self.may_hold_twins else changed

    def _records(self, source: FolderSource) -> Iterator[Record]:
        for entry in source.entries():
            if isinstance(entry, Record):
                yield entry
            elif isinstance(entry, Ignored):
                self.report.ignored[entry.reason] += 1
            else:
                self._skip(source, entry)

    def _with_twins(self, changed: list[Planned], source: FolderSource, pool: ThreadPoolExecutor) -> Iterator[Planned]:
        """Hash pictures and look their content up, so that what is stored already is not encoded again."""
        touched: list[tuple[Record, Point]] = []
        hashed: list[tuple[Planned, str]] = []
        for planned, digest in zip(changed, pool.map(_sha256_if_readable, [p.record.file for p in changed]), strict=True):
            if digest is None:
                yield planned  # decoding it will say what is wrong
            elif planned.known is not None and planned.known.payload.get("sha256") == digest:
                touched.append((planned.record, planned.known))
            else:
                hashed.append((planned, digest))
        self._refile(touched, "unchanged")
        twins = self._twins({digest for _, digest in hashed}, source)
        for planned, digest in hashed:
            twin = twins.get(digest)
            yield Planned(planned.record, planned.known, twin) if twin is not None else planned

    def _twins(self, digests: set[str], source: FolderSource) -> dict[str, Point]:
        """Return for each content one stored point with its vector, a moved one rather than a copy."""
        found: dict[str, Point] = {}
        if not digests:
            return found
        for points in self.target.scan(Filter(must=(Match("sha256", tuple(sorted(digests))),)), vectors=True):
            for point in points:
                digest = point.payload["sha256"]
                if digest not in found or _has_left(point, source):
                    found[digest] = point
        return found

    def _decode(self, planned: Planned) -> Decoded | Planned | Skipped:
        """Read, hash, decode and resize one picture; one with a twin needs none of it."""
        if planned.twin is not None:
            return planned
        record, preprocess = planned.record, self.encoder.preprocess
        try:
            with open(record.file, "rb") as file:
                # Decoded before it is hashed, through one handle: what is no picture is refused unread,
                # and no file is ever in memory whole.
                image = load_image(file, max_pixels=self.max_pixels)
                file.seek(0)
                digest = _sha256_of(file)
            pixels = fit_image(
                image,
                size=preprocess.size,
                interpolation=preprocess.interpolation,
                resize_mode=preprocess.resize_mode,
                fill_color=preprocess.fill_color,
            )
        except ImageError as error:
            return Skipped(record.path, str(error))
        except FileNotFoundError:
            return Skipped(record.path, "gone while the folder was read")
        except OSError as error:
            return Skipped(record.path, f"cannot be read: {error.strerror}")
        except MemoryError:
            return Skipped(record.path, "not enough memory to decode it")
        width, height = image.size
        return Decoded(planned, pixels, _payload(record, sha256=digest, width=width, height=height))

    def _reused(self, planned: Planned) -> tuple[Planned, NDArray[np.float32], dict[str, Any]]:
        twin = planned.twin
        assert twin is not None and twin.vector is not None
        kept = {name: twin.payload[name] for name in ("sha256", "width", "height")}
        return planned, twin.vector, _payload(planned.record, **kept)

    def _write(
        self, points: list[tuple[Planned, NDArray[np.float32], dict[str, Any]]], source: FolderSource
    ) -> None:
        """Store a batch, then delete what it replaces: a kill in between leaves a spare, never a gap."""
        self.target.upsert(
            [planned.record.id for planned, _, _ in points],
            np.stack([vector for _, vector, _ in points]),
            [payload for _, _, payload in points],
        )
        left: list[str] = []
        for planned, _, _ in points:
            twin = planned.twin
            if twin is not None and twin.id not in self.moved_away and _has_left(twin, source):
                self.moved_away.add(twin.id)
                left.append(twin.id)
                self._count("moved")
            else:
                self._count("added" if planned.known is None else "updated")
        if left:
            self.target.delete(left)
        if time.monotonic() - self.last_flush > FLUSH_EVERY_S:
            self.target.flush()
            self.last_flush = time.monotonic()

    def _refile(self, pairs: list[tuple[Record, Point]], counted_as: str) -> None:
        """Renew the payload of pictures whose content, and so vector, is the same."""
        if pairs:
            self.target.overwrite_payloads(
                [point.id for _, point in pairs],
                [
                    _payload(record, **{name: point.payload[name] for name in ("sha256", "width", "height")})
                    for record, point in pairs
                ],
            )
        for _ in pairs:
            self._count(counted_as)

    def _sweep(self, source: FolderSource, *, prune: bool) -> None:
        """Deal with the points whose file is gone.

        One whose content also stands at a place that still exists is what a kill left of a move, or a
        copy that was deleted: it goes. The others go only with `prune`.
        """
        for points in self.target.scan(_of(source)):
            gone = [point for point in points if not source.holds(path_of(point.payload))]
            if not gone:
                continue
            if not prune:
                elsewhere = self._contents_still_held(gone, source)
                kept = [point for point in gone if point.payload["sha256"] not in elsewhere]
                self.report.missing += len(kept)
                gone = [point for point in gone if point.payload["sha256"] in elsewhere]
            if gone:
                self.target.delete([point.id for point in gone])
                self.report.removed += len(gone)

    def _contents_still_held(self, gone: list[Point], source: FolderSource) -> set[str]:
        digests = tuple(sorted({point.payload["sha256"] for point in gone}))
        return {
            point.payload["sha256"]
            for points in self.target.scan(Filter(must=(Match("sha256", digests),)))
            for point in points
            if point.payload["source"] == printable(source.root) and source.holds(path_of(point.payload))
        }

    def _count(self, what: str) -> None:
        with self.counting:
            setattr(self.report, what, getattr(self.report, what) + 1)
            self.on_progress(1)

    def _skip(self, source: FolderSource, skipped: Skipped) -> None:
        with self.counting:
            self.report.skip(source.root, skipped.path, skipped.reason)
            self.on_progress(1)


def _payload(record: Record, *, sha256: str, width: int, height: int) -> dict[str, Any]:
    return make_payload(
        source=record.source,
        path=record.path,
        category=record.category,
        sha256=sha256,
        width=width,
        height=height,
        size_bytes=record.size_bytes,
        modified=record.modified,
    )


def _same_file(record: Record, point: Point) -> bool:
    return bool(
        point.payload.get("size_bytes") == record.size_bytes and point.payload.get("modified") == record.modified
    )


def _category(point: Point) -> str | None:
    return point.payload.get("category")


def _printable_category(record: Record) -> str | None:
    return None if record.category is None else printable(record.category)


def _has_left(point: Point, source: FolderSource) -> bool:
    """Whether a stored picture of this source is no longer at its place."""
    return point.payload["source"] == printable(source.root) and not source.holds(path_of(point.payload))


def _sha256_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _sha256_if_readable(name: str) -> str | None:
    try:
        with open(name, "rb") as file:
            return _sha256_of(file)
    except OSError:
        return None


def _map_ahead(
    function: Callable[[T], Any], items: Iterator[T], pool: ThreadPoolExecutor, *, ahead: int
) -> Iterator[Any]:
    """Yield function(item) in order, computed in a pool at most `ahead` items in advance."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _run_ahead(items: Iterator[T], *, depth: int) -> Iterator[T]:
    """Yield items made by another thread, at most `depth` of them in advance; errors come through in order."""
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(entry: tuple[T | None, BaseException | None, bool]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer((item, None, False)):
                    return
            offer((None, None, True))
        except BaseException as error:
            offer((None, error, True))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="imret-scan", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
