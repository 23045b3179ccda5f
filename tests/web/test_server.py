"""The server's connections: heads and pipelines, clients that do not read, how many at once."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra web")

from imret.web import server as server_module
from imret.web.server import raise_file_limit
from tests import ROOT
from tests.fakes.web_server import Line, Server, request, serving, until

BIG = 40_000_000
GET = request("/")


class App:
    """Answers at once, or when it is let (/wait), or with more than buffers hold (/big)."""

    def __init__(self) -> None:
        self.waiting = 0
        self.letting = 0
        self.left = 0
        self.headers: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        self.headers = scope["headers"]
        if path == "/wait":
            self.waiting += 1
            while not self.letting:
                await asyncio.sleep(0.005)
            self.letting -= 1
            self.waiting -= 1
        body = b"b" * BIG if path == "/big" else f"{path} {size}".encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App) -> Iterator[Server]:
    with serving(app) as running:
        yield running


def _answers(line: Line) -> bool:
    line.send(GET)
    return line.read().status == 200


# Pipelines


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with server.line() as line:
        sent = b"".join(request(f"/{n}", "Content-Length: 3", method="POST") + b"abc" for n in range(300))
        line.send(sent)
        for n in range(300):
            assert line.read("POST").body == f"/{n} 3".encode()


def test_a_pipeline_waits_in_the_kernel_and_not_in_memory(server: Server, app: App) -> None:
    shortest = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.line() as line:
        line.socket.setblocking(False)
        sent = 0
        for _ in range(20):
            with suppress(BlockingIOError):
                while sent < 100_000_000:
                    sent += line.socket.send(shortest * 1000)
            until(lambda: app.waiting == 1)
            app.letting = 1
            until(lambda: app.letting == 0)
        assert sent < 100_000_000
        assert len(server.state.tasks) <= 1
        app.letting = 10**9


# What a parser would hold


def _send_until_refused(line: Line, data: bytes) -> None:
    """Send the same again and again; fail if the server takes 50 MB of it."""
    sent = 0
    # The answer may be lost to the reset of a connection that is closed while its client still sends.
    with suppress(ConnectionError):
        while not select.select([line.socket], [], [], 0)[0]:
            assert sent < 50_000_000
            sent += line.socket.send(data)
        assert line.read("POST").status in (400, 431)
        assert line.is_closed()


def test_a_head_without_end_is_refused_before_it_fills_memory(server: Server) -> None:
    with server.line() as line:
        line.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")
        _send_until_refused(line, b"x" * 10_000)


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"e" * 9_998, b"0\r\nTrailer: " + b"t" * 9_988, b"0\r\n" + b"A: b\r\n" * 1666],
    ids=["extension", "trailer", "trailers"],
)
def test_framing_without_a_body_is_refused_before_it_fills_memory(server: Server, endless: bytes) -> None:
    with server.line() as line:
        line.send(request("/", "Transfer-Encoding: chunked", method="POST") + endless)
        _send_until_refused(line, endless[-6:] * 2000)


def test_small_chunks_are_taken(server: Server) -> None:
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    answer = server.ask(request("/", "Transfer-Encoding: chunked", method="POST") + body, "POST")
    assert answer.body == b"/ 20000"


def test_trailers_do_not_become_headers(server: Server, app: App) -> None:
    chunks = b"1\r\nx\r\n0\r\nAuthorization: Bearer late\r\nHost: evil.example\r\n\r\n"
    with server.line() as line:
        line.send(request("/", "Transfer-Encoding: chunked", method="POST") + chunks)
        assert line.read("POST").body == b"/ 1"
        assert sorted(name for name, _ in app.headers) == [b"host", b"transfer-encoding"]
        assert _answers(line)


def test_what_is_no_http_is_told_so_and_closed(server: Server) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/x\r\n\r\n"):
        with server.line() as line:
            line.send(nonsense)
            assert line.read().status == 400
            assert line.is_closed()


def test_the_app_learns_at_once_that_a_body_turned_out_to_be_none(server: Server, app: App) -> None:
    with server.line() as line:
        line.send(request("/", "Transfer-Encoding: chunked", method="POST") + b"1\r\nx\r\n")
        time.sleep(0.05)
        line.send(b"no chunk\r\n")
        assert line.read("POST").status == 400
        until(lambda: app.left == 1)


# Clients that do not read


needs_user_timeout = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux ends connections that take nothing"
)


@needs_user_timeout
def test_a_client_that_reads_nothing_is_cut_off(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALL_S", 1)
    with serving(app) as server, server.line() as line:
        line.send(request("/big"))
        until(lambda: len(server.state.connections) == 1)
        until(lambda: len(server.state.connections) == 0)


@needs_user_timeout
def test_a_client_that_reads_slowly_gets_everything(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALL_S", 1)
    with serving(app) as server, server.line() as line:
        line.send(request("/big", "Connection: close"))
        size = 0
        while data := line.socket.recv(4_000_000, socket.MSG_WAITALL):
            size += len(data)
            time.sleep(0.2)
    assert size > BIG


# How many


def test_with_too_many_connections_requests_are_told_to_come_again(app: App) -> None:
    with serving(app, max_connections=3) as server, server.line() as one, server.line() as two:
        assert _answers(one)
        assert _answers(two)
        with server.line() as third:
            third.send(GET)
            assert third.read().status == 503
        until(lambda: len(server.state.connections) == 2)
        assert _answers(one)


def test_the_limit_of_files_is_lifted_and_some_are_kept_back() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_000:
        pytest.skip(f"needs a hard limit of 10,000 open files, not {hard}")
    code = """if True:
        import resource
        from imret.web.server import raise_file_limit
        for limits in [(100, 10_000), (10_000, 10_000), (50, 1_000), (400, 400)]:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.splitlines() == [
        "9744 10000 10000",
        "9744 10000 10000",
        "750 1000 1000",
        "300 400 400",
    ]


