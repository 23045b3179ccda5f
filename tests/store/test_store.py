"""What both engines of the store promise, measured against numpy and plain Python."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imret.errors import ChangedMeanwhile, DataError, ModelMismatch, StoreError
from imret.store import Collection, Filter, Identity, Match, Point, Store
from imret.store.embedded.store import EdgeStore
from imret.store.server.store import ServerStore
from imret.store.types import LiveState
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS, QdrantLikeAServer
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

DIM = 24
MODEL = Identity("ViT-tiny", "a1" * 32, DIM)
OTHER_MODEL = Identity("ViT-tiny-tuned", "b2" * 32, DIM)
IN_MEMORY = "http://memory"
ENGINES = ["embedded", "server in memory", "server over HTTP", "server over gRPC"]


@pytest.fixture(scope="module", params=[*ENGINES, pytest.param("real server", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    if request.param == "embedded":
        # In memory where that can be: making a collection waits for the disk a dozen times.
        memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("db")
        with (
            tempfile.TemporaryDirectory(prefix="imret-test-", dir=memory_disk) as folder,
            EdgeStore(folder, lock_timeout_s=0.0) as embedded,
        ):
            yield embedded
    elif request.param == "server in memory":
        # One at a time: the in-memory engine has no locks of its own.
        with ServerStore(IN_MEMORY, client=QdrantLikeAServer(), in_flight=1) as memory:
            yield memory
    elif request.param == "server over HTTP":
        with QdrantOverHTTP() as qdrant, ServerStore(qdrant.url) as server:
            yield server
    elif request.param == "server over gRPC":
        with (
            QdrantOverHTTP() as qdrant,
            QdrantOverGRPC(qdrant) as faster,
            pytest.MonkeyPatch.context() as monkeypatch,
        ):
            monkeypatch.setattr("imret.store.server.connection.REST_PORT", qdrant.port)
            monkeypatch.setattr("imret.store.server.connection.GRPC_PORT", faster.port)
            with ServerStore(qdrant.url) as server:
                yield server
            assert {path for _, path in qdrant.requests} == {"/", "/collections"}
            assert len(faster.calls) > 100
    else:
        url = os.environ.get("IMRET_TEST_QDRANT_URL")
        if not url:
            pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
        with ServerStore(url) as real:
            yield real


@pytest.fixture
def name(store: Store) -> Iterator[str]:
    """A collection name of this test's own."""
    unique = f"imret-test-{uuid.uuid4().hex}"
    yield unique
    store.drop(unique)


@pytest.fixture
def collection(store: Store, name: str) -> Iterator[Collection]:
    """An empty live collection."""
    opened = store.open_version(name, MODEL)
    store.promote(name, MODEL)
    yield opened
    opened.close()


class Reference:
    """The points as a list, searched and filtered the plain way."""

    def __init__(self, n: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ids = sorted(str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(n))
        self.vectors = unit(rng.standard_normal((n, DIM)))
        self.payloads = [self._payload(rng, i) for i in range(n)]

    def _payload(self, rng: np.random.Generator, i: int) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "path": f"folder {i % 3}/Bild ü {i}.jpg",
            "sha256": f"{i % 40:064x}",
            "source": f"/photos/{i % 2}",
            "width": int(rng.integers(1, 6)) * 100,
            "sharpness": int(rng.integers(0, 1024)) / 1024,
        }
        if i % 5:  # the others have no category
            payload["category"] = str(rng.choice(["aves", "fungi", "plantae", "'quoted' \"名前\"\n"]))
        return payload

    def passing(self, only: Filter | None) -> list[int]:
        def matches(match: Match, payload: dict[str, Any]) -> bool:
            return match.field in payload and payload[match.field] in match.values

        only = only or Filter()
        return [
            i
            for i, payload in enumerate(self.payloads)
            if all(matches(match, payload) for match in only.must)
            and not any(matches(match, payload) for match in only.must_not)
        ]

    def nearest(self, query: NDArray[np.float32], limit: int, only: Filter | None) -> list[tuple[str, float]]:
        scores = self.vectors @ query
        ranked = sorted((-float(scores[i]), self.ids[i]) for i in self.passing(only))
        return [(one, -score) for score, one in ranked[:limit]]

    def facet(self, field: str, only: Filter | None) -> dict[str, int]:
        return dict(
            Counter(str(self.payloads[i][field]) for i in self.passing(only) if field in self.payloads[i])
        )

    def random_filter(self, rng: random.Random) -> Filter | None:
        def condition() -> Match:
            field = rng.choice(["category", "path", "sha256", "source", "width"])
            known = [p[field] for p in rng.choices(self.payloads, k=rng.choice([1, 1, 2, 5])) if field in p]
            absent = rng.choice([["no such value"], [12345], []])
            return Match(field, tuple(known + absent) or ("nothing",))

        return rng.choice(
            [
                None,
                Filter(),
                Filter(must=(condition(),)),
                Filter(must_not=(condition(),)),
                Filter(must=(condition(), condition()), must_not=(condition(),)),
            ]
        )

    def fill(self, collection: Collection) -> None:
        collection.upsert(self.ids, self.vectors, self.payloads)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def ids_of(n: int) -> list[str]:
    return [str(uuid.UUID(int=i)) for i in range(1, n + 1)]


