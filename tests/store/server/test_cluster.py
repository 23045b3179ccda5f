"""A node of a cluster is lost and comes back: what goes on with replicas, and what waits without.

On a real cluster with IMRET_TEST_QDRANT_URL (a node that stays), IMRET_TEST_QDRANT_PEERS (the others, with a
comma between them), and how one of those is ended and started: IMRET_TEST_QDRANT_STOP and
IMRET_TEST_QDRANT_START, commands of the shell. The same on the fake.
"""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from imret.errors import StoreUnavailable
from imret.store import Identity
from imret.store.backup import backup_collection, pull_collection, restore_collection
from imret.store.embedded.store import EdgeStore
from imret.store.server.connection import PartAway, ServerWarning
from imret.store.server.store import ServerStore
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)
N = 240
IDS = [str(uuid.UUID(int=i + 1)) for i in range(N)]
VECTORS = np.random.default_rng(0).standard_normal((N, 8)).astype(np.float32)
PAYLOADS = [{"category": f"c{i % 3}", "path": f"{i}.jpg"} for i in range(N)]
BACK_AFTER_S = 3.0


@dataclass
class Cluster:
    """Three nodes, one of which can be ended.

    Attributes:
        url: A node that stays.
        peers: The others.
        replicate: Called with a store and a collection that was just made, on a fake.
        stop: Ends a node without grace.
        start: Starts it again.
        name: Of a collection that is free there.
    """

    url: str
    peers: list[str]
    replicate: Callable[[str], None]
    stop: Callable[[], object]
    start: Callable[[], object]
    name: str


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.server)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    name = f"imret-test-{uuid.uuid4().hex[:12]}"
    if request.param == "fake":
        with QdrantOverHTTP() as qdrant, QdrantOverHTTP() as other:
            own, other.engine = other.engine, qdrant.engine  # two faces of one
            qdrant.shards.count = other.shards.count = 3
            qdrant.shards.here, other.shards.here = {0}, {1, 2}
            yield Cluster(
                qdrant.url,
                [other.url],
                qdrant.engine.replicated.add,
                lambda: setattr(qdrant.engine, "node_away", "http://10.0.0.3:6335/"),
                lambda: setattr(qdrant.engine, "node_away", ""),
                name,
            )
            other.engine = own
        return
    needed = {key: os.environ.get(f"IMRET_TEST_QDRANT_{key}", "") for key in ("URL", "PEERS")}
    if missing := [key for key, value in needed.items() if not value]:
        pytest.skip(f"set {' and '.join(f'IMRET_TEST_QDRANT_{key}' for key in missing)} to run on a cluster")
    peers = [one.strip() for one in needed["PEERS"].split(",") if one.strip()]
    yield Cluster(needed["URL"], peers, lambda _: None, _run("STOP"), _run("START"), name)
    with ServerStore(needed["URL"], patience_s=60) as store:
        store.drop(name)


def _run(what: str) -> Callable[[], object]:
    def run() -> None:
        command = os.environ.get(f"IMRET_TEST_QDRANT_{what}")
        if not command:
            pytest.skip(f"set IMRET_TEST_QDRANT_{what} to the command that does so to one of the peers")
        subprocess.run(command, shell=True, check=True, capture_output=True)

    return run


@pytest.fixture
def two_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    _made_with(monkeypatch, replication_factor=2)


@pytest.fixture
def one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    _made_with(monkeypatch, replication_factor=1)


def _made_with(monkeypatch: pytest.MonkeyPatch, **settings: int) -> None:
    """Have collections made so, whatever the defaults of the server are."""
    make = QdrantClient.create_collection

    def create_collection(self: QdrantClient, name: str, *args: Any, **options: Any) -> bool:
        return make(self, name, *args, **{**options, "shard_number": 3, **settings})

    monkeypatch.setattr(QdrantClient, "create_collection", create_collection)


