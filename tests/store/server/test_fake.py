"""The fake Qdrant does as a server does, and where there is a server, the server does as the fake does."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from imret.store.embedded.engine_config import engine_config
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

NAN = float("nan")
IDS = [str(uuid.UUID(int=i + 1)) for i in range(40)]
COLOURS = ("red", "green", "blue")


class Server:
    """Two clients of one server, and a collection name of this test's own."""

    def __init__(self, rest: QdrantClient, fast: QdrantClient, fake: QdrantOverHTTP | None) -> None:
        self.rest, self.fast, self.fake = rest, fast, fake
        self.name = f"imret-test-{uuid.uuid4().hex}"

    def fill(self, *, indexed: bool) -> None:
        config = models.VectorParams(size=4, distance=models.Distance.COSINE)
        self.rest.create_collection(self.name, config)
        if indexed:
            self.rest.create_payload_index(self.name, "colour", "keyword", wait=True)
            self.rest.create_payload_index(self.name, "width", "integer", wait=True)
        points = [point(i) for i in range(len(IDS))]
        self.rest.upsert(self.name, points, wait=True)

    def passing(self, only: models.Filter) -> set[int]:
        found, _ = self.rest.scroll(self.name, scroll_filter=only, limit=100)
        n = self.rest.count(self.name, count_filter=only, exact=True).count
        best = self.fast.query_points(self.name, query=[1.0, 0, 0, 0], query_filter=only, limit=100).points
        assert n == len(found) == len(best)
        return {IDS.index(str(one.id)) for one in found}


def point(i: int, vector: list[float] | None = None) -> models.PointStruct:
    return models.PointStruct(
        id=IDS[i], vector=vector or [1.0, i, 0, 1], payload={"colour": COLOURS[i % 3], "width": i % 4}
    )


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.server)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with ExitStack() as stack:
        fake = None
        if request.param == "fake":
            fake = stack.enter_context(QdrantOverHTTP())
            ports = {"host": "127.0.0.1", "port": fake.port}
            ports["grpc_port"] = stack.enter_context(QdrantOverGRPC(fake)).port
        else:
            url = os.environ.get("IMRET_TEST_QDRANT_URL")
            if not url:
                pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
            ports = {"url": url}
        rest, fast = (
            QdrantClient(**ports, prefer_grpc=prefer, check_compatibility=False) for prefer in (False, True)
        )
        stack.callback(rest.close)
        stack.callback(fast.close)
        one = Server(rest, fast, fake)
        yield one
        rest.delete_collection(one.name)  # says no if there is none


def colour(*names: str) -> models.FieldCondition:
    return models.FieldCondition(key="colour", match=models.MatchAny(any=list(names)))


def width(*numbers: int) -> models.FieldCondition:
    return models.FieldCondition(key="width", match=models.MatchAny(any=list(numbers)))


RED, GREEN = colour("red"), colour("green")
FIRST = models.HasIdCondition(has_id=IDS[:3])
SAME = models.HasIdCondition(has_id=IDS[2::-1])
ANY_RED = {i for i in range(40) if i % 3 == 0}
ANY_GREEN = {i for i in range(40) if i % 3 == 1}


