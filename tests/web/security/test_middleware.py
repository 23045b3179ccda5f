"""The security middleware: hosts, origins, token, headers, limits; every rule with a hit and a miss."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import select
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urljoin

import pytest

pytest.importorskip("uvicorn", reason="needs the extra web")

from imret.errors import DataError
from imret.net import is_loopback
from imret.settings import __version__
from imret.web.security import body_limits, tokens
from imret.web.security.hosts import check_binding
from imret.web.security.middleware import SecurityMiddleware
from imret.web.security.public_address import parse_public_address
from tests.fakes.web_server import Server, request, serving, until

TOKEN = "correct-horse-battery-staple"
MAX_BODY = 100_000
FORM = "Content-Type: application/x-www-form-urlencoded"


class App:
    """Answers /api/echo with what it received; keeps what became of each request."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        size = 0
        if path == "/api/crash":
            raise RuntimeError("secret of the app")
        if path != "/api/quick":
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.seen.append(f"{path} disconnect")
                    if path == "/api/startled":
                        raise RuntimeError("the client is gone")
                    break
                size += len(message["body"])
                if not message["more_body"]:
                    self.seen.append(f"{path} {size}")
                    break
        headers = [
            (b"content-type", b"application/json"),
            (b"server", b"tiny"),
            (b"Referrer-Policy", b"none"),
        ]
        if path == "/api/cached":
            headers.append((b"cache-control", b"max-age=60"))
        await send(
            {"type": "http.response.start", "status": 404 if path == "/no" else 200, "headers": headers}
        )
        body = json.dumps({"path": path, "query": scope["query_string"].decode(), "size": size}).encode()
        await send({"type": "http.response.body", "body": body})


def _secured(app: Any, **settings: Any) -> SecurityMiddleware:
    settings = {
        "host": "127.0.0.1",
        "port": 8750,
        "max_body_bytes": MAX_BODY,
        "body_timeout_s": 0.4,
    } | settings
    return SecurityMiddleware(app, **settings)


@pytest.fixture(scope="module")
def app() -> App:
    return App()


@pytest.fixture(scope="module")
def local(app: App) -> Iterator[Server]:
    """Bound to loopback, without a token."""
    with serving(_secured(app)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(app: App) -> Iterator[Server]:
    """Bound to every address (by its own account), with a token."""
    secured = _secured(app, host="0.0.0.0", token=TOKEN, allow_hosts=["Photos.example", "bücher.example"])
    with serving(secured) as server:
        yield server


BEARER = f"Authorization: Bearer {TOKEN}"


# Host


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:1234",
        "LocalHost:8750",
        "localhost.",
        "127.0.0.1",
        "127.9.8.7:80",
        "[::1]:8750",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1]",
    ],
)
def test_on_loopback_names_of_loopback_pass_at_any_port(local: Server, host: str) -> None:
    assert local.get("/api/echo", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8750",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0:8750",
        "192.168.1.5",
        "[fe80::1]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "a.localhost",
        "photos.example",
    ],
)
def test_on_loopback_every_other_host_is_misdirected(local: Server, app: App, host: str) -> None:
    before = len(app.seen)
    answer = local.get("/api/echo", host=host)
    assert answer.status == 421
    assert "does not answer to the name" in answer.problem["detail"]
    assert "http://localhost:8750" in answer.problem["detail"]
    assert len(app.seen) == before


@pytest.mark.parametrize(
    "host",
    [
        "",
        "local host",
        "localhost:99999",
        "localhost:80:80",
        "[::1",
        "[::zz]",
        "user@localhost",
        "localhost/x",
        "http://localhost",
        "localhost:",
        "localhost:x",
        "..",
        "[fe80::1%eth0]",
        "localhost,evil.example",
    ],
)
def test_a_malformed_host_is_refused(local: Server, host: str) -> None:
    answer = local.get("/api/echo", host=host)
    assert answer.status == 400
    assert answer.problem["detail"]


def test_a_missing_or_doubled_host_is_refused(local: Server) -> None:
    assert local.get("/api/echo", host=None).status == 400
    assert local.get("/api/echo", "Host: localhost").status == 400
    answer = local.ask(b"GET /api/echo HTTP/1.0\r\n\r\n")
    assert answer.status == 400
    assert "needs a Host header" in answer.problem["detail"]
    assert local.ask(b"GET /api/echo HTTP/1.0\r\nHost: localhost\r\n\r\n").status == 200


def test_a_target_that_names_another_host_than_the_host_header_is_refused(local: Server) -> None:
    assert local.get("http://evil.example/api/echo").status == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.1.5:8750", 200),
        ("[fd00::1]:8750", 200),
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("photos.example:443", 200),
        ("xn--bcher-kva.example", 200),
        ("evil.example", 421),
        ("www.photos.example", 421),
        ("192.168.1.5.evil.example", 421),
    ],
)
def test_bound_elsewhere_addresses_and_allowed_names_pass(guarded: Server, host: str, status: int) -> None:
    assert guarded.get("/api/echo", BEARER, host=host).status == status


