"""Connections to the public internet alone, for httpcore: looked up once, checked, and limited in time.

The very address that was checked is connected to, so a name that answers differently the second time changes
nothing.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from imret.retrieval.web_address import FetchError, direct_remedy, not_public


class Deadline:
    """One limit in time over many steps.

    A server that sends a byte a second never runs into a limit on each read.

    Attributes:
        doing: The step at work, for the message when the time runs out.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.doing = "looking up the host"

    def left(self) -> float:
        """Return the seconds that are left; raise TimeoutError when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class PublicBackend(httpcore.NetworkBackend):
    """Connects only to addresses that were checked, and within a limit in time.

    Args:
        deadline: The limit.
        allow_private: Whether addresses that are not of the public internet are connected to, too.
    """

    def __init__(self, deadline: Deadline, allow_private: bool) -> None:
        self._deadline, self._allow_private = deadline, allow_private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Look the host up and connect to the first address that answers."""
        deadline = self._deadline
        deadline.doing = "looking up the host"
        numbers = _allowed(host, _look_up(host, port, deadline), self._allow_private)
        deadline.doing = "connecting"
        for index, number in enumerate(numbers):
            # One that does not answer may use only its share of the time.
            timeout_s = deadline.left() / (len(numbers) - index)
            try:
                stream = httpcore.SyncBackend().connect_tcp(number, port, timeout_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(numbers) - 1:
                    raise
            else:
                return _TimedStream(stream, deadline)
        raise AssertionError("no address to connect to")


class _TimedStream(httpcore.NetworkStream):
    """A connection on which the limit holds for all reading and writing together."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._deadline.doing = "agreeing on a secure connection"
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise FetchError(
                    f"the certificate of {server_hostname!r} is not valid "
                    f"({error.__cause__.verify_message.rstrip('.')})",
                    "Check the address; certificates of your own authority are found through SSL_CERT_FILE.",
                ) from error
            if isinstance(error.__cause__, ssl.SSLError):
                reason = (error.__cause__.reason or "unknown").replace("_", " ").lower()
                raise FetchError(
                    f"no secure connection could be agreed on ({reason})", "Check the address."
                ) from error
            raise
        return _TimedStream(stream, self._deadline)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._deadline.doing = "asking for the picture"
        self._stream.write(buffer, self._deadline.left())
        self._deadline.doing = "waiting for the answer"

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _allowed(host: str, numbers: Iterable[str], allow_private: bool) -> list[str]:
    """Return those of a host's addresses that may be connected to, in the resolver's order."""
    kinds = {number: None if allow_private else not_public(number) for number in numbers}
    allowed = [number for number, kind in kinds.items() if kind is None]
    if allowed:
        return allowed
    if not kinds:
        raise FetchError(f"the host {host!r} has no address", "Check the address.")
    number, kind = list(kinds.items())[-1]
    is_at = f"is {kind}" if host == number else f"is at {number}, {kind}"
    raise FetchError(
        f"its host {host!r} {is_at}, which is not of the public internet",
        "If you trust it, use --allow-private-urls (in Python: allow_private=True).",
        public=f"its host {host!r} is {kind}, which is not of the public internet",
    )


def _look_up(host: str, port: int, deadline: Deadline) -> list[str]:
    """Return the addresses of a host as numbers."""
    # getaddrinfo cannot be interrupted and takes no time limit, so it is left behind when time runs out; the
    # resolver's own limits end it.
    answer: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            infos = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
            answer.put([str(address[0]) for *_, address in infos])
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, name="imret-look-up", daemon=True).start()
    try:
        numbers = answer.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(numbers, (socket.gaierror, UnicodeError)):
        reason = getattr(numbers, "strerror", None) or "no valid name"
        raise FetchError(
            f"the host {host!r} cannot be found ({reason})",
            direct_remedy("Check the address and your connection."),
        ) from numbers
    if isinstance(numbers, Exception):
        raise numbers
    return numbers