def one_vector(seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal(DIM))


def everything(collection: Collection, only: Filter | None = None, **options: Any) -> list[Point]:
    return [point for batch in collection.scan(only, **options) for point in batch]


def test_filters_count_scan_facet_and_search_like_plain_python(store: Store, collection: Collection) -> None:
    reference = Reference(400)
    reference.fill(collection)
    rng = random.Random(0)
    for case in range(300 if store.engine == "embedded" else 40):  # the in-memory engine is slow
        only = reference.random_filter(rng)
        expected = reference.passing(only)
        assert collection.count(only) == len(expected), only
        assert [p.id for p in everything(collection, only)] == [reference.ids[i] for i in expected], only
        field = rng.choice(["category", "source", "path"])
        assert collection.facet(field, only) == reference.facet(field, only), (field, only)
        query = one_vector(case)
        found = collection.search(query, limit=7, filter=only, exact=True)
        nearest = reference.nearest(query, 7, only)
        assert [p.id for p in found] == [one for one, _ in nearest], only
        np.testing.assert_allclose([p.score for p in found], [score for _, score in nearest], atol=1e-5)


def test_search_returns_payload_and_a_cosine_and_no_vector(collection: Collection) -> None:
    reference = Reference(50)
    reference.fill(collection)
    best, *_, worst = collection.search(reference.vectors[7], limit=50)
    assert best.id == reference.ids[7]
    assert best.payload == reference.payloads[7]
    assert best.vector is None
    assert best.score == pytest.approx(1.0, abs=1e-6)
    assert best.score <= 1.0
    assert worst.score is not None
    assert -1.0 <= worst.score < 0.0


def test_equal_scores_rank_by_id_also_where_the_limit_cuts_them(collection: Collection) -> None:
    ids = ids_of(60)
    shuffled = random.Random(3).sample(ids, len(ids))
    twin = np.zeros(DIM, np.float32)
    twin[0] = 1.0
    other = np.zeros(DIM, np.float32)
    other[1] = 1.0
    vectors = np.stack([other if one in ids[:5] else twin for one in shuffled])
    collection.upsert(shuffled, vectors, [{}] * len(ids))
    assert [p.id for p in collection.search(twin, limit=9)] == ids[5:14]
    assert [p.id for p in collection.search(twin, limit=57)] == ids[5:] + ids[:2]
    assert [p.id for p in collection.search(twin, limit=500)] == ids[5:] + ids[:5]


def test_an_upsert_replaces_a_point_whole(collection: Collection) -> None:
    (one,) = ids_of(1)
    collection.upsert([one], one_vector(1)[None], [{"category": "aves", "width": 3}])
    collection.upsert([one], one_vector(2)[None], [{"category": "fungi"}])
    assert collection.count() == 1
    stored = collection.get([one], vectors=True)[one]
    assert stored.payload == {"category": "fungi"}
    assert stored.vector is not None
    assert stored.vector.dtype == np.float32
    np.testing.assert_allclose(stored.vector, one_vector(2), atol=1e-6)


def test_a_vector_that_was_read_and_stored_again_stays_the_same(collection: Collection) -> None:
    reference = Reference(100)
    reference.fill(collection)
    read = {p.id: p for p in everything(collection, vectors=True)}
    vectors = np.stack([read[one].vector for one in reference.ids])  # type: ignore[misc]
    np.testing.assert_allclose(vectors, reference.vectors, atol=1e-6)
    collection.upsert(reference.ids, vectors, reference.payloads)
    again = np.stack([p.vector for p in everything(collection, vectors=True)])  # type: ignore[misc]
    np.testing.assert_allclose(again, vectors, rtol=0, atol=1e-7)