def test_bound_elsewhere_the_name_of_this_machine_passes(guarded: Server) -> None:
    name = socket.gethostname()
    assert guarded.get("/api/echo", BEARER, host=f"{name}:8750").status == 200
    assert guarded.get("/api/echo", BEARER, host=name.upper().partition(".")[0]).status == 200


@pytest.mark.parametrize("name", ["http://photos.example", "photos.example:443", "*", "", "a b", "*.example"])
def test_an_allowed_host_that_is_no_name_is_refused_with_how_to_give_it(name: str) -> None:
    with pytest.raises(
        DataError, match=re.escape(repr(name)) + " is not a host name. Give it without scheme"
    ):
        _secured(App(), allow_hosts=[name])


# Origin and Sec-Fetch-Site


@pytest.mark.parametrize(
    "origin", ["http://localhost:8750", "https://localhost:8750", "HTTP://LOCALHOST:8750"]
)
def test_the_pages_own_requests_pass(local: Server, origin: str) -> None:
    headers = [f"Origin: {origin}", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"]
    assert local.get("/api/echo", *headers, host="localhost:8750").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost",
        "http://localhost:8751",
        "http://127.0.0.1:8750",
        "http://localhost:8750.evil.example",
        "ftp://localhost:8750",
        "localhost:8750",
        "http://localhost:8750/",
    ],
)
def test_requests_of_other_origins_are_refused(local: Server, origin: str) -> None:
    answer = local.get("/api/echo", f"Origin: {origin}", host="localhost:8750")
    assert answer.status == 403
    assert "other sites" in answer.problem["detail"]
    both = ["Origin: http://localhost:8750", f"Origin: {origin}"]
    assert local.get("/api/echo", *both, host="localhost:8750").status == 400


NAVIGATION = ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]


@pytest.mark.parametrize(
    ("target", "method", "headers", "status"),
    [
        ("/api/echo", "GET", ["Sec-Fetch-Site: same-origin"], 200),
        ("/api/echo", "GET", ["Sec-Fetch-Site: none", *NAVIGATION], 200),
        ("/api/echo", "GET", ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: image"], 403),
        ("/api/echo", "GET", ["Sec-Fetch-Site: same-site", "Sec-Fetch-Dest: image"], 403),
        ("/api/echo", "GET", ["Sec-Fetch-Site: something-new"], 403),
        ("/api/echo", "GET", ["Sec-Fetch-Site: cross-site", *NAVIGATION], 403),
        ("/", "GET", ["Sec-Fetch-Site: cross-site", *NAVIGATION], 200),
        ("/?q=red", "GET", ["Sec-Fetch-Site: same-site", *NAVIGATION], 200),
        ("/", "POST", ["Sec-Fetch-Site: cross-site", *NAVIGATION], 403),
        (
            "/",
            "GET",
            ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"],
            403,
        ),
        (
            "/",
            "GET",
            ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"],
            403,
        ),
        ("/", "GET", ["Sec-Fetch-Site: cross-site"], 403),
    ],
)
def test_other_sites_may_link_to_the_page_and_no_more(
    local: Server, target: str, method: str, headers: list[str], status: int
) -> None:
    answer = local.get(target, *headers, method=method)
    assert answer.status == status
    assert "set-cookie" not in answer
    assert "access-control-allow-origin" not in answer


# Behind a proxy


PAGE_SAYS = ["Origin: https://nas:8443", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8750", "localhost:8443", "localhost:443"])
def test_where_the_browser_says_that_the_page_is_our_own_it_does_not_matter_what_a_proxy_makes_of_host(
    local: Server, host: str
) -> None:
    assert local.get("/api/echo", *PAGE_SAYS, host=host).status == 200
    assert local.get("/api/echo", PAGE_SAYS[0], host=host).status == 403
    for site in ("cross-site", "same-site", "none", "same-origin, same-origin"):
        assert local.get("/api/echo", PAGE_SAYS[0], f"Sec-Fetch-Site: {site}", host=host).status == 403
    twice = local.get("/api/echo", *PAGE_SAYS[:2], "Sec-Fetch-Site: cross-site", host=host)
    assert twice.status == 403
    assert local.get("/api/echo", *PAGE_SAYS, host="evil.example").status == 421


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("https://localhost", "localhost:443", 200),  # nginx: $host:$server_port
        ("http://localhost", "localhost:80", 200),
        ("http://localhost", "localhost:443", 403),
        ("https://localhost", "localhost:80", 403),
        ("https://localhost:443", "localhost", 200),
    ],
)
def test_a_port_that_goes_without_saying_may_be_said(
    local: Server, origin: str, host: str, status: int
) -> None:
    assert local.get("/api/echo", f"Origin: {origin}", host=host).status == status


def test_a_refused_origin_that_lacks_the_port_alone_says_how_to_name_it(local: Server) -> None:
    detail = local.get("/api/echo", "Origin: http://localhost:8080").problem["detail"]
    assert "--public-url http://localhost:8080" in detail
    detail = local.get("/api/echo", "Origin: http://evil.example:8080").problem["detail"]
    assert "--public-url" not in detail