@pytest.mark.parametrize(
    ("only", "behind_an_index", "without"),
    [
        ({"must": [RED], "must_not": [RED]}, ANY_RED, set()),
        ({"must": [colour("red", "green")], "must_not": [colour("green", "red")]},
         ANY_RED | ANY_GREEN, set()),
        ({"should": [RED, GREEN], "must_not": [RED]}, ANY_RED | ANY_GREEN, ANY_GREEN),
        ({"must": [FIRST], "must_not": [SAME]}, {0, 1, 2}, set()),
        ({"must": [width(1)], "must_not": [width(1)]}, set(range(1, 40, 4)), set()),
        ({"min_should": models.MinShould(conditions=[RED, GREEN], min_count=1), "must_not": [RED]},
         ANY_RED | ANY_GREEN, ANY_GREEN),
        # Right: one level deeper, in part, beside another, of a kind that the index does not know.
        ({"must": [models.Filter(should=[RED, GREEN])], "must_not": [RED]}, ANY_GREEN, ANY_GREEN),
        ({"must": [colour("red", "green")], "must_not": [RED]}, ANY_GREEN, ANY_GREEN),
        ({"must": [RED, width(0)], "must_not": [RED]}, set(), set()),
        ({"must": [RED], "must_not": [RED, width(0)]}, set(), set()),
        ({"must": [colour()]}, set(), set()),
    ],
)  # fmt: skip
def test_a_condition_on_both_sides_is_not_excluded_behind_an_index(
    server: Server, only: dict[str, Any], behind_an_index: set[int], without: set[int]
) -> None:
    filter = models.Filter(**only)
    server.fill(indexed=True)
    assert server.passing(filter) == behind_an_index
    if not any(isinstance(one, models.HasIdCondition) for one in only.get("must", [])):
        server.rest.delete_collection(server.name)
        server.fill(indexed=False)
        assert server.passing(filter) == without


def test_nan_is_refused_over_rest_and_stored_over_grpc_and_then_stands_first(server: Server) -> None:
    server.fill(indexed=True)
    broken = point(7, [NAN, 0, 0, 0])
    with pytest.raises((UnexpectedResponse, ValueError)):
        server.rest.upsert(server.name, [broken], wait=True)
    server.fast.upsert(server.name, [point(8), broken], wait=True)
    first = server.fast.query_points(server.name, query=[1.0, 0, 0, 0], limit=3).points[0]
    assert first.id == IDS[7]
    assert first.score != first.score
    with pytest.raises(ResponseHandlingException, match="score"):
        server.rest.query_points(server.name, query=[1.0, 0, 0, 0], limit=3)


def test_a_batch_with_a_wrong_dimension_stores_nothing(server: Server) -> None:
    server.fill(indexed=False)
    server.rest.delete(server.name, models.PointIdsList(points=IDS), wait=True)
    batch = [point(0), point(1, [1.0, 2.0]), point(2)]
    with pytest.raises(UnexpectedResponse, match="400"):
        server.rest.upsert(server.name, batch, wait=True)
    with pytest.raises(grpc.RpcError, match="expected dim"):
        server.fast.upsert(server.name, batch, wait=True)
    assert server.rest.count(server.name).count == 0


def test_a_point_that_is_there_stays_where_a_condition_that_it_does_not_meet_is_given(server: Server) -> None:
    server.fill(indexed=False)
    never = models.Filter(must=[models.HasIdCondition(has_id=[str(uuid.UUID(int=0))])])
    new = str(uuid.UUID(int=1_000))
    for client in (server.rest, server.fast):
        for id_ in (IDS[0], new):
            mine = models.PointStruct(id=id_, vector=[1.0, 0, 0, 0], payload={"who": str(client)})
            client.upsert(server.name, [mine], wait=True, update_filter=never)
    found = {one.id: one.payload for one in server.rest.retrieve(server.name, [IDS[0], new])}
    assert found == {IDS[0]: {"colour": "red", "width": 0}, new: {"who": str(server.rest)}}


def test_the_embedded_engine_keeps_a_point_alike(tmp_path: Path) -> None:
    """Of the same make as the server's, and here in any run."""
    qe = pytest.importorskip("qdrant_edge")
    shard = qe.EdgeShard.create(str(tmp_path), engine_config(4, 10_000))
    never = qe.Filter(must=[qe.HasIdCondition({str(uuid.UUID(int=0))})])
    for who in ("first", "second"):
        mine = qe.Point(id=IDS[0], vector=np.ones(4, np.float32), payload={"who": who})
        shard.update(qe.UpdateOperation.upsert_points([mine], condition=never))
    assert shard.retrieve([IDS[0]], True, False)[0].payload == {"who": "first"}
    shard.close()


def test_more_than_32_megabytes_are_refused_over_rest(server: Server) -> None:
    server.fill(indexed=False)
    large = point(0).model_copy(update={"payload": {"text": "x" * (33 << 20)}})
    with pytest.raises(UnexpectedResponse, match="larger than allowed"):
        server.rest.upsert(server.name, [large], wait=True)


