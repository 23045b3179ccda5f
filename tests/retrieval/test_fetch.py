"""Pictures by URL: what is fetched from real servers, and how a server or an address is refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imret.errors import ImageError
from imret.images.decode import load_image
from imret.retrieval.fetch import fetch_picture
from imret.retrieval.web_address import shown_url
from imret.settings import __version__

SHORT_S = 0.3

Handler = Callable[[socket.socket], None]


class Web:
    """A server on this machine: each path has a handler that writes its answer byte for byte."""

    def __init__(self, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, Handler] = {}
        self.requests: list[str] = []
        self.connections = 0
        self.over = threading.Event()  # what a handler waits on instead of sleeping
        self._context = context
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        self.port: int = self._listener.getsockname()[1]
        scheme, bracketed = "https" if context else "http", f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{bracketed}:{self.port}"
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self.over.is_set():
                connection.close()
                self._listener.close()
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._context:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096) or b"\r\n\r\n"
            self.requests.append(head.decode("ascii"))
            words = head.split()
            if len(words) > 1:
                self.routes[words[1].decode("ascii")](connection)

    def close(self) -> None:
        self.over.set()
        with socket.create_connection(self._listener.getsockname()[:2]):
            pass
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def web() -> Iterator[Web]:
    with contextlib.closing(Web()) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class Internet:
    """Names and public addresses that lead to servers on this machine, and a record of what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, list[list[str]]] = {}  # host -> what each look-up answers; the last stays
        self.servers: dict[tuple[str, int], int] = {}  # (public address, port) -> port here
        self.looked_up: list[str] = []
        self.connected: list[str] = []
        real_look_up, real_connect = socket.getaddrinfo, socket.socket.connect

        def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
            if not host.replace(".", "").isdigit():  # a number is only converted
                self.looked_up.append(host)
            if host not in self.names:
                return real_look_up(host, port, *rest, **more)
            answers = self.names[host]
            numbers = answers.pop(0) if len(answers) > 1 else answers[0]
            return [entry for number in numbers for entry in real_look_up(number, port, *rest, **more)]

        def connect(sock: socket.socket, address: Any) -> None:
            self.connected.append(address[0])
            if address[:2] in self.servers:
                address = ("127.0.0.1", self.servers[address[:2]])
            real_connect(sock, address)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(socket.socket, "connect", connect, raising=False)


PUBLIC = "93.184.215.14"


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    return Internet(monkeypatch)


def encoded(size: tuple[int, int] = (40, 30), file_format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(7).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format)
    return stream.getvalue()


PICTURE = encoded()


def answer(
    body: bytes = PICTURE, *headers: str, status: str = "200 OK", length: int | None = None
) -> Handler:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return lambda connection: connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def raw(data: bytes) -> Handler:
    return lambda connection: connection.sendall(data)


def redirect(location: str, status: str = "302 Found") -> Handler:
    return answer(b"", f"Location: {location}", status=status)


def fetch(url: str, **options: Any) -> bytes:
    return fetch_picture(url, allow_private=True, **{"timeout_s": 5.0, **options})


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        fetch_picture(url, **{"timeout_s": 5.0, **options})
    return str(caught.value)


# ---- What is fetched -----------------------------------------------------------------------------------


def test_a_picture_comes_byte_for_byte_and_decodes(web: Web) -> None:
    web.routes["/a.png"] = answer(PICTURE, "Content-Type: image/png")
    data = fetch(f"{web.url}/a.png")
    assert data == PICTURE
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(Image.open(io.BytesIO(PICTURE))))


def test_the_request_names_imret_and_asks_for_uncompressed_pictures(web: Web) -> None:
    web.routes["/a.png?size=2&x=y"] = answer()
    fetch(f"{web.url}/a.png?size=2&x=y#fragment")
    head = web.requests[0].split("\r\n")
    assert head[0] == "GET /a.png?size=2&x=y HTTP/1.1"
    assert f"Host: 127.0.0.1:{web.port}" in head
    assert f"User-Agent: imret/{__version__}" in head
    assert "Accept-Encoding: identity" in head
    assert not any(line.startswith(("Cookie", "Authorization", "Referer")) for line in head)