def test_the_public_address_is_ours_and_no_other_origin() -> None:
    """On plain http browsers send no Sec-Fetch-Site to other machines: Origin is all there is."""
    public = parse_public_address("http://NAS.example:8080/photos/", None)
    with serving(_secured(App(), public=public)) as server:
        for host in ("nas.example", "nas.example:8080", "localhost:8750"):
            assert server.get("/api/echo", "Origin: http://nas.example:8080", host=host).status == 200
            for origin in (
                "http://nas.example",  # of another program, where the proxy leaves out the port of Host
                "https://nas.example",
                "https://nas.example:8080",
                "http://nas.example:8081",
                "https://nas.example:8081",
                "http://nas.example:8080.evil.example",
                "http://evil.example",
                "null",
            ):
                assert server.get("/api/echo", f"Origin: {origin}", host=host).status == 403
        # Without the proxy, at a port of its own.
        assert (
            server.get("/api/echo", "Origin: http://nas.example:8750", host="nas.example:8750").status == 200
        )
        forwarded = [
            "X-Forwarded-Host: evil.example",
            "X-Forwarded-Proto: http",
            "Origin: http://evil.example",
        ]
        assert server.get("/api/echo", *forwarded, host="nas.example").status == 403
        assert server.get("/api/echo", host="evil.example").status == 421


def test_the_public_address_makes_the_cookie_secure_unless_the_browser_came_by_http() -> None:
    public = parse_public_address("https://nas.example/photos", None)
    body = f"token={TOKEN}".encode()
    with serving(_secured(App(), token=TOKEN, public=public)) as server:
        assert "; Secure" in server.post("/login", body, FORM)["set-cookie"]
        assert "; Secure" in server.post("/login", body, FORM, "Origin: https://nas.example")["set-cookie"]
        assert "Secure" not in server.post("/login", body, FORM, "Origin: http://localhost")["set-cookie"]


@pytest.fixture(scope="module")
def below(app: App) -> Iterator[Server]:
    """With a token, below /photos."""
    with serving(_secured(app, token=TOKEN, public=parse_public_address(None, "/photos"))) as server:
        yield server


@pytest.mark.parametrize("prefix", ["", "/photos"])
def test_below_a_path_requests_are_taken_whether_the_proxy_strips_it_or_not(
    below: Server, prefix: str
) -> None:
    answer = below.get(f"{prefix}/api/echo?q=/photos/x", BEARER)
    assert json.loads(answer.body) == {"path": "/api/echo", "query": "q=/photos/x", "size": 0}
    assert below.get(f"{prefix}/static/style.css").status == 200
    assert below.get(f"{prefix}/static/main.js").status == 401
    assert below.get(f"{prefix}/api/echo").status == 401
    assert json.loads(below.get(f"{prefix}/api/photos/x", BEARER).body)["path"] == "/api/photos/x"
    assert below.get(f"{prefix}/?q=x")["location"] == "/photos/login?next=%2Fphotos%2F%3Fq%3Dx"
    assert b'"/photos/static/style.css"' in below.get(f"{prefix}/login").body
    entered = below.post(f"{prefix}/login", f"token={TOKEN}".encode(), FORM)
    assert entered["location"] == "/photos/"
    assert "Path" not in entered["set-cookie"]
    assert below.post(f"{prefix}/logout", b"", BEARER)["location"] == "/photos/login"


def test_below_a_path_the_path_alone_is_the_page(below: Server) -> None:
    assert below.get("/photos?q=x")["location"] == "/photos/login?next=%2Fphotos%2F%3Fq%3Dx"
    assert json.loads(below.get("/photos", BEARER).body)["path"] == "/"


@pytest.mark.parametrize(
    "target",
    [
        "/photos/photos/static/style.css",
        "/photosx/static/style.css",
        "/Photos/static/style.css",
        "/%70hotos/static/style.css",
        "/other/static/style.css",
    ],
)
def test_below_a_path_nothing_else_is_taken_for_it(below: Server, target: str) -> None:
    assert below.get(target).status == 401


@pytest.mark.parametrize("target", ["/photos//static/style.css", "/photos/../static/style.css"])
def test_below_a_path_addresses_are_as_plain_as_elsewhere(below: Server, target: str) -> None:
    assert below.get(target).status == 400


@pytest.mark.parametrize(
    ("public_url", "root_path", "root", "origin"),
    [
        ("https://nas.example:8443/photos", None, "/photos", "https://nas.example:8443"),
        ("https://NAS.example:443/photos/", "photos", "/photos", "https://nas.example"),
        ("http://nas.example:80", None, "", "http://nas.example"),
        ("http://nas:443/a/b", None, "/a/b", "http://nas:443"),
        ("https://bücher.example/", "/", "", "https://xn--bcher-kva.example"),
        ("http://[::1]:8080/x", None, "/x", "http://[::1]:8080"),
        (None, "photos/", "/photos", None),
        (None, "/a.b/~c_d-e/", "/a.b/~c_d-e", None),
        (None, "", "", None),
        (None, None, "", None),
    ],
)
def test_a_public_address_is_read(
    public_url: str | None, root_path: str | None, root: str, origin: str | None
) -> None:
    public = parse_public_address(public_url, root_path)
    assert (public.root_path, public.origin) == (root, origin)


