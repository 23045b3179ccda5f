"""Backup, restore and pull: what comes along, what is refused, and what a kill or a full disk leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.store import Filter, Identity, Match, Point, Store, backup_file, exported_file
from imret.store.backup import backup_collection, pull_collection, restore_collection
from imret.store.embedded.store import EdgeStore
from imret.store.placement import Creation
from imret.store.server.store import ServerStore
from tests import ROOT
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

DIM = 8
MODEL = Identity("ViT-tiny", "a1" * 32, DIM)
IDS = [str(uuid.UUID(int=i + 1)) for i in range(120)]
EXCLUDED = {"/photos": ("raw/", "*.tmp.jpg")}
NAMES = b'{"aves": ["bird"]}'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that can be: making a collection waits for the disk a dozen times."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as name:
        yield Path(name)


@pytest.fixture
def embedded(folder: Path) -> Iterator[EdgeStore]:
    with EdgeStore(folder / "db", lock_timeout_s=0.0, index_from_kb=1) as store:
        yield store


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as running:
        yield running


@pytest.fixture
def server(qdrant: QdrantOverHTTP) -> Iterator[Store]:
    with ServerStore(qdrant.url, in_flight=1) as store:
        yield store


def payload_of(i: int) -> dict[str, Any]:
    return {"category": f"c{i % 3}", "source": "/photos", "path": f"{i}.jpg", "width": i}


def fill(store: Store, name: str = "photos", n: int = 120) -> None:
    vectors = np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32)
    with closing(store.open_version(name, MODEL)) as opened:
        opened.upsert(IDS[:n], vectors, [payload_of(i) for i in range(n)])
        opened.optimize()
    store.promote(name, MODEL)
    store.exclude(name, EXCLUDED)
    store.change_document(name, "names", lambda old: NAMES)


def everything(store: Store, name: str = "photos") -> list[Point]:
    with closing(store.open(name)) as opened:
        return [point for batch in opened.scan(vectors=True) for point in batch]


def assert_same(one: list[Point], other: list[Point], *, exact: bool = True) -> None:
    assert [(p.id, p.payload) for p in one] == [(p.id, p.payload) for p in other]
    for mine, theirs in zip(one, other, strict=True):
        if exact:
            np.testing.assert_array_equal(mine.vector, theirs.vector)
        else:  # an engine normalises what it stores
            np.testing.assert_allclose(mine.vector, theirs.vector, atol=1e-6)


def kept(store: Store, name: str) -> tuple[Any, ...]:
    return (
        store.live(name),
        store.excluded(name),
        store.document(name, "names"),
        store.document(name, "concepts"),
    )


def left_in(folder: Path) -> set[str]:
    """Return what lies in a store beside its collections and its marker."""
    return {entry.name for entry in folder.iterdir() if entry.name.startswith(".")}


# ---- Backup and restore ------------------------------------------------------------------------


def test_a_backup_of_an_embedded_collection_is_restored_as_it_was(embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    before = everything(embedded)
    with closing(embedded.open("photos")) as opened:
        indexed = opened.stats().indexed
    note = backup_collection(embedded, "photos", folder / "photos.backup")
    assert (note.collection, note.points, note.shards, note.form) == ("photos", 120, 1, "files")
    embedded.drop("photos")
    assert restore_collection(folder / "photos.backup", embedded, "photos") == 120
    assert_same(everything(embedded), before)
    assert kept(embedded, "photos") == (MODEL, EXCLUDED, NAMES, None)
    with closing(embedded.open("photos")) as opened:
        assert opened.stats().indexed == indexed == 120  # nothing is indexed again
    assert left_in(folder / "db") == set()


def test_a_restored_collection_is_filled_and_searched_like_any(embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    restore_collection(folder / "photos.backup", embedded, "copy")
    with closing(embedded.open_version("copy", MODEL)) as opened:
        opened.upsert(IDS[:1], np.eye(1, DIM, dtype=np.float32), [{"category": "new"}])
        opened.delete(IDS[1:2])
        opened.optimize()
        assert opened.count() == 119
        (hit,) = opened.search(
            np.eye(1, DIM, dtype=np.float32)[0], limit=1, filter=Filter(must=(Match("category", ("new",)),))
        )
        assert hit.id == IDS[0]
    assert len(everything(embedded, "photos")) == 120


@pytest.mark.parametrize("is_noted", [True, False])
def test_vectors_stay_compressed_as_they_were(is_noted: bool, folder: Path) -> None:
    # Else the next index of it would compress them all anew. Of a server's shard the segments tell it alone.
    creation = Creation(quantize="bits4")
    with EdgeStore(folder / "db", index_from_kb=1, creation=creation) as store:
        fill(store)
        with store.incoming() as place:
            store.link_files("photos", place / "0")
            if not is_noted:
                (place / "0" / "edge_config.json").unlink()
            with EdgeStore(folder / "other", index_from_kb=1) as other, other.incoming() as there:
                shutil.move(place / "0", there / "0")
                with closing(other.adopt("photos", MODEL, [there / "0"])) as opened:
                    assert opened.creation().quantize == "bits4"
                    segments = {path.name for path in (folder / "other").glob("photos/*/shard/segments/*")}
                    opened.optimize()
                    assert segments == {
                        path.name for path in (folder / "other").glob("photos/*/shard/segments/*")
                    }


def test_a_backup_is_made_of_a_collection_that_is_open_and_being_searched(folder: Path) -> None:
    with EdgeStore(folder / "db", share=True) as serving:
        fill(serving)
        with (
            closing(serving.open("photos")) as opened,
            EdgeStore(folder / "db", share="if possible") as other,
        ):
            assert backup_collection(other, "photos", folder / "photos.backup").points == 120
            assert opened.count() == 120


def test_other_tars_read_a_backup_with_its_holes(embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    assert (folder / "photos.backup").stat().st_size < 5_000_000  # of files of 200 MB, mostly holes
    (folder / "there").mkdir()
    done = subprocess.run(
        ["tar", "--extract", "--file", "photos.backup", "--directory", "there"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    ours = folder / "ours"
    with backup_file.Reader(folder / "photos.backup") as reader:
        (part,) = reader.extract(ours, lambda n: None)
    files = [file.relative_to(part) for file in part.rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        assert (folder / "there" / "shards" / "0" / file).read_bytes() == (part / file).read_bytes()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_backup_of_a_server_is_restored_to_an_embedded_store_and_to_a_server(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore, folder: Path, shards: int
) -> None:
    qdrant.shards.count = shards
    fill(server)
    before = everything(server)
    note = backup_collection(server, "photos", folder / "photos.backup")
    assert (note.points, note.shards, note.form) == (120, shards, "snapshots")
    assert qdrant.shards.left == {}  # nothing stays on the server
    assert restore_collection(folder / "photos.backup", embedded, "photos") == 120
    assert_same(everything(embedded), before, exact=False)
    assert kept(embedded, "photos") == (MODEL, EXCLUDED, NAMES, None)
    stages: list[str] = []
    assert restore_collection(folder / "photos.backup", server, "again", on_stage=stages.append) == 120
    assert stages == ["verify", "copy", "store"]
    assert_same(everything(server, "again"), before, exact=False)
    assert kept(server, "again") == (MODEL, EXCLUDED, NAMES, None)


def test_an_embedded_backup_is_restored_to_a_server(server: Store, embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    assert restore_collection(folder / "photos.backup", server, "photos") == 120
    assert_same(everything(server), everything(embedded), exact=False)
    assert kept(server, "photos") == (MODEL, EXCLUDED, NAMES, None)


def test_nothing_is_overwritten(embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    (folder / "taken").write_text("mine")
    with pytest.raises(DataError, match=r"exists already\. Name another file; a backup replaces none"):
        backup_collection(embedded, "photos", folder / "taken")
    assert (folder / "taken").read_text() == "mine"
    backup_collection(embedded, "photos", folder / "photos.backup")
    with pytest.raises(DataError, match=r"'photos' exists already, in .*--replace"):
        restore_collection(folder / "photos.backup", embedded, "photos")


def test_a_collection_is_replaced_with_all_that_is_kept_with_it(embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    before = everything(embedded)
    with closing(embedded.open_version("photos", MODEL)) as opened:
        opened.delete(IDS[:50])
    embedded.exclude("photos", {"/photos": ["all"], "/other": ["x"]})
    embedded.change_document("photos", "concepts", lambda old: b"later")
    restore_collection(folder / "photos.backup", embedded, "photos", replace=True)
    assert_same(everything(embedded), before)
    assert kept(embedded, "photos") == (MODEL, EXCLUDED, NAMES, None)


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "cut in the end": lambda data: data[:-15_000],
    "a changed byte": lambda data: data[:200_000] + bytes([data[200_000] ^ 1]) + data[200_001:],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_refused_and_changes_nothing(how: str, embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    data = (folder / "photos.backup").read_bytes()
    (folder / "damaged").write_bytes(DAMAGE[how](data))
    with pytest.raises(DataError, match=r"is no whole backup|is no backup of imret's"):
        restore_collection(folder / "damaged", embedded, "copy")
    assert embedded.collections() == ["photos"]
    assert left_in(folder / "db") == set()


@pytest.mark.parametrize(
    "name", ["../out", "shards/../../out", "/out", "shards/0/../x", "shards/0/.wal", "shards/x"]
)
def test_a_tar_that_would_write_elsewhere_is_refused(name: str, folder: Path, embedded: EdgeStore) -> None:
    with open(folder / "forged", "wb") as out:
        writer = backup_file.Writer(out, lambda n: None)
        (folder / "x").write_bytes(b"x" * 100)
        writer._add(f"shards/{name}", folder / "x")
        writer.end(backup_file.Note("photos", MODEL, 1, 1, "files", {}, "qdrant-edge-py"), {"names": None})
    with pytest.raises(DataError, match="is not as imret writes a backup: it holds"):
        restore_collection(folder / "forged", embedded, "photos")
    assert sorted(path.name for path in folder.iterdir()) == ["db", "forged", "x"]


def test_files_that_are_no_backup_are_told_so(folder: Path, embedded: EdgeStore) -> None:
    (folder / "text").write_text("hello")
    with tarfile.open(folder / "tar", "w") as tar:
        tar.add(folder / "text")
    os.mkfifo(folder / "pipe")
    for name, said in (
        ("text", "is no whole backup"),
        ("tar", "is no backup of imret's. Make one: imret collections backup"),
        ("pipe", "it is no file"),
        ("missing", "No such file"),
    ):
        with pytest.raises(DataError, match=said):
            restore_collection(folder / name, embedded, "photos")


def test_a_restore_that_is_killed_leaves_nothing(embedded: EdgeStore, folder: Path) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    code = f"""
import os
from imret.store.backup import restore_collection
from imret.store.embedded.store import EdgeStore
EdgeStore.adopt = lambda *_: os.kill(os.getpid(), 9)
with EdgeStore({str(folder / "db")!r}) as store:
    restore_collection({str(folder / "photos.backup")!r}, store, "copy")
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    (left,) = left_in(folder / "db")
    assert left.startswith(".incoming-")
    assert embedded.collections() == ["photos"]
    assert restore_collection(folder / "photos.backup", embedded, "copy") == 120
    assert left_in(folder / "db") == set()


