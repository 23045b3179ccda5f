"""A search through a running server: the same hits, the same messages, in a process that loads nothing."""

from __future__ import annotations

import contextlib
import email
import email.policy
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from imret import Encoder, errors
from imret.cli.main import cli
from imret.client import search
from imret.client.discovery import RunningServer, find_server, register
from imret.client.search import FallbackToLocal
from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError, ImageError, ImretError, StoreUnavailable
from imret.retrieval import limits
from imret.retrieval.concepts import Concept, Concepts
from imret.retrieval.query import Query, Term
from imret.retrieval.query_vector import query_vector
from imret.retrieval.results import Hit, SearchWarning, sort_hits
from imret.retrieval.search_options import SearchOptions
from imret.store import Store, open_store
from imret.store.payload import file_of
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import share_known_models
from tests.fakes.pictures import draw_picture

CATEGORIES = ("fungi", "aves", "insecta")
TOKEN = "of-sixteen-characters-or-more"
UNDECODABLE = os.fsdecode(b'caf\xe9 "1".png')


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Path:
    """A folder with `photos`, the store `db` that holds them, and `twin`, its copy without a server."""
    folder = tmp_path_factory.mktemp("remote")
    photos = folder / "photos"
    for seed in range(36):
        draw_picture(photos / CATEGORIES[seed % 3] / f"{seed:02}.png", seed=seed)
    shutil.copy(photos / "aves" / "01.png", photos / "aves" / "copy.png")
    draw_picture(photos / "aves" / "other.png", seed=77).rename(photos / "aves" / UNDECODABLE)
    for i, file in enumerate(sorted(photos.rglob("*.png"))):
        os.utime(file, (1_700_000_000 + i * 7919 % 1000, 1_700_000_000 + i * 7919 % 1000))
    encoder = Encoder(random_model, device="cpu", precision="fp32")
    with open_store(str(folder / "db")) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        text = query_vector(encoder, "toadstool")
        learnt = Concept("toadstool", ("toadstool",), 0.3 * text[::-1], text, 0.0, 0.5, 43)
        content = Concepts.of(encoder, [learnt]).to_bytes()
        store.change_document(DEFAULT_COLLECTION, "concepts", lambda _: content)
    shutil.copytree(folder / "db", folder / "twin")
    draw_picture(folder / "asked.png", seed=100)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def imret(store: Path, *arguments: str) -> Result:
    command, *others = arguments
    return CliRunner().invoke(cli, [command, "--db", str(store), *others], catch_exceptions=False)


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# ---- A real server --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(place: Path) -> Iterator[Path]:
    """The IMRET_HOME of an `imret serve` that runs over `db`."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    server = subprocess.Popen(
        [sys.executable, "-m", "imret", "serve", "--port", "0", "--db", str(place / "db")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "IMRET_HOME": str(share_known_models(place / "home")), "IMRET_TOKEN": TOKEN},
    )
    with server:
        assert server.stderr is not None
        lines = []
        for line in server.stderr:
            lines.append(line)
            if "the page is at" in line:
                break
        else:
            pytest.fail("".join(lines))
        reading = threading.Thread(target=server.stderr.read)  # what it says later must not block it
        reading.start()
        yield place / "home"
        server.send_signal(signal.SIGINT)
        reading.join(30)


@pytest.fixture(scope="module")
def twin(place: Path) -> Iterator[Store]:
    """The store without a server, open: it takes long to open one for each of many searches."""
    with open_store(str(place / "twin")) as store:
        yield store


@pytest.fixture
def served(place: Path, home: Path, twin: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store that a server runs over."""

    def opened(address: str, **options: Any) -> contextlib.AbstractContextManager[Store]:
        kept = address == str(place / "twin")
        return contextlib.nullcontext(twin) if kept else open_store(address, **options)

    monkeypatch.setattr("imret.store.open_store", opened)
    monkeypatch.setenv("IMRET_HOME", str(home))
    return place / "db"


@pytest.fixture
def running(served: Path) -> RunningServer:
    server = find_server(served)
    assert server is not None
    assert server.token == TOKEN
    return server


def ask(server: RunningServer, query: Query, **options: Any) -> list[Hit]:
    fetch = options.pop("fetch", None)
    return search.search(server, query, SearchOptions(**options), fetch=fetch)


