"""The engine behind both faces of the fake Qdrant: qdrant-client's in-memory one, with the ways of a server.

What a server 1.19 does and local mode does not, as far as imret can meet it. Left out, because imret sends
nothing that would show it: `order_by`, counts that are not exact, conditional upserts, snapshots, geo and
text conditions, keys with brackets.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http import models as rest

VERSION = {"title": "qdrant - vector search engine", "version": "1.20.0", "commit": "0"}
# Local mode says once a process that it has no use for indexes and search parameters; here that is known.
LOCAL_MODE_WARNINGS = (
    "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
    "ignore:Local mode performs exact:UserWarning",
)
# What a collection is made with, and local mode forgets.
_CONFIG = (
    "hnsw_config",
    "optimizers_config",
    "quantization_config",
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
)
_YELLOW_LOOKS = 2  # at a collection that was just written to


class Refused(Exception):
    """An answer that is no result.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class QdrantLikeAServer(QdrantClient):
    """An in-memory engine that filters, refuses and counts as a server does.

    Attributes:
        node_away: Address of a node of the cluster that is away, "" if all are there.
        replicated: Qdrant collections that have replicas, which do not miss it.
        indexing_threshold_kb: Vectors of fewer kilobytes are not indexed.
        stuck: Qdrant collections that stay yellow, half of their vectors indexed.
        grey: Those that wait for a write, or for a change of nothing, before they go on.
    """

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.node_away = ""
        self.replicated: set[str] = set()
        self.indexing_threshold_kb = 20_000
        self.stuck: set[str] = set()
        self.grey: set[str] = set()
        self._schemas: dict[str, dict[str, Any]] = {}
        self._parameters: dict[str, dict[str, Any]] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._looks: Counter[str] = Counter()

    # ---- What there is --------------------------------------------------------------------------

    def create_collection(self, collection_name: str, *args: Any, **options: Any) -> bool:
        if collection_name in {one.name for one in self.get_collections().collections}:
            raise Refused(409, f"Wrong input: Collection `{collection_name}` already exists!")
        if collection_name in {one.alias_name for one in self.get_aliases().aliases}:
            raise Refused(
                409,
                f"Wrong input: Can't create collection with name {collection_name}. Alias "
                "with the same name already exists",
            )
        config = {name: options.pop(name, None) for name in _CONFIG}
        made = super().create_collection(collection_name, *args, **options)
        self._schemas[collection_name], self._parameters[collection_name] = {}, {}
        self._configs[collection_name] = {name: one for name, one in config.items() if one is not None}
        return made

    def update_collection(self, collection_name: str, *args: Any, **options: Any) -> bool:
        """Change what is said, and leave the rest; a change of nothing has grey go on."""
        name = self._physical(collection_name)
        config = self._configs[name]
        for of_vector in (options.pop("vectors_config", None) or {}).values():
            stored = self._local(name).config.vectors
            for key in of_vector.model_dump(exclude_none=True):
                setattr(stored, key, getattr(of_vector, key))
        params = options.pop("collection_params", None)
        said = {} if params is None else params.model_dump(exclude_none=True)
        config.update({key: said[key] for key in _CONFIG if key in said})
        for key in ("hnsw_config", "optimizers_config", "quantization_config"):
            diff = options.pop(key, None)
            if diff is None:
                continue
            if key == "optimizers_config":
                self.grey.discard(name)
            if key != "quantization_config" and key in config:
                diff = config[key].model_copy(update=diff.model_dump(exclude_none=True))
            config[key] = diff
            self._looks[name] = _YELLOW_LOOKS
        return super().update_collection(name, *args, **options) if options else True

    def delete_collection(self, collection_name: str, **options: Any) -> bool:
        for kept in (self._schemas, self._parameters, self._configs):
            kept.pop(collection_name, None)
        return super().delete_collection(collection_name, **options)  # and its aliases with it

    def update_collection_aliases(self, change_aliases_operations: Sequence[Any], **options: Any) -> bool:
        taken = {one.name for one in self.get_collections().collections}
        for step in change_aliases_operations:
            if isinstance(step, models.CreateAliasOperation) and step.create_alias.alias_name in taken:
                name = step.create_alias.alias_name
                raise Refused(409, f"Wrong input: Can't create alias. Collection {name} already exists!")
        return super().update_collection_aliases(change_aliases_operations, **options)

    def create_payload_index(self, collection_name: str, field_name: str, **options: Any) -> Any:
        """Make an index; one of other parameters takes the place of one that is there."""
        asked = options["field_schema"]
        is_kind = isinstance(asked, str)  # as the enum is
        schema = models.PayloadSchemaType(asked if is_kind else asked.type.value)
        self._schemas[self._asked(collection_name)][field_name] = schema
        self._parameters[self._asked(collection_name)][field_name] = None if is_kind else asked
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return super().create_payload_index(collection_name, field_name, **options)

    def get_collection(self, collection_name: str, **options: Any) -> models.CollectionInfo:
        """Yellow for a few looks after a write while the count climbs, then green.

        The count is of vectors in segments that were optimized, whether or not a graph is made of them.
        """
        name = self._asked(collection_name)
        info = super().get_collection(name)
        points, size = info.points_count or 0, getattr(info.config.params.vectors, "size", 1)
        is_large = points > 0 and points * size * 4 >= self.indexing_threshold_kb * 1024
        info.indexed_vectors_count = points if is_large else 0
        if self._looks[name] > 0:
            self._looks[name] -= 1
            info.status = models.CollectionStatus.YELLOW
            info.indexed_vectors_count //= 2
        if name in self.stuck or name in self.grey:
            is_grey = name in self.grey
            info.status = models.CollectionStatus.GREY if is_grey else models.CollectionStatus.YELLOW
            info.indexed_vectors_count = points // 2
        self._tell_config(name, info)
        kinds, parameters = self._schemas.get(name, {}), self._parameters.get(name, {})
        info.payload_schema = {
            field: models.PayloadIndexInfo(data_type=kind, points=points, params=parameters[field])
            for field, kind in kinds.items()
        }
        return info

    def _tell_config(self, name: str, info: models.CollectionInfo) -> None:
        """Put into a description what the collection was made with."""
        config = self._configs.get(name, {})
        graph, optimizers = config.get("hnsw_config"), config.get("optimizers_config")
        if graph is not None and graph.m is not None:
            info.config.hnsw_config.m = graph.m
        if optimizers is not None and info.config.optimizer_config is not None:
            info.config.optimizer_config.max_segment_size = optimizers.max_segment_size
        info.config.quantization_config = config.get("quantization_config")
        info.config.params.shard_number = config.get("shard_number", 1)
        info.config.params.replication_factor = config.get("replication_factor", 1)
        info.config.params.write_consistency_factor = config.get("write_consistency_factor", 1)

    def get_optimizations(self, collection_name: str, **options: Any) -> models.OptimizationsResponse:
        name = self._asked(collection_name)
        queued = 1 if name in self.stuck else 0
        summary = models.OptimizationsSummary(
            queued_optimizations=queued, queued_segments=queued, queued_points=0, idle_segments=1
        )
        return models.OptimizationsResponse(summary=summary, running=[])

    # ---- Points ---------------------------------------------------------------------------------

    def upsert(self, collection_name: str, points: Any, **options: Any) -> Any:
        """Store all of a batch or nothing of it; what is not finite too, which only gRPC can carry."""
        name = self._asked(collection_name)
        size = getattr(super().get_collection(name).config.params.vectors, "size", None)
        broken = []
        for i, point in enumerate(points):
            if isinstance(point.vector, list):
                if len(point.vector) != size:
                    text = f"Vector dimension error: expected dim: {size}, got {len(point.vector)}"
                    raise Refused(400, f"Wrong input: {text}")
                if not np.isfinite(np.asarray(point.vector, np.float32)).all():
                    points = [
                        *points[:i],
                        point.model_copy(update={"vector": [1.0] * len(point.vector)}),
                        *points[i + 1 :],
                    ]
                    broken.append(point.id)
        done = super().upsert(name, list(points), **options)
        for id_ in broken:  # to be normalised makes all of it NaN
            collection = self._local(name)
            collection.vectors[""][collection.ids[id_]] = np.nan
        self._looks[name] = _YELLOW_LOOKS
        return done

    def batch_update_points(self, collection_name: str, *args: Any, **options: Any) -> Any:
        return super().batch_update_points(self._asked(collection_name), *args, **options)

    def delete(self, collection_name: str, *args: Any, **options: Any) -> Any:
        return super().delete(self._asked(collection_name), *args, **options)

    def retrieve(self, collection_name: str, *args: Any, **options: Any) -> Any:
        return super().retrieve(self._asked(collection_name), *args, **options)

    def scroll(self, collection_name: str, scroll_filter: Any = None, **options: Any) -> Any:
        name = self._asked(collection_name)
        return super().scroll(name, scroll_filter=self._answered(name, scroll_filter), **options)

    def count(self, collection_name: str, count_filter: Any = None, **options: Any) -> Any:
        name = self._asked(collection_name)
        return super().count(name, count_filter=self._answered(name, count_filter), **options)

    def facet(self, collection_name: str, key: str, facet_filter: Any = None, **options: Any) -> Any:
        """Count what the index holds, which is texts."""
        name = self._asked(collection_name)
        if self._schemas[name].get(key) is None:
            raise Refused(400, f'Bad request: Index required but not found for "{key}"')
        found = super().facet(name, key, facet_filter=self._answered(name, facet_filter), **options)
        found.hits = [hit for hit in found.hits if isinstance(hit.value, str)]
        return found

    def query_points(
        self,
        collection_name: str,
        query: Any = None,
        query_filter: Any = None,
        limit: int = 10,
        **options: Any,
    ) -> rest.QueryResponse:
        """Answer NaN first: it compares with nothing, and a sort leaves it there."""
        name = self._asked(collection_name)
        only = self._answered(name, query_filter)
        broken = [id_ for id_, row in self._rows(name) if np.isnan(row).any()]
        if not broken:
            return super().query_points(name, query=query, query_filter=only, limit=limit, **options)
        theirs = models.HasIdCondition(has_id=broken)
        records, _ = super().scroll(name, scroll_filter=_both(only, must=[theirs]), limit=limit)
        first = [
            models.ScoredPoint(id=one.id, version=0, score=math.nan, payload=one.payload) for one in records
        ]
        found = super().query_points(
            name, query=query, query_filter=_both(only, must_not=[theirs]), limit=limit, **options
        )
        return rest.QueryResponse(points=[*first, *found.points][:limit])

    # ---- Filters --------------------------------------------------------------------------------

    def _answered(self, name: str, only: models.Filter | None) -> models.Filter | None:
        """Return the filter that is really answered: without the check of points where indexes know it all.

        Its `must_not` then counts as answered, too, if each of it stands somewhere else in the filter.
        """
        if only is None:
            return None
        clauses = self._estimated(name, only).clauses
        listed = [*_listed(only.must), *_listed(only.should), *_listed(only.must_not)]
        listed += only.min_should.conditions if only.min_should else []
        if clauses and all(any(_equal(one, clause) for clause in clauses) for one in listed):
            return models.Filter(should=clauses)
        return only

    def _estimated(self, name: str, condition: Any) -> _Estimate:
        """Return which indexes would be asked for a condition, and for how many points."""
        if not isinstance(condition, models.Filter):
            is_known = _is_answered_by_index(condition, self._schemas.get(name, {}))
            n = super().count(name, count_filter=models.Filter(must=[condition])).count
            return _Estimate([condition] if is_known else [], n)
        total = max(1, super().count(name).count)

        def each(conditions: Any) -> list[_Estimate]:
            return [self._estimated(name, one) for one in _listed(conditions)]

        parts = []
        if condition.must:
            parts.append(_all_of(each(condition.must), total))
        if condition.should:
            parts.append(_any_of(each(condition.should), total))
        if condition.min_should:
            some = itertools.combinations(
                each(condition.min_should.conditions), condition.min_should.min_count
            )
            parts.append(_any_of([_all_of(list(one), total) for one in some], total))
        if condition.must_not:
            parts.append(_all_of([_Estimate([], total - one.n) for one in each(condition.must_not)], total))
        return _all_of(parts, total)

    # ---- Names ----------------------------------------------------------------------------------

    def _asked(self, name: str) -> str:
        """Return the collection that a name means, if all its shards answer."""
        physical = self._physical(name)
        if self.node_away and physical not in self.replicated:
            raise Refused(
                500,
                "Service internal error: 1 of 1 read operations failed:\n  Service internal error: Tonic "
                f"status error: The service is currently unavailable: Failed to connect to {self.node_away}, "
                "error: transport error, details: [], metadata: MetadataMap { headers: {} }",
            )
        return physical

    def _physical(self, name: str) -> str:
        aliases = {one.alias_name: one.collection_name for one in self.get_aliases().aliases}
        physical = aliases.get(name, name)
        if physical not in {one.name for one in self.get_collections().collections}:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return physical

    def _local(self, name: str) -> Any:
        return self._client.collections[name]  # type: ignore[attr-defined]

    def _rows(self, name: str) -> list[tuple[Any, Any]]:
        collection = self._local(name)
        rows = collection.vectors.get("")
        return (
            []
            if rows is None
            else [(id_, rows[i]) for id_, i in collection.ids.items() if not collection.deleted[i]]
        )


