"""The vector index: the embedded store against numpy, hnswlib and faiss.

    pip install hnswlib faiss-cpu
    python benchmarks/index.py build WORK [--points N ...]       (minutes; an hour for a million)
    python benchmarks/index.py ask WORK [--points N ...] [--output FILE.md]

Recall, latency, memory and build. Every engine has a process of its own, on one core, and all are asked the
same queries in turns. imret is asked through its own store, as users ask it: worker process, pipe, payloads
and all. The peers return row numbers only.

The data are hard on purpose. Two thousand overlapping clusters in every dimension there is, with a spectrum
that falls off slowly: at equal numbers the nearest is further off, and the local dimension higher, than among
real embeddings of photos. Half of the queries are drawn as the points are; the others are to them as texts
are to photos: moved off by a vector of their own kind, and blurred. A filter keeps a tenth, a hundredth or a
thousandth: at random, or a corner of the space that no query comes from, whose clusters are no query's own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import cores
from numpy.typing import NDArray

DIMS = {1_000: 1024, 10_000: 1024, 100_000: 1024, 1_000_000: 256}
CLUSTERS = 2000
DECAY = 0.5  # the k-th latent direction has the scale k ** -DECAY
NOISE = 0.1  # per dimension, before normalising
QUERIES = 400
LIMIT = 10
M, EF_CONSTRUCT = 16, 200  # of every graph, imret's too
EF_LADDER = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
SHARES = {"tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001}
FIELDS = {"random": "source", "corner": "category"}  # payload field in which a filter asks for one value
KINDS = {"random": "random", "corner": "corner", "range": "random, range of a number"}
FIRST_SIZE = 50_000  # size_bytes of the first point, one more for each
ROUNDS = 5
ENGINES = ("imret", "numpy", "hnswlib", "faiss")
COLLECTION = "hard"
FLOAT = np.float32


class Case(NamedTuple):
    """A filter: all points, or the share of them that has one value, or a number in a range."""

    kind: str  # "none", "random", "corner" or "range"
    share: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.share}" if self.share else self.kind

    def __str__(self) -> str:
        return f"{100 * SHARES[self.share]:g} %, {KINDS[self.kind]}" if self.share else "none"


CASES = (Case("none"), *(Case(kind, share) for kind in KINDS for share in SHARES))


# ---- Data ---------------------------------------------------------------------------------------


def make_data(folder: Path, n: int, dim: int) -> None:
    """Write vectors (N, dim), labels and queries (Q, dim) to a folder."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, dim + 1, dtype=FLOAT) ** -DECAY
    scale /= np.sqrt((scale**2).mean())
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(FLOAT)
    centres = rng.standard_normal((CLUSTERS, dim), dtype=FLOAT) * scale
    corner_first = np.argsort(np.argsort(-centres[:, 0]))  # rank of a cluster along the widest direction

    def draw(clusters: NDArray[np.int64]) -> NDArray[np.float32]:
        latent = centres[clusters] + scale * rng.standard_normal((len(clusters), dim), dtype=FLOAT)
        return _unit(latent @ rotation + NOISE * rng.standard_normal(latent.shape, dtype=FLOAT))

    clusters = rng.integers(CLUSTERS, size=n)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (n, dim))
    for start in range(0, n, 50_000):
        vectors[start : start + 50_000] = draw(clusters[start : start + 50_000])
    labels = {
        "random": _share_out(rng.permutation(n)),
        "corner": _share_out(np.argsort(corner_first[clusters], kind="stable")),
    }
    far = np.flatnonzero(corner_first > CLUSTERS // 5)
    queries = draw(rng.choice(far, QUERIES))
    half = QUERIES // 2
    gap = _unit(rng.standard_normal((1, dim), dtype=FLOAT))
    blur = _unit(rng.standard_normal((half, dim), dtype=FLOAT))
    queries[half:] = _unit(0.6 * queries[half:] + 0.5 * gap + 0.6 * blur)
    np.save(folder / "queries.npy", queries)
    np.savez(folder / "labels.npz", **labels)


def make_answers(folder: Path) -> None:
    """Write what an exact search of every case gives: the tenth score, and of all points the best hundred."""
    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    labels, n = dict(np.load(folder / "labels.npz")), len(vectors)
    scores = np.empty((QUERIES, n), dtype=FLOAT)
    for start in range(0, n, 50_000):
        scores[:, start : start + 50_000] = queries @ vectors[start : start + 50_000].T
    answers = {case.key: _tenth_best(scores, _allowed(labels, case)) for case in CASES}
    answers["best"] = -np.sort(-np.partition(scores, n - 100, axis=1)[:, n - 100 :], axis=1)
    np.savez(folder / "answers.npz", **answers)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(FLOAT)


def _share_out(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels (N,): the first thousandth in an order gets 2, the next hundredth 1, the next tenth 0."""
    labels, start = np.full(len(order), -1), 0
    for number, share in reversed(list(enumerate(SHARES.values()))):
        end = start + max(1, round(share * len(order)))
        labels[order[start:end]] = number
        start = end
    return labels


def _allowed(labels: Any, case: Case) -> NDArray[np.int64] | None:
    """Return the rows that a filter keeps, or None for all."""
    if not case.share:
        return None
    if case.kind == "range":
        return np.arange(max(1, round(SHARES[case.share] * len(labels["random"]))))
    return np.flatnonzero(labels[case.kind] == list(SHARES).index(case.share))


def _tenth_best(scores: NDArray[np.float32], rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """Return the exact score (Q,) at rank 10, or the last where fewer pass."""
    kept = scores if rows is None else scores[:, rows]
    k = min(LIMIT, kept.shape[1])
    return np.partition(kept, kept.shape[1] - k, axis=1)[:, kept.shape[1] - k]


def local_dimension(best: NDArray[np.float32]) -> float:
    """Return the median local intrinsic dimension, by maximum likelihood from the 100 nearest.

    Source: Levina & Bickel (2004), Maximum Likelihood Estimation of Intrinsic Dimension.
    """
    distance = np.sqrt(np.maximum(2 - 2 * best, 1e-9))
    return float(np.median(-1 / np.log(distance[:, :-1] / distance[:, -1:]).mean(axis=1)))


# ---- Engines ------------------------------------------------------------------------------------

Ask = Callable[[NDArray[np.float32]], Sequence[int]]


def _filter(case: Case, labels: Any) -> Any:
    from imret.store import Filter, Match, Range

    rows = _allowed(labels, case)
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
        from imret.payload import make_payload
        from imret.store import Identity

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
            if collection.index_lags():  # as an ingest does
                before = time.perf_counter()
                collection.optimize()
                indexing += time.perf_counter() - before
        stored = time.perf_counter() - started - indexing
        collection.optimize()
        self._store.switch(COLLECTION, identity)
        stats = collection.stats()
        collection.close()
        return {"store_s": stored, "disk_mb": (stats.disk_bytes or 0) / 1e6, "indexed": stats.indexed}

    def open(self) -> None:
        self._collection = self._store.open(COLLECTION)

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        only = _filter(case, labels)
        search = self._collection.search
        return lambda query: [uuid.UUID(hit.id).int for hit in search(query, limit=LIMIT, filter=only)]

    def close(self) -> None:
        self._store.close()


class Shard(Imret):
    """The same files without worker and pipe, in this process: what the engine itself takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "imret"
        self._shard: Any = None

    def open(self) -> None:
        from imret.store.edge_folder import Holder
        from imret.store.edge_shard import Shard as OpenShard

        path = next((self._folder / COLLECTION).glob("*/shard")).parent
        self._shard = OpenShard(path, None, holder=Holder(os.getpid(), "benchmark", ""), index_from_kb=10_000)

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        only = _filter(case, labels)
        search = self._shard.search
        return lambda query: [uuid.UUID(row[0]).int for row in search(query, LIMIT + 8, only, False)[:LIMIT]]

    def close(self) -> None:
        self._shard.close()


class Numpy:
    """Exact search; a filter is a list of rows, made beforehand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        self._vectors: NDArray[np.float32] = np.load(self._folder / "vectors.npy")

    def ask(self, case: Case, labels: Any, setting: int) -> Ask:
        rows, vectors = _allowed(labels, case), self._vectors

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
        index, rows = self._index, _allowed(labels, case)
        index.set_ef(setting)
        if rows is None:
            return lambda query: index.knn_query(query, k=LIMIT, num_threads=1)[0][0].tolist()  # type: ignore[no-any-return]
        keeps = np.isin(np.arange(len(labels["random"])), rows).tolist()
        k = min(LIMIT, len(rows))

        def ask(query: NDArray[np.float32]) -> Sequence[int]:
            try:
                found = index.knn_query(query, k=k, num_threads=1, filter=keeps.__getitem__)
                return found[0][0].tolist()  # type: ignore[no-any-return]
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
        index, rows = self._index, _allowed(labels, case)
        options = {"efSearch": setting}
        bits = None
        if rows is not None:
            bits = np.packbits(np.isin(np.arange(index.ntotal), rows), bitorder="little")
            options["sel"] = self._module.IDSelectorBitmap(bits)
        parameters = self._module.SearchParametersHNSW(**options)

        def ask(query: NDArray[np.float32], _kept: Any = bits) -> Sequence[int]:
            found = index.search(query[None], LIMIT, params=parameters)[1][0]
            return [i for i in found.tolist() if i >= 0]

        return ask

    def close(self) -> None:
        pass


CLASSES: dict[str, Any] = {
    "imret": Imret, "shard": Shard, "numpy": Numpy, "hnswlib": Hnswlib, "faiss": Faiss,
}  # fmt: skip


# ---- A process for each engine --------------------------------------------------------------------


@dataclass
class Answers:
    """What one pass over the queries gave.

    Attributes:
        found: Row numbers, for each query that was asked, best first.
        waits: (n,) milliseconds.
    """

    found: list[list[int]]
    waits: list[float]


def build_in_process(engine: str, folder: Path, core: int) -> None:
    """Build one engine's index and write what that took beside it."""
    os.sched_setaffinity(0, {core})
    vectors, labels = np.load(folder / "vectors.npy", mmap_mode="r"), dict(np.load(folder / "labels.npz"))
    built = CLASSES[engine](folder)
    ended = threading.Event()
    peak = [0.0]
    watch = threading.Thread(target=_watch, args=(ended, peak), daemon=True)
    watch.start()
    started, before = time.perf_counter(), _cpu_seconds()
    took = built.build(vectors, labels)
    took["wall_s"] = time.perf_counter() - started
    took["ef_construct"] = EF_CONSTRUCT
    took["cpu_s"] = _cpu_seconds() - before
    ended.set()
    built.close()
    took["peak_mb"] = peak[0]
    (folder / f"{engine}.json").write_text(json.dumps(took))
    print(f"{len(vectors):,} {engine}: {took}", file=sys.stderr, flush=True)


def answer(engine: str, folder: Path, core: int, line: Any) -> None:
    """Answer (case, setting, seconds, first queries) over a pipe, each with `Answers`, until told None."""
    os.sched_setaffinity(0, {core})
    labels = dict(np.load(folder / "labels.npz"))
    queries = np.load(folder / "queries.npy")
    asked = CLASSES[engine](folder)
    started = time.perf_counter()
    asked.open()
    line.send(time.perf_counter() - started)
    while (request := line.recv()) is not None:
        if request == "memory":
            line.send(_memory_mb())
            continue
        case, setting, seconds, order = request
        ask = asked.ask(case, labels, setting)
        answers = Answers([], [])
        end = time.perf_counter() + seconds
        for number in order:
            before = time.perf_counter()
            found = ask(queries[number])
            now = time.perf_counter()
            answers.found.append(list(found))
            answers.waits.append(1e3 * (now - before))
            if now > end and len(answers.waits) >= 8:
                break
        line.send(answers)
    asked.close()


def _watch(ended: threading.Event, peak: list[float]) -> None:
    while not ended.wait(0.2):
        peak[0] = max(peak[0], _memory_mb()[0])


def _processes() -> list[int]:
    found = [os.getpid()]
    for file in Path("/proc/self/task").glob("*/children"):
        found += [int(one) for one in file.read_text().split()]
    return found


def _memory_mb() -> tuple[float, float]:
    """Return what this process and its worker hold: beyond files, and of mapped files; in MB."""
    anon = file = 0.0
    for one in _processes():
        try:
            status = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        anon += sum(int(kb) for kb in re.findall(r"RssAnon:\s+(\d+)", status)) / 1e3
        file += sum(int(kb) for kb in re.findall(r"RssFile:\s+(\d+)", status)) / 1e3
    return anon, file


def _cpu_seconds() -> float:
    total = 0.0
    for one in _processes():
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Process:
    """An engine that answers in a process of its own."""

    def __init__(self, engine: str, folder: Path, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=answer, args=(engine, folder, core, theirs))
        self._process.start()
        theirs.close()
        self.opened_s: float = self._line.recv()

    def ask(self, case: Case, setting: int, seconds: float, order: Sequence[int]) -> Answers:
        self._line.send((case, setting, seconds, order))
        return self._line.recv()  # type: ignore[no-any-return]

    def memory_mb(self) -> tuple[float, float]:
        self._line.send("memory")
        return self._line.recv()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._line.send(None)
        self._process.join()


# ---- What is measured ---------------------------------------------------------------------------


class Truth:
    """Knows the exact answers of one size."""

    def __init__(self, folder: Path) -> None:
        self._vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self._labels = dict(np.load(folder / "labels.npz"))
        self._queries = np.load(folder / "queries.npy")
        self._stored = dict(np.load(folder / "answers.npz"))
        self.dim = int(self._vectors.shape[1])
        self.best = self._stored["best"]

    def recalls(self, case: Case, order: Sequence[int], answers: Answers) -> NDArray[np.float64]:
        """Return the recall@10 (n,) of each query; a hit is as near as the tenth, so ties cost nothing."""
        rows = _allowed(self._labels, case)
        k = min(LIMIT, len(self._vectors) if rows is None else len(rows))
        share = []
        for number, found in zip(order, answers.found, strict=False):
            vectors = self._vectors[sorted(set(found))]
            scores = vectors @ self._queries[number]
            share.append(min(k, int((scores >= self._stored[case.key][number] - 1e-6).sum())) / k)
        return np.array(share)


@dataclass
class Line:
    """One engine's figures of one case: recall of both halves of the queries, ms at p50 and p95 by round."""

    setting: int
    recall: float
    recall_text: float
    p50: list[float]
    p95: list[float]
    asked: int


def measure(given: argparse.Namespace, folder: Path) -> tuple[dict[Case, dict[str, Line]], dict[str, Any]]:
    """Ask every engine every case, in turns; return the figures, and memory and opening by engine."""
    truth = Truth(folder)
    # Both halves from the start, for an engine that is too slow to be asked them all.
    order = [i + j for i in range(QUERIES // 2) for j in (0, QUERIES // 2)]
    processes = {engine: Process(engine, folder, given.core) for engine in given.engines}
    lines: dict[Case, dict[str, Line]] = {}
    for case in CASES:
        lines[case] = {}
        aim = 0.99
        for engine, process in processes.items():
            for setting in EF_LADDER if engine in ("hnswlib", "faiss") else (0,):
                answers = process.ask(case, setting, given.seconds, order)
                recall = truth.recalls(case, order, answers)
                slow = len(recall) < 20  # higher settings are slower still
                if recall.mean() >= aim or slow:
                    break
            if engine == "imret":
                aim = float(recall.mean()) - 0.001
            halves = float(recall[0::2].mean()), float(recall[1::2].mean())
            lines[case][engine] = Line(setting, *halves, [], [], len(recall))
        for _ in range(ROUNDS):
            for engine, process in processes.items():
                line = lines[case][engine]
                waits = process.ask(case, line.setting, given.seconds, order).waits
                line.p50.append(float(np.percentile(waits, 50)))
                line.p95.append(float(np.percentile(waits, 95)))
        print(f"{case}: {lines[case]}", file=sys.stderr, flush=True)
    about: dict[str, Any] = {
        engine: {"opened_s": process.opened_s, "memory": process.memory_mb()}
        for engine, process in processes.items()
    }
    for process in processes.values():
        process.close()
    if "imret" in given.engines:
        shard = Process("shard", folder, given.core)
        about["shard"] = {}
        for case in CASES:
            shard.ask(case, 0, given.seconds, order)
            passes = [shard.ask(case, 0, given.seconds, order).waits for _ in range(ROUNDS)]
            about["shard"][case] = statistics.median(float(np.percentile(waits, 50)) for waits in passes)
        shard.close()
    return lines, about


def report(given: argparse.Namespace, folder: Path, n: int) -> Iterator[str]:
    """Yield the lines about one size."""
    truth = Truth(folder)
    lines, about = measure(given, folder)
    yield f"## {n:,} points of {truth.dim} dimensions"
    yield ""
    yield (
        f"Cosine of the nearest, the tenth and the hundredth (medians): {np.median(truth.best[:, 0]):.2f}, "
        f"{np.median(truth.best[:, 9]):.2f}, {np.median(truth.best[:, 99]):.2f}. Local dimension: "
        f"{local_dimension(truth.best[: QUERIES // 2]):.0f} around the queries like the points, "
        f"{local_dimension(truth.best[QUERIES // 2 :]):.0f} around those like texts."
    )
    yield ""
    peers = [engine for engine in given.engines if engine != "imret"]
    yield (
        "| filter | imret recall@10, like points / like texts | p50 ms | p95 ms (least to most) "
        "| p50 without worker | "
        + " | ".join(f"{peer} p50 / p95 ms, recall | its p50 / imret's" for peer in peers)
        + " |"
    )
    yield "|---|---|---|---|---|" + "---|---|" * len(peers)
    for case, engines in lines.items():
        ours = engines["imret"]
        p50 = statistics.median(ours.p50)
        cells = [
            str(case),
            f"{ours.recall:.3f} / {ours.recall_text:.3f}",
            _ms(p50),
            f"{_ms(statistics.median(ours.p95))} ({_ms(min(ours.p95))} to {_ms(max(ours.p95))})",
            _ms(about["shard"][case]),
        ]
        for peer in peers:
            theirs = engines[peer]
            at = f", ef {theirs.setting}" if theirs.setting else ""
            few = f", {theirs.asked} queries" if theirs.asked < QUERIES else ""
            cells.append(
                f"{_ms(statistics.median(theirs.p50))} / {_ms(statistics.median(theirs.p95))}, "
                f"{(theirs.recall + theirs.recall_text) / 2:.3f}{at}{few}"
            )
            cells.append(f"{statistics.median(theirs.p50) / p50:.2g}")
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield (
        "| engine | build, s of one core | its peak beyond files MB | disk MB | open s "
        "| asked: memory beyond files + mapped files MB |"
    )
    yield "|---|---|---|---|---|---|"
    for engine in given.engines:
        file = folder / f"{engine}.json"
        took = json.loads(file.read_text()) if file.exists() else {}
        parts = [f"{took[key]:.0f}" if key in took else "-" for key in ("cpu_s", "peak_mb", "disk_mb")]
        if took.get("ef_construct", EF_CONSTRUCT) != EF_CONSTRUCT:
            parts[0] += f" (ef_construct {took['ef_construct']})"
        if "store_s" in took:
            parts[0] += f" ({took['store_s'] / took['wall_s']:.0%} of the time to store)"
        anon, mapped = about[engine]["memory"]
        opened = about[engine]["opened_s"]
        yield f"| {engine} | {' | '.join(parts)} | {opened:.1f} | {anon:.0f} + {mapped:.0f} |"
    yield ""


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("action", choices=("data", "build", "ask"))
    parser.add_argument("work", type=Path, help="folder for data and indexes; kept")
    parser.add_argument("--points", type=int, nargs="+", default=list(DIMS), choices=list(DIMS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--core", type=int, default=0, help="the one that everything runs on")
    parser.add_argument("--seconds", type=float, default=2.0, help="for one engine's pass over the queries")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    os.environ["IMRET_HOME"] = str(given.work.absolute() / "home")
    lines: list[str] = []
    if given.action == "ask":
        packages = ", ".join(
            f"{one} {version(one)}" for one in ("qdrant-edge-py", "numpy", "hnswlib", "faiss-cpu")
        )
        lines += [
            "# The vector index",
            "",
            f"{date.today()}, one of {cores()}, Python {platform.python_version()}, {packages}.",
            f"{QUERIES} queries, {LIMIT} hits; medians of {ROUNDS} rounds, engines in turns. Graphs: m {M}, "
            f"ef_construct {EF_CONSTRUCT}; ef of the peers: the least that finds as much as imret.",
            "",
        ]
        print("\n".join(lines))
    for n in given.points:
        folder = given.work.absolute() / str(n)
        if given.action != "ask":
            build(folder, n, given)
            continue
        for line in report(given, folder, n):
            lines.append(line)
            print(line, flush=True)
    if given.output is not None:
        given.output.write_text("\n".join(lines), encoding="utf-8")


def build(folder: Path, n: int, given: argparse.Namespace) -> None:
    """Make the data of one size, and the indexes that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "labels.npz").exists():
        make_data(folder, n, DIMS[n])
        make_answers(folder)
    for engine in given.engines:
        if given.action == "data" or engine == "numpy" or (folder / f"{engine}.json").exists():
            continue
        if engine == "imret":
            shutil.rmtree(folder / "imret", ignore_errors=True)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=build_in_process, args=(engine, folder, given.core))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"building {engine} failed")


if __name__ == "__main__":
    main()
