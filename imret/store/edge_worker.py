"""The process that owns the shards of an embedded store.

Qdrant Edge keeps Python's interpreter lock while it searches and while it builds an index (a second each
2,000 vectors), and a shard can be open only once. So one process of its own holds the shards, and
`imret.store.edge` talks to it over pipes. It ends when the pipe closes or its parent is gone.
"""

from __future__ import annotations

import os
import pickle
import select
import shutil
import sys
import time
import traceback
from importlib.metadata import version as package_version
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import qdrant_edge as qe
from numpy.typing import NDArray

from imret.errors import DataError, ImretError, StoreError, StoreLocked
from imret.store import edge_folder as folder
from imret.store.contract import (
    HNSW_EF,
    INDEXED_FIELDS,
    INTEGER_FIELDS,
    MOMENT_FIELDS,
    OVERSAMPLING,
    Condition,
    Filter,
    Identity,
    Ids,
    Match,
    Range,
)

HEADER_BYTES = 8  # length of the pickle that follows, little-endian
LINGER_S = 1.0  # a shard stays open this long after its last handle: opening 100,000 points takes a second

# Edge writes through memory maps into sparse files: on a full disk that is a signal which kills, not an
# error. 32 MiB each for two log files and the open page of the segment, and something to spare.
MIN_FREE_BYTES = 150_000_000

# (id, payload, vector or None, score or None): what travels over the pipe
Row: TypeAlias = tuple[str, dict[str, Any], Any, float | None]


