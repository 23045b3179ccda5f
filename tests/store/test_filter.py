"""What passes a filter: the same points on every engine, and those that plain Python and numpy name."""

from __future__ import annotations

import os
import pickle
import random
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as qe
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from imret.store import INDEXED_FIELDS, Collection, Condition, Filter, Identity, Ids, Match, Range
from imret.store.embedded import edge_search, locks
from imret.store.embedded import shard as edge_shard
from imret.store.embedded.store import EdgeStore
from imret.store.filter import DATETIME_FIELDS, INTEGER_FIELDS, KEYWORD_FIELDS
from imret.store.server.store import ServerStore
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS, QdrantLikeAServer
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

N, DIM = 200, 8
THOROUGH = ("embedded", "server in memory", "real server")  # what the others add is the transport
MODEL = Identity("ViT-tiny", "a1" * 32, DIM)
UTC = timezone.utc
IDS = sorted(str(uuid.UUID(int=random.Random(i).getrandbits(128), version=4)) for i in range(N))

# Values that a field without an index may have, and the moments that they are.
TAKEN: dict[Any, datetime | None] = {
    "2024-05-01T12:00:00Z": datetime(2024, 5, 1, 12, tzinfo=UTC),
    "2024-05-01T12:00:00.000001Z": datetime(2024, 5, 1, 12, microsecond=1, tzinfo=UTC),
    "2024-05-01T14:00:00+02:00": datetime(2024, 5, 1, 12, tzinfo=UTC),
    "2024-05-01T11:59:59.999999-00:00": datetime(2024, 5, 1, 11, 59, 59, 999_999, tzinfo=UTC),
    "2024-05-01": datetime(2024, 5, 1, tzinfo=UTC),
    "2024-05-01 12:00:00": datetime(2024, 5, 1, 12, tzinfo=UTC),
    "0001-01-01T00:00:00.000000Z": datetime(1, 1, 1, tzinfo=UTC),
    "9999-12-31T23:59:59.999999Z": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "2024-05": None,
    "noon": None,
    "": None,
    20240501: None,
}
MODIFIED = [text for text, moment in TAKEN.items() if moment and "T" in text]
WHOLE = [0, 1, 2, 3, -5, 640, 2**53 - 1, 2**53, 2**53 + 1, 2**60 + 1, 2**63 - 1, -(2**63)]
SHARPNESS = [0, 1, 2, 0.5, 1.5, -0.25, 2.0, 1e300, -1e300, 2**53 + 1, "1"]
CATEGORIES = ["aves", "fungi", "'quoted' \"名前\"\n", "", 7]


def _payload(rng: random.Random, i: int) -> dict[str, Any]:
    payload = {
        "category": rng.choice(CATEGORIES),
        "path": f"Bild ü {i}.jpg",
        "source": f"/photos/{i % 3}",
        "width": rng.choice(WHOLE),
        "height": rng.randrange(5),
        "size_bytes": rng.choice(WHOLE),
        "modified": rng.choice(MODIFIED),
        "sharpness": rng.choice(SHARPNESS),
        "taken": rng.choice(list(TAKEN)),
    }
    return {key: value for key, value in payload.items() if rng.random() < 0.8}


PAYLOADS = [_payload(random.Random(i), i) for i in range(N)]
VECTORS = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


# ---- The oracle ----------------------------------------------------------------------------------


def meets(condition: Condition, i: int) -> bool:
    if isinstance(condition, Ids):
        return IDS[i] in condition.ids
    value = PAYLOADS[i].get(condition.field)
    if isinstance(condition, Match):
        return any(type(value) is type(one) and value == one for one in condition.values)
    if isinstance(next(iter(condition.bounds.values())), str):
        value = TAKEN[value] if isinstance(value, str) and value in TAKEN else None
    elif isinstance(value, str):
        value = None
    return value is not None and all(
        {"gte": value >= bound, "gt": value > bound, "lte": value <= bound, "lt": value < bound}[name]
        for name, bound in ((name, _comparable(bound)) for name, bound in condition.bounds.items())
    )


def _comparable(bound: Any) -> Any:
    return datetime.strptime(bound, "%Y-%m-%dT%H:%M:%S.%f%z") if isinstance(bound, str) else bound


def passing(only: Filter) -> list[int]:
    return [
        i
        for i in range(N)
        if all(meets(one, i) for one in only.must) and not any(meets(one, i) for one in only.must_not)
    ]


