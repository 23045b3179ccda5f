"""Files of an embedded store that are lost, empty or cut short: each is found, named, and can be mended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret.errors import DataError, StoreDamaged, StoreError, StoreUnavailable
from imret.store.embedded import inventory, layout, locks
from imret.store.embedded import shard as edge_shard
from imret.store.embedded.shard import Shard
from imret.store.embedded.store import EdgeStore
from imret.store.embedded.worker import Worker
from tests import ROOT
from tests.fakes.edge_points import MODEL, OTHER_MODEL, point_of, store_points

OWNER = locks.LockOwner(os.getpid(), "test", "now")
N = 60
DAMAGES = ("deleted", "emptied", "halved")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Path]:
    """A folder for a store, in memory where that can be."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as folder:
        yield Path(folder) / "db"


def add(shard: Shard, numbers: range) -> None:
    points = [point_of(i) for i in numbers]
    payloads = [{**point[2], "category": f"c{i % 3}", "source": "/photos"} for i, point in enumerate(points)]
    shard.upsert([point[0] for point in points], np.stack([point[1] for point in points]), payloads)


def make(version: Path, state: str) -> None:
    """Make the live version of a collection, in a state."""
    version.parent.mkdir(parents=True)
    layout.write_versions(version.parent, layout.Versions(version.name))
    work = version.parent.parent / "work" / version.name
    work.parent.mkdir()
    shard = Shard(work, MODEL, owner=OWNER, index_from_kb=1 if "indexed" in state else 10_000)
    if state != "killed before it was flushed":
        add(shard, range(N))
        shard.flush()
    if "indexed" in state:
        shard.optimize()
    if "deleted" in state:
        shard.delete([point_of(i)[0] for i in range(10)])
    if "killed" in state:
        add(shard, range(N, N + 20))
        copy(work, version)  # what the kernel has of a process that is killed now
        shard.close()
    else:
        shard.close()
        copy(work, version)
    shutil.rmtree(work.parent)


STATES = (
    "closed",
    "indexed",
    "indexed, deleted from",
    "killed before it was flushed",
    "flushed, then killed",
    "indexed, deleted from, then killed",
)