def stored(store: ServerStore, name: str) -> list[str]:
    with closing(store.open(name)) as opened:
        return [point.id for batch in opened.scan() for point in batch]


def test_with_replicas_no_write_and_no_search_fails_while_a_node_is_away(
    cluster: Cluster, two_replicas: None
) -> None:
    with ServerStore(cluster.url, patience_s=60, in_flight=1) as store:
        with closing(store.open_version(cluster.name, MODEL)) as opened:
            cluster.replicate(opened.version)
            for start in range(0, N, 20):
                if start == 100:
                    cluster.stop()
                part = slice(start, start + 20)
                opened.upsert(IDS[part], VECTORS[part], PAYLOADS[part])
                assert len(opened.search(VECTORS[0], limit=5)) == 5
                if start == 200:
                    cluster.start()
            assert opened.count() == N
        store.promote(cluster.name, MODEL)
        assert stored(store, cluster.name) == IDS  # none lost, none twice


def test_without_replicas_a_write_waits_for_the_node_and_says_which(
    cluster: Cluster, one_replica: None
) -> None:
    with ServerStore(cluster.url, patience_s=120, in_flight=1) as store:
        with closing(store.open_version(cluster.name, MODEL)) as opened:
            opened.upsert(IDS[:100], VECTORS[:100], PAYLOADS[:100])
            cluster.stop()
            back = threading.Timer(BACK_AFTER_S, cluster.start)
            back.start()
            try:
                with pytest.warns(ServerWarning, match="a part of the collection is away; waiting for"):
                    opened.upsert(IDS[100:], VECTORS[100:], PAYLOADS[100:])
                assert opened.count() == N
            finally:
                back.join()
        store.promote(cluster.name, MODEL)
        assert stored(store, cluster.name) == IDS


def test_without_replicas_whoever_does_not_wait_is_told_that_a_part_is_away(
    cluster: Cluster, one_replica: None
) -> None:
    hasty = ServerStore(cluster.url, patience_s=0.5)
    with hasty as store, closing(store.open_version(cluster.name, MODEL)) as opened:
        opened.upsert(IDS, VECTORS, PAYLOADS)
        store.promote(cluster.name, MODEL)
        cluster.stop()
        try:
            with pytest.raises(StoreUnavailable) as caught:
                opened.search(VECTORS[0], limit=5)
        finally:
            cluster.start()
        assert isinstance(caught.value, PartAway)
        assert "a part of the collection is away" in str(caught.value)
        assert "http" not in caught.value.public
        assert "6335" not in caught.value.public
    with ServerStore(cluster.url, patience_s=120) as store:
        assert stored(store, cluster.name) == IDS


def test_a_collection_over_several_nodes_is_pulled_and_backed_up_and_restored(
    cluster: Cluster, one_replica: None, tmp_path: Path
) -> None:
    with ServerStore(cluster.url) as server, EdgeStore(tmp_path / "db") as store:
        with closing(server.open_version(cluster.name, MODEL)) as opened:
            opened.upsert(IDS, VECTORS, PAYLOADS)
            opened.optimize()
        server.promote(cluster.name, MODEL)
        server.change_document(cluster.name, "names", lambda old: b"{}")
        pulled = pull_collection(server, cluster.name, store, peers=cluster.peers)
        assert (pulled.points, pulled.shards) == (N, 3)
        backup_collection(server, cluster.name, tmp_path / "backup", peers=cluster.peers)
        server.drop(cluster.name)
        assert restore_collection(tmp_path / "backup", server, cluster.name) == N
        assert stored(server, cluster.name) == IDS
        assert server.document(cluster.name, "names") == b"{}"
        with closing(store.open(cluster.name)) as home, closing(server.open(cluster.name)) as there:
            mine, theirs = home.get(IDS, vectors=True), there.get(IDS, vectors=True)
            for id_ in IDS:
                assert mine[id_].payload == theirs[id_].payload
                np.testing.assert_allclose(mine[id_].vector, theirs[id_].vector, atol=1e-6)