def test_spaces_and_letters_beyond_ascii_are_encoded_once(web: Web) -> None:
    web.routes["/my%20caf%C3%A9%20100%25.png?q=%E2%98%95"] = answer()
    assert fetch(f" {web.url}/my café%20100%25.png?q=☕ ") == PICTURE


def test_an_address_without_a_path_asks_for_the_root(web: Web) -> None:
    web.routes["/"] = answer()
    web.routes["/?a=1"] = answer()
    assert fetch(web.url) == fetch(f"{web.url}?a=1") == PICTURE


def test_a_body_in_chunks_and_one_that_ends_with_the_connection_are_whole(web: Web) -> None:
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (PICTURE[:10], PICTURE[10:999], PICTURE[999:])
    )
    web.routes["/chunked"] = raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )
    web.routes["/until-the-end"] = raw(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE)
    web.routes["/after-hints"] = raw(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE
    )
    for path in web.routes:
        assert fetch(web.url + path) == PICTURE


def test_a_picture_of_exactly_the_limit_is_taken(web: Web) -> None:
    web.routes["/a.png"] = answer()
    web.routes["/b.png"] = raw(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE)
    for path in web.routes:
        assert fetch(web.url + path, max_bytes=len(PICTURE)) == PICTURE
        with pytest.raises(ImageError, match=f"more than the limit of {len(PICTURE) - 1:,} bytes"):
            fetch(web.url + path, max_bytes=len(PICTURE) - 1)


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 T", "308 P"])
def test_redirects_are_followed_relative_ones_too(web: Web, status: str) -> None:
    web.routes["/old/a"] = redirect("../new/b", status)
    web.routes["/new/b"] = redirect(f"{web.url}/final.png", status)
    web.routes["/final.png"] = answer()
    assert fetch(f"{web.url}/old/a") == PICTURE


def test_five_redirects_are_followed_and_six_are_not(web: Web) -> None:
    for step in range(6):
        web.routes[f"/{step}"] = redirect(f"/{step + 1}")
    web.routes["/6"] = answer()
    assert fetch(f"{web.url}/1") == PICTURE
    assert "it redirects more than 5 times" in refusal(f"{web.url}/0", allow_private=True)


def test_a_redirect_in_utf8_as_servers_send_it_is_followed(web: Web) -> None:
    location = "/é.png".encode().decode("latin-1")  # answer() writes Latin-1, so these are the UTF-8 bytes
    web.routes["/a"] = redirect(location)
    web.routes["/%C3%A9.png"] = answer()
    assert fetch(f"{web.url}/a") == PICTURE


def test_a_picture_that_is_called_a_page_is_fetched_all_the_same(web: Web) -> None:
    web.routes["/a"] = answer(PICTURE, "Content-Type: text/html")
    assert fetch(f"{web.url}/a") == PICTURE


