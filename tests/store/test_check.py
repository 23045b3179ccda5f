"""What other programs put into a collection is found, told and removed, on both engines."""

from __future__ import annotations

import os
import random
import tempfile
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as qe
from qdrant_client import QdrantClient, models

from imret.errors import StoreError
from imret.store import Collection, Identity, Store
from imret.store.check import FIRST, CheckReport, check_collection, reasons_of
from imret.store.embedded.store import EdgeStore
from imret.store.payload import make_payload, modified_time, point_id
from imret.store.server.store import ServerStore
from imret.store.types import RawPoint
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

DIM = 8
MODEL = Identity("ViT-tiny", "a1" * 32, DIM)
NAN, INF = float("nan"), float("inf")
N = 700  # more than a batch


def picture(i: int) -> tuple[str, list[float], dict[str, Any]]:
    """What ingest would write of picture number i."""
    payload = make_payload(
        source="/photos",
        path=f"aves/{i}.jpg" if i % 7 else f"aves/{i}\udcff.jpg",
        category="aves" if i % 3 else None,
        sha256=f"{i:064x}",
        width=640,
        height=480,
        size_bytes=1000 + i,
        modified=modified_time(i * 10**15),
    )
    vector = np.random.default_rng(i).standard_normal(DIM)
    return point_id("/photos", f"aves/{i}.jpg"), [float(one) for one in vector], payload


Foreign = list[tuple[Any, Any, dict[str, Any]]]


class Place:
    """A store, and how another program writes into its collection `photos`."""

    def __init__(self, store: Store, write: Callable[[Foreign], None]) -> None:
        self.store, self.write = store, write

    def check(self, **options: Any) -> CheckReport:
        with closing(self.store.open(self.name)) as opened:
            return check_collection(opened, **options)

    name = "photos"


def _fill(store: Store, name: str) -> str:
    opened = store.open_version(name, MODEL)
    ids, vectors, payloads = zip(*map(picture, range(N)), strict=True)
    opened.upsert(list(ids), np.array(vectors, np.float32), list(payloads))
    store.promote(name, MODEL)
    version = opened.version
    opened.close()
    return version


