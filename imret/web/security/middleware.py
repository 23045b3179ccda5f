"""What every request passes before the app sees it, and every response after: ASGI middleware around the app.

Knows nothing of what the app does. Which Host and Origin are ours (DNS rebinding, CSRF) is in `hosts`, the
token and its login in `tokens`, limits on bodies in `bodies`, security headers in `http`. Connections and
request heads are bounded below ASGI, in `imret.web.server`.

Sources: RFC 9110 and 9112 (HTTP), RFC 9457 (problem+json), W3C Fetch Metadata.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from imret.retrieval.limits import MAX_BODY_BYTES
from imret.web.security.body_limits import BUDGET_BODIES, BodyBudget, Exchange
from imret.web.security.hosts import AllowedHosts, check_binding, check_origin
from imret.web.security.http import App, Receive, RefusedError, Scope, Send, header_values
from imret.web.security.public_address import PublicAddress
from imret.web.security.tokens import LOGIN_BYTES, TokenGuard

MAX_PATH_BYTES = 4 << 10
MAX_QUERY_BYTES = 16 << 10
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10

_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/static/style.css", "/static/favicon.svg"})
_SINGLE = (b"host", b"origin", b"authorization", b"content-length", b"transfer-encoding", b"content-type")

_logger = logging.getLogger("imret.web")


class SecurityMiddleware:
    """ASGI middleware that refuses what is not ours and adds security headers to every response.

    Refusals are problem+json, before the app is called and before a body is read: 400 what is malformed, 401
    without the token, 403 from another site, 408 and 413 for bodies, 414 and 431 for addresses and headers,
    421 for another Host, 503 for a body beside too many others. The path that is judged is the one that the
    app routes on, and everything that is not listed as open needs the token.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str,
        port: int,
        token: str | None = None,
        allow_hosts: Iterable[str] = (),
        public: PublicAddress | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = 30.0,
    ) -> None:
        """Stand before an app that listens on host and port.

        Args:
            app: The whole ASGI app.
            host: The address bound, as given; see `AllowedHosts`.
            port: The port bound.
            token: What a request must know, at least 16 visible ASCII characters; None asks for nothing.
            allow_hosts: Further names by which this server is reached (a reverse proxy's), without port.
            public: The address that browsers use, behind a proxy; None where nothing is known of it.
            max_body_bytes: Largest body that is taken, counted as it arrives.
            body_timeout_s: How long, in all, a request may let the app wait for its body.

        Raises:
            ValueError: If the token is shorter than 16 characters or could not stand in a header.
            DataError: If an entry of allow_hosts is no host name, or the host needs a token (check_binding).
        """
        self._public = public or PublicAddress()
        self.tokens = TokenGuard(token, public=self._public)
        check_binding(host, token, port=port)
        self._app = app
        self._hosts = AllowedHosts(host, port, allow_hosts, public=self._public, is_open=token is None)
        self._max_body_bytes, self._body_timeout_s = max_body_bytes, body_timeout_s
        self._budget = BodyBudget(BUDGET_BODIES * max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # A websocket that is closed before it was accepted is answered 403.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        scope = self._public.without_root(scope)
        limit = min(LOGIN_BYTES, self._max_body_bytes) if scope["path"] == "/login" else self._max_body_bytes
        exchange = Exchange(
            scope,
            receive,
            send,
            max_body_bytes=limit,
            body_timeout_s=self._body_timeout_s,
            budget=self._budget,
        )
        try:
            await self._respond(scope, exchange)
            await exchange.end()
        finally:
            exchange.release()

    async def _respond(self, scope: Scope, exchange: Exchange) -> None:
        try:
            self._check(scope, exchange)
            if scope["path"] == "/login":
                await self.tokens.login(scope, exchange)
                return
            if scope["path"] == "/logout":
                await self.tokens.logout(scope, exchange)
                return
            if scope["path"] not in _OPEN_PATHS and not self.tokens.admits(scope):
                await self.tokens.challenge(scope, exchange)
                return
        except RefusedError as refusal:
            await exchange.refuse(refusal.status, str(refusal), refusal.headers)
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            if exchange.refused:
                # The app was told that the client is gone, and says so in its own way.
                _logger.debug("the app gave up on a refused request", exc_info=True)
                return
            if not exchange.started:
                # The server's own 500 would go out without our headers.
                await exchange.refuse(500, "this server failed at that; its log says why", [])
                await exchange.end()
            raise

    def _check(self, scope: Scope, exchange: Exchange) -> None:
        """Raise RefusedError for a request that nobody may make."""
        _check_target(scope)
        headers = scope["headers"]
        if len(headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
            raise RefusedError(
                431, f"the headers are too many: at most {MAX_HEADERS}, of {MAX_HEADER_BYTES} bytes in all"
            )
        for name in _SINGLE:
            if len(header_values(scope, name)) > 1:
                raise RefusedError(400, f"the header {name.decode()} is given more than once")
        check_origin(scope, self._hosts.check(scope), self._public)
        exchange.expect_body()


def _check_target(scope: Scope) -> None:
    """Raise RefusedError for an address that two readers could understand in two ways."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    query = scope.get("query_string", b"")
    if len(query) > MAX_QUERY_BYTES or len(raw) > MAX_PATH_BYTES:
        raise RefusedError(
            414,
            f"the address is too long: at most {MAX_PATH_BYTES} bytes of path and {MAX_QUERY_BYTES} of "
            "query. Longer queries go into the body of POST /api/v1/search",
        )
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(400, "the path is not UTF-8") from None
    if not raw.isascii() or not query.isascii():
        raise RefusedError(400, "the address has bytes that are not ASCII: encode them as %XX")
    if b"%2f" in raw.lower() or "\\" in path or not path.isprintable():
        raise RefusedError(400, "the path has an encoded slash, a backslash or a control character")
    first, *segments = path.split("/")
    if (
        first
        or any(segment in ("", ".", "..") for segment in segments[:-1])
        or segments[-1:] in (["."], [".."])
    ):
        raise RefusedError(400, "the path has an empty segment, '.' or '..'")
