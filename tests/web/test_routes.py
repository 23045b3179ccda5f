"""The API answers as the library does, says what goes wrong as the command does, and holds its limits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from imret import DataError, Encoder, ImretError, Term, classify, make_filter, search
from imret.abandon import AbandonedError
from imret.errors import StoreUnavailable
from imret.retrieval.limits import MAX_TEXT
from imret.retrieval.query import parse_query
from imret.retrieval.results import Hit
from imret.store import Store, open_store
from imret.store.embedded.locks import locked
from imret.store.payload import point_id
from imret.web import handlers
from imret.web.app import create_app
from imret.web.errors import NotFound, problem_for
from imret.web.images.files import ImageFiles
from imret.web.images.thumbnails import ImageResponse, ToDecode
from imret.web.pool.collections import CollectionPool
from imret.web.schemas import MAX_LABELS
from imret.web.security.public_address import parse_root_path
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests import ROOT
from tests.fakes.pictures import draw_picture
from tests.fakes.web_server import request, serving, until

CATEGORIES = ("fungi", "aves", "insecta")


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(24):
        draw_picture(folder / CATEGORIES[seed % 3] / f"{seed:02}.png", seed=seed)
    (folder / "fungi" / "copy.png").write_bytes((folder / "fungi" / "00.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def pool(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder, random_model: Path
) -> Iterator[CollectionPool]:
    db = str(tmp_path_factory.mktemp("db") / "store")
    with open_store(db) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
    pool = CollectionPool(lambda: open_store(db, create=False), device="cpu", precision="fp32")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def app(pool: CollectionPool, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("thumbnails")
    return create_app(pool, default="photos", image_files=ImageFiles(folder), host="127.0.0.1", port=8750)


@pytest.fixture(scope="module")
def client(app: Any) -> TestClient:
    # Not as a context: closing the application would close the collections of the other tests.
    return TestClient(app, base_url="http://127.0.0.1:8750", raise_server_exceptions=False)


@pytest.fixture
def store(pool: CollectionPool) -> Store:
    return pool.store


def _id(photos: Path, path: str) -> str:
    return point_id(os.path.realpath(photos), path)


def _rows(hits: list[Hit]) -> list[dict[str, Any]]:
    return [
        {
            "rank": hit.rank,
            "score": pytest.approx(hit.score, abs=2e-6),
            "id": hit.id,
            "category": hit.category,
            "path": hit.path,
            "folded": hit.folded,
            "payload": hit.payload,
        }
        for hit in hits
    ]


# ---- The same as the library ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "typed", "how"),
    [
        ({"q": "mushroom"}, ["mushroom"], {}),
        ({"q": ["2:owl", "a bird"], "not": "grass"}, ["2:owl", "+", "a bird", "-", "grass"], {}),
        ({"q": "a tree", "limit": 3, "offset": 4}, ["a tree"], {"limit": 3, "offset": 4}),
        ({"q": "a tree", "limit": 5, "sort": "path"}, ["a tree"], {"limit": 5, "sort": "path"}),
        ({"q": "a tree", "limit": 5, "sort": "date"}, ["a tree"], {"limit": 5, "sort": "date"}),
        ({"q": "a tree", "min_score": 0.0}, ["a tree"], {"min_score": 0.0}),
        ({"q": "a tree", "unique": True, "limit": 24}, ["a tree"], {"unique": True, "limit": 24}),
        ({"q": "a tree", "relevant": True}, ["a tree"], {"relevant": True}),
        ({"q": "mushroom", "template": False}, ["mushroom"], {"template": False}),
        ({"q": "owl", "group_by": "category"}, ["owl"], {"group_by": "category"}),
        ({"q": "stored:fungi/00.png"}, ["stored:fungi/00.png"], {}),
        ({"q": "stored:fungi/00.png", "include_self": True}, ["stored:fungi/00.png"], {"include_self": True}),
    ],
)  # fmt: skip
def test_an_address_finds_what_the_library_finds(
    client: TestClient,
    store: Store,
    encoder: Encoder,
    params: dict[str, Any],
    typed: list[str],
    how: dict[str, Any],
) -> None:
    answer = client.get("/api/v1/search", params=params)
    assert answer.status_code == 200, answer.text
    expected = search(store, parse_query(typed), encoder=encoder, **how)
    assert answer.json()["hits"] == _rows(expected)
    assert client.get("/api/search", params=params).json()["hits"] == answer.json()["hits"]


def test_conditions_are_those_of_the_command(client: TestClient, store: Store, encoder: Encoder) -> None:
    params = {"q": "a tree", "category": ["fungi", "aves"], "not_category": "aves", "where": "width>=10"}
    only = make_filter(categories=["fungi", "aves"], not_categories=["aves"], where=["width>=10"])
    hits = client.get("/api/v1/search", params=params).json()["hits"]
    assert hits == _rows(search(store, "a tree", encoder=encoder, filter=only))
    assert {hit["category"] for hit in hits} == {"fungi"}


def test_a_body_of_json_is_asked_like_an_address(client: TestClient) -> None:
    terms = [{"value": "red mushroom", "weight": 2}, {"kind": "text", "value": "grass", "weight": -1}]
    posted = client.post("/api/v1/search", json={"terms": terms, "limit": 4}).json()
    typed = client.get("/api/v1/search", params={"q": "2:red mushroom", "not": "grass", "limit": 4}).json()
    assert posted["hits"] == typed["hits"]
    assert posted["terms"] == typed["terms"]


def test_a_picture_that_is_sent_finds_what_its_file_finds(
    client: TestClient, store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    file = draw_picture(tmp_path / "new.png", seed=99)
    answer = client.post("/api/v1/search", files={"picture": ("../new.png", file.read_bytes())}).json()
    assert answer["hits"] == _rows(search(store, file, encoder=encoder))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert answer["terms"] == [{"kind": "upload", "value": digest, "weight": 1.0, "label": "new.png"}]
    again = client.get("/api/v1/search", params={"q": f"upload:{digest}"}).json()
    assert again["hits"] == answer["hits"]
    small = client.get(f"/api/v1/uploads/{digest}", params={"size": 160})
    assert Image.open(io.BytesIO(small.content)).format == "JPEG"


def test_words_and_pictures_are_one_query_in_which_each_has_its_weight(
    client: TestClient, store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    files = [draw_picture(tmp_path / f"{seed}.png", seed=seed) for seed in (90, 91)]
    terms = [{"value": "a tree"}, {"kind": "picture", "value": "1", "weight": -0.5}]
    answer = client.post(
        "/api/v1/search",
        data={"query": json.dumps({"terms": terms})},
        files=[("picture", (file.name, file.read_bytes())) for file in files],
    ).json()
    query = [Term("a tree"), Term(str(files[1]), "image", -0.5), Term(str(files[0]), "image")]
    assert answer["hits"] == _rows(search(store, query, encoder=encoder))
    assert [term["weight"] for term in answer["terms"]] == [1.0, -0.5, 1.0]


def test_a_stored_picture_finds_its_like_and_not_itself(
    client: TestClient, store: Store, photos: Path
) -> None:
    id = _id(photos, "aves/01.png")
    expected = _rows(search(store, Term(id, "id")))
    assert client.get(f"/api/v1/similar/{id}").json()["hits"] == expected
    answer = client.get("/api/v1/search", params={"q": f"id:{id}"}).json()
    assert answer["hits"] == expected
    assert answer["terms"] == [{"kind": "id", "value": id, "weight": 1.0, "label": "01.png"}]


def test_a_picture_is_classified_as_the_library_does_it(
    client: TestClient, encoder: Encoder, photos: Path
) -> None:
    file = photos / "aves" / "01.png"
    expected = classify([file], ["fungi", "aves", "insecta"], encoder=encoder, top_k=2)[0].predictions
    answer = client.post(
        "/api/v1/classify",
        data={"id": _id(photos, "aves/01.png"), "top_k": "2"},
        files={"picture": ("mine.png", file.read_bytes())},
    ).json()
    assert [picture["name"] for picture in answer["pictures"]] == ["mine.png", "aves/01.png"]
    for picture in answer["pictures"]:
        assert picture["reason"] is None
        labels = {p.label: p.probability for p in expected}
        assert {p["label"]: p["probability"] for p in picture["predictions"]} == pytest.approx(
            labels, abs=1e-5
        )


# ---- What there is ------------------------------------------------------------------------------


def test_more_says_whether_there_is_more(client: TestClient) -> None:
    def more(**params: Any) -> bool:
        return bool(client.get("/api/v1/search", params={"q": "owl", **params}).json()["more"])

    assert more(limit=24)
    assert not more(limit=25)
    assert not more(limit=10, offset=15)
    assert more(limit=2, group_by="category")
    assert not more(limit=3, group_by="category")


def test_what_a_search_left_undone_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(**params: Any) -> tuple[int, bool, list[str]]:
        answer = client.get("/api/v1/search", params={"q": "wing", "unique": "1", **params}).json()
        return len(answer["hits"]), answer["more"], answer["notes"]

    assert ask(limit=10) == (10, True, [])
    assert ask(limit=10, offset=20) == (4, False, [])
    monkeypatch.setattr("imret.web.handlers.MAX_UNIQUE", 20)
    [note] = ask(limit=10, offset=5)[2]
    assert note == "duplicates are looked for among the first 20 hits. Narrow the search to see others."
    assert not ask(limit=10, offset=5)[1]
    monkeypatch.setattr("imret.retrieval.dedupe.MAX_FURTHER", 0)
    monkeypatch.setattr("imret.retrieval.ranking.best", _folds_all)
    monkeypatch.setattr("imret.retrieval.conditions.best", _folds_all)
    n_hits, more, [note] = ask(limit=2)
    assert (n_hits, more) == (1, False)
    assert note.startswith("duplicates were looked for among the best 4 hits only, and there are more.")


def _folds_all(collection: Any, vector: Any, filter_: Any, options: Any, _: float, copies: Any) -> Any:
    """As where all that is looked at is one picture."""
    points = collection.search(vector, limit=2 * options.limit, filter=filter_ or None)
    copies.widen(2 * options.limit)
    return [(points[0], len(points) - 1)]


def test_counts_are_of_all_hits_whatever_categories_are_asked_for(
    client: TestClient, store: Store, encoder: Encoder
) -> None:
    params = {"q": "owl", "category": "aves", "counts": True, "min_score": 0.0, "limit": 1}
    counts = client.get("/api/v1/search", params=params).json()["counts"]
    found = search(store, "owl", encoder=encoder, limit=200, min_score=0.0)
    assert counts["hits"] == sum(hit.category == "aves" for hit in found)
    assert {entry["category"]: (entry["hits"], entry["images"]) for entry in counts["categories"]} == {
        "fungi": (sum(hit.category == "fungi" for hit in found), 9),
        "aves": (sum(hit.category == "aves" for hit in found), 8),
        "insecta": (sum(hit.category == "insecta" for hit in found), 8),
    }


def test_pages_of_the_collection_have_every_picture_once(client: TestClient) -> None:
    seen: list[str] = []
    after = None
    while True:
        page = client.get("/api/v1/images", params={"limit": 7, **({"after": after} if after else {})}).json()
        assert page["images"] == 25
        seen += [picture["id"] for picture in page["pictures"]]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == 25
    only = client.get("/api/v1/images", params={"category": "aves", "where": "path!=aves/01.png"}).json()
    assert only["images"] == len(only["pictures"]) == 7


def test_categories_and_collections_are_listed(client: TestClient, random_model: Path) -> None:
    assert client.get("/api/v1/categories").json() == {
        "collection": "photos",
        "images": 25,
        "uncategorised": 0,
        "categories": [
            {"category": "fungi", "images": 9},
            {"category": "aves", "images": 8},
            {"category": "insecta", "images": 8},
        ],
    }
    listed = client.get("/api/v1/collections").json()
    assert listed["default"] == "photos"
    (collection,) = listed["collections"]
    assert (collection["name"], collection["images"], collection["model"]) == (
        "photos",
        25,
        str(random_model),
    )


def test_a_damaged_collection_is_listed_beside_the_others_and_says_what_it_is(
    client: TestClient, store: Store
) -> None:
    identity = store.live("photos")
    assert identity is not None
    store.open_version("broken", identity).close()
    store.promote("broken", identity)
    (Path(store.address) / "broken" / "live.json").write_text("{")
    try:
        broken, photos = client.get("/api/v1/collections").json()["collections"]
        assert (broken["name"], broken["images"], photos["images"]) == ("broken", None, 25)
        assert broken["status"].startswith("collection 'broken' is damaged.")
        assert client.get("/api/v1/search", params={"q": "red"}).status_code == 200
        refused = client.get("/api/v1/search", params={"q": "red", "collection": "broken"})
        assert (refused.status_code, refused.json()["kind"]) == (500, "StoreDamaged")
        assert refused.json()["detail"] == broken["status"]
        assert store.address not in refused.text
    finally:
        store.drop("broken")


def test_pictures_are_given_by_id_and_not_again_where_they_are_known(
    client: TestClient, photos: Path
) -> None:
    id = _id(photos, "aves/01.png")
    whole = client.get(f"/api/v1/images/{id}")
    assert whole.content == (photos / "aves" / "01.png").read_bytes()
    assert whole.headers["content-type"] == "image/png"
    small = client.get(f"/api/v1/thumbnails/{id}", params={"size": 160, "v": "1"})
    assert Image.open(io.BytesIO(small.content)).size == (64, 48)  # never enlarged
    assert "max-age" in small.headers["cache-control"]
    for url, etag in ((f"/api/v1/images/{id}", whole), (f"/api/v1/thumbnails/{id}?size=160", small)):
        again = client.get(url, headers={"If-None-Match": etag.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    stored = client.get(f"/api/v1/images/{id}/payload").json()
    assert stored["path"] == str(photos / "aves" / "01.png")
    assert stored["payload"]["width"] == 64


def test_a_picture_that_is_replaced_before_it_is_decoded_reaches_all_who_asked_whole(
    app: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asking = photos / "aves" / "10.png", 6
    whole, ready, original = file.read_bytes(), ImageFiles.ready, ImageFiles.original
    looked: list[object] = []
    opened: list[ImageResponse] = []
    # One that is given as it is, of which no part is like another.
    replaced = whole + random.Random(0).randbytes(8 << 20)

    def looking(self: ImageFiles, *arguments: Any) -> Any:
        looked.append(ready(self, *arguments))
        return looked[-1]

    def late(self: ImageFiles, payload: Any) -> Any:
        until(lambda: len(looked) == asking)
        if not opened:
            time.sleep(0.1)  # all of them wait for the same
            file.write_bytes(replaced)
        opened.append(original(self, payload))
        return opened[-1]

    monkeypatch.setattr(ImageFiles, "ready", looking)
    monkeypatch.setattr(ImageFiles, "original", late)
    turned = Image.Exif()
    turned[0x0112] = 6
    try:
        Image.open(io.BytesIO(whole)).save(file, exif=turned)  # one that has to be decoded
        with serving(app) as server, ThreadPoolExecutor(asking) as clients:
            target = f"/api/v1/images/{_id(photos, 'aves/10.png')}"
            answers = list(clients.map(lambda _: server.get(target), range(asking)))
        assert [type(it) for it in looked] == [ToDecode] * asking
        assert [(it.status, it["content-type"]) for it in answers] == [(200, "image/png")] * asking
        assert all(answer.body == replaced for answer in answers)
        assert all(response.file is not None and response.file.closed for response in opened)
    finally:
        file.write_bytes(whole)


def test_timings_tell_the_stages(client: TestClient) -> None:
    timings = client.get("/api/v1/search", params={"q": f"never asked {uuid.uuid4()}"}).json()["timings_ms"]
    assert set(timings) == {"encode", "store", "total"}
    assert timings["total"] >= timings["store"] > 0


def test_health_and_metrics(client: TestClient) -> None:
    client.get("/api/v1/search", params={"q": "owl"})
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").text == "ready\n"
    metrics = client.get("/metrics").text
    for name in (
        'imret_stage_seconds_count{stage="encode"}',
        'imret_stage_seconds_count{stage="store"}',
        'imret_stage_seconds_count{stage="thumbnail"}',
        'imret_queue_depth{queue="queries"}',
        'imret_queue_depth{queue="texts"}',
        'imret_requests_total{route="/search",status="200"}',
    ):
        assert name in metrics


def test_the_document_describes_every_route_and_has_no_dangling_reference(client: TestClient) -> None:
    document = client.get("/api/v1/openapi.json").json()
    assert {path.removeprefix("/api/v1") for path in document["paths"]} == {
        "/search",
        "/similar/{id}",
        "/classify",
        "/categories",
        "/concepts",
        "/collections",
        "/images",
        "/ingest",
        "/images/{id}",
        "/images/{id}/payload",
        "/thumbnails/{id}",
        "/uploads/{sha256}",
    }
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


def test_no_path_of_the_servers_own_can_be_taken_for_one_below_which_a_proxy_puts_it(app: Any) -> None:
    """A root path may not begin like these: a path that begins with it is one that no proxy has stripped."""
    while not isinstance(app, FastAPI):
        app = app._app
    paths = [*app.openapi()["paths"], *(getattr(route, "path", "/") for route in app.routes)]
    firsts = {path.split("/")[1] for path in paths} - {""}
    assert {"api", "static", "healthz"} <= firsts
    for first in firsts | {"login", "logout"}:
        with pytest.raises(DataError, match="an address of imret serve itself"):
            parse_root_path(f"/{first}/photos")


def test_an_address_with_a_slash_too_many_is_not_there_rather_than_elsewhere(client: TestClient) -> None:
    """A redirect would be made of Host and scheme, which behind a proxy are not those of browsers."""
    for path in ("/api/v1/search/?q=owl", "/static", "/login/"):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 404
        assert "location" not in answer.headers


def test_the_guide_names_every_route(client: TestClient) -> None:
    rows = [line for line in (ROOT / "docs" / "serve.md").read_text().splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(?:GET |POST )?(/[a-z0-9{}/]+)", " ".join(row.split("|")[1] for row in rows)))
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert named - {"/healthz", "/readyz", "/metrics"} == {path.removeprefix("/api/v1") for path in paths}


# ---- What goes wrong ----------------------------------------------------------------------------


def _problem(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert (content["type"], content["status"]) == ("about:blank", status)
    return str(content["detail"])


@pytest.mark.parametrize(
    ("params", "typed", "how"),
    [
        ({}, [], {}),
        ({"not": "owl"}, ["-", "owl"], {}),
        ({"q": "0:owl"}, ["0:owl"], {}),
        ({"q": "owl", "category": "avse"}, ["owl"], {"categories": ["avse"]}),
        ({"q": "owl", "where": "width>"}, ["owl"], {"where": ["width>"]}),
        ({"q": "owl", "offset": 100}, ["owl"], {"offset": 100}),
        ({"q": "owl", "not": "owl"}, ["owl", "-", "owl"], {}),
        ({"q": "stored:nowhere.png"}, ["stored:nowhere.png"], {}),
    ],
)
def test_a_problem_says_what_the_command_would_say(
    client: TestClient,
    store: Store,
    encoder: Encoder,
    params: dict[str, Any],
    typed: list[str],
    how: dict[str, Any],
) -> None:
    offset = how.pop("offset", 0)
    with pytest.raises(ImretError) as expected:
        search(store, parse_query(typed), encoder=encoder, offset=offset, filter=make_filter(**how))
    answer = client.get("/api/v1/search", params=params)
    assert _problem(answer, 400) == str(expected.value)
    assert answer.json()["kind"] == type(expected.value).__name__


@pytest.mark.parametrize(
    ("params", "status", "says"),
    [
        ({"q": "owl", "limit": "0"}, 422, "limit: Input should be greater than or equal to 1."),
        ({"q": "owl", "limit": "501"}, 422, "limit: Input should be less than or equal to 500."),
        ({"q": "owl", "limit": "1e20"}, 422, "limit: Input should be a valid integer"),
        ({"q": "owl", "limit": "9" * 20}, 422, "limit: Input should be less than or equal to 500."),
        ({"q": "owl", "limit": "9" * 5000}, 422, "limit: "),
        ({"q": "owl", "limit": "nan"}, 422, "limit: Input should be a valid integer"),
        ({"q": "owl", "offset": "9" * 20}, 422, "offset: Input should be less than or equal to 10000."),
        ({"q": "owl", "offset": "-1"}, 422, "offset: Input should be greater than or equal to 0."),
        ({"q": "owl", "per_group": "1e9"}, 422, "per_group: Input should be a valid integer"),
        ({"q": "owl", "min_score": "nan"}, 422, "min_score: Input should be"),
        ({"q": "owl", "min_score": "inf"}, 422, "min_score: Input should be less than or equal to 1."),
        (
            {"q": "owl", "unique": "1", "offset": "999"},
            400,
            "with unique, offset and limit give at most 1,000 hits",
        ),
        (
            {"q": "owl", "unique": "1", "group_by": "category", "limit": "500"},
            400,
            "with unique, limit and per_group give at most 1,000 hits, not 1,500",
        ),
        ({"q": "owl", "lmit": "5"}, 422, "lmit: Extra inputs are not permitted."),
        ({"q": "owl", "sort": "size"}, 422, "sort: Input should be 'score', 'date' or 'path'."),
        ({"q": "x" * 2001}, 422, "q.0: String should have at most 2000 characters."),
        ({"q": "owl", "offset": "9999"}, 400, "offset and limit together are at most 10,000, not 10,009."),
        ({"q": ["owl"] * 17}, 400, "a query has at most 16 terms, not 17."),
        ({"q": "./a.jpg"}, 400, "'./a.jpg' names a picture file, and the server reads no files"),
        ({"q": "/etc/passwd"}, 400, "names a picture file"),
        ({"q": "image:/etc/passwd"}, 400, "names a picture file"),
        ({"q": f"upload:{'0' * 64}"}, 404, "not kept any more. Send it again."),
        ({"q": f"id:{uuid.UUID(int=1)}"}, 404, "has no picture with the id"),
        ({"q": "owl", "collection": "nowhere"}, 404, "no collection 'nowhere'"),
        ({"q": "owl", "collection": "../../etc"}, 400, "cannot name a collection"),
        ({"q": "http://127.0.0.1:9/a.jpg"}, 422, "Cannot fetch http://127.0.0.1:9/a.jpg: its host"),
        ({"q": "http://127.0.0.1:9/a.jpg"}, 422, "loopback"),
        ({"q": "http://localhost:9/a.jpg"}, 422, "its host 'localhost' is a loopback address"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(
    client: TestClient, params: dict[str, str], status: int, says: str
) -> None:
    assert says in _problem(client.get("/api/v1/search", params=params), status)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "the query is not JSON"),
        (b"{", 400, "the query is not JSON"),
        (b"[" * 100_000, 400, "the query is not JSON"),
        (b"[]", 400, "the query: Input should be a valid dictionary"),
        (b'{"terms": [{"value": "owl", "weight": 0}]}', 400, "the weight of 'owl' is 0"),
        (b'{"terms": [{"value": "owl", "weight": NaN}]}', 400, "weight"),
        (b'{"terms": [{"value": "owl", "weight": Infinity}]}', 400, "weight"),
        (b'{"terms": [], "min_score": NaN}', 400, "min_score"),
        (b'{"terms": [], "limit": 1e20}', 400, "limit"),
        (b'{"terms": [], "limit": 1e999}', 400, "limit"),
        (b'{"terms": [], "offset": ' + b"9" * 20 + b"}", 400, "offset"),
        (b'{"terms": [], "offset": ' + b"9" * 5000 + b"}", 400, "the query is not JSON"),
        (b'{"terms": [{"kind": "image", "value": "/etc/passwd"}]}', 400, "terms.0.kind: Input should be"),
        (b'{"terms": [{"kind": "picture", "value": "0"}]}', 400, "file number '0' of this request"),
        (b'{"terms": [{"kind": "id", "value": "../1"}]}', 404, "is not the id of a picture"),
        (b'{"terms": [], "limit": 1e9}', 400, "limit: Input should be less than or equal to 500"),
        (b'{"terms": [{"value": "\\ud800"}]}', 400, "terms.0.value"),
    ],
)  # fmt: skip
def test_a_body_that_is_wrong_is_refused_with_the_reason(
    client: TestClient, body: bytes, status: int, says: str
) -> None:
    answer = client.post("/api/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert says in _problem(answer, status)


def test_what_is_no_picture_is_refused_with_the_reason(client: TestClient, tmp_path: Path) -> None:
    for data, says in ((b"no picture", "not a picture"), (b"", "empty")):
        answer = client.post("/api/v1/search", files={"picture": ("a.jpg", data)})
        assert says in _problem(answer, 422)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    answer = client.post("/api/v1/search", files={"picture": ("bomb.png", bomb.getvalue())})
    assert "more than the limit" in _problem(answer, 422)
    answer = client.post("/api/v1/classify", data={"label": "owl"})
    assert "no picture to classify" in _problem(answer, 400)


@pytest.mark.parametrize(
    "one", ["x", "..%2F..%2Fetc%2Fpasswd", "....//etc/passwd", str(uuid.UUID(int=5)), "%00"]
)
def test_what_is_no_id_of_a_stored_picture_is_not_found(client: TestClient, one: str) -> None:
    for route in ("images", "thumbnails", "similar"):
        answer = client.get(f"/api/v1/{route}/{one}")
        assert answer.status_code in (400, 404)
        assert "passwd" not in answer.text.replace("etc/passwd' is no id", "")


def test_no_absolute_path_is_in_a_problem(
    client: TestClient, pool: CollectionPool, photos: Path, tmp_path: Path
) -> None:
    gone = photos / "insecta" / "02.png"
    content = gone.read_bytes()
    gone.unlink()
    try:
        answer = client.get(f"/api/v1/thumbnails/{_id(photos, 'insecta/02.png')}")
    finally:
        gone.write_bytes(content)
    assert "insecta/02.png: no such file any more" in _problem(answer, 422)
    for url in ("/api/v1/search?q=a&collection=nowhere", "/api/v1/search?q=stored:x.png"):
        assert str(photos.parent) not in client.get(url).text
        assert pool.store.address not in client.get(url).text


def test_an_error_that_nobody_foresaw_tells_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("imret.web.handlers.browse", broken)
    assert "secret" not in _problem(client.get("/api/v1/images"), 500)
    assert "RuntimeError: secret" in capsys.readouterr().err


# ---- Load ---------------------------------------------------------------------------------------


def test_a_slow_picture_does_not_hold_up_words_and_too_many_of_them_are_told_to_come_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    began = threading.Semaphore(0)

    def slow(url: str, **_: Any) -> bytes:
        began.release()
        go.wait(20)
        raise DataError("gone")

    monkeypatch.setattr("imret.retrieval.fetch.fetch_picture", slow)
    answers: list[Any] = []

    def ask(i: int) -> None:
        answers.append(client.get("/api/v1/search", params={"q": f"https://example.org/{i}.jpg"}))

    clients = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    try:
        for thread in clients:
            thread.start()
        began.acquire(timeout=10)
        began.acquire(timeout=10)  # both threads for pictures are held now
        assert client.get("/api/v1/search", params={"q": "owl"}).status_code == 200
        while sum(answer.status_code == 503 for answer in answers) < 6:  # 40 less 2 at work and 32 that wait
            assert any(thread.is_alive() for thread in clients)
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "too many requests are waiting (looks)" in _problem(refused, 503)
        assert refused.headers["retry-after"] == "2"
    finally:
        go.set()
        for thread in clients:
            thread.join()
    assert sorted(answer.status_code for answer in answers) == [400] * 34 + [503] * 6


def test_names_that_are_no_text_are_answered_as_they_are(
    pool: CollectionPool, tmp_path: Path, encoder: Encoder, client: TestClient
) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"odd", b"caf\xe9.png")
    os.makedirs(os.path.dirname(odd))
    plain = draw_picture(tmp_path / "plain.png", seed=5)
    os.rename(plain, odd)
    ingest(pool.store, [FolderSource(tmp_path)], encoder=encoder, collection="odd")
    (hit,) = client.get("/api/v1/search", params={"q": "owl", "collection": "odd"}).json()["hits"]
    assert os.fsencode(hit["path"]) == odd
    assert client.get(f"/api/v1/images/{hit['id']}?collection=odd").status_code == 200


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)


def test_the_kind_of_a_problem_is_a_class_of_imret_errors_whatever_was_raised(tmp_path: Path) -> None:
    """Clients look it up there: `imret search` through a server does."""
    for error, status, kind in (
        (locked(tmp_path / "photos" / "v1", None, 1), 503, "StoreLocked"),
        (NotFound("there is no picture"), 404, "DataError"),
        (StoreUnavailable("nothing answers"), 503, "StoreUnavailable"),
    ):
        answer = problem_for(error)
        told = json.loads(bytes(answer.body))
        assert (answer.status_code, told["kind"]) == (status, kind)
        assert "retry-after" in answer.headers or status == 404


# ---- Clients that go away -------------------------------------------------------------------------


def test_a_client_that_goes_while_it_sends_is_no_failure(
    app: Any, pool: CollectionPool, capsys: pytest.CaptureFixture[str]
) -> None:
    def counted() -> str:
        exposed = pool.telemetry.exposition().decode()
        return "".join(line for line in exposed.splitlines() if line.startswith("imret_requests_total"))

    before = counted()
    assert 'status="499"' not in before
    with serving(app) as server:
        for target, kind in (
            ("/api/v1/search", "application/json"),
            ("/api/v1/classify", "multipart/form-data; boundary=x"),
        ):
            with server.line() as line:
                headers = (f"Content-Type: {kind}", "Content-Length: 99", "Expect: 100-continue")
                line.send(request(target, *headers, method="POST"))
                assert line.socket.recv(100).startswith(b"HTTP/1.1 100 ")  # the app waits for the body
                line.send(b"--x")
        until(lambda: counted().count('status="499"') == 2)
    assert counted().count('status="500"') == before.count('status="500"')
    assert "Traceback" not in capsys.readouterr().err


def test_a_client_that_goes_while_it_gets_a_picture_leaves_no_open_file(
    app: Any, client: TestClient, photos: Path
) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    picture = client.get("/api/v1/images?limit=1").json()["pictures"][0]
    file = Path(picture["path"])
    whole = file.read_bytes()

    def is_open() -> bool:
        links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return any(os.path.lexists(link) and os.path.samefile(link, file) for link in links if link.exists())

    try:
        file.write_bytes(whole + bytes(64 << 20))  # more than the buffers on the way hold
        with serving(app) as server:
            with server.line() as line:
                line.send(request(f"/api/v1/images/{picture['id']}"))
                assert line.socket.recv(1000).startswith(b"HTTP/1.1 200 ")
                assert is_open()
            until(lambda: not is_open())
    finally:
        file.write_bytes(whole)


def _form(fields: list[tuple[str, str]], picture: bytes) -> bytes:
    """Return a request that classifies a picture."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n' + picture,
        *(
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
            for name, value in fields
        ),
        b"--x--\r\n",
    ]
    body = b"\r\n".join(parts)
    headers = ("Content-Type: multipart/form-data; boundary=x", f"Content-Length: {len(body)}")
    return request("/api/v1/classify", *headers, method="POST") + body


