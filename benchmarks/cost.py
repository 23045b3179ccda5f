"""What a collection takes of memory and disk at any size: a formula, and what it is calibrated by.

    python benchmarks/cost.py                         # the tables of docs/scale.md
    python benchmarks/cost.py --points 200e6 --dim 768
    python benchmarks/cost.py --measure 30000         # bytes a point of a collection made here, by part

Sizes of the parts are from Qdrant's documentation where that says them, and else measured on Qdrant Edge,
which shares its segments with the server. Nothing here asks a server.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imret.store import Identity
from imret.store.embedded.store import EdgeStore

LINKS, LINK_BYTES, LEVELS = (
    16,
    4,
    1.2,
)  # m = 16: twice as many on the lowest level, a fifth more on the others
ID_BYTES = 52  # of the id tracker, in memory and on disk
PAYLOAD_BYTES = 292  # of imret's, as JSON
PAYLOAD_ON_DISK = 1.5  # times that
SPARE = 1.2  # of everything: segments that are being merged, what was deleted
USABLE = 0.8  # of a node's memory
POINTS_PER_NODE = 100e6  # at most, as Qdrant's documentation advises
# Bytes of heap a point, of the payload indexes: with a server's defaults, and placed by their use.
INDEXES_PINNED, INDEXES_PLACED = 869, 45  # benchmarks/index_placement.py
INDEXES_ON_DISK = 603  # bytes a point, measured (--measure)

PARTS = ("payload_index", "payload_storage", "quantized", "vector_index", "vector_storage", "id_tracker")
QUANTIZED = {"int8": 1.0, "bits4": 0.5, "bits1": 0.125, "binary": 0.125}  # bytes a number


@dataclass(frozen=True)
class Layout:
    """How a collection is laid out.

    Attributes:
        name: For people.
        quantize: How vectors are compressed, which are held in memory.
        originals_in_memory: Whether the vectors as they are have to fit, too.
        indexes_bytes: Heap a point of the payload indexes.
    """

    name: str
    quantize: str
    originals_in_memory: bool = False
    indexes_bytes: int = INDEXES_PLACED

    def memory(self, dim: int) -> float:
        """Return bytes of memory a point."""
        return SPARE * (
            (4 * dim if self.originals_in_memory else 0)
            + QUANTIZED[self.quantize] * dim
            + _graph()
            + ID_BYTES
            + self.indexes_bytes
        )

    def disk(self, dim: int) -> float:
        """Return bytes of disk a point."""
        vectors = (4 + QUANTIZED[self.quantize]) * dim
        return SPARE * (vectors + _graph() + ID_BYTES + PAYLOAD_ON_DISK * PAYLOAD_BYTES + INDEXES_ON_DISK)


LAYOUTS = (
    Layout("all in memory, every payload index too", "int8", True, INDEXES_PINNED),
    Layout("originals left to eviction, every payload index in memory", "int8", False, INDEXES_PINNED),
    Layout("`int8`, as imret makes it", "int8"),
    Layout("`bits4`", "bits4"),
    Layout("`bits1`", "bits1"),
)


def _graph() -> float:
    return LINKS * 2 * LINK_BYTES * LEVELS


def nodes(layout: Layout, points: float, dim: int, replicas: int, node_gb: float) -> int:
    """Return how many nodes of so many GB of memory hold a collection."""
    by_memory = points * replicas * layout.memory(dim) / (node_gb * 1e9 * USABLE)
    return max(replicas, int(-(-max(by_memory, points * replicas / POINTS_PER_NODE) // 1)))


def table(points: float, dim: int, node_gb: float) -> str:
    """Return a table in Markdown of what each layout takes."""
    lines = [
        f"| {points / 1e6:,.0f} million, {dim:,} numbers | memory | disk | "
        f"nodes of {node_gb:.0f} GB: one copy; two |",
        "|---|---|---|---|",
    ]
    for layout in LAYOUTS:
        counts = "; ".join(str(nodes(layout, points, dim, n, node_gb)) for n in (1, 2))
        memory, disk = points * layout.memory(dim), points * layout.disk(dim)
        lines.append(f"| {layout.name} | {_size(memory)} | {_size(disk)} | {counts} |")
    return "\n".join(lines)


def _size(n_bytes: float) -> str:
    if n_bytes >= 1e12:
        return f"{n_bytes / 1e12:,.1f} TB"
    return f"{n_bytes / 1e9:,.0f} GB" if n_bytes >= 1e10 else f"{n_bytes / 1e9:,.1f} GB"


def measure(n: int, dim: int) -> dict[str, float]:
    """Return bytes of disk a point of an embedded collection of drawn points, by part."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="imret-cost-") as folder:
        path = Path(folder, "db")
        with EdgeStore(path, index_from_kb=1) as store:
            identity = Identity("drawn", "a1" * 32, dim)
            with closing(store.open_version("photos", identity)) as opened:
                for start in range(0, n, 1_000):
                    rows = range(start, min(n, start + 1_000))
                    vectors = rng.standard_normal((len(rows), dim)).astype(np.float32)
                    payloads = [_payload(i, rng) for i in rows]
                    opened.upsert([str(uuid.UUID(int=i + 1)) for i in rows], vectors, payloads)
                opened.optimize()
            store.promote("photos", identity)
        parts: Counter[str] = Counter()
        for file in path.rglob("*"):
            if file.is_file():
                parts[_part_of(file.relative_to(path).as_posix())] += file.stat().st_blocks * 512
    json_bytes = float(np.mean([len(json.dumps(_payload(i, rng))) for i in range(1_000)]))
    return {"payload as JSON": json_bytes, **{part: size / n for part, size in sorted(parts.items())}}


def _payload(i: int, rng: np.random.Generator) -> dict[str, str | int]:
    return {
        "source": "/mnt/photos",
        "path": f"{i % 997:03}/{i:09}.jpg",
        "category": f"{i % 997:03}",
        "sha256": rng.bytes(32).hex(),
        "width": int(rng.integers(500, 6_000)),
        "height": int(rng.integers(500, 6_000)),
        "size_bytes": int(rng.integers(10_000, 9_000_000)),
        "modified": "2024-05-17T12:30:11Z",
    }


def _part_of(path: str) -> str:
    for part in (
        "payload_index",
        "payload_storage",
        "quantized",
        "vector_index",
        "vector_storage",
        "id_tracker",
    ):
        if part in path:
            return part
    return "log" if "/wal/" in path else "other"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=float, nargs="*", default=[1e6, 50e6, 1e9])
    parser.add_argument("--dim", type=int, default=1_024)
    parser.add_argument("--node-gb", type=float, default=128)
    parser.add_argument("--measure", type=int, metavar="N", help="make a collection of N points and look")
    options = parser.parse_args()
    if options.measure:
        for part, size in measure(options.measure, options.dim).items():
            print(f"{part:<16}  {size:10,.1f} bytes a point")
        return
    for points in options.points:
        print(table(points, options.dim, options.node_gb) + "\n")


if __name__ == "__main__":
    main()
