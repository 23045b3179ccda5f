"""What every request passes before the app sees it, and every response after: ASGI middleware around the app.

Hides: which Host and Origin are ours (DNS rebinding, CSRF), the token and its login, security headers, limits
on what may be sent. Knows nothing of what the app does. Connections and request heads are bounded below ASGI,
in imret.web.server.

Sources: RFC 9110 and 9112 (HTTP), RFC 9457 (problem+json), RFC 6750 (Bearer), W3C Fetch Metadata.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import ipaddress
import logging
import socket
from collections.abc import Iterable
from urllib.parse import parse_qs, quote, unquote_to_bytes

from imret.web.security.bodies import HELD_BODIES, _Exchange, _Held
from imret.web.security.hosts import (
    _check_origin,
    _is_loopback_address,
    _parse_allowed,
    _parse_host,
    check_binding,
    is_loopback,
)
from imret.web.security.http import _HTML, App, Receive, Scope, Send, _RefusedError, _target, _values
from imret.web.security.tokens import (
    _LOGIN_PAGE,
    _MESSAGE_MARK,
    LOGIN_BYTES,
    LOGIN_DELAY_S,
    MAX_QUERY_BYTES,
    SESSION_S,
    _derive,
    _local,
    _token_fault,
)

MAX_PATH_BYTES = 4 << 10
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10


_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/static/style.css", "/static/favicon.svg"})
_SINGLE = (b"host", b"origin", b"authorization", b"content-length", b"transfer-encoding", b"content-type")

_logger = logging.getLogger("imret.web")


class Gate:
    """ASGI middleware that refuses what is not ours and dresses every response.

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
        max_body_bytes: int = 32 << 20,
        body_timeout_s: float = 30.0,
    ) -> None:
        """Stand before an app that listens on host and port.

        Args:
            app: The whole ASGI app.
            host: The address bound, as given: a loopback one narrows the Host headers that pass.
            port: The port bound; only messages need it, because a tunnel may show another.
            token: What a request must know, at least 16 visible ASCII characters; None asks for nothing.
            allow_hosts: Further names by which this server is reached (a reverse proxy's), without port.
            max_body_bytes: Largest body that is taken, counted as it arrives.
            body_timeout_s: How long, in all, a request may let the app wait for its body.

        Raises:
            ValueError: If the token is shorter than 16 characters or could not stand in a header.
            DataError: If an entry of allow_hosts is no host name, or the host needs a token (check_binding).
        """
        fault = _token_fault(token)
        if fault:
            raise ValueError(fault)
        check_binding(host, token, port=port)
        self.app = app
        self.port = port
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.held = _Held(HELD_BODIES * max_body_bytes)
        self.loopback = is_loopback(host)
        self.names = {"localhost"} | {_parse_allowed(name) for name in allow_hosts}
        if not self.loopback:
            # Its first label too: `http://nas:8750` is typed where the machine calls itself nas.home.lan.
            name = socket.gethostname().lower().rstrip(".")
            self.names |= {name, name.partition(".")[0]}
        self.token = None if token is None else token.encode("ascii")
        if self.token is not None:
            # Cookies are shared by all ports of a host: a name of its own keeps two servers' sessions apart.
            self.cookie = b"imret_" + _derive(self.token, b"cookie name")[:8]
            self.session = _derive(self.token, b"session")
            self.login_page = _LOGIN_PAGE.read_text(encoding="utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # A websocket that is closed before it was accepted is answered 403.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        limit = min(LOGIN_BYTES, self.max_body_bytes) if scope["path"] == "/login" else self.max_body_bytes
        exchange = _Exchange(
            scope, receive, send, max_body_bytes=limit, body_timeout_s=self.body_timeout_s, held=self.held
        )
        try:
            await self._pass(scope, exchange)
            await exchange.end()
        finally:
            exchange.release()

    async def _pass(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            self._check(scope, exchange)
            if scope["path"] == "/login":
                await self._login(scope, exchange)
                return
            if scope["path"] == "/logout":
                await self._logout(scope, exchange)
                return
            if self.token is not None and scope["path"] not in _OPEN_PATHS and not self._admitted(scope):
                await self._turn_away(scope, exchange)
                return
        except _RefusedError as refusal:
            await exchange.refuse(refusal.status, str(refusal), refusal.headers)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            if exchange.refused:
                # The app was told that the client is gone, and says so in its own way.
                _logger.debug("the app gave up on a refused request", exc_info=True)
                return
            if not exchange.started:
                # The server's own 500 would go out without our headers.
                await exchange.refuse(500, "this server failed at that; its log says why", [])
            raise

    # What is refused

    def _check(self, scope: Scope, exchange: _Exchange) -> None:
        """Raise _RefusedError for a request that nobody may make."""
        _check_target(scope)
        headers = scope["headers"]
        if len(headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
            raise _RefusedError(
                431, f"the headers are too many: at most {MAX_HEADERS}, of {MAX_HEADER_BYTES} bytes in all"
            )
        for name in _SINGLE:
            if len(_values(scope, name)) > 1:
                raise _RefusedError(400, f"the header {name.decode()} is given more than once")
        host = self._check_host(scope)
        _check_origin(scope, host)
        exchange.expect_body()

    def _check_host(self, scope: Scope) -> str:
        """Return the Host header, which is ours.

        A page of another site can point its own name at 127.0.0.1 (DNS rebinding) and then reads this server
        as its own; its name in the Host header gives it away. An IP literal cannot be rebound.
        """
        values = _values(scope, b"host")
        if not values:
            raise _RefusedError(400, "a request needs a Host header (RFC 9112, section 3.2)")
        text = values[0].decode("latin-1")
        host = _parse_host(text)
        if host is None:
            raise _RefusedError(400, f"the Host header {text[:80]!r} is not a host")
        if not self._is_ours(host):
            raise _RefusedError(
                421,
                f"this server does not answer to the name {host!r}. Ask for http://localhost:{self.port}, "
                f"or allow the name: imret serve --allow-host {host}",
            )
        return text.lower()

    def _is_ours(self, host: str) -> bool:
        if host in self.names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return not self.loopback or _is_loopback_address(address)

    # The token

    def _knows_token(self, given: bytes) -> bool:
        assert self.token is not None
        # Digests first: compare_digest takes as long as its arguments are long.
        return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(self.token).digest())

    def _admitted(self, scope: Scope) -> bool:
        """Whether the request carries the token, or the cookie that the token was exchanged for."""
        for value in _values(scope, b"authorization"):
            scheme, _, given = value.strip().partition(b" ")
            if scheme.lower() == b"bearer" and self._knows_token(given.strip()):
                return True
        for value in _values(scope, b"cookie"):
            for pair in value.split(b";"):
                name, _, given = pair.strip().partition(b"=")
                if name == self.cookie and hmac.compare_digest(given, self.session):
                    return True
        return False

    async def _turn_away(self, scope: Scope, exchange: _Exchange) -> None:
        """Answer a request without the token: the page leads to the login, everything else is 401."""
        if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
            raise _RefusedError(
                401,
                "this server asks for its token: send 'Authorization: Bearer TOKEN', or log in at /login",
                [(b"www-authenticate", b'Bearer realm="imret"')],
            )
        target = _target(scope)
        if _values(scope, b"sec-fetch-site")[:1] in ([b"cross-site"], [b"same-site"]):
            # A link from elsewhere (a chat, a mail): SameSite=Strict kept the cookie back, so we cannot know
            # who asks. Let our own page ask again: that request comes from here, and brings the cookie.
            again = (
                '<!doctype html><html lang="en"><meta charset="utf-8"><title>imret</title>'
                f'<meta http-equiv="refresh" content="0; url={html.escape(target)}">'
                f'<a href="{html.escape(target)}">Go on to imret</a></html>'
            )
            await exchange.answer(200, again.encode(), _HTML)
            return
        after = quote(target, safe="")
        # Quoted it may be longer than an address may be; then the login leads to the bare page.
        await exchange.redirect("/login?next=" + (after if len(after) < MAX_QUERY_BYTES - 100 else "/"))

    async def _login(self, scope: Scope, exchange: _Exchange) -> None:
        """Serve the login page, and exchange a token for a session cookie."""
        after = _local(scope)
        method = scope["method"]
        if method not in ("GET", "HEAD", "POST"):
            raise _RefusedError(405, "/login takes GET and POST", [(b"allow", b"GET, HEAD, POST")])
        if self.token is None or (method != "POST" and self._admitted(scope)):
            await exchange.redirect(after)
            return
        if method != "POST":
            await exchange.answer(200, self.login_page.encode(), _HTML)
            return
        kind = b"".join(_values(scope, b"content-type")).partition(b";")[0].strip().lower()
        if kind != b"application/x-www-form-urlencoded":
            raise _RefusedError(
                415, "/login takes a form: application/x-www-form-urlencoded with the field token"
            )
        body = await exchange.read()
        if body is None:
            return
        try:
            fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=10)
        except ValueError:
            raise _RefusedError(400, "the login form cannot be read") from None
        given = fields.get("token", [""])[-1].strip()
        if not self._knows_token(given.encode("utf-8", "replace")):
            await asyncio.sleep(LOGIN_DELAY_S)
            message = '<p class="error" role="alert">That is not the token of this server.</p>'
            page = self.login_page.replace(_MESSAGE_MARK, message)
            await exchange.answer(
                401, page.encode(), [*_HTML, (b"www-authenticate", b'Bearer realm="imret"')]
            )
            return
        await exchange.redirect(after, [(b"set-cookie", self._cookie(scope, self.session, SESSION_S))])

    async def _logout(self, scope: Scope, exchange: _Exchange) -> None:
        """Take the cookie back from this browser. Sessions have no state here: other browsers keep theirs."""
        if scope["method"] != "POST":
            raise _RefusedError(405, "/logout takes POST", [(b"allow", b"POST")])
        if self.token is None:
            await exchange.redirect("/")
            return
        await exchange.redirect("/login", [(b"set-cookie", self._cookie(scope, b"", 0))])

    def _cookie(self, scope: Scope, value: bytes, max_age_s: int) -> bytes:
        cookie = b"%s=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Strict" % (self.cookie, value, max_age_s)
        # Behind a proxy that ends TLS only the browser knows that the page came by https, and says so in
        # Origin, which no page can forge. X-Forwarded-Proto is not asked: anyone may send it.
        origins = _values(scope, b"origin")
        secure = scope.get("scheme") == "https" or any(o.lower().startswith(b"https://") for o in origins)
        return cookie + (b"; Secure" if secure else b"")


def _check_target(scope: Scope) -> None:
    """Raise _RefusedError for an address that two readers could understand in two ways."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    query = scope.get("query_string", b"")
    if len(query) > MAX_QUERY_BYTES or len(raw) > MAX_PATH_BYTES:
        raise _RefusedError(
            414,
            f"the address is too long: at most {MAX_PATH_BYTES} bytes of path and {MAX_QUERY_BYTES} of "
            "query. Longer queries go into the body of POST /api/v1/search",
        )
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise _RefusedError(400, "the path is not UTF-8") from None
    if not raw.isascii() or not query.isascii():
        raise _RefusedError(400, "the address has bytes that are not ASCII: encode them as %XX")
    if b"%2f" in raw.lower() or "\\" in path or not path.isprintable():
        raise _RefusedError(400, "the path has an encoded slash, a backslash or a control character")
    first, *segments = path.split("/")
    if (
        first
        or any(segment in ("", ".", "..") for segment in segments[:-1])
        or segments[-1:] in (["."], [".."])
    ):
        raise _RefusedError(400, "the path has an empty segment, '.' or '..'")
