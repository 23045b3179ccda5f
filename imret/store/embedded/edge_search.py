"""What Qdrant Edge is asked for in a search (how far it walks, when it scans), and what it answers."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import qdrant_edge as qe
from numpy.typing import NDArray

from imret.store.embedded import engine_config
from imret.store.embedded.edge_filter import edge_filter, has_links
from imret.store.filter import Filter
from imret.store.types import HNSW_EF

# A filter that keeps fewer bytes of vectors than this is answered by an exact scan. Where one value of a
# field with links is asked for, it is half again what the engine scans by itself: for just as many as that
# it walks, but has made no links, and finds nothing. Other filters have only ACORN, which takes longer: 7 ms
# behind one that keeps a tenth of 100,000 x 1,024, where the scan takes 2.6; 20 behind a tenth of a million
# x 256, where it takes 10. They are even at 100 to 200 MB.
SCAN_LINKED = 1.5  # times FULL_SCAN_KB
SCAN_BYTES = 120_000_000

# (id, payload, vector or None, score or None): what travels to the program
Row: TypeAlias = tuple[str, dict[str, Any], Any, float | None]


def query_request(
    vector: NDArray[np.float32], limit: int, filter: Filter | None, *, exact: bool, candidates: float
) -> qe.QueryRequest:
    """Return the request of a search.

    Args:
        vector: (D,).
        limit: Points at most.
        filter: Only points that pass it.
        exact: Compare with every vector.
        candidates: Compressed vectors for each hit that are compared again as float32.
    """
    return qe.QueryRequest(
        query=qe.Query.Nearest(vector),  # type: ignore[arg-type]  # takes a float32 array
        filter=edge_filter(filter),
        limit=limit,
        params=qe.SearchParams(
            hnsw_ef=HNSW_EF,
            exact=exact,
            quantization=qe.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=candidates),
            acorn=qe.AcornSearchParams(enable=bool(filter) and not has_links(filter)),
        ),
        with_payload=True,
    )


def scan_is_better(engine: qe.EdgeShard, filter: Filter | None, dim: int) -> bool:
    """Whether an exact scan of what a filter keeps beats a walk over the graph."""
    if not filter:
        return False
    # Without an index nobody knows how few pass, and a walk that goes only where they are finds half.
    if not filter.fields <= set(engine.info().payload_schema):
        return True
    n_kept = engine.count(qe.CountRequest(filter=edge_filter(filter), exact=False))  # microseconds
    limit = SCAN_LINKED * engine_config.FULL_SCAN_KB * 1024 if has_links(filter) else SCAN_BYTES
    return n_kept * dim * 4 <= limit


def id_of(id_: object) -> str | int:
    """Return an id as it travels."""
    return id_ if isinstance(id_, int) else str(id_)  # a number is none of imret's


def row_of(record: qe.Record) -> Row:
    """Return a point as it travels."""
    # Not a list: none, or several by name, as other programs may store.
    vector = np.asarray(record.vector, dtype=np.float32) if isinstance(record.vector, list) else None
    return str(record.id), record.payload or {}, vector, None
