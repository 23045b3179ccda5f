"""Documents on a server: kills, lost answers, programs at the same time, what is left and what is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from qdrant_client import models

from imret.errors import ChangedMeanwhile, DataError, StoreUnavailable
from imret.store import Identity
from imret.store.documents import BrokenDocument
from imret.store.server.physical_names import is_version
from imret.store.server.store import ServerStore
from tests import ROOT
from tests.fakes.qdrant_engine import Refused
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)
OTHER_MODEL = Identity("ViT-tiny-tuned", "b2" * 32, 8)
LARGE = bytes(range(256)) * 4_800  # three pieces


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as running:
        yield running


@pytest.fixture
def store(qdrant: QdrantOverHTTP) -> Iterator[ServerStore]:
    """A store with an empty collection "photos"."""
    with ServerStore(qdrant.url) as opened:
        make(opened, MODEL)
        yield opened


def make(store: ServerStore, identity: Identity, name: str = "photos") -> None:
    store.open_version(name, identity).close()
    store.promote(name, identity)


def put(store: ServerStore, content: bytes | None, name: str = "photos") -> None:
    store.change_document(name, "concepts", lambda _: content)


def places(qdrant: QdrantOverHTTP) -> list[str]:
    return [one.name for one in qdrant.engine.get_collections().collections if not is_version(one.name)]


def points(qdrant: QdrantOverHTTP) -> tuple[int, int]:
    """Return how many claims and how many pieces there are."""
    (place,) = places(qdrant)
    records, _ = qdrant.engine.scroll(place, limit=1_000, with_payload=True)
    claims = sum("kind" in (record.payload or {}) for record in records)
    return claims, len(records) - claims


def program(text: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


WRITER = """
import sys
from imret.store.server.store import ServerStore
with ServerStore(sys.argv[1]) as store:
    sys.stdin.readline()
    store.change_document("photos", "concepts", lambda old: old[:1] + bytes(range(256)) * 4_800)
"""


@pytest.mark.parametrize("n", range(1, 7))
def test_a_kill_leaves_the_old_document_or_the_new_one_and_the_next_write_tidies(
    n: int, qdrant: QdrantOverHTTP, store: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"o" * 1_000_000)
    writer = program(WRITER, qdrant.url)
    writes = 0

    def kill(method: str, path: str) -> int | None:
        nonlocal writes
        # Before it is served: one of three pieces, the claim, the look at it, the look at what is left.
        if ".documents-" in path and (method == "PUT" or writes >= 4):
            writes += 1
            if writes == n:
                os.kill(writer.pid, signal.SIGKILL)
                return 0
        return None

    qdrant.fail = kill
    writer.communicate("\n")
    qdrant.fail = lambda method, path: None
    assert writer.returncode == -signal.SIGKILL
    is_new = n > 4
    assert store.document("photos", "concepts") == (b"o" + LARGE if is_new else b"o" * 1_000_000)
    # What nobody claimed may be of somebody who is at it.
    monkeypatch.setattr("imret.store.server.revisions.STORING_S", 1.0)
    time.sleep(2.1)  # its clock has seconds
    put(store, b"last")
    assert store.document("photos", "concepts") == b"last"
    assert points(qdrant) == (3 if is_new else 2, 1)


def test_pieces_that_another_program_is_storing_are_left_alone(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, b"old")
    entered = threading.Event()

    def other(method: str, path: str) -> int | None:
        if method == "PUT" and ".documents-" in path and entered.is_set():
            entered.clear()
            qdrant.fail = lambda method, path: None
            with ServerStore(qdrant.url) as second:  # and it tidies
                second.change_document("photos", "names", lambda _: b"names")
        return None

    entered.set()
    qdrant.fail = other
    put(store, LARGE)
    assert store.document("photos", "concepts") == LARGE
    assert store.document("photos", "names") == b"names"
    assert points(qdrant)[1] == 4


def test_a_claim_whose_answer_was_lost_counts_once(
    qdrant: QdrantOverHTTP, store: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, b"x")
    upsert, lost = qdrant.engine.upsert, []

    def served_and_lost(name: str, points: list[models.PointStruct], **options: object) -> object:
        done = upsert(name, points, **options)
        if options and not lost:
            lost.append(name)
            raise Refused(503, "the answer was lost")
        return done

    monkeypatch.setattr(qdrant.engine, "upsert", served_and_lost)
    store.change_document("photos", "concepts", lambda old: (old or b"") + b"x")
    assert lost
    assert store.document("photos", "concepts") == b"xx"


ADDER = """
import sys
from imret.store.server.store import ServerStore
with ServerStore(sys.argv[1]) as store:
    for i in range(15):
        store.change_document("photos", "names", lambda old: (old or b"") + f"{sys.argv[2]}.{i}\\n".encode())
