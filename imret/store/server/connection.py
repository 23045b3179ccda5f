"""Requests to a Qdrant server: retried while it is away, refused with a reason."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from imret.errors import StoreError

T = TypeVar("T")


REST_PORT, GRPC_PORT = 6333, 6334


REQUEST_TIMEOUT_S = 30


CONNECT_PATIENCE_S = 1.0  # a person is waiting for the first answer, and a typing error will not mend itself


_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 5.0


_LOOKS = 3  # of which each but the first needs another switch to have come in between


_TRANSIENT_HTTP = {408, 429, 502, 503, 504}


_TRANSIENT_GRPC = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


class _ReplacedError(StoreError):
    """A Qdrant collection that an alias named is not there any more."""


def _looked_up(look: Callable[[], T]) -> T:
    """Return what several requests together found; anew if a version went away between them.

    Another process has then switched to a new one, and removed this one, this moment.
    """
    for _ in range(_LOOKS - 1):
        with suppress(_ReplacedError):
            return look()
    return look()


def _is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    if isinstance(error, ResponseHandlingException):
        return isinstance(error.source, httpx.TransportError)
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _TRANSIENT_HTTP
    return isinstance(error, ResourceExhaustedResponse) or _grpc_code(error) in _TRANSIENT_GRPC


def _grpc_code(error: Exception) -> str:
    """Return the name of a gRPC error's code, or "": by its shape, as grpc has no types to check against."""
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) if callable(code) else ""


def _checked_url(address: str) -> SplitResult:
    """Return a URL in its parts.

    Raises:
        StoreError: If it is no URL of a server; the message never repeats a password in it.
    """
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError as error:
        raise StoreError(f"{address!r} is no URL: {error}") from error
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise StoreError(
            f"the URL of a server is scheme, host and port, as in http://localhost:{REST_PORT}; "
            "a key belongs into the environment variable QDRANT_API_KEY"
        )
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise StoreError(f"{address!r} is no URL of a server; it looks like http://localhost:{REST_PORT}")
    return url


def _checked_key(key: str | None) -> str | None:
    key = (key or "").strip()  # read from a file it ends in a newline
    if not (key.isascii() and key.isprintable()):
        raise StoreError("QDRANT_API_KEY holds characters that no API key has; was it copied whole?")
    return key or None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _answers(host: str, port: int) -> bool:
    """Whether something listens there, and soon."""
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True
