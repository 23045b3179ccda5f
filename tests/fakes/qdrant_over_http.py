"""A Qdrant to talk to over a real socket where there is no server: its REST routes over qdrant-client's
own in-memory engine, with a switch to make it fail. Only the routes that imret uses.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient, models

VERSION = {"title": "qdrant - vector search engine", "version": "1.20.0", "commit": "0"}
# Local mode says once a process that it has no use for indexes and search parameters; here that is known.
LOCAL_MODE_WARNINGS = (
    "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
    "ignore:Local mode performs exact:UserWarning",
)


class QdrantOverHTTP:
    """A context manager; while it is open a Qdrant answers at `url`.

    Attributes:
        url: Its address.
        requests: ("METHOD", "/path") of every request that arrived, in order.
        fail: Called with method and path before a request is served; returns a status to answer instead
            (0: hang up without an answer), or None to serve it.
        api_key: The key that it asks for, if any.
    """

    def __init__(self, *, api_key: str | None = None, version: dict[str, str] = VERSION) -> None:
        self.api_key = api_key
        self.version = version
        self.requests: list[tuple[str, str]] = []
        self.fail: Callable[[str, str], int | None] = lambda method, path: None
        self.engine = QdrantClient(":memory:")
        self._one_at_a_time = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> QdrantOverHTTP:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.engine.close()

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
        raise LookupError(f"no route for {method} {path}")

    def _check_exists(self, *names: str) -> None:
        for name in names:
            if not self.engine.collection_exists(name):
                raise LookupError(f"Not found: Collection `{name}` doesn't exist!")


def _handler(qdrant: QdrantOverHTTP) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = self.path.split("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            qdrant.requests.append((self.command, path))
            status = qdrant.fail(self.command, path)
            if status == 0:
                self.close_connection = True
                return
            if status is not None:
                self._send(status, {"status": {"error": "made to fail"}})
            elif qdrant.api_key is not None and self.headers.get("api-key") != qdrant.api_key:
                self._send(401, {"status": {"error": "Must provide an API key or an Authorization token"}})
            elif path == "/":
                self._send(200, qdrant.version)
            else:
                try:
                    self._send(200, {"result": qdrant.serve(self.command, path, body), "status": "ok"})
                except LookupError as error:
                    self._send(404, {"status": {"error": str(error)}})
                except ValueError as error:
                    self._send(400, {"status": {"error": str(error)}})

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815  # names that http.server calls

        def _send(self, status: int, answer: object) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _plain(answer: object) -> object:
    """Return an answer of the in-memory engine as JSON values."""
    if isinstance(answer, BaseModel):
        return answer.model_dump(mode="json")
    if isinstance(answer, list | tuple):
        return [_plain(one) for one in answer]
    return answer


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


_ACTIONS = TypeAdapter(list[models.AliasOperations])
_OPERATIONS = TypeAdapter(list[models.UpdateOperation])
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
            n, models.VectorParams(**b["vectors"]), metadata=b.get("metadata")
        ),
    ),
    ("PATCH", _NAME, lambda e, b, n: e.update_collection(n, metadata=b.get("metadata"))),
    ("DELETE", _NAME, lambda e, b, n: e.delete_collection(n)),
    (
        "PUT",
        f"{_NAME}/index",
        lambda e, b, n: e.create_payload_index(n, b["field_name"], field_schema=b["field_schema"]),
    ),
    ("PUT", f"{_NAME}/points", lambda e, b, n: e.upsert(n, models.PointsList(**b).points)),
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
    ("POST", f"{_NAME}/points/delete", lambda e, b, n: e.delete(n, models.PointIdsList(**b))),
    (
        "POST",
        f"{_NAME}/points/batch",
        lambda e, b, n: [
            _DONE for _ in e.batch_update_points(n, _OPERATIONS.validate_python(b["operations"]))
        ],
    ),
]