class Shard:
    """One open version.

    Args:
        path: Folder of the version.
        identity: The encoder to make it for if it does not exist, or None to open only.
        holder: Whom to name to other processes.
        timeout_s: How long to wait for another process that has it open.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built.
        empty: Make it anew, whatever is there.

    Raises:
        StoreLocked: If another process has it open.
        DataError: If it does not exist and `identity` is None.
        StoreError: If its files cannot be read, or belong to another encoder.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity | None,
        *,
        holder: folder.Holder,
        timeout_s: float,
        index_from_kb: int,
        empty: bool = False,
    ) -> None:
        self.path = path
        self.idle_since = 0.0
        if identity is not None:
            path.parent.mkdir(exist_ok=True)
        try:
            self._lock = folder.VersionLock(path, holder, timeout_s)
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
            vectors=qe.EdgeVectorParams(size=identity.dim, distance=qe.Distance.Cosine),
            hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
            quantization_config=qe.ScalarQuantizationConfig(
                type=qe.ScalarType.Int8, quantile=0.99, memory=qe.Memory.Pinned
            ),
            optimizers=qe.EdgeOptimizersConfig(indexing_threshold=index_from_kb),
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

    def close(self) -> None:
        """Flush and close the files, and let other processes have them."""
        try:
            self.engine.close()
        finally:
            self._lock.release()

    def upsert(self, ids: list[str], vectors: NDArray[np.float32], payloads: list[dict[str, Any]]) -> None:
        self._check_free()
        points = [
            qe.Point(id=one, vector=vector, payload=payload)  # takes float32 rows
            for one, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]
        self.engine.update(qe.UpdateOperation.upsert_points(points))

    def overwrite_payloads(self, ids: list[str], payloads: list[dict[str, Any]]) -> None:
        self._check_free()
        found = {str(record.id) for record in self.engine.retrieve(list(ids), False, False)}
        missing = [one for one in ids if one not in found]
        if missing:
            raise DataError(f"collection {self.path.parent.name!r} holds no point {missing[0]}")
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
        self.engine.update(qe.UpdateOperation.delete_points(list(ids)))

    def search(self, vector: NDArray[np.float32], limit: int, only: Filter | None, exact: bool) -> list[Row]:
        # Without an index nobody knows how few pass, and a walk that goes only where they are finds half.
        if only and not only.fields <= set(self.engine.info().payload_schema):
            exact = True
        quantization = qe.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
        request = qe.QueryRequest(
            query=qe.Query.Nearest(vector),  # type: ignore[arg-type]  # takes a float32 array
            filter=_filter(only),
            limit=limit,
            params=qe.SearchParams(
                hnsw_ef=HNSW_EF,
                exact=exact,
                quantization=quantization,
                acorn=qe.AcornSearchParams(enable=bool(only)),
            ),
            with_payload=True,
        )
        return [
            (str(hit.id), hit.payload or {}, None, max(-1.0, min(1.0, hit.score)))
            for hit in self.engine.query(request)
        ]

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

    def optimize(self) -> None:
        self._check_free()
        self.engine.flush()
        self._optimizing.touch()
        self.engine.optimize()
        self.engine.flush()
        self._optimizing.unlink(missing_ok=True)

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


class Worker:
    """Answers requests, one after the other, for the shards of one store.

    Args:
        holder: Whom to name to other processes.
        timeout_s: How long to wait for another process that has a version open.
        index_from_kb: As for `Shard`.
    """

    def __init__(self, holder: folder.Holder, timeout_s: float, index_from_kb: int) -> None:
        self._options: dict[str, Any] = {
            "holder": holder,
            "timeout_s": timeout_s,
            "index_from_kb": index_from_kb,
        }
        self._shards: dict[Path, Shard] = {}
        self._handles: dict[int, Shard] = {}
        self._next_handle = count(1)

    def answer(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        """Return what a request asks for.

        Args:
            operation: "open", "remove", "drop" or "rename", or one for an open shard: "close" or a
                method of `Shard`.
            arguments: For an open shard its handle, then what the method takes.
        """
        if operation == "open":
            return self._open(*arguments)
        if operation == "remove":
            return self._remove([arguments[0]])
        if operation == "drop":
            return self._drop(arguments[0])
        if operation == "rename":
            return self._rename(*arguments)
        handle, *others = arguments
        if handle not in self._handles:
            raise StoreError("this collection was dropped while it was open")
        if operation == "close":
            shard = self._handles.pop(handle)
            shard.idle_since = time.monotonic()
            return None
        return getattr(self._handles[handle], operation)(*others)

    def _open(self, path: Path, identity: Identity | None, empty: bool) -> tuple[int, Identity]:
        if empty and path in self._shards:
            self._close_unused(path)
        shard = self._shards.get(path)
        if shard is None:
            shard = self._shards[path] = Shard(path, identity, empty=empty, **self._options)
            shard.idle_since = time.monotonic()
        elif identity is not None:
            shard.resume(identity)
        handle = next(self._next_handle)
        self._handles[handle] = shard
        return handle, shard.identity

    def _drop(self, collection: Path) -> None:
        """Remove a collection, also where this program has it open.

        Raises:
            StoreLocked: If another process has a version open; then nothing is removed.
        """
        paths = folder.version_folders(collection)
        for path in paths:
            if path in self._shards:
                self._close(path)
        self._remove(paths)
        if collection.is_dir():
            folder.move_to_trash(collection)

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
                locks.append(folder.VersionLock(path, self._options["holder"], 0.0))
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
        if self._in_use(path):
            raise StoreLocked(
                f"the collection {path.parent.name!r} in {str(path.parent.parent)!r} is open in this "
                "program; close it first"
            )
        self._close(path)

    def _in_use(self, path: Path) -> bool:
        return any(shard.path == path for shard in self._handles.values())

    def _close(self, path: Path) -> None:
        self._handles = {handle: shard for handle, shard in self._handles.items() if shard.path != path}
        self._shards.pop(path).close()

    def close_idle(self) -> None:
        """Close the shards that nobody has used for a while, so that other processes can."""
        now = time.monotonic()
        for path, shard in list(self._shards.items()):
            if not self._in_use(path) and now - shard.idle_since >= LINGER_S:
                self._close(path)

    def close(self) -> None:
        """Flush and close every shard."""
        for path in list(self._shards):
            self._close(path)


def main() -> None:
    """Serve requests from standard input until it ends or the parent process is gone.

    A request is a pickle of (operation, arguments), an answer one of (True, result) or (False, exception).
    The first is ("hello", (parent pid, and what `Worker` takes)).
    """
    requests, replies = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # a stray print must not end up in an answer

    first = _read(requests)
    if first is None:
        return
    parent, *options = first[1]
    worker = Worker(*options)
    _write(replies, (True, os.getpid()))
    try:
        while os.getppid() == parent:
            # A forked child of the program may keep the pipe open after it is gone, hence the look above.
            if not select.select([requests], [], [], LINGER_S)[0]:
                worker.close_idle()
                continue
            request = _read(requests)
            if request is None:
                break
            _write(replies, _answer(worker, request))
    except BrokenPipeError:
        pass
    finally:
        worker.close()


def _answer(worker: Worker, request: tuple[str, tuple[Any, ...]]) -> tuple[bool, Any]:
    operation, arguments = request
    try:
        return True, worker.answer(operation, arguments)
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


def _index_of(field: str) -> Any:
    # No links in the graph for numbers and moments: with them, 30,000 vectors of 1,024 took four times as
    # long to index (88 s), and behind a range that keeps a tenth ACORN finds as much without (recall 0.998;
    # 0.51 with neither).
    if field in INTEGER_FIELDS:
        return qe.IntegerIndexParams(lookup=True, range=True, enable_hnsw=False)
    if field in MOMENT_FIELDS:
        return qe.DatetimeIndexParams(enable_hnsw=False)
    return qe.PayloadSchemaType.Keyword


def _filter(only: Filter | None) -> qe.Filter | None:
    if not only:
        return None
    return qe.Filter(
        must=[_condition(one) for one in only.must],
        must_not=[_condition(one) for one in only.must_not],
    )


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