def test_an_ipv6_literal_is_connected_to() -> None:
    try:
        server = Web("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with contextlib.closing(server):
        server.routes["/a.png"] = answer()
        assert fetch(f"{server.url}/a.png") == PICTURE
        assert f"Host: [::1]:{server.port}\r\n" in server.requests[0]
        assert "its host '::1' is a loopback address" in refusal(f"{server.url}/a.png")


def test_the_next_address_is_tried_when_one_refuses(web: Web, internet: Internet) -> None:
    web.routes["/a.png"] = answer()
    closed = socket.create_server(("127.0.0.1", 0))
    internet.servers = {(PUBLIC, 80): closed.getsockname()[1], ("1.1.1.1", 80): web.port}
    closed.close()
    internet.names["two.example"] = [[PUBLIC, "1.1.1.1"]]
    assert fetch_picture("http://two.example/a.png", timeout_s=5) == PICTURE
    assert internet.connected == [PUBLIC, "1.1.1.1"]


# ---- Where it may lead ---------------------------------------------------------------------------------


def test_a_public_host_is_fetched_from_the_address_that_was_checked(web: Web, internet: Internet) -> None:
    web.routes["/a.png"] = answer()
    internet.servers[PUBLIC, 80] = web.port
    # A rebinding attack: harmless when checked, this machine when looked up again.
    internet.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch_picture("http://rebind.example/a.png", timeout_s=5) == PICTURE
    assert internet.looked_up == ["rebind.example"]
    assert internet.connected == [PUBLIC]
    assert "Host: rebind.example\r\n" in web.requests[0]


def test_a_redirect_is_looked_up_and_checked_again(web: Web, internet: Internet) -> None:
    web.routes["/a.png"] = redirect("/b.png")
    web.routes["/b.png"] = answer()
    internet.servers[PUBLIC, 80] = web.port
    internet.names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    message = refusal("http://rebind.example/a.png")
    assert "its host 'rebind.example' is at 127.0.0.1, a loopback address" in message
    assert internet.connected == [PUBLIC]


def test_of_several_addresses_only_the_public_ones_are_connected_to(web: Web, internet: Internet) -> None:
    web.routes["/a.png"] = answer()
    internet.servers[PUBLIC, 80] = web.port
    internet.names["mixed.example"] = [["10.0.0.1", "169.254.169.254", PUBLIC]]
    assert fetch_picture("http://mixed.example/a.png", timeout_s=5) == PICTURE
    assert internet.connected == [PUBLIC]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("0.0.0.0", "an unspecified address"),
        ("10.1.2.3", "a private address"),
        ("100.64.0.1", "a carrier-grade NAT address"),
        ("100.127.255.255", "a carrier-grade NAT address"),
        ("127.8.9.10", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("172.16.0.1", "a private address"),
        ("172.31.255.255", "a private address"),
        ("192.0.0.8", "a reserved address"),
        ("192.0.2.1", "a reserved address"),
        ("192.88.99.1", "a 6to4 address"),
        ("192.168.178.1", "a private address"),
        ("198.19.255.255", "a reserved address"),
        ("198.51.100.1", "a reserved address"),
        ("203.0.113.1", "a reserved address"),
        ("224.0.0.1", "a multicast address"),
        ("239.255.255.250", "a multicast address"),
        ("240.0.0.1", "a reserved address"),
        ("255.255.255.255", "a reserved address"),
        ("::", "an unspecified address"),
        ("::1", "a loopback address"),
        ("::7f00:1", "an IPv4-compatible address"),
        ("::ffff:127.0.0.1", "an IPv4-mapped address"),
        ("::ffff:93.184.215.14", "an IPv4-mapped address"),
        ("64:ff9b::7f00:1", "a NAT64 address"),
        ("64:ff9b::5db8:d70e", "a NAT64 address"),
        ("64:ff9b:1::1", "a NAT64 address"),
        ("100::1", "a reserved address"),
        ("2001:0:1::1", "a Teredo address"),
        ("2001:20::1", "a reserved address"),
        ("2001:db8::1", "a reserved address"),
        ("2002:7f00:1::", "a 6to4 address"),
        ("3fff::1", "a reserved address"),
        ("4000::1", "a reserved address"),
        ("fc00::1", "a private address"),
        ("fdff::1", "a private address"),
        ("fe80::1", "a link-local address"),
        ("fe80::1%1", "a link-local address"),
        ("fec0::1", "a private address"),
        ("ff02::1", "a multicast address"),
    ],
)
def test_no_address_that_is_not_public_is_connected_to(
    internet: Internet, monkeypatch: pytest.MonkeyPatch, number: str, kind: str
) -> None:
    def look_up(host: str, port: int, *_: Any) -> Any:
        address = (number, port, 0, 0) if ":" in number else (number, port)
        return [(socket.AF_INET6 if ":" in number else socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    message = refusal("http://intern.example/a.png")
    assert f"its host 'intern.example' is at {number}, {kind}, which is not of the public internet" in message
    assert message.endswith("\nIf you trust it, use --allow-private-urls (in Python: allow_private=True).")
    assert internet.connected == []


@pytest.mark.parametrize(
    "number", ["1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "192.0.1.0", "223.255.255.255"]
)
def test_their_neighbours_are_public(web: Web, internet: Internet, number: str) -> None:
    web.routes["/a.png"] = answer()
    internet.servers[number, 80] = web.port
    assert fetch_picture(f"http://{number}/a.png", timeout_s=5) == PICTURE


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "①②⑦.0.0.1",
    ],
)
def test_this_machine_is_recognised_however_it_is_spelled(internet: Internet, host: str) -> None:
    assert "127.0.0.1" in refusal(f"http://{host}:1/a.png")
    assert "a loopback address" in refusal(f"http://{host}:1/a.png")
    assert internet.connected == []


def test_a_public_page_cannot_redirect_to_a_private_address(web: Web, internet: Internet) -> None:
    internet.servers[PUBLIC, 80] = web.port
    internet.names["shop.example"] = [[PUBLIC]]
    targets = {
        "http://127.0.0.1:1/admin": "a loopback address",
        "http://169.254.169.254/latest/meta-data/": "a link-local address",
        "//[::1]/": "a loopback address",
        "http://[::ffff:10.0.0.1]/": "an IPv4-mapped address",
        "https://0x0a000001/": "10.0.0.1, a private address",
    }
    for target, kind in targets.items():
        web.routes["/a.png"] = redirect(target)
        message = refusal("http://shop.example/a.png")
        assert "(redirected from http://shop.example/a.png)" in message
        assert kind in message
        assert internet.connected[-1] == PUBLIC


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://x/", "data:image/png,x"]
)
def test_a_redirect_to_another_scheme_is_refused(web: Web, target: str) -> None:
    web.routes["/a.png"] = redirect(target)
    assert "only http and https are fetched" in refusal(f"{web.url}/a.png", allow_private=True)


