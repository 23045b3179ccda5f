"""The process that owns the shards of an embedded store.

Qdrant Edge keeps Python's interpreter lock while it searches and while it builds an index (a second each
2,000 vectors), and a shard can be open only once. So one process of its own holds the shards, and
`imret.store.edge` talks to it over pipes. If its program shares, other programs of the same user talk to it
over a socket, about the versions that it has open. It ends when the pipe closes or its parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version as package_version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import qdrant_edge as qe
from numpy.typing import NDArray

from imret.errors import DataError, ImretError, StoreError, StoreLocked
from imret.store import edge_folder as folder
from imret.store.contract import (
    EF_CONSTRUCT,
    HNSW_EF,
    INDEXED_FIELDS,
    INTEGER_FIELDS,
    KEYWORD_FIELDS,
    MOMENT_FIELDS,
    OVERSAMPLING,
    Condition,
    Filter,
    Identity,
    Ids,
    M,
    Match,
    Range,
)
from imret.store.edge_socket import Listener
from imret.store.edge_turns import HEADER_BYTES, Program, Turns

LINGER_S = 1.0  # a shard stays open this long after its last handle: opening 100,000 points takes a second

# Edge writes through memory maps into sparse files: on a full disk that is a signal which kills, not an
# error. 32 MiB each for two log files and the open page of the segment, and something to spare.
MIN_FREE_BYTES = 150_000_000

FULL_SCAN_KB = 10_000  # what a filter keeps of fewer vectors, the engine scans; values of more get links

# A filter that keeps fewer bytes of vectors than this is answered by an exact scan. Where one value of a
# field with links is asked for, it is half again what the engine scans by itself: for just as many as that
# it walks, but has made no links, and finds nothing. Other filters have only ACORN, which takes longer: 7 ms
# behind one that keeps a tenth of 100,000 x 1,024, where the scan takes 2.6; 20 behind a tenth of a million
# x 256, where it takes 10. They are even at 100 to 200 MB.
SCAN_LINKED = 1.5  # times FULL_SCAN_KB
SCAN_BYTES = 120_000_000

# What is not flushed, and what has no index, the engine keeps in memory: 1 kB a point each. So what is stored
# is flushed every so often, and a filling should stop to index when what has no index is as much as what has
# one: seldom enough that an index built in steps takes little longer than at once.
FLUSH_POINTS = 2_000
INDEX_POINTS = 20_000  # fewer are left to the end

# (id, payload, vector or None, score or None): what travels over the pipe
Row: TypeAlias = tuple[str, dict[str, Any], Any, float | None]


class Shard:
    """One open version.

    Args:
        path: Folder of the version.
        identity: The encoder to make it for if it does not exist, or None to open only.
        holder: Whom to name to other processes.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built.
        empty: Make it anew, whatever is there.

    Raises:
        LockedElsewhere: If another process has it open.
        DataError: If it does not exist and `identity` is None.
        StoreError: If its files cannot be read, or belong to another encoder.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity | None,
        *,
        holder: folder.Holder,
        index_from_kb: int,
        empty: bool = False,
    ) -> None:
        self.path = path
        self.idle_since = 0.0
        self._indexed = self._plain = self._unflushed = 0  # points: with an index, later ones, changes
        if identity is not None:
            path.parent.mkdir(exist_ok=True)
        try:
            self._lock = folder.VersionLock(path, holder)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"there is no collection {path.parent.name!r} in {str(path.parent.parent)!r} any more"
            ) from None
        try:
            if empty:
                folder.move_to_trash(path)
            stored = folder.read_identity(path)
            if stored is None:
                self.identity = self._create(identity, index_from_kb)
            else:
                self.identity = stored
                self._load()
                self._indexed = self.engine.info().indexed_vectors_count
                self._plain = self.engine.count(qe.CountRequest(exact=False)) - self._indexed
                if identity is not None:
                    self.resume(identity)
        except BaseException:
            self._lock.release()
            raise

    def resume(self, identity: Identity) -> None:
        """Make ready to be filled further by the encoder it belongs to.

        Raises:
            StoreError: If it belongs to another.
        """
        mine = self.identity
        if (identity.fingerprint, identity.dim) != (mine.fingerprint, mine.dim):
            raise StoreError(
                f"{str(self.path)!r} belongs to the encoder {mine.fingerprint} of {mine.dim} dimensions, "
                f"not to {identity.fingerprint} of {identity.dim}. Move it away and ingest again."
            )
        if self._optimizing.exists():
            # Killed in the middle: every point is there, some of them twice under the surface until this.
            self.optimize()
        self._index_payload()
        if identity.model != mine.model:
            # The same weights under another name, for example a folder that was moved: the newer one works.
            folder.write_identity(self.path, identity, _engine_version())
            self.identity = identity

    def _create(self, identity: Identity | None, index_from_kb: int) -> Identity:
        if identity is None:
            raise DataError(
                f"there is no version {self.path.name} of collection {self.path.parent.name!r} any more"
            )
        if self.path.exists():
            shutil.rmtree(self.path)  # its making was cut short, so nothing can be in it
        shard_folder = self.path / "shard"
        shard_folder.mkdir(parents=True)
        config = qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(
                size=identity.dim, distance=qe.Distance.Cosine, memory=qe.Memory.Cold
            ),
            hnsw_config=qe.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB),
            quantization_config=qe.ScalarQuantizationConfig(
                type=qe.ScalarType.Int8, quantile=0.99, memory=qe.Memory.Cached
            ),
            id_tracker_memory=qe.Memory.Cached,
            # One graph however many cores there are: to walk five finds no more in four times the time.
            optimizers=qe.EdgeOptimizersConfig(
                indexing_threshold=index_from_kb, default_segment_number=2, max_segment_size=1 << 40
            ),
        )
        self.engine = qe.EdgeShard.create(str(shard_folder), config)
        self._index_payload()
        folder.sync_folder(self.path)
        folder.write_identity(self.path, identity, _engine_version())
        folder.sync_folder(self.path.parent)
        return identity

    def _index_payload(self) -> None:
        """Make the indexes of payload fields that are missing: all of a new version, some of an old one."""
        missing = [field for field in INDEXED_FIELDS if field not in self.engine.info().payload_schema]
        for field in missing:
            self.engine.update(qe.UpdateOperation.create_field_index(field, _index_of(field)))
        if missing:
            self.engine.flush()

    def _load(self) -> None:
        _read_ahead(self.path / "shard")
        try:
            self.engine = qe.EdgeShard.load(str(self.path / "shard"))
        except Exception as error:
            if "WouldBlock" in str(error):
                raise folder.locked(self.path, None, 0) from error
            raise StoreError(
                f"the store's files in {str(self.path)!r} cannot be read: {error}.\n"
                f"Move that folder away and ingest again (this is {_engine_version()}, and its "
                f"{folder.IDENTITY} names the version that wrote it)."
            ) from error

    @property
    def _optimizing(self) -> Path:
        return self.path / "optimizing"

    def close(self, *, remove: bool = False) -> None:
        """Flush and close the files, and let other processes have them; or remove them."""
        removed = False
        try:
            self.engine.close()
            if remove:
                with suppress(OSError):  # then whoever switches next will do it
                    folder.move_to_trash(self.path)
                    removed = True
        finally:
            self._lock.release(remove=removed)

    def end(self) -> None:
        """Write what is not on disk yet, and leave it to the end of this process to close the files.

        When the engine closes files, it has the system forget them, and whoever opens the version next, a
        second later, reads from the disk again what was in memory. It closes them when it is let go, too.
        """
        if self._unflushed:
            self.flush()
        self._lock.clear_note()

    def upsert(self, ids: list[str], vectors: NDArray[np.float32], payloads: list[dict[str, Any]]) -> None:
        self._check_free()
        points = [
            qe.Point(id=one, vector=vector, payload=payload)  # takes float32 rows
            for one, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]
        self._unflushed += len(points)
        self.engine.update(qe.UpdateOperation.upsert_points(points))
        self._plain += len(points)
        if self._unflushed >= FLUSH_POINTS:
            self.flush()

    def overwrite_payloads(self, ids: list[str], payloads: list[dict[str, Any]]) -> None:
        self._check_free()
        found = {str(record.id) for record in self.engine.retrieve(list(ids), False, False)}
        missing = [one for one in ids if one not in found]
        if missing:
            raise DataError(f"collection {self.path.parent.name!r} holds no point {missing[0]}")
        self._unflushed += len(ids)
        for one, payload in zip(ids, payloads, strict=True):
            self.engine.update(qe.UpdateOperation.overwrite_payload([one], payload))

    def get(self, ids: list[str], vectors: bool) -> list[Row]:
        return [_row(record) for record in self.engine.retrieve(list(ids), True, vectors)]

    def scan(
        self, only: Filter | None, vectors: bool, batch_size: int, offset: str | None
    ) -> tuple[list[Row], str | None]:
        records, following = self.engine.scroll(
            qe.ScrollRequest(
                limit=batch_size, offset=offset, filter=_filter(only), with_payload=True, with_vector=vectors
            )
        )
        return [_row(record) for record in records], None if following is None else str(following)

    def delete(self, ids: list[str]) -> None:
        self._unflushed += len(ids)
        self.engine.update(qe.UpdateOperation.delete_points(list(ids)))

    def search(self, vector: NDArray[np.float32], limit: int, only: Filter | None, exact: bool) -> list[Row]:
        exact = exact or self._scan_is_better(only)
        quantization = qe.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
        request = qe.QueryRequest(
            query=qe.Query.Nearest(vector),  # type: ignore[arg-type]  # takes a float32 array
            filter=_filter(only),
            limit=limit,
            params=qe.SearchParams(
                hnsw_ef=HNSW_EF,
                exact=exact,
                quantization=quantization,
                acorn=qe.AcornSearchParams(enable=bool(only) and not _has_links(only)),
            ),
            with_payload=True,
        )
        return [
            (str(hit.id), hit.payload or {}, None, max(-1.0, min(1.0, hit.score)))
            for hit in self.engine.query(request)
        ]

    def _scan_is_better(self, only: Filter | None) -> bool:
        """Whether an exact scan of what a filter keeps beats a walk over the graph."""
        if not only:
            return False
        # Without an index nobody knows how few pass, and a walk that goes only where they are finds half.
        if not only.fields <= set(self.engine.info().payload_schema):
            return True
        kept = self.engine.count(qe.CountRequest(filter=_filter(only), exact=False))  # microseconds
        limit = SCAN_LINKED * FULL_SCAN_KB * 1024 if _has_links(only) else SCAN_BYTES
        return kept * self.identity.dim * 4 <= limit

    def count(self, only: Filter | None) -> int:
        # Exact always: after a kill the estimate may count points twice.
        return self.engine.count(qe.CountRequest(filter=_filter(only), exact=True))

    def facet(self, field: str, only: Filter | None) -> dict[str, int]:
        # There are no more values than points; those that have lost theirs are listed last, with zero.
        limit = self.count(None) + 1
        response = self.engine.facet(
            qe.FacetRequest(key=field, limit=limit, filter=_filter(only), exact=True)
        )
        return {str(hit.value): hit.count for hit in response.hits}

    def flush(self) -> None:
        self.engine.flush()
        self._unflushed = 0

    def index_lags(self) -> bool:
        return self._plain >= max(INDEX_POINTS, self._indexed)

    def optimize(self) -> None:
        self._check_free()
        self.flush()
        self._optimizing.touch()
        self.engine.optimize()
        self.flush()
        self._optimizing.unlink(missing_ok=True)
        self._indexed, self._plain = self.engine.info().indexed_vectors_count, 0
        _give_back_memory()

    def stats(self) -> tuple[int, int, int]:
        return self.count(None), self.engine.info().indexed_vectors_count, folder.size_bytes(self.path)

    def _check_free(self) -> None:
        state = os.statvfs(self.path)
        free = state.f_bavail * state.f_frsize
        if free < MIN_FREE_BYTES:
            raise StoreError(
                f"the disk of {str(self.path.parent.parent)!r} is full: {free / 1e6:.0f} MB are left, and "
                f"the store stops at {MIN_FREE_BYTES / 1e6:.0f} MB. Free some space and run the command "
                "again; what was stored is safe."
            )


