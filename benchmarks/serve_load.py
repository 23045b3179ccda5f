"""`imret serve` under load: searches per second, latency, what each stage costs; and versions that change.

    python benchmarks/serve_load.py MODEL PICTURES CAPTIONS [--other MODEL] [--output FILE.md]

Fills an embedded store with as many points as asked (embeddings of PICTURES, each with noise of its own) and
asks it from another process, over kept-alive connections on the loopback address: texts that were never asked
(captions, two halves of different ones), and a hundred that are asked again and again, which need no encode.
The stages are the server's own account; HTTP is what the client waited beyond them. Then, with --other, 64
clients ask without a pause while `imret ingest --rebuild` changes between the two models, and every answer
that is no answer is counted, and memory watched.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

IMRET = (sys.executable, "-m", "imret")
COLLECTION = "load"
LIMIT = 20  # hits asked for: a screen of them
NOISE = 0.5  # length of what is added to each unit embedding


@dataclass
class Run:
    """What the clients saw.

    Attributes:
        seconds: How long they asked.
        waits: (N,) of each answer, milliseconds.
        stages: Of each answer, the server's own account, milliseconds by stage.
        failures: What was no answer, by status or error.
        models: Who answered, as often as it changed.
    """

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    models: list[str] = field(default_factory=list)

    def percentile(self, p: float) -> float:
        """Return the wait that p percent of the answers did not exceed."""
        return float(np.percentile(self.waits, p)) if self.waits else float("nan")

    def stage(self, name: str) -> float:
        """Return the median of a stage, 0 where most answers did without."""
        values = self.stages.get(name, [])
        return statistics.median(values + [0.0] * (len(self.waits) - len(values))) if self.waits else 0.0


# ---- Clients ------------------------------------------------------------------------------------


def ask_for(port: int, clients: int, seconds: float, texts: Sequence[str]) -> Run:
    """Ask from this process with so many clients, each with one connection and no pause."""
    return asyncio.run(_ask_for(port, clients, seconds, texts))


async def _ask_for(port: int, clients: int, seconds: float, texts: Sequence[str]) -> Run:
    run, started = Run(), time.perf_counter()
    remaining = iter(texts)
    await asyncio.gather(*(_client(port, run, started + seconds, remaining) for _ in range(clients)))
    run.seconds = time.perf_counter() - started
    return run


async def _client(port: int, run: Run, end: float, texts: Iterator[str]) -> None:
    connection = None
    while time.perf_counter() < end and (text := next(texts, None)) is not None:
        try:
            connection = connection or await asyncio.open_connection("127.0.0.1", port)
            before = time.perf_counter()
            status, body = await asyncio.wait_for(_get(*connection, text), 30)
            wait = 1e3 * (time.perf_counter() - before)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            run.failures[type(error).__name__] += 1
            connection = None
            continue
        if status != 200:
            run.failures[f"{status} {json.loads(body).get('detail', '')[:80]}"] += 1
            continue
        answer = json.loads(body)
        run.waits.append(wait)
        for name, value in answer["timings_ms"].items():
            run.stages.setdefault(name, []).append(value)
        run.stages.setdefault("http", []).append(wait - answer["timings_ms"]["total"])
        if not run.models or run.models[-1] != answer["model"]:
            run.models.append(answer["model"])
    if connection is not None:
        connection[1].close()


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> tuple[int, bytes]:
    target = f"/api/v1/search?collection={COLLECTION}&limit={LIMIT}&q={quote('text:' + text)}"
    writer.write(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.I)
    assert length is not None
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))


def new_texts(captions: Sequence[str], seed: int) -> list[str]:
    """Return texts that were never asked before, of the length of captions."""
    rng = random.Random(seed)
    halves = [caption.split() for caption in captions]
    return [
        " ".join(first[: len(first) // 2] + second[len(second) // 2 :])
        for first, second in (rng.sample(halves, 2) for _ in range(200_000))
    ]


# ---- Server -------------------------------------------------------------------------------------


@contextmanager
def serving(db: Path) -> Iterator[tuple[int, int]]:
    """Run the server over a store; gives its port and process id."""
    arguments = ("serve", "--db", str(db), "--collection", COLLECTION, "--port", "0", "--preload")
    process = subprocess.Popen([*IMRET, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            break
    else:
        sys.exit("the server did not start:\n" + "".join(lines))
    try:
        yield int(match[1]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def memory_mb(pid: int) -> float:
    """Return what a process and its children hold in memory beyond files (RssAnon), in MB."""
    total = 0.0
    for process in (pid, *_children(pid)):
        status = Path(f"/proc/{process}/status")
        if status.exists() and (match := re.search(r"RssAnon:\s+(\d+) kB", status.read_text())):
            total += int(match[1]) / 1e3
    return total


def _children(pid: int) -> list[int]:
    pids = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        pids += map(int, file.read_text().split())
    return pids


def fill(db: Path, model: str, pictures: Path, points: int) -> float:
    """Make a collection of so many points; return the seconds that storing and indexing took."""
    from imret import Encoder, open_store
    from imret.store import Identity
    from imret.store.payload import make_payload, point_id

    encoder = Encoder(model)
    files = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    vectors = encoder.encode_images(files)  # (N, D)
    rng = np.random.default_rng(0)
    identity = Identity(encoder.model_id, encoder.images_fingerprint, encoder.dim)
    started = time.perf_counter()
    with open_store(str(db)) as store:
        collection = store.open_version(COLLECTION, identity)
        for start in range(0, points, 5_000):
            which = np.arange(start, min(start + 5_000, points))
            names = [files[i % len(files)].relative_to(pictures).as_posix() for i in which]
            payloads = [
                make_payload(
                    source=str(pictures.resolve()),
                    path=name,
                    category=name.split("/")[0] if "/" in name else None,
                    sha256=f"{i:064x}",
                    width=500,
                    height=375,
                    size_bytes=50_000,
                    modified="2026-01-01T00:00:00.000000Z",
                )
                for i, name in zip(which, names, strict=True)
            ]
            ids = [point_id(str(pictures), f"{i}") for i in which]
            collection.upsert(ids, _noisy(vectors[which % len(files)], rng), payloads)
        collection.optimize()
        store.promote(COLLECTION, identity)
    return time.perf_counter() - started


def _noisy(vectors: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    noisy = vectors + noise
    return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


# ---- What is measured ---------------------------------------------------------------------------


def load(arguments: argparse.Namespace, captions: list[str], folder: Path) -> Iterator[str]:
    """Yield the rows of the table of searches."""
    yield (
        "| points | texts | clients | searches/s | p50 | p95 | p99 ms | encode | store | rest of the server "
        "| HTTP and client ms |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for points in arguments.points:
        db = folder / f"db-{points}"
        built = fill(db, arguments.model, arguments.pictures, points)
        print(f"{points:,} points stored and indexed in {built:.0f} s", file=sys.stderr)
        with serving(db) as (port, _), ProcessPoolExecutor(1) as client:
            repeated = [captions[i % 100] for i in range(200_000)]
            client.submit(ask_for, port, 8, 3.0, new_texts(captions, seed=99)).result()
            for kind in ("new", "asked before"):
                for seed, clients in enumerate(arguments.clients):
                    texts = new_texts(captions, seed=seed) if kind == "new" else repeated
                    run = client.submit(ask_for, port, clients, arguments.seconds, texts).result()
                    if run.failures:
                        print(f"failures: {dict(run.failures)}", file=sys.stderr)
                    server = run.stage("total") - run.stage("encode") - run.stage("store")
                    yield (
                        f"| {points:,} | {kind} | {clients} | {len(run.waits) / run.seconds:.0f} "
                        f"| {run.percentile(50):.1f} | {run.percentile(95):.1f} | {run.percentile(99):.1f} "
                        f"| {run.stage('encode'):.1f} | {run.stage('store'):.1f} | {server:.1f} "
                        f"| {run.stage('http'):.1f} |"
                    )


def switching(arguments: argparse.Namespace, captions: list[str], folder: Path) -> Iterator[str]:
    """Yield what 64 clients saw while versions changed."""
    db = folder / "db-switching"
    models = [arguments.model, arguments.other]
    ingest = (*IMRET, "ingest", str(arguments.pictures), "--db", str(db), "--collection", COLLECTION)
    subprocess.run([*ingest, "--model", models[0]], check=True, stderr=subprocess.DEVNULL)
    with serving(db) as (port, pid), ProcessPoolExecutor(1) as client:
        texts = new_texts(captions, seed=7)
        waiting = client.submit(ask_for, port, 64, arguments.switch_seconds, texts)
        memory: list[tuple[float, float]] = []
        rebuilt, started = 0, time.perf_counter()
        process: subprocess.Popen[bytes] | None = None
        while not waiting.done():
            if process is None or process.poll() is not None:
                if process is not None and process.returncode:
                    sys.exit("an ingest failed")
                rebuilt += process is not None
                process = subprocess.Popen(
                    [*ingest, "--model", models[(rebuilt + 1) % 2], "--rebuild"], stderr=subprocess.DEVNULL
                )
            memory.append((time.perf_counter() - started, memory_mb(pid)))
            time.sleep(0.5)
        run = waiting.result()
        if process is not None:
            process.wait()
    third = arguments.switch_seconds / 3
    middle = [mb for t, mb in memory if third < t <= 2 * third]
    last = [mb for t, mb in memory if t > 2 * third]
    yield (
        f"64 clients for {run.seconds:.0f} s, {len(run.waits):,} searches, {sum(run.failures.values())} of "
        f"them failed{': ' + json.dumps(dict(run.failures)) if run.failures else ''}; {rebuilt} ingests with "
        f"--rebuild ended meanwhile, and the model that answered changed {len(run.models) - 1} times."
    )
    yield (
        f"p50 {run.percentile(50):.0f} ms, p99 {run.percentile(99):.0f} ms, longest "
        f"{max(run.waits):.0f} ms, with the ingests on the same cores."
    )
    yield (
        f"Memory beyond files of the server and its store, median (least to most): middle third "
        f"{statistics.median(middle):.0f} MB ({min(middle):.0f} to {max(middle):.0f}), last third "
        f"{statistics.median(last):.0f} MB ({min(last):.0f} to {max(last):.0f})."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("captions", type=Path, help="CSV with a column caption")
    parser.add_argument("--points", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--other", help="model to change to and back, under load")
    parser.add_argument("--switch-seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with arguments.captions.open(encoding="utf-8") as file:
        captions = list(dict.fromkeys(row["caption"] for row in csv.DictReader(file)))
    lines = [
        "# imret serve under load",
        "",
        f"{date.today()}, {os.cpu_count()} cores ({platform.processor() or platform.machine()}), Python "
        f"{platform.python_version()}; client and server on the same cores. Medians of the stages.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMRET_HOME"] = str(Path(folder) / "home")
        print("\n".join(lines))
        for part in (load, switching) if arguments.other else (load,):
            for line in part(arguments, captions, Path(folder)):
                lines.append(line)
                print(line, flush=True)
            lines.append("")
            print()
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