def nearest(query: NDArray[np.float32], limit: int, among: list[int]) -> list[str]:
    scores = VECTORS[among] @ query
    return [IDS[among[i]] for i in np.argsort(-scores, kind="stable")[:limit]]


# ---- The engines ---------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        "embedded, made before there were indexes",
        "server in memory",
        "server over HTTP",
        "server over gRPC",
        pytest.param("real server", marks=pytest.mark.server),
    ],
)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, Collection]]:
    """The name of an engine, and the points in it."""
    with ExitStack() as stack:
        store: EdgeStore | ServerStore
        name = f"imret-test-{uuid.uuid4().hex}"
        if request.param.startswith("embedded"):
            folder = stack.enter_context(_folder_in_memory())
            if "before" in request.param:
                _store_without_indexes(folder, name)
            store = stack.enter_context(EdgeStore(folder, lock_timeout_s=0.0))
        elif request.param == "server in memory":
            client = QdrantLikeAServer()
            store = stack.enter_context(ServerStore("http://memory", client=client, in_flight=1))
        elif request.param == "real server":
            url = os.environ.get("IMRET_TEST_QDRANT_URL")
            if not url:
                pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
            store = stack.enter_context(ServerStore(url))
            stack.callback(store.drop, name)
        else:
            qdrant = stack.enter_context(QdrantOverHTTP())
            if "gRPC" in request.param:
                faster = stack.enter_context(QdrantOverGRPC(qdrant))
                monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
                monkeypatch.setattr("imret.store.server.connection.REST_PORT", qdrant.port)
                monkeypatch.setattr("imret.store.server.connection.GRPC_PORT", faster.port)
            store = stack.enter_context(ServerStore(qdrant.url))
        if "before" not in request.param:
            store.open_version(name, MODEL).upsert(IDS, VECTORS, PAYLOADS)
            store.promote(name, MODEL)
        yield request.param, store.open(name)