def test_a_disk_without_room_is_told_before_anything_is_written(
    embedded: EdgeStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(embedded)
    backup_collection(embedded, "photos", folder / "photos.backup")
    full = shutil.disk_usage(folder)._replace(free=1_000_000)
    monkeypatch.setattr(exported_file.shutil, "disk_usage", lambda place: full)
    with pytest.raises(DataError, match=r"No space left: about .* GB are needed.*Free some space"):
        restore_collection(folder / "photos.backup", embedded, "copy")
    with pytest.raises(DataError, match="No space left"):
        backup_collection(embedded, "photos", folder / "other.backup")
    assert sorted(path.name for path in folder.iterdir()) == ["db", "photos.backup"]


# ---- Pull --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_a_collection_of_a_server_is_pulled_with_its_index_and_no_scroll(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore, folder: Path, shards: int
) -> None:
    qdrant.shards.count = shards
    fill(server)
    before = everything(server)
    qdrant.requests.clear()
    pulled = pull_collection(server, "photos", embedded)
    assert (pulled.points, pulled.shards, pulled.is_behind) == (120, shards, False)
    asked = {path.rpartition("/")[2] for _, path in qdrant.requests}
    assert "scroll" not in asked - {"scroll"} or all(
        "documents" in p for _, p in qdrant.requests if p.endswith("scroll")
    )
    assert qdrant.shards.left == {}
    assert_same(everything(embedded), before, exact=False)
    assert kept(embedded, "photos") == (MODEL, EXCLUDED, NAMES, None)
    with closing(embedded.open("photos")) as opened:
        assert opened.stats().indexed == 120
        assert opened.facet("category") == {"c0": 40, "c1": 40, "c2": 40}
    assert left_in(folder / "db") == set()


