"""What Qdrant Edge makes a shard with: vectors, graph, quantization, and the indexes of payload fields."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import qdrant_edge as qe

from imret.store.filter import DATETIME_FIELDS, INDEXED_FIELDS, INTEGER_FIELDS
from imret.store.placement import DEFAULTS, IN_MEMORY, LINKED, MEMORY, Creation, Memory
from imret.store.types import EF_CONSTRUCT, M

FULL_SCAN_KB = 10_000  # what a filter keeps of fewer vectors, the engine scans; values of more get links
_CONFIG = "edge_config.json"  # in the folder of a shard
_MEMORY = {"cold": qe.Memory.Cold, "cached": qe.Memory.Cached, "pinned": qe.Memory.Pinned}
_TURBO = {"bits4": qe.TurboQuantBitSize.Bits4, "bits1": qe.TurboQuantBitSize.Bits1}


def engine_config(dim: int, index_from_kb: int, creation: Creation | None = None) -> qe.EdgeConfig:
    """Return the configuration of a new shard.

    Args:
        dim: Of its vectors.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built.
        creation: What is asked of it.
    """
    wanted = (creation or Creation()).over(DEFAULTS["embedded"])
    return qe.EdgeConfig(
        vectors=_vectors(dim, wanted),
        hnsw_config=qe.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCT, full_scan_threshold=FULL_SCAN_KB),
        quantization_config=_quantization(wanted),
        id_tracker_memory=qe.Memory.Cached,
        # One graph however many cores there are: to walk five finds no more in four times the time.
        optimizers=qe.EdgeOptimizersConfig(
            indexing_threshold=index_from_kb, default_segment_number=2, max_segment_size=1 << 40
        ),
    )


def changed_config(dim: int, wanted: Creation) -> qe.EdgeConfig:
    """Return what an existing shard is loaded with to be like that; what is left out of it stays."""
    return qe.EdgeConfig(
        vectors=_vectors(dim, wanted),
        quantization_config=_quantization(wanted),
        id_tracker_memory=qe.Memory.Cached,
    )


def _vectors(dim: int, wanted: Creation) -> qe.EdgeVectorParams:
    return qe.EdgeVectorParams(
        size=dim, distance=qe.Distance.Cosine, memory=_MEMORY[wanted.originals or "cold"]
    )


def _quantization(wanted: Creation) -> Any:
    memory = _MEMORY[wanted.quantized or "cached"]
    if wanted.quantize in _TURBO:
        return qe.TurboQuantQuantizationConfig(bits=_TURBO[wanted.quantize], memory=memory)
    if wanted.quantize == "binary":
        return qe.BinaryQuantizationConfig(memory=memory)
    return qe.ScalarQuantizationConfig(type=qe.ScalarType.Int8, quantile=0.99, memory=memory)


def stored_creation(shard: Path) -> Creation:
    """Return what a shard is like; None for what its engine notes of it nowhere, or in other words."""
    noted: Any = {}
    with suppress(OSError, ValueError):
        noted = json.loads((shard / _CONFIG).read_bytes())
    how, config = _compression(_dict(noted).get("quantization_config"))
    return Creation(
        quantize=how,
        originals=_word(_dict(_dict(_dict(noted).get("vectors")).get("")), MEMORY[:2]),
        quantized=_word(config, MEMORY),
    )


def compression_of(segment: object) -> Creation:
    """Return how the vectors of a segment are compressed, by what its segment.json says."""
    vectors = _dict(_dict(_dict(segment).get("config")).get("vector_data"))
    return Creation(quantize=_compression(_dict(vectors.get("")).get("quantization_config"))[0])


def _compression(noted: object) -> tuple[Any, dict[str, Any]]:
    """Return what a quantization is called here, None for one that is not, and what is noted of it."""
    quantization = _dict(noted)
    kind = next((kind for kind in ("scalar", "turbo", "binary") if kind in quantization), "")
    config = _dict(quantization.get(kind))
    how: Any = {"scalar": "int8", "binary": "binary", "turbo": config.get("bits")}.get(kind)
    return how if how in ("int8", "binary", *_TURBO) else None, config


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(config: dict[str, Any], words: tuple[str, ...]) -> Memory | None:
    word: Any = config.get("memory")
    return word if word in words else None


def payload_index(field: str) -> Any:
    """Return how a payload field is indexed."""
    # No links in the graph for numbers and datetimes: with them, 30,000 vectors of 1,024 took four times as
    # long to index (88 s), and behind a range that keeps a tenth ACORN finds as much without (recall 0.998;
    # 0.51 with neither). None for paths and hashes, either, which have a value for each point.
    mapped, has_links = qe.Memory.Cached, field in LINKED
    if field in INTEGER_FIELDS:
        return qe.IntegerIndexParams(lookup=True, range=True, enable_hnsw=has_links, memory=mapped)
    if field in DATETIME_FIELDS:
        return qe.DatetimeIndexParams(enable_hnsw=has_links, memory=mapped)
    if field not in IN_MEMORY:
        return qe.KeywordIndexParams(enable_hnsw=has_links, memory=mapped)
    # On the heap: a walk looks up each point that it comes to, and takes half the time, at a million points.
    return qe.PayloadSchemaType.Keyword


def index_changes(engine: qe.EdgeShard, *, all_alike: bool) -> dict[str, Any]:
    """Return how the fields are to be indexed that are not, or not so.

    Args:
        engine: The shard.
        all_alike: Also those that have an index of other parameters, of an older imret.
    """
    known = engine.info().payload_schema
    changes = {}
    for field in INDEXED_FIELDS:
        wanted = payload_index(field)
        is_as = field in known and (not all_alike or _parameters(known[field].params) == _parameters(wanted))
        if not is_as:
            changes[field] = wanted
    return changes


def _parameters(index: Any) -> tuple[Any, ...]:
    """Return where an index is held, and whether it has links; a plain kind has the defaults."""
    memory, has_links = getattr(index, "memory", None), getattr(index, "enable_hnsw", None)
    return (str(memory or qe.Memory.Pinned), True if has_links is None else has_links)
