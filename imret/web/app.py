"""The whole server as one ASGI application: page, API, health and metrics, behind the security middleware."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imret.abandon import AbandonedError
from imret.errors import ImretError, StoreError, StoreUnavailable
from imret.retrieval.limits import MAX_BODY_BYTES
from imret.settings import __version__
from imret.web.departure import DepartureWatch
from imret.web.errors import problem, problem_for
from imret.web.filling import Filling
from imret.web.images.files import ImageFiles
from imret.web.images.uploads import Uploads
from imret.web.pool.collections import CollectionPool
from imret.web.pool.executors import Busy
from imret.web.request_bodies import describe_errors
from imret.web.routes import Api
from imret.web.schemas import SearchIn
from imret.web.security.middleware import SecurityMiddleware
from imret.web.security.public_address import PublicAddress
from imret.web.teaching import Teaching

STATIC = Path(__file__).with_name("static")

# The API of today also answers below /api without a version.
VERSION = "v1"

BODY_TIMEOUT_S = 30.0


def create_app(
    pool: CollectionPool,
    *,
    default: str,
    image_files: ImageFiles,
    host: str,
    port: int,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
    public: PublicAddress | None = None,
    filling: Filling | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_timeout_s: float = BODY_TIMEOUT_S,
) -> ASGIApp:
    """Return the server's application.

    Args:
        pool: The collections; closed when the application ends.
        default: The collection that is asked where none is named.
        image_files: Files and thumbnails.
        host: What the server is bound to, which decides what it may be called.
        port: The same.
        token: What clients have to show; None for none.
        allow_hosts: Names that it is called by beside its own.
        public: The address that browsers use, behind a proxy; None where nothing is known of it.
        filling: An ingest that fills one of the collections meanwhile.
        max_body_bytes: Of a request; larger ones are refused.
        body_timeout_s: In which a request has to arrive whole.
    """
    public = public or PublicAddress()
    api = Api(pool, default=default, image_files=image_files, uploads=Uploads(), filling=filling)
    is_reached_from_afar = public != PublicAddress() or bool(allow_hosts)
    teaching = Teaching(api, allowed=token is not None or not is_reached_from_afar)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        api.close()
        teaching.close()
        pool.close()

    app = FastAPI(
        title="imret",
        version=__version__,
        description="Find pictures by meaning. Errors are application/problem+json (RFC 9457).",
        docs_url=None,  # it loads scripts from elsewhere
        redoc_url=None,
        openapi_url=f"/api/{VERSION}/openapi.json",
        servers=[{"url": public.root_path}] if public.root_path else None,
        redirect_slashes=False,  # to an address that is made of Host: not what browsers use, behind a proxy
        lifespan=lifespan,
    )
    for prefix in (f"/api/{VERSION}", "/api"):
        router = api.router()
        teaching.add_to(router)
        app.include_router(router, prefix=prefix, include_in_schema=prefix != "/api")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _describe_bodies(app)
    _add_page(app, public)
    _add_health(app, pool, default)
    _add_error_handlers(app)
    measured = _MetricsMiddleware(DepartureWatch(app), pool)
    return SecurityMiddleware(
        measured,
        host=host,
        port=port,
        token=token,
        allow_hosts=allow_hosts,
        public=public,
        max_body_bytes=max_body_bytes,
        body_timeout_s=body_timeout_s,
    )


def _describe_bodies(app: FastAPI) -> None:
    """Put what is posted into the document: the routes read it themselves, so FastAPI does not see it."""
    generated = app.openapi

    def document() -> dict[str, Any]:
        content = generated()
        body = SearchIn.model_json_schema(ref_template="#/components/schemas/{model}")
        content["components"]["schemas"] |= {**body.pop("$defs", {}), SearchIn.__name__: body}
        return content

    app.openapi = document  # type: ignore[method-assign]


def _add_page(app: FastAPI, public: PublicAddress) -> None:
    content = public.in_page((STATIC / "index.html").read_text(encoding="utf-8"))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(content, headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")


def _add_health(app: FastAPI, pool: CollectionPool, default: str) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        # Asked without the token, so nothing of what is inside is told, not even a name.
        if pool.peek(default) is None:
            return problem(503, "the collection is not open.", retry_after_s=2)
        if pool.is_away(default):
            return problem(503, "the collection does not answer now.", retry_after_s=2)
        return PlainTextResponse("ready\n")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(pool.telemetry.exposition(), media_type=pool.telemetry.content_type)


def _add_error_handlers(app: FastAPI) -> None:
    async def known(_: Request, error: Exception) -> Response:
        if isinstance(error, StoreError) and error.public and not isinstance(error, StoreUnavailable):
            print(f"imret serve: {error}", file=sys.stderr)  # of which the client learns less
        return problem_for(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(422, describe_errors(error.errors()))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    async def gone(_: Request, error: Exception) -> Response:
        # The client left within its body, or the body was refused. Nobody reads this; nginx counts it as 499.
        return Response(status_code=499)

    app.add_exception_handler(Exception, known)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(AbandonedError, gone)
    app.add_exception_handler(ImretError, known)
    app.add_exception_handler(Busy, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


class _MetricsMiddleware:
    """Counts requests and their latency by route, and writes down errors that nobody foresaw."""

    def __init__(self, app: DepartureWatch, pool: CollectionPool) -> None:
        self._app, self._telemetry = app, pool.telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, is_complete = 0, False

        async def counted(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                is_complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            print(f"imret serve: {scope['method']} {_route(scope)}", file=sys.stderr)
            traceback.print_exc()
            if not is_complete:
                raise  # the answer has begun: the connection has to break
        finally:
            route = _route(scope)
            self._telemetry.requests.labels(route, str(status)).inc()
            self._telemetry.latency.labels(route).observe(time.perf_counter() - started)


def _route(scope: Scope) -> str:
    """Return the pattern of a route: of few values, and without what was asked."""
    route: Any = scope.get("route")
    path = getattr(route, "path", None)
    return str(path) if path else "other"
