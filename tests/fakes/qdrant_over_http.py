"""A Qdrant to talk to over a real socket where there is no server: its REST routes over the engine of
`tests.fakes.qdrant_engine`, with a switch to make it fail. Only the routes that imret uses.
"""

from __future__ import annotations

import json
import math
import re
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient, models

from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS, VERSION, QdrantLikeAServer, Refused
from tests.fakes.qdrant_shards import Shards

MAX_BODY_BYTES = 32 << 20
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class QdrantOverHTTP:
    """A context manager; while it is open a Qdrant answers at `url`.

    Attributes:
        url: Its address.
        requests: ("METHOD", "/path") of every request that arrived, in order.
        length: Of the body of the last of them.
        fail: Called with method and path before a request is served; returns a status to answer instead, or
            one and a text (0: hang up without an answer), or None to serve it.
        api_key: The key that it asks for, if any.
        read_only_key: A key that may not write.
        engine: The engine, whose ways can be set.
        shards: Those of its collections that it has itself.
        prefix: The path below which alone it answers, as a proxy puts it.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        read_only_key: str | None = None,
        version: dict[str, str] = VERSION,
        port: int = 0,
        prefix: str = "",
    ) -> None:
        self.api_key, self.read_only_key = api_key, read_only_key
        self.version = version
        self.requests: list[tuple[str, str]] = []
        self.length = 0
        self.fail: Callable[[str, str], int | tuple[int, str] | None] = lambda method, path: None
        self.engine = QdrantLikeAServer()
        self.shards = Shards(self._points)
        self._one_at_a_time = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self.prefix = prefix

    def __enter__(self) -> QdrantOverHTTP:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.engine.close()
        self.shards.close()

    def _points(self, name: str) -> list[models.Record]:
        return self.engine.scroll(name, limit=1 << 20, with_payload=True, with_vectors=True)[0]

    def serve(self, method: str, path: str, body: Any) -> Any:
        """Return the `result` of a request, or raise LookupError if there is no such collection."""
        with self._one_at_a_time, warnings.catch_warnings():
            for rule in LOCAL_MODE_WARNINGS:
                warnings.filterwarnings("ignore", message=rule.split(":")[1])
            for route_method, pattern, respond in _ROUTES:
                match = re.fullmatch(pattern, path)
                if route_method == method and match:
                    if method not in ("PUT", "DELETE") or path.count("/") > 2:
                        self._check_exists(*match.groups())
                    return _plain(respond(self.engine, body, *match.groups()))
            for route_method, pattern, about_shards in _SHARD_ROUTES:
                match = re.fullmatch(pattern, path)
                if route_method == method and match:
                    self._check_exists(match[1])
                    return about_shards(self.shards, *match.groups())
        raise LookupError(f"no route for {method} {path}")

    def refusal(self, key: str | None, *, writes: bool) -> tuple[int, str] | None:
        """Return the status and text for whoever shows a key, or None if it may ask that."""
        if self.api_key is None or key == self.api_key:
            return None
        if key is None or key != self.read_only_key:
            return 401, "Must provide an API key or an Authorization bearer token"
        return (403, "Forbidden: Global manage access is required") if writes else None

    def _check_exists(self, *names: str) -> None:
        for name in names:
            if not self.engine.collection_exists(name):
                raise LookupError(f"Not found: Collection `{name}` doesn't exist!")


def _handler(qdrant: QdrantOverHTTP) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = self.path.split("?")[0]
            if not path.startswith(qdrant.prefix):
                self._refuse(404, "this is not what the proxy has at that path")
                return
            path = path.removeprefix(qdrant.prefix) or "/"
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length)
            qdrant.length = length
            qdrant.requests.append((self.command, path))
            status = qdrant.fail(self.command, path)
            refusal = qdrant.refusal(self.headers.get("api-key"), writes=_writes(self.command, path))
            if status == 0:
                self.close_connection = True
            elif status is not None:
                self._refuse(*(status if isinstance(status, tuple) else (status, "made to fail")))
            elif path in ("/", "/readyz"):
                self._send(200, qdrant.version)
            elif refusal is not None:
                self._refuse(*refusal)
            elif length > MAX_BODY_BYTES:
                limit = f"(limit: {MAX_BODY_BYTES} bytes)"
                self._refuse(
                    400, f"Payload error: JSON payload ({length} bytes) is larger than allowed {limit}."
                )
            else:
                self._serve(path, data)

        def _serve(self, path: str, data: bytes) -> None:
            try:
                body = _strict_json(data) if data else None
                answer = qdrant.serve(self.command, path, body)
                if isinstance(answer, Path):
                    self._send_bytes(200, "application/octet-stream", answer.read_bytes())
                else:
                    self._send(200, {"result": answer, "status": "ok"})
            except Refused as error:
                self._refuse(error.status, str(error))
            except LookupError as error:
                self._refuse(404, str(error))
            except ValueError as error:
                self._refuse(400, str(error))

        def _refuse(self, status: int, text: str) -> None:
            self._send(status, {"status": {"error": text}, "time": 0.0})

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815  # names that http.server calls

        def _send(self, status: int, answer: object) -> None:
            self._send_bytes(status, "application/json", json.dumps(answer).encode())

        def _send_bytes(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _writes(method: str, path: str) -> bool:
    reads = ("/scroll", "/query", "/count", "/facet", "/points")
    return method in ("PUT", "PATCH", "DELETE") or (method == "POST" and not path.endswith(reads))


def _strict_json(data: bytes) -> Any:
    """Return a body, refused as a server does: NaN is no JSON, and a datetime is RFC 3339.

    Raises:
        ValueError: If it is not like that.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"Format error in JSON body: expected value, not {name}")

    body = json.loads(data, parse_constant=refuse)
    _check_datetimes(body)
    return body


