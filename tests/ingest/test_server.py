"""Ingest into a Qdrant server over a real socket: filled, gone in the middle, completed by the next run."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imret import Encoder
from imret.errors import DataError, StoreUnavailable
from imret.retrieval.search import search
from imret.store import open_store
from imret.store.server.connection import ServerWarning
from imret.store.server.store import ServerStore
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LOCAL_MODE_WARNINGS]


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(12):
        draw_picture(tmp_path / "photos" / ("fungi", "aves")[seed % 2] / f"{seed:02}.png", seed=seed)
    return tmp_path / "photos"


def _stored(url: str, collection: str) -> set[str]:
    with open_store(url) as store, closing(store.open(collection)) as opened:
        return {point.payload["path"] for points in opened.scan() for point in points}


def test_a_server_that_goes_in_the_middle_is_named_and_the_next_run_completes(
    photos: Path, encoder: Encoder
) -> None:
    with QdrantOverHTTP() as server:
        n_upserts = 0

        def go_after_two_batches(method: str, path: str) -> int | None:
            nonlocal n_upserts
            n_upserts += method == "PUT" and path.endswith("/points")
            return 0 if n_upserts > 2 else None

        server.fail = go_after_two_batches
        with (
            ServerStore(server.url, patience_s=0.5) as store,
            pytest.raises(StoreUnavailable, match=f"no answer from Qdrant at {server.url}"),
        ):
            ingest(store, [FolderSource(photos)], encoder=encoder, batch_size=2)
        server.fail = lambda method, path: None
        assert 0 < len(_stored(server.url, "photos")) < 12
        with open_store(server.url) as store:
            report = ingest(store, [FolderSource(photos)], encoder=encoder, batch_size=2)
        assert report.complete
        assert report.unchanged > 0
        assert len(_stored(server.url, "photos")) == 12


def test_a_hiccup_of_the_server_is_ridden_out(photos: Path, encoder: Encoder) -> None:
    with QdrantOverHTTP() as server:
        refused = 0

        def busy_every_third_time(method: str, path: str) -> int | None:
            nonlocal refused
            if len(server.requests) % 3 == 0:
                refused += 1
                return 503
            return None

        server.fail = busy_every_third_time
        with open_store(server.url) as store:
            report = ingest(store, [FolderSource(photos)], encoder=encoder, batch_size=2)
        assert refused > 3
        assert report.added == 12
        server.fail = lambda method, path: None
        assert len(_stored(server.url, "photos")) == 12


def test_a_node_of_a_cluster_that_goes_in_the_middle_is_waited_for_and_named(
    photos: Path, encoder: Encoder
) -> None:
    with QdrantOverHTTP() as server:
        n_upserts = 0

        def lose_a_node_after_two_batches(method: str, path: str) -> None:
            nonlocal n_upserts
            n_upserts += method == "PUT" and path.endswith("/points")
            if n_upserts == 3:
                n_upserts += 1
                server.engine.node_away = "http://10.0.0.3:6335/"
                threading.Timer(3.0, lambda: setattr(server.engine, "node_away", "")).start()

        server.fail = lose_a_node_after_two_batches  # type: ignore[assignment]
        with (
            ServerStore(server.url) as store,
            pytest.warns(ServerWarning, match=r"waiting for the node 10\.0\.0\.3:6335 of its cluster"),
        ):
            report = ingest(store, [FolderSource(photos)], encoder=encoder, batch_size=2)
        assert n_upserts > 4
        assert report.added == 12
        assert len(_stored(server.url, "photos")) == 12


def test_a_moved_folder_and_one_around_it_keep_their_vectors_there(photos: Path, encoder: Encoder) -> None:
    with QdrantOverHTTP() as server, open_store(server.url) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        moved = photos.rename(photos.parent / "archive")
        with pytest.raises(DataError, match="Has it moved there"):
            ingest(store, [FolderSource(moved)], encoder=encoder)
        report = ingest(store, [FolderSource(moved)], encoder=encoder, moved_from=[str(photos)])
        assert (report.unchanged, report.encoded, report.taken_over) == (12, 0, {str(photos): 12})
        draw_picture(photos.parent / "new.png", seed=50)
        report = ingest(store, [FolderSource(photos.parent)], encoder=encoder)
        assert (report.unchanged, report.encoded, report.taken_over) == (12, 1, {str(moved): 12})
        with closing(store.open("photos")) as opened:
            assert opened.facet("source") == {str(photos.parent): 13}
            assert opened.facet("category") == {"archive": 12}


@pytest.fixture
def real_server() -> Iterator[tuple[str, str]]:
    """The address of a real server, and a collection name that is free there and deleted at the end."""
    url = os.environ.get("IMRET_TEST_QDRANT_URL")
    if not url:
        pytest.skip("set IMRET_TEST_QDRANT_URL to a Qdrant server, such as http://localhost:6333")
    name = f"imret-test-{uuid.uuid4().hex[:12]}"
    yield url, name
    with open_store(url) as store:
        store.drop(name)


@pytest.mark.server
def test_the_chain_runs_there(photos: Path, encoder: Encoder, real_server: tuple[str, str]) -> None:
    url, name = real_server
    with open_store(url) as store:
        assert ingest(store, [FolderSource(photos)], encoder=encoder, collection=name).added == 12
        assert ingest(store, [FolderSource(photos)], encoder=encoder, collection=name).unchanged == 12
        hits = search(store, "wing", collection=name, encoder=encoder, categories=["aves"], limit=12)
    files = sorted((photos / "aves").iterdir())
    assert sorted(hit.path for hit in hits) == [str(file) for file in files]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
