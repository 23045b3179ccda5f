"""What every request passes before the app sees it, and every response after: ASGI middleware around the app.

Hides: which Host and Origin are ours (DNS rebinding, CSRF), the token and its login, security headers, limits
on what may be sent. Knows nothing of what the app does. Connections and slow request heads are limited below
ASGI, in imret.web.connections.

Sources: RFC 9110 and 9112 (HTTP), RFC 9457 (problem+json), RFC 6750 (Bearer), W3C Fetch Metadata.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import ipaddress
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes

from imret.errors import DataError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MIN_TOKEN_CHARS = 16
MAX_QUERY_BYTES = 16 << 10
MAX_PATH_BYTES = 4 << 10
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10
LOGIN_BYTES = 4 << 10  # a form with one token
HELD_BODIES = 8  # of the largest that is taken: so much of all bodies together is in memory
SMALL_BODY_BYTES = 64 << 10  # what is taken also beside them; uvicorn reads as much ahead anyway
RETRY_AFTER_S = 2
LOGIN_DELAY_S = 0.5  # what a wrong token costs; with 16 characters it is courtesy, not defence
SESSION_S = 30 * 24 * 3600  # how long a browser keeps the cookie; another token ends all sessions at once

SECURITY_HEADERS: Headers = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        b"manifest-src 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    # Addresses hold queries, so no other site may see them. Not `no-referrer`: under that policy browsers
    # send `Origin: null` with a form's POST (Fetch, "append a request Origin header"): no login would pass.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
]
# The app's own policy is kept beside ours: browsers enforce both, so it can only be stricter.
_REPLACED = {name for name, _ in SECURITY_HEADERS if name != b"content-security-policy"} | {b"server"}

_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/static/style.css", "/static/favicon.svg"})
_SINGLE = (b"host", b"origin", b"authorization", b"content-length", b"transfer-encoding", b"content-type")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_LOCAL_TARGET = re.compile(
    r"/(?!/)[!-\[\]-~]*"
)  # printable ASCII without the backslash, which browsers read as /
_LOGIN_PAGE = Path(__file__).parent.parent / "static" / "login.html"
_MESSAGE_MARK = "<!-- message -->"

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
        finally:
            self.held.n_bytes -= exchange.held_bytes

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


class _RefusedError(Exception):
    """A request that is answered here: the status, and the message as its detail."""

    def __init__(self, status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = list(headers)


class _Held:
    """How much of the bodies of all requests is in memory, and how much may be.

    A body stays from its first byte until its request is answered: who waits for a thread holds it, too.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0


