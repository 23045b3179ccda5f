"""Types and answers that the security middleware shares."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

Scope = MutableMapping[str, Any]


Message = MutableMapping[str, Any]


Receive = Callable[[], Awaitable[Message]]


Send = Callable[[Message], Awaitable[None]]


App = Callable[[Scope, Receive, Send], Awaitable[None]]


Headers = list[tuple[bytes, bytes]]


RETRY_AFTER_S = 2


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


class _RefusedError(Exception):
    """A request that is answered here: the status, and the message as its detail."""

    def __init__(self, status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = list(headers)


_HTML: Headers = [(b"content-type", b"text/html; charset=utf-8")]


_PROBLEM: Headers = [(b"content-type", b"application/problem+json")]


def problem(status: int, detail: str) -> bytes:
    """Return the JSON of a problem (RFC 9457) whose type says no more than its status."""
    title = HTTPStatus(status).phrase
    fields = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _target(scope: Scope) -> str:
    """Return the address as it was sent: path and query, percent-encoded."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii")
    query = scope.get("query_string", b"").decode("ascii")
    return f"{path}?{query}" if query else path
