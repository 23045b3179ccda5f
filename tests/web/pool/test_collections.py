"""Collections stay open and warm, follow their live version, and come back when the store does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imret import Encoder, Term, search
from imret.errors import DataError, ModelMismatch, StoreError, StoreLocked, StoreUnavailable
from imret.store import Store, open_store
from imret.web.pool import collections as module
from imret.web.pool import pooled_collection as served_module
from imret.web.pool.collections import CollectionPool
from imret.web.pool.pooled_collection import PooledCollection
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(12):
        draw_picture(folder / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pool(
    tmp_path: Path, photos: Path, random_model: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CollectionPool]:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    db = str(tmp_path / "db")
    with open_store(db) as store:
        ingest(store, [FolderSource(photos)], encoder=_encoder(random_model))
    pool = CollectionPool(
        lambda: open_store(db, create=False), device="cpu", precision="fp32", notify=said.append
    )
    yield pool
    pool.close()


def _encoder(model: Path) -> Encoder:
    return Encoder(str(model), device="cpu", precision="fp32")


def _rebuild(store: Store, photos: Path, model: Path) -> None:
    ingest(store, [FolderSource(photos)], encoder=_encoder(model), rebuild=True)


def _until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _owls(served: PooledCollection) -> list[str]:
    return [hit.id for hit in search(served.collection, "an owl", encoder=served.encoder)]


def test_a_collection_is_opened_once_and_answers_as_the_library_does(
    pool: CollectionPool, random_model: Path
) -> None:
    with pool.use("photos") as first, pool.use("photos") as second:
        assert first is second
    expected = [hit.id for hit in search(pool.store, "an owl", encoder=_encoder(random_model))]
    assert pool.ask("photos", _owls) == expected
    assert len(expected) == 10


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_words_and_pictures_find_in_every_precision_what_the_library_finds(
    precision: str, pool: CollectionPool, random_model: Path, tmp_path: Path
) -> None:
    other = CollectionPool(lambda: open_store(pool.store.address), device="cpu", precision=precision)
    alone = Encoder(str(random_model), device="cpu", precision=precision)
    picture = draw_picture(tmp_path / "new.png", seed=99).read_bytes()
    for query in ("an owl", Term(picture, "image"), [Term("an owl"), Term(picture, "image", -0.5)]):
        hits = other.ask("photos", lambda it, query=query: search(it.collection, query, encoder=it.encoder))  # type: ignore[misc]
        assert hits == search(other.store, query, encoder=alone)
    with other.use("photos") as served:
        assert served.encoder.precision == precision
    other.close()


def test_requests_move_on_to_a_new_version_and_the_old_one_is_closed_after_its_last(
    pool: CollectionPool, photos: Path, other_model: Path, said: list[str]
) -> None:
    with pool.use("photos") as old:
        before = _owls(old)
        _rebuild(pool.store, photos, other_model)
        _until(lambda: pool.peek("photos") is not old)
        assert _owls(old) == before  # a request that has begun ends with what it began with
        new = pool.peek("photos")
        assert new is not None
        assert new.identity.model == str(other_model)
        expected = [hit.id for hit in search(pool.store, "an owl", encoder=_encoder(other_model))]
        assert pool.ask("photos", _owls) == expected
        held = old.collection
    with pytest.raises(StoreError):
        held.count()
    assert said == [f"photos: a new version is live, made by {other_model}"]


def test_the_model_of_the_new_version_is_loaded_before_anybody_waits_for_it(
    pool: CollectionPool, photos: Path, other_model: Path
) -> None:
    with pool.use("photos") as old:
        old.load()
    _rebuild(pool.store, photos, other_model)
    _until(lambda: pool.peek("photos") is not old)
    new = pool.peek("photos")
    assert new is not None
    assert "text" in new.encoder.inner.encoder._towers


def test_no_request_fails_while_versions_change(
    pool: CollectionPool, photos: Path, random_model: Path, other_model: Path
) -> None:
    stop, failures, answered = threading.Event(), [], [0]

    def client() -> None:
        while not stop.is_set():
            try:
                assert len(pool.ask("photos", _owls)) == 10
                answered[0] += 1
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for model in (other_model, random_model, other_model):
        _rebuild(pool.store, photos, model)
        _until(lambda model=model: pool.peek("photos").identity.model == str(model))  # type: ignore[union-attr,misc]
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert answered[0] > 10


def test_a_question_that_met_the_moment_between_two_versions_is_asked_again(pool: CollectionPool) -> None:
    used: list[PooledCollection] = []

    def question(served: PooledCollection) -> str:
        used.append(served)
        if len(used) == 1:
            served.version = "older"  # as if another had become live meanwhile
            raise StoreError("there is no such version any more")
        return "answer"

    module.POLL_S = 60.0
    assert pool.ask("photos", question) == "answer"
    assert used[0] is not used[1]


def test_a_question_whose_version_a_server_removes_meanwhile_is_asked_again(
    photos: Path, random_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 60.0)  # nothing but the question itself notices
    models: list[str] = []
    with QdrantOverHTTP() as qdrant:
        with open_store(qdrant.url) as store:
            ingest(store, [FolderSource(photos)], encoder=_encoder(random_model))
        pool = CollectionPool(lambda: open_store(qdrant.url), device="cpu", precision="fp32")

        def question(served: PooledCollection) -> list[str]:
            models.append(served.identity.model)
            if len(models) == 1:
                with open_store(qdrant.url) as store:
                    _rebuild(store, photos, other_model)
            return _owls(served)

        ids = pool.ask("photos", question)
        assert models == [str(random_model), str(other_model)]
        assert ids == [hit.id for hit in search(pool.store, "an owl", encoder=_encoder(other_model))]
        pool.close()


def test_an_error_that_is_not_about_versions_is_told(pool: CollectionPool) -> None:
    def question(served: PooledCollection) -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="the disk is full"):
        pool.ask("photos", question)


def test_a_store_whose_process_was_killed_is_opened_again(pool: CollectionPool, said: list[str]) -> None:
    before = pool.ask("photos", _owls)
    worker: Any = pool.store
    os.kill(worker._worker._process.pid, signal.SIGKILL)
    assert pool.ask("photos", _owls) == before
    assert any("opened again" in line for line in said)


@pytest.mark.parametrize("times", [1, 2])
def test_all_collections_that_a_killed_process_served_are_opened_again(
    pool: CollectionPool, photos: Path, random_model: Path, times: int
) -> None:
    ingest(pool.store, [FolderSource(photos)], encoder=_encoder(random_model), collection="later")
    before = {name: pool.ask(name, _owls) for name in ("photos", "later")}
    worker: Any = pool.store
    for _ in range(times):
        os.kill(worker._worker._process.pid, signal.SIGKILL)
        for name in ("photos", "later", "later", "photos"):
            assert pool.ask(name, _owls) == before[name]
    with pool.use("photos") as one, pool.use("later") as other:
        assert one.encoder is other.encoder, "the model is in memory once, still"


def test_all_who_ask_at_the_moment_at_which_the_process_is_killed_are_answered(
    pool: CollectionPool, photos: Path, random_model: Path
) -> None:
    ingest(pool.store, [FolderSource(photos)], encoder=_encoder(random_model), collection="later")
    before = {name: pool.ask(name, _owls) for name in ("photos", "later")}
    stop, failures, answered = threading.Event(), list[Exception](), {"photos": 0, "later": 0}

    def client(name: str) -> None:
        while not stop.is_set():
            try:
                assert pool.ask(name, _owls) == before[name]
                answered[name] += 1
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=client, args=(name,)) for name in ("photos", "later") * 2]
    for thread in clients:
        thread.start()
    worker: Any = pool.store
    for _ in range(3):
        seen = dict(answered)
        os.kill(worker._worker._process.pid, signal.SIGKILL)
        _until(lambda seen=seen: failures or all(answered[name] > seen[name] + 20 for name in seen))  # type: ignore[misc]
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []


def test_a_store_whose_process_was_killed_while_nothing_was_open_is_opened_again(
    pool: CollectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pool.ask("photos", _owls)
    monkeypatch.setattr(module, "IDLE_S", 0.0)
    _until(lambda: pool.peek("photos") is None)
    monkeypatch.undo()
    worker: Any = pool.store
    os.kill(worker._worker._process.pid, signal.SIGKILL)
    assert pool.ask("photos", _owls) == before


def test_a_store_that_cannot_be_opened_again_at_once_is_tried_again(
    pool: CollectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pool.ask("photos", _owls)
    worker: Any = pool.store
    os.kill(worker._worker._process.pid, signal.SIGKILL)
    monkeypatch.setattr(module, "REOPEN_S", 0.0)
    reopen = pool._open_store

    def no_other() -> Any:  # the store starts another by itself, if it can
        raise StoreUnavailable("cannot start a process: out of memory")

    def away() -> Store:
        raise StoreError("cannot use the store: Input/output error")

    monkeypatch.setattr(worker, "_started", no_other)
    monkeypatch.setattr(pool, "_open_store", away)
    with pytest.raises(StoreError, match="Input/output error"):
        pool.ask("photos", _owls)
    monkeypatch.setattr(pool, "_open_store", reopen)
    assert pool.ask("photos", _owls) == before


def test_a_collection_that_was_dropped_is_gone_and_one_that_comes_is_found(
    pool: CollectionPool, photos: Path, random_model: Path
) -> None:
    with pytest.raises(DataError, match="no collection 'later'"):
        pool.ask("later", _owls)
    ingest(pool.store, [FolderSource(photos)], encoder=_encoder(random_model), collection="later")
    assert len(pool.ask("later", _owls)) == 10
    pool.store.drop("later")
    _until(lambda: pool.peek("later") is None)
    with pytest.raises(DataError, match="no collection 'later'"):
        pool.ask("later", _owls)
    assert len(pool.ask("photos", _owls)) == 10


def test_collections_of_one_model_share_it_and_one_that_nobody_asks_for_is_let_go(
    pool: CollectionPool, photos: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(pool.store, [FolderSource(photos)], encoder=_encoder(random_model), collection="later")
    with pool.use("photos") as one, pool.use("later") as other:
        assert one.encoder is other.encoder
        monkeypatch.setattr(module, "IDLE_S", 0.0)
        _until(lambda: pool.peek("photos") is None)
        assert len(_owls(one)) == 10
    _until(lambda: not pool._encoders)


def test_the_collection_to_keep_is_opened_as_it_comes_and_not_let_go_though_nobody_asks(
    tmp_path: Path, photos: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends requests to a server that is ready only would else never send one again."""
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "IDLE_S", 0.0)
    db = str(tmp_path / "db")
    pool = CollectionPool(lambda: open_store(db), device="cpu", precision="fp32", keep="photos")
    for name in ("later", "photos"):
        ingest(pool.store, [FolderSource(photos)], encoder=_encoder(random_model), collection=name)
    _until(lambda: pool.peek("photos") is not None)
    kept = pool.peek("photos")
    with pool.use("later"):
        pass
    _until(lambda: pool.peek("later") is None)  # the watcher has looked at both
    assert pool.peek("photos") is kept
    pool.close()


