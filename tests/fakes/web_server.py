"""A real uvicorn in a thread, and a client that sends exactly the bytes it is given, to test imret.web."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from imret.web.server import listen, make_server


@dataclass(frozen=True)
class Answer:
    """One response as it came: headers in lower case, several of a name in order."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    closes: bool

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self.headers if key == name]
        assert len(values) == 1, f"{name}: {values}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.headers)

    @property
    def problem(self) -> dict[str, Any]:
        assert self["content-type"] == "application/problem+json"
        fields: dict[str, Any] = json.loads(self.body)
        assert fields["status"] == self.status
        return fields


class Line:
    """One connection."""

    def __init__(self, port: int, timeout_s: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, method: str = "GET") -> Answer:
        """Read one response."""
        response = http.client.HTTPResponse(self.socket, method=method)
        # Unbuffered: what follows belongs to the next response of a pipeline.
        response.fp.close()
        response.fp = self.socket.makefile("rb", buffering=0)
        try:
            response.begin()
            headers = [(name.lower(), value) for name, value in response.getheaders()]
            # Unbuffered files read what is there, not as much as was asked for.
            body = b"".join(iter(lambda: response.read(1 << 20), b""))
            return Answer(response.status, headers, body, bool(response.will_close))
        finally:
            response.close()

    def is_closed(self) -> bool:
        """Wait until the server closes, and say whether nothing else came first."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@dataclass
class Server:
    """Where the server answers, and what it keeps."""

    port: int
    state: uvicorn.server.ServerState
    stop: Callable[[], None]

    def line(self) -> Line:
        return Line(self.port)

    def ask(self, data: bytes, method: str = "GET") -> Answer:
        """Send bytes on a new connection and read one response."""
        with self.line() as line:
            line.send(data)
            return line.read(method)

    def get(self, target: str, *headers: str, host: str | None = "localhost", method: str = "GET") -> Answer:
        return self.ask(request(target, *headers, host=host, method=method), method)

    def post(self, target: str, body: bytes, *headers: str) -> Answer:
        head = request(target, *headers, f"Content-Length: {len(body)}", method="POST")
        return self.ask(head + body, "POST")


def request(target: str, *headers: str, host: str | None = "localhost", method: str = "GET") -> bytes:
    """Return a request's head as bytes, with exactly these headers."""
    lines = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def free_port() -> int:
    """Return a port of loopback at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def until(happened: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what another thread or process does; fail if it does not."""
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextmanager
def serving(app: Any, *, max_connections: int = 1000) -> Iterator[Server]:
    """Run an application as `imret serve` does, on a free port of loopback, until the block ends."""
    server = make_server(app, max_connections=max_connections)
    server.config.lifespan = "off"
    server.config.timeout_graceful_shutdown = 2
    logging.getLogger("uvicorn").propagate = True  # to pytest, too
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    try:
        until(lambda: server.started or not thread.is_alive())
        yield Server(listener.getsockname()[1], server.server_state, stop)
    finally:
        stop()
        listener.close()
