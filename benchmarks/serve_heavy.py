"""`imret serve` asked for what is heavy: its memory, how long that takes, and plain searches beside it.

    python benchmarks/serve_heavy.py MODEL [--output FILE.md]

Thumbnails: 64 clients ask for all of 64 pictures (by hard links) of 100 megapixels each, as JPEG, progressive
JPEG, PNG and TIFF, in an order of their own; memory is that of the server's process, at its peak and ten
seconds after the last answer. Groups: the best of each of 10,000 categories, for one of them. Copies: folded,
of 9,000 that were saved anew from one picture. Beside each of these one client asks for a text that was asked
before, without a pause.

The vectors are drawn; every file is there. It writes some GB to the folder for temporary files.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from machine import cores
from PIL import Image

COLLECTION = "heavy"
CLIENTS, PICTURES = 64, 64
SIDE = 10_000
KINDS: dict[str, dict[str, Any]] = {
    "photo.jpg": {"quality": 80},
    "progressive.jpg": {"quality": 80, "progressive": True},
    "photo.png": {"compress_level": 1},
    "photo.tif": {"compression": "tiff_adobe_deflate"},
}
CATEGORIES, COPIES = 10_000, 9_000


# ---- Server and clients -------------------------------------------------------------------------


@contextmanager
def serving(db: Path) -> Iterator[tuple[int, int]]:
    """Run the server over a store; gives its port and process id."""
    command = (sys.executable, "-m", "imret", "serve", "--db", str(db), "--collection", COLLECTION)
    process = subprocess.Popen([*command, "--port", "0", "--preload"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            break
    else:
        sys.exit("the server did not start:\n" + "".join(lines))
    rest = threading.Thread(target=process.stderr.read, daemon=True)  # what nobody reads would stop it
    rest.start()
    try:
        yield int(match[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


def get(port: int, target: str) -> tuple[int, bytes]:
    """Ask on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def memory_mb(pid: int, name: str) -> float:
    """Return a figure of memory of a process: VmRSS, or VmHWM for the most it ever was."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1e3 if found else float("nan")


def beside(port: int, heavy: Callable[[], object]) -> tuple[float, list[float]]:
    """Run what is heavy; return its seconds, and the waits of plain searches meanwhile, in milliseconds."""
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        started = time.perf_counter()
        running = pool.submit(heavy)
        while not running.done():
            before = time.perf_counter()
            status, body = get(port, f"/api/v1/search?collection={COLLECTION}&q=a+tree&limit=20")
            if status != 200:
                sys.exit(f"a plain search failed: {status} {body[:200]!r}")
            waits.append(1e3 * (time.perf_counter() - before))
        running.result()
        seconds = time.perf_counter() - started
    return seconds, waits


def shown(waits: Sequence[float]) -> str:
    """Return the median, a high quantile and the most of waits."""
    if len(waits) < 2:
        return f"one of {waits[0] / 1e3:.1f} s"
    return f"{statistics.median(waits):.0f}, {np.percentile(waits, 99):.0f}, {max(waits):.0f}"


# ---- Collections --------------------------------------------------------------------------------


def fill(db: Path, model: str, payloads: Sequence[dict[str, Any]], *, alike: bool = False) -> list[str]:
    """Make a collection of payloads with vectors that are drawn; return the ids."""
    from imret import Encoder, open_store
    from imret.store import Identity
    from imret.store.payload import point_id

    encoder = Encoder(model)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(payloads), encoder.dim), dtype=np.float32)
    if alike:
        vectors = 0.05 * vectors + rng.standard_normal(encoder.dim, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    identity = Identity(encoder.model_id, encoder.images_fingerprint, encoder.dim)
    ids = [point_id(str(payload["source"]), str(payload["path"])) for payload in payloads]
    with open_store(str(db)) as store:
        collection = store.open_version(COLLECTION, identity)
        for start in range(0, len(ids), 5_000):
            part = slice(start, start + 5_000)
            collection.upsert(ids[part], vectors[part], payloads[part])
        collection.optimize()
        store.promote(COLLECTION, identity)
    return ids


def payload(folder: Path, path: str, number: int, category: str) -> dict[str, Any]:
    """Return what is stored of a picture."""
    from imret.store.payload import make_payload

    return make_payload(
        source=str(folder.resolve()),
        path=path,
        category=category,
        sha256=f"{number:064x}",
        width=SIDE,
        height=SIDE,
        size_bytes=1,
        modified="2026-01-01T00:00:00.000000Z",
    )


def draw_large(folder: Path) -> list[str]:
    """Write pictures of 100 megapixels and links to them; return their names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (50, 50, 3), dtype=np.uint8))
    large = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    names = []
    for kind, options in KINDS.items():
        large.save(folder / kind, **options)
        for i in range(PICTURES // len(KINDS)):
            names.append(f"{i}-{kind}")
            os.link(folder / kind, folder / names[-1])
    return names


def draw_copies(folder: Path) -> list[str]:
    """Write copies of one picture, each saved anew and a little brighter or darker."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
    names = [f"{i}.jpg" for i in range(COPIES)]
    for name in names:
        pixels = (photo * rng.uniform(0.9, 1.0)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=int(rng.integers(60, 95)))
    return names


# ---- What is measured ---------------------------------------------------------------------------


def thumbnails(model: str, folder: Path) -> Iterator[str]:
    """Yield the figures of large pictures."""
    names = draw_large(folder / "large")
    payloads = [payload(folder / "large", name, i, "large") for i, name in enumerate(names)]
    ids = fill(folder / "db-large", model, payloads)
    with serving(folder / "db-large") as (port, pid):
        _, alone = beside(port, lambda: time.sleep(5))
        before = memory_mb(pid, "VmRSS")
        statuses: Counter[int] = Counter()

        def client(number: int) -> None:
            order = random.Random(number).sample(ids, len(ids))
            for id_ in order:
                status, _ = get(port, f"/api/v1/thumbnails/{id_}?collection={COLLECTION}")
                statuses[status] += 1

        def ask() -> None:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(client, range(CLIENTS)))

        seconds, waits = beside(port, ask)
        peak = memory_mb(pid, "VmHWM")
        time.sleep(10)
        settled = memory_mb(pid, "VmRSS")
    yield (
        f"| {CLIENTS} clients, thumbnails of {len(names)} pictures of {SIDE**2 // 10**6} megapixels | "
        f"{seconds:.0f} s for {statuses.total():,} answers "
        f"({', '.join(f'{n:,} of {status}' for status, n in sorted(statuses.items()))}) | "
        f"{before:.0f}, {peak:.0f}, {settled:.0f} | {shown(alone)} | {shown(waits)} |"
    )


def heavy_searches(model: str, folder: Path) -> Iterator[str]:
    """Yield the figures of groups and of copies."""
    nowhere = folder / "nowhere"
    grouped = [payload(nowhere, f"{i}.jpg", i, f"category {i % CATEGORIES}") for i in range(5 * CATEGORIES)]
    names = draw_copies(folder / "copies")
    copied = [payload(folder / "copies", name, i, "copies") for i, name in enumerate(names)]
    for what, payloads, target in (
        (
            f"the best of {CATEGORIES:,} groups (50,000 pictures), `limit=1`",
            grouped,
            "&group_by=category&limit=1",
        ),
        ("the same, `limit=100`", grouped, "&group_by=category&limit=100"),
        (f"{COPIES:,} near copies folded, `limit=10`", copied, "&unique=true&limit=10"),
    ):
        db = folder / f"db-{len(payloads)}"
        if not db.exists():
            fill(db, model, payloads, alike=payloads is copied)
        with serving(db) as (port, pid):
            _, alone = beside(port, lambda: time.sleep(5))
            before = memory_mb(pid, "VmRSS")
            query = f"/api/v1/search?collection={COLLECTION}&q=a+tree{target}"

            def ask(query: str = query, port: int = port) -> None:
                status, body = get(port, query)
                if status != 200:
                    sys.exit(f"a heavy search failed: {status} {body[:200]!r}")
                print(f"{len(json.loads(body)['hits'])} hits", file=sys.stderr)

            def ask_four_times(query: str = query, port: int = port) -> None:
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(lambda _: ask(query, port), range(4)))

            once, _ = beside(port, ask)
            _, waits = beside(port, ask_four_times)
            peak = memory_mb(pid, "VmHWM")
            time.sleep(10)
            settled = memory_mb(pid, "VmRSS")
        yield (
            f"| {what} | {once:.2f} s; then four clients at once | {before:.0f}, {peak:.0f}, {settled:.0f} | "
            f"{shown(alone)} | {shown(waits)} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--only", choices=("thumbnails", "searches"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    parts = {"thumbnails": thumbnails, "searches": heavy_searches}
    lines = [
        "# imret serve, asked for what is heavy",
        "",
        f"{date.today()}, {cores()}, Python {platform.python_version()}; clients on the same cores.",
        "",
        "| asked | took | memory of the server in MB before, at its peak, settled "
        "| a plain search alone: p50, p99, longest ms | the same beside it |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMRET_HOME"] = str(Path(folder) / "home")
        for name, part in parts.items():
            if arguments.only in (None, name):
                for line in part(arguments.model, Path(folder)):
                    lines.append(line)
                    print(line, flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
