"""Names are taught, used, told of and forgotten over the API; and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from imret import Encoder
from imret.errors import StoreError
from imret.retrieval.concepts import Calibration, Concept, Concepts
from imret.retrieval.query_vector import query_vector
from imret.store import Store, open_store
from imret.store.payload import point_id
from imret.web.app import create_app
from imret.web.images.files import ImageFiles
from imret.web.pool.collections import CollectionPool
from imret.web.security.public_address import PublicAddress
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture

TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(24):
        draw_picture(folder / ("fungi", "aves", "insecta")[seed % 3] / f"{seed:02}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def pool(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder
) -> Iterator[CollectionPool]:
    db = str(tmp_path_factory.mktemp("db") / "store")
    with open_store(db) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
    pool = CollectionPool(lambda: open_store(db, create=False, share=True), device="cpu", precision="fp32")
    yield pool
    pool.close()


def client_of(pool: CollectionPool, folder: Path, **options: Any) -> TestClient:
    files = ImageFiles(folder)
    app = create_app(pool, default="photos", image_files=files, host="127.0.0.1", port=8750, **options)
    return TestClient(app, base_url="http://127.0.0.1:8750", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(pool: CollectionPool, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return client_of(pool, tmp_path_factory.mktemp("thumbnails"))


@pytest.fixture(autouse=True)
def _nothing_taught_by_another_test(pool: CollectionPool) -> Iterator[None]:
    yield
    pool.store.remove_document("photos", "concepts")


@pytest.fixture
def store(pool: CollectionPool) -> Store:
    return pool.store


def ids(photos: Path, *paths: str) -> list[str]:
    return [point_id(os.path.realpath(photos), path) for path in paths]


def teach(client: TestClient, photos: Path, name: str = "rex", **more: Any) -> Any:
    body = {"name": name, "ids": ids(photos, "fungi/00.png"), **more}
    return client.post("/api/v1/concepts", json=body)


def ask(client: TestClient, words: str, **more: Any) -> Any:
    answer = client.get("/api/v1/search", params={"q": words, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def scores(found: Any) -> list[tuple[str, float]]:
    return [(hit["id"], hit["score"]) for hit in found["hits"]]


def test_a_name_is_taught_used_told_of_turned_off_and_forgotten(client: TestClient, photos: Path) -> None:
    empty = client.get("/api/v1/concepts").json()
    assert empty == {"collection": "photos", "can_be_taught": True, "concepts": [], "notes": []}
    before = {words: ask(client, words) for words in ("rex", "rex on a beach", "fido", "owl")}
    assert all(found["concepts"] == [] for found in before.values())

    taught = teach(client, photos, synonyms=["fido"]).json()
    concept = taught["concept"]
    assert (concept["name"], concept["names"], concept["images"]) == ("rex", ["rex", "fido"], 1)
    assert client.get("/api/v1/concepts").json()["concepts"] == [concept]
    assert not concept["text_kept"]  # of one picture none is held out to judge by

    after = {words: ask(client, words) for words in before}
    use = {"name": "rex", "whole": True, "strength": 1.0, "images": 1}
    assert after["rex"]["concepts"] == after["fido"]["concepts"] == [use]
    assert after["rex on a beach"]["concepts"] == [{**use, "whole": False, "strength": concept["strength"]}]
    assert after["owl"]["concepts"] == []
    assert scores(after["owl"]) == scores(before["owl"])
    assert scores(after["rex"]) != scores(before["rex"])
    assert scores(after["rex on a beach"]) != scores(before["rex on a beach"])
    assert scores(ask(client, "rex", concepts=False)) == scores(before["rex"])

    forgotten = client.delete("/api/v1/concepts", params={"name": "fido"})
    assert (forgotten.status_code, forgotten.json()["concepts"]) == (200, [])
    assert scores(ask(client, "rex")) == scores(before["rex"])
    again = client.delete("/api/v1/concepts", params={"name": "rex"})
    assert (again.status_code, again.json()["kind"]) == (404, "DataError")


def test_a_name_that_another_program_teaches_and_removes_is_taken_up_at_once(
    client: TestClient, store: Store, encoder: Encoder
) -> None:
    before = ask(client, "bird")
    text = query_vector(encoder, "bird")
    content = Concepts.of(
        encoder, [Concept("bird", ("bird",), text[::-1].copy(), text, 0.0, 1.0, 7)]
    ).to_bytes()
    with open_store(store.address, create=False) as other:
        other.change_document("photos", "concepts", lambda _: content)
        assert ask(client, "bird")["concepts"][0]["images"] == 7
        other.remove_document("photos", "concepts")
    assert scores(ask(client, "bird")) == scores(before)


def test_what_cannot_be_used_is_told_without_the_servers_paths(client: TestClient, store: Store) -> None:
    store.change_document("photos", "concepts", lambda _: b"none")
    found = ask(client, "bird")
    assert found["concepts"] == []
    (note,) = found["notes"]
    assert note.startswith("went without the concepts of collection 'photos'")
    assert store.address not in note
    assert client.get("/api/v1/concepts").json()["notes"] == [note]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"name": "\x1b[31mrex"}, 400, "control characters"),
        ({"name": "x" * 10_000}, 400, "name: String should have at most 200 characters"),
        ({"name": "   "}, 400, "the name is empty"),
        ({"name": "!?"}, 400, "no word to ask for"),
        ({"synonyms": ["a"] * 21}, 400, "synonyms"),
        ({"ids": []}, 400, "ids"),
        ({"ids": ["../../etc/passwd"]}, 404, "is not the id of a picture"),
        ({"ids": ["00000000-0000-0000-0000-000000000000"]}, 400, "1 of the 1 pictures are not in collection"),
        ({"collection": "none"}, 404, "no collection 'none'"),
        ({"nmae": "rex"}, 400, "nmae"),
    ],
)
def test_what_cannot_be_taught_is_refused_and_nothing_changes(
    client: TestClient, store: Store, photos: Path, body: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post("/api/v1/concepts", json={"name": "rex", "ids": ids(photos, "fungi/00.png"), **body})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]
    assert store.document("photos", "concepts") is None


def test_pictures_of_everything_teach_nothing(client: TestClient, photos: Path) -> None:
    every = [entry["id"] for entry in client.get("/api/v1/images?limit=500").json()["pictures"]]
    answer = client.post("/api/v1/concepts", json={"name": "rex", "ids": every})
    assert answer.status_code == 400
    assert "nothing is there to tell it from" in answer.json()["detail"]


def test_a_name_is_whole_words_of_a_query(client: TestClient, photos: Path) -> None:
    teach(client, photos)
    teach(client, photos, "dog")
    assert [use["name"] for use in ask(client, "a rex and a dog")["concepts"]] == ["rex", "dog"]
    assert ask(client, "tyrannosaurusrex")["concepts"] == []
    assert [use["name"] for use in ask(client, "rex " * 12)["concepts"]] == ["rex"]


def test_a_store_that_cannot_be_written_to_says_so(
    client: TestClient, store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*of: object) -> None:
        raise StoreError(f"cannot write '{store.address}/photos/concepts.document': Read-only file system")

    monkeypatch.setattr(type(store), "change_document", refuse)
    answer = teach(client, photos)
    assert (answer.status_code, answer.json()["kind"]) == (409, "StoreError")
    assert "Read-only file system" in answer.json()["detail"]
    assert store.address not in answer.json()["detail"]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_pages_of_other_sites_teach_and_forget_nothing(client: TestClient, photos: Path, method: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = client.request(method, "/api/v1/concepts?name=rex", headers=headers, json={"name": "rex"})
        assert answer.status_code == 403
    assert client.get("/api/v1/concepts").json()["concepts"] == []


@pytest.mark.parametrize(
    "options", [{"allow_hosts": ["photos.example"]}, {"public": PublicAddress(origin="https://a.example")}]
)
def test_a_server_that_others_reach_takes_names_only_from_who_has_the_token(
    pool: CollectionPool, photos: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    open_to_all = client_of(pool, tmp_path, **options)
    answer = teach(open_to_all, photos)
    assert (answer.status_code, answer.json()["kind"]) == (403, "DataError")
    assert "IMRET_TOKEN" in answer.json()["detail"]
    assert open_to_all.delete("/api/v1/concepts?name=rex").status_code == 403
    assert open_to_all.get("/api/v1/concepts").json()["can_be_taught"] is False

    guarded = client_of(pool, tmp_path, token=TOKEN, **options)
    assert teach(guarded, photos).status_code == 401
    guarded.headers["Authorization"] = f"Bearer {TOKEN}"
    assert teach(guarded, photos).status_code == 200


def test_classify_says_what_was_learnt_and_can_go_without(client: TestClient, photos: Path) -> None:
    teach(client, photos)
    form = {"id": ids(photos, "fungi/00.png"), "label": ["rex", "teapot"]}
    found = client.post("/api/v1/classify", data=form).json()
    by_label = {one["label"]: one for one in found["pictures"][0]["predictions"]}
    assert {label: one["learnt"] for label, one in by_label.items()} == {"rex": True, "teapot": False}
    assert found["expected_error"] is None
    assert found["notes"] == []
    words = client.post("/api/v1/classify", data={**form, "concepts": "false"}).json()
    assert not any(one["learnt"] for one in words["pictures"][0]["predictions"])
    wrong = client.post("/api/v1/classify", data={**form, "concepts": "no"})
    assert wrong.status_code == 400
    assert "concepts is true or false, not 'no'" in wrong.json()["detail"]


def test_classify_says_how_far_calibrated_probabilities_are_off(
    client: TestClient, photos: Path, store: Store, encoder: Encoder
) -> None:
    rng = np.random.default_rng(0)
    learnt = [
        Concept(
            name,
            (name,),
            rng.normal(size=encoder.dim).astype(np.float32),
            encoder.encode_texts([name])[0],
            0.0,
            1.0,
            9,
        )
        for name in ("rex", "fido")
    ]
    concepts = Concepts.of(encoder, learnt, Calibration({"rex": 0.5, "fido": 0.0}, 3.0, 0.3, 0.0625))
    store.change_document("photos", "concepts", lambda _: concepts.to_bytes())
    form = {"id": ids(photos, "fungi/00.png"), "label": ["rex", "fido"]}
    assert client.post("/api/v1/classify", data=form).json()["expected_error"] == 0.0625