class Handle(NamedTuple):
    """What a program has open.

    Attributes:
        shard: The version.
        program: Whose it is; None for the worker's own program.
    """

    shard: Shard
    program: Program | None


class Worker:
    """Answers requests, one after the other, for the shards of one store.

    Args:
        holder: Whom to name to other processes.
        index_from_kb: As for `Shard`.
    """

    def __init__(self, holder: folder.Holder, index_from_kb: int) -> None:
        self._holder = holder
        self._index_from_kb = index_from_kb
        self._shards: dict[Path, Shard] = {}
        self._handles: dict[int, Handle] = {}
        self._next_handle = count(1)

    def answer(self, operation: str, arguments: tuple[Any, ...], program: Program | None = None) -> Any:
        """Return what a request asks for.

        Args:
            operation: "open", "remove", "drop" or "rename", or one for an open shard: "close" or a
                method of `Shard`.
            arguments: For an open shard its handle, then what the method takes.
            program: Who asks; None is the worker's own program. Others may use what that has open, and
                nothing else: to what it has not they have the same right as it.
        """
        if operation == "open":
            return self._open(*arguments) if program is None else self._share(program, *arguments)
        if operation in ("remove", "drop", "rename"):
            if program is not None:
                raise StoreError(f"a program that shares a store does not {operation} for another")
            if operation == "rename":
                return self._rename(*arguments)
            return self._drop(*arguments) if operation == "drop" else self._remove_retired(*arguments)
        handle, *others = arguments
        found = self._handles.get(handle)
        if found is None or found.program is not program:
            raise StoreError("this collection was dropped while it was open")
        if operation == "close":
            self._let_go(handle)
            return None
        return getattr(found.shard, operation)(*others)

    def leave(self, program: Program) -> None:
        """Close the handles of another program that is gone."""
        for number in [number for number, one in self._handles.items() if one.program is program]:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._handles.pop(number).shard.idle_since = time.monotonic()

    def _open(self, path: Path, identity: Identity | None, empty: bool) -> tuple[int, Identity]:
        if empty and path in self._shards:
            self._close_unused(path)
        shard = self._shards.get(path)
        if shard is None:
            shard = Shard(path, identity, holder=self._holder, index_from_kb=self._index_from_kb, empty=empty)
            shard.idle_since = time.monotonic()
            self._shards[path] = shard
        elif identity is not None:
            shard.resume(identity)
        return self._hand_out(shard, None)

    def _share(self, program: Program, path: Path, identity: Identity | None) -> tuple[int, Identity] | None:
        """Open a version for another program, which may spell its path otherwise; None if it is not open."""
        shard = self._shards.get(path)
        if shard is None:
            with suppress(FileNotFoundError):
                shard = next((one for one in self._shards.values() if os.path.samefile(one.path, path)), None)
        if shard is None:
            return None
        if identity is not None:
            shard.resume(identity)
        return self._hand_out(shard, program)

    def _hand_out(self, shard: Shard, program: Program | None) -> tuple[int, Identity]:
        number = next(self._next_handle)
        self._handles[number] = Handle(shard, program)
        return number, shard.identity

    def _drop(self, collection: Path) -> None:
        """Remove a collection, also where this program has it open.

        Raises:
            StoreLocked: If another process has a version open; then nothing is removed.
        """
        paths = folder.version_folders(collection)
        for one in self._handles.values():
            if one.program is not None and one.shard.path in paths:
                raise _in_use(one.shard.path, "by another program, through this one; end that first")
        for path in paths:
            if path in self._shards:
                self._close(path)
        self._remove(paths)
        if collection.is_dir():
            folder.move_to_trash(collection)

    def _remove_retired(self, path: Path) -> None:
        """Remove a version that another has replaced, if that is still so and nobody is about to change it.

        Raises:
            StoreLocked: If it is open, here or in another process.
        """
        with folder.switching(path.parent, wait=False) as ours:
            if ours and folder.is_retired(path):
                self._remove([path])

    def _remove(self, paths: list[Path]) -> None:
        """Remove versions, all or none.

        Raises:
            StoreLocked: If one of them is open, here or in another process.
        """
        locks = self._lock_all(paths)
        try:
            for path in paths:
                folder.move_to_trash(path)
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        for lock in locks:
            lock.release(remove=True)

    def _rename(self, source: Path, target: Path) -> None:
        """Give a collection another name.

        Raises:
            StoreLocked: If one of its versions is open, here or in another process.
            DataError: If the name is taken.
        """
        if target.exists():
            # Checked before, without a lock. What is left has no finished version: a making was cut short.
            if any(folder.read_identity(path) is not None for path in folder.version_folders(target)):
                raise folder.taken(source, target)
            self._drop(target)
        locks = self._lock_all(folder.locked_versions(source))
        try:
            folder.rename(source, target)
        finally:
            for lock in locks:
                lock.release()

    def _lock_all(self, paths: list[Path]) -> list[folder.VersionLock]:
        """Lock versions, all or none.

        Raises:
            StoreLocked: If one of them is open, here or in another process.
        """
        for path in paths:
            if path in self._shards:
                self._close_unused(path)
        locks: list[folder.VersionLock] = []
        try:
            for path in paths:
                locks.append(folder.VersionLock(path, self._holder))
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return locks

    def _close_unused(self, path: Path) -> None:
        """Close a shard that lingers.

        Raises:
            StoreLocked: If it is in use.
        """
        users = {one.program for one in self._handles.values() if one.shard.path == path}
        if None in users:
            raise _in_use(path, "in this program; close it first")
        if users:
            raise _in_use(path, "by another program, through this one; end that first")
        self._close(path)

    def _close(self, path: Path) -> None:
        self._handles = {number: one for number, one in self._handles.items() if one.shard.path != path}
        self._shards.pop(path).close()

    def close_idle(self) -> None:
        """Close the shards that nobody has used for a while, so that other processes can.

        Those that another version has replaced are removed: they were there for their last reader only.
        """
        now = time.monotonic()
        in_use = {one.shard.path for one in self._handles.values()}
        for path, shard in list(self._shards.items()):
            if path not in in_use and now - shard.idle_since >= LINGER_S:
                self._close_for_good(path)

    def end(self) -> None:
        """Remove the shards that another version has replaced, flush the others; the process ends next."""
        self._handles.clear()
        for path in list(self._shards):
            self._close_for_good(path, retired_only=True)
        for shard in self._shards.values():
            shard.end()

    def _close_for_good(self, path: Path, *, retired_only: bool = False) -> None:
        """Close a shard that nobody uses, and remove it if it is retired; or leave it for another time.

        That is while another process writes live.json. Nobody waits for it: it may be stopped.
        """
        try:
            with folder.switching(path.parent, wait=False) as ours:
                if ours:
                    try:
                        retired = folder.is_retired(path)
                    except StoreError:  # damaged; whoever opens the collection will be told
                        retired = False
                    if retired or not retired_only:
                        self._shards.pop(path).close(remove=retired)
        except FileNotFoundError:  # somebody removed the folder under us
            if path in self._shards:
                self._close(path)