@pytest.fixture(
    params=["embedded", "HTTP", "gRPC", pytest.param("real server", marks=pytest.mark.server)],
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "embedded":
            memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imret-test-", dir=memory_disk))
            with EdgeStore(folder) as store:
                _fill(store, "photos")

            def write_shard(points: Foreign) -> None:
                for lock in Path(folder).glob("photos/*.lock"):
                    lock.write_bytes(b"")  # as an older imret leaves it, which notes nothing else
                (shard_folder,) = Path(folder).glob("photos/*/shard")
                shard = qe.EdgeShard.load(str(shard_folder))
                made = [qe.Point(id=id_, vector=vector, payload=payload) for id_, vector, payload in points]
                shard.update(qe.UpdateOperation.upsert_points(made))
                shard.flush()
                shard.close()

            # Opened anew for each question: one process at a time has it.
            yield Place(stack.enter_context(EdgeStore(folder)), write_shard)
            return
        url = os.environ.get("IMRET_TEST_QDRANT_URL", "")
        ports: dict[str, Any] = {"url": url}
        if request.param == "real server":
            if not url:
                pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
        else:
            fake = stack.enter_context(QdrantOverHTTP())
            faster = stack.enter_context(QdrantOverGRPC(fake))
            if request.param == "gRPC":
                monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
                monkeypatch.setattr("imret.store.server.connection.REST_PORT", fake.port)
                monkeypatch.setattr("imret.store.server.connection.GRPC_PORT", faster.port)
            url, ports = fake.url, {"host": "127.0.0.1", "port": fake.port, "grpc_port": faster.port}
        server = stack.enter_context(ServerStore(url))
        here = Place(server, lambda points: None)
        here.name = f"imret-test-{uuid.uuid4().hex}"
        stack.callback(server.drop, here.name)
        physical = _fill(server, here.name)
        other = QdrantClient(**ports, prefer_grpc=True, check_compatibility=False)
        stack.callback(other.close)

        def write_server(points: Foreign) -> None:
            made = [models.PointStruct(id=id_, vector=vector, payload=it) for id_, vector, it in points]
            other.upsert(physical, made, wait=True)

        here.write = write_server
        yield here


def _uuid(n: int) -> str:
    return str(uuid.UUID(int=n))


GOOD = picture(10_000)[1]
PAYLOAD = picture(10_001)[2]
STRANGE: Foreign = [
    (7, GOOD, PAYLOAD),
    (_uuid(1), [NAN, *GOOD[1:]], PAYLOAD),
    (_uuid(2), [0.0] * DIM, PAYLOAD),
    (_uuid(3), GOOD, {}),
    (_uuid(4), GOOD, {**PAYLOAD, "width": "5 MB"}),
    (_uuid(5), GOOD, {**PAYLOAD, "modified": "yesterday"}),
    (_uuid(6), GOOD, {**PAYLOAD, "sha256": ["a", {"b": 1}]}),
    (_uuid(7), {}, PAYLOAD),
    (_uuid(8), [INF, *GOOD[1:]], {**PAYLOAD, "path": None}),
]


def test_what_ingest_writes_is_found_by_nobody(place: Place) -> None:
    seen: list[int] = []
    report = place.check(on_points=seen.append)
    assert (report.checked, report.found, report.first) == (N, 0, [])
    assert sum(seen) == N
    assert max(seen) <= 256


def test_what_others_wrote_is_told_and_removed_and_nothing_else_is(place: Place) -> None:
    place.write(STRANGE)
    report = place.check()
    assert (report.checked, report.found, report.removed) == (N + len(STRANGE), len(STRANGE), 0)
    assert report.kinds == {"id": 1, "vector": 4, "payload": 5}
    assert [finding.id for finding in report.first] == [7, *map(_uuid, range(1, 9))]
    assert [finding.reasons for finding in report.first] == [
        {"id": "the id is a number, not a UUID"},
        {"vector": "the vector holds NaN or infinity"},
        {"vector": "the vector is zero"},
        {"payload": "there is no path"},
        {"payload": "width is '5 MB', no number"},
        {"payload": "modified is 'yesterday', no datetime"},
        {"payload": "sha256 is ['a', {'b': 1}], no text"},
        {"vector": "there is no vector"},
        {"vector": "the vector holds NaN or infinity", "payload": "path is None, no text"},
    ]
    removed = place.check(remove=True)
    assert (removed.found, removed.removed, removed.first) == (report.found, report.found, report.first)
    after = place.check()
    assert (after.checked, after.found) == (N, 0)
    with closing(place.store.open(place.name)) as opened:
        assert opened.count() == N
        assert {one.id for batch in opened.scan() for one in batch} == {picture(i)[0] for i in range(N)}
        assert len(opened.search(np.array(GOOD, np.float32), limit=5)) == 5


def test_a_search_that_meets_nan_names_the_point_and_the_command(place: Place) -> None:
    query = np.array(GOOD, np.float32)
    place.write([(_uuid(1), [NAN] * DIM, PAYLOAD), (_uuid(2), [NAN] * DIM, PAYLOAD)])
    with closing(place.store.open(place.name)) as opened:
        if place.store.engine == "embedded":
            assert len(opened.search(query, limit=5)) == 5  # Edge leaves it out
            return
        with pytest.raises(StoreError) as caught:
            opened.search(query, limit=5)
        assert f"cannot be searched: the vector of point {_uuid(1)} and 1 more holds NaN" in str(caught.value)
        assert f"imret collections check {place.name} --db {place.store.address}" in str(caught.value)
        assert place.store.address not in caught.value.public
        assert _uuid(1) in caught.value.public
        place.check(remove=True)
        assert len(opened.search(query, limit=5)) == 5


OTHERS_FIELDS: list[dict[str, Any]] = [
    {"tags": ["sunset", "sea"]},
    {"favourite": True},
    {"note": None},
    {"camera": {"make": "imret", "lens": [35, 70]}},
    {"sharpness": 0.5, "stars": 5, "title": "at the lake"},
]


def test_a_picture_to_which_others_added_fields_is_a_healthy_one(place: Place) -> None:
    more = [picture(2000 + i) for i in range(len(OTHERS_FIELDS))]
    pairs = zip(more, OTHERS_FIELDS, strict=True)
    place.write([(id_, vector, {**payload, **added}) for (id_, vector, payload), added in pairs])
    report = place.check(remove=True)
    assert (report.checked, report.found, report.removed) == (N + len(more), 0, 0)
    with closing(place.store.open(place.name)) as opened:
        kept = opened.get([id_ for id_, *_ in more])
        for (id_, *_), added in zip(more, OTHERS_FIELDS, strict=True):
            # A server may leave out a null, which says nothing.
            assert kept[id_].payload.items() >= {k: v for k, v in added.items() if v is not None}.items()


def test_points_numbered_by_others_do_not_end_a_scan(place: Place) -> None:
    place.write([(n, GOOD, PAYLOAD) for n in range(600)])
    with closing(place.store.open(place.name)) as opened:
        ids = [one.id for batch in opened.scan(vectors=True) for one in batch]
    assert len(ids) == len(set(ids)) == N + 600
    report = place.check(remove=True)
    assert (report.removed, report.kinds["id"], len(report.first)) == (600, 600, FIRST)
    assert place.check().found == 0


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([1.0] * 7, "the vector has 7 numbers, not 8"),
        ([1.0] * 512, "the vector has 512 numbers, not 8"),
        ([], "the vector has 0 numbers, not 8"),
        (None, "there is no vector"),
        ({}, "there is no vector"),
        ({"image": [1.0] * 8}, "the vectors have names: 'image'"),
        ([[1.0] * 8, [1.0] * 8], "there are several vectors"),
        ([None] * 8, "the vector holds NaN or infinity"),
        ([0.0, -0.0, *[0.0] * 6], "the vector is zero"),
        ([1e-30] * 8, ""),
    ],
)
def test_a_vector_is_judged_by_what_it_is(vector: Any, reason: str) -> None:
    found = reasons_of(RawPoint(_uuid(1), PAYLOAD, vector), DIM)
    assert found.get("vector", "") == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category": 7}, "category is 7, no text"),
        ({"width": True}, "width is True, no number"),
        ({"width": 640.0}, "width is 640.0, no number"),
        ({"sha256": ["a" * 100]}, "sha256 is ['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..., no text"),
        ({"file_base64": "not base64!"}, "file_base64 is 'not base64!', no file's name"),
        ({"sharpness": 0.5, "note": "mine"}, ""),
    ],
)
def test_a_payload_is_judged_by_its_fields(change: dict[str, Any], reason: str) -> None:
    found = reasons_of(RawPoint(_uuid(1), {**PAYLOAD, **change}, GOOD), DIM)
    assert found.get("payload", "") == reason


def test_a_check_keeps_a_batch_in_memory_and_not_what_it_found() -> None:
    class Endless(Collection):
        def __init__(self) -> None:
            self.identity = MODEL

        def inspect(self, *, batch_size: int = 256) -> Iterator[list[RawPoint]]:
            for start in range(0, 200_000, batch_size):
                yield [RawPoint(start + i, {}, random.sample(GOOD, DIM)) for i in range(batch_size)]

    tracemalloc.start()
    report = check_collection(Endless())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.found == report.checked >= 200_000
    assert peak < 3_000_000