def test_points_of_every_shard_can_be_changed_afterwards(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore
) -> None:
    # The engine passes over changes whose number is not above that of a point's last one, and each shard
    # counts for itself: those of shard 2 are the highest here.
    qdrant.shards.count = 3
    fill(server)
    pull_collection(server, "photos", embedded)
    vector = np.eye(1, DIM, dtype=np.float32)
    with closing(embedded.open_version("photos", MODEL)) as opened:
        for id_ in IDS[:3]:  # one of each shard
            opened.upsert([id_], vector, [{"category": "new"}])
        for id_ in IDS[3:6]:
            opened.delete([id_])
        assert {id_: point.payload for id_, point in opened.get(IDS[:6]).items()} == {
            id_: {"category": "new"} for id_ in IDS[:3]
        }
        opened.optimize()
        assert opened.count() == 117
    assert [p.payload["category"] for p in everything(embedded)[:3]] == ["new"] * 3


def test_shards_on_other_nodes_are_fetched_from_those_that_are_named(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore
) -> None:
    qdrant.shards.count = 3
    fill(server)
    with QdrantOverHTTP() as other:
        other.engine, mine = qdrant.engine, other.engine
        other.shards.count = 3
        qdrant.shards.here, other.shards.here = {0}, {1, 2}
        with pytest.raises(DataError) as caught:
            pull_collection(server, "photos", embedded)
        assert (
            f"of the 3 shards of collection 'photos', these are whole on none of {qdrant.url}: 1, 2."
            in str(caught.value)
        )
        assert "--peer http://HOST:6333" in str(caught.value)
        assert "imret collections export photos FILE" in str(caught.value)
        assert embedded.collections() == []
        assert pull_collection(server, "photos", embedded, peers=[other.url]).points == 120
        other.engine = mine
        with pytest.raises(DataError, match=r"does not know the collection 'photos'.*the same cluster"):
            pull_collection(server, "photos", embedded, peers=[other.url], replace=True)
    assert_same(everything(embedded), everything(server), exact=False)


