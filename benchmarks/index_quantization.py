"""Which compression of vectors keeps recall@10, and what it costs: the evidence for `imret.store.placement`.

    python benchmarks/index_quantization.py [--large] [--url http://localhost:6333] [--output FILE.md]
    (six minutes)

Image embeddings of a CLIP share a large mean, much of it in a few components. A grid of 256 steps that
reaches out to those is coarse for all others, and a sign says nothing of them. Every shape is built once a
compression, with imret's graph and walk, and recall is told against an exact search, by how many candidates
for each hit are compared again as float32. With --url the same is asked of a Qdrant server, in a collection
of the benchmark's own.

Shapes: nearest neighbours that are hard to tell apart (independent numbers), and overlapping clusters
(`hard_vectors.py`); plain, one component at 0.88 or 0.95 in every vector, and three of 0.7, 0.5 and 0.3.
Time is CPU of the process, which other work on the machine does not change much; of a server it is waiting.
Heap is what a new process holds that no file stands behind after it has loaded the shard, the compressed
vectors pinned, less what it holds where there are none.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hard_vectors import make_data
from machine import cores
from numpy.typing import NDArray

from imret.store.types import EF_CONSTRUCT, HNSW_EF, M

LIMIT, QUERIES, FULL_SCAN_KB = 10, 200, 10_000
SETS = {
    "independent, 8,000 x 256": (8_000, 256),
    "clusters, 50,000 x 256": (50_000, 256),
    "clusters, 20,000 x 1,024": (20_000, 1024),
}
SHAPES: dict[str, tuple[float, ...]] = {
    "plain": (),
    "one of 0.88": (0.88,),
    "one of 0.95": (0.95,),
    "three": (0.7, 0.5, 0.3),
}
# With --large: few compressions, as each graph takes minutes.
LARGE_SET, LARGE_COMPRESSIONS = {"clusters, 250,000 x 256": (250_000, 256)}, ("int8", "bits4")
LARGE_SHAPES = ("plain", "three")  # of the sets of clusters, which take longest
COMPRESSIONS = ("float32", "int8", "int8, all values", "bits8", "bits4", "bits1", "binary")
OVERSAMPLING = (1.0, 2.0, 4.0, 8.0, 16.0)
ROUNDS = 3
Search = Callable[[NDArray[np.float32], float], list[int]]


class Built(NamedTuple):
    """A collection that can be asked.

    Attributes:
        search: Takes a query and the candidates for each hit, gives rows.
        took: Seconds that its index took.
        heap: Bytes a point; None where nobody can look.
        now: The clock to tell a search by.
    """

    search: Search
    took: float
    heap: float | None
    now: Callable[[], float]


def draw(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return unit vectors (N, D) and queries (Q, D) of one of `SETS`."""
    n, dim = (SETS | LARGE_SET)[name]
    if name.startswith("independent"):
        rng = np.random.default_rng(0)
        return (_unit(rng.standard_normal((count, dim), dtype=np.float32)) for count in (n, QUERIES))  # type: ignore[return-value]
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), n, dim)
        queries = np.load(f"{folder}/queries.npy")
        half = len(queries) // 2  # the second half is to the points as texts are to photos
        return np.load(f"{folder}/vectors.npy"), np.concatenate(
            [queries[: QUERIES // 2], queries[half:][: QUERIES // 2]]
        )


def dominated(vectors: NDArray[np.float32], components: tuple[float, ...]) -> NDArray[np.float32]:
    """Return unit vectors whose first components have these values, the others what is left of the length."""
    shaped = vectors.copy()
    shaped[:, : len(components)] = 0
    shaped = _unit(shaped) * np.float32(np.sqrt(1 - sum(value**2 for value in components)))
    shaped[:, : len(components)] = components
    return shaped


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def edge_quantization(compression: str, memory: Any) -> Any:
    """Return a compression as Qdrant Edge takes it; None for float32."""
    import qdrant_edge as qe

    turbo = {"bits8": "Bits8", "bits4": "Bits4", "bits1": "Bits1"}
    if compression in turbo:
        bits = getattr(qe.TurboQuantBitSize, turbo[compression])
        return qe.TurboQuantQuantizationConfig(bits=bits, memory=memory)
    if compression == "binary":
        return qe.BinaryQuantizationConfig(memory=memory)
    if compression.startswith("int8"):
        quantile = None if "all" in compression else 0.99
        return qe.ScalarQuantizationConfig(type=qe.ScalarType.Int8, quantile=quantile, memory=memory)
    return None


def in_edge(vectors: NDArray[np.float32], compression: str, folder: Path) -> Built:
    """Build a shard of Qdrant Edge; its time is CPU of this process."""
    import qdrant_edge as qe

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = qe.EdgeConfig(
        vectors=qe.EdgeVectorParams(
            size=vectors.shape[1], distance=qe.Distance.Cosine, memory=qe.Memory.Cold
        ),
        hnsw_config=qe.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB),
        quantization_config=edge_quantization(compression, qe.Memory.Pinned),
        optimizers=qe.EdgeOptimizersConfig(
            indexing_threshold=1000, default_segment_number=2, max_segment_size=1 << 40
        ),
    )
    shard = qe.EdgeShard.create(str(folder), config)
    for start in range(0, len(vectors), 5_000):
        rows = enumerate(vectors[start : start + 5_000], start)
        points = [qe.Point(id=str(uuid.UUID(int=i)), vector=row, payload={}) for i, row in rows]
        shard.update(qe.UpdateOperation.upsert_points(points))
    before = time.process_time()
    shard.optimize()
    took = time.process_time() - before
    shard.flush()
    shard.close()
    heap = heap_of(folder) / len(vectors)
    shard = qe.EdgeShard.load(str(folder))

    def search(query: NDArray[np.float32], oversampling: float) -> list[int]:
        again = qe.QuantizationSearchParams(ignore=False, rescore=True, oversampling=oversampling)
        request = qe.QueryRequest(
            query=qe.Query.Nearest(query),  # type: ignore[arg-type]  # takes a float32 array
            limit=LIMIT,
            params=qe.SearchParams(hnsw_ef=HNSW_EF, quantization=again),
        )
        return [uuid.UUID(str(hit.id)).int for hit in shard.query(request)]

    return Built(search, took, heap, time.process_time)


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


def heap_of(shard: Path) -> float:
    """Return the bytes that a new process holds beyond files, or locked, once it has loaded a shard."""
    answer = subprocess.run([sys.executable, "-c", _LOOK, str(shard)], capture_output=True, check=True)
    return float(answer.stdout)


def on_server(vectors: NDArray[np.float32], compression: str, url: str) -> Built:
    """Fill a collection of a Qdrant server; its time is waiting, that of the index until it was green."""
    from qdrant_client import QdrantClient, models

    client, name = (
        QdrantClient(url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=600),
        "imret-benchmark-quantization",
    )
    quantization: Any = None
    if compression.startswith("bits"):
        quantization = models.TurboQuantization(
            turbo=models.TurboQuantQuantizationConfig(
                bits=models.TurboQuantBitSize(compression), always_ram=True
            )
        )
    elif compression == "binary":
        quantization = models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    elif compression.startswith("int8"):
        quantile = None if "all" in compression else 0.99
        quantization = models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=quantile, always_ram=True
            )
        )
    client.delete_collection(name)
    client.create_collection(
        name,
        vectors_config=models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE),
        hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCT),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1000, default_segment_number=1),
        quantization_config=quantization,
    )
    started = time.monotonic()
    client.upload_collection(name, vectors=vectors, ids=range(len(vectors)), wait=True)
    while client.get_collection(name).status != models.CollectionStatus.GREEN:
        time.sleep(0.5)

    def search(query: NDArray[np.float32], oversampling: float) -> list[int]:
        again = models.QuantizationSearchParams(rescore=True, oversampling=oversampling)
        params = models.SearchParams(hnsw_ef=HNSW_EF, quantization=again)
        return [
            int(hit.id)
            for hit in client.query_points(name, query.tolist(), limit=LIMIT, search_params=params).points
        ]

    return Built(search, time.monotonic() - started, None, time.perf_counter)