def test_a_redirect_with_a_password_is_refused(web: Web) -> None:
    web.routes["/a.png"] = redirect(f"http://me:secret@127.0.0.1:{web.port}/b.png")
    message = refusal(f"{web.url}/a.png", allow_private=True)
    assert "holds a user name or password" in message
    assert "secret" not in message


def test_redirects_in_a_circle_or_to_nowhere_are_refused(web: Web) -> None:
    web.routes |= {"/a": redirect("/b"), "/b": redirect("/a"), "/self": redirect("/self")}
    web.routes["/nowhere"] = answer(b"", status="302 Found")
    web.routes["/broken"] = redirect("http://[::1")
    assert "it redirects in a circle" in refusal(f"{web.url}/a", allow_private=True)
    assert "it redirects in a circle" in refusal(f"{web.url}/self", allow_private=True)
    assert "it redirects (status 302) to nowhere" in refusal(f"{web.url}/nowhere", allow_private=True)
    assert "not a valid address" in refusal(f"{web.url}/broken", allow_private=True)


# ---- Addresses that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https are fetched.\nGive the path of the file instead."),
        ("ftp://example.com/a.png", "only http and https are fetched.\nDownload the picture"),
        ("cat.png", "only http and https are fetched"),
        ("http://me:secret@example.com/a.png", "holds a user name or password, which imret does not send"),
        ("http://me@example.com/a.png", "holds a user name or password"),
        ("http:///a.png", "it names no valid host"),
        ("http://exa mple.com/", "it names no valid host"),
        ("http://a..b/", "it names no valid host"),
        ("http://./", "no"),
        ("http://%31%32%37.0.0.1/", "it names no valid host"),
        (f"http://{'a' * 64}.com/", "it names no valid host"),
        ("http://example.com:0/", "its port is not a number from 1 to 65535"),
        ("http://example.com:99999/", "its port is not a number from 1 to 65535"),
        ("http://example.com:http/", "its port is not a number from 1 to 65535"),
        ("http://[::1/a.png", "this is not a valid address"),
        ("http://example.com/a\r\nHost: evil/", "the address holds a control character"),
        ("http://example.com/\x1b[31m", "the address holds a control character"),
    ],
)
def test_an_address_that_cannot_be_fetched_says_why(internet: Internet, url: str, reason: str) -> None:
    message = refusal(url)
    assert message.startswith("Cannot fetch ")
    assert reason in message
    assert "secret" not in message
    assert "\x1b" not in message
    assert internet.connected == []