def _in_use(path: Path, by: str) -> StoreLocked:
    return StoreLocked(f"the collection {path.parent.name!r} in {str(path.parent.parent)!r} is open {by}")


def main() -> None:
    """Serve requests from standard input until it ends or the parent process is gone.

    A request is a pickle of (operation, arguments), an answer one of (True, result) or (False, exception).
    The first is ("hello", (parent pid, the folder for a socket if other programs may connect or None, and
    what `Worker` takes)), and the answer the path of the socket or "".
    """
    requests, replies = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # a stray print must not end up in an answer

    first = _read(requests)
    if first is None:
        return
    parent, share_in, holder, *options = first[1]
    listener: Listener | None = None
    try:
        if share_in is not None:
            listener = Listener(share_in)
            holder = replace(holder, socket=str(listener.path), sharing=folder.SHARING)
    except OSError as error:
        failure = f"cannot make a socket in {str(share_in)!r}, to share the store: {error.strerror or error}"
        _write(replies, (False, StoreError(failure)))
        return
    worker = Worker(holder, *options)
    _write(replies, (True, holder.socket))
    turns = Turns(requests, replies, listener, on_leave=worker.leave)
    looked = time.monotonic()
    try:
        # A forked child of the program may keep the pipe open after it is gone, hence the look at the parent.
        while os.getppid() == parent and not turns.ended:
            program = turns.next(LINGER_S)
            if program is not None:
                asker = None if program is turns.own else program
                turns.answer(program, _answer(worker, program.request, asker))
            if program is None or time.monotonic() - looked >= LINGER_S:
                worker.close_idle()
                looked = time.monotonic()
    finally:
        turns.close()  # first, so that the others soon know
        worker.end()
    os._exit(0)  # at an orderly exit the engine would close its files after all