def test_an_alias_cannot_be_named_like_a_collection_and_goes_with_its_collection(server: Server) -> None:
    server.fill(indexed=False)

    def named(alias: str) -> list[models.CreateAliasOperation]:
        create = models.CreateAlias(collection_name=server.name, alias_name=alias)
        return [models.CreateAliasOperation(create_alias=create)]

    with pytest.raises(UnexpectedResponse, match="409"):
        server.rest.update_collection_aliases(named(server.name))
    alias = f"{server.name}-alias"
    server.rest.update_collection_aliases(named(alias))
    assert server.rest.count(alias).count == len(IDS)
    server.rest.delete_collection(server.name)
    assert alias not in {one.alias_name for one in server.rest.get_aliases().aliases}


def test_a_datetime_that_is_not_rfc_3339_is_refused(server: Server) -> None:
    server.fill(indexed=False)
    condition = {"key": "taken", "range": {"gte": "2024-05"}}
    with pytest.raises(UnexpectedResponse, match="400"):
        server.rest.http.client.request(
            type_=Any,
            method="POST",
            url="/collections/{name}/points/count",
            path_params={"name": server.name},
            json={"filter": {"must": [condition]}},
        )


def test_vectors_are_counted_as_indexed_though_no_graph_is_made() -> None:
    with QdrantOverHTTP() as fake:
        engine = fake.engine
        engine.indexing_threshold_kb = 0
        config = models.VectorParams(size=4, distance=models.Distance.COSINE)
        engine.create_collection("c", config, hnsw_config=models.HnswConfigDiff(m=0))
        engine.upsert("c", [point(i) for i in range(40)])
        looks = [engine.get_collection("c") for _ in range(3)]
    assert [(one.status.value, one.indexed_vectors_count) for one in looks] == [
        *[("yellow", 20)] * 2,
        ("green", 40),
    ]
    assert looks[0].config.hnsw_config.m == 0


def test_with_a_node_away_whatever_needs_its_shards_is_an_error_of_the_server() -> None:
    with QdrantOverHTTP() as fake, QdrantOverGRPC(fake) as faster:
        one = Server(*(
            QdrantClient("127.0.0.1", port=fake.port, grpc_port=faster.port, prefer_grpc=prefer,
                         check_compatibility=False)
            for prefer in (False, True)
        ), fake)  # fmt: skip
        one.fill(indexed=True)
        fake.engine.node_away = "http://10.0.0.3:6335/"
        for client in (one.rest, one.fast):
            for ask in (client.count, client.get_collection, client.scroll):
                with pytest.raises((UnexpectedResponse, grpc.RpcError), match="currently unavailable"):
                    ask(one.name)
            assert [found.name for found in client.get_collections().collections] == [one.name]
        fake.engine.replicated.add(one.name)
        assert one.fast.count(one.name).count == len(IDS)
        one.rest.close()
        one.fast.close()


def test_who_shows_no_key_and_who_may_only_read() -> None:
    with QdrantOverHTTP(api_key="k1", read_only_key="k2") as fake, QdrantOverGRPC(fake) as faster:
        fake.engine.create_collection("c", models.VectorParams(size=4, distance=models.Distance.COSINE))
        for fast, codes in ((False, ("401", "403")), (True, ("UNAUTHENTICATED", "PERMISSION_DENIED"))):
            for key, fails_to_read, fails_to_write in (
                (None, codes[0], codes[0]),
                ("k2", None, codes[1]),
                ("k1", None, None),
            ):
                client = QdrantClient(
                    "127.0.0.1", port=fake.port, grpc_port=faster.port, prefer_grpc=fast,
                    headers={"api-key": key} if key else {}, check_compatibility=False,
                )  # fmt: skip
                for call, fails in (
                    (lambda client=client: client.count("c"), fails_to_read),
                    (lambda client=client: client.upsert("c", [point(1)]), fails_to_write),
                ):
                    if fails is None:
                        call()
                    else:
                        with pytest.raises((UnexpectedResponse, grpc.RpcError), match=fails):
                            call()
                client.close()