def test_no_text_gets_past_the_errors_that_are_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    chooser = random.Random(0)
    pieces = ["http://", "https:", "//", "[", "]", "::", "@", ":", "%", "%00", "?", "#", "\\", " ", "\t"]
    pieces += [
        "\n",
        "\0",
        "a",
        "127.0.0.1",
        "é",
        "ß",
        "。",
        "\u202e",
        "\udcff",
        "\ud800",
        "xn--a",
        "9999",
        ".",
    ]
    for _ in range(1500):
        url = "http://" * chooser.randint(0, 1) + "".join(chooser.choices(pieces, k=chooser.randint(0, 9)))
        message = refusal(url)
        assert message.count("\n") == 1
        assert message.replace("\n", "").isprintable()


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    message = refusal("http://nowhere.example/a.png")
    assert message == (
        "Cannot fetch http://nowhere.example/a.png: the host 'nowhere.example' cannot be found "
        "(Name or service not known).\nCheck the address and your connection."
    )


def test_a_port_where_nothing_listens_says_so_and_that_proxies_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    message = refusal(f"http://127.0.0.1:{port}/a.png", allow_private=True)
    assert "connecting failed: Connection refused" in message
    assert "proxy" not in message
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    message = refusal(f"http://127.0.0.1:{port}/a.png", allow_private=True)
    assert message.endswith("imret connects directly: the proxy of your environment is not used.")


def test_a_proxy_in_the_environment_is_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.routes["/a.png"] = answer()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert fetch(f"{web.url}/a.png") == PICTURE


def test_a_size_or_time_that_is_not_positive_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        fetch_picture("http://example.com/", max_bytes=0)
    for timeout_s in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout_s"):
            fetch_picture("http://example.com/", timeout_s=timeout_s)


# ---- Servers that are slow -----------------------------------------------------------------------------


def drip(web: Web, start: bytes, rest: bytes) -> Handler:
    """Send one byte every 20 ms: no single read ever waits for long."""

    def handler(connection: socket.socket) -> None:
        connection.sendall(start)
        for byte in itertools.cycle(rest):
            connection.sendall(bytes([byte]))
            if web.over.wait(0.02):
                return

    return handler


def hang(web: Web, start: bytes = b"") -> Handler:
    def handler(connection: socket.socket) -> None:
        connection.sendall(start)
        web.over.wait(5)

    return handler