def copy(source: Path, target: Path) -> None:
    """Copy a version as a backup would; its files are sparse, so not by shutil."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


def damage(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink()
    else:
        os.truncate(file, 0 if how == "emptied" else file.stat().st_size // 2)


def answers_of(version: Path) -> dict[str, Any]:
    """Ask a version everything that a search or a listing would, as the worker asks it."""
    worker = Worker(OWNER, 10_000)
    try:
        handle, _ = worker.answer("open", (version, None, False))
        rows, _ = worker.answer("scan", (handle, None, True, 1_000, None))
        hits = worker.answer("search", (handle, point_of(30)[1], 5, None, False))
        return {
            "points": [(row[0], row[1], row[2].tolist()) for row in rows],
            "count": worker.answer("count", (handle, None)),
            "hits": [(hit[0], round(hit[3], 5)) for hit in hits],
            "categories": worker.answer("facet", (handle, "category", None)),
        }
    finally:
        worker.end()
        for shard in worker._shards.values():
            with suppress(BaseException):
                shard.close()


def kind_of(file: str) -> str:
    """Return what a file is called without the parts that differ between segments and fields."""
    return re.sub(r"segments/[^/]+|payload_index/[^/]+-", "*", file)


def sweep(db: Path, state: str, *, every: bool) -> dict[str, int]:
    """Damage each file in each way, and count the outcomes, of which none may be wrong."""
    version, kept = db / "photos" / MODEL.version, db / "kept"
    make(version, state)
    copy(version, kept)
    whole = answers_of(version)
    assert whole["count"] == len(whole["points"])
    assert whole["count"] >= 20
    files = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    if not every:
        files = set({kind_of(file): file for file in sorted(files)}.values())
    outcomes = {"whole": 0, "damaged": 0}
    is_untouched = False
    for file in sorted(files):
        for how in DAMAGES if (kept / file).stat().st_size else DAMAGES[:1]:
            if not is_untouched:
                shutil.rmtree(version)
                copy(kept, version)
            damage(version / file, how)
            outcome, said = outcome_of(version, whole)
            assert outcome in outcomes, (file, how, outcome)
            outcomes[outcome] += 1
            # Found before the engine has seen it: then to put that file back is enough.
            is_untouched = " bytes)" in said or " bytes of " in said
            if is_untouched:
                copy(kept / file, version / file)
    return outcomes


def outcome_of(version: Path, whole: dict[str, Any]) -> tuple[str, str]:
    """Ask a version, and return what its answers are, and the error if it is damaged."""
    try:
        return "whole" if answers_of(version) == whole else "wrong", ""
    except StoreDamaged as error:
        names_repair = "imret collections delete photos --yes" in str(error)
        return "damaged" if names_repair else "damaged, without a repair", str(error)


@pytest.mark.parametrize("state", [STATES[0], STATES[3], STATES[-1]])
def test_a_file_that_is_lost_empty_or_halved_is_no_wrong_answer(
    db: Path, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes = sweep(db, state, every=False)
    assert outcomes["damaged"] > 80  # and not all is forgiven


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_no_file_that_is_lost_empty_or_halved_is_a_wrong_answer(
    db: Path, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes = sweep(db, state, every=True)
    assert outcomes["damaged"] > 250
    with capfd.disabled():
        print(f"\n{state}: {outcomes}")


def test_the_error_names_the_file_its_size_the_model_and_the_folders(db: Path) -> None:
    version = db / "photos" / MODEL.version
    make(version, "indexed")
    file = next(version.rglob("matrix.dat"))
    size = file.stat().st_size
    file.unlink()
    with pytest.raises(StoreDamaged) as raised:
        Shard(version, None, owner=OWNER, index_from_kb=1)
    lines = str(raised.value).splitlines()
    lost = file.relative_to(version.parent)
    assert (
        lines[0]
        == f"collection 'photos' in {str(db)!r} is damaged: {lost} is missing (it had {size:,} bytes)."
    )
    assert lines[2:] == [
        f"  imret collections delete photos --yes --db {db}",
        f"  imret ingest /photos --collection photos --model ViT-tiny --db {db}",
        f"  imret collections import FILE --collection photos --db {db}",
    ]
    assert str(db) not in raised.value.public
    file.write_bytes(bytes(size - 1))
    with pytest.raises(StoreDamaged, match=rf"matrix\.dat has {size - 1:,} bytes of {size:,}"):
        Shard(version, None, owner=OWNER, index_from_kb=1)


def test_a_collection_with_another_number_of_points_is_damaged_though_all_files_are_there(db: Path) -> None:
    version = db / "photos" / MODEL.version
    make(version, "indexed")
    note = version / "flushed.json"
    content = json.loads(note.read_text())
    for wrong in (N + 1, N - 1, N + 1):  # and it stays so
        note.write_text(json.dumps({**content, "points": wrong}))
        with pytest.raises(StoreDamaged, match=f"it holds {N} points, and {wrong} were stored"):
            Shard(version, None, owner=OWNER, index_from_kb=1)
    note.write_text(json.dumps({**content, "points": None}))  # as after an operation that was refused
    Shard(version, None, owner=OWNER, index_from_kb=1).close()


def test_a_store_of_an_older_imret_opens_as_before_and_is_watched_from_then_on(db: Path) -> None:
    version = db / "photos" / MODEL.version
    make(version, "indexed")
    (version / "flushed.json").unlink()
    whole = answers_of(version)
    noted = inventory.read(version)
    assert noted is not None
    assert (noted.points, noted.since, noted.sources) == (N, "flushed", ("/photos",))
    assert answers_of(version) == whole
    next(version.rglob("matrix.dat")).unlink()
    with pytest.raises(StoreDamaged, match="is missing"):
        Shard(version, None, owner=OWNER, index_from_kb=1)


@pytest.mark.parametrize("what_then", ["store", "delete", "optimize"])
def test_what_was_lost_while_it_was_open_is_not_noted_as_whole(db: Path, what_then: str) -> None:
    version = db / "photos" / MODEL.version
    make(version, "closed")
    shard = Shard(version, MODEL, owner=OWNER, index_from_kb=10_000)
    noted = (version / "flushed.json").read_bytes()
    next(version.rglob("vectors/status.dat")).unlink()

    def go_on() -> None:
        if what_then == "store":
            add(shard, range(N, N + 5))
        elif what_then == "delete":
            shard.delete([point_of(0)[0]])
        else:
            shard.optimize()
        shard.flush()

    with pytest.raises(StoreDamaged, match=r"status\.dat is missing"):
        go_on()
    shard.close()
    kept = [path for path in version.glob("flushed*.json") if path.read_bytes() == noted]
    assert len(kept) == 1
    with pytest.raises(StoreDamaged, match=r"status\.dat is missing"):
        Shard(version, None, owner=OWNER, index_from_kb=10_000)


def test_a_version_that_is_begun_anew_misses_nothing_of_the_one_before(db: Path) -> None:
    version = db / "photos" / MODEL.version
    make(version, "indexed")
    layout.write_versions(version.parent, layout.Versions("another"))
    shard = Shard(version, MODEL, owner=OWNER, index_from_kb=10_000, empty=True)
    add(shard, range(5))
    shard.close()
    shard = Shard(version, None, owner=OWNER, index_from_kb=10_000)
    assert shard.count(None) == 5
    shard.close()


def test_what_an_older_imret_stored_since_is_no_damage(db: Path) -> None:
    version = db / "photos" / MODEL.version
    make(version, "closed")
    answers_of(version)  # by this one, whose lock stays
    lock = version.with_name(f"{version.name}.lock")
    note = (version / "flushed.json").read_bytes()
    shard = Shard(version, MODEL, owner=OWNER, index_from_kb=10_000)
    add(shard, range(N, N + 5))
    shard.close()
    (version / "flushed.json").write_bytes(note)  # which an older one leaves as it is
    lock.write_bytes(b"")  # and this as it ends
    shard = Shard(version, None, owner=OWNER, index_from_kb=10_000)
    assert shard.count(None) == N + 5
    shard.close()
    noted = inventory.read(version)
    assert noted is not None
    assert noted.points == N + 5


def test_a_store_older_than_the_index_of_sources_opens_as_before(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = db / "photos" / MODEL.version
    monkeypatch.setattr(edge_shard, "INDEXED_FIELDS", ("category",))
    make(version, "indexed")
    monkeypatch.undo()
    (version / "flushed.json").unlink()
    assert answers_of(version)["count"] == N
    assert answers_of(version)["count"] == N
    shard = Shard(version, MODEL, owner=OWNER, index_from_kb=1)  # gets its indexes
    assert shard.facet("source", None) == {"/photos": N}
    shard.close()
    assert answers_of(version)["count"] == N


def test_a_version_of_a_newer_format_hides_no_other_collection(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        store_points(store, range(5), name="whole")
    for name in ("photos", "staged"):
        (db / name / MODEL.version).mkdir(parents=True, exist_ok=True)
        (db / name / MODEL.version / "identity.json").write_text('{"format": 99}')
    with EdgeStore(db) as store:
        assert (store.collections(), store.incomplete()) == (["photos", "whole"], ["staged"])
        with pytest.raises(StoreError, match="Upgrade imret"):
            store.open("photos")
        assert store.open("whole").count() == 5


def test_searching_writes_nothing_that_was_not_there_and_copies_are_whole(db: Path) -> None:
    version = db / "photos" / MODEL.version
    make(version, "indexed, deleted from, then killed")
    whole = answers_of(version)  # takes over what the log has
    assert answers_of(version) == whole  # and this, what the engine keeps beside its lists until then
    before = {path: path.stat().st_mtime_ns for path in version.glob("flushed*")}
    for _ in range(3):
        assert answers_of(version) == whole
    assert {path: path.stat().st_mtime_ns for path in version.glob("flushed*")} == before
    shutil.copytree(version, db / "beside" / version.name)  # not sparse, other times, other blocks
    layout.write_versions(db / "beside", layout.Versions(version.name))
    assert answers_of(db / "beside" / version.name) == whole


def test_a_disk_too_full_to_note_anything_is_searched_and_deleted_from(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = db / "photos" / MODEL.version
    make(version, "flushed, then killed")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(inventory, "write_atomically", full)
        patched.setattr(inventory.os, "replace", full)
        patched.setattr(edge_shard, "MIN_FREE_BYTES", 1 << 62)
        shard = Shard(version, None, owner=OWNER, index_from_kb=1)
        assert shard.count(None) == N + 20
        shard.delete([point_of(0)[0]])
        shard.close()
    shard = Shard(version, None, owner=OWNER, index_from_kb=1)
    assert shard.count(None) == N + 19
    shard.close()


def test_no_kill_is_taken_for_damage(tmp_path: Path) -> None:
    _kill_writers(tmp_path, seed=1, n=12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_none_of_hundreds_of_kills_is_taken_for_damage(tmp_path: Path, seed: int) -> None:
    _kill_writers(tmp_path, seed=seed, n=200)


def _kill_writers(tmp_path: Path, *, seed: int, n: int) -> None:
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as folder:
        script = [sys.executable, "-m", "tests.store.embedded.killed_writers", folder, str(seed), str(n)]
        done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{n} kills" in done.stdout


# ---- What is around the engine's files ----------------------------------------------------------------


def lose_live_json(collection: Path) -> None:
    (collection / "live.json").unlink()


def empty_live_json(collection: Path) -> None:
    os.truncate(collection / "live.json", 0)


def make_live_json_a_folder(collection: Path) -> None:
    (collection / "live.json").unlink()
    (collection / "live.json" / "x").mkdir(parents=True)


def lose_identity(collection: Path) -> None:
    (collection / MODEL.version / "identity.json").unlink()


def halve_identity(collection: Path) -> None:
    damage(collection / MODEL.version / "identity.json", "halved")


def make_identity_a_folder(collection: Path) -> None:
    lose_identity(collection)
    (collection / MODEL.version / "identity.json").mkdir()


def lose_version(collection: Path) -> None:
    shutil.rmtree(collection / MODEL.version)


def make_version_a_file(collection: Path) -> None:
    lose_version(collection)
    (collection / MODEL.version).write_bytes(b"")


def lose_shard(collection: Path) -> None:
    shutil.rmtree(collection / MODEL.version / "shard")


def make_lock_a_folder(collection: Path) -> None:
    (collection / f"{MODEL.version}.lock").unlink(missing_ok=True)
    (collection / f"{MODEL.version}.lock" / "x").mkdir(parents=True)


def make_switch_lock_a_folder(collection: Path) -> None:
    (collection / ".switch.lock").unlink(missing_ok=True)
    (collection / ".switch.lock" / "x").mkdir(parents=True)


def lose_a_file_and_the_note(collection: Path) -> None:
    (collection / MODEL.version / "flushed.json").unlink()
    next(collection.rglob("payload_storage/page_0.dat")).unlink()


def break_the_engine(collection: Path) -> None:
    """Make the engine panic: without the note, and a status of the flags that is empty."""
    (collection / MODEL.version / "flushed.json").unlink()
    for file in collection.rglob("deleted/status.dat"):
        os.truncate(file, 0)


DAMAGED: tuple[Callable[[Path], None], ...] = (
    empty_live_json,
    make_live_json_a_folder,
    lose_identity,
    halve_identity,
    make_identity_a_folder,
    lose_version,
    make_version_a_file,
    lose_shard,
    make_lock_a_folder,
    lose_a_file_and_the_note,
    break_the_engine,
)


@pytest.mark.parametrize("harm", DAMAGED)
def test_a_damaged_collection_says_so_beside_whole_ones_and_can_be_deleted_and_made_again(
    db: Path, harm: Callable[[Path], None]
) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        store_points(store, range(5), name="whole")
    harm(db / "photos")
    with EdgeStore(db) as store:
        assert store.collections() == ["photos", "whole"]
        assert store.incomplete() == []
        assert store.open("whole").count() == 5
        for attempt in (
            lambda: store.open("photos"),
            lambda: store.open("photos"),  # the same again, from the same worker
            lambda: store.open_version("photos", MODEL),
        ):
            with pytest.raises(StoreDamaged, match=r"collection 'photos' in .* is damaged: ") as raised:
                attempt()
            assert f"imret collections delete photos --yes --db {db}" in str(raised.value)
            assert "panicked" not in str(raised.value)
        assert store.open("whole").count() == 5
        store.drop("photos")
        assert sorted(os.listdir(db)) == ["imret-store.json", "whole"]
        store_points(store, range(4))
        assert store.open("photos").count() == 4


def test_a_lost_live_json_is_a_collection_that_is_not_complete_and_an_ingest_completes_it(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    lose_live_json(db / "photos")
    with EdgeStore(db) as store:
        assert (store.collections(), store.incomplete()) == ([], ["photos"])
        with pytest.raises(DataError, match=r"not complete yet\. Run its ingest again"):
            store.open("photos")
        store_points(store, range(2))
        assert (store.collections(), store.incomplete()) == (["photos"], [])
        assert store.open("photos").count() == 3


def test_a_folder_in_the_place_of_the_lock_of_switches_ends_with_a_deletion(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    make_switch_lock_a_folder(db / "photos")
    with EdgeStore(db) as store:
        assert store.open("photos").count() == 3
        with pytest.raises(StoreDamaged, match=r"\.switch\.lock is a folder"):
            store.promote("photos", MODEL)
    with EdgeStore(db) as store:
        store.drop("photos")
        store_points(store, range(4))


@pytest.mark.parametrize("where", [f"photos/{MODEL.version}.lock", "photos/.switch.lock", "imret-store.json"])
def test_an_empty_folder_in_the_place_of_a_lock_or_the_marker_is_removed(db: Path, where: str) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    (db / where).unlink(missing_ok=True)
    (db / where).mkdir()
    with EdgeStore(db) as store:
        store_points(store, range(4))
        assert store.open("photos").count() == 4
    assert (db / where).is_file()


@pytest.mark.parametrize("how", DAMAGES)
def test_a_store_that_lost_its_marker_is_a_store_if_it_holds_a_collection(db: Path, how: str) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    damage(db / "imret-store.json", how)
    with EdgeStore(db, create=False) as store:
        assert store.open("photos").count() == 3
    assert json.loads((db / "imret-store.json").read_text()) == {"format": 1}
    with EdgeStore(db) as store:
        store.drop("photos")
    damage(db / "imret-store.json", how)
    with EdgeStore(db) as store:
        assert store.collections() == []


@pytest.mark.parametrize(
    "left",
    [
        [],
        [f"{MODEL.version}.lock"],
        [f"{MODEL.version}.lock", ".switch.lock", ".live.json.part", f"{MODEL.version}/shard/x"],
        [f".removed-{MODEL.version}-1-2/shard/x"],
        [f"{MODEL.version}", f"{OTHER_MODEL.version}-2.lock"],
    ],
)
def test_what_a_killed_ingest_or_deletion_left_is_listed_deleted_and_taken_up(
    db: Path, left: list[str]
) -> None:
    for name in ("one", "other"):
        (db / name).mkdir(parents=True)
        for file in left:
            (db / name / file).parent.mkdir(parents=True, exist_ok=True)
            (db / name / file).write_bytes(b"")
    (db / "imret-store.json").write_text('{"format": 1}')
    with EdgeStore(db) as store:
        assert (store.collections(), store.incomplete()) == ([], ["one", "other"])
        with pytest.raises(DataError, match="imret collections delete one --db"):
            store.open("one")
        store.drop("one")
        assert store.incomplete() == ["other"]
        store_points(store, range(3), name="other")
        assert (store.collections(), store.incomplete()) == (["other"], [])


def test_a_folder_of_other_things_is_never_taken_for_what_a_kill_left(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        (db / "thesis").mkdir()
        (db / "thesis" / "chapter1.tex").write_text("")
        assert store.incomplete() == []
        with pytest.raises(DataError, match="no collection 'thesis'"):
            store.open("thesis")
        with pytest.raises(DataError, match="holds 'thesis' already"):
            store.rename("photos", "thesis")
        store.drop("thesis")
        assert (db / "thesis" / "chapter1.tex").exists()
        assert store.collections() == ["photos"]


def test_a_deletion_killed_anywhere_leaves_the_whole_collection_or_none(db: Path) -> None:
    """Killed at each of its steps in turn, by the system call that it is at."""
    seen = set()
    for step in (0, 1, 3, 6):
        with EdgeStore(db) as store:
            store_points(store, range(3))
            store.create_staging("photos", OTHER_MODEL).close()
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_DELETION, str(db), str(step)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        with EdgeStore(db, create=False) as store:
            left = store.collections(), store.incomplete()
            assert left in ((["photos"], []), ([], []))
            if left[0]:
                assert store.open("photos").count() == 3
            seen.add(bool(left[0]))
            store.drop("photos")
        assert os.listdir(db) == ["imret-store.json"]
    assert seen == {True, False}


# Deletes in this process, which is killed before a certain one of the calls that change the disk.
KILLED_DELETION = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, ".")
from imret.store.embedded import locks
from imret.store.embedded.worker import Worker
steps = int(sys.argv[2])
def counted(call):
    def counting(*args, **kwargs):
        global steps
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        steps -= 1
        return call(*args, **kwargs)
    return counting
for name in ("rename", "unlink", "rmdir", "ftruncate", "replace"):
    setattr(os, name, counted(getattr(os, name)))
Worker(locks.LockOwner(os.getpid(), "test", "now"), 10_000).answer("drop", (Path(sys.argv[1]) / "photos",))
"""