def _folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where that can be: making a collection waits for the disk a dozen times."""
    memory_disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="imret-test-", dir=memory_disk)


@pytest.fixture
def db() -> Iterator[Path]:
    with _folder_in_memory() as folder:
        yield Path(folder)


def _store_without_indexes(folder: str, name: str) -> None:
    """Make a store as imret made them when it knew no ranges: only texts have an index."""
    with EdgeStore(folder) as store:
        store.open_version(name, MODEL).upsert(IDS, VECTORS, PAYLOADS)
        store.promote(name, MODEL)
    (shard_folder,) = Path(folder).glob(f"{name}/*/shard")
    shard = qe.EdgeShard.load(str(shard_folder))
    for field in (*INTEGER_FIELDS, *DATETIME_FIELDS):
        shard.update(qe.UpdateOperation.delete_field_index(field))
    shard.flush()
    shard.close()
    forget_notes(Path(folder))  # which they did not have either


def indexed_fields(folder: Path) -> set[str]:
    (shard_folder,) = folder.glob("*/*/shard")
    shard = qe.EdgeShard.load(str(shard_folder))
    fields = set(shard.info().payload_schema)
    shard.close()
    forget_notes(folder)
    return fields


def forget_notes(folder: Path) -> None:
    """Remove what is noted of files that another program than imret has opened since."""
    for note in folder.glob("*/*/flushed*.json"):
        note.unlink()


# ---- Random filters ------------------------------------------------------------------------------


def ranges(fields: list[str], bound: st.SearchStrategy[Any]) -> st.SearchStrategy[Range]:
    sides = st.sampled_from([(low, high) for low in ("gte", "gt", "") for high in ("lte", "lt", "")][:-1])
    return st.builds(
        lambda field, names, *ends: Range(
            field, **{name: end for name, end in zip(names, ends, strict=True) if name}
        ),
        st.sampled_from(fields),
        sides,
        bound,
        bound,
    )


number_bounds = st.one_of(
    st.sampled_from([value for value in WHOLE if abs(value) < 2**53]),
    st.sampled_from([0.5, 1.5, 2.5, -0.25, -4.5, 2.0]),
    st.integers(-10, 10),
)
moment_bounds = st.builds(
    lambda text, hours, apart: _moved(TAKEN[text], hours, apart),
    st.sampled_from(MODIFIED),
    st.sampled_from([0, 2, -3.5]),
    st.sampled_from([0, 0, 1, -1]),
)


def _moved(moment: datetime | None, offset_hours: float, apart_us: int) -> str:
    """Return a moment or one a microsecond away, in some time zone."""
    assert moment is not None
    if moment.year in (1, 9999):
        return moment.isoformat()
    zone = timezone(timedelta(hours=offset_hours))
    return (moment + timedelta(microseconds=apart_us)).astimezone(zone).isoformat()


def matches(fields: list[str], values: list[Any]) -> st.SearchStrategy[Match]:
    some = st.lists(st.sampled_from(values), min_size=1, max_size=5).map(tuple)
    return st.builds(Match, st.sampled_from(fields), some)


conditions = st.one_of(
    matches(["category"], CATEGORIES),
    matches(["width", "size_bytes"], [*WHOLE, "640"]),
    matches(["modified", "taken"], MODIFIED),
    matches(["sharpness", "height", "taken", "missing"], [0, 1, 2, 3, "1", "noon", 20240501]),
    ranges(["width", "size_bytes", "sharpness"], number_bounds),
    ranges(["height", "taken", "category", "missing"], number_bounds),
    ranges(["modified"], moment_bounds),
    ranges(["taken", "modified", "sharpness", "category", "missing"], moment_bounds),
    st.builds(
        Ids, st.lists(st.sampled_from([*IDS, str(uuid.UUID(int=1))]), min_size=1, max_size=150).map(tuple)
    ),
)


@st.composite
def contradicting(draw: st.DrawFn) -> Filter:
    """A filter that excludes some or all of what it asks for: to the letter, in another order, rounded."""
    must = draw(st.lists(conditions, min_size=1, max_size=2))
    must_not = draw(st.lists(conditions, max_size=1))
    for condition in must:
        if isinstance(condition, Range):
            other = condition
            if condition.field in INTEGER_FIELDS and not condition.is_datetime and draw(st.booleans()):
                other = Range(condition.field, **condition.numbers())  # type: ignore[arg-type]
            must_not.append(other)
        else:
            values = condition.ids if isinstance(condition, Ids) else condition.values
            some = tuple(draw(st.permutations(values)))[: draw(st.integers(1, len(values)))]
            must_not.append(Ids(some) if isinstance(condition, Ids) else Match(condition.field, some))
        if draw(st.booleans()):
            break
    return Filter(tuple(draw(st.permutations(must))), tuple(draw(st.permutations(must_not))))


filters = st.one_of(
    st.builds(
        Filter,
        st.lists(conditions, max_size=2).map(tuple),
        st.lists(conditions, max_size=2).map(tuple),
    ),
    contradicting(),
)


def test_a_thousand_random_filters_pass_the_same_points_on_every_engine(
    engine: tuple[str, Collection],
) -> None:
    name, collection = engine
    some = turn = 0

    @settings(max_examples=1_000 if name in THOROUGH else 50, derandomize=True, deadline=None)
    @given(filters)
    def check(only: Filter) -> None:
        nonlocal some, turn
        expected = passing(only)
        some += 0 < len(expected) < N
        turn += 1
        # The in-memory engine is slow: there, each filter takes its turn at one of the three.
        turns = {turn % 3} if name == "server in memory" else {0, 1, 2}
        if 0 in turns:
            found = [point.id for batch in collection.scan(only) for point in batch]
            assert found == [IDS[i] for i in expected]
        if 1 in turns:
            assert collection.count(only) == len(expected)
        if 2 in turns:
            query = VECTORS[len(expected) % N]
            hits = collection.search(query, limit=5, filter=only, exact=turn % 2 == 0)
            assert [hit.id for hit in hits] == nearest(query, 5, expected)
            found = [PAYLOADS[i].get("category") for i in expected]
            counted = Counter(value for value in found if isinstance(value, str))  # what the index holds
            assert collection.facet("category", only) == counted

    check()
    assert some > turn // 5  # the others let all points through, or none


def test_what_is_asked_for_and_excluded_is_found_nowhere(engine: tuple[str, Collection]) -> None:
    _, collection = engine
    aves, some = Match("category", ("aves",)), Match("category", ("fungi", "aves"))
    for only in (
        Filter((aves,), (aves,)),
        Filter((some,), (Match("category", ("aves", "fungi")),)),
        Filter((Range("height", gte=1.5),), (Range("height", gte=2),)),
        Filter(
            (Range("modified", lt="2024-05-01T12:00:00Z"),),
            (Range("modified", lt="2024-05-01T14:00:00+02:00"),),
        ),
        Filter((Ids((IDS[1], IDS[0])),), (Ids((IDS[0], IDS[1])),)),
    ):
        assert collection.count(only) == 0
        assert list(collection.scan(only)) == []
        assert collection.search(VECTORS[0], limit=3, filter=only) == []
        assert collection.facet("category", only) == {}
        assert collection.facet("height", only) == {}
    only = Filter((some,), (aves,))
    assert collection.facet("category", only) == {"fungi": len(passing(only))}


def test_a_filter_is_asked_without_what_it_excludes() -> None:
    some, aves = Match("category", ("aves", 7, "fungi")), Match("category", ("aves",))
    assert Filter((some,), (aves,)).reduced() == Filter((Match("category", (7, "fungi")),), (aves,))
    assert Filter((some, aves), (Match("path", ("aves",)),)).reduced() == Filter(
        (some, aves), (Match("path", ("aves",)),)
    )
    assert Filter((), (aves, aves)).reduced() == Filter((), (aves, aves))
    assert Filter((some, aves), (aves,)).reduced() is None
    assert Filter((Match("width", (1,)),), (Match("width", ("1",)),)).reduced() is not None


def test_a_filter_travels_to_the_worker_and_back() -> None:
    only = Filter(
        (Match("a", ("b", 1)), Range("width", gte=1)),
        (Range("modified", lt="2024-05-01T12:00:00Z"), Ids((IDS[0],))),
    )
    assert pickle.loads(pickle.dumps(only)) == only


# ---- Indexes -------------------------------------------------------------------------------------


def test_an_older_collection_gets_the_missing_indexes_when_it_is_filled_and_not_when_it_is_read(
    db: Path,
) -> None:
    _store_without_indexes(str(db), "photos")
    assert indexed_fields(db) == set(KEYWORD_FIELDS)
    only = Filter(must=(Range("height", gte=2), Range("modified", gte="2024-05-01T12:00:00Z")))
    with EdgeStore(db) as store:
        assert store.open("photos").count(only) == len(passing(only))
    assert indexed_fields(db) == set(KEYWORD_FIELDS)
    for _ in range(2):
        with EdgeStore(db) as store:
            collection = store.open_version("photos", MODEL)
            assert collection.count(only) == len(passing(only))
        assert indexed_fields(db) == set(INDEXED_FIELDS)


@pytest.mark.slow
def test_a_range_is_searched_as_well_as_all_of_it_be_it_scanned_or_walked_with_an_index_and_without(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_search, "SCAN_BYTES", 40_000_000)  # between what the cases keep
    # A walk that ACORN does not help finds half of a tenth.
    rng = np.random.default_rng(0)
    n, dim = 30_000, 1_024
    centres = rng.standard_normal((300, dim), np.float32)
    vectors = centres[rng.integers(0, 300, n)] + rng.standard_normal((n, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [str(uuid.UUID(int=i)) for i in range(n)]
    sizes = rng.permutation(n)
    (db / "photos").mkdir(parents=True)
    owner, identity = locks.LockOwner(os.getpid(), "test", ""), Identity("m", "c3" * 32, dim)
    shard = edge_shard.Shard(db / "photos" / "v", identity, owner=owner, index_from_kb=10_000)
    try:
        shard.upsert(ids, vectors, [{"size_bytes": int(size), "no_index": int(size)} for size in sizes])
        shard.optimize()
        assert shard.stats()[1] == n
        for field, kept in (("size_bytes", n // 10), ("size_bytes", n * 4 // 11), ("no_index", n // 10)):
            only = Filter(must=(Range(field, gte=n - kept),))
            allowed = np.flatnonzero(sizes >= n - kept)
            found = 0
            for query in vectors[:50]:
                best = allowed[np.argsort(-(vectors[allowed] @ query))[:10]]
                hits = shard.search(query, 10, only, False)
                found += len({ids[i] for i in best} & {row[0] for row in hits})
            assert found / 500 >= 0.99, (field, kept)
    finally:
        shard.close()


def test_a_server_is_asked_for_an_index_of_each_fields_kind() -> None:
    asked: dict[str, str] = {}

    class Recording(QdrantClient):
        def create_payload_index(self, name: str, field: str, **options: Any) -> Any:
            asked[field] = options["field_schema"].type.value
            return super().create_payload_index(name, field, **options)

    with ServerStore("http://memory", client=Recording(":memory:"), in_flight=1) as store:
        store.open_version("photos", MODEL)
    assert asked == {
        **dict.fromkeys(("category", "path", "sha256", "source", "unit"), "keyword"),
        **dict.fromkeys(("width", "height", "size_bytes"), "integer"),
        "modified": "datetime",
    }


def test_a_server_compares_with_all_that_pass_where_a_filter_asks_about_a_field_without_an_index() -> None:
    asked: list[Any] = []

    class Recording(QdrantClient):  # which, in memory, has no indexes
        def query_points(self, *args: Any, **options: Any) -> Any:
            asked.append(options["search_params"])
            return super().query_points(*args, **options)

    with ServerStore("http://memory", client=Recording(":memory:"), in_flight=1) as store:
        collection = store.open_version("photos", MODEL)
        for only in (
            None,
            Filter(must=(Match("category", ("aves",)), Ids((IDS[0],)))),
            Filter(must=(Match("category", ("aves",)),), must_not=(Range("width", gte=1),)),
        ):
            collection.search(VECTORS[0], limit=1, filter=only)
    assert [params.exact for params in asked] == [False, False, True]
    assert [params.acorn is not None and params.acorn.enable for params in asked] == [False, True, True]


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "bounds", "error"),
    [
        ("width", {}, "needs at least one of gte, gt, lte and lt"),
        ("width", {"gte": 1, "gt": 1}, "takes gte or gt, and lte or lt, not gte, gt"),
        ("width", {"lt": 3, "gte": 1, "lte": 1}, "not gte, lte, lt"),
        ("a.b", {"gte": 1}, "a field to filter by is letters"),
        ("width", {"gte": True}, "of type bool"),
        ("width", {"gte": float("nan")}, "not finite"),
        ("sharpness", {"gte": 1, "lt": float("inf")}, "not finite"),
        ("width", {"lte": 2**53}, "beyond"),
        ("sharpness", {"gt": -(2.0**53)}, "beyond"),
        ("width", {"gte": [1]}, "of type list"),
        ("taken", {"gte": 1, "lt": "2024-05-01T12:00:00Z"}, "are of two kinds"),
        ("modified", {"gte": 2024}, "no value of that field lies between numbers"),
        ("width", {"gte": "2024-05-01T12:00:00Z"}, "no value of that field lies between datetimes"),
        *(
            ("modified", {"gte": text}, "a datetime looks like 2024-05-01T12:00:00Z")
            for text in (
                *("", "2024", "2024-05-01", "2024-05-01T12:00:00", "2024-05-01 12:00:00Z"),
                *("2024-05-01T12:00Z", "2024-05-01T12:00:00.1234567Z", "2024-05-01T12:00:00.Z"),
                *("2024-05-01T12:00:60Z", "2024-02-30T12:00:00Z", "0000-01-01T00:00:00Z"),
                *("2024-05-01T12:00:00+0200", "2024-05-01T12:00:00+24:00", "2024-05-01T12:00:00Z\n"),
                *("0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "２024-05-01T12:00:00Z"),
            )
        ),
    ],
)
def test_a_range_that_can_be_none_is_refused(field: str, bounds: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        Range(field, **bounds)


def test_ranges_of_the_same_moments_are_equal_and_kept_in_utc() -> None:
    one = Range("modified", gte="2024-05-01T12:00:00Z")
    assert one == Range("modified", gte="2024-05-01T14:30:00.00+02:30")
    assert one.gte == "2024-05-01T12:00:00.000000Z"
    assert hash(one) == hash(Range("modified", gte="2024-05-01T12:00:00-00:00"))


@pytest.mark.parametrize("ids", [(), ("photo-1",), (IDS[0].upper(),), (IDS[0], "")])
def test_ids_that_are_none_or_no_uuids_are_refused(ids: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs at least one id|a point id is a UUID"):
        Ids(ids)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"width": 640.0}, "'width': 640.0 is of type float"),
        ({"size_bytes": "5 MB"}, "'size_bytes': '5 MB' is of type str"),
        ({"modified": 1_714_564_800}, "'modified': 1714564800 is of type int"),
        ({"modified": "yesterday"}, "a datetime looks like 2024-05-01T12:00:00Z .RFC 3339., not 'yesterday'"),
        ({"modified": "2016-12-31T23:59:60Z"}, "a datetime looks like"),
    ],
)
def test_a_field_with_an_index_holds_only_values_of_its_kind(
    engine: tuple[str, Collection], payload: dict[str, Any], error: str
) -> None:
    _, collection = engine
    new = str(uuid.UUID(int=7))
    with pytest.raises((TypeError, ValueError), match=error):
        collection.upsert([new], VECTORS[:1], [payload])
    with pytest.raises((TypeError, ValueError), match=error):
        collection.overwrite_payloads([IDS[0]], [payload])
    assert collection.get([new]) == {}
    assert collection.get([IDS[0]])[IDS[0]].payload == PAYLOADS[0]