def flood(web: Web, start: bytes, block: bytes) -> Handler:
    def handler(connection: socket.socket) -> None:
        connection.sendall(start)
        while not web.over.is_set():
            connection.sendall(block)

    return handler


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("handler", "doing"),
    [
        (lambda web: hang(web), "waiting for the answer"),
        (lambda web: hang(web, OK), "waiting for the answer"),
        (lambda web: hang(web, OK + b"Content-Length: 99\r\n\r\n"), "receiving the picture"),
        (lambda web: drip(web, b"", OK), "waiting for the answer"),
        (lambda web: drip(web, OK, b"X-Padding: no end\r\n"), "waiting for the answer"),
        (lambda web: drip(web, OK + b"Content-Length: 99999\r\n\r\n", b"x"), "receiving the picture"),
        (lambda web: drip(web, OK + b"\r\n", b"x"), "receiving the picture"),
        (lambda web: drip(web, OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), "receiving"),
        (lambda web: flood(web, b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500), "waiting for the answer"),
    ],
    ids=["silent", "half a header", "no body", "drip", "drip headers", "drip", "endless", "chunks", "flood"],
)
def test_the_time_limit_covers_everything_a_server_may_draw_out(
    web: Web, handler: Callable[[Web], Handler], doing: str
) -> None:
    web.routes["/a.png"] = handler(web)
    start = time.monotonic()
    message = refusal(f"{web.url}/a.png", allow_private=True, timeout_s=SHORT_S)
    assert time.monotonic() - start < SHORT_S + 1.5
    assert "within 0.3 s" in message
    assert f"while {doing}" in message


def test_slow_redirects_share_one_time_limit(web: Web) -> None:
    def slow(step: int) -> Handler:
        def handler(connection: socket.socket) -> None:
            web.over.wait(0.12)
            redirect(f"/{step + 1}")(connection)

        return handler

    web.routes = {f"/{step}": slow(step) for step in range(8)}
    start = time.monotonic()
    assert "within 0.3 s" in refusal(f"{web.url}/0", allow_private=True, timeout_s=SHORT_S)
    assert time.monotonic() - start < SHORT_S + 1.5
    assert len(web.requests) < 5


def test_the_time_limit_covers_the_name_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def look_up(*_: Any) -> Any:
        over.wait(5)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    start = time.monotonic()
    message = refusal("http://slow.example/a.png", timeout_s=SHORT_S)
    over.set()
    assert time.monotonic() - start < SHORT_S + 1.5
    assert "while looking up the host" in message


def test_the_time_limit_covers_the_tls_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts (the kernel does), and says nothing
        start = time.monotonic()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a.png"
        message = refusal(url, allow_private=True, timeout_s=SHORT_S)
    assert time.monotonic() - start < SHORT_S + 1.5
    assert "while agreeing on a secure connection" in message


