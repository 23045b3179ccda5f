"""The engines that `index.py` compares: what each builds, and how it is asked. Peers are loaded when used."""

from __future__ import annotations

import importlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hard_vectors import LIMIT, SHARES, Case, allowed
from numpy.typing import NDArray

M, EF_CONSTRUCT = 16, 200  # of every graph, imret's too
FIELDS = {"random": "source", "corner": "category"}  # payload field in which a filter asks for one value
FIRST_SIZE = 50_000  # size_bytes of the first point, one more for each
COLLECTION = "hard"

Ask = Callable[[NDArray[np.float32]], Sequence[int]]


def _filter(case: Case, labels: Any) -> Any:
    from imret.store import Filter, Match, Range

    rows = allowed(labels, case)
    if rows is None:
        return None
    if case.kind == "range":
        return Filter(must=(Range("size_bytes", lt=FIRST_SIZE + len(rows)),))
    return Filter(must=(Match(FIELDS[case.kind], (case.share,)),))


class Imret:
    """The embedded store, through its public interface."""

    def __init__(self, folder: Path) -> None:
        from imret import open_store

        self._store = open_store(str(folder / "imret"))
        self._collection: Any = None

    def build(self, vectors: NDArray[np.float32], labels: Any) -> dict[str, float]:
        from imret.store import Identity
        from imret.store.payload import make_payload

        identity = Identity("synthetic", "0" * 16, vectors.shape[1])
        started, indexing = time.perf_counter(), 0.0
        collection = self._store.open_version(COLLECTION, identity)
        names = [*SHARES, "rest"]
        for start in range(0, len(vectors), 5_000):
            rows = range(start, min(start + 5_000, len(vectors)))
            payloads = [
                make_payload(
                    source=names[labels["random"][i]],
                    path=f"{i % 1000}/photo-{i}.jpg",
                    category=names[labels["corner"][i]],
                    sha256=f"{i:064x}",
                    width=500,
                    height=375,
                    size_bytes=FIRST_SIZE + i,
                    modified="2026-01-01T00:00:00.000000Z",
                )
                for i in rows
            ]
            ids = [str(uuid.UUID(int=i)) for i in rows]
            collection.upsert(ids, np.ascontiguousarray(vectors[rows.start : rows.stop]), payloads)
            if collection.needs_optimize():  # as an ingest does
                before = time.perf_counter()
                collection.optimize()
                indexing += time.perf_counter() - before
        stored = time.perf_counter() - started - indexing
        collection.optimize()
        self._store.promote(COLLECTION, identity)
        stats = collection.stats()
        collection.close()
        return {"store_s": stored, "disk_mb": (stats.disk_bytes or 0) / 1e6, "indexed": stats.indexed}

    def open(self) -> None:
        self._collection = self._store.open(COLLECTION)

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        where = _filter(case, labels)
        search = self._collection.search
        return lambda query: [uuid.UUID(hit.id).int for hit in search(query, limit=LIMIT, filter=where)]

    def close(self) -> None:
        self._store.close()


class Shard(Imret):
    """The same files without worker and pipe, in this process: what the engine itself takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "imret"
        self._shard: Any = None

    def open(self) -> None:
        from imret.store.embedded.locks import LockOwner
        from imret.store.embedded.shard import Shard as OpenShard

        path = next((self._folder / COLLECTION).glob("*/shard")).parent
        self._shard = OpenShard(
            path, None, owner=LockOwner(os.getpid(), "benchmark", ""), index_from_kb=10_000
        )

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        where = _filter(case, labels)
        search = self._shard.search
        return lambda query: [uuid.UUID(row[0]).int for row in search(query, LIMIT + 8, where, False)[:LIMIT]]

    def close(self) -> None:
        self._shard.close()


class Numpy:
    """Exact search; a filter is a list of rows, made beforehand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        self._vectors: NDArray[np.float32] = np.load(self._folder / "vectors.npy")

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        rows, vectors = allowed(labels, case), self._vectors

        def ask(query: NDArray[np.float32]) -> Sequence[int]:
            scores = vectors @ query if rows is None else vectors[rows] @ query
            k = min(LIMIT, len(scores))
            best = np.argpartition(-scores, k - 1)[:k]
            return (best if rows is None else rows[best]).tolist()  # type: ignore[no-any-return]

        return ask

    def close(self) -> None:
        pass


class Hnswlib:
    """Its filter is a Python function, called for each candidate; the method of a list is the fastest."""

    def __init__(self, folder: Path) -> None:
        self._file = str(folder / "hnswlib.bin")
        self._module: Any = importlib.import_module("hnswlib")

    def build(self, vectors: NDArray[np.float32], labels: Any) -> dict[str, float]:
        index = self._module.Index(space="ip", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), M=M, ef_construction=EF_CONSTRUCT)
        index.set_num_threads(1)
        for start in range(0, len(vectors), 50_000):
            index.add_items(vectors[start : start + 50_000])
        index.save_index(self._file)
        return {"disk_mb": os.path.getsize(self._file) / 1e6}

    def open(self) -> None:
        dim = np.load(Path(self._file).parent / "vectors.npy", mmap_mode="r").shape[1]
        self._index = self._module.Index(space="ip", dim=dim)
        self._index.load_index(self._file)
        self._index.set_num_threads(1)

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        index, rows = self._index, allowed(labels, case)
        index.set_ef(setting)
        if rows is None:
            return lambda query: index.knn_query(query, k=LIMIT, num_threads=1)[0][0].tolist()  # type: ignore[no-any-return]
        keeps = np.isin(np.arange(len(labels["random"])), rows).tolist()
        k = min(LIMIT, len(rows))

        def ask(query: NDArray[np.float32]) -> Sequence[int]:
            try:
                neighbours = index.knn_query(query, k=k, num_threads=1, filter=keeps.__getitem__)
                return neighbours[0][0].tolist()  # type: ignore[no-any-return]
            except RuntimeError:  # it found fewer than k, and then returns none
                return []

        return ask

    def close(self) -> None:
        pass


class Faiss:
    """IndexHNSWFlat; M = 16 gives the lowest layer 32 links there as in the others. A filter is a bitmap."""

    def __init__(self, folder: Path) -> None:
        self._file = str(folder / "faiss.bin")
        self._module: Any = importlib.import_module("faiss")
        self._module.omp_set_num_threads(1)

    def build(self, vectors: NDArray[np.float32], labels: Any) -> dict[str, float]:
        index = self._module.IndexHNSWFlat(vectors.shape[1], M, self._module.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCT
        for start in range(0, len(vectors), 50_000):
            index.add(np.ascontiguousarray(vectors[start : start + 50_000]))
        self._module.write_index(index, self._file)
        return {"disk_mb": os.path.getsize(self._file) / 1e6}

    def open(self) -> None:
        self._index = self._module.read_index(self._file)

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        index, rows = self._index, allowed(labels, case)
        options = {"efSearch": setting}
        bits = None
        if rows is not None:
            bits = np.packbits(np.isin(np.arange(index.ntotal), rows), bitorder="little")
            options["sel"] = self._module.IDSelectorBitmap(bits)
        parameters = self._module.SearchParametersHNSW(**options)

        def ask(query: NDArray[np.float32], _kept: Any = bits) -> Sequence[int]:
            neighbours = index.search(query[None], LIMIT, params=parameters)[1][0]
            return [i for i in neighbours.tolist() if i >= 0]

        return ask

    def close(self) -> None:
        pass


CLASSES: dict[str, Any] = {
    "imret": Imret, "shard": Shard, "numpy": Numpy, "hnswlib": Hnswlib, "faiss": Faiss,
}  # fmt: skip
