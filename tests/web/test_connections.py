"""Connections of the server: deadlines, how many, pipelines, slow clients, 10,000 at once."""

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra web")

from imret.web import connections
from imret.web.connections import make_protocol, raise_file_limit
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


Serve = Callable[..., Server]

# Both parsers and both loops; uvicorn picks the first where both are installed.
STACKS = [("httptools", "uvloop"), ("h11", "asyncio")]


@pytest.fixture(params=STACKS, ids="-".join)
def serve(request: pytest.FixtureRequest, app: App) -> Iterator[Serve]:
    """Start a server with the limits given; on each parser, and on each loop."""
    parser, loop = request.param
    for name in request.param:
        pytest.importorskip(name)
    with ExitStack() as stack:
        yield lambda **limits: stack.enter_context(
            serving(app, make_protocol(parser=parser, **limits), loop=loop)
        )


def _dribble(line: Line, data: bytes) -> None:
    """Send a little again and again until the server says something or closes."""
    end = time.monotonic() + 20
    while not select.select([line.socket], [], [], 0.03)[0]:
        assert time.monotonic() < end, "the server takes it without end"
        line.send(data)


def _answers(line: Line) -> bool:
    line.send(GET)
    return line.read().status == 200


# Slow heads


def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    server = serve(header_timeout_s=0.3)
    began = time.monotonic()
    with server.line() as line:
        assert line.is_closed()
    assert time.monotonic() - began > 0.25


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "further"])
@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ", b"\r\n"], ids=["head", "blank"]
)
def test_a_head_that_dribbles_is_cut_off(serve: Serve, before: bytes, start: bytes) -> None:
    server = serve(header_timeout_s=0.3)
    with server.line() as line:
        if before:
            assert _answers(line)
        line.send(start)
        _dribble(line, b"\r\n" if start == b"\r\n" else b"x")
        # h11 takes no blank lines before a request, and says so.
        assert line.socket.recv(12) in (b"", b"HTTP/1.1 400")


def test_the_deadline_of_a_head_is_not_one_for_the_body_or_the_answer(serve: Serve, app: App) -> None:
    server = serve(header_timeout_s=0.3)
    with server.line() as line:
        for _ in range(2):
            line.send(request("/", "Content-Length: 2", method="POST") + b"x")
            time.sleep(0.4)
            line.send(b"y")
            assert line.read("POST").body == b"/ 2"
        line.send(request("/wait"))
        time.sleep(0.4)
        app.letting = 1
        assert line.read().status == 200


def test_a_body_that_is_left_when_its_answer_is_complete_holds_nothing() -> None:
    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with serving(hasty, make_protocol(header_timeout_s=0.3)) as server, server.line() as line:
        line.send(request("/", "Content-Length: 100000", method="POST"))
        assert line.read("POST").status == 200
        _dribble(line, b"x")
        assert line.is_closed()


# How many


def test_one_connection_too_many_closes_the_one_idle_for_longest(serve: Serve, app: App) -> None:
    server = serve(max_connections=4)
    with server.line() as a, server.line() as b, server.line() as c, server.line() as busy:
        busy.send(request("/wait"))
        for line in (b, c, a):
            assert _answers(line)
        until(lambda: app.waiting == 1)
        with server.line() as d:
            assert _answers(d)
            assert b.is_closed()
            with server.line() as e:
                assert _answers(e)
                assert c.is_closed()
                assert all(_answers(line) for line in (a, d, e))
                app.letting = 1
                assert busy.read().status == 200


def test_when_all_are_busy_a_new_connection_is_told_to_come_again(serve: Serve, app: App) -> None:
    server = serve(max_connections=2)
    with server.line() as one, server.line() as two:
        one.send(request("/wait"))
        two.send(request("/wait"))
        until(lambda: app.waiting == 2)
        for _ in range(30):
            with server.line() as third:
                third.send(GET * 50)
                answer = third.read()
                assert answer.status == 503
                assert answer["retry-after"] == "5"
                assert answer["content-security-policy"].startswith("default-src 'none'")
                assert "all of them busy" in answer.problem["detail"]
                assert answer.closes
            assert len(server.state.connections) <= 3
        app.letting = 2
        assert one.read().status == two.read().status == 200
        with server.line() as fourth:
            assert _answers(fourth)