def test_an_address_that_does_not_answer_uses_only_its_share_of_the_time(
    web: Web, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.routes["/a.png"] = answer()
    internet.servers["1.1.1.1", 80] = web.port
    internet.names["two.example"] = [[PUBLIC, "1.1.1.1"]]
    real = socket.socket.connect

    def connect(sock: socket.socket, address: Any) -> None:
        if address[0] == PUBLIC:  # as a host behind a wall that drops packets: time passes
            time.sleep(sock.gettimeout() or 99)
            raise TimeoutError("timed out")
        real(sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    start = time.monotonic()
    assert fetch_picture("http://two.example/a.png", timeout_s=1.0) == PICTURE
    assert 0.4 < time.monotonic() - start < 0.9


# ---- Servers that send what they should not ------------------------------------------------------------


def test_two_gigabytes_are_cut_off_at_the_limit(web: Web) -> None:
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(OK + b"Content-Type: image/jpeg\r\n\r\n")
        block = b"\xff" * 65_536
        while sent < 2_000_000_000:
            connection.sendall(block)
            sent += len(block)

    web.routes["/a.jpg"] = endless
    tracemalloc.start()
    try:
        message = refusal(f"{web.url}/a.jpg", allow_private=True, max_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()
    assert "the server sends more than the limit of 1,000,000 bytes" in message
    assert sent < 50_000_000  # what the kernel's buffers hold beyond the limit


def test_two_gigabytes_that_are_announced_are_not_even_begun(web: Web) -> None:
    web.routes["/a.jpg"] = answer(b"", length=2_000_000_000)
    message = refusal(f"{web.url}/a.jpg", allow_private=True)
    assert "its 2,000,000,000 bytes are more than the limit of 30,000,000 bytes" in message
    assert message.endswith("\nDownload the picture and search with the file instead.")


def test_a_picture_cut_short_is_refused(web: Web) -> None:
    web.routes["/a.png"] = answer(PICTURE[:-100], length=len(PICTURE))
    message = refusal(f"{web.url}/a.png", allow_private=True)
    assert (
        f"the connection ended after {len(PICTURE) - 100:,} of {len(PICTURE):,} bytes.\nTry again." in message
    )
    web.routes["/b.png"] = raw(OK + b"Transfer-Encoding: chunked\r\n\r\nfff\r\nabc")
    assert "ended before the picture was complete" in refusal(f"{web.url}/b.png", allow_private=True)


def test_no_more_than_the_announced_length_is_read(web: Web) -> None:
    web.routes["/a.png"] = answer(PICTURE + b"more", length=len(PICTURE))
    assert fetch(f"{web.url}/a.png") == PICTURE


def test_an_empty_answer_is_refused(web: Web) -> None:
    web.routes["/a.png"] = answer(b"")
    assert "the server sent nothing (0 bytes)" in refusal(f"{web.url}/a.png", allow_private=True)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<!DOCTYPE html><html>", "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf\r\n <!doctype HTML>", "image/jpeg"),
        (b"<html lang=en>", ""),
        (b"<!-- generated --><p>", "text/html"),
        (b"<?xml version='1.0'?><html/>", "application/xhtml+xml"),
        (b"<!doctype html>" + b"x" * 5000, "text/html"),
    ],
)
def test_a_web_page_is_not_a_picture_and_says_what_to_do(web: Web, body: bytes, content_type: str) -> None:
    web.routes["/photo.jpg"] = answer(body, f"Content-Type: {content_type}")
    assert refusal(f"{web.url}/photo.jpg", allow_private=True, max_bytes=5100) == (
        f"Cannot fetch {web.url}/photo.jpg: this is a web page, not a picture.\n"
        "Open it and copy the address of the picture itself."
    )


@pytest.mark.parametrize(
    ("status", "shown", "remedy"),
    [
        ("404 Not Found", "status 404 (Not Found)", "Check the address"),
        ("410 x", "status 410 (Gone)", "not there, or not any more"),
        ("403 \x1b[31mred", "status 403 (Forbidden)", "Download the picture"),
        ("401 x", "status 401 (Unauthorized)", "Download the picture"),
        ("429 x", "status 429 (Too Many Requests)", "Try again later"),
        ("503 x", "status 503 (Service Unavailable)", "Try again later"),
        ("204 x", "status 204 (No Content)", "Download the picture"),
        ("206 x", "status 206 (Partial Content)", "Download the picture"),
        ("304 x", "status 304 (Not Modified)", "Download the picture"),
        ("799 x", "status 799.", "Try again later"),
    ],
)
def test_a_status_other_than_200_is_named(web: Web, status: str, shown: str, remedy: str) -> None:
    web.routes["/a.png"] = answer(status=status)
    message = refusal(f"{web.url}/a.png", allow_private=True)
    assert f"the server answers with {shown}" in message
    assert remedy in message
    assert "\x1b" not in message


def test_a_compressed_answer_is_refused(web: Web) -> None:
    web.routes["/a.png"] = answer(PICTURE, "Content-Encoding: gzip")
    assert "compressed" in refusal(f"{web.url}/a.png", allow_private=True)
    web.routes["/b.png"] = answer(PICTURE, "Content-Encoding: identity")
    assert fetch(f"{web.url}/b.png") == PICTURE


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 200_000 + b"\r\n\r\n",
    ],
    ids=["ssh", "nothing", "status", "50,000 headers", "long header"],
)
def test_what_is_not_http_is_refused(web: Web, data: bytes) -> None:
    web.routes["/a.png"] = raw(data)
    message = refusal(f"{web.url}/a.png", allow_private=True)
    assert "does not answer in HTTP" in message or "failed: Connection reset by peer" in message


