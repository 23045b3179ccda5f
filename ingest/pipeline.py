"""Folders into a collection: after a run that ends well, the collection equals the folders.

Scanning, decoding and encoding run ahead in threads, decoding for a GPU in processes; storing runs behind.
Bounded queues join them, so memory does not grow with the number of pictures. What to do is decided in
`ingest.reconcile` from the collection alone, so a killed run is resumed by running again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import ChangedMeanwhile, StoreError
from imret.models.known_models import note_model
from imret.store import Collection, Store
from ingest.content_sample import Sample, draw_from
from ingest.decode_planned import Decoded, DecodingPlanned
from ingest.decode_workers import Decoders
from ingest.excluded import inherited, recalled, to_remember
from ingest.prefetch import in_lists, map_prefetch, prefetched
from ingest.priority import give_way
from ingest.reconcile import PLAN_BATCH, Planned, Reconciler, payload_like
from ingest.report import Counters, Report, empty_report
from ingest.settle import notes_after, settle
from ingest.sources import Source
from ingest.target import find_target, with_pictures

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from ingest.units import ByUnits

FLUSH_EVERY_S = 10.0  # at most this much work is at risk from a power cut; a kill loses nothing
# Batches that may wait with their vectors while the index is built: a GPU goes on meanwhile.
_ENCODED_AHEAD = 32
# From so many pictures in a folder on, processes decode for a GPU; they take seconds to start.
LONG = 3_000
_CORES_FOR_PROCESSES = 4
_ATTEMPTS = 3  # where another program replaces the version that is filled by one of the same model


def ingest(
    store: Store,
    sources: Sequence[Source],
    *,
    encoder: QueryEncoder,
    collection: str = "photos",
    prune: bool = False,
    rebuild: bool = False,
    moved_from: Sequence[str] = (),
    second_copy: bool = False,
    check_content: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
    gives_way: bool = False,
    on_total: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_encoder: Callable[[], None] | None = None,
    by_units: ByUnits | None = None,
) -> Report:
    """Make a collection equal to folders of pictures, doing only what is needed.

    New and changed pictures are decoded and encoded; moved ones keep their vector; unchanged ones cost
    one stat, and a few of them a look at their content. A bad file is skipped and reported. Anything worse
    (the store lost, the encoder failing) raises, and what was stored by then stays: the next run continues
    there.

    Where another program replaces the live version meanwhile by one of the same model, all is compared with
    that one, too. No picture of which a run that ended well has said that it is stored is lost by that, nor
    by a rebuild: see `imret.store.protocol.Store`.

    Args:
        store: Where the collection lives.
        sources: Folders; a picture belongs to the folder it was found through.
        encoder: Makes the vectors; its towers load only if there is something to encode. A `LazyEncoder`
            loads torch only then, too.
        collection: Name; made if it is new.
        prune: Delete the points of pictures that are gone from these folders.
        rebuild: With an encoder other than the collection's, build a new version beside the live one and
            switch to it when it is complete. Without it such an encoder is refused.
        moved_from: Sources of the collection that have moved to one of these folders: each picture of them
            gets its place there, and keeps its vector.
        second_copy: A folder that holds the pictures of a source that is gone is a copy all the same.
        check_content: Compare the content of every file, also where size and time are as before, and not
            of a few drawn at random only.
        batch_size: Pictures per encode; default 32 on a CPU, 256 on a GPU.
        workers: Pictures decoded at a time, in threads or, for a CUDA device, processes; default one per
            core.
        max_pixels: As for `imret.images.decode.load_image`: larger pictures are skipped.
        gives_way: Let what else computes on this machine, such as searches in this process, go first.
        on_total: Called with the number of files to expect, once known.
        on_progress: Called with a number of pictures dealt with.
        on_stage: Called with "load" when the model is loaded, which is when the first batch is decoded, with
            "index" when the index is built, at the end and where it lags behind what is stored, and with
            "ingest" when pictures follow.
        on_encoder: Called once, when the first picture to be encoded is decoded, before a tower loads.
        by_units: How sources are ingested unit by unit; by default all but folders of this machine are, one
            unit after the other.

    Returns:
        The account of the run.

    Raises:
        DataError: If no folder holds a picture (or only such of which the collection has pictures while
            `prune` is set: an unmounted drive looks like that), or if a rebuild would lose pictures: of
            folders that were not named, or that are gone, away or damaged now. If folders overlap, or one
            seems to be a source that has moved: see `ingest.settle.settle`.
        ChangedMeanwhile: If another program made a version of another model live, or deleted the
            collection.
        ModelMismatch: If the collection was made by another encoder and `rebuild` is not set.
        StoreError: If the store fails; what it acknowledged stays.
    """
    attempt = partial(
        _ingest_once,
        store,
        sources,
        encoder=encoder,
        collection=collection,
        prune=prune,
        rebuild=rebuild,
        moved_from=moved_from,
        second_copy=second_copy,
        check_content=check_content,
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels,
        gives_way=gives_way,
        on_total=on_total,
        on_progress=on_progress,
        on_stage=on_stage,
        on_encoder=on_encoder,
        by_units=by_units,
    )
    for n_replaced in range(_ATTEMPTS):
        try:
            report = attempt()
        except ChangedMeanwhile:
            live = store.live(collection)
            is_last = n_replaced == _ATTEMPTS - 1
            if is_last or live is None or not encoder.embeds_as(live.fingerprint):
                raise
        else:
            if n_replaced:
                report.notes.append(
                    "another command replaced the collection meanwhile; counted is what the new one lacked"
                )
            return report
    raise AssertionError("unreachable")


def _ingest_once(
    store: Store,
    sources: Sequence[Source],
    *,
    encoder: QueryEncoder,
    collection: str,
    prune: bool,
    rebuild: bool,
    moved_from: Sequence[str],
    second_copy: bool,
    check_content: bool,
    on_total: Callable[[int], None] | None,
    on_progress: Callable[[int], None] | None,
    on_stage: Callable[[str], None] | None,
    by_units: ByUnits | None,
    **running: Any,
) -> Report:
    """Do what `ingest` does, unless another program switches versions meanwhile; `running` is for `Run`."""
    started = time.monotonic()
    sources = recalled(store, sources, collection)
    sources, without = with_pictures(sources, store, collection, prune=prune, rebuild=rebuild)
    settlement = settle(store, sources, collection=collection, moved_from=moved_from, second_copy=second_copy)
    sources = inherited(store, sources, collection, settlement)
    with find_target(
        store, collection, encoder, sources, taken_over=settlement.taken_over, rebuild=rebuild
    ) as target:
        report = empty_report(store, target.version, [source.root for source in sources])
        report.without_pictures += without
        report.notes += settlement.notes
        target.excluded = to_remember(sources, settlement)
        target.remember()
        note_model(encoder.files, notify=report.notes.append)  # so that a search asks nothing
        report.taken_over = target.take_over(settlement)
        run = Run(
            target.version,
            encoder,
            Counters(report, on_progress),
            on_stage=on_stage,
            on_stored=target.go_live,
            by_units=by_units or _one_after_the_other(store),
            **running,
        )
        try:
            _count_aside(sources, on_total)
            reconcilers = run.reconcile(sources, check_content=check_content, prune=prune)
            if not second_copy:
                report.notes += notes_after(settlement, target.version, sources)
            if on_stage is not None:
                on_stage("index")
            target.complete(reconcilers, prune=prune, catch_up=lambda: run.catch_up(sources, prune=prune))
            report.complete = True
        except StoreError as error:
            if target.is_replaced():  # that is what went wrong, whatever it showed at
                raise target.replaced() from error
            raise
        finally:
            run.decoders.close()
            report.seconds = time.monotonic() - started
    return report


def _count_aside(sources: Sequence[Source], on_total: Callable[[int], None] | None) -> None:
    """Count the files to expect, if somebody wants to know, in a thread: nothing waits for it."""
    if on_total is None:
        return

    def count() -> None:
        counts = [source.count() for source in sources]
        if None not in counts:
            on_total(sum(filter(None, counts)))

    threading.Thread(target=count, daemon=True).start()


def _one_after_the_other(store: Store) -> ByUnits:
    from ingest.units import ByUnits  # which stands on this module

    return ByUnits(store)


def processes_for(device: str, workers: int) -> int:
    """Return how many processes decode in a long ingest; 0 where threads are as fast as the device encodes.

    Args:
        device: Of the encoder.
        workers: Threads that decode.
    """
    # Not for Apple's GPU: forks of a process that has loaded its frameworks may crash.
    can_fork = hasattr(os, "fork")
    return workers if can_fork and device.startswith("cuda") and workers >= _CORES_FOR_PROCESSES else 0


class Run:
    """The stages of one run over one version of a collection, joined by bounded queues."""

    def __init__(
        self,
        target: Collection,
        encoder: QueryEncoder,
        counters: Counters,
        *,
        batch_size: int | None,
        workers: int | None,
        max_pixels: int | None,
        gives_way: bool,
        on_encoder: Callable[[], None] | None,
        on_stage: Callable[[str], None] | None,
        on_stored: Callable[[], None],
        by_units: ByUnits | None = None,
    ) -> None:
        self.target = target
        self.on_stored = on_stored
        self._by_units = by_units
        self._begin_thread = give_way if gives_way else None
        self.encoder = encoder
        self.counters = counters
        self._given_batch_size = batch_size
        self._on_encoder = on_encoder
        self._on_stage = on_stage or (lambda stage: None)
        self.workers = workers or os.cpu_count() or 1
        self.decoders = Decoders(encoder.preprocess, max_pixels=max_pixels)
        self._moved_away: set[str] = set()
        self._last_flush = time.monotonic()
        self._loading = threading.Lock()
        self._loaded: float | None = None  # when the model was

    @cached_property
    def batch_size(self) -> int:
        """Pictures per encode; asked for when there is one to encode: the device may load torch."""
        # First by the thread that fills the batches, and by others only when there is a batch.
        if self._on_encoder is not None:
            self._on_encoder()
        # Where somebody waits for the first pictures, and for the cores, the next batch is never far.
        on_cpu = 8 if self._begin_thread else 32
        return self._given_batch_size or (on_cpu if str(self.encoder.device) == "cpu" else 256)

    def reconcile(self, sources: Sequence[Source], *, check_content: bool, prune: bool) -> list[Reconciler]:
        """Bring the version in line with the folders, one after the other; return what did it for each."""
        samples = draw_from(len(sources))
        reconcilers = []
        for source, sample in zip(sources, samples, strict=True):
            if self._by_units is not None and self._by_units.takes(source):
                by_units, how = self._by_units, {"check_content": check_content, "prune": prune}
                reconcilers.append(by_units.reconcile(self, source, **how))
                continue
            # What changes in a container changes that, so no picture in it is looked into.
            few = None if check_content else sample if source.is_folder else Sample(0)
            reconcilers.append(Reconciler(self.target, source, self.counters, sample=few))
            self.store_all(reconcilers[-1])
        # When all are stored: a picture may have gone from one folder to another, with its vector.
        for reconciler in reconcilers:
            if self._by_units is not None and reconciler.units is not None:
                self._by_units.prune(reconciler, missing=prune)
            else:
                reconciler.prune(missing=prune)
        return reconcilers

    def catch_up(self, sources: Sequence[Source], *, prune: bool) -> list[Reconciler]:
        """Do it again for what came to the folders since; count only what is new about that."""
        all_in_all = self.counters
        self.counters = Counters(all_in_all.report.blank())
        try:
            return self.reconcile(sources, check_content=False, prune=prune)
        finally:
            all_in_all.report.add_later(self.counters.report)
            self.counters = all_in_all

    def store_all(self, reconciler: Reconciler) -> None:
        """Take every picture that a source's plan asks for through decode, encode and store."""
        with (
            ThreadPoolExecutor(1, "imret-store") as writer,
            ThreadPoolExecutor(self.workers, "imret-decode", initializer=self._begin_thread) as pool,
            closing(prefetched(self._batches(reconciler, pool), depth=2)) as batches,
            closing(prefetched(self._encoded(batches), depth=_ENCODED_AHEAD)) as encoded,
        ):
            writes: deque[Future[bool]] = deque()
            try:
                for points in encoded:
                    writes.append(writer.submit(self._write, reconciler, points))
                    needs_optimize = False
                    while len(writes) > 2 or (writes and writes[0].done()):
                        needs_optimize |= writes.popleft().result()
                    if needs_optimize:
                        while writes:
                            writes.popleft().result()
                        self._index()
                while writes:
                    writes.popleft().result()
            finally:
                for write in writes:
                    write.cancel()

    def _batches(
        self, reconciler: Reconciler, pool: ThreadPoolExecutor
    ) -> Generator[tuple[list[Decoded], list[Planned]], None, None]:
        """Yield what to encode, in full batches, and what only needs its duplicate's vector."""
        decoded: list[Decoded] = []
        duplicates: list[Planned] = []
        n_ahead, spread = 2 * self.workers, False
        decoding = DecodingPlanned(self.decoders)
        # Closed by name, not when somebody lets go of them: the look-ups of the plan end before their store.
        with (
            closing(reconciler.plan(pool)) as plan,
            closing(
                map_prefetch(
                    decoding.decode,
                    in_lists(decoding.taken(plan), lambda: self.decoders.at_once),
                    pool,
                    ahead=lambda: decoding.ahead(-(-n_ahead // self.decoders.at_once)),
                )
            ) as decodings,
        ):
            for outcome in chain.from_iterable(decodings):
                if isinstance(outcome, Decoded):
                    decoded.append(outcome)
                    self.counters.note(reconciler.source.root, outcome.planned.record.path, outcome.notes)
                    n_ahead = 2 * self.batch_size
                    if not spread:
                        spread = True
                        self._spread_decoding(reconciler.source)
                elif isinstance(outcome, Planned):
                    duplicates.append(outcome)
                else:
                    self.counters.skip(reconciler.source.root, outcome.path, outcome.reason)
                if (decoded and len(decoded) == self.batch_size) or len(duplicates) == PLAN_BATCH:
                    yield decoded, duplicates
                    decoded, duplicates = [], []
            if decoded or duplicates:
                yield decoded, duplicates

    def _spread_decoding(self, source: Source) -> None:
        """Have processes decode, where they are worth their start: while the model loads, they start."""
        n = 0 if self.decoders.at_once > 1 else processes_for(str(self.encoder.device), self.workers)
        if n > 0 and (not source.is_folder or sum(1 for _ in islice(source.entries(), LONG)) == LONG):
            self.decoders.spread(n)

    def _encoded(
        self, batches: Generator[tuple[list[Decoded], list[Planned]], None, None]
    ) -> Generator[list[_NewPoint], None, None]:
        """Yield batches with their vectors, in order, as many in work at a time as the encoder can use."""
        at_once = 1  # until there is something to encode: asking loads torch

        def encode(batch: tuple[list[Decoded], list[Planned]]) -> list[_NewPoint]:
            nonlocal at_once
            if batch[0]:
                at_once = self.encoder.calls_at_once
            return self._points(*batch)

        with (
            ThreadPoolExecutor(thread_name_prefix="imret-encode", initializer=self._begin_thread) as callers,
            closing(map_prefetch(encode, batches, callers, ahead=lambda: at_once)) as encoded,
        ):
            yield from encoded

    def _points(self, decoded: list[Decoded], duplicates: list[Planned]) -> list[_NewPoint]:
        """Encode a batch, and add the pictures whose vector is known already."""
        points = [
            _NewPoint(planned, planned.duplicate.vector, payload_like(planned.record, planned.duplicate))
            for planned in duplicates
            if planned.duplicate is not None and planned.duplicate.vector is not None
        ]
        if decoded:
            loaded = self._load()
            pixels = np.stack([item.pixels for item in decoded])  # (B, H, W, 3) uint8
            vectors = self.encoder.encode_pixels(pixels, batch_size=self.batch_size)  # (B, D) float32
            self.counters.count_encoded(len(decoded), seconds=time.monotonic() - loaded)
            points += [
                _NewPoint(item.planned, vector, item.payload)
                for item, vector in zip(decoded, vectors, strict=True)
            ]
        return points

    def _load(self) -> float:
        """Load the model, if that is still to be done; return when it was, for a rate that leaves it out."""
        with self._loading:
            if self._loaded is None:
                self._on_stage("load")
                self.encoder.load_image_tower()
                self._on_stage("ingest")
                self._loaded = time.monotonic()
            return self._loaded

    def _index(self) -> None:
        """Build the index, in the caller's thread, which Ctrl-C interrupts; no write waits meanwhile."""
        self._on_stage("index")
        self.target.optimize()
        self._on_stage("ingest")

    def _write(self, reconciler: Reconciler, points: list[_NewPoint]) -> bool:
        """Store a batch, then delete what it replaces: a kill in between leaves a spare, never a gap.

        Returns:
            Whether the index lags behind.
        """
        self.target.upsert(
            [point.planned.record.id for point in points],
            np.stack([point.vector for point in points]),
            [point.payload for point in points],
        )
        self.on_stored()
        moved: list[str] = []
        reconciler.note_added(sum(point.planned.known is None for point in points))
        for point in points:
            old = point.planned.duplicate
            if old is not None and old.id not in self._moved_away and reconciler.has_left(old):
                self._moved_away.add(old.id)
                moved.append(old.id)
                self.counters.count("moved")
            else:
                self.counters.count("added" if point.planned.known is None else "updated")
        if moved:
            reconciler.note_deleted()
            self.target.delete(moved)
        if time.monotonic() - self._last_flush > FLUSH_EVERY_S:
            self.target.flush()
            self._last_flush = time.monotonic()
        return self.target.needs_optimize()


@dataclass(frozen=True)
class _NewPoint:
    """A point about to be stored: what asked for it, its (D,) unit vector and its payload."""

    planned: Planned
    vector: NDArray[np.float32]
    payload: dict[str, Any]