def measure(name: str, shape: str, url: str | None, folder: Path) -> Iterator[str]:
    """Yield a line for each compression."""
    vectors, queries = (dominated(rows, SHAPES[shape]) for rows in draw(name))
    scores = queries @ vectors.T
    tenth = -np.partition(-scores, LIMIT - 1, axis=1)[:, LIMIT - 1]
    plain_heap: float | None = None
    for compression in LARGE_COMPRESSIONS if name in LARGE_SET else COMPRESSIONS:
        try:
            built = on_server(vectors, compression, url) if url else in_edge(vectors, compression, folder)
        except Exception as error:  # a server that does not know it
            yield f"| {name} | {shape} | {compression} | not there: {type(error).__name__} |"
            continue
        cells = []
        for oversampling in OVERSAMPLING if compression != "float32" else (1.0,):
            shares = []
            p95 = []
            for _ in range(ROUNDS):
                waits = []
                for query in queries:
                    before = built.now()
                    hits = built.search(query, oversampling)
                    waits.append(1e3 * (built.now() - before))
                    shares.append((len(shares) % len(queries), hits))
                p95.append(float(np.percentile(waits, 95)))
            # A hit is as near as the tenth, so ties cost nothing.
            found = [(scores[row, hits] >= tenth[row] - 1e-6).sum() / LIMIT for row, hits in shares]
            cells.append(
                f"{np.mean(found):.3f}, {statistics.median(p95):.2f} ({min(p95):.2f}-{max(p95):.2f})"
            )
        cells += [""] * (len(OVERSAMPLING) - len(cells))
        if compression == "float32":
            plain_heap = built.heap
        heap = "" if built.heap is None or plain_heap is None else f"{max(0.0, built.heap - plain_heap):.0f}"
        yield f"| {name} | {shape} | {compression} | {' | '.join(cells)} | {built.took:.0f} | {heap} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--url", help="of a Qdrant server; default: the embedded engine")
    parser.add_argument("--large", action="store_true", help="one larger set alone")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    engine = f"server at {arguments.url}" if arguments.url else f"qdrant-edge-py {version('qdrant-edge-py')}"
    lines = [
        "# Compression of vectors",
        "",
        f"{date.today()}, {cores()}, Python {platform.python_version()}, {engine}. m {M}, ef_construct "
        f"{EF_CONSTRUCT}, a walk of {HNSW_EF}; {QUERIES} queries. Each cell: recall@{LIMIT}, ms of CPU that "
        f"95 of 100 searches stay below, the median of {ROUNDS} rounds (and their range).",
        "",
        f"| vectors | shape | compression | candidates x {' | x '.join(f'{n:.0f}' for n in OVERSAMPLING)} | "
        "index, s of CPU | heap, bytes a point |",
        "|---|---|---" + "|---" * len(OVERSAMPLING) + "|---|---|",
    ]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for name in LARGE_SET if arguments.large else SETS:
            for shape in SHAPES if name.startswith("independent") else LARGE_SHAPES:
                for line in measure(name, shape, arguments.url, Path(folder) / "shard"):
                    lines.append(line)
                    print(line, flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
