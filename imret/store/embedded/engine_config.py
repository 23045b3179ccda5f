"""What Qdrant Edge makes a shard with: vectors, graph, quantization, and the indexes of payload fields."""

from __future__ import annotations

from typing import Any

import qdrant_edge as qe

from imret.store.filter import DATETIME_FIELDS, INTEGER_FIELDS
from imret.store.types import EF_CONSTRUCT, M

FULL_SCAN_KB = 10_000  # what a filter keeps of fewer vectors, the engine scans; values of more get links


def engine_config(dim: int, index_from_kb: int) -> qe.EdgeConfig:
    """Return the configuration of a new shard.

    Args:
        dim: Of its vectors.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built.
    """
    return qe.EdgeConfig(
        vectors=qe.EdgeVectorParams(size=dim, distance=qe.Distance.Cosine, memory=qe.Memory.Cold),
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


def payload_index(field: str) -> Any:
    """Return how a payload field is indexed."""
    # No links in the graph for numbers and datetimes: with them, 30,000 vectors of 1,024 took four times as
    # long to index (88 s), and behind a range that keeps a tenth ACORN finds as much without (recall 0.998;
    # 0.51 with neither).
    mapped = qe.Memory.Cached
    if field in INTEGER_FIELDS:
        return qe.IntegerIndexParams(lookup=True, range=True, enable_hnsw=False, memory=mapped)
    if field in DATETIME_FIELDS:
        return qe.DatetimeIndexParams(enable_hnsw=False, memory=mapped)
    if field in ("path", "sha256", "unit"):  # a value for each point, or asked for by an ingest alone
        return qe.KeywordIndexParams(memory=mapped)
    # On the heap: a walk looks up each point that it comes to, and takes half the time, at a million points.
    return qe.PayloadSchemaType.Keyword