def test_a_client_that_still_reads_its_answer_does_not_make_room(serve: Serve) -> None:
    server = serve(max_connections=1)
    with server.line() as reader:
        reader.send(request("/big"))
        assert select.select([reader.socket], [], [], 20)[0]
        with server.line() as other:
            assert other.read().status == 503
        assert len(reader.read().body) == BIG
        with server.line() as other:
            assert _answers(other)


def test_refused_clients_that_stay_do_not_pile_up(serve: Serve, app: App) -> None:
    server = serve(max_connections=1)
    with ExitStack() as stack:
        busy = stack.enter_context(server.line())
        busy.send(request("/wait"))
        until(lambda: app.waiting == 1)
        refused = [stack.enter_context(server.line()) for _ in range(50)]
        assert refused[-1].read().status == 503
        until(lambda: len(server.state.connections) <= 2)
        app.letting = 1
        assert busy.read().status == 200


# Pipelines


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    server = serve()
    with server.line() as line:
        sent = b"".join(request(f"/{n}", "Content-Length: 3", method="POST") + b"abc" for n in range(300))
        line.send(sent)
        for n in range(300):
            assert line.read("POST").body == f"/{n} 3".encode()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_pipeline_waits_in_the_kernel_and_not_as_requests(app: App, loop: str) -> None:
    pytest.importorskip("httptools")
    pytest.importorskip(loop)
    shortest = b"GET /wait HTTP/1.1\r\n\r\n"
    with serving(app, make_protocol(parser="httptools"), loop=loop) as server, server.line() as line:
        until(lambda: bool(server.state.connections))
        (protocol,) = server.state.connections
        line.socket.setblocking(False)
        for answered in range(20):
            try:
                while True:
                    line.socket.send(shortest * 1000)
            except BlockingIOError:
                pass
            until(lambda: app.waiting == 1)
            assert len(protocol.pipeline) <= connections.PIECE_BYTES // len(shortest) + 1, answered
            assert len(protocol._held) <= 1_000_000, answered  # what one read brings
            app.letting = 1
            until(lambda: app.letting == 0)
        app.letting = 10**9


# What a parser would hold


def test_a_head_without_end_is_refused_before_it_fills_memory(serve: Serve) -> None:
    server = serve()
    with server.line() as line:
        line.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")
        sent = 0
        while not select.select([line.socket], [], [], 0)[0] and sent < 50_000_000:
            line.socket.send(b"x" * 10_000)
            sent += 10_000
        assert line.read().status in (400, 431)
        assert line.is_closed()
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"e" * 9_998, b"0\r\nTrailer: " + b"t" * 9_988, b"0\r\n" + b"A: b\r\n" * 1666],
    ids=["extension", "trailer", "trailers"],
)
def test_framing_without_a_body_is_refused_before_it_fills_memory(serve: Serve, endless: bytes) -> None:
    server = serve()
    with server.line() as line:
        line.send(request("/", "Transfer-Encoding: chunked", method="POST") + endless)
        sent = 0
        rest = endless[-6:] * 2000
        while not select.select([line.socket], [], [], 0)[0] and sent < 50_000_000:
            line.socket.send(rest)
            sent += len(rest)
        assert line.read("POST").status in (400, 431)
        assert line.is_closed()
    assert sent < 50_000_000


def test_small_chunks_are_taken(serve: Serve) -> None:
    server = serve()
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    answer = server.ask(request("/", "Transfer-Encoding: chunked", method="POST") + body, "POST")
    assert answer.body == b"/ 20000"


def test_trailers_do_not_become_headers(serve: Serve, app: App) -> None:
    server = serve()
    chunks = b"1\r\nx\r\n0\r\nAuthorization: Bearer late\r\nHost: evil.example\r\n\r\n"
    with server.line() as line:
        line.send(request("/", "Transfer-Encoding: chunked", method="POST") + chunks)
        assert line.read("POST").body == b"/ 1"
        assert sorted(name for name, _ in app.headers) == [b"host", b"transfer-encoding"]
        assert _answers(line)


def test_what_is_no_http_is_told_so_and_closed(serve: Serve) -> None:
    server = serve()
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/x\r\n\r\n"):
        with server.line() as line:
            line.send(nonsense)
            answer = line.read()
            assert answer.status == 400
            assert answer.problem["detail"] == "this is not an HTTP request that can be read"
            assert answer["x-content-type-options"] == "nosniff"
            assert line.is_closed()


