"""The vector index: the embedded store against numpy, hnswlib and faiss.

    pip install hnswlib faiss-cpu
    python benchmarks/index.py build WORK [--points N ...]       (minutes; an hour for a million)
    python benchmarks/index.py ask WORK [--points N ...] [--output FILE.md]

Recall, latency, memory and build. Every engine has a process of its own, on one core, and all are asked the
same queries in turns. imret is asked through its own store, as users ask it: worker process, pipe, payloads
and all. The peers return row numbers only.

The data are hard on purpose: `hard_vectors.py` says how. The engines are in `index_engines.py`.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from hard_vectors import CASES, LIMIT, QUERIES, Case, allowed, local_dimension, make_answers, make_data
from index_engines import CLASSES, EF_CONSTRUCT, M
from machine import cores
from numpy.typing import NDArray

DIMS = {1_000: 1024, 10_000: 1024, 100_000: 1024, 1_000_000: 256}
EF_LADDER = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
ROUNDS = 5
ENGINES = ("imret", "numpy", "hnswlib", "faiss")


# ---- A process for each engine --------------------------------------------------------------------


@dataclass
class Answers:
    """What one pass over the queries gave.

    Attributes:
        hits: Row numbers, for each query that was asked, best first.
        waits: (n,) milliseconds.
    """

    hits: list[list[int]]
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
    index = CLASSES[engine](folder)
    started = time.perf_counter()
    index.open()
    line.send(time.perf_counter() - started)
    while (request := line.recv()) is not None:
        if request == "memory":
            line.send(_memory_mb())
            continue
        case, setting, seconds, order = request
        ask = index.ask(case, labels, setting)
        answers = Answers([], [])
        end = time.perf_counter() + seconds
        for number in order:
            before = time.perf_counter()
            hits = ask(queries[number])
            now = time.perf_counter()
            answers.hits.append(list(hits))
            answers.waits.append(1e3 * (now - before))
            if now > end and len(answers.waits) >= 8:
                break
        line.send(answers)
    index.close()


def _watch(ended: threading.Event, peak: list[float]) -> None:
    while not ended.wait(0.2):
        peak[0] = max(peak[0], _memory_mb()[0])


def _processes() -> list[int]:
    pids = [os.getpid()]
    for file in Path("/proc/self/task").glob("*/children"):
        pids += map(int, file.read_text().split())
    return pids


def _memory_mb() -> tuple[float, float]:
    """Return what this process and its worker hold: beyond files, and of mapped files; in MB."""
    anon = file = 0.0
    for pid in _processes():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        anon += sum(int(kb) for kb in re.findall(r"RssAnon:\s+(\d+)", status)) / 1e3
        file += sum(int(kb) for kb in re.findall(r"RssFile:\s+(\d+)", status)) / 1e3
    return anon, file


def _cpu_seconds() -> float:
    total = 0.0
    for pid in _processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
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
        rows = allowed(self._labels, case)
        k = min(LIMIT, len(self._vectors) if rows is None else len(rows))
        share = []
        for number, hits in zip(order, answers.hits, strict=False):
            vectors = self._vectors[sorted(set(hits))]
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
    n_queries: int


Figures = dict[Case, dict[str, Line]]


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[Figures, dict[str, Any]]:
    """Ask every engine every case, in turns; return the figures, and memory and opening by engine."""
    truth = Truth(folder)
    # Both halves from the start, for an engine that is too slow to be asked them all.
    order = [i + j for i in range(QUERIES // 2) for j in (0, QUERIES // 2)]
    processes = {engine: Process(engine, folder, arguments.core) for engine in arguments.engines}
    lines: Figures = {}
    for case in CASES:
        lines[case] = {}
        aim = 0.99
        for engine, process in processes.items():
            for setting in EF_LADDER if engine in ("hnswlib", "faiss") else (0,):
                answers = process.ask(case, setting, arguments.seconds, order)
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
                waits = process.ask(case, line.setting, arguments.seconds, order).waits
                line.p50.append(float(np.percentile(waits, 50)))
                line.p95.append(float(np.percentile(waits, 95)))
        print(f"{case}: {lines[case]}", file=sys.stderr, flush=True)
    about: dict[str, Any] = {
        engine: {"opened_s": process.opened_s, "memory": process.memory_mb()}
        for engine, process in processes.items()
    }
    for process in processes.values():
        process.close()
    if "imret" in arguments.engines:
        shard = Process("shard", folder, arguments.core)
        about["shard"] = {}
        for case in CASES:
            shard.ask(case, 0, arguments.seconds, order)
            passes = [shard.ask(case, 0, arguments.seconds, order).waits for _ in range(ROUNDS)]
            about["shard"][case] = statistics.median(float(np.percentile(waits, 50)) for waits in passes)
        shard.close()
    return lines, about


def report(arguments: argparse.Namespace, folder: Path, n: int) -> Iterator[str]:
    """Yield the lines about one size."""
    truth = Truth(folder)
    lines, about = measure(arguments, folder)
    yield f"## {n:,} points of {truth.dim} dimensions"
    yield ""
    yield (
        f"Cosine of the nearest, the tenth and the hundredth (medians): {np.median(truth.best[:, 0]):.2f}, "
        f"{np.median(truth.best[:, 9]):.2f}, {np.median(truth.best[:, 99]):.2f}. Local dimension: "
        f"{local_dimension(truth.best[: QUERIES // 2]):.0f} around the queries like the points, "
        f"{local_dimension(truth.best[QUERIES // 2 :]):.0f} around those like texts."
    )
    yield ""
    peers = [engine for engine in arguments.engines if engine != "imret"]
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
            few = f", {theirs.n_queries} queries" if theirs.n_queries < QUERIES else ""
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
    for engine in arguments.engines:
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
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    os.environ["IMRET_HOME"] = str(arguments.work.absolute() / "home")
    lines: list[str] = []
    if arguments.action == "ask":
        packages = ", ".join(
            f"{package} {version(package)}" for package in ("qdrant-edge-py", "numpy", "hnswlib", "faiss-cpu")
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
    for n in arguments.points:
        folder = arguments.work.absolute() / str(n)
        if arguments.action != "ask":
            build(folder, n, arguments)
            continue
        for line in report(arguments, folder, n):
            lines.append(line)
            print(line, flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines), encoding="utf-8")


def build(folder: Path, n: int, arguments: argparse.Namespace) -> None:
    """Make the data of one size, and the indexes that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "labels.npz").exists():
        make_data(folder, n, DIMS[n])
        make_answers(folder)
    for engine in arguments.engines:
        if arguments.action == "data" or engine == "numpy" or (folder / f"{engine}.json").exists():
            continue
        if engine == "imret":
            shutil.rmtree(folder / "imret", ignore_errors=True)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=build_in_process, args=(engine, folder, arguments.core))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"building {engine} failed")


if __name__ == "__main__":
    main()