def test_a_worker_that_crashes_twice_on_one_collection_means_damage_and_others_go_on(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        store_points(store, range(5), name="whole")
    monkeypatch.setattr("imret.store.embedded.client._BOOT", CRASHING)
    with EdgeStore(db) as store:
        with pytest.raises(StoreDamaged, match=r"crashed 2 times as it opened it \(SIGSEGV\)") as raised:
            store.open("photos")
        assert "imret collections delete photos" in str(raised.value)
        assert store.open("whole").count() == 5


# A worker whose engine crashes as it loads the collection photos.
CRASHING = """
import os, resource, signal, sys
sys.path[:] = sys.argv[2:]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from imret.store.embedded import shard, worker
load = shard.Shard._load
def crash(self):
    if self.path.parent.name == "photos":
        os.kill(os.getpid(), signal.SIGSEGV)
    load(self)
shard.Shard._load = crash
worker.main(int(sys.argv[1]))
"""


def test_a_panic_in_a_search_names_the_collection_and_the_worker_goes_on(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = db / "photos" / MODEL.version
    make(version, "closed")
    worker = Worker(OWNER, 10_000)
    handle, _ = worker.answer("open", (version, None, False))
    os.truncate(next(version.rglob("payload_storage/page_0.dat")), 0)
    shard = worker._handles[handle].shard

    class PanicException(BaseException):
        pass

    def panic(*args: Any) -> None:
        raise PanicException("index out of bounds: the len is 0 but the index is 0")

    monkeypatch.setattr(shard, "search", panic)
    with pytest.raises(StoreDamaged, match=r"failed to search its files: index out of bounds"):
        worker.answer("search", (handle, point_of(0)[1], 5, None, False))
    assert worker.answer("count", (handle, None)) == N
    worker.end()
    shard.close()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Service runtime error: IO Error: Too many open files (os error 24)", "Too many open files"),
        ("Service runtime error: No space left on device (os error 28)", "Free some space"),
        ("Service runtime error: Cannot allocate memory (os error 12)", "Cannot allocate memory"),
        ("IO Error: Permission denied (os error 13)", "Permission denied"),
        ("Not enough space available for optimization, needed: 9, available: 1", "Free some space"),
        ("Service runtime error: Out of memory", "Mend that and run the command again"),
    ],
)
def test_what_the_system_lacks_this_moment_is_no_damage(db: Path, said: str, told: str) -> None:
    version = db / "photos" / MODEL.version
    make(version, "closed")
    shard = Shard(version, None, owner=OWNER, index_from_kb=1)
    error = shard.failure("search", Exception(said))
    assert not isinstance(error, StoreDamaged)
    assert isinstance(error, StoreError)
    assert told in str(error)
    shard.close()


