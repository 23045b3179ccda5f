"""`imret ingest --dry-run`: what a run would do, found out without a model and without a write.

The collection is asked through a handle that lets nothing be written, by the code that a run decides with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from imret.defaults import DEFAULT_COLLECTION
from imret.errors import ImretError, StoreUnavailable
from imret.escape import escape_undecodable
from imret.files import sha256_of
from imret.store import Collection, Filter, Match, Point, Store, open_store, resolve_address
from ingest.content_sample import Sample
from ingest.excluded import inherited, recalled
from ingest.reconcile import Planned, Reconciler
from ingest.report import Counters, Report
from ingest.settle import carry_out, settle
from ingest.sources import Source
from ingest.target import with_pictures


@dataclass(frozen=True)
class NoStore:
    """Stands in for a store that a run would make: it holds nothing.

    Attributes:
        address: Where it would be.
        reason: As in `imret.store.Store`.
    """

    address: str
    reason: str
    engine: str = "embedded"

    def live(self, name: str) -> None:
        """Return None: no collection is live."""

    def excluded(self, name: str) -> dict[str, tuple[str, ...]]:
        """Return that nothing is remembered of any source."""
        return {}

    def document(self, name: str, kind: str) -> None:
        """Return None: nothing is kept with any collection."""

    def document_mark(self, name: str, kind: str) -> str:
        """Return that nothing is."""
        return ""


def open_for_dry_run(db: str | None, collection: str) -> AbstractContextManager[Store]:
    """Open the store that a run would use; where there is none yet, nothing is made.

    Raises:
        StoreUnavailable: If it is a server, and nothing answers.
        StoreError: As for `open_store`.
    """
    address, reason = resolve_address(db, collection=collection)
    try:
        return cast(
            "AbstractContextManager[Store]",
            open_store(db, create=False, share="if possible", collection=collection),
        )
    except StoreUnavailable:
        if "://" in address or (os.path.exists(address) and os.listdir(address)):
            raise
    return nullcontext(cast(Store, NoStore(address, reason)))


def dry_run(
    store: Store,
    sources: Sequence[Source],
    *,
    collection: str = DEFAULT_COLLECTION,
    prune: bool = False,
    rebuild: bool = False,
    moved_from: Sequence[str] = (),
    second_copy: bool = False,
    check_content: bool = False,
) -> Report:
    """Return the account of a run that did not take place; arguments and errors are those of `ingest`.

    Counted are new pictures as `added`, changed ones as `updated`. No new file is opened, so a picture that
    has moved within a folder counts as new and as missing, and which cannot be decoded is not known.
    """
    started = time.monotonic()
    live = store.live(collection)
    sources = recalled(store, sources, collection)
    sources, without = with_pictures(sources, store, collection, prune=prune, rebuild=rebuild)
    settlement = settle(store, sources, collection=collection, moved_from=moved_from, second_copy=second_copy)
    sources = inherited(store, sources, collection, settlement)
    report = Report(
        collection,
        store.address,
        store.engine,
        "" if live is None else live.model,
        "" if live is None else live.fingerprint,
        [escape_undecodable(source.root) for source in sources],
        notes=list(settlement.notes),
        without_pictures=without,
        dry_run=True,
    )
    with ExitStack() as stack:
        held = None if live is None else stack.enter_context(closing(store.open(collection)))
        version = cast(Collection, _Untouched(held))
        report.taken_over = carry_out(settlement, [version])
        for source in sources:
            _look_at(source, version, Counters(report), prune=prune, check_content=check_content)
    report.seconds = time.monotonic() - started
    return report


def _look_at(
    source: Source, version: Collection, counters: Counters, *, prune: bool, check_content: bool
) -> None:
    """Count what a run would do with one folder."""
    sample = None if check_content else Sample(0)
    reconciler = Reconciler(version, source, counters, sample=sample, hashes_new=False)
    with ThreadPoolExecutor(thread_name_prefix="imret-hash") as pool, closing(reconciler.plan(pool)) as plan:
        for planned in plan:
            if planned.known is None:
                counters.count("added")
            else:
                counters.count("unchanged" if _is_touched(planned) else "updated")
    reconciler.prune(missing=prune)


def _is_touched(planned: Planned) -> bool:
    """Whether a stored picture has another time, or size, but the content that is stored."""
    try:
        with planned.record.open() as file:
            digest = sha256_of(file)
    except (OSError, ImretError):
        return False
    return planned.known is not None and planned.known.payload.get("sha256") == digest


class _Untouched:
    """What a collection would be: it is asked, and what is written stays here, in memory.

    Has the methods of `imret.store.Collection` that sources and plans are settled with; filters are such as
    they ask for.

    Args:
        held: The collection; None for one that holds nothing.
    """

    def __init__(self, held: Collection | None) -> None:
        self._held = held
        self._written: dict[str, Point] = {}
        self._deleted: dict[str, Mapping[str, Any]] = {}

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Point]:
        known = {} if self._held is None else self._held.get(ids)
        known |= {id_: self._written[id_] for id_ in ids if id_ in self._written}
        return {id_: point for id_, point in known.items() if id_ not in self._deleted}

    def scan(self, filter: Filter, *, vectors: bool = False, batch_size: int = 256) -> Iterator[list[Point]]:
        if self._held is not None:
            for points in self._held.scan(filter, vectors=vectors, batch_size=batch_size):
                yield [point for point in points if point.id not in self._deleted]
        yield [point for point in self._written.values() if _passes(point.payload, filter)]

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        return {} if self._held is None else self._held.facet(field, filter)

    def count(self, filter: Filter | None = None) -> int:
        n = 0 if self._held is None else self._held.count(filter)
        n += sum(_passes(point.payload, filter) for point in self._written.values())
        return n - sum(_passes(payload, filter) for payload in self._deleted.values())

    def upsert(self, ids: Sequence[str], vectors: object, payloads: Sequence[dict[str, Any]]) -> None:
        self._written |= {id_: Point(id_, payload) for id_, payload in zip(ids, payloads, strict=True)}

    def delete(self, ids: Sequence[str]) -> None:
        self._deleted |= {id_: point.payload for id_, point in self.get(ids).items()}

    def overwrite_payloads(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Change nothing: no question that follows is about what a payload said before."""

    def needs_optimize(self) -> bool:
        return False

    def flush(self) -> None: ...

    def optimize(self) -> None: ...


def _passes(payload: Mapping[str, Any], filter: Filter | None) -> bool:
    conditions = () if filter is None else filter.must
    return all(isinstance(one, Match) and payload.get(one.field) in one.values for one in conditions)
