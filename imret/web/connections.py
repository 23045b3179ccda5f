"""Uvicorn's HTTP protocol with bounds: on open connections, slow heads, pipelines, clients that do not read.

Hides: timers and bookkeeping of one connection. All that concerns a request's content is
    imret.web.security.middleware's.
Uvicorn (0.54) on httptools has no deadline for a request head, no bound on its size, and lets a pipeline of
requests grow with every response.

Sources: RFC 9112, sections 9.3 to 9.6 (persistence, pipelining, tear-down); nginx's client_header_timeout,
send_timeout and lingering_close, whose meaning these have.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from imret.web.security.http import SECURITY_HEADERS, problem

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle as H11Cycle
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as HttpToolsCycle

MAX_HEAD_BYTES = 64 << 10  # the gate allows less, and says why; this bounds what is held before it can
PIECE_BYTES = 8 << 10  # how much is parsed at once; of a pipeline, no more than that waits as requests
LINGER_S = 5.0  # how long a client may go on sending to a connection that was answered and closed
STALL_S = 60.0  # how long a client may take none of what is sent to it
RETRY_AFTER_S = 5

FILES_WANTED = 65_536
FILES_RESERVED = 256


def raise_file_limit() -> int:
    """Lift this process's limit on open files, and return how many connections that leaves room for.

    The soft limit goes up to the hard one, at most to 65,536. Of what results, 256 files (a quarter, where
    that is less) stay reserved for everything that is no connection: the store's segments, pictures and
    thumbnails that are being read, the model, the log, the listening socket, threads.

    Returns:
        Connections that may be open at once, at least 1.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = FILES_WANTED if hard == unlimited else min(FILES_WANTED, hard)
    if soft != unlimited and soft < wanted:
        # Some systems refuse what they said was allowed (macOS above OPEN_MAX); the limit then stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = FILES_WANTED if soft == unlimited else soft
    return max(1, files - min(FILES_RESERVED, files // 4))


def make_protocol(
    *,
    header_timeout_s: float = 10.0,
    max_connections: int = 1000,
    parser: Literal["auto", "httptools", "h11"] = "auto",
) -> type[asyncio.Protocol]:
    """Return a protocol class for uvicorn.Config(http=...), for one server.

    A connection without a whole request head header_timeout_s after it opened, or after the first byte of a
    further request, is closed. When one more than max_connections is open, the one that has been without a
    request for longest is closed; when all are busy, the new one is answered 503 with Retry-After and closed.
    A head of more than 64 KiB is refused (431), requests behind one that is being answered wait unread, and a
    client that takes nothing of its response for 60 s is cut off.

    Args:
        header_timeout_s: Seconds, above 0.
        max_connections: At least 1; see raise_file_limit.
        parser: httptools where it is installed ("auto"), or one of the two by name.

    Raises:
        ValueError: If a number is out of its range.
    """
    if not header_timeout_s > 0 or max_connections < 1:
        raise ValueError(
            "header_timeout_s must be above 0 and max_connections at least 1, "
            f"not {header_timeout_s} and {max_connections}"
        )
    if parser == "auto":
        parser = "httptools" if importlib.util.find_spec("httptools") else "h11"
    base: Any = _httptools_protocol() if parser == "httptools" else _H11
    limits = {"header_timeout_s": header_timeout_s, "max_connections": max_connections, "idle": {}}
    return cast("type[asyncio.Protocol]", type("BoundedProtocol", (base,), limits))


class _Bounded(asyncio.Protocol):
    """What both parsers' protocols share: stands before uvicorn's class in the order of bases.

    A connection is busy while a request is being received or answered, else idle; only idle ones have a
    deadline, and only idle ones are closed to make room.
    """

    header_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    # Idle connections, longest idle first (a dict keeps the order of insertion, and removes in O(1)).
    idle: ClassVar[dict[_Bounded, None]]

    # Uvicorn's
    loop: asyncio.AbstractEventLoop
    connections: set[Any]
    transport: Any
    flow: FlowControl
    cycle: H11Cycle | HttpToolsCycle | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._inner = cast(asyncio.Transport, transport)
        self.transport = _Transport(self._inner, self)
        self.flow = _Flow(self._inner)
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._refused = False
        while len(self.connections) > self.max_connections:
            if not self._make_room():
                self._refuse(503, "this server has as many connections open as it may, all of them busy")
                return
        self.idle[self] = None
        self._deadline = self.loop.call_later(self.header_timeout_s, self._inner.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport.closing = True
        self.idle.pop(self, None)
        self._set_deadline(None)
        self._unset_keepalive_if_required()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # what still comes from a client that was refused
        self._feed(data)
        self._settle()
        if not self._is_busy() and self._deadline is None and not self.transport.is_closing():
            # Bytes that make no request yet: the clock runs from the first, and no later one stops it.
            self._set_deadline(self.header_timeout_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def on_response_complete(self) -> None:
        self._uvicorn_on_response_complete()
        self._watch_writing()
        self._settle()

    def shutdown(self) -> None:
        if self.transport.is_closing():
            self._inner.close()  # it only lingers
        else:
            self._uvicorn_shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser cannot read; in place of uvicorn's, which lacks our headers."""
        self._refuse(400, "this is not an HTTP request that can be read")

    def _should_upgrade_to_ws(self) -> bool:
        return False

    # For the two parsers

    def _feed(self, data: bytes) -> None:
        raise NotImplementedError

    def _is_inside_message(self) -> bool:
        """Whether a request has begun and not ended, so that the client may be sending still."""
        raise NotImplementedError

    def _uvicorn_on_response_complete(self) -> None:
        raise NotImplementedError

    def _uvicorn_shutdown(self) -> None:
        raise NotImplementedError

    def _unset_keepalive_if_required(self) -> None:
        raise NotImplementedError

    def _has_pipeline(self) -> bool:
        return False

    # Bookkeeping

    def _is_busy(self) -> bool:
        # Responses end in the order of their requests, so the last one's tells for all.
        return self.cycle is not None and not self.cycle.response_complete

    def _settle(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_busy():
            self.idle.pop(self, None)
            self._set_deadline(None)
        else:
            self.idle.setdefault(self)

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._inner.close)

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest; False if there is none."""
        for other in self.idle:
            # One whose response is still on its way is not idle to its client.
            if other._inner.get_write_buffer_size() == 0:
                del self.idle[other]
                self.connections.discard(other)
                other._inner.abort()
                return True
        return False

    def _refuse(self, status: int, detail: str) -> None:
        """Answer for the app, unless a response is on its way or owed first, and close."""
        if self.transport.is_closing():
            return
        self._refused = True
        if not self._is_busy() or (
            self.cycle is not None and not self.cycle.response_started and not self._has_pipeline()
        ):
            self.transport.write(_response(status, detail))
        self.transport.close()

    def _close(self) -> None:
        """Close, after _Transport said that nothing more is to be written.

        A socket that is closed while its client still sends answers with a reset, and a reset takes back what
        the client has not read yet: the very response that says why (RFC 9112, section 9.6). So the sending
        side is closed first, and what still comes is thrown away for a while.
        """
        self._set_deadline(None)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # so that the app does not wait for more of the body
            self.cycle.message_event.set()
        if self._inner.is_closing() or not (self._refused or self._is_inside_message()):
            self._inner.close()
        else:
            self.idle.setdefault(self)
            cast(_Flow, self.flow).held = False
            self.flow.resume_reading()
            with contextlib.suppress(OSError, NotImplementedError):  # gone already, or TLS, which cannot
                self._inner.write_eof()
            self._deadline = self.loop.call_later(LINGER_S, self._inner.close)
        self._watch_writing()

    def _watch_writing(self) -> None:
        """See to it that what is written gets read, also when the connection is closed meanwhile."""
        if self._stall is None and self._inner.get_write_buffer_size():
            self._stall = self.loop.call_later(STALL_S, self._check_writing, self._sent_bytes())

    def _check_writing(self, sent_before: int) -> None:
        self._stall = None
        if self._inner.get_write_buffer_size() and self._sent_bytes() <= sent_before:
            self._inner.abort()
        else:
            self._watch_writing()

    def _sent_bytes(self) -> int:
        return cast(int, self.transport.written) - self._inner.get_write_buffer_size()


class _Transport:
    """The transport as uvicorn's requests see it: it counts, and closing it may take a while."""

    def __init__(self, inner: asyncio.Transport, protocol: _Bounded) -> None:
        self._inner = inner
        self._protocol = protocol
        self.written = 0
        self.closing = False

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self.written += len(data)
            self._inner.write(data)

    def is_closing(self) -> bool:
        return self.closing or self._inner.is_closing()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._protocol._close()

    def pause_reading(self) -> None:
        self._protocol.flow.pause_reading()

    def resume_reading(self) -> None:
        self._protocol.flow.resume_reading()


class _Flow(FlowControl):
    """Flow control that does not read on while requests are waiting that were read already."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class _H11(_Bounded, H11Protocol):  # type: ignore[misc]  # both declare cycle, flow and transport
    """With h11, which bounds heads and pauses between pipelined requests itself."""

    def _feed(self, data: bytes) -> None:
        H11Protocol.data_received(self, data)

    def _is_inside_message(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    def _uvicorn_on_response_complete(self) -> None:
        H11Protocol.on_response_complete(self)

    def _uvicorn_shutdown(self) -> None:
        H11Protocol.shutdown(self)

    def _unset_keepalive_if_required(self) -> None:
        H11Protocol._unset_keepalive_if_required(self)


def _httptools_protocol() -> type[_Bounded]:
    """Return the class on httptools, which is imported only here: it may be missing."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class _HttpTools(_Bounded, HttpToolsProtocol):  # type: ignore[misc]  # as above
        """With httptools, whose parser bounds nothing and never waits."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._held = b""
            self._inside_message = False
            self._inside_head = True
            self._excess_bytes = 0
            self._body_bytes = 0
            super().connection_made(transport)

        def _feed(self, data: bytes) -> None:
            """Parse piece by piece, and no further than to a request that must wait for a response."""
            self._held += data
            begin = 0
            while begin < len(self._held) and not self.pipeline and not self.transport.is_closing():
                piece = self._held[begin : begin + PIECE_BYTES]
                begin += PIECE_BYTES
                self._body_bytes = 0
                HttpToolsProtocol.data_received(self, piece)
                # A head is all excess. Chunks may be small, but not one byte in kilobytes of extensions or
                # trailers (as in CVE-2023-39326, whose allowance this is: 16 bytes for each of body).
                self._excess_bytes = max(0, self._excess_bytes + len(piece) - 16 * self._body_bytes)
                if self._excess_bytes > MAX_HEAD_BYTES:
                    self._refuse(431, f"the head is too large: at most {MAX_HEAD_BYTES} bytes")
            self._held = self._held[begin:]
            flow = cast(_Flow, self.flow)
            flow.held = bool(self._held) and not self.transport.is_closing()
            if flow.held:
                flow.pause_reading()

        def _uvicorn_on_response_complete(self) -> None:
            HttpToolsProtocol.on_response_complete(self)
            if self._held and not self.pipeline and not self.transport.is_closing():
                self._feed(b"")
                self.flow.resume_reading()

        def _uvicorn_shutdown(self) -> None:
            HttpToolsProtocol.shutdown(self)

        def _unset_keepalive_if_required(self) -> None:
            HttpToolsProtocol._unset_keepalive_if_required(self)

        def _unsupported_upgrade_warning(self) -> None:
            # The parser takes what follows for another protocol: answer the request, and nothing after it.
            self._held = b""
            if self.cycle is not None:
                self.cycle.keep_alive = False

        def _is_inside_message(self) -> bool:
            return self._inside_message or bool(self._held)

        def _has_pipeline(self) -> bool:
            return bool(self.pipeline)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._inside_message = self._inside_head = True
            self._excess_bytes = 0

        def on_header(self, name: bytes, value: bytes) -> None:
            # After the head these are trailers, which uvicorn would add to headers that were judged already.
            if self._inside_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._inside_head = False
            if not self.url.startswith(b"/"):
                # Of `GET http://other/ HTTP/1.1` the app would see the path alone, not the host it names.
                raise ValueError("the request target is not a path")
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._inside_message = False
            super().on_message_complete()

    return _HttpTools


def _response(status: int, detail: str) -> bytes:
    """Return a whole response, for connections that never get as far as the app."""
    body = problem(status, detail)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
        *SECURITY_HEADERS,
    ]
    if status == 503:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    head = b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode())
    return head + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body