def test_overwriting_payloads_keeps_the_vectors(collection: Collection) -> None:
    reference = Reference(300)
    reference.fill(collection)
    before = collection.get(reference.ids[:280], vectors=True)
    collection.overwrite_payloads(reference.ids[:280], [{"category": f"new {i}"} for i in range(280)])
    after = collection.get(reference.ids[:280], vectors=True)
    for i, one in enumerate(reference.ids[:280]):
        assert after[one].payload == {"category": f"new {i}"}
        np.testing.assert_array_equal(after[one].vector, before[one].vector)  # type: ignore[arg-type]
    assert collection.get([reference.ids[290]])[reference.ids[290]].payload == reference.payloads[290]
    assert collection.count(Filter(must=(Match("category", ("new 7",)),))) == 1


def test_overwriting_the_payload_of_a_missing_point_changes_nothing(collection: Collection) -> None:
    there, missing = ids_of(2)
    collection.upsert([there], one_vector()[None], [{"width": 1}])
    with pytest.raises(DataError, match=missing):
        collection.overwrite_payloads([there, missing], [{"width": 2}, {"width": 2}])
    assert collection.get([there])[there].payload == {"width": 1}


def test_missing_ids_are_absent_from_get_and_no_error_for_delete(collection: Collection) -> None:
    there, missing = ids_of(2)
    collection.upsert([there], one_vector()[None], [{}])
    assert list(collection.get([missing, there])) == [there]
    assert collection.get([]) == {}
    collection.delete([missing, there])
    collection.delete([])
    assert collection.count() == 0


def test_a_scan_yields_every_point_once_in_order_of_id_in_bounded_batches(collection: Collection) -> None:
    reference = Reference(301)
    reference.fill(collection)
    batches = list(collection.scan(batch_size=50))
    assert [len(batch) for batch in batches] == [50] * 6 + [1]
    assert [point.id for batch in batches for point in batch] == reference.ids
    assert all(point.vector is None for batch in batches for point in batch)
    assert list(collection.scan(Filter(must=(Match("category", ("no such",)),)))) == []


def test_points_may_be_deleted_while_they_are_scanned(collection: Collection) -> None:
    reference = Reference(200)
    reference.fill(collection)
    seen = []
    for batch in collection.scan(batch_size=16):
        seen += [point.id for point in batch]
        collection.delete([point.id for point in batch])
    assert seen == reference.ids
    assert collection.count() == 0


def test_a_facet_is_complete_however_many_values_there_are(collection: Collection) -> None:
    n = 2_500
    vectors = unit(np.random.default_rng(0).standard_normal((n, DIM)))
    collection.upsert(ids_of(n), vectors, [{"path": f"p{i}", "width": i % 3} for i in range(n)])
    assert collection.facet("path") == {f"p{i}": 1 for i in range(n)}
    assert collection.facet("width") == {"0": 834, "1": 833, "2": 833}


def test_a_facet_has_the_most_frequent_value_first_then_goes_by_value(collection: Collection) -> None:
    categories = ["b", "c", "a", "c", "b", "d", "c"]
    vectors = np.stack([one_vector(i) for i in range(7)])
    collection.upsert(ids_of(7), vectors, [{"category": category} for category in categories])
    assert list(collection.facet("category").items()) == [("c", 3), ("b", 2), ("a", 1), ("d", 1)]


def test_any_unicode_text_can_be_stored_matched_and_counted(collection: Collection) -> None:
    one, two = ids_of(2)
    for text in ("", " ", "\0", "a\nb", "'\"`\\", "名前 😀 e\u0301", "x" * 20_000, "true", "1", "*"):
        collection.upsert([one, two], np.stack([one_vector(1), one_vector(2)]), [{"category": text}, {}])
        only = Filter(must=(Match("category", (text,)),))
        assert [p.id for p in everything(collection, only)] == [one], text
        assert [p.id for p in collection.search(one_vector(2), limit=5, filter=only)] == [one], text
        assert collection.facet("category") == {text: 1}
        assert collection.get([one])[one].payload == {"category": text}


def test_a_value_whose_last_point_is_gone_is_in_no_facet(collection: Collection) -> None:
    one, two = ids_of(2)
    vectors = np.stack([one_vector(1), one_vector(2)])
    collection.upsert([one, two], vectors, [{"category": "aves"}, {"category": "fungi"}])
    collection.overwrite_payloads([one], [{"category": "fungi"}])
    assert collection.facet("category") == {"fungi": 2}
    collection.delete([one, two])
    assert collection.facet("category") == {}