def test_a_model_is_shared_though_its_last_collection_was_let_go_while_another_was_opened(
    pool: CollectionPool, photos: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(pool.store, [FolderSource(photos)], encoder=_encoder(random_model), collection="later")
    with pool.use("later") as later:
        pass

    def meanwhile(collection: Any, encoder: Any) -> None:
        pool._retire("later", later)

    monkeypatch.setattr(module, "check_same_encoder", meanwhile)
    with pool.use("photos") as one, pool.use("later") as other:
        assert one.encoder is other.encoder


def test_a_model_that_did_not_make_the_collection_is_refused(
    tmp_path: Path, photos: Path, random_model: Path, other_model: Path
) -> None:
    db = str(tmp_path / "db")
    with open_store(db) as store:
        ingest(store, [FolderSource(photos)], encoder=_encoder(random_model))
    pool = CollectionPool(lambda: open_store(db), device="cpu", models={"photos": str(other_model)})
    with pytest.raises(ModelMismatch, match="was built with"):
        pool.ask("photos", _owls)
    pool.close()


def test_counts_of_a_whole_collection_are_kept_for_a_moment(
    pool: CollectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool.use("photos") as served:
        counted = served.collection.facet("category")
        assert counted == {"aves": 6, "fungi": 6}
        gone = [point.id for points in served.collection.scan() for point in points][:3]
        served.collection.delete(gone)
        assert served.collection.facet("category") == counted
        monkeypatch.setattr(served_module, "FACETS_S", 0.0)
        assert sum(served.collection.facet("category").values()) == 9


def test_a_server_that_is_away_is_said_and_the_collection_stays(
    pool: CollectionPool, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    with pool.use("photos") as served:
        pass

    def away(name: str) -> str | None:
        raise StoreUnavailable("nothing answers")

    monkeypatch.setattr(pool.store, "version", away)
    _until(lambda: said)
    assert said == ["photos: still the version before: nothing answers"]
    assert pool.peek("photos") is served


def test_those_who_wait_while_a_collection_cannot_be_opened_are_told_together(
    pool: CollectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, waiting = [0], threading.Event()

    def locked(name: str) -> Any:
        attempts[0] += 1
        waiting.wait(20)
        raise StoreLocked("in use by an ingest")

    monkeypatch.setattr(pool.store, "open", locked)
    errors: list[Exception] = []

    def client() -> None:
        try:
            pool.ask("photos", _owls)
        except StoreLocked as error:
            errors.append(error)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    _until(lambda: attempts[0])
    time.sleep(0.1)  # for the others to come to where they wait
    waiting.set()
    for thread in clients:
        thread.join()
    assert len(errors) == 8
    assert attempts[0] < 4