@pytest.mark.filterwarnings("ignore::imret.models.fast.tokenizer.TextTruncated")
def test_work_ends_when_its_client_has_left_and_holds_up_no_search(
    app: Any, pool: CollectionPool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    # As long as labels may be, each a word: what took minutes.
    labels = [("label", "".join(rng.choices("etaoinshrdlu", k=MAX_TEXT))) for _ in range(MAX_LABELS)]
    data = _form(labels, (photos / "aves" / "01.png").read_bytes())
    with pool.use("photos") as pooled:
        pooled.load(pictures=True)
        encoder, encoded = pooled.encoder, []
    encode_mean = type(encoder).encode_mean

    def counted(self: Any, texts: Any) -> Any:
        encoded.append(texts)
        return encode_mean(self, texts)

    monkeypatch.setattr(type(encoder), "encode_mean", counted)
    ended: list[BaseException | None] = []
    classify = handlers.classify

    def noted(*arguments: Any, **options: Any) -> Any:
        try:
            return classify(*arguments, **options)
        except BaseException as error:
            ended.append(error)
            raise

    monkeypatch.setattr(handlers, "classify", noted)
    with serving(app) as server:
        with server.line() as line:
            line.send(data)
            until(lambda: len(encoded) > 5)
            slowest = 0.0
            for number in range(20):
                began = time.monotonic()
                assert server.get(f"/api/v1/search?q=number+{number}").status == 200
                slowest = max(slowest, time.monotonic() - began)
        until(lambda: bool(ended), timeout_s=5)
    assert isinstance(ended[0], AbandonedError)
    assert len(encoded) < MAX_LABELS
    assert slowest < 2.0  # seconds on a busy machine; the search waits for one batch, not for all labels


def test_what_waits_for_a_client_that_has_left_is_never_begun(
    app: Any, pool: CollectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool.use("photos") as pooled:
        pooled.load()
        encode, go, texts = pooled.encoder.inner.encoder.encode_texts, threading.Event(), list[str]()

        def waiting(asked: list[str], **how: Any) -> Any:
            texts.extend(asked)
            go.wait(20)
            return encode(asked, **how)

        monkeypatch.setattr(pooled.encoder.inner.encoder, "encode_texts", waiting)
    left = re.compile(r"imret_requests_total\{route=.*/search\",status=\"499\"\} (\d+)")

    def n_left() -> int:
        return sum(int(found[1]) for found in left.finditer(pool.telemetry.exposition().decode()))

    before = n_left()
    with serving(app) as server, server.line() as staying:
        with server.line() as first, server.line() as second:
            first.send(request("/api/v1/search?q=held+by+the+first&template=false"))
            until(lambda: bool(texts))
            second.send(request("/api/v1/search?q=nobody+waits+for+this&template=false"))
            second.send(b"")
            until(lambda: pool.depth == 1)
        until(lambda: n_left() == before + 2)
        staying.send(request("/api/v1/search?q=somebody+does&template=false"))
        until(lambda: pool.depth == 2)
        go.set()
        assert staying.read().status == 200
    assert "nobody waits for this" not in texts
    assert texts.count("somebody does") == 1
