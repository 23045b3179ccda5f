"""A cluster without replicas, a node of which is away: waited for like a server, and told as what it is."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from imret.cli.main import cli
from imret.errors import StoreError, StoreUnavailable
from imret.store import Collection, Identity
from imret.store.server.connection import Connection, ServerWarning
from imret.store.server.store import ServerStore
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)
NODE = "http://10.0.0.3:6335/"
IDS = [str(uuid.UUID(int=i + 1)) for i in range(100)]
VECTORS = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
PAYLOADS = [{"category": f"c{i % 3}"} for i in range(100)]

ASKED: dict[str, Callable[[Collection], object]] = {
    "store points": lambda it: it.upsert(IDS[:1], VECTORS[:1], PAYLOADS[:1]),
    "store payloads": lambda it: it.overwrite_payloads(IDS[:2], PAYLOADS[:2]),
    "search": lambda it: it.search(VECTORS[0], limit=3),
    "scan": lambda it: list(it.scan()),
    "look up points": lambda it: it.get(IDS[:3]),
    "count": lambda it: it.count(),
    "count values": lambda it: it.facet("category"),
    "describe a collection": lambda it: it.stats(),
    "delete points": lambda it: it.delete(IDS[5:6]),
}


@pytest.fixture(params=["HTTP", "gRPC"])
def qdrant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantOverHTTP]:
    with ExitStack() as stack:
        running = stack.enter_context(QdrantOverHTTP())
        if request.param == "gRPC":
            faster = stack.enter_context(QdrantOverGRPC(running))
            monkeypatch.setattr("imret.store.server.connection.REST_PORT", running.port)
            monkeypatch.setattr("imret.store.server.connection.GRPC_PORT", faster.port)
        yield running


def fill(store: ServerStore, name: str) -> Collection:
    opened = store.open_version(name, MODEL)
    opened.upsert(IDS, VECTORS, PAYLOADS)
    store.promote(name, MODEL)
    return opened


def back_after(qdrant: QdrantOverHTTP, seconds: float) -> threading.Timer:
    qdrant.engine.node_away = NODE
    timer = threading.Timer(seconds, lambda: setattr(qdrant.engine, "node_away", ""))
    timer.start()
    return timer


def test_whatever_is_asked_waits_and_then_says_which_node_is_away(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url, patience_s=0.3) as store:
        photos = fill(store, "photos")
        qdrant.engine.node_away = NODE
        for what, ask in ASKED.items():
            if what == "store payloads":
                continue  # looks up the points first
            started = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                ask(photos)
            assert time.monotonic() - started > 0.1, what
            assert (
                f"Qdrant at {qdrant.url} could not {what}: a part of the collection is away, as the node "
                "10.0.0.3:6335 of its cluster does not answer.\nStart it"
            ) in str(caught.value)
            assert "status error" not in str(caught.value)
            assert "10.0.0.3" not in caught.value.public
            assert "a part of the collection is away" in caught.value.public


def test_whatever_is_asked_goes_on_when_the_node_is_back(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url) as store:
        photos = fill(store, "photos")
        for what, ask in ASKED.items():
            timer = back_after(qdrant, 0.2)
            ask(photos)
            timer.join()
            assert qdrant.engine.node_away == "", what
        assert photos.count() == 99


def test_a_longer_wait_is_told_once_with_the_node(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url) as store:
        photos = fill(store, "photos")
        timer = back_after(qdrant, 3.0)
        with pytest.warns(ServerWarning) as told:
            assert photos.count() == 100
        timer.join()
        assert [str(one.message) for one in told] == [
            "a part of the collection is away; waiting for the node 10.0.0.3:6335 of its cluster"
        ]


SAID_OF_NODES = pytest.mark.parametrize(
    ("text", "node"),
    [
        ("The replica set for shard 2 on peer 5360762229257965 does not have enough active replicas",
         "a node of its cluster"),
        ("1 of 1 read operations failed: Service internal error: Tonic status error: status: Unavailable, "
         'message: "Failed to connect to http://qdrant-2.headless:6335/, error: transport error"',
         "the node qdrant-2.headless:6335 of its cluster"),
        ("Service internal error: The service is currently unavailable", "a node of its cluster"),
    ],
)  # fmt: skip


@SAID_OF_NODES
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_it_is_known_by_what_the_server_says_under_any_status(text: str, node: str, status: int) -> None:
    with QdrantOverHTTP() as qdrant, ServerStore(qdrant.url, patience_s=0.2) as store:
        photos = fill(store, "photos")
        qdrant.fail = lambda method, path: (status, text) if path.endswith("/count") else None
        with pytest.raises(StoreUnavailable, match=f"a part of the collection is away, as {node} does not"):
            photos.count()


@SAID_OF_NODES
@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_a_refusal_that_only_speaks_of_it_is_not_waited_for(text: str, node: str, status: int) -> None:
    with QdrantOverHTTP() as qdrant, ServerStore(qdrant.url, patience_s=20) as store:
        photos = fill(store, "photos")
        asked = []

        def refuse(method: str, path: str) -> tuple[int, str] | None:
            if not path.endswith("/count"):
                return None
            asked.append(path)
            return status, text

        qdrant.fail = refuse
        with pytest.raises(StoreError) as caught:
            photos.count()
        assert not isinstance(caught.value, StoreUnavailable)
        assert len(asked) == 1


class Answer(Exception):
    """What a call over gRPC ends with."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> SimpleNamespace:
        return SimpleNamespace(name=self._code)

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("code", "is_waited_for"),
    [
        ("INVALID_ARGUMENT", False),
        ("NOT_FOUND", False),
        ("ALREADY_EXISTS", False),
        ("PERMISSION_DENIED", False),
        ("UNAUTHENTICATED", False),
        ("OUT_OF_RANGE", False),
        ("UNIMPLEMENTED", False),
        ("INTERNAL", True),
        ("UNKNOWN", True),
        ("UNAVAILABLE", True),
    ],
)
def test_over_grpc_the_code_says_what_is_a_refusal(code: str, is_waited_for: bool) -> None:
    asked = []

    def call() -> None:
        asked.append(code)
        raise Answer(code, "shard 2 is currently unavailable")

    with QdrantOverHTTP() as qdrant:
        connection = Connection(qdrant.url, api_key=None, client=None, patience_s=0.3, in_flight=1)
        with closing(connection), pytest.raises(StoreError) as caught:
            connection.request("count", call)
    assert isinstance(caught.value, StoreUnavailable) == is_waited_for
    assert (len(asked) > 1) == is_waited_for