# ---- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for pictures.example in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=DNS:pictures.example,DNS:xn--bcher-kva.example"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(certificate: Path, internet: Internet) -> Iterator[tuple[Web, list[str]]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    server_names: list[str] = []
    context.sni_callback = lambda _socket, name, _context: server_names.append(name)
    with contextlib.closing(Web(context=context)) as server:
        server.routes["/a.png"] = answer()
        internet.servers[PUBLIC, 443] = server.port
        for name in ("pictures.example", "other.example", "xn--bcher-kva.example", "pictures.example."):
            internet.names[name] = [[PUBLIC]]
        yield server, server_names


def test_tls_is_verified_against_the_name_and_asks_for_it(
    secure: tuple[Web, list[str]], certificate: Path, monkeypatch: pytest.MonkeyPatch, internet: Internet
) -> None:
    server, server_names = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    assert fetch_picture("https://pictures.example/a.png", timeout_s=5) == PICTURE
    assert fetch_picture("https://pictures.example./a.png", timeout_s=5) == PICTURE
    assert fetch_picture("https://Bücher.example/a.png", timeout_s=5) == PICTURE
    assert server_names == ["pictures.example", "pictures.example", "xn--bcher-kva.example"]
    assert set(internet.connected) == {PUBLIC}
    assert "Host: pictures.example\r\n" in server.requests[0]


def test_a_certificate_for_another_name_or_of_nobody_is_refused(
    secure: tuple[Web, list[str]], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = secure
    message = refusal("https://pictures.example/a.png")
    assert "the certificate of 'pictures.example' is not valid (self" in message
    assert "SSL_CERT_FILE" in message
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    assert "the certificate of 'other.example' is not valid (Hostname mismatch" in refusal(
        "https://other.example/a.png"
    )
    assert server.requests == []


def test_https_to_a_server_without_tls_is_refused(web: Web) -> None:
    web.routes["/"] = answer()
    listener = socket.create_server(("127.0.0.1", 0))

    def speak_plainly() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(4096)

    thread = threading.Thread(target=speak_plainly)
    thread.start()
    message = refusal(f"https://127.0.0.1:{listener.getsockname()[1]}/a.png", allow_private=True)
    thread.join()
    listener.close()
    assert "no secure connection could be agreed on" in message


# ---- Words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/p/x.jpg", "https://a.example/p/x.jpg"),
        ("https://a.example/x.jpg?X-Amz-Signature=secret#top", "https://a.example/x.jpg?..."),
        ("https://a.example/x.jpg#secret", "https://a.example/x.jpg"),
        ("https://me:secret@a.example/x.jpg", "https://...@a.example/x.jpg"),
        ("https://me:se/cret@a.example/x.jpg", "https://...@a.example/x.jpg"),
        ("https://a.example/@me/x.jpg", "https://a.example/@me/x.jpg"),
        ("https://a.example/\x1b[31m\udcff", r"https://a.example/\x1b[31m\udcff"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, expected: str) -> None:
    assert shown_url(url) == expected


def test_a_long_address_is_shown_with_its_host_and_its_end() -> None:
    shown = shown_url(f"https://a.example/{'x' * 1000}/photo.jpg?{'y' * 1000}")
    assert len(shown) <= 200
    assert shown.startswith("https://a.example/x")
    assert shown.endswith("/photo.jpg?...")


def test_a_query_in_an_error_is_not_shown(web: Web) -> None:
    web.routes["/a.png?token=secret"] = answer(status="403 Forbidden")
    message = refusal(f"{web.url}/a.png?token=secret", allow_private=True)
    assert f"{web.url}/a.png?...: " in message
    assert "secret" not in message


def test_importing_it_loads_neither_http_nor_tls() -> None:
    heavy = "{'httpcore', 'httpx', 'ssl', 'PIL', 'numpy'}"
    code = f"import sys, imret.retrieval.fetch; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
