"""What payload indexes hold in memory as imret places them by use, against the defaults of a server.

    python benchmarks/index_placement.py [--points N] [--output FILE.md]   (two minutes)

A shard of Qdrant Edge, which has the payload indexes of the server of the same time, is filled with
payloads such as imret stores, indexed, closed, and loaded by a new process: told is what that holds that no
file stands behind, less what it holds where no field is indexed. Vectors have 4 numbers, so that they count
for little. The indexes that a server is asked for are put here into the words of Edge. Looking up a path, and
a walk with a filter by category, are asked of the same shards: ratios to the defaults.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qe
from machine import cores

from imret.store import INDEXED_FIELDS
from imret.store.embedded.engine_config import payload_index
from imret.store.filter import DATETIME_FIELDS, INTEGER_FIELDS
from imret.store.payload import make_payload
from imret.store.server.creation import Dialect

DIM, CATEGORIES, ASKED, ROUNDS = 4, 100, 200, 5


def defaults(field: str) -> Any:
    """Return an index of a field's kind, as it is where nothing more is said."""
    if field in INTEGER_FIELDS:
        return qe.PayloadSchemaType.Integer
    return qe.PayloadSchemaType.Datetime if field in DATETIME_FIELDS else qe.PayloadSchemaType.Keyword


def as_on_a_server(field: str) -> Any:
    """Return how a server of today is asked to index a field, in the words of Edge."""
    asked = Dialect("").index(field)
    kinds = {"integer": qe.IntegerIndexParams, "datetime": qe.DatetimeIndexParams}
    kind: Any = kinds.get(asked.type.value, qe.KeywordIndexParams)
    memory = {"cold": qe.Memory.Cold, "cached": qe.Memory.Cached, "pinned": qe.Memory.Pinned}[
        asked.memory.value
    ]
    return kind(memory=memory, enable_hnsw=asked.enable_hnsw)


SCHEMES: dict[str, Callable[[str], Any] | None] = {
    "none": None,
    "defaults of a server": defaults,
    "on a server": as_on_a_server,
    "embedded": payload_index,
}

_LOOK = """
import re, sys
import qdrant_edge as qe

def held():
    status = open("/proc/self/status").read()
    return 1024 * sum(int(kb) for kb in re.findall(r"(?:RssAnon|VmLck):\\s+(\\d+)", status))

before = held()
shard = qe.EdgeShard.load(sys.argv[1])
print(held() - before)
"""


def fill(folder: Path, n: int, index: Callable[[str], Any] | None) -> float:
    """Make a shard; return the seconds of CPU that it took, its graph included."""
    folder.mkdir(parents=True)
    config = qe.EdgeConfig(
        vectors=qe.EdgeVectorParams(size=DIM, distance=qe.Distance.Cosine, memory=qe.Memory.Cold),
        hnsw_config=qe.HnswIndexConfig(m=4, ef_construct=16, full_scan_threshold=10),
        id_tracker_memory=qe.Memory.Cached,
        optimizers=qe.EdgeOptimizersConfig(
            indexing_threshold=100, default_segment_number=2, max_segment_size=1 << 40
        ),
    )
    started = time.process_time()
    shard = qe.EdgeShard.create(str(folder), config)
    for field in INDEXED_FIELDS if index is not None else ():
        assert index is not None
        shard.update(qe.UpdateOperation.create_field_index(field, index(field)))
    rng = np.random.default_rng(0)
    for start in range(0, n, 5_000):
        points = []
        for i in range(start, min(start + 5_000, n)):
            payload = make_payload(
                source="/home/me/pictures",
                path=f"{i % 1000}/IMG_{i:07}.jpg",
                category=f"category {i % CATEGORIES}",
                sha256=f"{rng.integers(1 << 62):064x}",
                width=int(rng.integers(200, 6_000)),
                height=int(rng.integers(200, 6_000)),
                size_bytes=int(rng.integers(20_000, 9_000_000)),
                modified=f"20{i % 26:02}-01-{i % 28 + 1:02}T00:00:{i % 60:02}.000000Z",
            )
            vector = rng.standard_normal(DIM, dtype=np.float32)
            points.append(qe.Point(id=str(uuid.UUID(int=i)), vector=vector, payload=payload))
        shard.update(qe.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    shard.close()
    return time.process_time() - started


def asked_ms(folder: Path, n: int) -> tuple[float, float]:
    """Return the median ms of CPU of looking up a path, and of a search by category."""
    shard = qe.EdgeShard.load(str(folder))
    rng = np.random.default_rng(1)
    paths, searches = [], []
    for _ in range(ASKED):
        i = int(rng.integers(n))
        path = qe.FieldCondition(key="path", match=qe.MatchAny([f"{i % 1000}/IMG_{i:07}.jpg"]))
        before = time.process_time()
        shard.scroll(qe.ScrollRequest(limit=1, filter=qe.Filter(must=[path])))
        paths.append(time.process_time() - before)
        category = qe.FieldCondition(key="category", match=qe.MatchAny([f"category {i % CATEGORIES}"]))
        query = qe.Query.Nearest(rng.standard_normal(DIM, dtype=np.float32))  # type: ignore[arg-type]
        before = time.process_time()
        shard.query(qe.QueryRequest(query=query, limit=10, filter=qe.Filter(must=[category])))
        searches.append(time.process_time() - before)
    shard.close()
    return 1e3 * statistics.median(paths), 1e3 * statistics.median(searches)


def held_by(folder: Path) -> float:
    """Return the bytes that a new process holds beyond files once it has loaded a shard; median."""
    command = [sys.executable, "-c", _LOOK, str(folder)]
    looks = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(ROUNDS)]
    return statistics.median(map(float, looks))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    n = arguments.points
    lines = [
        "# What payload indexes hold in memory",
        "",
        f"{date.today()}, {cores()}, Python {platform.python_version()}, qdrant-edge-py "
        f"{version('qdrant-edge-py')}. {n:,} points, {len(INDEXED_FIELDS)} fields, {CATEGORIES} categories; "
        f"medians of {ROUNDS} processes, and of {ASKED} questions.",
        "",
        "| indexes | heap, bytes a point | of the defaults' | a path, of the defaults' CPU | by category, "
        "the same | filling and index, the same |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    held: dict[str, float] = {}
    took: dict[str, tuple[float, ...]] = {}
    with tempfile.TemporaryDirectory() as parent:
        for scheme, index in SCHEMES.items():
            folder = Path(parent) / "shard"
            filled = fill(folder, n, index)
            held[scheme] = held_by(folder)
            took[scheme] = (*asked_ms(folder, n), filled) if index is not None else ()
            shutil.rmtree(folder)
    base = held.pop("none")
    whole = held["defaults of a server"] - base
    for scheme, total in held.items():
        own = max(0.0, total - base)
        ratios = [
            f"{mine / theirs:.2f}"
            for mine, theirs in zip(took[scheme], took["defaults of a server"], strict=True)
        ]
        lines.append(f"| {scheme} | {own / n:,.0f} | {own / whole:.3f} | {' | '.join(ratios)} |")
        print(lines[-1])
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
