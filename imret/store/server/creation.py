"""What a Qdrant server is told when a collection is made or changed, in the words that its version knows.

Since 1.19 what is held in memory is said by one word for each part, before by flags; 1.18 brought TurboQuant,
1.17 payload indexes without links in the graph. A server ignores what it does not know, so it is told no more
than that: what it answers afterwards is what holds.
"""

from __future__ import annotations

import re
from typing import Any

from qdrant_client import models

from imret.errors import StoreError
from imret.store.filter import DATETIME_FIELDS, INDEXED_FIELDS, INTEGER_FIELDS
from imret.store.placement import DEFAULTS, IN_MEMORY, LINKED, Creation, Memory, spelt
from imret.store.server.connection import Connection
from imret.store.types import EF_CONSTRUCT, M

_KB_IN_MB = 1_000
_NEWEST = (1 << 30, 0)


class Dialect:
    """The words of one version of the server.

    Args:
        server: What it says that it is, such as "1.19.0"; what is no version is taken for the newest.
        address: Of it, for errors.
    """

    def __init__(self, server: str, address: str = "") -> None:
        numbers = re.match(r"(\d+)\.(\d+)", server)
        version = (int(numbers[1]), int(numbers[2])) if numbers else _NEWEST
        self._server, self._address = server, address
        self._has_memory = version >= (1, 19) and hasattr(models, "Memory")
        self._has_turbo = version >= (1, 18) and hasattr(models, "TurboQuantization")
        self._has_unlinked = version >= (1, 17)

    def originals(self, memory: Memory | None) -> dict[str, Any]:
        """Return how vectors as they are shall be held, as arguments."""
        if self._has_memory:
            return {"memory": models.Memory(memory or "cached")}
        return {"on_disk": memory == "cold"}

    def quantization(self, creation: Creation) -> Any:
        """Return how vectors shall be compressed.

        Raises:
            StoreError: If the server is too old for that.
        """
        quantized = creation.quantized or "pinned"
        place = (
            {"memory": models.Memory(quantized)}
            if self._has_memory
            else {"always_ram": quantized == "pinned"}
        )
        if creation.quantize in ("bits4", "bits1"):
            if not self._has_turbo:
                raise StoreError(
                    f"the Qdrant {self._server} at {self._address} has no {creation.quantize}: TurboQuant "
                    "came with 1.18. Upgrade it, or leave out --quantize."
                )
            bits = models.TurboQuantBitSize(creation.quantize)
            return models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(bits=bits, **place))
        if creation.quantize == "binary":
            return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(**place))
        return models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, **place)
        )

    def index(self, field: str) -> Any:
        """Return how a payload field shall be indexed."""
        place: dict[str, Any] = {}
        if self._has_memory:
            place["memory"] = models.Memory(IN_MEMORY.get(field, "cold"))
        elif field not in IN_MEMORY:
            place["on_disk"] = True
        if field not in LINKED and self._has_unlinked:
            place["enable_hnsw"] = False
        if field in INTEGER_FIELDS:
            return models.IntegerIndexParams(
                type=models.IntegerIndexType.INTEGER, lookup=True, range=True, **place
            )
        if field in DATETIME_FIELDS:
            return models.DatetimeIndexParams(type=models.DatetimeIndexType.DATETIME, **place)
        return models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, **place)

    def creation(self, dim: int, asked: Creation) -> dict[str, Any]:
        """Return the arguments of `QdrantClient.create_collection` for a version, but for its metadata."""
        wanted = asked.over(DEFAULTS["server"])
        options = {
            "shard_number": wanted.shards,
            "replication_factor": wanted.replicas,
            "write_consistency_factor": wanted.write_consistency,
        }
        return {
            "vectors_config": models.VectorParams(
                size=dim, distance=models.Distance.COSINE, **self.originals(wanted.originals)
            ),
            "hnsw_config": models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCT),
            "optimizers_config": models.OptimizersConfigDiff(
                max_segment_size=(wanted.segment_mb or 1) * _KB_IN_MB
            ),
            "quantization_config": self.quantization(wanted),
            **{name: number for name, number in options.items() if number is not None},
        }

    def changes(self, existing: Creation, wanted: Creation) -> dict[str, Any]:
        """Return the arguments of `QdrantClient.update_collection` that make one the other; {} for none."""
        have, want = existing.asked, wanted.asked
        new = {name for name, value in want.items() if have.get(name) != value}
        options: dict[str, Any] = {}
        if "originals" in new:
            options["vectors_config"] = {"": models.VectorParamsDiff(**self.originals(wanted.originals))}
        if new & {"quantize", "quantized"}:
            options["quantization_config"] = self.quantization(wanted)
        if "segment_mb" in new:
            size = (wanted.segment_mb or 1) * _KB_IN_MB
            options["optimizers_config"] = models.OptimizersConfigDiff(max_segment_size=size)
        if "write_consistency" in new:
            options["collection_params"] = models.CollectionParamsDiff(
                write_consistency_factor=wanted.write_consistency
            )
        return options


