"""The server engine over real sockets: what it tries again, what it refuses, and what its errors say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient, models

import imret.store
from imret.cli.main import cli
from imret.errors import DataError, StoreError, StoreUnavailable
from imret.settings import store_dir
from imret.store import Filter, Identity, Match, open_store, resolve_address
from imret.store.server.store import ServerStore
from tests import ROOT
from tests.fakes.qdrant_over_grpc import QdrantOverGRPC
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, VERSION, QdrantOverHTTP
from tests.fakes.web_server import free_port

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)
KEY = "s3cr3t-key-0123456789"


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as running:
        yield running


def fail_times(n: int, status: int, *, on: str) -> Callable[[str, str], int | None]:
    """Return a rule that fails the first n requests to paths that end so."""
    left = [n]

    def fail(_: str, path: str) -> int | None:
        if path.endswith(on) and left[0]:
            left[0] -= 1
            return status
        return None

    return fail


def points(n: int) -> tuple[list[str], np.ndarray, list[dict[str, str]]]:
    vectors = np.random.default_rng(0).standard_normal((n, MODEL.dim)).astype(np.float32)
    return (
        [str(uuid.UUID(int=i + 1)) for i in range(n)],
        vectors,
        [{"category": f"c{i % 3}"} for i in range(n)],
    )


@pytest.mark.parametrize("status", [0, 408, 429, 502, 503, 504])
def test_what_is_transient_is_tried_again(qdrant: QdrantOverHTTP, status: int) -> None:
    with ServerStore(qdrant.url) as store:
        collection = store.open_version("photos", MODEL)
        for path, call in (
            ("/points", lambda: collection.upsert(*points(100))),
            ("/points/count", collection.count),
            ("/points/query", lambda: collection.search(np.ones(8, np.float32), limit=3)),
            ("/points/delete", lambda: collection.delete(points(50)[0])),
        ):
            qdrant.fail = fail_times(2, status, on=path)
            call()
        assert collection.count() == 50


@pytest.mark.parametrize(
    ("code", "text", "passes"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", True),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", True),
        (grpc.StatusCode.UNKNOWN, "Stream removed", True),
        (grpc.StatusCode.INTERNAL, "panicked", False),
        (grpc.StatusCode.CANCELLED, "by the server", False),
    ],
)
def test_what_is_transient_over_grpc_is_tried_again(
    qdrant: QdrantOverHTTP, code: grpc.StatusCode, text: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with QdrantOverGRPC(qdrant) as faster:
        monkeypatch.setattr("imret.store.server.connection.REST_PORT", qdrant.port)
        monkeypatch.setattr("imret.store.server.connection.GRPC_PORT", faster.port)
        with ServerStore(qdrant.url) as store:
            collection = store.open_version("photos", MODEL)
            faster.failures += [(code, text)] * 2
            if passes:
                collection.upsert(*points(50))
                assert collection.count() == 50
            else:
                with pytest.raises(StoreError, match=f"refused to count: {code.name}: {text}"):
                    collection.count()


@pytest.mark.parametrize("status", [400, 404, 409, 500])
def test_what_is_not_transient_is_not_tried_again(qdrant: QdrantOverHTTP, status: int) -> None:
    with ServerStore(qdrant.url) as store:
        collection = store.open_version("photos", MODEL)
        qdrant.fail = fail_times(1000, status, on="/points/count")
        before = len(qdrant.requests)
        with pytest.raises(
            StoreError, match=rf"{qdrant.url} refused to count: {status} .*made to fail"
        ) as caught:
            collection.count()
        assert not isinstance(caught.value, StoreUnavailable)
        assert len(qdrant.requests) == before + 1


def test_the_waits_between_tries_grow(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url, patience_s=3.0) as store:
        collection = store.open_version("photos", MODEL)
        qdrant.fail = fail_times(1000, 503, on="/points/count")
        before, started = len(qdrant.requests), time.monotonic()
        with pytest.raises(StoreUnavailable, match="503"):
            collection.count()
        assert time.monotonic() - started <= 3.5
        # Waits of 0.1, 0.2, 0.4, 0.8 and 1.6 s, each shortened by up to a half: 5 to 6 tries fit.
        assert 4 <= len(qdrant.requests) - before <= 7


def test_a_server_that_goes_away_in_the_middle_is_named_and_what_it_had_stays() -> None:
    with QdrantOverHTTP() as qdrant:
        store = ServerStore(qdrant.url, patience_s=0.5)
        collection = store.open_version("photos", MODEL)
        ids, vectors, payloads = points(200)
        collection.upsert(ids[:100], vectors[:100], payloads[:100])
        qdrant.fail = lambda method, path: 0
        with pytest.raises(StoreUnavailable) as caught:
            collection.upsert(ids[100:], vectors[100:], payloads[100:])
        assert qdrant.url in str(caught.value)
        assert "docker compose up qdrant" in str(caught.value)
        qdrant.fail = lambda method, path: None
        assert collection.count() == 100
        collection.upsert(ids, vectors, payloads)
        assert collection.count() == 200
    with pytest.raises(StoreUnavailable, match=f"{qdrant.url}: .*[Rr]efused"):
        collection.count()
    store.close()


def test_nothing_at_the_address_is_said_soon() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=f"no answer from Qdrant at {url}: .*[Rr]efused"):
        ServerStore(url)
    assert time.monotonic() - started < 4


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(StoreUnavailable, match=r"no answer from Qdrant at http://no-such-host\.invalid:6333"):
        ServerStore("http://no-such-host.invalid:6333")


def test_another_program_at_the_address_is_not_taken_for_qdrant() -> None:
    for title in ("elasticsearch", ""):
        with (
            QdrantOverHTTP(version={"title": title, "version": "9.1.0"}) as other,
            pytest.raises(StoreError, match="not a Qdrant server"),
        ):
            ServerStore(other.url)


def test_an_answer_that_is_not_qdrants_is_an_error_and_not_a_traceback(qdrant: QdrantOverHTTP) -> None:
    qdrant.version = {"hello": "world"}
    with pytest.raises(StoreError, match=qdrant.url):
        ServerStore(qdrant.url)


def test_versions_too_far_apart_are_told_in_the_reason() -> None:
    with QdrantOverHTTP(version={**VERSION, "version": "1.12.4"}) as old, ServerStore(old.url) as store:
        assert "Qdrant 1.12.4 and qdrant-client" in store.reason
    with QdrantOverHTTP() as near, ServerStore(near.url) as store:
        assert store.reason == ""


def test_upserts_go_out_in_batches_of_64_to_256_with_several_in_flight(qdrant: QdrantOverHTTP) -> None:
    under_way = most = 0
    counting = threading.Lock()

    def count(method: str, path: str) -> None:
        nonlocal under_way, most
        if method == "PUT" and path.endswith("/points"):
            with counting:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.1)
            with counting:
                under_way -= 1

    with ServerStore(qdrant.url) as store:
        collection = store.open_version("photos", MODEL)
        for n, batches in ((1, 1), (64, 1), (100, 2), (256, 4), (1_000, 4), (1_500, 6)):
            qdrant.requests.clear()
            qdrant.fail = count  # type: ignore[assignment]
            collection.upsert(*points(n))
            assert len(qdrant.requests) == batches, n
        assert collection.count() == 1_500
    assert 2 <= most <= 4


@pytest.mark.parametrize("proxy", [False, True])
def test_a_request_that_is_too_large_for_who_takes_it_goes_out_in_smaller_ones(
    qdrant: QdrantOverHTTP, proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy:
        qdrant.fail = lambda method, path: (
            (413, "Request Entity Too Large") if qdrant.length > 9_000 else None
        )
    else:
        monkeypatch.setattr("tests.fakes.qdrant_over_http.MAX_BODY_BYTES", 9_000)
    with ServerStore(qdrant.url, in_flight=1) as store:
        collection = store.open_version("photos", MODEL)
        collection.upsert(*points(300))
        assert sorted(one.id for batch in collection.scan() for one in batch) == points(300)[0]
        ids, vectors, payloads = points(3)
        large = {"category": "x" * 10_000}
        with pytest.raises(StoreError, match="refused to store points: 4"):
            collection.upsert(ids, vectors, [*payloads[:2], large])


def test_a_server_is_not_asked_for_what_is_excluded(qdrant: QdrantOverHTTP) -> None:
    nothing = Filter((Match("category", ("c1",)),), (Match("category", ("c2", "c1")),))
    with ServerStore(qdrant.url) as store:
        collection = store.open_version("photos", MODEL)
        collection.upsert(*points(9))
        qdrant.requests.clear()
        assert collection.count(nothing) == 0
        assert list(collection.scan(nothing)) == []
        assert collection.search(np.ones(8, np.float32), limit=3, filter=nothing) == []
        assert collection.facet("category", nothing) == {}
        assert collection.facet("width", nothing) == {}
        assert qdrant.requests == []
        with pytest.raises(ValueError, match="limit"):  # checked all the same
            collection.search(np.ones(8, np.float32), limit=0, filter=nothing)
        with pytest.raises(ValueError, match="UUID"):
            collection.scan(nothing, start="x")


def test_payload_indexes_are_made_before_the_first_point(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url) as store:
        store.open_version("photos", MODEL)
    indexes = [path for method, path in qdrant.requests if path.endswith("/index")]
    assert len(indexes) == len(imret.store.INDEXED_FIELDS)


def test_a_collection_is_made_with_int8_vectors_and_cosine() -> None:
    asked: list[dict[str, object]] = []

    class Recording(QdrantClient):
        def create_collection(self, *args: object, **options: object) -> bool:
            asked.append(options)
            return super().create_collection(*args, **options)  # type: ignore[arg-type]

    with ServerStore("http://memory", client=Recording(":memory:"), in_flight=1) as store:
        store.open_version("photos", MODEL)
    quantization, vectors = asked[0]["quantization_config"], asked[0]["vectors_config"]
    assert isinstance(quantization, models.ScalarQuantization)
    assert quantization.scalar.type == models.ScalarType.INT8
    assert isinstance(vectors, models.VectorParams)
    assert (vectors.size, vectors.distance) == (8, models.Distance.COSINE)


@pytest.mark.parametrize(
    ("m", "says"),
    [
        (16, "50 vectors; a graph is configured (m = 16)"),
        (0, "50 vectors; no graph is configured (m = 0), so every search compares them all"),
    ],
)
def test_of_an_index_is_told_what_is_known_and_not_what_the_server_counts(
    qdrant: QdrantOverHTTP, m: int, says: str
) -> None:
    qdrant.engine.indexing_threshold_kb = 0
    with ServerStore(qdrant.url) as store:
        collection = store.open_version("photos", MODEL)
        graph = models.HnswConfigDiff(m=m)
        qdrant.engine.update_collection(collection.version, hnsw_config=graph)
        collection.upsert(*points(50))
        store.promote("photos", MODEL)
        stats = collection.stats()
        assert (stats.status, stats.indexed, stats.m) == ("yellow", None, m)
        assert stats.index == f"yellow, {says}"
        collection.optimize()
        assert qdrant.engine.get_collection(collection.version).indexed_vectors_count == 50
        assert collection.stats().index == f"green, {says}"
    for command in (["info"], ["collections", "show", "photos"]):
        done = CliRunner().invoke(cli, [*command, "--db", qdrant.url])
        assert f"index        green, {says}\n" in done.output
        done = CliRunner().invoke(cli, [*command, "--db", qdrant.url, "--format", "json"])
        (found,) = json.loads(done.output).get("collections", [json.loads(done.output)])
        assert found["index"] == {"status": "green", "vectors": None, "m": m}


def test_a_collection_that_imret_did_not_make_is_left_alone(qdrant: QdrantOverHTTP) -> None:
    config = models.VectorParams(size=8, distance=models.Distance.DOT)
    qdrant.engine.create_collection("photos", config)
    qdrant.engine.create_collection("target", config)
    qdrant.engine.update_collection_aliases(
        [
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name="target", alias_name="pics")
            )
        ]
    )
    qdrant.engine.create_collection(f"trees.{MODEL.version}", config)
    qdrant.engine.create_collection("noted", config, metadata={"imret": "by hand"})
    names = {one.name for one in qdrant.engine.get_collections().collections}
    with ServerStore(qdrant.url) as store:
        for name in ("photos", "pics", "trees", "noted"):
            with pytest.raises(StoreError, match=f"{name!r} that imret did not make"):
                store.open_version(name, MODEL)
            store.drop(name)
        for name in ("photos", "pics", "noted"):
            with pytest.raises(StoreError, match=f"{name!r} that imret did not make"):
                store.live(name)
        assert store.collections() == []
        assert store.staged_versions("trees") == []
    assert {one.name for one in qdrant.engine.get_collections().collections} == names


def test_a_server_that_keeps_no_metadata_is_refused_and_left_clean() -> None:
    class Old(QdrantClient):
        def create_collection(self, *args: object, **options: object) -> bool:
            options.pop("metadata")
            return super().create_collection(*args, **options)  # type: ignore[arg-type]

    client = Old(":memory:")
    with ServerStore("http://memory", client=client, in_flight=1) as store:
        with pytest.raises(StoreError, match=r"Qdrant 1\.16 or newer"):
            store.open_version("photos", MODEL)
        assert client.get_collections().collections == []


def test_a_creation_whose_answer_was_lost_is_taken_up(qdrant: QdrantOverHTTP) -> None:
    def lose_the_answer(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith(MODEL.version):
            qdrant.fail = lambda method, path: None
            qdrant.serve(
                "PUT",
                path,
                {
                    "vectors": {"size": 8, "distance": "Cosine"},
                    "metadata": {
                        "imret": {
                            "format": 1,
                            "collection": "photos",
                            "model": MODEL.model,
                            "fingerprint": MODEL.fingerprint,
                            "dim": 8,
                        }
                    },
                },
            )
            return 503
        return None

    qdrant.fail = lose_the_answer
    with ServerStore(qdrant.url) as store:
        assert store.open_version("photos", MODEL).count() == 0


def test_a_reader_of_a_version_that_was_replaced_is_told_so(qdrant: QdrantOverHTTP) -> None:
    other = Identity("other", "b2" * 32, 8)
    with ServerStore(qdrant.url) as store:
        store.open_version("photos", MODEL)
        store.promote("photos", MODEL)
        reader = store.open("photos")
        store.open_version("photos", other)
        store.promote("photos", other)
        with pytest.raises(StoreError, match=r"replaced or dropped .* Run the command again"):
            reader.count()
        assert store.open("photos").identity == other


@pytest.mark.parametrize("ask", ["open", "live", "collections"])
def test_a_version_that_is_replaced_while_it_is_looked_up_is_looked_up_again(
    qdrant: QdrantOverHTTP, ask: str
) -> None:
    other = Identity("ViT-other", "b2" * 32, 8)
    with ServerStore(qdrant.url) as store, ServerStore(qdrant.url) as filler:
        old = store.open_version("photos", MODEL)
        store.promote("photos", MODEL)
        filler.open_version("photos", other)

        def switch_meanwhile(method: str, path: str) -> None:
            if (method, path) == ("GET", f"/collections/{old.version}"):  # after the alias named it
                qdrant.fail = lambda method, path: None
                filler.promote("photos", other)

        qdrant.fail = switch_meanwhile
        found = {
            "open": lambda: store.open("photos").identity,
            "live": lambda: store.live("photos"),
            "collections": store.collections,
        }[ask]()
        assert found == (["photos"] if ask == "collections" else other)
        assert old.version not in [one.name for one in qdrant.engine.get_collections().collections]


def test_the_key_is_sent_and_a_wrong_or_missing_one_is_told_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with QdrantOverHTTP(api_key=KEY) as qdrant:
        with pytest.raises(StoreError, match=r"asks for an API key.*QDRANT_API_KEY"):
            ServerStore(qdrant.url)
        with pytest.raises(StoreError, match="refuses the API key") as caught:
            ServerStore(qdrant.url, api_key="wrong-" + KEY)
        assert KEY not in str(caught.value)
        monkeypatch.setenv("QDRANT_API_KEY", KEY + "\n")  # as read from a file
        with ServerStore(qdrant.url) as store:
            assert store.collections() == []
            assert KEY not in repr(vars(store)["_client"])


def test_the_key_appears_in_no_message(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url, api_key="made to fail", patience_s=0.2) as store:
        collection = store.open_version("photos", MODEL)
        for status in (500, 503):  # the answer quotes the key
            qdrant.fail = fail_times(1000, status, on="/points/count")
            with pytest.raises(StoreError) as caught:
                collection.count()
            assert "made to fail" not in str(caught.value)
            assert "***" in str(caught.value)
    for key in ("caf\u00e9-" + KEY, KEY + "\nmore"):
        with pytest.raises(StoreError, match="QDRANT_API_KEY") as caught:
            ServerStore(qdrant.url, api_key=key)
        assert KEY not in str(caught.value)


def test_a_key_over_plain_http_to_another_machine_is_warned_of() -> None:
    with (
        pytest.warns(UserWarning, match=r"the API key travels to http://no-such-host\.invalid unencrypted"),
        pytest.raises(StoreUnavailable),
    ):
        ServerStore("http://no-such-host.invalid", api_key=KEY)


def test_a_command_shows_what_its_server_warns_of() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imret", "info", "--db", "http://no-such-host.invalid"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "QDRANT_API_KEY": KEY},
    )
    assert "Warning: the API key travels to http://no-such-host.invalid unencrypted" in done.stderr


def test_a_key_that_may_only_read_is_told_apart_from_a_wrong_one() -> None:
    with QdrantOverHTTP(api_key=KEY, read_only_key="look") as qdrant:
        with ServerStore(qdrant.url, api_key=KEY) as store:
            store.open_version("photos", MODEL).upsert(*points(3))
            store.promote("photos", MODEL)
        with ServerStore(qdrant.url, api_key="look") as store:
            collection = store.open("photos")
            assert collection.count() == 3
            with pytest.raises(
                StoreError, match=r"(?s)does not let this API key store points: 403.*one that may"
            ):
                collection.upsert(*points(3))


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{KEY}@localhost:6333",
        f"http://localhost:6333/?api-key={KEY}",
        f"http://localhost:6333/#{KEY}",
        "ftp://localhost",
        "http://",
        "http://localhost:0",
        "http://localhost:99999",
        "http://[::1",
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_its_secrets(address: str) -> None:
    with pytest.raises(StoreError, match="URL") as caught:
        open_store(address)
    assert KEY not in str(caught.value)


def test_closing_ends_the_waits_of_a_store_in_trouble(qdrant: QdrantOverHTTP) -> None:
    store = ServerStore(qdrant.url, patience_s=60)
    collection = store.open_version("photos", MODEL)
    qdrant.fail = lambda method, path: 503
    raised: list[BaseException] = []

    def count() -> None:
        try:
            collection.count()
        except StoreError as error:
            raised.append(error)

    waiting = threading.Thread(target=count)
    waiting.start()
    time.sleep(0.3)
    store.close()
    waiting.join(timeout=5)
    assert not waiting.is_alive()
    assert "closed" in str(raised[0])


def test_no_address_means_the_environment_then_a_local_server_then_the_users_folder(
    qdrant: QdrantOverHTTP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imret.store.address, "LOCAL_SERVER", qdrant.url)
    with open_store(share=True) as store:  # as every server does
        assert (store.engine, store.address) == ("server", qdrant.url)
        assert qdrant.url in store.reason
    qdrant.version = {"title": "something else", "version": "1"}
    with open_store() as store:
        assert (store.engine, store.address) == ("embedded", str(store_dir()))
        assert store_dir() == Path(os.environ["IMRET_HOME"]) / "store"
        assert str(store_dir()) in store.reason
    monkeypatch.setenv("IMRET_DB", str(tmp_path / "mine"))
    with open_store() as store:
        assert (store.engine, store.address) == ("embedded", str(tmp_path / "mine"))
        assert "IMRET_DB" in store.reason
    with open_store(tmp_path / "other") as store:
        assert (store.address, store.reason) == (str(tmp_path / "other"), "")


def test_an_address_is_resolved_without_opening_what_it_names(
    qdrant: QdrantOverHTTP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_address(tmp_path / "given") == (str(tmp_path / "given"), "")
    monkeypatch.setattr(imret.store.address, "LOCAL_SERVER", qdrant.url)
    assert resolve_address() == (
        qdrant.url,
        f"store {qdrant.url} (a Qdrant answers there; --db names another)",
    )
    monkeypatch.setenv("IMRET_DB", "here")
    assert resolve_address() == ("here", "store here (from IMRET_DB)")
    assert not list(tmp_path.iterdir())


def test_the_version_of_a_name_costs_one_request_and_only_imrets_own_counts(qdrant: QdrantOverHTTP) -> None:
    with ServerStore(qdrant.url) as store:
        store.open_version("photos", MODEL)
        store.promote("photos", MODEL)
        qdrant.requests.clear()
        assert store.version("photos") == f"photos.{MODEL.version}"
        assert qdrant.requests == [("GET", "/aliases")]
        qdrant.engine.create_collection("foreign", vectors_config={})
        foreign = models.CreateAlias(collection_name="foreign", alias_name="mine")
        qdrant.engine.update_collection_aliases([models.CreateAliasOperation(create_alias=foreign)])
        assert store.version("mine") is None


def test_where_nothing_listens_the_default_loads_no_http() -> None:
    script = """
