"""A Qdrant that speaks gRPC over a real socket where there is no server, beside its REST face in
`qdrant_over_http`: the calls that imret makes, over the engine of `tests.fakes.qdrant_engine` and
qdrant-client's own conversions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from qdrant_client import grpc as wire
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import (
    CollectionsServicer,
    add_CollectionsServicer_to_server,
)
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server
from qdrant_client.grpc.qdrant_pb2_grpc import QdrantServicer, add_QdrantServicer_to_server

from tests.fakes.qdrant_engine import VERSION, Refused
from tests.fakes.qdrant_over_http import QdrantOverHTTP

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    500: grpc.StatusCode.INTERNAL,
}
_WRITES = {"Upsert", "Delete", "CreateFieldIndex", "UpdateBatch", "Create", "Update", "UpdateAliases"}


class QdrantOverGRPC:
    """A context manager; while it is open the engine behind a `QdrantOverHTTP` answers at `port` too.

    Attributes:
        port: Of 127.0.0.1.
        calls: Names of the calls that arrived, in order.
        failures: Codes and texts to answer the next calls with instead of serving them.
    """

    def __init__(self, rest: QdrantOverHTTP) -> None:
        self.engine, self.rest = rest.engine, rest
        self.lock = threading.Lock()
        self.calls: list[str] = []
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        for add, servicer, answers in (
            (add_PointsServicer_to_server, PointsServicer, _POINTS),
            (add_CollectionsServicer_to_server, CollectionsServicer, _COLLECTIONS),
            (add_QdrantServicer_to_server, QdrantServicer, _ROOT),
        ):
            methods = {name: _served(self, name, answer) for name, answer in answers.items()}
            add(type("Served", (servicer,), methods)(), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> QdrantOverGRPC:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(None).wait()


def _served(face: QdrantOverGRPC, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    def serve(_: object, request: Any, context: grpc.ServicerContext) -> Any:
        face.calls.append(name)
        if face.failures:
            context.abort(*face.failures.pop(0))
        key = dict(context.invocation_metadata()).get("api-key")
        refusal = face.rest.refusal(key, writes=name in _WRITES)
        if refusal is not None and name != "HealthCheck":
            context.abort(_CODES[refusal[0]], refusal[1])
        with face.lock:
            try:
                return answer(face.engine, request)
            except Refused as error:
                context.abort(_CODES[error.status], str(error))
            except ValueError as error:
                missing = "not found" in str(error)
                code = grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT
                context.abort(code, str(error))

    return serve


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _retrieved(record: models.Record) -> Any:
    return RestToGrpc.convert_record(record.model_copy(update={"payload": record.payload or {}}))


def _done(engine: Any, result: Any) -> Any:
    return wire.PointsOperationResponse(result=wire.UpdateResult(status=wire.UpdateStatus.Completed))


def _upsert(engine: Any, request: Any) -> Any:
    conditions = {}
    if request.HasField("update_filter"):
        conditions["update_filter"] = GrpcToRest.convert_filter(request.update_filter)
    points = [GrpcToRest.convert_point_struct(one) for one in request.points]
    return _done(engine, engine.upsert(request.collection_name, points, **conditions))


def _scroll(engine: Any, request: Any) -> Any:
    records, following = engine.scroll(
        request.collection_name,
        scroll_filter=_filter(request),
        limit=request.limit,
        offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
        with_payload=True,
        with_vectors=request.with_vectors.enable,
    )
    offset = None if following is None else RestToGrpc.convert_extended_point_id(following)
    return wire.ScrollResponse(result=[_retrieved(one) for one in records], next_page_offset=offset)


def _query(engine: Any, request: Any) -> Any:
    hits = engine.query_points(
        request.collection_name,
        query=GrpcToRest.convert_query(request.query),
        query_filter=_filter(request),
        limit=request.limit,
        with_payload=True,
    ).points
    return wire.QueryResponse(result=[RestToGrpc.convert_scored_point(hit) for hit in hits])


def _get(engine: Any, request: Any) -> Any:
    records = engine.retrieve(
        request.collection_name,
        [GrpcToRest.convert_point_id(one) for one in request.ids],
        with_payload=request.with_payload.enable,
        with_vectors=request.with_vectors.enable,
    )
    return wire.GetResponse(result=[_retrieved(one) for one in records])


def _facet(engine: Any, request: Any) -> Any:
    hits = engine.facet(
        request.collection_name, request.key, facet_filter=_filter(request), limit=request.limit
    ).hits
    return wire.FacetResponse(hits=[RestToGrpc.convert_facet_value_hit(hit) for hit in hits])


def _update_batch(engine: Any, request: Any) -> Any:
    operations = [GrpcToRest.convert_points_update_operation(one) for one in request.operations]
    engine.batch_update_points(request.collection_name, operations)
    return wire.UpdateBatchResponse(
        result=[wire.UpdateResult(status=wire.UpdateStatus.Completed) for _ in operations]
    )


def _update_aliases(engine: Any, request: Any) -> Any:
    steps: list[models.AliasOperations] = []
    for action in request.actions:
        if action.HasField("create_alias"):
            create = models.CreateAlias(
                collection_name=action.create_alias.collection_name, alias_name=action.create_alias.alias_name
            )
            steps.append(models.CreateAliasOperation(create_alias=create))
        else:
            delete = models.DeleteAlias(alias_name=action.delete_alias.alias_name)
            steps.append(models.DeleteAliasOperation(delete_alias=delete))
    return wire.CollectionOperationResponse(result=engine.update_collection_aliases(steps))


def _given(request: Any, **converters: Any) -> dict[str, Any]:
    """Return the fields that a message has, converted; a number as it is."""
    return {
        name: getattr(request, name) if convert is None else convert(getattr(request, name))
        for name, convert in converters.items()
        if request.HasField(name)
    }


def _index(engine: Any, request: Any) -> Any:
    schema: Any = wire.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
    if request.HasField("field_index_params"):
        schema = GrpcToRest.convert_payload_schema_params(request.field_index_params)
    return _done(
        engine, engine.create_payload_index(request.collection_name, request.field_name, field_schema=schema)
    )


def _update(engine: Any, request: Any) -> Any:
    changes = _given(
        request,
        vectors_config=GrpcToRest.convert_vectors_config_diff,
        hnsw_config=GrpcToRest.convert_hnsw_config_diff,
        optimizers_config=GrpcToRest.convert_optimizers_config_diff,
        quantization_config=GrpcToRest.convert_quantization_config_diff,
        params=GrpcToRest.convert_collection_params_diff,
    )
    if "params" in changes:
        changes["collection_params"] = changes.pop("params")
    if request.metadata:
        changes["metadata"] = GrpcToRest.convert_payload(request.metadata)
    return wire.CollectionOperationResponse(
        result=engine.update_collection(request.collection_name, **changes)
    )


def _create(engine: Any, request: Any) -> Any:
    made = engine.create_collection(
        request.collection_name,
        GrpcToRest.convert_vectors_config(request.vectors_config),
        metadata=GrpcToRest.convert_payload(request.metadata),
        **_given(
            request,
            hnsw_config=GrpcToRest.convert_hnsw_config_diff,
            optimizers_config=GrpcToRest.convert_optimizers_config_diff,
            quantization_config=GrpcToRest.convert_quantization_config,
            shard_number=None,
            replication_factor=None,
            write_consistency_factor=None,
        ),
    )
    return wire.CollectionOperationResponse(result=made)


_POINTS: dict[str, Callable[..., Any]] = {
    "Upsert": _upsert,
    "Delete": lambda e, r: _done(
        e, e.delete(r.collection_name, GrpcToRest.convert_points_selector(r.points))
    ),
    "CreateFieldIndex": _index,
    "Count": lambda e, r: wire.CountResponse(
        result=wire.CountResult(count=e.count(r.collection_name, count_filter=_filter(r)).count)
    ),
    "Get": _get,
    "Scroll": _scroll,
    "Query": _query,
    "Facet": _facet,
    "UpdateBatch": _update_batch,
}

_COLLECTIONS: dict[str, Callable[..., Any]] = {
    "List": lambda e, r: wire.ListCollectionsResponse(
        collections=[wire.CollectionDescription(name=one.name) for one in e.get_collections().collections]
    ),
    "Get": lambda e, r: wire.GetCollectionInfoResponse(
        result=RestToGrpc.convert_collection_info(e.get_collection(r.collection_name))
    ),
    "Create": _create,
    "Update": _update,
    "Delete": lambda e, r: wire.CollectionOperationResponse(result=e.delete_collection(r.collection_name)),
    "ListAliases": lambda e, r: wire.ListAliasesResponse(
        aliases=[
            wire.AliasDescription(alias_name=one.alias_name, collection_name=one.collection_name)
            for one in e.get_aliases().aliases
        ]
    ),
    "UpdateAliases": _update_aliases,
}

_ROOT: dict[str, Callable[..., Any]] = {"HealthCheck": lambda e, r: wire.HealthCheckReply(**VERSION)}
