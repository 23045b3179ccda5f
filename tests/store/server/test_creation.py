"""What a server is told when a collection is made or brought up to date, and what is said while it builds."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from imret.errors import DataError, StoreError
from imret.store import INDEXED_FIELDS, Creation, Identity, Match
from imret.store.filter import Filter
from imret.store.server import building
from imret.store.server.connection import ServerWarning
from imret.store.server.creation import Dialect, creation_of
from imret.store.server.store import ServerStore
from imret.store.types import Progress
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, VERSION, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)
ASKED = Creation(
    shards=6,
    replicas=1,
    write_consistency=1,
    segment_mb=2_000,
    quantize="bits4",
    originals="cached",
    quantized="cached",
)


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as running:
        yield running


@pytest.fixture(params=["HTTP", "gRPC", pytest.param("real server", marks=pytest.mark.server)])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a server answers."""
    if request.param == "real server":
        real = os.environ.get("IMRET_TEST_QDRANT_URL")
        if not real:
            pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
        yield real
        return
    with QdrantOverHTTP() as fake:
        if request.param == "gRPC":
            with QdrantOverGRPC(fake) as faster:
                monkeypatch.setattr("imret.store.server.connection.REST_PORT", fake.port)
                monkeypatch.setattr("imret.store.server.connection.GRPC_PORT", faster.port)
                yield fake.url
        else:
            yield fake.url


@pytest.fixture
def name(url: str) -> Iterator[str]:
    """A collection name of this test's own."""
    unique = f"imret-test-{uuid.uuid4().hex}"
    yield unique
    with ServerStore(url) as store:
        store.drop(unique)


def points(n: int) -> tuple[list[str], np.ndarray, list[dict[str, Any]]]:
    vectors = np.random.default_rng(0).standard_normal((n, MODEL.dim)).astype(np.float32)
    payloads = [{"category": f"c{i % 3}", "path": f"{i}.jpg", "width": i} for i in range(n)]
    return [str(uuid.UUID(int=i + 1)) for i in range(n)], vectors, payloads


def described(store: ServerStore, physical: str) -> models.CollectionInfo:
    info: models.CollectionInfo = store._client.get_collection(physical)
    return info


def params_of(info: models.CollectionInfo) -> dict[str, dict[str, Any]]:
    """Return what is known of each index, but for its kind."""
    return {
        field: {} if one.params is None else one.params.model_dump(mode="json", exclude_none=True)
        for field, one in info.payload_schema.items()
    }


def test_a_collection_is_made_as_asked(url: str, name: str) -> None:
    with ServerStore(url, creation=ASKED) as store:
        with closing(store.open_version(name, MODEL)) as made:
            assert made.creation() == ASKED
            assert creation_of(described(store, made.version)) == ASKED
            made.upsert(*points(60))
            hits = made.search(points(1)[1][0], limit=1)
            assert [hit.id for hit in hits] == [points(1)[0][0]]
        store.open_version(name, MODEL).close()  # as it is
    with (
        ServerStore(url, creation=Creation(shards=3)) as store,
        pytest.raises(DataError, match="exists with 6 shards, not 3 shards"),
    ):
        store.open_version(name, MODEL)


@pytest.mark.server
def test_each_part_lies_on_as_many_nodes_as_asked() -> None:
    peers = [peer for peer in os.environ.get("IMRET_TEST_QDRANT_PEERS", "").split(",") if peer]
    if len(peers) < 2:
        pytest.skip("set IMRET_TEST_QDRANT_PEERS to the URLs of the nodes of a cluster, with commas between")
    asked = Creation(shards=6, replicas=2, write_consistency=2)
    name = f"imret-test-{uuid.uuid4().hex}"
    with ServerStore(peers[0], creation=asked) as store:
        try:
            with closing(store.open_version(name, MODEL)) as made:
                made.upsert(*points(60))
                assert made.creation().only(asked.asked) == asked
                placed = store._client.collection_cluster_info(made.version)
                nodes: dict[int, set[int]] = {}
                for local in placed.local_shards:
                    nodes.setdefault(local.shard_id, set()).add(placed.peer_id)
                for remote in placed.remote_shards:
                    nodes.setdefault(remote.shard_id, set()).add(remote.peer_id)
                assert [len(nodes[shard]) for shard in sorted(nodes)] == [2] * 6
                for peer in peers:
                    with ServerStore(peer) as other, closing(other.open_version(name, MODEL)) as seen:
                        assert seen.count() == 60
        finally:
            store.drop(name)


