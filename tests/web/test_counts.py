"""What the API says of how many pictures there are is what comes, page by page, to whoever asks for them."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance
from starlette.testclient import TestClient

from imret import Encoder
from imret.retrieval.query_vector import QueryEmbedder
from imret.store import open_store
from imret.store.payload import point_id
from imret.web.app import create_app
from imret.web.images.files import ImageFiles
from imret.web.pool.collections import CollectionPool
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture

PAGE = 19
CATEGORIES = ("aves", "fungi", "insecta", "Äpfel")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four categories and of none, with copies of the same bytes and others that look alike."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(36):
        size = (64, 48) if seed % 2 else (96, 64)
        draw_picture(folder / CATEGORIES[seed % 4] / f"{seed:02}.png", seed=seed, size=size)
    for seed in (90, 91):
        draw_picture(folder / f"loose {seed}.png", seed=seed)
    first = folder / CATEGORIES[0] / "00.png"
    for copy in (folder / "fungi" / "copy.png", folder / "loose copy.png"):
        copy.write_bytes(first.read_bytes())
    with Image.open(first) as image:
        for at in range(6):
            brighter = ImageEnhance.Brightness(image.convert("RGB")).enhance(1 + 0.02 * (at + 1))
            brighter.save(folder / CATEGORIES[at % 3] / f"brighter {at}.png")
    return folder


@pytest.fixture(scope="module")
def pool(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, random_model: Path
) -> Iterator[CollectionPool]:
    db = str(tmp_path_factory.mktemp("db") / "store")
    with open_store(db) as store:
        ingest(store, [FolderSource(photos)], encoder=Encoder(str(random_model), device="cpu"))
    pool = CollectionPool(lambda: open_store(db, create=False), device="cpu", precision="fp32")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, pool: CollectionPool) -> TestClient:
    files = ImageFiles(tmp_path_factory.mktemp("thumbnails"))
    app = create_app(pool, default="photos", image_files=files, host="127.0.0.1", port=8750)
    return TestClient(app, base_url="http://127.0.0.1:8750")


def _get(client: TestClient, path: str, params: dict[str, Any]) -> dict[str, Any]:
    answer = client.get(f"/api/v1/{path}", params=params)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def _all_hits(client: TestClient, params: dict[str, Any], page: int = PAGE) -> list[dict[str, Any]]:
    """Return what comes to whoever scrolls to the end."""
    hits: list[dict[str, Any]] = []
    while True:
        said = _get(client, "search", {**params, "limit": page, "offset": len(hits)})
        hits += said["hits"]
        if not said["more"]:
            return hits


def _clicked(params: dict[str, Any], category: str) -> dict[str, Any]:
    """Return what the page asks for after a click on a category's chip where no other is chosen."""
    others = [other for other in params["not_category"] if other != category]
    return {**params, "category": [category], "not_category": others}


def _some_query(random: random.Random, photos: Path, upload: str) -> dict[str, Any]:
    def id(path: str) -> str:
        return "id:" + point_id(os.path.realpath(photos), path)

    queries: list[dict[str, Any]] = [
        {"q": ["a red thing"]},
        {"q": ["bird"], "not": ["round"]},
        {"q": [id("aves/00.png")]},
        {"q": [id("loose copy.png"), "blue"]},
        {"q": ["stored:fungi/01.png"]},
        {"q": [upload]},
        {"q": [upload, id("insecta/02.png")]},
        {"q": ["2:green"], "not": [id("aves/00.png")]},
        {"q": ["green"], "not": [upload, "0.3:red"]},
    ]
    return {
        **random.choice(queries),
        "relevant": random.random() < 0.3,
        "include_self": random.random() < 0.3,
        "where": random.choice([[], [], ["width>=80"], ["category!=insecta"], ["width<=64", "height>=10"]]),
        "not_category": random.sample(CATEGORIES, random.choice([0, 0, 1, 2])),
        **({"min_score": random.choice([-1.0, -0.05, 0.0, 0.1, 0.6])} if random.random() < 0.4 else {}),
    }


def test_a_category_holds_as_many_hits_as_its_count_says_under_any_options(
    client: TestClient, photos: Path
) -> None:
    data = (photos / "aves" / "00.png").read_bytes()
    client.post("/api/v1/search", files={"picture": ("sent.png", data)})
    upload = f"upload:{hashlib.sha256(data).hexdigest()}"
    chance = random.Random(20)
    seen = {"cut": 0, "good": 0, "left out": 0, "empty": 0}
    for _ in range(30):
        params = _some_query(chance, photos, upload)
        said = _get(client, "search", {**params, "counts": True})
        counts = said["counts"]
        hits = {entry["category"]: entry["hits"] for entry in counts["categories"]}
        anywhere = _all_hits(client, {**params, "not_category": []})
        assert sum(hits.values()) + counts["uncategorised"] == len(anywhere), params
        assert counts["hits"] == len(_all_hits(client, params)), params
        assert counts["complete"]
        for category, n in hits.items():
            assert len(_all_hits(client, _clicked(params, category))) == n, (params, category)
        several = {**params, "category": list(hits)[:2], "not_category": list(hits)[1:2]}
        total = _get(client, "search", {**several, "counts": True})["counts"]["hits"]
        assert total == len(_all_hits(client, several)) == hits[next(iter(hits))], params
        kept = len(_all_hits(client, {**params, "include_self": True}))
        assert said["left_out"] == (0 if params["include_self"] else kept - counts["hits"]), params
        seen["cut"] += 0 < len(anywhere) < 30
        seen["good"] += params["relevant"] and 0 < len(anywhere) < 40
        seen["left out"] += said["left_out"] > 0
        seen["empty"] += not anywhere
    # The draw has met what it is there for.
    assert min(seen.values()) >= 3, seen


