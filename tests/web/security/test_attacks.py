"""Attacks on the whole of `imret serve` as it runs: nothing leaks, nothing hangs, stderr stays quiet."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("uvicorn", reason="needs the extra web")

from PIL import Image

from imret import Encoder
from imret.store import open_store
from ingest import pipeline
from ingest.sources import FolderSource
from tests.cli.test_serve import Process, serving
from tests.fakes.pictures import draw_picture
from tests.fakes.web_server import Answer, Line, request, until

TOKEN = "correct-horse-battery-staple"
SHOWN = f"Authorization: Bearer {TOKEN}"
JSON = "Content-Type: application/json"
SCRIPT = "<script>alert(1)<>"
SECRET = "passwords.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(6):
        draw_picture(folder / "aves" / f"{seed}.png", seed=seed)
    draw_picture(folder / SCRIPT / f"{SCRIPT}.png", seed=50)
    (folder / "aves" / "page.png").write_bytes((folder / "aves" / "0.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, photos: Path, random_model: Path) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("IMRET_HOME", str(folder / "home"))
        environment.setenv("IMRET_TOKEN", TOKEN)
        with open_store(str(folder / "db")) as store:
            encoder = Encoder(str(random_model), device="cpu", precision="fp32")
            pipeline.ingest(store, [FolderSource(photos)], encoder=encoder)
        # After the ingest: a picture becomes a link to another one, and one becomes a page.
        draw_picture(folder / SECRET, seed=99)
        (photos / "aves" / "1.png").unlink()
        (photos / "aves" / "1.png").symlink_to(folder / SECRET)
        (photos / "aves" / "page.png").write_text("<script>alert(1)</script>")
        with serving("--db", folder / "db", "--preload", "--max-upload", "2") as process:
            yield process


@pytest.fixture(autouse=True)
def _server_stays_well(server: Process) -> Iterator[None]:
    """Whatever a test does: the server says nothing, and has no more open afterwards than before."""
    _ask(server, "/api/v1/search?q=warm")
    before = len(server.said)
    files = _n_files(server)
    yield
    assert _ask(server, "/api/v1/search?q=alive").status == 200
    assert server.said[before:] == []
    until(lambda: _n_files(server) <= files)


def _n_files(server: Process) -> int:
    if not os.path.isdir("/proc"):
        return 0
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def _ask(
    server: Process, target: str, *headers: str, body: bytes | None = None, host: str | None = "localhost"
) -> Answer:
    method = "GET" if body is None else "POST"
    length = () if body is None else (f"Content-Length: {len(body)}",)
    with Line(server.port) as line:
        line.send(request(target, SHOWN, *headers, *length, host=host, method=method) + (body or b""))
        return line.read(method)


def _form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, str]:
    out = bytearray()
    for name, file, data in parts:
        file_name = "" if file is None else f'; filename="{file}"'
        out += f'--limit\r\nContent-Disposition: form-data; name="{name}"{file_name}\r\n\r\n'.encode()
        out += data + b"\r\n"
    return bytes(out + b"--limit--\r\n"), "Content-Type: multipart/form-data; boundary=limit"


def _png(mode: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, "PNG")
    return file.getvalue()


def _pictures(server: Process) -> dict[str, dict[str, Any]]:
    listed = json.loads(_ask(server, "/api/v1/images").body)["pictures"]
    return {picture["payload"]["path"]: picture for picture in listed}


# ---- Who asks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/", "/metrics", "/api/v1/search?q=x", "/api/v1/openapi.json", "/static/main.js", "/nowhere"]
)
@pytest.mark.parametrize("shown", [(), ("Authorization: Bearer wrong-horse-battery-staple",)])
def test_without_the_token_there_is_nothing_to_see(
    server: Process, target: str, shown: tuple[str, ...]
) -> None:
    with Line(server.port) as line:
        line.send(request(target, *shown))
        answer = line.read()
    assert answer.status == (303 if target == "/" else 401)
    assert b"aves" not in answer.body


@pytest.mark.parametrize(
    ("headers", "host", "status"),
    [
        ([], "evil.example", 421),
        ([], "localhost.evil.example", 421),
        ([], None, 400),
        (["Origin: https://evil.example"], "localhost", 403),
        (["Origin: null"], "localhost", 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], "localhost", 403),
    ],
)
@pytest.mark.parametrize("target", ["/api/v1/search?q=x", "/api/v1/collections", "/metrics"])
def test_pages_of_other_sites_get_nothing_even_with_the_token(
    server: Process, target: str, headers: list[str], host: str | None, status: int
) -> None:
    assert _ask(server, target, *headers, host=host).status == status


# ---- What may be seen ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "..%5c..%5cpasswd",
        "/etc/passwd",
        "%00",
        "00000000-0000-0000-0000-000000000000",
        "%3Cscript%3E",
    ],
)
@pytest.mark.parametrize(
    "route", ["images/{}", "images/{}/payload", "thumbnails/{}", "uploads/{}", "similar/{}"]
)
def test_ids_lead_to_no_other_file(server: Process, route: str, one: str) -> None:
    answer = _ask(server, "/api/v1/" + route.format(one))
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body


@pytest.mark.parametrize("target", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"])
def test_the_page_has_no_other_files(server: Process, target: str) -> None:
    assert _ask(server, target).status == 400


@pytest.mark.parametrize("route", ["images", "thumbnails"])
def test_a_picture_that_became_a_link_or_a_page_is_not_given_out(
    server: Process, photos: Path, route: str
) -> None:
    pictures = _pictures(server)
    linked = _ask(server, f"/api/v1/{route}/{pictures['aves/1.png']['id']}")
    assert (linked.status, linked.problem["detail"]) == (
        422,
        "aves/1.png: it leads out of the folder that was ingested",
    )
    page = _ask(server, f"/api/v1/{route}/{pictures['aves/page.png']['id']}")
    assert page.status == 422
    assert b"<script" not in page.body
    for answer in (linked, page):
        assert str(photos).encode() not in answer.body
        assert SECRET.encode() not in answer.body


@pytest.mark.parametrize(
    "term",
    ["/etc/passwd", "image:/etc/passwd", "file:///etc/passwd", "~/x.png", "./x.png", "stored:/etc/passwd"]
    + [f"http://{host}/" for host in ("127.0.0.1:1", "[::1]", "169.254.169.254", "0x7f.1", "localhost")],
)
def test_terms_read_no_files_and_reach_no_machine_of_the_network(server: Process, term: str) -> None:
    answer = _ask(server, "/api/v1/search?q=" + quote(term))
    assert answer.status in (400, 422)
    assert b"root:" not in answer.body


def test_scripts_in_names_categories_and_queries_are_data(server: Process) -> None:
    script = quote(SCRIPT)
    answers = [
        _ask(server, f"/api/v1/search?q={script}&category={script}"),
        _ask(server, "/api/v1/categories"),
        _ask(server, f"/api/v1/search?q=x&category={script}{script}"),
        _ask(server, f"/api/v1/images?where={script}"),
        _ask(server, f"/{script}"),
        _ask(server, f"/api/v1/search?{script}=1"),
    ]
    assert json.loads(answers[0].body)["hits"][0]["category"] == SCRIPT
    for answer in answers:
        assert answer["content-type"] in ("application/json", "application/problem+json")
        assert answer["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer["content-security-policy"]
    id = _pictures(server)[f"{SCRIPT}/{SCRIPT}.png"]["id"]
    assert _ask(server, f"/api/v1/images/{id}")["content-type"] == "image/png"


# ---- What is sent -------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_size_in_pixels(server: Process) -> None:
    body, kind = _form(("picture", f"/tmp/{SCRIPT}.png", _png("1", (20_000, 20_000))))
    answer = _ask(server, "/api/v1/search", kind, body=body)
    assert answer.status == 422
    assert "20000 x 20000 pixels" in answer.problem["detail"]
    assert "/tmp" not in answer.problem["detail"]


def test_too_large_a_request_is_refused_before_and_while_it_comes(server: Process) -> None:
    with Line(server.port) as line:
        line.send(request("/api/v1/search", SHOWN, JSON, "Content-Length: 2000001", method="POST"))
        assert line.read().status == 413
    with Line(server.port) as line:
        line.send(request("/api/v1/search", SHOWN, JSON, "Transfer-Encoding: chunked", method="POST"))
        line.send(b"200000\r\n" + b" " * 0x200000 + b"\r\n")
        assert line.read().status == 413


def test_all_that_is_sent_at_a_time_is_bounded(server: Process) -> None:
    """Sixteen times the largest request, none of which ends: half of them fit."""
    head, kind = _form(("picture", "a.png", b"x" * 1_990_000))

    def half_of_them_fit() -> bool:
        lines = [Line(server.port) for _ in range(16)]
        try:
            for line in lines:
                # One byte is missing, so all of it waits.
                length = f"Content-Length: {len(head) + 1}"
                line.send(request("/api/v1/search", SHOWN, kind, length, method="POST") + head)
            with Line(server.port) as small:
                small.send(request("/api/v1/search?q=owl", SHOWN))
                assert small.read().status == 200
            refused = []
            for line in lines:
                line.socket.settimeout(0.2)
                with suppress(TimeoutError):
                    refused.append(line.read())
        finally:
            for line in lines:
                line.__exit__()
        assert len(refused) >= 7
        assert {answer.status for answer in refused} == {503}
        assert {answer["retry-after"] for answer in refused} == {"2"}
        return len(refused) <= 9

    # What clients that have left held is free a moment later, also that of the tests before.
    until(half_of_them_fit)
    body, kind_of_body = _form(("picture", "a.png", _png("RGB", (32, 32)) + b"\0" * 1_900_000))
    until(lambda: _ask(server, "/api/v1/search", kind_of_body, body=body).status == 200)


@pytest.mark.parametrize("kind", [JSON, "Content-Type: multipart/form-data; boundary=limit"])
@pytest.mark.parametrize("with_reset", [False, True])
def test_clients_that_leave_within_what_they_send_are_no_fault_of_ours(
    server: Process, kind: str, with_reset: bool
) -> None:
    for route in ("search", "classify"):
        with Line(server.port) as line:
            line.send(request(f"/api/v1/{route}", SHOWN, kind, "Content-Length: 1000", method="POST"))
            line.send(b"--limit\r\nContent-Disp")
            if with_reset:
                line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_clients_that_leave_within_an_answer_are_no_fault_of_ours(server: Process) -> None:
    id = _pictures(server)["aves/0.png"]["id"]
    for target in (
        f"/api/v1/images/{id}",
        "/api/v1/search?q=leaving&limit=500",
        f"/api/v1/thumbnails/{id}",
    ):
        with Line(server.port) as line:
            line.send(request(target, SHOWN))
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_queries_that_would_hold_up_everybody_are_refused_in_few_words(server: Process) -> None:
    many = ",".join(f'"{i}":1' for i in range(150_000)).encode()
    picture = ("picture", "a.png", _png("RGB", (32, 32)))
    labels = [("label", None, f"{i}".encode() + b" owl" * 2_000) for i in range(20)]
    sent = [
        ("", JSON, b"{" + many + b"}", "at most 100"),
        ("", JSON, b'{"terms":[{' + many + b"}]}", "at most 100"),
        ("", JSON, b'{"category":[' + b"1," * 900_000 + b"1]}", "category: List should have at most 200"),
        ("", JSON, b"[" * 500_000, "not JSON"),
        ("", JSON, b'{"' + b"x" * 1_000_000 + b'":1}', "Extra inputs"),
        ("classify", *reversed(_form(picture, *labels)), "a label has at most 2,000 characters"),
        ("", *reversed(_form(*[("x", None, b"")] * 5_000)), "Too many fields"),
        ("", *reversed(_form(*[("picture", "x", b"")] * 33)), "Too many files"),
        ("", "Content-Type: multipart/form-data; boundary=limit", b"x" * 1_000, "Invalid multipart data"),
    ]
    for route, kind, body, says in sent:
        answer = _ask(server, f"/api/v1/{route if route == 'classify' else 'search'}", kind, body=body)
        assert answer.status == 400
        assert says in answer.problem["detail"]
        assert len(answer.body) < 2_000
    answer = _ask(server, "/api/v1/search?" + "&".join(f"x{i}" for i in range(2_000)))
    assert answer.status == 422
    assert answer.problem["detail"].endswith("(And 1,990 more.)")


def test_a_query_that_the_model_cuts_is_not_written_down(server: Process) -> None:
    assert _ask(server, "/api/v1/search?q=" + "an+owl+in+a+tree+" * 50).status == 200  # see the fixture above


def test_groups_give_no_more_hits_than_pages_do(server: Process) -> None:
    answer = _ask(server, "/api/v1/search?q=x&group_by=category&limit=500&per_group=100")
    assert (answer.status, "at most 10,000 hits, not 50,000" in answer.problem["detail"]) == (400, True)
    assert _ask(server, "/api/v1/search?q=x&group_by=category&limit=500&per_group=20").status == 200


# ---- How many -----------------------------------------------------------------------------------


def test_many_open_connections_hold_up_nobody(server: Process) -> None:
    lines = [Line(server.port) for _ in range(300)]
    try:
        for i, line in enumerate(lines):
            line.send(request("/api/v1/search", SHOWN, "Content-Length: 9", method="POST")[: 20 + i % 200])
        assert _ask(server, "/api/v1/search?q=beside+many").status == 200
    finally:
        for line in lines:
            line.__exit__()


def test_what_is_counted_does_not_grow_with_what_is_asked(server: Process) -> None:
    _ask(server, "/metrics")
    before = len(_ask(server, "/metrics").body.splitlines())
    for i in range(50):
        _ask(server, f"/api/v1/search?q=x{i}")
        _ask(server, f"/nowhere/{i}")
        _ask(server, f"/static/{i}")
    after = _ask(server, "/metrics").body
    assert len(after.splitlines()) <= before + 40  # routes and statuses that were not met before
    assert b"x49" not in after