def _answer(
    worker: Worker, request: tuple[str, tuple[Any, ...]], program: Program | None
) -> tuple[bool, Any]:
    operation = "answer"
    try:
        operation, arguments = request
        return True, worker.answer(operation, arguments, program)
    except ImretError as error:
        return False, error
    except Exception as error:  # Edge raises bare Exception with a text
        traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror + (f": {error.filename!r}" if error.filename else "")
        hint = " Free some space and run the command again." if "No space left" in text else ""
        return False, StoreError(f"the embedded store failed to {operation.replace('_', ' ')}: {text}.{hint}")


def _read(descriptor: int) -> Any | None:
    """Return the next message, or None at the end; it is our own parent's, so unpickling it is safe."""
    header = _read_exactly(descriptor, HEADER_BYTES)
    body = None if header is None else _read_exactly(descriptor, int.from_bytes(header, "little"))
    return None if body is None else pickle.loads(body)


def _read_exactly(descriptor: int, n: int) -> bytearray | None:
    received = bytearray()
    while len(received) < n:
        chunk = os.read(descriptor, min(n - len(received), 1 << 20))
        if not chunk:
            return None
        received += chunk
    return received


def _write(descriptor: int, message: object) -> None:
    body = pickle.dumps(message, protocol=5)
    left = memoryview(len(body).to_bytes(HEADER_BYTES, "little") + body)
    while left:
        left = left[os.write(descriptor, left) :]


