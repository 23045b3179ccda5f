"""One version of a collection in an embedded store: a shard of Qdrant Edge, and what is known of its ways.

Hides the engine: its configuration, what it keeps in memory, how its filters are searched, when it wants to
be flushed and indexed, and what it does when it is closed. Used by `imret.store.embedded.worker`, in the
process that owns the shards.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qe
from numpy.typing import NDArray

from imret.errors import DataError, StoreDamaged, StoreError
from imret.files import sync_folder
from imret.memory import give_back_memory
from imret.store.embedded import damage, full_disk, inventory, locks, read_only
from imret.store.embedded import layout as folder
from imret.store.embedded.edge_filter import edge_filter
from imret.store.embedded.edge_search import Row, id_of, query_request, row_of, scan_is_better
from imret.store.embedded.engine_config import (
    changed_config,
    engine_config,
    index_changes,
    payload_index,
    stored_creation,
)
from imret.store.embedded.engine_version import engine_version
from imret.store.embedded.permissions import PROTECTED
from imret.store.embedded.read_ahead import read_ahead
from imret.store.filter import INDEXED_FIELDS, Filter
from imret.store.placement import DEFAULTS, Creation, candidates, check_embedded, spelt
from imret.store.types import Identity

# Edge writes through memory maps into sparse files: on a full disk that is a signal which kills, not an
# error. 32 MiB each for two log files and the open page of the segment, and something to spare.
MIN_FREE_BYTES = 150_000_000

# What has no index, the engine keeps in memory: 2 kB a point, and half again as much until it is flushed. So
# what is stored is flushed every so often, and a filling should stop to index when what has no index is as
# much as what has one. In such steps an index takes half again as long as at once (benchmarks/index.py).
FLUSH_POINTS = 2_000
MAX_SOURCES = 20  # of the folders that a damaged collection names
INDEX_POINTS = 20_000  # fewer are left to the end


class Shard:
    """One open version.

    Args:
        path: Folder of the version.
        identity: The encoder to make it for if it does not exist, or None to open only.
        owner: Whom to name to other processes.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built.
        empty: Make it anew, whatever is there.
        creation: What is asked of it where it is made.

    Raises:
        LockedElsewhere: If another process has it open.
        LiveMeanwhile: If it is to be made anew, and is live.
        DataError: If it does not exist and `identity` is None.
        ModelMismatch: If it belongs to another encoder.
        StoreDamaged: If it has lost files, or they cannot be read.
        StoreError: If they cannot be read this moment.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity | None,
        *,
        owner: locks.LockOwner,
        index_from_kb: int,
        empty: bool = False,
        creation: Creation = Creation(),  # noqa: B008  # frozen
    ) -> None:
        self.path = path
        self.idle_since = 0.0
        self._stand_in: tempfile.TemporaryDirectory[str] | None = None  # where the disk is full
        self._copy: read_only.Copy | None = None  # where it cannot be written to
        self._place = path  # where the engine's files are, and what is noted of them
        self._indexed = self._plain = self._unflushed = 0  # points: with an index, later ones, changes
        self._is_broken = False
        try:
            self._lock = self._take_lock(owner, to_fill=identity is not None or empty)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"there is no collection {path.parent.name!r} in {str(path.parent.parent)!r} any more"
            ) from None
        try:
            if isinstance(self._lock, locks.ReaderLock) or not read_only.is_writable(path):
                self._copy_to_read(to_fill=identity is not None)
            self._ledger = inventory.Ledger(self._place)
            if self._lock.was_held_by_older:
                self._ledger.forget()
            if empty:
                folder.empty(path)  # whoever switches to it has it open, so nobody does this moment
            stored = folder.read_identity(path)
            if stored is None:
                self.identity = self._create(identity, index_from_kb, creation)
            else:
                self.identity = stored
                self._load()
                self._indexed = self.engine.info().indexed_vectors_count
                self._plain = self.engine.count(qe.CountRequest(exact=False)) - self._indexed
                if identity is not None:
                    self.resume(identity)
            self._candidates = candidates(self.creation())
        except BaseException as error:
            with suppress(BaseException):  # where it was loaded at all
                self.engine.close()
            self._lock.release()
            self._leave_stand_in()
            if damage.is_engine_failure(error):
                raise self.failure("open", error) from error
            raise

    def _take_lock(self, owner: locks.LockOwner, *, to_fill: bool) -> locks.VersionLock | locks.ReaderLock:
        try:
            if to_fill:
                self.path.parent.mkdir(exist_ok=True)
            return locks.VersionLock(self.path, owner)
        except locks.ProtectedStore:
            if to_fill:
                raise
            return locks.ReaderLock(self.path, owner)
        except OSError as error:
            if error.errno not in PROTECTED:
                raise
            raise locks.protected(self.path, error) from error

    def _copy_to_read(self, *, to_fill: bool) -> None:
        """Take a copy of what the engine writes to, and open that: it opens no files to read them only."""
        if to_fill:
            raise locks.protected(self.path)
        if folder.read_identity(self.path) is None:
            return  # to be told so
        noted = inventory.read(self.path)
        self._refuse("" if noted is None else inventory.find_loss(self.path, noted))
        self._copy = read_only.copy_of(self.path)
        self._place = self._copy.version

    def opening_note(self) -> str:
        """Return what whoever opens it should know, for people; empty for nothing."""
        return "" if self._copy is None else self._copy.note

    def _check_writable(self) -> None:
        """Raise ProtectedStore where only a copy is open, which is thrown away."""
        if self._copy is not None:
            raise locks.protected(self.path)

    def resume(self, identity: Identity) -> None:
        """Make ready to be filled further by the encoder it belongs to.

        Raises:
            ModelMismatch: If it belongs to another.
        """
        self._check_writable()
        self.identity.require_same(
            identity,
            subject=repr(str(self.path)),
            user="this program uses",
            advice="Move it away and ingest again.",
        )
        if self._optimizing.exists():
            # Killed in the middle: every point is there, some of them twice under the surface until this.
            self.optimize()
        self._index_payload()
        if identity.model != self.identity.model:
            # The same weights under another name, for example a folder that was moved: the newer one works.
            folder.write_identity(self.path, identity, engine_version())
            self.identity = identity

    def _create(self, identity: Identity | None, index_from_kb: int, asked: Creation) -> Identity:
        if identity is None:
            raise DataError(
                f"there is no version {self.path.name} of collection {self.path.parent.name!r} any more"
            )
        self._check_free()
        folder.move_to_trash(self.path)  # its making was cut short, so nothing can be in it
        self._ledger = inventory.Ledger(self.path)  # what was noted of what lay here before is no loss
        shard_folder = self.path / "shard"
        shard_folder.mkdir(parents=True)
        self.engine = qe.EdgeShard.create(
            str(shard_folder), engine_config(identity.dim, index_from_kb, asked)
        )
        for field in INDEXED_FIELDS:
            self.engine.update(qe.UpdateOperation.create_field_index(field, payload_index(field)))
        self.engine.flush()
        sync_folder(self.path)
        folder.write_identity(self.path, identity, engine_version())
        sync_folder(self.path.parent)
        self.identity = identity
        self._note()
        return identity

    def _index_payload(self) -> None:
        """Make the indexes of payload fields that are missing: all of a new version, some of an old one."""
        self._make_indexes(index_changes(self.engine, all_alike=False))

    def _make_indexes(self, indexes: dict[str, Any]) -> None:
        if indexes:
            self._check_free()
        for field, index in indexes.items():
            self._update(qe.UpdateOperation.create_field_index(field, index))
        if indexes:
            self.flush()

    def creation(self) -> Creation:
        """Return what it is like."""
        return stored_creation(self._place / "shard")

    def to_current(self, asked: Creation) -> list[str]:
        """Make of it what would be made now, but for what `optimize` builds; return what has changed."""
        self._check_writable()
        self._check_free()
        check_embedded(asked, str(self.path.parent.parent))
        has = self.creation()
        wanted = asked.over(has).over(DEFAULTS["embedded"])
        changed = [spelt(*item) for item in wanted.asked.items() if item not in has.asked.items()]
        if changed:
            self.flush()
            self._ledger.begin("adding")
            self.engine.close()
            try:
                config = changed_config(self.identity.dim, wanted)
                self.engine = qe.EdgeShard.load(str(self._place / "shard"), config)
            except BaseException:
                self.engine = self._open_engine()
                raise
            self._candidates = candidates(self.creation())
        indexes = index_changes(self.engine, all_alike=True)
        self._make_indexes(indexes)
        self.flush()
        return changed + [f"index of {field}" for field in indexes]

    def _load(self) -> None:
        self._refuse(self._ledger.find_loss())
        self._ledger.begin_loading()
        read_ahead(self._place / "shard")
        try:
            self.engine = self._open_engine()
        except Exception as error:
            if full_disk.is_full(error):
                raise self._no_room(0) from error
            if "WouldBlock" in str(error):
                raise locks.locked(self.path, None, 0) from error
            raise
        self._refuse(self._ledger.find_miscount(self.count(None)))
        self._settle()

    def _refuse(self, loss: str) -> None:
        """Raise StoreDamaged if something is lost."""
        if loss:
            raise damage.damaged(self.path.parent, loss, version=self.path)

    def failure(self, operation: str, error: BaseException) -> StoreError:
        """Return the error for what the engine raised; where that is damage, nothing more is written."""
        written_by = folder.engine_of(self.path)
        hint = ""
        if written_by != engine_version():
            hint = f"This is {engine_version()}, and it was made by {written_by}"
        told = damage.of_engine(self.path, operation, error, hint=hint)
        self._is_broken = self._is_broken or isinstance(told, StoreDamaged)
        return told

    def _update(self, operation: qe.UpdateOperation, since: inventory.Since = "adding") -> None:
        self._check_writable()
        self._ledger.begin(since)
        try:
            self.engine.update(operation)
        except BaseException:
            # It may be done in part, and stays in the log: at the next opening it may be done in another.
            self._ledger.is_counted = False
            raise

    def _open_engine(self) -> qe.EdgeShard:
        path = self._place / "shard"
        try:
            return qe.EdgeShard.load(str(path))
        except Exception as error:
            self._stand_in = full_disk.stand_in(path) if full_disk.is_full(error) else None
            if self._stand_in is None:
                raise
            return qe.EdgeShard.load(self._stand_in.name)

    @property
    def _optimizing(self) -> Path:
        return self.path / inventory.OPTIMIZING

    def close(self, *, remove: bool = False) -> None:
        """Flush and close the files, and let other processes have them; or remove them."""
        removed = False
        try:
            with self._at_the_end():
                if not remove and not self._is_broken:
                    self._settle()
                self.engine.close()
            if remove and self._copy is None:
                with suppress(OSError):  # then whoever switches next will do it
                    folder.move_to_trash(self.path)
                    removed = True
        finally:
            self._lock.release(remove=removed)
            self._leave_stand_in()

    def end(self) -> None:
        """Write what is not on disk yet, and leave it to the end of this process to close the files.

        When the engine closes files, it has the system forget them, and whoever opens the version next, a
        second later, reads from the disk again what was in memory. It closes them when it is let go, too.
        """
        if not self._is_broken:
            with self._at_the_end():
                self._settle()
        self._lock.clear_owner()
        self._leave_stand_in()

    def _leave_stand_in(self) -> None:
        for stand_in in (self._stand_in, self._copy):
            if stand_in is not None:
                stand_in.cleanup()

    @contextmanager
    def _at_the_end(self) -> Iterator[None]:
        """Let pass what the engine raises: nobody asked anything, and whoever opens it next is told."""
        try:
            yield
        except BaseException as error:
            if not damage.is_engine_failure(error):
                raise

    def upsert(self, ids: list[str], vectors: NDArray[np.float32], payloads: list[dict[str, Any]]) -> None:
        self._check_writable()
        self._check_free()
        points = [
            qe.Point(id=id_, vector=vector, payload=payload)  # takes float32 rows
            for id_, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]
        self._unflushed += len(points)
        self._update(qe.UpdateOperation.upsert_points(points))
        self._plain += len(points)
        if self._unflushed >= FLUSH_POINTS:
            self.engine.flush()
            self._unflushed = 0

    def overwrite_payloads(self, ids: list[str], payloads: list[dict[str, Any]]) -> None:
        self._check_writable()
        self._check_free()
        existing = {str(record.id) for record in self.engine.retrieve(list(ids), False, False)}
        missing = [id_ for id_ in ids if id_ not in existing]
        if missing:
            raise DataError(f"collection {self.path.parent.name!r} holds no point {missing[0]}")
        self._unflushed += len(ids)
        for id_, payload in zip(ids, payloads, strict=True):
            self._update(qe.UpdateOperation.overwrite_payload([id_], payload))

    def get(self, ids: list[str], vectors: bool) -> list[Row]:
        return [row_of(record) for record in self.engine.retrieve(list(ids), True, vectors)]

    def scan(
        self, filter: Filter | None, vectors: bool, batch_size: int, offset: str | int | None
    ) -> tuple[list[Row], str | int | None]:
        records, following = self._scroll(filter, vectors, batch_size, offset)
        return [row_of(record) for record in records], following

    def inspect(
        self, batch_size: int, offset: str | int | None
    ) -> tuple[list[tuple[str | int, dict[str, Any], Any]], str | int | None]:
        records, following = self._scroll(None, True, batch_size, offset)
        return [(id_of(record.id), record.payload or {}, record.vector) for record in records], following

    def _scroll(
        self, filter: Filter | None, vectors: bool, batch_size: int, offset: str | int | None
    ) -> tuple[list[qe.Record], str | int | None]:
        records, following = self.engine.scroll(
            qe.ScrollRequest(
                limit=batch_size,
                offset=offset,
                filter=edge_filter(filter),
                with_payload=True,
                with_vector=vectors,
            )
        )
        return records, None if following is None else id_of(following)

    def delete(self, ids: list[str | int]) -> None:
        self._unflushed += len(ids)
        self._update(qe.UpdateOperation.delete_points(list(ids)), "deleting")

    def search(
        self, vector: NDArray[np.float32], limit: int, filter: Filter | None, exact: bool
    ) -> list[Row]:
        exact = exact or scan_is_better(self.engine, filter, self.identity.dim)
        request = query_request(vector, limit, filter, exact=exact, candidates=self._candidates)
        return [
            (str(hit.id), hit.payload or {}, None, max(-1.0, min(1.0, hit.score)))
            for hit in self.engine.query(request)
        ]

    def count(self, filter: Filter | None) -> int:
        # Exact always: after a kill the estimate may count points twice.
        return self.engine.count(qe.CountRequest(filter=edge_filter(filter), exact=True))

    def facet(self, field: str, filter: Filter | None) -> dict[str, int]:
        # There are no more values than points; those that have lost theirs are listed last, with zero.
        limit = self.count(None) + 1
        response = self.engine.facet(
            qe.FacetRequest(key=field, limit=limit, filter=edge_filter(filter), exact=True)
        )
        return {str(hit.value): hit.count for hit in response.hits}

    def flush(self) -> None:
        if self._copy is not None:
            return
        self.engine.flush()
        self._unflushed = 0
        if not self._ledger.is_closed:
            self._note()

    def _settle(self) -> None:
        """Flush what is not, also what the engine took from its log, so that it can be noted."""
        if self._copy is None and not self._ledger.is_closed:
            with suppress(StoreError):  # a full disk is searched all the same
                if not self._unflushed:
                    self._check_free()
                self.flush()

    def _note(self) -> None:
        """Note what lies there, unless something is lost that did when it was noted before.

        Raises:
            StoreDamaged: If something is; then the older note stays, by which the next opening finds it, too.
        """
        try:
            self._refuse(self._ledger.find_loss())
        except StoreDamaged:
            self._is_broken = True
            raise
        sources: list[str] = []
        if "source" in self.engine.info().payload_schema:  # else it is older, and not to be filled now
            response = self.engine.facet(qe.FacetRequest(key="source", limit=MAX_SOURCES, exact=False))
            sources = sorted(str(hit.value) for hit in response.hits if hit.count)
        self._ledger.close(self.identity.model, self.count(None), tuple(sources))

    def needs_optimize(self) -> bool:
        return self._plain >= max(INDEX_POINTS, self._indexed)

    def optimize(self) -> None:
        self._check_writable()
        self._check_free()
        self.flush()
        self._ledger.begin("adding")
        self._optimizing.touch()
        inventory.remove_unfinished(self.path)
        self.engine.optimize()
        self.flush()
        self._optimizing.unlink(missing_ok=True)
        self._indexed, self._plain = self.engine.info().indexed_vectors_count, 0
        give_back_memory()

    def stats(self) -> tuple[int, int, int]:
        return self.count(None), self.engine.info().indexed_vectors_count, folder.size_bytes(self.path)

    def _check_free(self) -> None:
        free = shutil.disk_usage(self.path if self.path.exists() else self.path.parent).free
        if free < MIN_FREE_BYTES:
            raise self._no_room(free)

    def _no_room(self, free: int) -> StoreError:
        return StoreError(
            f"the disk of {str(self.path.parent.parent)!r} is full: {free / 1e6:.0f} MB are left, and "
            f"the store stops at {MIN_FREE_BYTES / 1e6:.0f} MB. Free some space and run the command "
            "again; what was stored is safe."
        )