@dataclass
class _Estimate:
    """Which conditions would be looked up in indexes, and how many points that is."""

    clauses: list[Any]
    n: int


def _all_of(parts: list[_Estimate], total: int) -> _Estimate:
    known = [part for part in parts if part.clauses]
    fewest = min(known, key=lambda part: part.n).clauses if known else []
    return _Estimate(fewest, round(total * math.prod(part.n / total for part in parts)))


def _any_of(parts: list[_Estimate], total: int) -> _Estimate:
    clauses = [one for part in parts for one in part.clauses] if all(part.clauses for part in parts) else []
    return _Estimate(clauses, round(total * (1 - math.prod(1 - part.n / total for part in parts))))


def _is_answered_by_index(condition: Any, schema: dict[str, Any]) -> bool:
    if isinstance(condition, models.HasIdCondition):
        return True
    kind = schema.get(getattr(condition, "key", None))
    if kind is None:
        return False
    asked = getattr(condition, "match", None)
    if asked is not None:
        values = asked.any if isinstance(asked, models.MatchAny) else [asked.value]
        is_text = all(isinstance(value, str) for value in values)
        return bool(
            kind == (models.PayloadSchemaType.KEYWORD if is_text else models.PayloadSchemaType.INTEGER)
        )
    if isinstance(condition.range, models.DatetimeRange):
        return bool(kind == models.PayloadSchemaType.DATETIME)
    return kind in (models.PayloadSchemaType.INTEGER, models.PayloadSchemaType.FLOAT)


def _equal(one: Any, other: Any) -> bool:
    """Whether two conditions are the same to the letter; lists of values are sets to a server."""
    if isinstance(one, models.HasIdCondition) and isinstance(other, models.HasIdCondition):
        return set(one.has_id) == set(other.has_id)
    first, second = getattr(one, "match", None), getattr(other, "match", None)
    if isinstance(first, models.MatchAny) and isinstance(second, models.MatchAny):
        return one.key == other.key and set(first.any) == set(second.any)
    return type(one) is type(other) and bool(one == other)


def _listed(conditions: Any) -> list[Any]:
    return conditions if isinstance(conditions, list) else [] if conditions is None else [conditions]


def _both(only: models.Filter | None, **more: Any) -> models.Filter:
    return models.Filter(must=[*([only] if only else []), *more.pop("must", [])], **more)