def test_whole_numbers_come_back_as_they_went_in_and_others_to_15_digits(collection: Collection) -> None:
    (one,) = ids_of(1)
    payload = {"a": 2**63 - 1, "b": -(2**63), "c": 0, "d": 0.1, "e": 1e300, "f": -0.5}
    collection.upsert([one], one_vector()[None], [payload])
    stored = collection.get([one])[one].payload
    assert stored == pytest.approx(payload, rel=1e-15)
    assert [stored[key] for key in "abc"] == [payload[key] for key in "abc"]
    assert {key: type(value) for key, value in stored.items()} == {k: type(v) for k, v in payload.items()}


BAD_POINTS: dict[str, Callable[[list[Any]], Any]] = {
    "an id that is no UUID": lambda p: p[0].__setitem__(1, "photo-1"),
    "an id in capitals": lambda p: p[0].__setitem__(1, "ABCDEF00-0000-0000-0000-000000000000"),
    "an id twice": lambda p: p[0].__setitem__(1, p[0][0]),
    "too few ids": lambda p: p[0].pop(),
    "too few payloads": lambda p: p[2].pop(),
    "NaN": lambda p: p[1].__setitem__((1, 3), np.nan),
    "infinity": lambda p: p[1].__setitem__((1, 3), np.inf),
    "another dimension": lambda p: p.__setitem__(1, p[1][:, :-1]),
    "one vector": lambda p: p.__setitem__(1, p[1][0]),
    "whole numbers for vectors": lambda p: p.__setitem__(1, p[1].astype(np.int64)),
    "a bool": lambda p: p[2].__setitem__(1, {"flag": True}),
    "None": lambda p: p[2].__setitem__(1, {"category": None}),
    "a list": lambda p: p[2].__setitem__(1, {"category": ["a"]}),
    "a nested payload": lambda p: p[2].__setitem__(1, {"exif": {"iso": 100}}),
    "a numpy number": lambda p: p[2].__setitem__(1, {"width": np.int64(3)}),
    "NaN in a payload": lambda p: p[2].__setitem__(1, {"sharpness": float("nan")}),
    "an int over 64 bits": lambda p: p[2].__setitem__(1, {"width": 2**63}),
    "a lone surrogate": lambda p: p[2].__setitem__(1, {"path": "caf\udce9.jpg"}),
    "a lone surrogate in a key": lambda p: p[2].__setitem__(1, {"caf\udce9": 1}),
    "a key that is no text": lambda p: p[2].__setitem__(1, {1: "a"}),
}


def test_a_batch_with_one_bad_point_is_refused_whole(collection: Collection) -> None:
    for what, damage in BAD_POINTS.items():
        points: list[Any] = [
            ids_of(4),
            np.stack([one_vector(i) for i in range(4)]),
            [{"category": "aves"} for _ in range(4)],
        ]
        damage(points)
        try:
            collection.upsert(*points)
        except (ValueError, TypeError):
            assert collection.count() == 0, what
        else:
            pytest.fail(f"{what} was stored")


@pytest.mark.parametrize(
    "query", [np.zeros(DIM + 1, np.float32), np.full(DIM, np.nan, np.float32), np.zeros((1, DIM), np.float32)]
)
def test_a_query_of_the_wrong_shape_or_not_finite_is_refused(
    collection: Collection, query: NDArray[np.float32]
) -> None:
    with pytest.raises(ValueError, match="vector"):
        collection.search(query, limit=1)


def test_a_limit_below_one_is_refused(collection: Collection) -> None:
    with pytest.raises(ValueError, match="limit"):
        collection.search(one_vector(), limit=0)


def test_an_empty_collection_answers_everything_with_nothing(collection: Collection) -> None:
    assert collection.search(one_vector(), limit=5) == []
    assert collection.count() == 0
    assert collection.facet("category") == {}
    assert list(collection.scan()) == []
    collection.upsert([], np.zeros((0, DIM), np.float32), [])
    collection.optimize()
    collection.flush()
    assert collection.stats().points == 0


def test_many_points_in_one_call_are_all_stored(collection: Collection) -> None:
    reference = Reference(1_500)
    reference.fill(collection)
    assert collection.count() == 1_500
    assert [p.id for p in everything(collection)] == reference.ids
    assert collection.stats().points == 1_500