def test_a_version_is_made_like_the_one_that_it_replaces(url: str, name: str) -> None:
    with ServerStore(url, creation=ASKED) as store:
        store.open_version(name, MODEL).close()
        store.promote(name, MODEL)
    with ServerStore(url) as store, closing(store.create_staging(name, MODEL)) as made:
        assert made.creation() == ASKED
    other = Creation(shards=2, quantize="int8")
    with ServerStore(url, creation=other) as store, closing(store.create_staging(name, MODEL)) as made:
        assert made.creation() == other.over(ASKED)


def test_without_a_word_originals_are_cold_and_segments_large(url: str, name: str) -> None:
    with ServerStore(url) as store, closing(store.open_version(name, MODEL)) as made:
        like = made.creation()
        assert (like.quantize, like.originals, like.quantized) == ("int8", "cold", "pinned")
        assert like.segment_mb == 5_000


def test_payload_indexes_are_placed_by_use(url: str, name: str) -> None:
    with ServerStore(url) as store, closing(store.open_version(name, MODEL)) as made:
        params = params_of(described(store, made.version))
    assert set(params) == set(INDEXED_FIELDS)
    memory = {field: one["memory"] for field, one in params.items()}
    assert {field for field, word in memory.items() if word == "cold"} == {*INDEXED_FIELDS} - {
        "category",
        "source",
    }
    assert (memory["category"], memory["source"]) == ("pinned", "cached")
    without_links = {field for field, one in params.items() if one.get("enable_hnsw") is False}
    assert without_links == {*INDEXED_FIELDS} - {"category", "source"}


def make_as_an_older_imret(store: ServerStore, name: str) -> str:
    """Make a live version with a few points as imret did before it asked for places; return its name."""
    with closing(store.open_version(name, MODEL)) as made:
        physical = made.version
    note = store._client.get_collection(physical).config.metadata
    store._client.delete_collection(physical)
    store._client.create_collection(
        physical,
        vectors_config=models.VectorParams(size=MODEL.dim, distance=models.Distance.COSINE),
        hnsw_config=models.HnswConfigDiff(m=16, ef_construct=200),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True
            )
        ),
        metadata=note,
    )
    kinds = {"width": "integer", "height": "integer", "size_bytes": "integer", "modified": "datetime"}
    for field in INDEXED_FIELDS:
        kind = models.PayloadSchemaType(kinds.get(field, "keyword"))
        store._client.create_payload_index(physical, field, field_schema=kind, wait=True)
    with closing(store.open_version(name, MODEL)) as made:
        made.upsert(*points(90))
    store.promote(name, MODEL)
    return physical


def test_an_older_collection_works_and_is_brought_up_to_date(url: str, name: str) -> None:
    with ServerStore(url) as store:
        physical = make_as_an_older_imret(store, name)
        _, vectors, _ = points(90)
        only = Filter(must=(Match("category", ("c1",)),))
        with closing(store.open(name)) as opened:
            before = opened.search(vectors[1], limit=5, filter=only)
            changed = opened.to_current()
            opened.optimize(timeout_s=60)
            assert "originals cold" in changed
            assert {f"index of {field}" for field in ("path", "sha256", "width", "modified")} <= set(changed)
            assert "index of category" not in changed  # has been in memory, and has links
            assert opened.search(vectors[1], limit=5, filter=only) == before
            assert opened.count() == 90
            assert opened.facet("category") == {"c0": 30, "c1": 30, "c2": 30}
            assert opened.to_current() == []  # nothing is left to do
        with closing(store.open_version(f"{name}-new", MODEL)) as new:
            assert params_of(described(store, physical)) | {"category": {}} == (
                params_of(described(store, new.version)) | {"category": {}}
            )
        store.drop(f"{name}-new")


def test_how_vectors_are_compressed_can_be_changed(url: str, name: str) -> None:
    with ServerStore(url) as store:
        make_as_an_older_imret(store, name)
        with closing(store.open(name)) as opened:
            assert "bits4" in opened.to_current(Creation(quantize="bits4"))
            opened.optimize(timeout_s=60)
            assert opened.creation().quantize == "bits4"
            assert "bits4" not in opened.to_current()  # and it stays
            assert opened.creation().quantize == "bits4"
            with pytest.raises(DataError, match="--shards cannot be changed"):
                opened.to_current(Creation(shards=2))