def test_a_shard_that_is_not_whole_on_a_node_is_not_taken_from_it(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore
) -> None:
    fill(server)
    qdrant.shards.state = "Partial"
    with pytest.raises(DataError, match="these are whole on none of"):
        pull_collection(server, "photos", embedded)


def test_a_snapshot_that_changed_on_its_way_is_refused(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore, folder: Path
) -> None:
    fill(server)

    def change(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))

    qdrant.shards.damage = change
    with pytest.raises(StoreError, match="is not what was made there"):
        pull_collection(server, "photos", embedded)
    assert qdrant.shards.left == {}
    assert embedded.collections() == []
    assert left_in(folder / "db") == set()


def test_a_connection_that_breaks_is_tried_again(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore
) -> None:
    fill(server)
    broken: list[str] = []

    def fail(method: str, path: str) -> int | None:
        if method == "GET" and path.endswith(".snapshot") and len(broken) < 2:
            broken.append(path)
            return 0 if len(broken) == 1 else 503
        return None

    qdrant.fail = fail
    come: list[int] = []
    assert pull_collection(server, "photos", embedded, on_bytes=come.append).points == 120
    assert len(broken) == 2


def test_a_version_that_is_replaced_meanwhile_is_not_taken_for_the_live_one(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore
) -> None:
    fill(server)

    def switch(file: Path) -> None:
        with ServerStore(qdrant.url) as other, closing(other.create_staging("photos", MODEL)) as opened:
            opened.upsert(IDS[:1], np.ones((1, DIM), np.float32), [payload_of(0)])
            other.promote("photos", MODEL, staged=True)

    make = qdrant.shards.make

    def made(name: str, shard: int) -> dict[str, Any]:
        about = make(name, shard)
        qdrant.shards.make = make  # type: ignore[method-assign]
        return about

    qdrant.shards.make = made  # type: ignore[method-assign]
    switched: list[bool] = []

    def fail(method: str, path: str) -> None:
        if method == "GET" and path.endswith(".snapshot") and not switched:
            switched.append(True)
            switch(Path())

    qdrant.fail = fail
    with pytest.raises((ChangedMeanwhile, StoreError)):
        pull_collection(server, "photos", embedded)
    assert switched
    assert embedded.collections() == []
    assert pull_collection(server, "photos", embedded).points == 1