def dialect_of(connection: Connection) -> Dialect:
    """Return the words of the server that is connected."""
    return Dialect(connection.server_version, connection.address)


def creation_of(info: models.CollectionInfo) -> Creation:
    """Return what a collection is like; None for what its server does not say."""
    params = info.config.params
    vectors = params.vectors if isinstance(params.vectors, models.VectorParams) else None
    optimizer = info.config.optimizer_config
    size = optimizer.max_segment_size if optimizer is not None else None
    quantization = info.config.quantization_config
    if vectors is not None and vectors.quantization_config is not None:
        quantization = vectors.quantization_config
    how, quantized = _quantized(quantization)
    originals = _memory(vectors, "on_disk", {True: "cold", False: "cached"})
    replicas, consistency = params.replication_factor, params.write_consistency_factor
    return Creation(
        shards=params.shard_number,
        replicas=replicas,
        write_consistency=min(consistency, replicas or consistency) if consistency else None,
        segment_mb=size // _KB_IN_MB if size and size >= _KB_IN_MB else None,
        quantize=how,
        originals="cached" if originals == "pinned" else originals,  # as a server takes it
        quantized=quantized,
    )


def _quantized(quantization: Any) -> tuple[Any, Any]:
    """Return how vectors are compressed, and where that is held; None for what imret has no word for."""
    kinds = {"scalar": "int8", "binary": "binary", "turbo": None}
    kind = next((kind for kind in kinds if hasattr(quantization, kind)), "")
    if not kind:
        return None, None
    config = getattr(quantization, kind)
    how = kinds[kind]
    if kind == "turbo":
        bits = getattr(config.bits, "value", config.bits)
        how = bits if bits in ("bits4", "bits1") else None
    return how, _memory(config, "always_ram", {True: "pinned", False: "cached"})


def _memory(config: Any, flag: str, meant: dict[bool, Memory]) -> Any:
    word = getattr(config, "memory", None)
    if word is not None:
        return str(getattr(word, "value", word))
    said = getattr(config, flag, None)
    return None if said is None else meant[said]


def index_payload(connection: Connection, physical: str) -> None:
    """Make the payload indexes that a version lacks: all of a new one, some of an old one."""
    info = connection.request("describe a collection", lambda: connection.client.get_collection(physical))
    dialect = dialect_of(connection)
    for field in INDEXED_FIELDS:
        if field not in info.payload_schema:
            _create_index(connection, physical, field, dialect.index(field))


def to_current(connection: Connection, physical: str, asked: Creation) -> list[str]:
    """Make of a collection what would be made now; what has to be built anew the server builds by itself.

    What it has of its own stays, unless it is asked otherwise, also how vectors are compressed; what was left
    to the server when it was made gets the default of today.

    Returns:
        What has changed, in words.
    """
    info = connection.request("describe a collection", lambda: connection.client.get_collection(physical))
    dialect, existing = dialect_of(connection), creation_of(info)
    wanted = asked.over(existing).over(DEFAULTS["server"])
    changed = [
        spelt(name, value) for name, value in wanted.asked.items() if existing.asked.get(name) != value
    ]
    # One at a time: for another segment size the server ends first what it builds.
    for name, value in dialect.changes(existing, wanted).items():
        connection.request(
            "change how a collection is laid out",
            lambda name=name, value=value: connection.client.update_collection(physical, **{name: value}),  # type: ignore[misc]
        )
    for field in INDEXED_FIELDS:
        known = info.payload_schema.get(field)
        schema = dialect.index(field)
        if known is None or not _is_as(known.params, schema):
            _create_index(connection, physical, field, schema)  # takes the place of one of other parameters
            changed.append(f"index of {field}")
    return changed


def _is_as(params: Any, schema: Any) -> bool:
    """Whether an index has the parameters that it is to have; what is left out of either is its default."""
    wanted = schema.model_dump(mode="json", exclude_none=True, exclude={"type", "lookup", "range"})
    has = {} if params is None else params.model_dump(mode="json", exclude_none=True)
    defaults = {"memory": "cold" if has.get("on_disk") else "pinned", "on_disk": False, "enable_hnsw": True}
    return all((defaults | has).get(name) == value for name, value in wanted.items())


def _create_index(connection: Connection, physical: str, field: str, schema: Any) -> None:
    connection.request(
        f"index {field!r}",
        lambda: connection.client.create_payload_index(physical, field, field_schema=schema, wait=True),
    )