def test_the_app_learns_at_once_that_a_body_turned_out_to_be_none(
    serve: Serve, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 3600.0)
    server = serve()
    with server.line() as line:
        line.send(request("/", "Transfer-Encoding: chunked", method="POST") + b"1\r\nx\r\n")
        time.sleep(0.05)
        line.send(b"no chunk\r\n")
        assert line.read("POST").status == 400
        until(lambda: app.left == 1)


# Clients that do not read


def test_a_client_that_reads_nothing_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.2)
    server = serve()
    for headers in ([], ["Connection: close"]):
        with server.line() as line:
            until(lambda: len(server.state.connections) == 1)
            if headers:
                # All is in the buffer then, and nobody waits for it to drain but the connection itself.
                (protocol,) = server.state.connections
                protocol._inner.set_write_buffer_limits(high=1 << 30)
            line.send(request("/big", *headers))
            until(lambda: len(server.state.connections) == 0)


def test_a_client_that_reads_slowly_gets_everything(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 1.0)
    with serving(app, make_protocol()) as server, server.line() as line:
        line.send(request("/big", "Connection: close"))
        size = 0
        while data := line.socket.recv(4_000_000, socket.MSG_WAITALL):
            size += len(data)
            time.sleep(0.2)
    assert size > BIG


def test_a_server_that_stops_does_not_wait_for_refused_clients(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 3600.0)
    server = serve()
    with server.line() as line:
        line.send(b"hello\r\n\r\n")
        assert line.read().status == 400
        server.stop()
        assert server.state.connections == set()


# Limits


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"header_timeout_s must be above 0 .* not 0 and 1000"):
        make_protocol(header_timeout_s=0)
    with pytest.raises(ValueError, match=r"max_connections at least 1, not 10.0 and 0"):
        make_protocol(max_connections=0)


def test_servers_do_not_share_their_counts() -> None:
    assert make_protocol().idle is not make_protocol().idle  # type: ignore[attr-defined]


def test_the_limit_of_files_is_lifted_and_some_are_kept_back() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_000:
        pytest.skip(f"needs a hard limit of 10,000 open files, not {hard}")
    code = """if True:
        import resource
        from imret.web.connections import raise_file_limit
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


# Many


SERVER = """
import gc, json, os, sys
import uvicorn
from imret.web.connections import make_protocol, raise_file_limit
from imret.web.security.middleware import Gate

async def app(scope, receive, send):
    gc.collect()
    alive = sum(type(one).__name__ == "BoundedProtocol" for one in gc.get_objects())
    rss = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    stats = {"alive": alive, "files": len(os.listdir("/proc/self/fd")), "rss": rss}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(stats).encode()})

print(raise_file_limit(), flush=True)
uvicorn.run(
    Gate(app, host="127.0.0.1", port=0), fd=int(sys.argv[1]), log_level="error", lifespan="off", ws="none",
    http=make_protocol(max_connections=int(sys.argv[2]), header_timeout_s=120), timeout_keep_alive=120,
)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count files and memory")
@pytest.mark.parametrize(("many", "bound"), [(10_000, 20_000), (2_500, 100)])
def test_ten_thousand_open_connections_hold_up_nobody_and_leave_nothing_behind(many: int, bound: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(many, raise_file_limit() - 100)
    if many < 2_000:
        pytest.skip(f"needs 2,000 open files, and the hard limit is {hard}")
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        port = listening.getsockname()[1]
        code = [sys.executable, "-c", SERVER, str(listening.fileno()), str(bound)]
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
        assert during["alive"] == min(many + 1, bound)
        assert during["files"] <= before["files"] + bound
        assert (after["alive"], after["files"]) == (before["alive"], before["files"])
    print({"connections": many, "before": before, "waves": waves})
    # A connection costs about 7 kB. The allocator keeps them for the next wave, which needs no more.
    first, second = (during["rss"] for during, _ in waves)
    assert first < before["rss"] + 15_000 * min(many, bound) + 15_000_000
    assert second < first + 1_000 * min(many, bound) + 2_000_000


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
                with suppress(ConnectionError):  # closed again already to make room
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