def test_a_scan_begins_at_an_id_whether_or_not_a_point_has_it(collection: Collection) -> None:
    reference = Reference(40)
    collection.upsert(reference.ids, reference.vectors, reference.payloads)
    only = Filter(must=(Match("source", ("/photos/1",)),))
    beyond = [str(uuid.UUID(int=uuid.UUID(one).int + 1)) for one in reference.ids]
    for start in ("0" * 8 + reference.ids[0][8:], *reference.ids[::7], *beyond[::9], beyond[-1]):
        batches = list(collection.scan(batch_size=6, start=start))
        assert [p.id for batch in batches for p in batch] == [one for one in reference.ids if one >= start]
        passing = [reference.ids[i] for i in reference.passing(only) if reference.ids[i] >= start]
        assert [p.id for batch in collection.scan(only, batch_size=6, start=start) for p in batch] == passing
    for bad in ("", "1", reference.ids[0].upper(), reference.ids[0].replace("-", "")):
        with pytest.raises(ValueError, match="a point id is a UUID"):
            collection.scan(start=bad)


def test_threads_can_use_one_collection_together(store: Store, collection: Collection) -> None:
    if store.address == IN_MEMORY:
        pytest.skip("qdrant-client's in-memory engine has no locks of its own")
    reference = Reference(640)
    failures: list[BaseException] = []

    def work(part: slice) -> None:
        try:
            for start in range(part.start, part.stop, 32):
                some = slice(start, start + 32)
                collection.upsert(reference.ids[some], reference.vectors[some], reference.payloads[some])
                (hit, *_) = collection.search(reference.vectors[start], limit=3)
                assert hit.id == reference.ids[start]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(slice(i, i + 160),)) for i in range(0, 640, 160)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert collection.count() == 640


def test_a_new_version_is_built_beside_the_live_one_and_replaces_it_in_one_step(
    store: Store, name: str
) -> None:
    assert store.live(name) is None
    first = store.open_version(name, MODEL)
    assert store.staged_versions(name) == [MODEL]
    assert name not in store.collections()
    assert name in store.incomplete()
    first.upsert(ids_of(3), np.stack([one_vector(i) for i in range(3)]), [{}] * 3)
    store.promote(name, MODEL)
    first.close()
    assert store.live(name) == MODEL
    assert name in store.collections()
    assert name not in store.incomplete()

    second = store.open_version(name, OTHER_MODEL)
    assert second.identity == OTHER_MODEL
    assert second.count() == 0
    assert store.staged_versions(name) == [OTHER_MODEL]
    with_first = store.open(name)
    assert with_first.identity == MODEL
    assert with_first.count() == 3
    with_first.close()
    second.upsert(ids_of(1), one_vector()[None], [{}])
    store.promote(name, OTHER_MODEL)
    assert store.live(name) == OTHER_MODEL
    assert store.staged_versions(name) == []
    assert store.open(name).count() == 1


def test_the_name_of_the_live_version_changes_with_it_and_a_handle_knows_its_own(
    store: Store, name: str
) -> None:
    assert store.version(name) is None
    with closing(store.open_version(name, MODEL)) as first:
        assert store.version(name) is None
        store.promote(name, MODEL)
        assert store.version(name) == first.version
        with closing(store.open(name)) as also_first, closing(store.open_version(name, MODEL)) as third:
            assert also_first.version == third.version == first.version
        with closing(store.open_version(name, OTHER_MODEL)) as second:
            assert store.version(name) == first.version != second.version
            store.promote(name, OTHER_MODEL)
            assert store.version(name) == second.version
        with closing(store.create_staging(name, OTHER_MODEL)) as beside:
            assert store.version(name) == second.version != beside.version
            store.promote(name, OTHER_MODEL, staged=True)
            assert store.version(name) == beside.version
            with closing(store.open(name)) as live:
                assert live.version == beside.version
    store.drop(name)
    assert store.version(name) is None
    with pytest.raises(DataError, match="cannot name a collection"):
        store.version("../a")


def test_a_version_is_resumed_with_what_it_holds(store: Store, name: str) -> None:
    version = store.open_version(name, MODEL)
    version.upsert(ids_of(2), np.stack([one_vector(1), one_vector(2)]), [{}] * 2)
    version.close()
    assert store.open_version(name, MODEL).count() == 2


def test_switching_to_the_live_version_changes_nothing(store: Store, name: str) -> None:
    store.open_version(name, MODEL).upsert(ids_of(1), one_vector()[None], [{}])
    store.promote(name, MODEL)
    store.promote(name, MODEL)
    assert store.open(name).count() == 1


def test_switching_to_a_version_that_does_not_exist_is_refused(store: Store, name: str) -> None:
    store.open_version(name, MODEL)
    store.promote(name, MODEL)
    with pytest.raises(StoreError, match="no version"):
        store.promote(name, OTHER_MODEL)
    assert store.live(name) == MODEL


def one_point(collection: Collection, category: str) -> None:
    collection.upsert(ids_of(1), one_vector()[None], [{"category": category}])