SERVER = """
import gc, json, os, socket, sys
from imret.web.server import make_server, raise_file_limit
from imret.web.security.middleware import SecurityMiddleware

async def app(scope, receive, send):
    gc.collect()
    alive = sum(type(item).__name__ == "H11Protocol" for item in gc.get_objects())
    rss = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    stats = {"alive": alive, "files": len(os.listdir("/proc/self/fd")), "rss": rss}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(stats).encode()})

print(raise_file_limit(), flush=True)
server = make_server(SecurityMiddleware(app, host="127.0.0.1", port=0), max_connections=20_000)
server.config.lifespan = "off"
server.run([socket.socket(fileno=int(sys.argv[1]))])
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count files and memory")
def test_ten_thousand_open_connections_hold_up_nobody_and_leave_nothing_behind() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(10_000, raise_file_limit() - 100)
    if many < 2_000:
        pytest.skip(f"needs 2,000 open files, and the hard limit is {hard}")
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        port = listening.getsockname()[1]
        code = [sys.executable, "-c", SERVER, str(listening.fileno())]
        process = subprocess.Popen(
            code, stdout=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=[listening.fileno()]
        )
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= many
        before = _stats(port)
        waves = [_wave(port, many) for _ in range(2)]
    finally:
        process.terminate()
        process.communicate(timeout=20)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for during, after in waves:
        assert during["alive"] == many + 1
        assert (after["alive"], after["files"]) == (before["alive"], before["files"])
    print({"connections": many, "before": before, "waves": waves})
    # A connection costs about 9 kB. The allocator keeps them for the next wave, which needs no more.
    first, second = (during["rss"] for during, _ in waves)
    assert first < before["rss"] + 15_000 * many + 15_000_000
    assert second < first + 1_000 * many + 2_000_000


def _stats(port: int) -> dict[str, int]:
    with Line(port, timeout_s=60) as line:
        line.send(GET)
        stats: dict[str, int] = json.loads(line.read().body)
        return stats


def _wave(port: int, many: int) -> tuple[dict[str, int], dict[str, int]]:
    """Open connections, half of them with half a head, and ask meanwhile and afterwards."""
    lines = []
    try:
        for n in range(many):
            line = socket.create_connection(("127.0.0.1", port), timeout=60)
            # Reset at the end, so that no port stays behind for a minute.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            lines.append(line)
            if n % 2:
                line.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        during = _stats(port)
    finally:
        for line in lines:
            line.close()
    stats = _stats(port)
    end = time.monotonic() + 20
    while stats["alive"] > 1 and time.monotonic() < end:
        stats = _stats(port)
    return during, stats