@pytest.mark.parametrize("lost", ["segment.json", "identity.json"])
def test_a_damaged_new_version_beside_a_whole_live_one_is_begun_again(db: Path, lost: str) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        opened = store.open_version("photos", OTHER_MODEL)
        one, vector, payload = point_of(0)
        opened.upsert([one], vector[None], [{**payload, "source": "/photos"}])
        opened.close()
    if lost == "segment.json":
        next((db / "photos" / OTHER_MODEL.version).rglob(lost)).unlink()
    else:
        (db / "photos" / OTHER_MODEL.version / lost).unlink()
    with EdgeStore(db) as store:
        assert (store.collections(), store.live("photos")) == (["photos"], MODEL)
        with pytest.raises(StoreDamaged, match=r"a new version of collection 'photos'") as raised:
            store.open_version("photos", OTHER_MODEL)
        assert str(raised.value).endswith(
            f"imret ingest /photos --collection photos --model ViT-tiny-tuned --db {db} --rebuild"
        )
        assert store.open("photos").count() == 3
        assert store.create_staging("photos", OTHER_MODEL).count() == 0


@pytest.mark.parametrize("want", ["memory", "disk"])
def test_a_worker_that_crashes_for_want_of_memory_or_disk_says_nothing_of_the_files(
    db: Path, monkeypatch: pytest.MonkeyPatch, want: str
) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    crashing = CRASHING
    if want == "memory":  # as Rust says it
        words = "sys.stderr.write('memory allocation of 9 bytes failed'); sys.stderr.flush(); os.kill("
        crashing = CRASHING.replace("os.kill(", words).replace("SIGSEGV", "SIGABRT")
    else:
        monkeypatch.setattr("imret.store.embedded.client._FULL_BYTES", 1 << 62)
    monkeypatch.setattr("imret.store.embedded.client._BOOT", crashing)
    with EdgeStore(db) as store, pytest.raises(StoreUnavailable, match="was killed by SIG"):
        store.open("photos")


def test_a_worker_that_the_system_kills_for_want_of_memory_says_nothing_of_the_files(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        worker = store._started()
        worker._process.kill()
        with pytest.raises(StoreError) as raised:
            store.open("photos")
        assert not isinstance(raised.value, StoreDamaged)