def test_what_is_written_meanwhile_is_said_to_be_missing_perhaps(
    server: Store, qdrant: QdrantOverHTTP, embedded: EdgeStore
) -> None:
    fill(server, n=100)
    written: list[bool] = []

    def fail(method: str, path: str) -> None:
        if method == "GET" and path.endswith(".snapshot") and not written:
            written.append(True)
            with ServerStore(qdrant.url) as other, closing(other.open_version("photos", MODEL)) as opened:
                opened.upsert(IDS[100:], np.ones((20, DIM), np.float32), [payload_of(0)] * 20)

    qdrant.fail = fail
    pulled = pull_collection(server, "photos", embedded)
    assert (pulled.points, pulled.is_behind) == (100, True)


def test_a_collection_that_is_there_already_is_replaced_only_when_asked(
    server: Store, embedded: EdgeStore
) -> None:
    fill(server)
    fill(embedded, n=10)
    with pytest.raises(DataError, match="'photos' exists already"):
        pull_collection(server, "photos", embedded)
    assert pull_collection(server, "photos", embedded, replace=True).points == 120
    with pytest.raises(DataError, match="no collection 'nothing'"):
        pull_collection(server, "nothing", embedded)
    with pytest.raises(DataError, match="from a server"):
        pull_collection(embedded, "photos", embedded)


@pytest.mark.server
def test_a_real_server_is_pulled_and_backed_up_and_restored(embedded: EdgeStore, folder: Path) -> None:
    # One node; of several see tests/store/server/test_cluster.py.
    url = os.environ.get("IMRET_TEST_QDRANT_URL")
    if not url:
        pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
    name = f"imret-test-{uuid.uuid4().hex[:12]}"
    peers = [one for one in os.environ.get("IMRET_TEST_QDRANT_PEERS", "").split(",") if one]
    with ServerStore(url) as server:
        try:
            fill(server, name)
            before = everything(server, name)
            assert pull_collection(server, name, embedded, peers=peers).points == 120
            assert_same(everything(embedded, name), before, exact=False)
            assert kept(embedded, name) == (MODEL, EXCLUDED, NAMES, None)
            with closing(embedded.open_version(name, MODEL)) as opened:
                opened.upsert(IDS[:1], np.eye(1, DIM, dtype=np.float32), [{"category": "new"}])
                assert opened.get(IDS[:1])[IDS[0]].payload == {"category": "new"}
            assert backup_collection(server, name, folder / "backup", peers=peers).points == 120
            restore_collection(folder / "backup", embedded, "restored")
            assert_same(everything(embedded, "restored"), before, exact=False)
            assert restore_collection(folder / "backup", server, name, replace=True) == 120
            assert_same(everything(server, name), before, exact=False)
        finally:
            server.drop(name)