def test_a_version_of_the_same_encoder_is_built_beside_the_live_one(store: Store, name: str) -> None:
    for live, new in (("a", "b"), ("b", "c"), ("c", "d")):  # an encoder has two places on disk, in turns
        if live == "a":
            with closing(store.open_version(name, MODEL)) as first:
                one_point(first, live)
            store.promote(name, MODEL)
        with closing(store.create_staging(name, MODEL)) as beside:
            assert beside.count() == 0
            one_point(beside, new)
            assert store.staged_versions(name) == [MODEL]
        with closing(store.open(name)) as reader:
            assert reader.facet("category") == {live: 1}
        store.promote(name, MODEL)  # means the live one, which it is already; the other is removed
        assert store.staged_versions(name) == []
        with closing(store.create_staging(name, MODEL)) as beside:
            one_point(beside, new)
        store.promote(name, MODEL, staged=True)
        assert store.staged_versions(name) == []
        with closing(store.open(name)) as reader:
            assert reader.facet("category") == {new: 1}
        with closing(store.open_version(name, MODEL)) as resumed:  # what an ingest does
            assert resumed.facet("category") == {new: 1}


def test_two_that_begin_before_there_is_a_collection_have_a_version_each(store: Store, name: str) -> None:
    with closing(store.create_staging(name, MODEL)) as imported:
        one_point(imported, "imported")
        with closing(store.open_version(name, MODEL)) as ingested:  # not the other's, which is not complete
            assert ingested.count() == 0
            one_point(ingested, "ingested")
            store.promote(name, MODEL, version=ingested.version)
        with closing(store.open(name)) as reader:
            assert reader.facet("category") == {"ingested": 1}


def test_a_version_beside_the_live_one_starts_empty_whatever_was_left(store: Store, name: str) -> None:
    with closing(store.open_version(name, MODEL)) as first:
        one_point(first, "live")
    store.promote(name, MODEL)
    for identity in (MODEL, OTHER_MODEL):
        for _ in range(2):
            with closing(store.create_staging(name, identity)) as beside:
                assert beside.count() == 0
                one_point(beside, "half")
    with closing(store.open(name)) as reader:
        assert reader.facet("category") == {"live": 1}
    store.promote(name, OTHER_MODEL, staged=True)
    assert store.live(name) == OTHER_MODEL
    assert store.staged_versions(name) == []
    with pytest.raises(StoreError, match="no version"):
        store.promote(name, OTHER_MODEL, staged=True)


@pytest.fixture
def other_name(store: Store) -> Iterator[str]:
    unique = f"imret-test-{uuid.uuid4().hex}"
    yield unique
    store.drop(unique)


def test_a_renamed_collection_is_itself_under_the_new_name_only(
    store: Store, name: str, other_name: str
) -> None:
    reference = Reference(60)
    with closing(store.open_version(name, MODEL)) as filled:
        reference.fill(filled)
    store.promote(name, MODEL)
    store.rename(name, other_name)
    assert (store.live(name), store.staged_versions(name)) == (None, [])
    assert store.live(other_name) == MODEL
    assert other_name in store.collections()
    assert name not in store.collections()
    with pytest.raises(DataError, match=f"no collection '{name}'.*{other_name}"):
        store.open(name)
    with closing(store.open(other_name)) as renamed:
        assert [(p.id, p.payload) for p in everything(renamed)] == list(
            zip(reference.ids, reference.payloads, strict=True)
        )
    with closing(store.open_version(other_name, MODEL)) as resumed:  # as ingest does: the same one
        assert resumed.count() == 60
    store.rename(other_name, name)
    assert store.live(name) == MODEL
    assert store.live(other_name) is None


def test_the_old_name_of_a_renamed_collection_is_free(store: Store, name: str, other_name: str) -> None:
    with closing(store.open_version(name, MODEL)) as first:
        one_point(first, "renamed")
    store.promote(name, MODEL)
    store.rename(name, other_name)
    with closing(store.open_version(name, MODEL)) as again:  # the same name and encoder as the renamed had
        assert again.count() == 0
        one_point(again, "new")
    store.promote(name, MODEL)
    for each, category in ((name, "new"), (other_name, "renamed")):
        with closing(store.open(each)) as opened:
            assert opened.facet("category") == {category: 1}
        assert store.staged_versions(each) == []
    with pytest.raises(DataError, match=f"cannot rename '{name}' to '{other_name}'.*collections delete"):
        store.rename(name, other_name)
    store.drop(name)
    with closing(store.open(other_name)) as opened:
        assert opened.facet("category") == {"renamed": 1}


