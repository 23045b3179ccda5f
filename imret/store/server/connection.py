"""Requests to a Qdrant server: retried while it is away, refused with a reason."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from imret.errors import ChangedMeanwhile, StoreError, StoreUnavailable
from imret.net import accepts_connections, is_loopback, qdrant_port

T = TypeVar("T")

REST_PORT, GRPC_PORT = 6333, 6334
REQUEST_TIMEOUT_S = 30
CONNECT_PATIENCE_S = 1.0  # a person is waiting for the first answer, and a typing error will not mend itself
GRPC_PROBE_S = 0.5

_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 5.0
_LOOKS = 3  # of which each but the first needs another switch to have come in between
_TRANSIENT_HTTP = {408, 429, 502, 503, 504}
_TRANSIENT_GRPC = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
# A connection that ended in the middle of a call, which has codes of its own where a proxy stands between.
_STREAM_ENDED = re.compile(r"RST_STREAM|stream removed|GOAWAY|connection reset|broken pipe", re.IGNORECASE)

# What a cluster says of shards on a node that does not answer and that no other node has: with status 500
# (INTERNAL), and sometimes another, but none that blames the request. It passes as the node comes back.
_NODE_AWAY = re.compile(r"currently unavailable|status: Unavailable|enough active replicas", re.IGNORECASE)
_NODE = re.compile(r"https?://([^\s/,'\"]+)")  # a peer that is named by its number is the one that answers
_REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
}
_SAID_AFTER_S = 1.0  # a wait that ends sooner is nobody's business

_patience: ContextVar[float | None] = ContextVar("imret_qdrant_patience", default=None)


class ServerWarning(UserWarning):
    """Something about a server that whoever uses it should know."""


class ReplacedError(ChangedMeanwhile):
    """A Qdrant collection that an alias named is not there any more."""


class UnreadableError(StoreError):
    """An answer is not of the form that imret's points make."""


class PartAway(StoreUnavailable):
    """The server answers, and a node of its cluster that has a part of the collection does not."""