class _Exchange:
    """One request and its response: counts what comes in, dresses what goes out, and can end both early."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        held: _Held,
    ) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.left_s = body_timeout_s
        self.received_bytes = 0
        self.held_bytes = 0
        self._held = held
        self.body_over = not _values(scope, b"content-length") and not _values(scope, b"transfer-encoding")
        self.started = False
        self.refused = False

    def expect_body(self) -> None:
        """Raise _RefusedError for a body that is announced as too large, or announced in a way that lies."""
        lengths = _values(self.scope, b"content-length")
        encodings = _values(self.scope, b"transfer-encoding")
        if encodings and (lengths or encodings[0].strip().lower() != b"chunked"):
            # Two readers that disagree about where a body ends are how requests are smuggled.
            raise _RefusedError(400, "a body has either a Content-Length or 'Transfer-Encoding: chunked'")
        if lengths:
            if not re.fullmatch(rb"[0-9]{1,19}", lengths[0]):
                raise _RefusedError(400, "the Content-Length is not a number of bytes")
            if int(lengths[0]) > self.max_body_bytes:
                raise _RefusedError(413, self._too_large(int(lengths[0])))
            self.body_over = int(lengths[0]) == 0

    def _too_large(self, size_bytes: int | None = None) -> str:
        size = "more" if size_bytes is None else f"{size_bytes} bytes"
        return f"the body is too large: {size}, where at most {self.max_body_bytes} bytes are taken"

    async def receive(self) -> Message:
        """What the app receives from: the body within its limits, then the client's leave."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self.body_over:
            return await self._receive()
        # Only waiting is counted: time in which the app does something else is not the client's fault.
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            message = await asyncio.wait_for(self._receive(), self.left_s)
        except asyncio.TimeoutError:
            await self.refuse(408, f"the body did not arrive within {self.body_timeout_s:g} seconds", [])
            return {"type": "http.disconnect"}
        self.left_s -= loop.time() - began
        if message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            if self.received_bytes > self.max_body_bytes:
                await self.refuse(413, self._too_large(), [])
                return {"type": "http.disconnect"}
            if not self._hold():
                detail = f"too many large requests at a time. Ask again in {RETRY_AFTER_S} s."
                await self.refuse(503, detail, [(b"retry-after", b"%d" % RETRY_AFTER_S)])
                return {"type": "http.disconnect"}
            self.body_over = not message.get("more_body", False)
        return message

    def _hold(self) -> bool:
        """Count what has arrived among all that is in memory; False if that is too much."""
        more = max(0, self.received_bytes - SMALL_BODY_BYTES) - self.held_bytes
        if more > 0:
            if self._held.n_bytes + more > self._held.max_bytes:
                return False
            self._held.n_bytes += more
            self.held_bytes += more
        return True

    async def read(self) -> bytes | None:
        """Return the whole body; None if the client left or was refused meanwhile."""
        parts: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def send(self, message: Message) -> None:
        """What the app sends to; nothing reaches the client any more once the request was refused."""
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": self._dress(message.get("headers", ()))}
        await self._send(message)

    def _dress(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        dressed = [(name.lower(), value) for name, value in headers if name.lower() not in _REPLACED]
        dressed += SECURITY_HEADERS
        names = {name for name, _ in dressed}
        path = self.scope["path"]
        if b"cache-control" not in names and not path.startswith("/static/"):
            # The page is asked for again each time, so that it and its scripts stay of one version.
            dressed.append((b"cache-control", b"no-cache" if path == "/" else b"no-store"))
        if not self.body_over:
            # What is left of the body would have to be read to find the next request behind it.
            dressed = [(name, value) for name, value in dressed if name != b"connection"]
            dressed.append((b"connection", b"close"))
        return dressed

    async def answer(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send a whole response of ours."""
        self.started = True
        head = [*headers, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": status, "headers": self._dress(head)})
        await self._send({"type": "http.response.body", "body": body})

    async def redirect(self, target: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Lead on to a local address, by GET (303)."""
        await self.answer(303, b"", [(b"location", target.encode("ascii")), *headers])

    async def refuse(self, status: int, detail: str, headers: Headers) -> None:
        """End the request: a problem if nothing was sent yet, else the response stays cut short."""
        self.refused = True
        if not self.started:
            await self.answer(status, problem(status, detail), [*_PROBLEM, *headers])


_HTML: Headers = [(b"content-type", b"text/html; charset=utf-8")]
_PROBLEM: Headers = [(b"content-type", b"application/problem+json")]


def problem(status: int, detail: str) -> bytes:
    """Return the JSON of a problem (RFC 9457) whose type says no more than its status."""
    title = HTTPStatus(status).phrase
    fields = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")


def check_binding(host: str, token: str | None, *, port: int = 8750) -> None:
    """Refuse to listen where others can reach the pictures without knowing a token.

    Raises:
        DataError: If the host is not a loopback address and there is no token, or the token is shorter than
            16 characters or has others than visible ASCII; the message says how to make one.
    """
    make = 'export IMRET_TOKEN=$(python -c "import secrets; print(secrets.token_urlsafe(24))")'
    fault = _token_fault(token)
    if fault:
        raise DataError(f"{fault}. Make one: {make}")
    if token is None and not is_loopback(host):
        raise DataError(
            f"{host!r} can be reached from other machines, and no token is set: anyone there could look "
            f"through the pictures. Set a token: {make}\n"
            f"or stay on 127.0.0.1 and come through a tunnel: ssh -L {port}:localhost:{port} THIS-MACHINE"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on host: localhost, 127.0.0.0/8 or ::1.

    Other names count as reachable from elsewhere, whatever they resolve to today.
    """
    if host.lower() == "localhost":
        return True
    try:
        return _is_loopback_address(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _is_loopback_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # Python before 3.13 does not see loopback in ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _token_fault(token: str | None) -> str | None:
    """Say what is wrong with a token, without printing it; None if nothing is."""
    if token is None:
        return None
    if len(token) < MIN_TOKEN_CHARS:
        return f"the token has {len(token)} characters, and needs at least {MIN_TOKEN_CHARS}"
    if not re.fullmatch(r"[!-~]+", token):
        return "the token may hold letters, digits and punctuation of ASCII only, and no blanks"
    return None


def _derive(token: bytes, purpose: bytes) -> bytes:
    """Return 64 hexadecimal digits that follow from the token and do not lead back to it."""
    return hmac.new(token, b"imret " + purpose, hashlib.sha256).hexdigest().encode()


def _parse_host(text: str) -> str | None:
    """Return the host in a Host header, in its one canonical spelling; None if it is malformed."""
    match = _HOST.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        return None
    try:
        if match[1] is not None:
            return str(ipaddress.IPv6Address(match[1]))
    except ValueError:
        return None
    name = match[2].lower().removesuffix(".")  # "localhost." is the same name
    return name if _NAME.fullmatch(name) else None


def _parse_allowed(name: str) -> str:
    """Return an entry of allow_hosts as _parse_host would."""
    bare = name.strip().strip("[]")
    try:
        host = _parse_host(f"[{bare}]" if ":" in bare else bare.encode("idna").decode())
    except UnicodeError:
        host = None
    if host is None:
        raise DataError(
            f"{name!r} is not a host name. Give it without scheme and port: --allow-host photos.example"
        )
    return host


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _target(scope: Scope) -> str:
    """Return the address as it was sent: path and query, percent-encoded."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii")
    query = scope.get("query_string", b"").decode("ascii")
    return f"{path}?{query}" if query else path


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


def _check_origin(scope: Scope, host: str) -> None:
    """Raise _RefusedError for what another site's page makes a browser send (CSRF, embedded pictures).

    Programs send neither Origin nor Sec-Fetch-Site, and pass.
    """
    for origin in _values(scope, b"origin"):
        if origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            raise _RefusedError(403, "requests from the pages of other sites are refused (Origin)")
    sites = _values(scope, b"sec-fetch-site")
    if all(site in (b"same-origin", b"none") for site in sites):
        return
    # A link to the page may stand anywhere; /login is where the page leads those who have no session.
    navigation = (
        scope["method"] in ("GET", "HEAD")
        and scope["path"] in ("/", "/login")
        and _values(scope, b"sec-fetch-mode") == [b"navigate"]
        and _values(scope, b"sec-fetch-dest") == [b"document"]
    )
    if not navigation:
        raise _RefusedError(403, "requests from the pages of other sites are refused (Sec-Fetch-Site)")


def _local(scope: Scope) -> str:
    """Return where a login leads on to: the parameter next if that is an address here, else the page."""
    try:
        fields = parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=10)
    except ValueError:
        return "/"
    target = fields.get("next", ["/"])[0]
    # `//evil.example` and `/\evil.example` are other hosts to a browser.
    return target if _LOCAL_TARGET.fullmatch(target) else "/"