def _read_ahead(shard: Path) -> None:
    """Read from start to end what the engine is about to map: it touches pages one by one, in no order.

    All but vectors and payloads, of which a search takes a few. From a disk that is twelve times as fast, and
    where the files are in memory already it costs little.
    """
    buffer = bytearray(1 << 20)
    for parent, folders, names in os.walk(shard / "segments"):
        folders[:] = set(folders) - {"payload_storage", "vectors"}
        for name in set(names) - {"matrix.dat"}:  # vectors too, of an indexed segment
            with suppress(OSError), open(os.path.join(parent, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def _give_back_memory() -> None:
    """Have the C library return what was freed to the system: glibc keeps it, a hundred MB after an index."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _index_of(field: str) -> Any:
    # No links in the graph for numbers and moments: with them, 30,000 vectors of 1,024 took four times as
    # long to index (88 s), and behind a range that keeps a tenth ACORN finds as much without (recall 0.998;
    # 0.51 with neither).
    mapped = qe.Memory.Cached
    if field in INTEGER_FIELDS:
        return qe.IntegerIndexParams(lookup=True, range=True, enable_hnsw=False, memory=mapped)
    if field in MOMENT_FIELDS:
        return qe.DatetimeIndexParams(enable_hnsw=False, memory=mapped)
    if field in ("path", "sha256"):  # a value for each point
        return qe.KeywordIndexParams(memory=mapped)
    # On the heap: a walk looks up each point that it comes to, and takes half the time, at a million points.
    return qe.PayloadSchemaType.Keyword


def _filter(only: Filter | None) -> qe.Filter | None:
    if not only:
        return None
    return qe.Filter(
        must=[_condition(one) for one in only.must],
        must_not=[_condition(one) for one in only.must_not],
    )


def _has_links(only: Filter | None) -> bool:
    """Whether the graph has links of their own between the points that a filter keeps.

    They are between points of one value. ACORN, which steps over the others, then takes two to four times as
    long, and finds no more.
    """
    if not only or only.must_not or len(only.must) != 1:
        return False
    match = only.must[0]
    return isinstance(match, Match) and match.field in KEYWORD_FIELDS and len(match.values) == 1


def _condition(one: Condition) -> qe.FieldCondition | qe.HasIdCondition | qe.Filter:
    if isinstance(one, Ids):
        return qe.HasIdCondition(set(one.ids))
    if isinstance(one, Range):
        if one.of_moments:
            return qe.FieldCondition(key=one.field, range=qe.RangeDateTime(**one.moments()))
        return qe.FieldCondition(key=one.field, range=qe.RangeFloat(**one.numbers()))
    return _match(one)


def _match(match: Match) -> qe.FieldCondition | qe.Filter:
    texts = [value for value in match.values if isinstance(value, str)]
    numbers = [value for value in match.values if isinstance(value, int)]
    by_type = [
        qe.FieldCondition(key=match.field, match=qe.MatchAny(values))  # either type
        for values in (texts, numbers)
        if values
    ]
    return by_type[0] if len(by_type) == 1 else qe.Filter(should=list(by_type))


def _row(record: qe.Record) -> Row:
    vector = None if record.vector is None else np.asarray(record.vector, dtype=np.float32)
    return str(record.id), record.payload or {}, vector, None


def _engine_version() -> str:
    return f"qdrant-edge-py {package_version('qdrant-edge-py')}"


if __name__ == "__main__":
    sys.exit("this is the worker of imret's embedded store; it is started by imret.store.edge")
