"""The documents that are kept with a collection, whichever engine keeps it."""

from __future__ import annotations

import threading
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import models

from imret.errors import DataError, StoreError
from imret.store import Store, documents
from imret.store.check import check_documents
from imret.store.embedded.store import EdgeStore
from imret.store.parquet import export_collection
from imret.store.server.store import ServerStore
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.store.test_store import IN_MEMORY, MODEL, OTHER_MODEL, name, other_name, store  # noqa: F401  # fixtures

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]


@pytest.fixture
def photos(store: Store, name: str) -> str:  # noqa: F811
    """A collection of one picture."""
    with closing(store.open_version(name, MODEL)) as opened:
        opened.upsert([str(uuid.uuid4())], np.ones((1, MODEL.dim), np.float32), [{"path": "a.jpg"}])
        store.promote(name, MODEL)
    return name


def put(store: Store, name: str, kind: documents.DocumentKind, content: bytes | None) -> None:  # noqa: F811
    store.change_document(name, kind, lambda _: content)


def test_a_document_is_what_was_put_there_and_each_kind_is_its_own(store: Store, photos: str) -> None:  # noqa: F811
    assert (store.document(photos, "names"), store.document_mark(photos, "names")) == (None, "")
    large = np.random.default_rng(0).bytes(2_000_003)
    put(store, photos, "concepts", large)
    put(store, photos, "names", b"")
    assert store.document(photos, "concepts") == large
    assert store.document(photos, "names") == b""
    put(store, photos, "names", None)
    assert (store.document(photos, "names"), store.document_mark(photos, "names")) == (None, "")
    assert store.document(photos, "concepts") == large
    # A server of the tests may hold more.
    assert [one for one in store.collections() if photos in one] == [photos]
    assert [one for one in store.incomplete() if photos in one] == []


def test_the_mark_is_another_after_every_change_and_the_same_without_one(store: Store, photos: str) -> None:  # noqa: F811
    marks = [store.document_mark(photos, "names")]
    for content in (b"a", b"b", b"a", None, b"a"):
        put(store, photos, "names", content)
        marks.append(store.document_mark(photos, "names"))
        assert store.document_mark(photos, "names") == marks[-1]
    put(store, photos, "names", b"a")  # what is there already
    assert store.document_mark(photos, "names") == marks[-1]
    assert (marks[0], marks[4]) == ("", "")
    assert len(set(marks)) == 5
    put(store, photos, "concepts", b"c")
    assert store.document_mark(photos, "names") == marks[-1]


def test_a_change_is_made_of_what_is_there(store: Store, photos: str) -> None:  # noqa: F811
    for _ in range(12):
        store.change_document(photos, "names", lambda old: (old or b"") + b"x")
    assert store.document(photos, "names") == b"x" * 12