def _check_datetimes(value: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _check_datetimes(one)
    elif isinstance(value, dict):
        bounds = value.get("range") if "key" in value else None
        for bound in (bounds or {}).values():
            if isinstance(bound, str) and not _RFC_3339.fullmatch(bound):
                raise ValueError(f"Format error in JSON body: {bound!r} is no datetime")
        for one in value.values():
            _check_datetimes(one)


def _plain(answer: object) -> object:
    """Return an answer of the engine as JSON values; null for what JSON has no number for."""
    if isinstance(answer, BaseModel):
        return _plain(answer.model_dump(mode="json"))
    if isinstance(answer, list | tuple):
        return [_plain(one) for one in answer]
    if isinstance(answer, dict):
        return {key: _plain(value) for key, value in answer.items()}
    return None if isinstance(answer, float) and not math.isfinite(answer) else answer


def _upsert(engine: QdrantClient, body: Any, name: str) -> object:
    asked = models.PointsList(**body)
    conditions = {"update_filter": asked.update_filter} if asked.update_filter else {}
    return engine.upsert(name, asked.points, **conditions)


def _scroll(engine: QdrantClient, body: Any, name: str) -> dict[str, object]:
    asked = models.ScrollRequest(**body)
    points, following = engine.scroll(
        name,
        scroll_filter=asked.filter,
        limit=asked.limit or 10,
        offset=asked.offset,
        with_payload=True,
        with_vectors=bool(asked.with_vector),
    )
    return {"points": _plain(points), "next_page_offset": following}


def _query(engine: QdrantClient, body: Any, name: str) -> object:
    asked = models.QueryRequest(**body)
    return engine.query_points(
        name,
        query=asked.query,
        query_filter=asked.filter,
        limit=asked.limit or 10,
        search_params=asked.params,
        with_payload=True,
    )


def _made(body: Any) -> dict[str, Any]:
    """Return what a collection is made with, by the names that the client has for it."""
    asked = models.CreateCollection(**body)
    names = ("metadata", "hnsw_config", "optimizers_config", "quantization_config", "shard_number")
    names += ("replication_factor", "write_consistency_factor")
    given = {name: getattr(asked, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _changes(body: Any) -> dict[str, Any]:
    known = {name: body[name] for name in models.UpdateCollection.model_fields if name in body}
    asked = models.UpdateCollection(**known)
    changes = {
        "metadata": asked.metadata,
        "vectors_config": asked.vectors,
        "hnsw_config": asked.hnsw_config,
        "optimizers_config": asked.optimizers_config,
        "quantization_config": asked.quantization_config,
        "collection_params": asked.params,
    }
    return {name: value for name, value in changes.items() if value is not None}


def _index(engine: QdrantClient, body: Any, name: str) -> object:
    schema = models.CreateFieldIndex(**body).field_schema
    return engine.create_payload_index(name, body["field_name"], field_schema=schema)


_ACTIONS = TypeAdapter(list[models.AliasOperations])
_OPERATIONS = TypeAdapter(list[models.UpdateOperation])
_SELECTOR: TypeAdapter[Any] = TypeAdapter(models.PointsSelector)
_DONE = {"operation_id": 0, "status": "completed"}
_NAME = "/collections/([^/]+)"

_ROUTES: list[tuple[str, str, Callable[..., object]]] = [
    ("GET", "/collections", lambda e, b: e.get_collections()),
    ("GET", "/aliases", lambda e, b: e.get_aliases()),
    (
        "POST",
        "/collections/aliases",
        lambda e, b: e.update_collection_aliases(_ACTIONS.validate_python(b["actions"])),
    ),
    ("GET", _NAME, lambda e, b, n: e.get_collection(n)),
    (
        "PUT",
        _NAME,
        lambda e, b, n: e.create_collection(
            n,
            models.VectorParams(**b["vectors"]),
            **_made(b),
        ),
    ),
    # What it does not know it ignores, and says yes.
    ("PATCH", _NAME, lambda e, b, n: e.update_collection(n, **_changes(b))),
    ("DELETE", _NAME, lambda e, b, n: e.delete_collection(n)),
    ("GET", f"{_NAME}/optimizations", lambda e, b, n: e.get_optimizations(n)),
    ("PUT", f"{_NAME}/index", _index),
    ("PUT", f"{_NAME}/points", _upsert),
    (
        "POST",
        f"{_NAME}/points",
        lambda e, b, n: e.retrieve(
            n, b["ids"], with_payload=bool(b.get("with_payload")), with_vectors=bool(b.get("with_vector"))
        ),
    ),
    ("POST", f"{_NAME}/points/scroll", _scroll),
    ("POST", f"{_NAME}/points/query", _query),
    (
        "POST",
        f"{_NAME}/points/count",
        lambda e, b, n: e.count(n, count_filter=models.CountRequest(**b).filter, exact=True),
    ),
    (
        "POST",
        f"{_NAME}/facet",
        lambda e, b, n: e.facet(
            n, b["key"], facet_filter=models.FacetRequest(**b).filter, limit=b["limit"], exact=True
        ),
    ),
    ("POST", f"{_NAME}/points/delete", lambda e, b, n: e.delete(n, _SELECTOR.validate_python(b))),
    (
        "POST",
        f"{_NAME}/points/batch",
        lambda e, b, n: [
            _DONE for _ in e.batch_update_points(n, _OPERATIONS.validate_python(b["operations"]))
        ],
    ),
]

_SHARD = f"{_NAME}/shards/([0-9]+)/snapshots"

_SHARD_ROUTES: list[tuple[str, str, Callable[..., object]]] = [
    ("GET", f"{_NAME}/cluster", lambda s, n: s.where(n)),
    ("POST", _SHARD, lambda s, n, shard: s.make(n, int(shard))),
    ("GET", f"{_SHARD}/([^/]+)", lambda s, n, shard, snapshot: s.file(snapshot)),
    ("DELETE", f"{_SHARD}/([^/]+)", lambda s, n, shard, snapshot: s.remove(snapshot)),
]
