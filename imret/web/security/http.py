"""What the security middleware's modules share of HTTP: ASGI types, headers, the error that refuses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

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
REPLACED_HEADERS = {name for name, _ in SECURITY_HEADERS if name != b"content-security-policy"} | {b"server"}

DEFAULT_PORTS = {"http": 80, "https": 443}

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")

HTML: Headers = [(b"content-type", b"text/html; charset=utf-8")]


class RefusedError(Exception):
    """A request that is answered by the middleware: the status, and the message as its detail."""

    def __init__(self, status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = list(headers)


def parse_authority(text: str) -> tuple[str, int | None] | None:
    """Return the host, in its one canonical spelling, and the port of a Host header; None if malformed."""
    match = _AUTHORITY.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        return None
    port = int(match[3]) if match[3] else None
    try:
        if match[1] is not None:
            return str(ipaddress.IPv6Address(match[1])), port
    except ValueError:
        return None
    name = match[2].lower().removesuffix(".")  # "localhost." is the same name
    return (name, port) if _NAME.fullmatch(name) else None


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Return the values of a header, whose name is in lower case, in order."""
    return [value for key, value in scope["headers"] if key == name]


def target_of(scope: Scope) -> str:
    """Return the address as it was sent: path and query, percent-encoded."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii")
    query = scope.get("query_string", b"").decode("ascii")
    return f"{path}?{query}" if query else path


def add_headers(
    headers: Iterable[tuple[bytes, bytes]], path: str, *, closes: bool
) -> list[tuple[bytes, bytes]]:
    """Return a response's headers with those that every response has.

    Args:
        headers: The app's.
        path: Of the request.
        closes: Whether the connection has to end with this response.
    """
    added = [(name.lower(), value) for name, value in headers if name.lower() not in REPLACED_HEADERS]
    added += SECURITY_HEADERS
    if not path.startswith("/static/") and all(name != b"cache-control" for name, _ in added):
        # The page is asked for again each time, so that it and its scripts stay of one version.
        added.append((b"cache-control", b"no-cache" if path == "/" else b"no-store"))
    if closes:
        added = [(name, value) for name, value in added if name != b"connection"]
        added.append((b"connection", b"close"))
    return added