import socket, sys, imret.store
with socket.create_server(("127.0.0.1", 0)) as taken:
    free = taken.getsockname()[1]
imret.store.address.LOCAL_SERVER = f"http://127.0.0.1:{free}"
print(imret.store.resolve_address()[1].split("(")[1].split(";")[0], "urllib.request" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("embedded False\n", "")


def test_a_silent_port_delays_the_default_by_less_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            imret.store.address, "LOCAL_SERVER", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        started = time.monotonic()
        with open_store() as store:
            assert store.engine == "embedded"
        assert time.monotonic() - started < 1.0


def test_a_host_and_port_without_http_is_not_taken_for_a_folder() -> None:
    with pytest.raises(StoreError, match="Did you mean http://localhost:6333"):
        open_store("localhost:6333")
    assert not Path("localhost:6333").exists()


def test_a_rename_that_is_cut_short_anywhere_is_ended_by_another(qdrant: QdrantOverHTTP) -> None:
    other = Identity("other", "b2" * 32, 8)
    n_cuts = 0
    with ServerStore(qdrant.url) as store:
        for cut_at in range(100):
            old, new = f"old{cut_at}", f"new{cut_at}"
            store.open_version(old, MODEL).upsert(*points(10))
            store.promote(old, MODEL)
            store.open_version(old, other)  # being built
            left = [cut_at]

            def cut(method: str, path: str, left: list[int] = left) -> int | None:
                left[0] -= 1
                return 400 if left[0] < 0 else None

            qdrant.fail = cut
            try:
                store.rename(old, new)
                done = True
            except StoreError:
                done = False
            qdrant.fail = lambda method, path: None
            # A reader finds the whole of it under exactly one of the names, whatever was cut.
            (name,) = {old, new} & set(store.collections())
            assert store.open(name).count() == 10
            if not done:
                n_cuts += 1
                store.rename(old, new)
            assert (store.live(old), store.staged_versions(old)) == (None, [])
            assert (store.live(new), store.staged_versions(new)) == (MODEL, [other])
            notes = [
                (qdrant.engine.get_collection(one.name).config.metadata or {})["imret"]
                for one in qdrant.engine.get_collections().collections
                if one.name.startswith(f"{old}.")
            ]
            assert [(note["collection"], note["renamed_to"]) for note in notes] == [(new, "")] * 2
            store.drop(new)
            if done:
                break
    assert n_cuts > 5


def test_a_rename_that_was_cut_short_is_ended_by_whoever_fills_the_collection_next(
    qdrant: QdrantOverHTTP,
) -> None:
    other = Identity("other", "b2" * 32, 8)
    with ServerStore(qdrant.url) as store:
        store.open_version("old", MODEL).upsert(*points(10))
        store.promote("old", MODEL)
        moved = [False]

        def cut(method: str, path: str) -> int | None:
            if moved[0]:
                return 400
            moved[0] = path.endswith("/aliases") and method == "POST"
            return None

        qdrant.fail = cut
        with pytest.raises(StoreError, match="made to fail"):
            store.rename("old", "new")
        qdrant.fail = lambda method, path: None
        store.open_version("old", MODEL).upsert(*points(3))  # somebody takes the old name meanwhile
        store.promote("old", MODEL)
        store.open_version("new", other)
        store.promote("new", other)
        assert store.staged_versions("new") == []
        assert store.open("old").count() == 3
        assert len(qdrant.engine.get_collections().collections) == 2


def test_a_rename_whose_answer_was_lost_is_taken_for_done(qdrant: QdrantOverHTTP) -> None:
    def lose_the_answer(method: str, path: str) -> int | None:
        if method == "POST" and path.endswith("/aliases"):
            qdrant.fail = fail_times(1, 404, on="/aliases")  # the alias to delete is gone already
            actions = [
                {"delete_alias": {"alias_name": "old"}},
                {"create_alias": {"alias_name": "new", "collection_name": f"old.{MODEL.version}"}},
            ]
            qdrant.serve("POST", "/collections/aliases", {"actions": actions})
            return 503
        return None

    with ServerStore(qdrant.url) as store:
        store.open_version("old", MODEL).upsert(*points(3))
        store.promote("old", MODEL)
        qdrant.fail = lose_the_answer
        reader = store.open("old")
        store.rename("old", "new")
        assert store.collections() == ["new"]
        assert reader.count() == 3  # is not disturbed


def test_a_rename_never_takes_a_name_from_something_that_imret_did_not_make(qdrant: QdrantOverHTTP) -> None:
    config = models.VectorParams(size=8, distance=models.Distance.DOT)
    qdrant.engine.create_collection("theirs", config)
    with ServerStore(qdrant.url) as store:
        store.open_version("photos", MODEL)
        store.promote("photos", MODEL)
        with pytest.raises(DataError, match="cannot rename 'photos' to 'theirs'"):
            store.rename("photos", "theirs")
        with pytest.raises(StoreError, match="imret did not make"):
            store.rename("theirs", "mine")
        assert store.collections() == ["photos"]


# ---- Below a path ---------------------------------------------------------------------------------------


def test_a_server_below_the_path_of_a_proxy_is_asked_there() -> None:
    with QdrantOverHTTP(prefix="/qdrant") as qdrant:
        for address in (qdrant.url, f"{qdrant.url}/"):
            with open_store(address) as store:
                assert store.collections() == []
        with pytest.raises(StoreError):
            open_store(qdrant.url.removesuffix("/qdrant"))


def test_a_url_with_a_path_and_without_a_port_means_that_of_its_scheme() -> None:
    try:
        qdrant = QdrantOverHTTP(port=80, prefix="/qdrant")
    except OSError as error:
        pytest.skip(f"port 80 cannot be listened at here: {error}")
    with qdrant, open_store("http://127.0.0.1/qdrant") as store:
        assert store.collections() == []
        assert ("GET", "/collections") in qdrant.requests