@contextmanager
def patient_for(seconds: float | None) -> Iterator[None]:
    """Have the requests of a block be tried again for so long at most; None for as long as ever."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def look_up(look: Callable[[], T]) -> T:
    """Return what several requests together found; anew if a version went away between them.

    Another process has then switched to a new one, and removed this one, this moment.
    """
    for _ in range(_LOOKS - 1):
        with suppress(ReplacedError):
            return look()
    return look()


@dataclass(frozen=True)
class Rest:
    """How a server is asked over REST without its client, which has no word for files.

    Attributes:
        url: Where.
        headers: The key, if there is one.
        trust_env: Whether the proxies of the environment are meant.
    """

    url: str
    headers: dict[str, str]
    trust_env: bool


class Connection:
    """Requests to one server: tried again while it is away, a few at a time, refused with a reason.

    Args:
        address: "http://host[:port][/path]", or with https; without a port it is 6333, below a path that of
            the scheme.
        api_key: Default: environment variable QDRANT_API_KEY, if set.
        client: Use this client instead of connecting to the address.
        patience_s: How long an operation is tried again while the server is gone or busy.
        in_flight: Requests of one `send_all` that are under way at a time.

    Attributes:
        client: Sends one request; its calls go through `request`.
        server_version: What the server says; "" of a client that was given.
        warning: What is wrong with that version, for people; "" if nothing is.
        rest: How to ask it for files.

    Raises:
        StoreUnavailable: If no Qdrant answers at the address.
        StoreError: If the address or the key cannot be one, or the server refuses the key.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None,
        client: QdrantClient | None,
        patience_s: float,
        in_flight: int,
    ) -> None:
        url = _checked_url(address)
        self.address = address
        self.in_flight = in_flight
        self.server_version = self.warning = ""
        self._patience_s = patience_s
        self._closing = threading.Event()
        self._api_key = _checked_key(os.environ.get("QDRANT_API_KEY") if api_key is None else api_key)
        self.rest = _rest(url, self._api_key)
        self.client = client if client is not None else self._connect(url)
        self._senders = ThreadPoolExecutor(in_flight, "imret-qdrant")

    def request(
        self,
        what: str,
        call: Callable[[], T],
        *,
        patience_s: float | None = None,
        waits_for_part: bool = True,
    ) -> T:
        """Return what a call to the client returns; try again, ever later, while that may help.

        Every call made through here may be repeated without harm: it says what shall be, not what to add.

        Args:
            what: What is tried, for the error: "search".
            call: Sends one request.
            patience_s: How long to go on trying.
            waits_for_part: Wait for a node of a cluster that is away, too.

        Raises:
            StoreUnavailable: If the server stayed away or busy; PartAway if a node of its cluster did.
            StoreError: If it refused.
        """
        started = time.monotonic()
        limits = (limit for limit in (patience_s, _patience.get()) if limit is not None)
        deadline = started + min(limits, default=self._patience_s)
        delay, is_said = _RETRY_FIRST_S, False
        while True:
            if self._closing.is_set():
                raise StoreError(f"the store {self.address} is closed")
            try:
                return call()
            except ChangedMeanwhile:
                raise
            except Exception as error:
                is_part = _is_node_away(error)
                if not is_part and not _is_transient(error):
                    raise self._refused(what, error) from error
                # Jitter: many clients of one server that comes back must not all return in step.
                pause = max(random.uniform(delay / 2, delay), float(getattr(error, "retry_after_s", 0)))
                now = time.monotonic()
                if now + pause > deadline or (is_part and not waits_for_part):
                    raise (self._part_away(what, error) if is_part else self._gone(error)) from error
                if is_part and not is_said and now - started > _SAID_AFTER_S:
                    is_said = True
                    warnings.warn(
                        f"a part of the collection is away; waiting for {_node_of(error)}",
                        ServerWarning,
                        stacklevel=2,
                    )
            self._closing.wait(pause)
            delay = min(delay * 2, _RETRY_MAX_S)

    def send_all(self, what: str, calls: Sequence[Callable[[], object]]) -> None:
        """Make several requests, a few at a time; returns when all are done, raises what the first raised."""
        if len(calls) <= 1 or self.in_flight == 1:
            for call in calls:
                self.request(what, call)
            return
        futures = [self._senders.submit(self.request, what, call) for call in calls]
        done, not_done = wait(futures, return_when=FIRST_EXCEPTION)
        for future in not_done:
            future.cancel()
        wait(not_done)
        for future in done:
            future.result()

    def close(self) -> None:
        """Let the client go; closing twice is no error."""
        if not self._closing.is_set():
            self._closing.set()  # ends the waits of retries
            self._senders.shutdown(cancel_futures=True)
            self.client.close()

    def _connect(self, url: SplitResult) -> QdrantClient:
        host, loopback = url.hostname or "", is_loopback(url.hostname or "")
        if self._api_key is not None and url.scheme == "http" and not loopback:
            warnings.warn(
                f"the API key travels to {self.address} unencrypted; use https where the server offers it",
                ServerWarning,
                stacklevel=5,
            )
        options: dict[str, Any] = {
            "url": f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}",
            "port": url.port or qdrant_port(url.scheme, url.path),
            "timeout": REQUEST_TIMEOUT_S,
            "check_compatibility": False,  # done below, without a thread and a warning from inside
            # As a header, because as an argument it brings a warning for every http address, localhost too.
            "headers": self.rest.headers,
        }
        if not self.rest.trust_env:
            options["trust_env"] = False
        client = QdrantClient(**options)
        try:
            info = self.request("say its version", client.info, patience_s=CONNECT_PATIENCE_S)
            if "qdrant" not in info.title.lower():
                raise StoreError(f"what answers at {self.address} is {info.title!r}, not a Qdrant server")
            self.server_version, self.warning = info.version, _version_warning(info.version)
            collections = self.request(
                "list its collections", client.get_collections, patience_s=CONNECT_PATIENCE_S
            )
        except BaseException:
            client.close()
            raise
        # gRPC has its own port, which only the usual pair of ports lets us know.
        if (
            (url.port or REST_PORT) == REST_PORT
            and not url.path.strip("/")
            and accepts_connections(host, GRPC_PORT, timeout_s=GRPC_PROBE_S)
        ):
            channel = {"grpc.enable_http_proxy": 0} if loopback else {}
            faster = QdrantClient(**options, prefer_grpc=True, grpc_port=GRPC_PORT, grpc_options=channel)
            try:
                same = faster.info().version == info.version and faster.get_collections() == collections
            except Exception:  # something else has that port, or a proxy does not pass it on: REST does too
                same = False
            unused, client = (client, faster) if same else (faster, client)
            unused.close()
        return client

    def _gone(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"no answer from Qdrant at {self.address}: {self._reason_of(error)}.\n"
            "Start it (docker compose up qdrant) and run the command again; what it acknowledged is safe. "
            "Or use a folder instead of a server: --db FOLDER",
            public="the store does not answer now. Ask again in a moment.",
        )

    def _part_away(self, what: str, error: Exception) -> PartAway:
        return PartAway(
            f"Qdrant at {self.address} could not {what}: a part of the collection is away, as "
            f"{_node_of(error)} does not answer.\n"
            "Start it and run the command again; what was acknowledged is safe. A collection with replicas "
            "does without (two of each shard: see docs/scale.md).",
            public="a part of the collection is away: a node of the store does not answer. Ask again in a "
            "moment.",
        )

    def _refused(self, what: str, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        status = error.status_code if isinstance(error, UnexpectedResponse) else _grpc_code(error)
        public = f"the store refused to {what}. The log of imret serve says why."
        if isinstance(error, ResponseHandlingException) and isinstance(error.source, ValidationError):
            return UnreadableError(
                f"Qdrant at {self.address} was asked to {what}, and its answer cannot be read "
                f"({_first_complaint(error.source)})",
                public=public,
            )
        reason = self._reason_of(error)
        if self._api_key and status in (403, "PERMISSION_DENIED"):
            return StoreError(
                f"Qdrant at {self.address} does not let this API key {what}: {reason}.\n"
                "Set one that may: export QDRANT_API_KEY=...",
                public=public,
            )
        if status in (401, 403, "UNAUTHENTICATED", "PERMISSION_DENIED"):
            did = "refuses the API key" if self._api_key else "asks for an API key"
            return StoreError(
                f"Qdrant at {self.address} {did}. Set it: export QDRANT_API_KEY=...", public=public
            )
        if status in (404, "NOT_FOUND") and "collection" in reason.lower():
            return ReplacedError(
                f"another program has replaced or dropped the collection at {self.address} while this one "
                f"used it (to {what}). Run the command again.",
                public=public,
            )
        return StoreError(f"Qdrant at {self.address} refused to {what}: {reason}", public=public)

    def _reason_of(self, error: Exception) -> str:
        """Return why a request failed, in one line, without the API key."""
        text = ""
        if isinstance(error, UnexpectedResponse):
            text = f"{error.status_code} {error.reason_phrase}".strip()
            try:
                text += f": {json.loads(error.content)['status']['error']}"
            except (ValueError, KeyError, TypeError):
                text += f": {error.content[:200].decode(errors='replace')}" if error.content else ""
        elif _grpc_code(error):
            details = getattr(error, "details", str)
            text = f"{_grpc_code(error)}: {details() or ''}"
        else:
            source = error.source if isinstance(error, ResponseHandlingException) else error
            text = str(source) or type(source).__name__
        line = " ".join(text.split()).rstrip(".: ")
        return line.replace(self._api_key, "***") if self._api_key else line


def _rest(url: SplitResult, api_key: str | None) -> Rest:
    host = url.netloc if url.port else f"{url.netloc}:{qdrant_port(url.scheme, url.path)}"
    return Rest(
        url=f"{url.scheme}://{host}{url.path.rstrip('/')}",
        headers={} if api_key is None else {"api-key": api_key},
        trust_env=not is_loopback(url.hostname or ""),  # a proxy cannot reach what runs on this machine
    )


def _version_warning(theirs: str) -> str:
    """Return what to say if client and server are further apart than Qdrant promises to work, else ""."""
    ours = package_version("qdrant-client")
    try:
        client, server = (tuple(map(int, version.split(".")[:2])) for version in (ours, theirs))
    except ValueError:
        return ""  # a development build
    if client[0] == server[0] and abs(client[1] - server[1]) <= 1:
        return ""
    return f"Qdrant {theirs} and qdrant-client {ours} are more than one minor version apart, which may fail"


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _is_node_away(error: Exception) -> bool:
    """Whether a cluster says that one of its nodes does not answer, under whatever status but a refusal's.

    What is refused may be spoken of in the same words: a name, a value that the request held.
    """
    if isinstance(error, UnexpectedResponse):
        is_refusal = 400 <= (error.status_code or 0) < 500 and error.status_code not in _TRANSIENT_HTTP
    else:
        is_refusal = _grpc_code(error) in _REFUSALS
    return not is_refusal and _NODE_AWAY.search(_text_of(error)) is not None


def _node_of(error: Exception) -> str:
    """Return which node that is, as far as the server tells."""
    named = _NODE.search(_text_of(error))
    return f"the node {named[1]} of its cluster" if named else "a node of its cluster"


def _text_of(error: Exception) -> str:
    """Return what a server wrote about a request that failed; "" for what is no answer of one."""
    if isinstance(error, UnexpectedResponse):
        return error.content.decode(errors="replace")
    if _grpc_code(error):
        return str(getattr(error, "details", str)() or "")
    return ""


def _is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    if isinstance(error, ResponseHandlingException):
        return isinstance(error.source, httpx.TransportError)
    if isinstance(error, UnexpectedResponse):
        return error.status_code in _TRANSIENT_HTTP
    if isinstance(error, ResourceExhaustedResponse):
        return True
    code = _grpc_code(error)
    return code in _TRANSIENT_GRPC or (
        code in ("INTERNAL", "UNKNOWN", "CANCELLED") and _STREAM_ENDED.search(_text_of(error)) is not None
    )


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