def str_term(path: Path) -> Term:
    return Term(str(path), "image")


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Two lists of hits are the same but for the last digit of scores, which batches of texts change."""
    assert [{**row, "score": 0} for row in rows] == [{**row, "score": 0} for row in others]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in others], abs=3e-6)


@pytest.mark.parametrize(
    "typed",
    [
        "search wing",
        "search a red wing",
        "search wing --no-template",
        "search wing + fruit - 2:leaf",
        "search PLACE/asked.png",
        "search wing + 0.5:PLACE/asked.png - leaf",
        "search PLACE/photos/aves/01.png",
        "search PLACE/photos/aves/01.png --include-self",
        "search wing - stored:aves/04.png",
        "similar stored:aves/01.png",
        "similar stored:PLACE/photos/aves/01.png --include-self",
        "similar PLACE/asked.png -n 38",
        "search wing --category aves --category fungi",
        "search wing --not-category aves --where width>=64 --where path!=fungi/00.png",
        "search wing --where width>64",
        "search wing -n 38 --sort date",
        "search wing -n 38 --sort path",
        "search wing -n 7 --offset 4",
        "search wing -n 7 --offset 4 --sort path",
        "search wing -n 38 --min-score 0",
        "search wing --relevant -n 38",
        "similar stored:aves/01.png --relevant -n 38",
        "similar PLACE/photos/fungi/00.png --unique -n 38",
        "search wing --unique --offset 2 -n 3",
        "search wing --group-by category --per-group 2",
        "search wing --group-by category -n 2 --offset 1 --sort date",
        "search toadstool",
        "search toadstool --no-concepts",
        "search a toadstool in the grass + wing",
    ],
)
def test_a_server_finds_what_the_command_finds_without_it(place: Path, served: Path, typed: str) -> None:
    arguments = [word.replace("PLACE", str(place)) for word in typed.split(" ")]
    through = imret(served, *arguments, "--format", "json", "--payload")
    without = imret(place / "twin", *arguments, "--format", "json", "--payload")
    assert "answered by imret serve at http://127.0.0.1:" in through.stderr
    assert f"(store {served})" in through.stderr
    assert "answered" not in without.stderr
    same(rows(through), rows(without))
    assert ("no hits" in through.stderr) == ("no hits" in without.stderr) == (not rows(without))


def test_that_a_concept_was_used_is_told_alike_by_a_server_and_without_it(place: Path, served: Path) -> None:
    how = "(--no-concepts asks the words alone)"
    whole = f'"toadstool" was asked as learnt from 43 pictures {how}'
    part = f'"toadstool" was moved to what was learnt from 43 pictures {how}'
    for store in (served, place / "twin"):
        for words, note in (("Toadstools", whole), ("a toadstool in the grass", part)):
            assert note in imret(store, "search", words).stderr
            assert (
                imret(store, "search", words).stdout != imret(store, "search", words, "--no-concepts").stdout
            )
        for silent in (["search", "toadstool", "--no-concepts"], ["search", "wing"]):
            assert "learnt" not in imret(store, *silent).stderr
        keys = {frozenset(row) for row in rows(imret(store, "search", "toadstool", "--format", "json"))}
        assert keys == {frozenset(row) for row in rows(imret(store, "search", "wing", "--format", "json"))}


def test_a_picture_is_found_by_its_id(place: Path, served: Path) -> None:
    (hit, *_) = rows(imret(place / "twin", "search", "wing", "--format", "json"))
    for command in (("search", f"id:{hit['id']}", "+", "wing"), ("similar", hit["id"])):
        through = imret(served, *command, "--format", "json")
        assert "answered by" in through.stderr
        same(rows(through), rows(imret(place / "twin", *command, "--format", "json")))


def test_pages_are_put_together_and_sorted_as_a_whole(
    place: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PAGE", 5)
    monkeypatch.setattr(search, "MAX_PAGES", 100)
    for arguments in (
        ("-n", "100"),
        ("-n", "12", "--offset", "3", "--sort", "date"),
        ("-n", "12", "--sort", "path"),
        ("-n", "38"),  # as many as there are
        ("-n", "100", "--min-score", "0"),
        ("-n", "100", "--relevant", "--category", "aves"),
    ):
        through = imret(served, "search", "wing", *arguments, "--format", "json")
        assert "answered by" in through.stderr
        same(rows(through), rows(imret(place / "twin", "search", "wing", *arguments, "--format", "json")))


def test_names_of_any_bytes_come_through(place: Path, running: RunningServer) -> None:
    hits = ask(running, "wing", limit=38)
    assert str(place / "photos" / "aves" / UNDECODABLE) in [hit.path for hit in hits]
    assert {hit.path for hit in hits} == {str(path) for path in (place / "photos").rglob("*.png")}
    (first, *_) = ask(running, str_term(place / "photos" / "aves" / UNDECODABLE), include_self=True)
    assert first.path.endswith(UNDECODABLE)
    assert first.score == pytest.approx(1, abs=1e-3)


def test_a_stored_path_is_looked_for_from_here_and_below_the_folder_that_was_ingested(
    place: Path, running: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(running, Term("aves/01.png", "stored"))
    monkeypatch.chdir(place / "photos" / "aves")
    assert ask(running, Term("01.png", "stored")) == expected
    assert ask(running, Term("./01.png", "stored")) == expected
    # A file of that name lies here, but it is not the collection's.
    draw_picture(tmp_path / "aves" / "01.png", seed=200)
    monkeypatch.chdir(tmp_path)
    assert ask(running, Term("aves/01.png", "stored")) == expected


@pytest.mark.parametrize(
    "typed",
    [
        "search wing --category avse",
        "search wing --offset 38",
        "search wing - wing",
        "search wing --collection other",
        "search stored:aves/99.png",
        "search stored:PLACE/asked.png",
        "search id:6e0a4d0e-6c1f-5d5c-9c53-0c7d3f4b8a11",
        "search ./gone.png",
        "search PLACE/photos/",
        "similar PLACE/broken.png",
        "search http://127.0.0.1:9/a.jpg",
    ],
)
def test_errors_have_the_words_that_they_have_without_a_server(place: Path, served: Path, typed: str) -> None:
    arguments = [word.replace("PLACE", str(place)) for word in typed.split(" ")]
    raised = []
    for store in (served, place / "twin"):
        with pytest.raises(ImretError) as caught:
            imret(store, *arguments)
        raised.append((type(caught.value), str(caught.value).replace(str(store), "STORE")))
    assert raised[0] == raised[1]


def test_words_that_are_no_unicode_are_searched_for_here(place: Path, served: Path) -> None:
    result = imret(served, "search", "wing\udce9", "--format", "json")
    assert "cannot be asked for what is not Unicode; searching without it" in result.stderr
    same(rows(result), rows(imret(place / "twin", "search", "wing\udce9", "--format", "json")))


def test_a_category_of_any_bytes_is_the_one_that_is_stored(served: Path) -> None:
    with pytest.raises(DataError, match=r"no category 'caf\\\\xe9'"):
        imret(served, "search", "wing", "--category", "caf\udce9")


def test_what_the_client_sends_at_most_is_what_the_api_takes() -> None:
    schemas = pytest.importorskip("imret.web.schemas")
    query = {
        "terms": [{"kind": "text", "value": limits.MAX_TEXT * "a", "weight": limits.MAX_WEIGHT}]
        * limits.MAX_TERMS,
        "collection": limits.MAX_NAME * "a",
        "category": limits.MAX_CATEGORIES * ["a"],
        "not_category": limits.MAX_CATEGORIES * ["a"],
        "where": limits.MAX_CONDITIONS * ["a"],
        "limit": search.PAGE,
        "offset": limits.MAX_DEPTH - search.PAGE,
        "per_group": limits.MAX_PER_GROUP,
    }
    schemas.SearchIn.model_validate(query)
    for name in ("category", "not_category", "where"):  # and no more: client and server have one bound each
        with pytest.raises(ValueError, match=name):
            schemas.SearchIn.model_validate({**query, name: [*query[name], "a"]})


# ---- A server that answers as a test wants it -----------------------------------------------------------


class Request:
    """What came: its path, headers and body."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path, self.headers, self.body = path, headers, body

    @property
    def query(self) -> dict[str, Any]:
        query: dict[str, Any] = json.loads(self.parts[0][1] if self.is_form else self.body)
        return query

    @property
    def is_form(self) -> bool:
        return self.headers["content-type"].startswith("multipart/form-data")

    @property
    def parts(self) -> list[tuple[str | None, bytes]]:
        """Name of file and content of each part, as the standard library reads them."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + self.body, policy=email.policy.HTTP)
        return [(part.get_filename(), part.get_payload(decode=True)) for part in message.iter_parts()]


Reply = bytes | None
Answering = Callable[[Request], Reply]


class Canned(contextlib.AbstractContextManager["Canned"]):
    """An HTTP server of one's own: gives each request to a function, and sends the bytes that it returns."""

    def __init__(self, answer: Answering) -> None:
        self.requests: list[Request] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = Request(
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(length),
                )
                outer.requests.append(request)
                reply = answer(request)
                if reply is not None:
                    self.wfile.write(reply)
                self.close_connection = True

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def running(self) -> RunningServer:
        return RunningServer(self.url, "/store", 1, None, 0.0)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def reply(
    content: object, status: int = 200, *, kind: str | None = None, headers: str = "", cut: int | None = None
) -> bytes:
    """Return a response; a part of it if it is cut."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    kind = kind or ("application/json" if status == 200 else "application/problem+json")
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body[:cut]


def problem(status: int, detail: str, kind: str | None = None, headers: str = "") -> bytes:
    content = {"type": "about:blank", "title": "X", "status": status, "detail": detail}
    return reply({**content, **({"kind": kind} if kind else {})}, status, headers=headers)


def hit(rank: int, *, name: str = "") -> dict[str, Any]:
    payload = {
        "path": f"{name}{rank * 7919 % 1000:03}.jpg",
        "source": "/photos",
        "modified": f"2024-01-01T00:00:{rank * 31 % 60:02}.000000Z",
    }
    return {
        "rank": rank,
        "score": 1 - rank / 10_000,
        "id": f"{name}{rank}",
        "category": None,
        "path": "not looked at",
        "folded": 0,
        "payload": payload,
    }


def answer(*hits: dict[str, Any], more: bool = False) -> bytes:
    return reply({"hits": list(hits), "more": more})


def paged(total: int) -> Answering:
    """Answer as a collection of so many pictures does."""

    def pages(request: Request) -> bytes:
        first = request.query["offset"]
        last = min(first + request.query["limit"], total)
        return answer(*(hit(rank) for rank in range(first + 1, last + 1)), more=last < total)

    return pages


@pytest.mark.parametrize(
    ("total", "limit", "offset", "asked"),
    [
        (5000, 10, 0, [(0, 10)]),
        (5000, 500, 0, [(0, 500)]),
        (5000, 1200, 7, [(7, 500), (507, 500), (1007, 200)]),
        (5000, 5000, 0, [(first, 500) for first in range(0, 5000, 500)]),
        (600, 2000, 0, [(0, 500), (500, 500)]),
        (1000, 2000, 0, [(0, 500), (500, 500)]),
        (0, 2000, 0, [(0, 500)]),
    ],
)
@pytest.mark.parametrize("sort", ["score", "date", "path"])
def test_no_page_more_is_asked_for_than_there_are_hits(
    total: int, limit: int, offset: int, asked: list[tuple[int, int]], sort: str
) -> None:
    with Canned(paged(total)) as server:
        hits = ask(server.running, "wing", limit=limit, offset=offset, sort=sort)
    assert [(request.query["offset"], request.query["limit"]) for request in server.requests] == asked
    ranks = range(offset + 1, min(offset + limit, total) + 1)
    key: dict[str, Callable[[int], Any]] = {
        "score": lambda rank: rank,
        # The newest first, and the better of those that are as new.
        "date": lambda rank: (-(rank * 31 % 60), rank),
        "path": lambda rank: (rank * 7919 % 1000, rank),
    }
    assert [row.rank for row in hits] == sorted(ranks, key=key[sort])


def test_what_a_server_left_undone_is_told_as_a_search_without_it_tells_it(
    place: Path, recwarn: pytest.WarningsRecorder
) -> None:
    notes = ["near copies are folded among the first 1,000 hits.", "what is <b>left</b> undone"]

    def noted(request: Request) -> bytes:
        at = request.query["offset"] + 1
        said = {"hits": [hit(at)], "more": at < 3, "notes": notes[at - 1 : at]}
        return reply(said)

    with Canned(noted) as server, register(url=server.url, address=place / "twin"):
        found = ask(server.running, "wing", limit=1000)
        assert [(type(said.message), str(said.message)) for said in recwarn] == [
            (SearchWarning, note) for note in notes
        ]  # of each page its own
        assert [row.rank for row in found] == [1, 2, 3]
        command = [sys.executable, "-m", "imret", "search", "wing", "-n", "1", "--format", "json"]
        shown = subprocess.run([*command, "--db", str(place / "twin")], capture_output=True, text=True)
    assert json.loads(shown.stdout)["rank"] == 1
    assert f"Warning: {notes[0]}" in shown.stderr.splitlines()


def test_an_older_server_that_says_nothing_of_what_it_left_undone_is_answered_alike(
    recwarn: pytest.WarningsRecorder,
) -> None:
    for notes in ({}, {"notes": None}, {"notes": []}):
        with Canned(lambda _, notes=notes: reply({"hits": [hit(1)], "more": False, **notes})) as server:  # type: ignore[misc]
            assert len(ask(server.running, "wing", limit=10)) == 1
    assert not list(recwarn)


def test_pages_of_two_versions_are_not_put_together() -> None:
    def pages(request: Request) -> bytes:
        return answer(*(hit(rank) for rank in range(1, 501)), more=True)

    with (
        Canned(pages) as server,
        pytest.raises(FallbackToLocal, match="another version of the collection on each page"),
    ):
        ask(server.running, "wing", limit=1000)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": 501, "unique": True}, "gives at most 500 hits with --unique"),
        ({"limit": 501, "group_by": "category"}, "gives at most 500 hits with --group-by"),
        ({"group_by": "category", "per_group": 101}, "gives at most 100 hits of a group"),
        ({"limit": 200, "group_by": "category", "per_group": 51}, "gives at most 10,000 hits in groups"),
        ({"limit": 5001}, "gives at most 5,000 hits, and none after 10,000"),
        ({"offset": 9991}, "gives at most 5,000 hits, and none after 10,000"),
        ({"categories": ["a" * 2001]}, "does not take so long a query"),
        ({"where": (limits.MAX_CONDITIONS + 1) * ["width>1"]}, "does not take so long a query"),
        ({"where": ["path=\udce9"]}, "cannot be asked for what is not Unicode"),
        ({"not_categories": ["\ud800"]}, "^$"),
    ],
)
def test_what_a_server_does_not_answer_alike_is_not_asked(options: dict[str, Any], says: str) -> None:
    with Canned(paged(10)) as server, pytest.raises(FallbackToLocal, match=says):
        ask(server.running, "wing", **options)
    assert server.requests == []


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ([Term("a" * 2001)], "does not take so long a query"),
        ([Term("a")] * 17, "does not take so long a query"),
        ([Term("a", weight=2e6)], "does not take so long a query"),
        ([Term("caf\udce9")], "cannot be asked for what is not Unicode"),
        ([Term("caf\udce9.jpg", "stored")], "cannot be asked for what is not Unicode"),
        ([Term(b"a" * 30_000_001, "image")], "does not take pictures of so many bytes"),
    ],
)
def test_terms_that_a_server_does_not_take_are_not_sent(terms: list[Term], says: str) -> None:
    with Canned(paged(10)) as server, pytest.raises(FallbackToLocal, match=says):
        ask(server.running, terms)
    assert server.requests == []


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(1 << 40)
    with Canned(paged(10)) as server, pytest.raises(FallbackToLocal, match="pictures of so many bytes"):
        ask(server.running, str_term(tmp_path / "large.jpg"))


def test_options_and_terms_go_as_they_are() -> None:
    with Canned(paged(10)) as server:
        ask(
            server.running,
            [Term("größe"), Term("id-1", "id", weight=-0.5), Term("a/none.jpg", "stored", weight=2)],
            collection="mine",
            categories=["aves"],
            not_categories=["fungi"],
            where=["width>=3"],
            min_score=0.25,
            relevant=True,
            unique=True,
            sort="date",
            template=False,
            include_self=True,
        )
    (request,) = server.requests
    assert request.path == "/api/v1/search"
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers
    assert request.query == {
        "terms": [
            {"kind": "text", "value": "größe", "weight": 1.0},
            {"kind": "id", "value": "id-1", "weight": -0.5},
            {"kind": "stored", "value": "a/none.jpg", "weight": 2},
        ],
        "collection": "mine",
        "category": ["aves"],
        "not_category": ["fungi"],
        "where": ["width>=3"],
        "limit": 10,
        "offset": 0,
        "min_score": 0.25,
        "relevant": True,
        "unique": True,
        "group_by": None,
        "per_group": 3,
        "template": False,
        "concepts": True,
        "include_self": True,
    }


def test_pictures_are_sent_to_the_byte_under_names_that_cannot_break_out(tmp_path: Path) -> None:
    contents = [b"\r\n--\r\n\x00\xff" * 100, b"", bytes(range(256)), b"web"]
    names = [os.fsdecode(b'a"\r\nb\xe9.jpg'), "größe.png"]
    for name, content in zip(names, contents, strict=False):
        (tmp_path / name).write_bytes(content)
    terms = [
        str_term(tmp_path / names[0]),
        Term("wing"),
        Term(str(tmp_path / names[1]), "image", -2),
        Term(contents[2], "image"),
        Term("https://example.org/a.jpg", "url"),
    ]
    with Canned(paged(3)) as server:
        ask(server.running, terms, fetch=lambda url: contents[3] if "example" in url else b"")
    (request,) = server.requests
    assert [content for _, content in request.parts[1:]] == contents
    assert [name for name, _ in request.parts[1:]] == [
        "a%22%0D%0Ab\N{REPLACEMENT CHARACTER}.jpg",
        "größe.png",
        "picture",
        "picture",
    ]
    assert request.query["terms"] == [
        {"kind": "picture", "value": "0", "weight": 1.0},
        {"kind": "text", "value": "wing", "weight": 1.0},
        {"kind": "picture", "value": "1", "weight": -2},
        {"kind": "picture", "value": "2", "weight": 1.0},
        {"kind": "picture", "value": "3", "weight": 1.0},
    ]


def test_pictures_are_read_and_fetched_once_for_all_pages() -> None:
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return b"picture"

    with Canned(paged(900)) as server:
        assert len(ask(server.running, Term("http://x", "url"), limit=900, fetch=fetch)) == 900
    assert len(server.requests) == 2
    assert fetched == ["http://x"]


def test_the_token_is_shown_and_no_proxy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Canned(paged(1)) as server:
        shown = RunningServer(server.url, "/store", 1, "secret-secret-secret", 0.0)
        assert len(ask(shown, "wing")) == 1
    assert server.requests[0].headers["authorization"] == "Bearer secret-secret-secret"


def test_a_hit_has_the_path_of_its_bytes() -> None:
    canned = hit(1)
    canned["payload"]["file_base64"] = "L3Bob3Rvcy9jYWbpLmpwZw=="
    with Canned(lambda _: answer(canned)) as server:
        (row,) = ask(server.running, "wing")
    assert os.fsencode(row.path) == b"/photos/caf\xe9.jpg"
    assert row == Hit(1, 0.9999, "1", file_of(canned["payload"]), None, canned["payload"], 0)


# ---- Answers that are none ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (None, r"ended before it had answered \(Remote end closed connection"),
        (reply({"hits": []}, cut=5), r"ended before it had answered \(IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"ended before it had answered \("),
        (reply(b"<html>", kind="text/html"), r"gives no answer of imret's \(status 200\)"),
        (reply(b"{", kind="application/json"), r"gives no answer of imret's \(status 200\)"),
        (reply([]), r"gives no answer of imret's \(status 200\)"),
        (reply(b"gone", 404, kind="text/plain"), r"gives no answer of imret's \(status 404\)"),
        (
            reply(b"", 302, headers="Location: http://127.0.0.1:1/\r\n"),
            r"gives no answer of imret's \(status 302\)",
        ),
        (reply({}), "gives hits that this version of imret does not understand"),
        (reply({"hits": [{"rank": 1}]}), "gives hits that this version of imret does not understand"),
        (problem(401, "send the token"), "does not answer this: send the token"),
        (problem(413, "the body is too large"), "does not answer this: the body is too large"),
        (problem(421, "not this name"), "does not answer this: not this name"),
        (problem(500, "failed"), "does not answer this: failed"),
        (problem(409, "another model\nDo this", "ModelMismatch"), "does not answer this: another model$"),
        # Whatever these say, searching without the server says it, too.
        (problem(404, "no such collection", "DataError"), "^$"),
        (problem(422, "cannot use the picture", "ImageError"), "^$"),
        (problem(422, "limit: too large"), "^$"),
    ],
)
def test_no_answer_leaves_the_search_to_the_caller(sent: bytes | None, says: str) -> None:
    with Canned(lambda _: sent) as server, pytest.raises(FallbackToLocal, match=says):
        ask(server.running, "wing")
    assert len(server.requests) == 1


def test_what_the_server_says_is_wrong_goes_with_it() -> None:
    with (
        Canned(lambda _: problem(404, "no such collection", "DataError")) as server,
        pytest.raises(FallbackToLocal) as caught,
    ):
        ask(server.running, "wing")
    assert isinstance(caught.value.problem, DataError)
    assert str(caught.value.problem) == "no such collection"


@pytest.mark.parametrize("kind", ["ImageError", "ModelError", "ModelMismatch", "StoreError", "DataError"])
def test_a_problem_becomes_the_error_of_its_kind(kind: str) -> None:
    with (
        Canned(lambda _: problem(400, "what is wrong", kind)) as server,
        pytest.raises(ImretError, match=r"^what is wrong$") as caught,
    ):
        ask(server.running, "wing")
    assert type(caught.value) is getattr(errors, kind)


@pytest.mark.parametrize("kind", ["Another", "annotations", "__name__", "KeyError"])
def test_a_problem_of_an_unknown_kind_is_an_error_all_the_same(kind: str) -> None:
    with (
        Canned(lambda _: problem(400, "what is wrong", kind)) as server,
        pytest.raises(ImretError, match=r"^what is wrong$") as caught,
    ):
        ask(server.running, "wing")
    assert type(caught.value) is ImretError


@pytest.mark.parametrize(
    "options", [{"where": ["path=/a/b.jpg"]}, {"categories": ["a/b"]}, {"terms": [Term("a.jpg", "stored")]}]
)
def test_a_message_that_may_lack_a_path_is_left_to_the_caller(options: dict[str, Any]) -> None:
    terms = options.pop("terms", "wing")
    with (
        Canned(lambda _: problem(400, "no b.jpg", "DataError")) as server,
        pytest.raises(FallbackToLocal, match=r"^$"),
    ):
        ask(server.running, terms, **options)


def test_a_busy_server_is_waited_for() -> None:
    replies = [problem(503, "too many", headers="Retry-After: 0\r\n"), answer(hit(1))]
    with Canned(lambda _: replies.pop(0)) as server:
        assert len(ask(server.running, "wing")) == 1
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (None, r"imret serve at http://127\.0\.0\.1:[0-9]+ is busy: too many\n.*IMRET_SERVER=off"),
        ("StoreUnavailable", "^too many$"),
    ],
)
def test_a_server_that_stays_busy_is_an_error(
    kind: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WAIT_S", 0.3)
    with (
        Canned(lambda _: problem(503, "too many", kind, "Retry-After: 0\r\n")) as server,
        pytest.raises(StoreUnavailable, match=says),
    ):
        ask(server.running, "wing")
    assert 2 <= len(server.requests) <= 4


def test_a_server_that_is_slow_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ANSWER_TIMEOUT_S", 0.1)
    over = threading.Event()

    def slow(_: Request) -> None:
        over.wait(10)

    with Canned(slow) as server:
        with pytest.raises(
            StoreUnavailable, match=r"\(process 1\) has not answered within 0\.1 s\.\n.*IMRET_SERVER=off"
        ):
            ask(server.running, "wing")
        over.set()


def test_a_refusal_that_comes_before_the_whole_picture_is_read_is_understood() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(problem(413, "the body is too large"))

        refusing = threading.Thread(target=refuse)
        refusing.start()
        port = listener.getsockname()[1]
        with pytest.raises(FallbackToLocal, match=r"body is too large|ended before it had answered"):
            ask(RunningServer(f"http://127.0.0.1:{port}", "/", 1, None, 0), Term(b"a" * 20_000_000, "image"))
        refusing.join()


@pytest.mark.parametrize("url", ["http://127.0.0.1:70000", "http://[", "nothing", ""])
def test_an_address_that_is_none_is_not_asked(url: str) -> None:
    with pytest.raises(FallbackToLocal):
        ask(RunningServer(url, "/store", 1, None, 0.0), "wing")


# ---- The command ----------------------------------------------------------------------------------------


def test_a_server_that_is_gone_costs_a_line(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with register(url=url, address=place / "twin"):
        result = imret(place / "twin", "search", "wing", "--format", "json")
    assert (
        result.stderr == f"imret serve at {url} does not answer (Connection refused); searching without it\n"
    )
    same(rows(result), rows(imret(place / "twin", "search", "wing", "--format", "json")))


def test_a_server_that_dies_in_the_middle_of_its_answer_costs_a_line(place: Path) -> None:
    with (
        Canned(lambda _: reply({"hits": [hit(1)]}, cut=40)) as server,
        register(url=server.url, address=place / "twin"),
    ):
        result = imret(place / "twin", "search", "wing", "--format", "json")
    assert re.fullmatch(
        rf"imret serve at {server.url} ended before .*; searching without it\n", result.stderr
    )
    same(rows(result), rows(imret(place / "twin", "search", "wing", "--format", "json")))


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ((), {"IMRET_SERVER": "off"}),
        (("--model", "MODEL"), {}),
        (("--device", "cpu"), {}),
        (("--precision", "fp32"), {}),
        (("--facets",), {}),
    ],
)
def test_a_server_is_not_asked_where_another_would_answer(
    place: Path,
    random_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = tuple(argument.replace("MODEL", str(random_model)) for argument in arguments)
    with Canned(paged(3)) as server, register(url=server.url, address=place / "twin"):
        result = imret(place / "twin", "search", "wing", *arguments)
    assert server.requests == []
    assert result.exit_code == 0
    assert "imret serve" not in result.stderr


def test_the_server_of_the_store_in_imret_db_is_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMRET_DB", str(place / "twin"))
    with Canned(paged(3)) as server:
        with register(url=server.url, address=place / "twin"):
            result = CliRunner().invoke(cli, ["search", "wing"], catch_exceptions=False)
        assert len(result.stdout.splitlines()) == 3
        with register(url=server.url, address=place / "db"):
            CliRunner().invoke(cli, ["search", "wing"], catch_exceptions=False)
    assert len(server.requests) == 1
    assert server.requests[0].query["collection"] == DEFAULT_COLLECTION


def test_no_hits_of_a_server_are_said(place: Path) -> None:
    with Canned(paged(0)) as server, register(url=server.url, address=place / "twin"):
        result = imret(place / "twin", "search", "wing", "--relevant")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines()[-1] == "no hits"  # that is all that an older server tells


@pytest.mark.parametrize(
    "typed",
    [
        "similar PLACE/photos/aves/01.png",
        "search PLACE/photos/aves/01.png - wing -n 2 --format json",
        "search wing --category aves --where width>=9999",
        "search wing --min-score 0.99 --category aves --category fungi",
        "search wing --relevant --not-category fungi",
        "search wing --offset 20 --min-score -0.9 --where width>=9999",
        "search PLACE/photos/aves/01.png --where path=aves/01.png --where path=aves/copy.png",
        "search wing --category AVES --where category=Fungi",
    ],
)
def test_what_was_left_out_and_why_nothing_was_found_is_told_alike(
    place: Path, served: Path, typed: str
) -> None:
    arguments = [word.replace("PLACE", str(place)) for word in typed.split()]
    with_server, without = imret(served, *arguments), imret(place / "twin", *arguments)
    assert "answered by imret serve" in with_server.stderr
    assert with_server.stdout == without.stdout
    assert with_server.stderr.splitlines()[1:] == without.stderr.splitlines()
    assert re.search(r"no hits: |2 identical pictures left out \(--include-self\)", without.stderr)


def test_what_the_server_said_counts_where_the_store_is_its_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object, **__: object) -> None:
        raise errors.StoreLocked("in use")

    monkeypatch.setattr("imret.store.open_store", locked)
    with (
        Canned(lambda _: problem(422, "no picture", "ImageError")) as server,
        register(url=server.url, address=place / "twin"),
        pytest.raises(ImageError, match=r"^no picture$"),
    ):
        imret(place / "twin", "similar", str(place / "broken.png"))


def test_hits_of_a_server_are_delivered_like_others(place: Path, served: Path, tmp_path: Path) -> None:
    through, without = (
        [
            imret(store, "search", "wing", "-n", "4", *arguments).stdout
            for arguments in (
                (),
                ("--format", "tsv"),
                ("--html", str(tmp_path / f"{store.name}.html")),
                ("--copy-to", str(tmp_path / store.name)),
            )
        ]
        for store in (served, place / "twin")
    )
    assert through == without
    copied = sorted(path.name for path in (tmp_path / "db").iterdir())
    assert len(copied) == 4
    assert copied == sorted(path.name for path in (tmp_path / "twin").iterdir())
    assert (tmp_path / "db.html").stat().st_size > 10_000


def test_a_search_through_a_server_loads_nothing_heavy(place: Path) -> None:
    code = (
        "import sys\nfrom imret.cli.main import cli\n"
        "sys.argv[0] = 'imret'\n"
        "try:\n    cli.main(sys.argv[1:], prog_name='imret', standalone_mode=False)\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'PIL', 'qdrant_client', 'qdrant_edge', 'pyarrow', 'open_clip',\n"
        "             'urllib.request', 'platformdirs', 'imret.retrieval.search', 'imret.retrieval.fetch'}\n"
        "    print(heavy & set(sys.modules), file=sys.stderr)\n"
    )
    with Canned(paged(3)) as server, register(url=server.url, address=place / "twin"):
        done = subprocess.run(
            [sys.executable, "-c", code, "search", "wing", "--db", str(place / "twin"), "--format", "paths"],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr.splitlines()[-1] == "set()"
    assert "answered by imret serve" in done.stderr


def test_hits_are_sorted_by_rank_date_or_path() -> None:
    hits = [
        Hit(rank, 0.0, str(rank), path, None, {"modified": modified} if modified else {})
        for rank, path, modified in ((2, "b", "2024"), (1, "c", ""), (3, "a", "2025"), (4, "b", "2024"))
    ]
    assert [row.rank for row in sort_hits(hits, "score")] == [1, 2, 3, 4]
    assert [row.rank for row in sort_hits(hits, "date")] == [3, 2, 4, 1]
    assert [row.rank for row in sort_hits(hits, "path")] == [3, 2, 4, 1]