def test_a_renamed_collection_can_be_rebuilt_and_dropped(store: Store, name: str, other_name: str) -> None:
    store.open_version(name, MODEL).close()
    store.promote(name, MODEL)
    with closing(store.open_version(name, OTHER_MODEL)) as rebuilding:
        one_point(rebuilding, "rebuilt")
    store.rename(name, other_name)
    assert store.staged_versions(other_name) == [OTHER_MODEL]
    assert store.staged_versions(name) == []
    with closing(store.open_version(other_name, OTHER_MODEL)) as resumed:
        assert resumed.count() == 1
    store.promote(other_name, OTHER_MODEL)
    assert store.live(other_name) == OTHER_MODEL
    assert store.staged_versions(other_name) == []
    store.drop(other_name)
    assert other_name not in store.collections()
    store.open_version(other_name, MODEL).close()
    assert store.staged_versions(other_name) == [MODEL]


def test_a_rename_of_what_does_not_exist_or_to_what_does_is_refused(
    store: Store, name: str, other_name: str
) -> None:
    store.open_version(name, MODEL).close()
    with pytest.raises(DataError, match="not complete"):
        store.rename(name, other_name)
    with pytest.raises(DataError, match="no collection 'nonesuch'"):
        store.rename("nonesuch", other_name)
    store.promote(name, MODEL)
    store.open_version(other_name, MODEL).close()  # being built is being there
    for taken in (name, other_name):
        with pytest.raises(DataError, match=f"cannot rename '{name}' to '{taken}'"):
            store.rename(name, taken)
    assert store.live(name) == MODEL
    assert store.staged_versions(other_name) == [MODEL]


def test_the_same_weights_under_a_new_name_resume_the_version_and_rename_it(store: Store, name: str) -> None:
    store.open_version(name, MODEL).upsert(ids_of(1), one_vector()[None], [{}])
    store.promote(name, MODEL)
    moved = Identity("/new/place", MODEL.fingerprint, DIM)
    assert store.open_version(name, moved).count() == 1
    assert store.live(name) == moved


def test_a_fingerprint_that_agrees_in_its_first_digits_only_is_another_encoder(
    store: Store, name: str
) -> None:
    store.open_version(name, MODEL)
    store.promote(name, MODEL)
    nearly = Identity("other", MODEL.fingerprint[:16] + "0" * 48, DIM)
    with pytest.raises(ModelMismatch, match=MODEL.fingerprint):
        store.open_version(name, nearly)


def test_a_dropped_collection_is_gone_and_can_be_made_again(store: Store, name: str) -> None:
    version = store.open_version(name, MODEL)
    version.upsert(ids_of(1), one_vector()[None], [{}])
    store.promote(name, MODEL)
    store.open_version(name, OTHER_MODEL).close()
    store.drop(name)
    with pytest.raises(StoreError):
        version.count()
    version.close()
    assert store.live(name) is None
    assert store.staged_versions(name) == []
    assert name not in store.collections()
    store.drop(name)
    assert store.open_version(name, MODEL).count() == 0


def test_one_name_may_begin_another(store: Store, name: str) -> None:
    longer = f"{name}.{MODEL.version}"
    store.open_version(name, MODEL).upsert(ids_of(1), one_vector()[None], [{}])
    store.promote(name, MODEL)
    if store.engine == "server":
        with pytest.raises(StoreError, match="did not make"):  # that is what Qdrant knows the version by
            store.open_version(longer, MODEL)
    else:
        store.open_version(longer, MODEL).close()
        store.promote(longer, MODEL)
        assert {name, longer} <= set(store.collections())
        store.drop(longer)
    assert store.open(name).count() == 1


def test_opening_what_does_not_exist_names_what_does(store: Store, name: str, collection: Collection) -> None:
    with pytest.raises(DataError, match=f"no collection 'nonesuch'.*{name}"):
        store.open("nonesuch")


def test_opening_a_version_that_is_not_complete_says_so(store: Store, name: str) -> None:
    store.open_version(name, MODEL).close()
    with pytest.raises(DataError, match="not complete"):
        store.open(name)


def test_names_that_could_leave_the_store_are_refused(store: Store) -> None:
    calls: list[Callable[[str], object]] = [
        store.open,
        store.live,
        store.staged_versions,
        store.drop,
        lambda name: store.open_version(name, MODEL),
        lambda name: store.promote(name, MODEL),
        lambda name: store.rename(name, "new"),
        lambda name: store.rename("old", name),
    ]
    for bad in ("", ".", "..", "a/b", "../a", "a b", "-a", ".a", "ä", "a\0", "a\n", "x" * 101):
        for call in calls:
            with pytest.raises(DataError, match="cannot name a collection"):
                call(bad)