"""


def test_two_programs_that_change_at_once_lose_neither_s_change(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    adders = [program(ADDER, qdrant.url, who) for who in "ab"]
    for adder in adders:
        adder.communicate()
    assert [adder.returncode for adder in adders] == [0, 0]
    lines = (store.document("photos", "names") or b"").decode().split()
    assert sorted(lines) == sorted(f"{who}.{i}" for who in "ab" for i in range(15))
    claims, pieces = points(qdrant)
    assert claims <= 12
    assert pieces == 1


def test_a_document_that_is_replaced_while_it_is_read_is_read_again(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, LARGE)

    def replace(method: str, path: str) -> int | None:
        if path.endswith("/points") and method == "POST":
            qdrant.fail = lambda method, path: None
            with ServerStore(qdrant.url) as second:
                put(second, b"new")
        return None

    qdrant.fail = replace
    assert store.document("photos", "concepts") == b"new"


def test_what_keeps_documents_is_no_collection_and_goes_with_the_last_of_them(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    assert places(qdrant) == [], "nothing is made for a collection without documents"
    put(store, b"1")
    assert len(places(qdrant)) == 1
    make(store, OTHER_MODEL)
    store.rename("photos", "holidays")
    make(store, OTHER_MODEL)  # and its version takes the next name
    put(store, b"2")
    assert len(places(qdrant)) == 2
    assert store.collections() == ["holidays", "photos"]
    assert store.incomplete() == []
    assert store.staged_versions("photos") == store.staged_versions("holidays") == []
    store.drop("photos")
    assert store.document("holidays", "concepts") == b"1"
    store.drop("holidays")
    assert qdrant.engine.get_collections().collections == []


def test_a_deletion_that_is_cut_short_leaves_what_can_be_deleted(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, b"1")
    deleted: list[str] = []

    def fail(method: str, path: str) -> int | None:
        if method == "DELETE":
            deleted.append(path)
        return 403 if len(deleted) == 2 else None

    qdrant.fail = fail
    with pytest.raises(Exception, match="API key"):
        store.drop("photos")
    qdrant.fail = lambda method, path: None
    assert store.document("photos", "concepts") is None
    store.drop("photos")
    assert qdrant.engine.get_collections().collections == []


def test_documents_of_a_version_of_an_older_imret_stay_too(
    qdrant: QdrantOverHTTP, store: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("imret.store.server.store.note_for", lambda name: {})
        make(store, MODEL, "old")
    assert (store.document("old", "concepts"), store.document_mark("old", "concepts")) == (None, "")
    put(store, b"1", "old")
    make(store, OTHER_MODEL, "old")
    assert store.document("old", "concepts") == b"1"
    make(store, MODEL, "old")
    store.change_document("old", "concepts", lambda old: (old or b"") + b"2")
    assert store.document("old", "concepts") == b"12"
    store.drop("old")
    assert places(qdrant) == []


@pytest.mark.parametrize("theirs", ["precious", "a.documents-xyz", 7, None])
def test_a_place_that_imret_would_not_name_is_never_touched(
    theirs: object, qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    qdrant.engine.create_collection("precious", models.VectorParams(size=1, distance=models.Distance.DOT))
    qdrant.engine.update_collection(str(store.version("photos")), metadata={"imret_documents": theirs})
    assert store.document("photos", "concepts") is None
    put(store, b"1")
    assert store.document("photos", "concepts") == b"1"
    store.drop("photos")
    assert places(qdrant) == ["precious"]


def test_a_mark_takes_two_requests_and_follows_a_collection_that_is_made_anew(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, b"1")
    mark = store.document_mark("photos", "concepts")
    qdrant.requests.clear()
    assert store.document_mark("photos", "concepts") == mark
    assert [path.rpartition("/")[2] for _, path in qdrant.requests] == ["aliases", "scroll"]
    with ServerStore(qdrant.url) as other:
        other.drop("photos")
        make(other, MODEL)
        assert store.document_mark("photos", "concepts") == ""
        put(other, b"2")
    assert store.document_mark("photos", "concepts") not in ("", mark)


def test_a_change_of_a_collection_that_is_deleted_meanwhile_leaves_nothing(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, b"1")

    def change(old: bytes | None) -> bytes:
        with ServerStore(qdrant.url) as other:
            other.drop("photos")
        return b"2"

    with pytest.raises((ChangedMeanwhile, DataError), match="photos"):
        store.change_document("photos", "concepts", change)
    assert qdrant.engine.get_collections().collections == []


def test_a_change_of_a_collection_that_is_renamed_meanwhile_removes_nothing(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, b"1")

    def change(old: bytes | None) -> bytes:
        with ServerStore(qdrant.url) as other:
            other.rename("photos", "holidays")
        return (old or b"") + b"2"

    with pytest.raises(ChangedMeanwhile, match="photos"):
        store.change_document("photos", "concepts", change)
    assert store.document("holidays", "concepts") in (b"1", b"12")


def test_what_others_put_among_the_documents_is_passed_over(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    put(store, b"1")
    (place,) = places(qdrant)
    claim = {"kind": "concepts", "n": 99, "revision": "r", "base": "", "size": 1, "sha256": ""}
    for payload in ({"kind": "concepts"}, {**claim, "pieces": 10**15}, {**claim, "n": "x", "pieces": 1}):
        point = models.PointStruct(id=time.time_ns() % 2**60, vector=[1.0], payload=payload)
        qdrant.engine.upsert(place, [point])
    assert store.document("photos", "concepts") == b"1"
    qdrant.engine.upsert(place, [models.PointStruct(id=7, vector=[1.0], payload={**claim, "pieces": 1})])
    with pytest.raises(BrokenDocument, match="piece 1 of 1 is missing"):
        store.document("photos", "concepts")
    store.remove_document("photos", "concepts")
    put(store, b"2")
    assert store.document("photos", "concepts") == b"2"


def test_a_node_that_is_away_is_waited_for_and_then_said(qdrant: QdrantOverHTTP, store: ServerStore) -> None:
    put(store, b"1")
    qdrant.engine.node_away = "http://node-2:6335/"
    with ServerStore(qdrant.url, patience_s=0.3) as impatient:
        for act in (
            lambda: impatient.document("photos", "concepts"),
            lambda: impatient.document_mark("photos", "concepts"),
            lambda: put(impatient, b"2"),
        ):
            with pytest.raises(StoreUnavailable, match="part of the collection is away"):
                act()
    back = threading.Timer(0.5, lambda: setattr(qdrant.engine, "node_away", ""))
    back.start()
    assert store.document("photos", "concepts") == b"1"
    back.join()


def test_what_cannot_be_tidied_now_costs_no_change(qdrant: QdrantOverHTTP, store: ServerStore) -> None:
    put(store, b"1")
    qdrant.fail = lambda method, path: 500 if path.endswith(("/facet", "/points/delete")) else None
    put(store, b"2")
    assert store.document("photos", "concepts") == b"2"
    assert points(qdrant) == (2, 2)
    qdrant.fail = lambda method, path: None
    put(store, b"3")
    assert points(qdrant) == (3, 1)


def test_a_server_that_is_away_for_a_moment_costs_no_change(
    qdrant: QdrantOverHTTP, store: ServerStore
) -> None:
    asked: list[str] = []

    def every_third(method: str, path: str) -> int | None:
        asked.append(path)
        return 0 if len(asked) % 3 == 0 else None

    qdrant.fail = every_third
    put(store, LARGE)
    store.change_document("photos", "concepts", lambda old: (old or b"") + b"!")
    assert store.document("photos", "concepts") == LARGE + b"!"