def test_changes_at_the_same_time_are_all_there(store: Store, photos: str) -> None:  # noqa: F811
    if store.address == IN_MEMORY:
        pytest.skip("the in-memory engine has no locks of its own")

    def add(who: int) -> None:
        for i in range(5):
            line = f"{who}.{i}\n".encode()
            store.change_document(photos, "names", lambda old, line=line: (old or b"") + line)

    threads = [threading.Thread(target=add, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (store.document(photos, "names") or b"").decode().splitlines()
    assert sorted(lines) == sorted(f"{who}.{i}" for who in range(4) for i in range(5))


def test_documents_stay_through_a_rebuild_and_a_rename_and_go_with_the_collection(
    store: Store,  # noqa: F811
    photos: str,
    other_name: str,  # noqa: F811
) -> None:
    put(store, photos, "names", b"1")
    for identity, staged in ((OTHER_MODEL, False), (OTHER_MODEL, True), (MODEL, False)):
        fill = store.create_staging if staged else store.open_version
        fill(photos, identity).close()
        assert store.document(photos, "names") == b"1"
        store.promote(photos, identity, staged=staged, expected=store.state(photos))
        assert store.document(photos, "names") == b"1"
    store.change_document(photos, "names", lambda old: (old or b"") + b"2")
    mark = store.document_mark(photos, "names")
    store.rename(photos, other_name)
    assert (store.document(photos, "names"), store.document_mark(photos, "names")) == (None, "")
    assert (store.document(other_name, "names"), store.document_mark(other_name, "names")) == (b"12", mark)
    # Another collection by the old name has its own.
    store.open_version(photos, MODEL).close()
    store.promote(photos, MODEL)
    assert store.document(photos, "names") is None
    put(store, photos, "names", b"other")
    store.drop(photos)
    assert store.document(other_name, "names") == b"12"
    store.open_version(photos, MODEL).close()
    store.promote(photos, MODEL)
    assert (store.document(photos, "names"), store.document_mark(photos, "names")) == (None, "")
    store.drop(photos)
    store.drop(other_name)
    assert store.document(other_name, "names") is None
    assert not {photos, other_name} & {*store.incomplete(), *store.collections()}


def test_a_document_needs_a_collection_and_one_of_the_kinds(store: Store, name: str) -> None:  # noqa: F811
    assert (store.document(name, "names"), store.document_mark(name, "names")) == (None, "")
    with pytest.raises(DataError, match=name):
        put(store, name, "names", b"1")
    with pytest.raises(DataError, match=name):
        store.remove_document(name, "names")
    store.open_version(name, MODEL).close()  # not live
    with pytest.raises(DataError, match="not complete"):
        put(store, name, "names", b"1")
    for act in (store.document, store.document_mark, store.remove_document):
        with pytest.raises(ValueError, match="names, concepts, missing, not 'other'"):
            act(name, "other")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="collection"):
        store.document("../x", "names")


def test_a_document_that_is_too_large_is_refused_and_the_old_one_stays(
    store: Store,  # noqa: F811
    photos: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(store, photos, "names", b"old")
    monkeypatch.setattr("imret.store.documents.MAX_BYTES", 10)
    with pytest.raises(DataError, match="at most"):
        put(store, photos, "names", b"x" * 11)
    assert store.document(photos, "names") == b"old"


def test_a_change_that_fails_changes_nothing(store: Store, photos: str) -> None:  # noqa: F811
    put(store, photos, "names", b"old")

    def fail(old: bytes | None) -> bytes:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        store.change_document(photos, "names", fail)
    assert store.document(photos, "names") == b"old"
    store.remove_document(photos, "names")
    assert store.document(photos, "names") is None
    store.remove_document(photos, "names")


def damage(store: Store, name: str, kind: documents.DocumentKind) -> None:  # noqa: F811
    """Do to what is kept what a broken disk, or another program, may do."""
    if isinstance(store, EdgeStore):
        file = store._folder / name / f"{kind}.document"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        assert isinstance(store, ServerStore)
        place = store._documents._place_of(store.version(name) or "")
        records, _ = store._client.scroll(place, limit=100, with_payload=True)
        head = store._documents._revisions.head(place, kind)
        pieces = [r for r in records if head and (r.payload or {}).get("of") == head.revision]
        store._client.delete(place, models.PointIdsList(points=[pieces[0].id]))


def test_a_damaged_document_is_told_with_what_ends_it_and_costs_no_picture(
    store: Store,  # noqa: F811
    photos: str,
    tmp_path: Path,
) -> None:
    put(store, photos, "concepts", b"c" * 1000)
    put(store, photos, "names", b"n" * 1000)
    assert check_documents(store, photos) == {}
    damage(store, photos, "concepts")
    advice = rf"(?s)concepts.*{photos}.*damaged.*imret collections check {photos} --remove --db"
    for act in (
        lambda: store.document(photos, "concepts"),
        lambda: put(store, photos, "concepts", b"new"),
        lambda: export_collection(store, photos, tmp_path / "photos.parquet"),
    ):
        with pytest.raises(documents.BrokenDocument, match=advice) as caught:
            act()
        assert "http" not in caught.value.public
        assert str(tmp_path) not in caught.value.public
    store.document_mark(photos, "concepts")
    assert not (tmp_path / "photos.parquet").exists()
    assert store.document(photos, "names") == b"n" * 1000
    with closing(store.open(photos)) as opened:
        assert opened.count() == 1
    assert list(check_documents(store, photos)) == ["concepts"]
    assert list(check_documents(store, photos, remove=True)) == ["concepts"]
    assert check_documents(store, photos) == {}
    assert store.document(photos, "concepts") is None
    put(store, photos, "concepts", b"new")
    assert store.document(photos, "concepts") == b"new"
    assert export_collection(store, photos, tmp_path / "photos.parquet") == 1


@pytest.mark.parametrize("n", [1, 12])
def test_a_change_is_made_again_where_others_came_first_however_many(
    store: Store,  # noqa: F811
    photos: str,
    n: int,
) -> None:
    calls: list[bytes | None] = []

    def change(old: bytes | None) -> bytes:
        if not calls:
            for i in range(n):
                put(store, photos, "names", b"x" * (i + 1))
        calls.append(old)
        return (old or b"") + b"mine"

    store.change_document(photos, "names", change)
    assert store.document(photos, "names") == b"x" * n + b"mine"
    assert calls == [None, b"x" * n]


def test_a_change_of_a_collection_that_is_rebuilt_meanwhile_is_not_lost(store: Store, photos: str) -> None:  # noqa: F811
    with closing(store.open_version(photos, OTHER_MODEL)):

        def change(old: bytes | None) -> bytes:
            if store.live(photos) == MODEL:
                store.promote(photos, OTHER_MODEL, expected=store.state(photos))
            return b"mine"

        store.change_document(photos, "names", change)
    assert (store.live(photos), store.document(photos, "names")) == (OTHER_MODEL, b"mine")
