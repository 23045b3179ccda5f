"""`imret serve` over a cluster a node of which is away: held, then 503, and nothing of its inside is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models
from starlette.testclient import TestClient

from imret import Encoder
from imret.store.server.store import ServerStore
from imret.web.app import create_app
from imret.web.images.files import ImageFiles
from imret.web.pool import collections as module
from imret.web.pool.collections import CollectionPool
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_http import QdrantOverHTTP
from tests.fakes.web_server import until

pytestmark = [
    *(pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS),
    pytest.mark.filterwarnings("ignore:a part of the collection is away"),
]

NODE = "http://10.0.0.3:6335/"


@pytest.fixture
def qdrant(tmp_path: Path, random_model: Path) -> Iterator[QdrantOverHTTP]:
    for seed in range(6):
        draw_picture(tmp_path / "photos" / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    with QdrantOverHTTP() as running:
        with ServerStore(running.url) as store:
            for name in ("photos", "lost"):
                ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder, collection=name)
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def patience_s() -> float:
    """How long a request waits for what is away; short, because most of these tests see it run out."""
    return 0.6


@pytest.fixture
def client(
    qdrant: QdrantOverHTTP,
    tmp_path: Path,
    said: list[str],
    patience_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestClient]:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    pool = CollectionPool(
        lambda: ServerStore(qdrant.url, patience_s=patience_s),
        device="cpu",
        precision="fp32",
        keep="photos",
        notify=said.append,
    )
    app = create_app(
        pool, default="photos", image_files=ImageFiles(tmp_path / "t"), host="127.0.0.1", port=8750
    )
    until(lambda: pool.peek("photos") is not None)
    with TestClient(app, base_url="http://127.0.0.1:8750", raise_server_exceptions=False) as client:
        yield client  # whose end closes the pool


def test_readiness_tells_the_truth(client: TestClient, qdrant: QdrantOverHTTP, said: list[str]) -> None:
    assert client.get("/readyz").text == "ready\n"
    qdrant.engine.node_away = NODE
    until(lambda: client.get("/readyz").status_code == 503)
    answer = client.get("/readyz")
    assert answer.json()["detail"] == "the collection does not answer now."
    assert int(answer.headers["retry-after"]) > 0
    assert client.get("/healthz").status_code == 200
    qdrant.engine.node_away = ""
    until(lambda: client.get("/readyz").status_code == 200)
    # Whoever runs it is told all, once.
    assert [line for line in said if "10.0.0.3:6335" in line] == said[:1]
    assert said[-1] == "photos: answers again"
    qdrant.fail = lambda method, path: 0  # the whole server
    until(lambda: client.get("/readyz").status_code == 503)


@pytest.mark.parametrize("patience_s", [60.0])  # the machine may be busy when the node is back
def test_a_request_is_held_and_answered_when_the_node_is_back(
    client: TestClient, qdrant: QdrantOverHTTP
) -> None:
    client.get("/api/v1/search", params={"q": "an owl"})
    qdrant.engine.node_away = NODE
    threading.Timer(0.3, lambda: setattr(qdrant.engine, "node_away", "")).start()
    started = time.monotonic()
    answer = client.get("/api/v1/search", params={"q": "an owl"})
    assert answer.status_code == 200
    assert len(answer.json()["hits"]) == 6
    assert time.monotonic() - started > 0.25


@pytest.mark.parametrize("how", ["a node", "the server", "an error"])
def test_no_answer_names_what_is_inside(
    client: TestClient, qdrant: QdrantOverHTTP, how: str, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    (point,) = client.get("/api/v1/images", params={"limit": 1}).json()["pictures"]
    if how == "a node":
        qdrant.engine.node_away = NODE
    elif how == "the server":
        qdrant.fail = lambda method, path: 0
    else:
        qdrant.fail = lambda method, path: (
            None if path == "/aliases" else (500, f"panicked at {NODE} 10.0.0.3:6335")
        )
    asked: dict[str, dict[str, Any]] = {
        "/api/v1/search": {"q": "an owl"},
        "/api/v1/similar/" + point["id"]: {},
        "/api/v1/categories": {},
        "/api/v1/images": {},
        "/api/v1/images/" + point["id"]: {},
        "/api/v1/images/" + point["id"] + "/payload": {},
        "/api/v1/thumbnails/" + point["id"]: {},
    }
    for path, params in asked.items():
        for collection in ("photos", "lost"):
            answer = client.get(path, params={**params, "collection": collection})
            assert answer.status_code == (500 if how == "an error" else 503), (path, answer.text)
            if how != "an error":
                assert int(answer.headers["retry-after"]) > 0
                assert answer.json()["kind"] == "StoreUnavailable"
            for inside in ("10.0.0.3", "6335", f":{qdrant.port}", "127.0.0.1", "Tonic", "docker"):
                assert inside not in answer.text, (path, answer.text)
    # Whoever runs the server is told all of it.
    log = capsys.readouterr().err + "\n".join(said)
    assert {"a node": "10.0.0.3:6335", "the server": qdrant.url, "an error": "panicked at"}[how] in log
    if how == "a node":
        answer = client.get("/api/v1/search", params={"q": "an owl"})
        assert answer.json()["detail"].startswith("a part of the collection is away")


def test_what_there_is_is_listed_with_what_does_not_answer(
    client: TestClient, qdrant: QdrantOverHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.web.routes.LIST_PATIENCE_S", 0.1)
    names = {one.alias_name: one.collection_name for one in qdrant.engine.get_aliases().aliases}
    qdrant.engine.replicated.add(names["photos"])
    qdrant.engine.node_away = NODE
    answer = client.get("/api/v1/collections")
    assert answer.status_code == 200
    lost, photos = answer.json()["collections"]
    assert (photos["name"], photos["images"], photos["m"]) == ("photos", 6, 16)
    assert photos["status"] in ("yellow", "green")
    assert (lost["name"], lost["images"], lost["model"], lost["m"]) == ("lost", None, "", None)
    assert lost["status"].startswith("a part of the collection is away")
    assert client.get("/readyz").status_code == 200


def test_of_a_red_collection_the_colour_is_told(
    client: TestClient, qdrant: QdrantOverHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = qdrant.engine.get_collection

    def red(*args: Any, **kwargs: Any) -> models.CollectionInfo:
        failed = models.OptimizersStatusOneOf1(error="cannot open /qdrant/storage/collections/v1/0/segments")
        change = {"status": models.CollectionStatus.RED, "optimizer_status": failed}
        return described(*args, **kwargs).model_copy(update=change)

    monkeypatch.setattr(qdrant.engine, "get_collection", red)
    answer = client.get("/api/v1/collections")
    assert [one["status"] for one in answer.json()["collections"]] == ["red", "red"]
    assert "segments" not in answer.text


def test_a_point_that_spoils_every_search_is_named_without_where_it_lies(
    client: TestClient, qdrant: QdrantOverHTTP
) -> None:
    names = {one.alias_name: one.collection_name for one in qdrant.engine.get_aliases().aliases}
    size = qdrant.engine.get_collection("photos").config.params.vectors.size  # type: ignore[union-attr]
    id = "00000000-0000-0000-0000-000000000007"
    point = models.PointStruct(id=id, vector=[float("nan")] * size, payload={})
    qdrant.engine.upsert(names["photos"], [point])
    answer = client.get("/api/v1/search", params={"q": "an owl"})
    assert answer.status_code == 500
    assert answer.json()["detail"] == (
        f"the collection cannot be searched: the vector of point {id} holds NaN, and no search gets "
        "past it. imret collections check removes it."
    )


def test_a_collection_that_is_not_there_is_told_without_where_that_is(
    client: TestClient, qdrant: QdrantOverHTTP
) -> None:
    answer = client.get("/api/v1/categories", params={"collection": "nonesuch"})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "no collection 'nonesuch'. There are: lost, photos."