def test_with_duplicates_hidden_a_count_is_of_the_shown_and_those_they_stand_for(client: TestClient) -> None:
    for params in ({"q": "a red thing"}, {"q": "stored:aves/00.png", "relevant": True}):
        counts = _get(client, "search", {**params, "unique": True, "counts": True})["counts"]
        for category in [None, *(entry["category"] for entry in counts["categories"])]:
            only = {} if category is None else {"category": category}
            found = counts["hits"]
            if category is not None:
                [found] = [e["hits"] for e in counts["categories"] if e["category"] == category]
            shown = _all_hits(client, {**params, **only, "unique": True}, page=100)
            assert sum(1 + hit["folded"] for hit in shown) == found
        assert len(_all_hits(client, {**params, "unique": True}, page=100)) < counts["hits"]


def test_counts_without_a_query_are_those_of_the_pages(client: TestClient) -> None:
    for where in ([], ["width>=80"], ["category!=aves"]):
        said = _get(client, "categories", {"where": where})
        listed = _get(client, "images", {"where": where, "limit": 500})
        assert said["images"] == listed["images"] == len(listed["pictures"])
        assert said["uncategorised"] == sum(p["category"] is None for p in listed["pictures"])
        for entry in said["categories"]:
            only = _get(client, "images", {"where": where, "category": entry["category"]})
            assert only["images"] == entry["images"]


def test_a_category_in_two_spellings_is_counted_as_the_one_that_it_is(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older imret stored categories as their folders are spelled, on a Mac decomposed."""
    from imret.store.collection import Collection

    counted = Collection.facet

    def in_two(self: Collection, field: str, filter: Any = None) -> dict[str, int]:
        counts = counted(self, field, filter)
        if field == "category" and (n := counts.pop("Äpfel", 0)):
            counts |= {"Äpfel": n - 1, unicodedata.normalize("NFD", "Äpfel"): 1}
        return counts

    expected = _get(client, "categories", {"where": "width>=10"})["categories"]
    monkeypatch.setattr(Collection, "facet", in_two)
    said = _get(client, "categories", {"where": "width>=10"})["categories"]
    assert {e["category"]: e["images"] for e in said} == {e["category"]: e["images"] for e in expected}
    counts = _get(client, "search", {"q": "red", "where": "width>=10", "counts": True})["counts"]
    assert {e["category"]: e["hits"] for e in counts["categories"]} == {
        e["category"]: e["images"] for e in expected
    }


def test_more_hits_than_a_ranking_is_followed_for_are_said_to_be_of_the_best(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"q": "a red thing", "min_score": -0.9, "counts": True}
    whole = _get(client, "search", params)["counts"]
    assert whole["complete"]
    monkeypatch.setattr("imret.retrieval.counts._STEPS", (4, 9))
    best = _get(client, "search", params)["counts"]
    assert (best["hits"], best["complete"]) == (9, False)
    monkeypatch.setattr("imret.retrieval.counts._STEPS", (4, whole["hits"] + 1))
    assert _get(client, "search", params)["counts"] == whole


def test_pictures_that_come_meanwhile_are_in_their_category_at_once(
    client: TestClient, pool: CollectionPool, random_model: Path, tmp_path: Path
) -> None:
    before = _get(client, "categories", {})
    draw_picture(tmp_path / "fungi" / "new.png", seed=500)
    ingest(pool.store, [FolderSource(tmp_path)], encoder=Encoder(str(random_model), device="cpu"))
    after = _get(client, "categories", {})
    assert after["images"] == before["images"] + 1
    assert after["uncategorised"] == before["uncategorised"]
    counts = _get(client, "search", {"q": "red", "counts": True})["counts"]
    assert (counts["hits"], counts["uncategorised"]) == (after["images"], after["uncategorised"])


def test_to_count_is_no_second_search(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[object] = []
    embed, cut = QueryEmbedder.embed, QueryEmbedder.relevance_threshold
    monkeypatch.setattr(QueryEmbedder, "embed", lambda self, terms: embedded.append("") or embed(self, terms))
    monkeypatch.setattr(
        QueryEmbedder,
        "relevance_threshold",
        lambda self, terms, vector: embedded.append("") or cut(self, terms, vector),
    )
    said = _get(client, "search", {"q": "red", "relevant": True, "counts": True})
    assert said["counts"] is not None
    assert len(embedded) == 2  # a query and a cut, each once