def test_collections_are_listed_and_those_that_answer_are_described(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url, patience_s=0.3) as store:
        for name in ("lost", "photos"):
            fill(store, name)
        qdrant.engine.replicated.add(store.version("photos") or "")
        qdrant.engine.node_away = NODE
        started = time.monotonic()
        assert store.collections() == ["lost", "photos"]
        assert time.monotonic() - started < 0.3  # nothing is waited for
        with closing(store.open("photos")) as photos:
            assert photos.count() == 100
        assert store.staged_versions("photos") == []
        with pytest.raises(StoreUnavailable, match="a part of the collection is away"):
            store.open("lost")


@pytest.mark.parametrize("command", [["collections"], ["info"]])
def test_the_lists_show_what_they_can_and_name_what_they_cannot(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.cli.describe.PATIENCE_S", 0.2)
    with QdrantOverHTTP() as qdrant:
        with ServerStore(qdrant.url) as store:
            for name in ("lost", "photos"):
                fill(store, name)
            qdrant.engine.replicated.add(store.version("photos") or "")
        qdrant.engine.node_away = NODE
        done = CliRunner().invoke(cli, [*command, "--db", qdrant.url])
        as_json = CliRunner().invoke(cli, [*command, "--db", qdrant.url, "--format", "json"])
    assert (done.exit_code, as_json.exit_code) == (0, 0), done.output
    assert "photos" in done.stdout
    assert "100" in done.stdout
    assert "lost" in done.stdout
    assert "the node 10.0.0.3:6335 of its cluster does not answer" in done.output
    assert '"lost"' in as_json.stdout
    assert '"images": 100' in as_json.stdout