def test_a_closed_handle_refuses_and_leaves_the_others_open(store: Store, name: str) -> None:
    first, second = store.open_version(name, MODEL), store.open_version(name, MODEL)
    first.close()
    first.close()
    with pytest.raises(StoreError, match="closed"):
        first.count()
    assert second.count() == 0


def test_a_match_takes_no_bool_no_empty_values_and_no_path_as_field() -> None:
    for field, values in (("flag", (True,)), ("a", ()), ("a.b", ("x",)), ("a", (1.5,)), ("a", ("\udce9",))):
        with pytest.raises((ValueError, TypeError)):
            Match(field, values)  # type: ignore[arg-type]


def test_an_identity_takes_only_a_digest_for_a_fingerprint() -> None:
    for fingerprint, dim in (
        ("", 8),
        ("short", 8),
        ("../../../../../../etc", 8),
        ("A" * 64, 8),
        ("a" * 64, 0),
    ):
        with pytest.raises(ValueError, match=r"fingerprint|dim"):
            Identity("m", fingerprint, dim)


# ---- Two programs at once ------------------------------------------------------------------------


@pytest.fixture
def other_program(store: Store) -> Iterator[Store]:
    """Another store object over the same store, as another program has it."""
    if isinstance(store, EdgeStore):
        with EdgeStore(store.address, lock_timeout_s=10.0) as other:
            yield other
    elif store.address == IN_MEMORY:
        client = store._client  # type: ignore[attr-defined]
        other = ServerStore(IN_MEMORY, client=client, in_flight=1)
        yield other  # not closed: that would close the client of both
    else:
        with ServerStore(store.address) as other:
            yield other


def test_a_writer_is_refused_at_its_end_if_another_version_is_live_by_then(
    store: Store, name: str, other_program: Store
) -> None:
    with closing(store.open_version(name, MODEL)) as opened:
        one_point(opened, "first")
    store.promote(name, MODEL)
    begun = store.state(name)
    store.finish(name, begun)  # as long as it is live, as often as one likes
    store.finish(name, begun)
    other_program.create_staging(name, MODEL).close()  # of the same encoder: only its name tells
    other_program.promote(name, MODEL, staged=True)
    with pytest.raises(ChangedMeanwhile, match=f"another program has changed the collection '{name}'"):
        store.finish(name, begun)
    other_program.create_staging(name, MODEL).close()
    other_program.promote(name, MODEL, staged=True)  # the old name again, and another version all the same
    with pytest.raises(ChangedMeanwhile):
        store.finish(name, begun)
    other_program.drop(name)
    with pytest.raises(ChangedMeanwhile):
        store.finish(name, begun)


def test_a_switch_is_refused_if_a_writer_has_ended_since_the_look_at_the_live_version(
    store: Store, name: str, other_program: Store
) -> None:
    store.open_version(name, MODEL).close()
    live = store.promote(name, MODEL)
    assert live == store.state(name)
    beside = store.create_staging(name, MODEL)
    looked = store.state(name)
    other_program.finish(name, other_program.state(name))
    with pytest.raises(ChangedMeanwhile):
        store.promote(name, MODEL, version=beside.version, expected=looked)
    assert store.version(name) == live.version
    assert beside.count() == 0  # it is there still, to be filled further
    begun = other_program.state(name)
    now = store.promote(name, MODEL, version=beside.version, expected=store.state(name))
    assert now == store.state(name)
    assert now.version == beside.version
    with pytest.raises(ChangedMeanwhile):
        other_program.finish(name, begun)
    beside.close()


def test_of_two_first_switches_one_is_refused(store: Store, name: str, other_program: Store) -> None:
    nothing = store.state(name)
    assert nothing == LiveState()
    first, second = store.open_version(name, MODEL), other_program.open_version(name, OTHER_MODEL)
    other_program.promote(name, OTHER_MODEL, version=second.version, expected=nothing)
    with pytest.raises(ChangedMeanwhile):
        store.promote(name, MODEL, version=first.version, expected=nothing)
    assert store.live(name) == OTHER_MODEL
    first.close()
    second.close()


def test_a_version_that_was_deleted_is_not_brought_back_by_a_switch(store: Store, name: str) -> None:
    store.open_version(name, MODEL).close()
    store.promote(name, MODEL)
    looked = store.state(name)
    store.drop(name)
    with pytest.raises(ChangedMeanwhile):
        store.promote(name, MODEL, expected=looked)
    assert store.live(name) is None