@pytest.mark.parametrize(
    ("server", "vectors", "quantization", "path"),
    [
        (
            "1.19.0",
            {"memory": "cold"},
            {"memory": "pinned"},
            {"memory": "cold", "enable_hnsw": False},
        ),
        ("1.18.2", {"on_disk": True}, {"always_ram": True}, {"on_disk": True, "enable_hnsw": False}),
        ("1.16.3", {"on_disk": True}, {"always_ram": True}, {"on_disk": True}),
    ],
)
def test_an_older_server_is_told_in_words_that_it_knows(
    server: str, vectors: dict[str, Any], quantization: dict[str, Any], path: dict[str, Any]
) -> None:
    options = Dialect(server).creation(8, Creation())

    def told(model: Any) -> dict[str, Any]:
        places = ("memory", "on_disk", "always_ram", "enable_hnsw")
        dumped: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
        return {key: value for key, value in dumped.items() if key in places}

    assert told(options["vectors_config"]) == vectors
    assert told(options["quantization_config"].scalar) == quantization
    assert told(Dialect(server).index("path")) == path


def test_a_server_too_old_for_a_compression_is_named() -> None:
    with pytest.raises(
        StoreError, match=r"the Qdrant 1\.17\.1 at http://here has no bits4: TurboQuant came with"
    ):
        Dialect("1.17.1", "http://here").creation(8, Creation(quantize="bits4"))
    Dialect("1.17.1").creation(8, Creation(quantize="binary"))


def test_a_server_before_places_in_memory_makes_what_is_asked() -> None:
    with (
        QdrantOverHTTP(version={**VERSION, "version": "1.18.2"}) as old,
        ServerStore(
            old.url, creation=Creation(originals="cached", quantized="cached", quantize="bits1")
        ) as store,
        closing(store.open_version("photos", MODEL)) as made,
    ):
        assert made.creation().only(("originals", "quantized", "quantize")) == store.creation
        assert params_of(described(store, made.version))["sha256"]["on_disk"] is True


# ---- While it builds ------------------------------------------------------------------------------


def test_a_limit_ends_the_wait_and_says_what_goes_on(qdrant: QdrantOverHTTP) -> None:
    seen: list[Progress] = []
    with ServerStore(qdrant.url) as store, closing(store.open_version("photos", MODEL)) as made:
        made.upsert(*points(40))
        qdrant.engine.stuck.add(made.version)
        with pytest.raises(StoreError, match="is not built after 0 s, which was the limit") as caught:
            made.optimize(timeout_s=0.4, on_progress=seen.append)
    text = str(caught.value)
    assert "it is yellow, as 20 of 40 vectors are in segments that are done (50 %)" in text
    assert f"Qdrant at {qdrant.url} goes on with it" in text
    assert f"imret collections optimize photos --db {qdrant.url}" in text
    assert seen[-1].points == 40
    assert seen[-1].indexed == 20


def test_what_runs_on_the_server_is_told_too(qdrant: QdrantOverHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "LOOK_S", 0.0)
    seen: list[Progress] = []
    with ServerStore(qdrant.url) as store, closing(store.open_version("photos", MODEL)) as made:
        made.upsert(*points(40))
        qdrant.engine.stuck.add(made.version)
        with pytest.raises(StoreError, match="it works at 0 segments now, 1 after that"):
            made.optimize(timeout_s=0.3, on_progress=seen.append)


def test_a_collection_that_does_not_move_is_not_waited_for_without_end(
    qdrant: QdrantOverHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "STALL_S", 0.2)
    with ServerStore(qdrant.url) as store, closing(store.open_version("photos", MODEL)) as made:
        made.upsert(*points(40))
        qdrant.engine.stuck.add(made.version)
        with pytest.warns(ServerWarning, match="'photos' stays yellow: 20 of 40 vectors are in segments"):
            made.optimize()


def test_grey_is_told_to_go_on(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url) as store, closing(store.open_version("photos", MODEL)) as made:
        made.upsert(*points(40))
        qdrant.engine.grey.add(made.version)
        made.optimize()
        assert made.stats().status == "green"


def test_a_failed_optimizer_is_named() -> None:
    with (
        QdrantOverHTTP() as qdrant,
        ServerStore(qdrant.url) as store,
        closing(store.open_version("photos", MODEL)) as made,
    ):
        info = described(store, made.version)
    failed = models.OptimizersStatusOneOf1(error="no space left")
    info = info.model_copy(update={"optimizer_status": failed, "points_count": 5, "indexed_vectors_count": 5})
    queue = models.UpdateQueueInfo(length=3)
    why = building.progress_of(info.model_copy(update={"update_queue": queue}), None).why
    assert why == "its optimizer failed (no space left); 3 writes are waiting"