@pytest.mark.parametrize(
    ("public_url", "root_path", "says"),
    [
        ("nas.example/photos", None, "as browsers show it"),
        ("ftp://nas.example", None, "as browsers show it"),
        ("https://", None, "as browsers show it"),
        ("https://me:secret@nas.example/", None, "as browsers show it"),
        ("https://nas.example:99999/", None, "as browsers show it"),
        ("https://[nas]/", None, "as browsers show it"),
        ("https://nas.example/?q=x", None, "leave it out"),
        ("https://nas.example/a", "/b", "two paths"),
        ("https://nas.example/api", None, "an address of imret serve itself"),
        (None, "/static/photos", "an address of imret serve itself"),
        (None, "/a b", "letters, digits"),
        (None, "/a/../b", "letters, digits"),
        (None, "/a//b", "letters, digits"),
        (None, "/bücher", "letters, digits"),
        (None, "https://nas.example/photos", "letters, digits"),
    ],
)
def test_a_public_address_that_cannot_be_is_refused(
    public_url: str | None, root_path: str | None, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        parse_public_address(public_url, root_path)


# The token


@pytest.mark.parametrize(
    "target", ["/api/v1/search?q=red", "/api", "/metrics", "/openapi.json", "/static/app.js"]
)
def test_without_the_token_all_but_the_page_is_unauthorized(guarded: Server, app: App, target: str) -> None:
    before = len(app.seen)
    wrong = [
        [],
        ["Authorization: Bearer"],
        [f"Authorization: Bearer {TOKEN}x"],
        [f"Authorization: Bearer {TOKEN[:-1]}"],
        [f"Authorization: Basic {TOKEN}"],
        [f"Authorization: {TOKEN}"],
        ["Authorization: Bearer \xff\xfe"],
        ["Cookie: " + _session_name() + "=" + TOKEN],
        ["Cookie: " + _session_name() + "="],
    ]
    for headers in wrong:
        answer = guarded.get(target, *headers)
        assert answer.status == 401
        assert "Authorization: Bearer TOKEN" in answer.problem["detail"]
        assert answer["www-authenticate"] == 'Bearer realm="imret"'
        assert TOKEN not in answer.body.decode()
    assert len(app.seen) == before


def _session_name() -> str:
    return _secured(App(), token=TOKEN).tokens.cookie.decode()


@pytest.mark.parametrize(
    "header", [BEARER, f"authorization: bearer {TOKEN}", f"AUTHORIZATION: BEARER   {TOKEN} "]
)
def test_the_token_in_the_header_passes(guarded: Server, header: str) -> None:
    assert guarded.get("/api/echo", header).status == 200
    assert guarded.get("/", header).status == 200


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/static/style.css"])
def test_probes_and_the_login_need_no_token(guarded: Server, target: str) -> None:
    assert guarded.get(target).status == 200
    assert guarded.get("/login").status == 200
    assert guarded.get(target + "/more").status == 401


def test_the_page_without_the_token_leads_to_the_login_and_back(guarded: Server) -> None:
    answer = guarded.get("/?q=red%20fox&not=a%2Fb")
    assert answer.status == 303
    assert answer["location"] == "./login?next=.%2F%3Fq%3Dred%2520fox%26not%3Da%252Fb"
    login = urljoin("/", answer["location"])
    page = guarded.get(login)
    assert page.status == 200
    assert page["content-type"] == "text/html; charset=utf-8"
    assert '<form method="post">' in page.body.decode()  # to the same address, so that next stays
    entered = guarded.post(login, f"token={TOKEN}".encode(), FORM)
    assert entered.status == 303
    assert entered["location"] == "./?q=red%20fox&not=a%2Fb"
    cookie = entered["set-cookie"].partition(";")[0]
    assert guarded.get(urljoin(login, entered["location"]), f"Cookie: {cookie}").status == 200
    assert guarded.get("/login?next=%2F%3Fq%3Dx", f"Cookie: {cookie}")["location"] == "/?q=x"
    long = guarded.get("/?q=" + "%20" * 5000)
    assert long["location"] == "./login?next=./"
    assert guarded.get("/", method="POST").status == 401


def test_the_session_cookie_is_out_of_reach_of_scripts_and_sites(guarded: Server) -> None:
    cookie = guarded.post("/login", f"token={TOKEN}".encode(), FORM)["set-cookie"]
    pair, *flags = cookie.split("; ")
    assert sorted(flags) == ["HttpOnly", "Max-Age=2592000", "SameSite=Strict"]
    assert TOKEN not in cookie
    name, value = pair.split("=")
    assert re.fullmatch("imret_[0-9a-f]{8}", name)
    assert re.fullmatch("[0-9a-f]{64}", value)
    others = f"Cookie: theme=dark; {name}={value}; {name}x=1"
    assert guarded.get("/api/echo", others).status == 200
    changed = value[:-1] + ("0" if value[-1] != "0" else "1")
    assert guarded.get("/api/echo", f"Cookie: {name}={changed}").status == 401


def test_the_session_cookie_is_secure_where_the_browser_came_by_https(guarded: Server) -> None:
    body = f"token={TOKEN}".encode()
    assert "; Secure" in guarded.post("/login", body, FORM, "Origin: https://localhost")["set-cookie"]
    assert "Secure" not in guarded.post("/login", body, FORM, "Origin: http://localhost")["set-cookie"]
    assert "Secure" not in guarded.post("/login", body, FORM, "X-Forwarded-Proto: https")["set-cookie"]


def test_a_session_outlives_a_restart_and_ends_with_its_token(guarded: Server) -> None:
    pair = guarded.post("/login", f"token={TOKEN}".encode(), FORM)["set-cookie"].partition(";")[0]
    with serving(_secured(App(), token=TOKEN)) as again:
        assert again.get("/api/echo", f"Cookie: {pair}").status == 200
    value = pair.partition("=")[2]
    other = _secured(App(), token=TOKEN + "!")
    assert other.tokens.cookie.decode() != pair.partition("=")[0]
    with serving(other) as changed:
        assert changed.get("/api/echo", f"Cookie: {other.tokens.cookie.decode()}={value}").status == 401


def test_a_wrong_token_is_told_on_the_page_and_holds_up_nobody(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "GUESS_DELAY_S", 0.05)
    for body in (b"token=wrong", b"token=", b"", b"token=%ff%00&token=x", b"other=1"):
        answer = guarded.post("/login", body, FORM)
        assert answer.status == 401
        assert "That is not the token of this server" in answer.body.decode()
        assert answer["www-authenticate"] == 'Bearer realm="imret"'
        assert "set-cookie" not in answer
    monkeypatch.setattr(tokens, "GUESS_DELAY_S", 3.0)
    with guarded.line() as waiting:
        waiting.send(request("/login", FORM, "Content-Length: 7", method="POST") + b"token=x")
        assert guarded.get("/healthz").status == 200
        assert not select.select([waiting.socket], [], [], 0.1)[0]


def _guesses(guarded: Server) -> dict[str, tuple[str, ...]]:
    """Return the headers that show a wrong token, by what they are."""
    name = guarded.post("/login", f"token={TOKEN}".encode(), FORM)["set-cookie"].partition("=")[0]
    return {
        "a bearer": (f"Authorization: Bearer {TOKEN[:-1]}",),
        "an empty bearer": ("Authorization: Bearer",),
        "a session": (f"Cookie: {name}={'0' * 64}",),
        "one of two sessions": (f"Cookie: {name}=; {name}={'1' * 64}",),
        "both": (f"Authorization: bearer {TOKEN}x", f"Cookie: {name}=x"),
    }


@pytest.mark.parametrize("target", ["/", "/api/echo", "/metrics", "/no/such/place"])
def test_a_guess_costs_the_same_however_it_is_made_and_honest_clients_wait_for_nothing(
    guarded: Server, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    right = guarded.post("/login", f"token={TOKEN}".encode(), FORM)["set-cookie"].partition(";")[0]
    guesses = _guesses(guarded)
    monkeypatch.setattr(tokens, "GUESS_DELAY_S", 30.0)
    with contextlib.ExitStack() as opened:
        waiting = []
        for headers in guesses.values():
            waiting.append(opened.enter_context(guarded.line()))
            waiting[-1].send(request(target, *headers))
        assert not select.select([line.socket for line in waiting], [], [], 0.3)[0]
        for honest in ((BEARER,), (f"Cookie: {right}",), (f"Cookie: {right}", "Authorization: Bearer x"), ()):
            assert guarded.get(target, *honest).status in ((200,) if honest else (303, 401))
        assert not select.select([line.socket for line in waiting], [], [], 0)[0]


def test_whoever_has_no_token_learns_nothing_of_the_server(guarded: Server) -> None:
    answers = {
        "no token": guarded.get("/api/v1/collections"),
        "another host": guarded.get("/healthz", host="evil.example"),
        "another site": guarded.get("/healthz", "Origin: http://evil.example"),
        "a wrong path": guarded.get("/static/style.css/.."),
        "a wrong method": guarded.get("/login", method="DELETE"),
        "a probe": guarded.get("/healthz"),
        "the login": guarded.get("/login"),
    }
    for what, answer in answers.items():
        text = answer.body + b"".join(value.encode() for _, value in answer.headers)
        for inside in (str(guarded.port).encode(), b"photos", b"uvicorn", b"8750", __version__.encode()):
            assert inside not in text, (what, inside)


def test_a_login_that_is_no_small_form_is_refused(guarded: Server) -> None:
    assert guarded.post("/login", b'{"token": "x"}', "Content-Type: application/json").status == 415
    assert guarded.post("/login", b"token=" + b"x" * 5000, FORM).status == 413
    assert guarded.post("/login", b"&".join([b"a=1"] * 50), FORM).status == 400
    assert guarded.post("/login", "token=é".encode(), FORM).status == 400
    answer = guarded.get("/login", method="DELETE")
    assert answer.status == 405
    assert answer["allow"] == "GET, HEAD, POST"
    assert (
        guarded.post("/login", f"token={TOKEN}".encode(), FORM, "Origin: http://evil.example").status == 403
    )


@pytest.mark.parametrize(
    ("after", "lands"),
    [
        ("/?q=fox", "/?q=fox"),
        ("/", "/"),
        ("./?q=fox", "./?q=fox"),
        ("/photos/?q=fox", "/photos/?q=fox"),
        (".//evil.example", "./"),
        ("../evil", "./"),
        ("./\\evil.example", "./"),
        ("//evil.example", "./"),
        ("/\\evil.example", "./"),
        ("/\t/evil.example", "./"),
        ("/x\r\nSet-Cookie: a=b", "./"),
        ("https://evil.example/", "./"),
        ("javascript:alert(1)", "./"),
        ("evil", "./"),
        ("", "./"),
        ("/é", "./"),
    ],
)
def test_login_leads_on_only_to_addresses_of_this_server(guarded: Server, after: str, lands: str) -> None:
    answer = guarded.post("/login?next=" + quote(after, safe=""), f"token={TOKEN}".encode(), FORM)
    assert answer.status == 303
    assert answer["location"] == lands
    assert "set-cookie" in answer


def test_a_link_from_elsewhere_asks_again_from_here_where_the_cookie_comes_along(guarded: Server) -> None:
    cross = ["Sec-Fetch-Site: cross-site", *NAVIGATION]
    answer = guarded.get('/?q="><b>fox&x=1;y', *cross)
    assert answer.status == 200
    refresh = '<meta http-equiv="refresh" content="0; url=./?q=&quot;&gt;&lt;b&gt;fox&amp;x=1;y">'
    assert refresh in answer.body.decode()
    assert "<b>" not in answer.body.decode()
    here = ["Sec-Fetch-Site: same-origin", *NAVIGATION]
    assert guarded.get("/?q=fox", *here)["location"] == "./login?next=.%2F%3Fq%3Dfox"
    assert guarded.get("/login?next=%2F", *cross).status == 200


def test_logout_takes_the_cookie_back(guarded: Server) -> None:
    answer = guarded.post("/logout", b"")
    assert answer.status == 303
    assert answer["location"] == "./login"
    assert answer["set-cookie"] == f"{_session_name()}=; Max-Age=0; HttpOnly; SameSite=Strict"
    assert guarded.get("/logout").status == 405
    assert guarded.post("/logout", b"", "Origin: http://evil.example").status == 403


def test_without_a_token_there_is_nothing_to_log_in_to(local: Server) -> None:
    assert local.get("/login?next=%2F%3Fq%3Dx")["location"] == "/?q=x"
    answer = local.post("/logout", b"")
    assert answer["location"] == "./"
    assert "set-cookie" not in answer


def test_tokens_and_cookies_are_compared_in_constant_time(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    genuine = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return genuine(a, b)

    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    guarded.get("/api/echo", "Authorization: Bearer short")
    assert compared == [(32, 32)]  # digests: the length of what was given does not show
    guarded.get("/api/echo", f"Cookie: {_session_name()}=short")
    assert compared[1:] == [(5, 64)]
    guarded.post("/login", f"token={TOKEN}".encode(), FORM)
    assert compared[2:] == [(32, 32)]


def test_a_token_that_is_short_or_cannot_be_sent_is_refused_without_being_printed() -> None:
    for token, message in [
        ("fifteen-letters", "has 15 characters, and needs at least 16"),
        ("", "has 0 characters"),
        ("correct horse battery", "no blanks"),
        ("correct-hörse-battery", "of ASCII only"),
        ("correct-horse-battery\n", "no blanks"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            _secured(App(), token=token)
        assert not token or token not in str(caught.value)
        with pytest.raises(DataError, match=message):
            check_binding("127.0.0.1", token)
    _secured(App(), token="sixteen-letters!")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "photos.example", "", "128.0.0.1"])
def test_another_address_than_loopback_needs_a_token_and_the_message_says_how(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(DataError) as caught:
        check_binding(host, None, port=9000)
    assert repr(host) in str(caught.value)
    assert "IMRET_TOKEN" in str(caught.value)
    assert "python -c" in str(caught.value)
    assert "ssh -L 9000:localhost:9000" in str(caught.value)
    with pytest.raises(DataError):
        _secured(App(), host=host)
    check_binding(host, TOKEN)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1", "[::1]", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    check_binding(host, None)


# Headers


EXPECTED = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; manifest-src 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def test_every_response_has_the_security_headers_once_and_none_names_the_server(
    local: Server, guarded: Server, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {
        200: local.get("/api/echo"),
        303: guarded.get("/"),
        400: local.get("/api/../x"),
        401: guarded.get("/api/echo"),
        403: local.get("/api/echo", "Origin: null"),
        404: local.get("/no"),
        413: local.post("/api/echo", b"x" * (MAX_BODY + 1)),
        421: local.get("/api/echo", host="evil.example"),
        431: local.get("/api/echo", *["A: b"] * 200),
        500: local.get("/api/crash"),
    }
    answers |= {
        1000: guarded.get("/login"),
        1001: local.get("/api/echo", "Connection: Upgrade", "Upgrade: h2c"),
    }
    for status, answer in answers.items():
        assert answer.status == status or (status >= 1000 and answer.status == 200)
        for name, value in EXPECTED.items():
            assert answer[name] == value
        assert "server" not in answer
    until(lambda: "secret of the app" in caplog.text)


def test_the_apps_own_policy_is_kept_beside_ours() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-security-policy", b"sandbox")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    with serving(_secured(app)) as server:
        policies = [value for name, value in server.get("/").headers if name == "content-security-policy"]
        assert policies == ["sandbox", EXPECTED["content-security-policy"]]


def test_answers_are_not_stored_unless_the_app_says_so(local: Server, guarded: Server) -> None:
    assert local.get("/api/echo")["cache-control"] == "no-store"
    assert local.get("/metrics")["cache-control"] == "no-store"
    assert local.get("/api/cached")["cache-control"] == "max-age=60"
    assert local.get("/")["cache-control"] == "no-cache"
    assert "cache-control" not in local.get("/static/style.css")
    assert guarded.get("/login")["cache-control"] == "no-store"


def test_a_failure_of_the_app_is_told_without_its_message(
    local: Server, caplog: pytest.LogCaptureFixture
) -> None:
    answer = local.get("/api/crash")
    assert answer.status == 500
    assert answer.problem["title"] == "Internal Server Error"
    assert "secret" not in answer.body.decode()
    until(lambda: "secret of the app" in caplog.text)


# Bodies


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "LINGER_S", 0.3)


def test_a_body_within_the_limit_reaches_the_app(local: Server) -> None:
    answer = local.post("/api/echo", b"x" * MAX_BODY)
    assert (answer.status, json.loads(answer.body)["size"]) == (200, MAX_BODY)
    assert not answer.closes
    chunks = b"".join(b"%x\r\n%s\r\n" % (1000, b"y" * 1000) for _ in range(MAX_BODY // 1000)) + b"0\r\n\r\n"
    answer = local.ask(request("/api/echo", "Transfer-Encoding: chunked", method="POST") + chunks)
    assert (answer.status, json.loads(answer.body)["size"]) == (200, MAX_BODY)
    answer = local.ask(request("/api/echo", "Content-Length: 3") + b"get")
    assert (answer.status, json.loads(answer.body)["size"]) == (200, 3)


@pytest.mark.usefixtures("short_linger")
def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(local: Server, app: App) -> None:
    before = len(app.seen)
    for method in ("POST", "GET"):
        with local.line() as line:
            line.send(
                request("/api/echo", f"Content-Length: {MAX_BODY + 1}", "Expect: 100-continue", method=method)
            )
            answer = line.read(method)
            assert answer.status == 413
            assert f"{MAX_BODY + 1} bytes, where at most {MAX_BODY} bytes" in answer.problem["detail"]
            assert answer.closes
            assert line.is_closed()
    assert len(app.seen) == before


def test_a_client_that_sends_all_before_it_reads_still_learns_why(local: Server) -> None:
    # Far more than the kernel's buffers hold: closing at once would reset the connection under it.
    size = 30_000_000
    with local.line() as line:
        line.send(request("/api/echo", f"Content-Length: {size}", method="POST"))
        for _ in range(30):
            line.send(b"x" * 1_000_000)
        assert line.read("POST").status == 413
        assert line.is_closed()


@pytest.mark.usefixtures("short_linger")
def test_a_chunked_body_is_cut_at_the_limit_and_the_app_sees_the_client_leave(
    local: Server, app: App
) -> None:
    chunk = b"2710\r\n" + b"z" * 10_000 + b"\r\n"
    for path in ("/api/echo", "/api/startled"):
        with local.line() as line:
            line.send(request(path, "Transfer-Encoding: chunked", method="POST") + chunk * 11)
            answer = line.read("POST")
            assert answer.status == 413
            assert answer.problem["detail"] == (
                f"the body is too large: more, where at most {MAX_BODY} bytes are taken"
            )
            assert line.is_closed()
        assert app.seen[-1] == f"{path} disconnect"


@pytest.mark.usefixtures("short_linger")
def test_a_body_that_dribbles_is_refused_and_the_connection_closed(local: Server, app: App) -> None:
    with local.line() as line:
        line.send(request("/api/echo", "Content-Length: 1000", method="POST"))
        while not select.select([line.socket], [], [], 0.05)[0]:
            line.send(b"x")
        answer = line.read("POST")
        assert answer.status == 408
        assert answer.problem["detail"] == "the body did not arrive within 0.4 seconds"
        assert answer.closes
        assert line.is_closed()
    assert app.seen[-1] == "/api/echo disconnect"


@pytest.mark.usefixtures("short_linger")
def test_an_answer_before_the_end_of_the_body_closes_the_connection(local: Server) -> None:
    with local.line() as line:
        line.send(request("/api/quick", "Content-Length: 1000", method="POST"))
        assert line.read("POST").closes
        assert line.is_closed()


def test_a_client_that_leaves_within_its_body_is_a_disconnect_for_the_app(local: Server, app: App) -> None:
    before = len(app.seen)
    with local.line() as line:
        line.send(request("/api/echo", "Content-Length: 1000", method="POST") + b"x")
    until(lambda: app.seen[before:] == ["/api/echo disconnect"])


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: -3"],
        ["Content-Length: 3x"],
        ["Content-Length: 99999999999999999999999"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: gzip, chunked"],
    ],
)
def test_a_body_whose_length_is_in_doubt_is_refused(local: Server, headers: list[str]) -> None:
    assert local.ask(request("/api/echo", *headers, method="POST") + b"abc").status == 400


def test_requests_follow_each_other_on_a_connection(local: Server) -> None:
    with local.line() as line:
        for size in (0, 3, 5):
            line.send(request("/api/echo", f"Content-Length: {size}", method="POST") + b"x" * size)
            assert json.loads(line.read("POST").body)["size"] == size


# Addresses and headers


def test_long_addresses_and_heads_are_refused(local: Server) -> None:
    assert local.get("/api/echo?q=" + "a" * (16 * 1024 - 2)).status == 200
    answer = local.get("/api/echo?q=" + "a" * (16 * 1024 - 1))
    assert answer.status == 414
    assert "POST /api/v1/search" in answer.problem["detail"]
    assert local.get("/" + "a" * 5000).status == 414
    assert local.get("/api/echo", *[f"H{i}: x" for i in range(99)]).status == 200
    assert local.get("/api/echo", *[f"H{i}: x" for i in range(100)]).status == 431
    assert local.get("/api/echo", "H: " + "x" * 32_000).status == 200
    assert local.get("/api/echo", "H: " + "x" * 33_000).status == 431


@pytest.mark.parametrize(
    "target",
    [
        "/api/..%2f..%2fetc/passwd",
        "/api/%2e%2e/x",
        "/api/../x",
        "/..",
        "/api/.",
        "/./x",
        "/api/%2Fx",
        "/api/a\\b",
        "/api/a%5cb",
        "/api/%00",
        "/api/a%0d%0aSet-Cookie:x",
        "/api/%ff",
        "/api/%c0%ae%c0%ae",
        "/api/%7f",
        "//x",
        "/api//x",
        "/%e2%80%ae",
        "*",
        "api/echo",
        "/api/%ed%a0%80",
    ],
)
def test_addresses_that_could_be_read_in_two_ways_are_refused(
    local: Server, app: App, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(app.seen)
    answer = local.get(target)
    assert answer.status == 400
    assert answer.problem["detail"]
    assert len(app.seen) == before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_address_that_is_not_ascii_is_refused(local: Server, app: App) -> None:
    before = len(app.seen)
    assert local.get("/api/ÿ").status == local.get("/?q=ÿ").status == 400
    assert len(app.seen) == before


@pytest.mark.parametrize(
    "target", ["/api/%C3%A9t%C3%A9", "/api/a%20b", "/api/...", "/api/%25", "/api/%zz", "/api/"]
)
def test_other_addresses_reach_the_app(local: Server, target: str) -> None:
    assert local.get(target).status == 200
    assert local.get(target + "?q=%ff%00&q=../..//%2f").status == 200


# Other scopes


def _call(secured: SecurityMiddleware, scope: dict[str, Any], incoming: list[dict[str, Any]]) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(secured(scope, receive, send))
    return sent


def test_websockets_are_refused_and_lifespan_passes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await send({"type": f"{(await receive())['type']}.complete"})

    secured = _secured(app)
    assert _call(secured, {"type": "lifespan"}, [{"type": "lifespan.startup"}]) == [
        {"type": "lifespan.startup.complete"}
    ]
    scope = {"type": "websocket", "path": "/api/echo", "headers": [(b"host", b"localhost")]}
    assert _call(secured, scope, [{"type": "websocket.connect"}]) == [
        {"type": "websocket.close", "code": 1008}
    ]


def test_a_websocket_request_is_answered_as_any_other(local: Server) -> None:
    headers = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: x",
        "Sec-WebSocket-Version: 13",
    ]
    with local.line() as line:
        line.send(request("/api/echo", *headers) + request("/api/echo"))
        assert line.read().status == line.read().status == 200


def test_a_response_that_has_begun_is_cut_when_its_request_turns_out_too_large(app: App) -> None:
    async def eager(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"never"})

    incoming = [{"type": "http.request", "body": b"x" * MAX_BODY, "more_body": True}] * 2
    headers = [(b"host", b"localhost"), (b"transfer-encoding", b"chunked")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/echo",
        "raw_path": b"/api/echo",
        "headers": headers,
    }
    sent = _call(_secured(eager), scope, incoming)
    assert [message.get("body") for message in sent] == [None, b"begun"]
    assert (b"connection", b"close") in sent[0]["headers"]
