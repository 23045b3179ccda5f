"""Sources are listed, renamed and forgotten: vectors stay, ids follow the place, a kill is finished."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imret
from imret.errors import DataError, StoreError
from imret.sources.stored import StoredSource, forget_source, list_sources, rename_source
from imret.store import Collection, Identity, Store, open_store
from imret.store.payload import file_of, path_of, point_id, source_of
from ingest.sources import FolderSource
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP
from tests.sources.filled import DIM, MODEL, contents, fill, vector_of, write

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LOCAL_MODE_WARNINGS]

PATHS = ["fungi/a.jpg", "fungi/b.jpg", "aves/deep/c.jpg", "d.jpg"]


@pytest.fixture(params=["embedded", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "embedded":
        with open_store(str(tmp_path / "db")) as opened:
            yield opened
    else:
        with QdrantOverHTTP() as server, open_store(server.url) as opened:
            yield opened


@pytest.fixture
def photos(tmp_path: Path, store: Store) -> Path:
    """A folder whose pictures are stored."""
    write(tmp_path / "photos", PATHS)
    fill(store, tmp_path / "photos", PATHS)
    return tmp_path / "photos"


def check(store: Store, source: Path | str, paths: list[str] = PATHS) -> None:
    """The collection holds these pictures of this source, each with its own vector, and nothing else."""
    found = contents(store)
    assert found.keys() == {(str(source), path) for path in paths}
    for (_, path), point in found.items():
        assert point.id == point_id(str(source), path)
        assert point.payload.get("category") == (path.partition("/")[0] if "/" in path else None)
        np.testing.assert_allclose(point.vector, vector_of(path), atol=1e-6)


def test_a_moved_folder_is_renamed_with_its_vectors(store: Store, photos: Path) -> None:
    before = {path: point.payload for (_, path), point in contents(store).items()}
    moved = photos.rename(photos.parent / "moved")
    assert rename_source(store, photos, moved) == 4
    check(store, moved)
    for (_, path), point in contents(store).items():
        assert point.payload == {**before[path], "source": str(moved)}
    assert rename_source(store, photos, moved) == 0, "a second time there is nothing to do"
    check(store, moved)


def test_sources_are_listed_with_what_is_there_now(store: Store, photos: Path) -> None:
    for name, paths in (("b gone", ["1.jpg"]), ("c", ["1.jpg", "2.jpg"]), ("d", ["1.jpg"])):
        fill(store, photos.parent / name, paths)
    (photos.parent / "c").mkdir()
    (photos.parent / "d").write_bytes(b"")
    assert list_sources(store) == [
        StoredSource(str(photos.parent / "b gone"), 1, "gone"),
        StoredSource(str(photos.parent / "c"), 2, "empty"),
        StoredSource(str(photos.parent / "d"), 1, "gone"),
        StoredSource(str(photos), 4, "present"),
    ]


def test_forgetting_a_source_leaves_the_others_and_the_files(store: Store, photos: Path) -> None:
    fill(store, photos.parent / "photos2", ["1.jpg"])
    assert forget_source(store, photos.parent / "photos2") == 1
    check(store, photos)
    assert forget_source(store, photos) == 4
    assert contents(store) == {}
    assert (photos / "d.jpg").exists()


def test_undecodable_names_survive_a_rename(store: Store, tmp_path: Path) -> None:
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    paths = [os.fsdecode(b"caf\xe9/\xff.jpg"), "plain/a.jpg"]
    write(root, paths)
    fill(store, root, paths)
    assert [source.state for source in list_sources(store)] == ["present"], "by its exact name"
    for new in (str(tmp_path / "plain"), os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")):
        os.rename(root, new)
        assert rename_source(store, root, new) == 2
        found = list(contents(store).values())
        assert {file_of(point.payload) for point in found} == {os.path.join(new, path) for path in paths}
        assert all(os.path.exists(os.fsencode(file_of(point.payload))) for point in found)
        for point in found:
            path = path_of(point.payload)
            assert point.id == point_id(new, path)
            assert source_of(point.payload) == new
            np.testing.assert_allclose(point.vector, vector_of(path), atol=1e-6)
        root = new


@pytest.mark.parametrize(
    "named", ["photos", "photos/", "./photos", "other/../photos", "link", "link/", "{root}//"]
)
def test_a_source_is_found_however_its_path_is_typed(
    store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(photos.parent)
    (photos.parent / "link").symlink_to(photos)
    moved = photos.rename(photos.parent / "moved")
    assert rename_source(store, named.format(root=photos), "moved/") == 4
    check(store, moved)


def test_a_new_place_that_is_a_link_is_stored_as_an_ingest_would(store: Store, photos: Path) -> None:
    moved = photos.rename(photos.parent / "moved")
    (photos.parent / "link").symlink_to(moved)
    rename_source(store, photos, photos.parent / "link")
    check(store, moved)


def test_a_source_that_is_not_one_is_refused_with_those_that_are_like_it(store: Store, photos: Path) -> None:
    fill(store, photos.parent / "elsewhere" / "phots", ["1.jpg"])
    for call in (
        lambda: forget_source(store, photos.parent / "phots"),
        lambda: rename_source(store, photos.parent / "phots", photos.parent / "new"),
        lambda: rename_source(store, photos.parent / "phots", photos.parent / "elsewhere" / "phots"),
    ):
        with pytest.raises(
            DataError, match=r"holds no pictures of a folder \S+phots\. Did you mean '\S+photos'"
        ):
            call()
    with pytest.raises(DataError, match=r"of a folder \S+zzz\. `imret sources --db \S+` lists the folders"):
        forget_source(store, photos.parent / "zzz")
    assert len(contents(store)) == 5


def test_a_folder_that_is_not_here_is_refused_unless_said(store: Store, photos: Path) -> None:
    away = Path("/team/machine/photos")
    with pytest.raises(DataError, match=r"does not exist here.*imret sources rename \S+ \S+ --no-check"):
        rename_source(store, photos, away)
    check(store, photos)
    rename_source(store, photos, away, check=False)
    check(store, away)


def test_a_folder_with_other_pictures_is_refused_unless_said(store: Store, photos: Path) -> None:
    write(photos.parent / "other", ["fungi/x.jpg"])
    (photos.parent / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"0 of 4 pictures of '.*photos' that were looked for are in '.*other'"
    ):
        rename_source(store, photos, photos.parent / "other")
    with pytest.raises(DataError, match="empty' is empty, so it cannot be told"):
        rename_source(store, photos, photos.parent / "empty")
    check(store, photos)
    rename_source(store, photos, photos.parent / "other", check=False)
    check(store, photos.parent / "other")


def test_a_folder_that_holds_the_moved_one_is_refused_with_the_place(store: Store, photos: Path) -> None:
    (photos.parent / "archive").mkdir()
    moved = photos.rename(photos.parent / "archive" / "holiday")
    with pytest.raises(
        DataError, match=r"are in '.*archive/holiday'.*imret sources rename .*archive/holiday"
    ):
        rename_source(store, photos, photos.parent / "archive")
    rename_source(store, photos, moved)
    check(store, moved)


def test_the_place_that_it_has_and_places_that_overlap_another_source_are_refused(
    store: Store, photos: Path
) -> None:
    root = photos.parent
    fill(store, root / "archive" / "2023", ["1.jpg"])
    for new, said in (
        (photos, "is the place of that source already"),
        (root / "archive" / "2023" / "x", "lies within '.*archive/2023'"),
        (root / "archive", "holds '.*archive/2023'"),
        (Path("/"), "'/' holds '.*archive/2023'"),
    ):
        with pytest.raises(DataError, match=said) as refused:
            rename_source(store, photos, new, check=False)
        if said[0] != "i":
            outer = min(str(new), f"{root}/archive/2023", key=len)
            assert f"imret ingest {outer} --db {store.address}, then" in str(refused.value)
            assert str(refused.value).endswith(f"imret sources forget {photos} --db {store.address}")
    assert len(contents(store)) == 5
    at = photos
    for new in (root / "archive" / "20234", root / "archive" / "2023" / ".hidden", photos / "in", photos):
        rename_source(store, at, new, check=False)
        at = new
    forget_source(store, root / "archive" / "2023")
    check(store, photos)


def test_a_source_with_pictures_of_its_own_is_refused(store: Store, photos: Path) -> None:
    other = photos.parent / "other"
    fill(store, other, ["fungi/a.jpg", "x.jpg"])
    with pytest.raises(DataError, match="source of its own, with 2 pictures, of which 1 are at the place"):
        rename_source(store, photos, other, check=False)
    assert len(contents(store)) == 6


def test_names_alone_do_not_make_two_sources_one(store: Store, tmp_path: Path) -> None:
    fill(store, tmp_path / "camera1", ["a/1.jpg"])
    with closing(store.open("photos")) as opened:
        (point,) = next(opened.scan(vectors=True))
        payload = {**point.payload, "source": str(tmp_path / "camera2"), "sha256": "0" * 64}
        opened.upsert([point_id(str(tmp_path / "camera2"), "a/1.jpg")], point.vector[None], [payload])
    with pytest.raises(DataError, match="of which 0 are at the place"):
        rename_source(store, tmp_path / "camera1", tmp_path / "camera2", check=False)


def test_a_copy_that_was_ingested_as_well_becomes_one_source(store: Store, photos: Path) -> None:
    copy = photos.parent / "copy"
    shutil.copytree(photos, copy)
    fill(store, copy, [*PATHS, "more.jpg"])
    rename_source(store, photos, copy)
    check(store, copy, [*PATHS, "more.jpg"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("operation", ["upsert", "delete"])
@pytest.mark.parametrize("after", range(4))
def test_a_rename_that_is_stopped_anywhere_is_finished_by_the_next(
    store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch, operation: str, after: int
) -> None:
    monkeypatch.setattr("imret.sources.stored._BATCH", 1)
    real, n_calls = getattr(Collection, operation), 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal n_calls
        if n_calls == after:
            raise Killed
        n_calls += 1
        return real(*args, **options)

    away = photos.parent / "not here"
    with monkeypatch.context() as patch:
        patch.setattr(Collection, operation, dying)
        with pytest.raises(Killed):
            rename_source(store, photos, away, check=False)
    assert len(contents(store)) >= 4
    rename_source(store, photos, away, check=False)
    check(store, away)


def test_what_another_program_adds_meanwhile_gets_its_new_place_too(
    store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Collection.delete

    def adding(opened: Collection, ids: Any) -> None:
        fill(store, photos, ["late.jpg"])
        monkeypatch.setattr(Collection, "delete", real)
        real(opened, ids)

    monkeypatch.setattr(Collection, "delete", adding)
    rename_source(store, photos, "/elsewhere", check=False)
    check(store, "/elsewhere", [*PATHS, "late.jpg"])


def test_a_version_that_a_rebuild_has_begun_is_renamed_and_forgets_too(store: Store, photos: Path) -> None:
    other = Identity("models/other", "b2" * 32, DIM)
    with closing(store.open_version("photos", other)) as staged:
        with closing(store.open("photos")) as live:
            points = next(live.scan(vectors=True))[:2]
        staged.upsert(
            [p.id for p in points], np.stack([p.vector for p in points]), [p.payload for p in points]
        )
    rename_source(store, photos, "/elsewhere", check=False)
    with closing(store.open_version("photos", other)) as staged:
        assert staged.facet("source") == {"/elsewhere": 2}
    forget_source(store, "/elsewhere")
    with closing(store.open_version("photos", other)) as staged:
        assert staged.count() == 0
    live_now = store.live("photos")
    assert live_now is not None
    assert live_now.fingerprint == MODEL.fingerprint


def test_a_store_that_fails_in_the_middle_is_an_error_and_loses_nothing(
    store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "delete", lambda *_: (_ for _ in ()).throw(StoreError("the disk is full")))
        with pytest.raises(StoreError, match="the disk is full"):
            imret.rename_source(store, photos, "/elsewhere", check=False)
    assert {path for _, path in contents(store)} == set(PATHS)
    imret.rename_source(store, photos, "/elsewhere", check=False)
    check(store, "/elsewhere")


def test_a_folder_is_renamed_to_what_is_on_disk_in_either_normal_form_of_unicode(
    store: Store, photos: Path
) -> None:
    moved = photos.rename(photos.with_name(unicodedata.normalize("NFD", "Vögel")))
    assert rename_source(store, photos, photos.with_name("Vögel")) == 4
    check(store, moved)


def test_an_empty_path_is_not_the_folder_that_one_is_in(
    store: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    with pytest.raises(DataError, match=r"the new place of .* is empty\. Say where the folder is now"):
        rename_source(store, photos, "")
    with pytest.raises(DataError, match="holds no pictures of a folder ''"):
        forget_source(store, "")
    check(store, photos)
    with pytest.raises(DataError, match="no such folder: ''"):
        FolderSource("")
