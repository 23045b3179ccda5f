"""The embedded store: what it survives, who may open it, and what its folder looks like afterwards."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imret.errors import StoreDamaged, StoreError, StoreLocked, StoreUnavailable
from imret.store import Filter, Identity, Match
from imret.store.embedded import engine_config, layout, locks
from imret.store.embedded import shard as edge_shard
from imret.store.embedded.read_ahead import read_ahead
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import DIM, MODEL, OTHER_MODEL, point_of, store_points, worker_pid


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Path]:
    """A folder for a store: in memory where that can be, since a collection waits for the disk a dozen times.

    What a kill leaves behind is the same there: the kernel keeps what a process has written.
    """
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as folder:
        yield Path(folder) / "db"


def assert_holds(db: Path, acknowledged: int) -> None:
    """Check that a store holds the first points, all that were acknowledged and perhaps more, each whole."""
    with EdgeStore(db) as store:
        collection = store.open_version("photos", MODEL)
        points = [point for batch in collection.scan(vectors=True) for point in batch]
        assert len(points) >= acknowledged
        assert len({point.id for point in points}) == len(points) == collection.count()
        expected = [point_of(i) for i in range(len(points))]
        assert [(point.id, point.payload) for point in points] == [(one, also) for one, _, also in expected]
        if points:
            vectors = np.stack([point.vector for point in points])  # type: ignore[misc]
            np.testing.assert_allclose(vectors, np.stack([vector for _, vector, _ in expected]), atol=1e-6)


def start(script: str, *arguments: object, group: bool = False) -> subprocess.Popen[str]:
    """Start a program of the user's that has this module's names."""
    preamble = "import os, sys, time, uuid; sys.path.insert(0, '.'); import numpy as np\n"
    preamble += "from tests.fakes.edge_points import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=group,
    )


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# Stores points 25 at a time; tells its worker's pid, then how many are acknowledged.
WRITER = """
store = EdgeStore(sys.argv[1])
collection = store.open_version("photos", MODEL)
print(worker_pid(store), flush=True)
known = collection.count()
for begin in range(known, 1_000_000, 25):
    points = [point_of(i) for i in range(begin, begin + 25)]
    collection.upsert([p[0] for p in points], np.stack([p[1] for p in points]), [p[2] for p in points])
    print(begin + 25, flush=True)
    if begin % 250 == 0:
        collection.flush()
"""


@pytest.mark.parametrize("victim", ["worker", "program", "both"])
def test_what_was_acknowledged_survives_kill_9_of(victim: str, db: Path) -> None:
    rng = random.Random(victim)
    acknowledged = 0
    for _ in range(2):
        writer = start(WRITER, db)
        assert writer.stdout is not None
        worker = int(writer.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.4))
        for pid in {"worker": [worker], "program": [writer.pid], "both": [worker, writer.pid]}[victim]:
            os.kill(pid, signal.SIGKILL)
        said, complained = writer.communicate(timeout=30)
        acknowledged = max([acknowledged, *map(int, said.split())])
        if victim == "worker":
            assert "was killed by SIGKILL" in complained
        wait_until(lambda pid=worker: not is_running(pid))  # type: ignore[misc]
        assert_holds(db, acknowledged)
    assert acknowledged > 0


def test_a_kill_9_while_the_index_is_built_loses_and_doubles_nothing(db: Path) -> None:
    optimizer = """
store = EdgeStore(sys.argv[1], index_from_kb=50)
collection = store.open_version("photos", MODEL)
print(worker_pid(store), flush=True)
collection.optimize()
"""
    n = 0
    under_way = db / "photos" / MODEL.version / "optimizing"
    for delay_s in (0.0, 0.05):
        with EdgeStore(db, index_from_kb=50) as store:
            store_points(store, range(n, n + 2_500))
            n += 2_500
        process = start(optimizer, db)
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        wait_until(under_way.exists)
        time.sleep(delay_s)
        os.kill(worker, signal.SIGKILL)
        end(process)
        assert under_way.exists()
        with EdgeStore(db, create=False) as store:  # a reader, which does not mend
            collection = store.open("photos")
            assert collection.count() == n
            assert collection.stats().points == n
            assert collection.facet("path") == {f"{i}.jpg": 1 for i in range(n)}
            hits = collection.search(point_of(77)[1], limit=50)
            assert hits[0].id == point_of(77)[0]
            assert len({hit.id for hit in hits}) == 50
        assert_holds(db, n)
    with EdgeStore(db) as store:
        collection = store.open_version("photos", MODEL)
        collection.optimize()
        assert collection.stats().status == "indexed"
    assert_holds(db, n)


def test_a_version_whose_making_was_cut_short_is_made_again(db: Path) -> None:
    maker = (
        'print(flush=True); EdgeStore(sys.argv[1]).open_version("photos", MODEL); print("made", flush=True)'
    )
    for delay_s in (0.05, 0.15, 0.25):
        process = start(maker, db, group=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)
        end(process)
    with EdgeStore(db) as store:
        assert store.open_version("photos", MODEL).count() == 0
        store_points(store, range(3))
    assert_holds(db, 3)


@pytest.mark.parametrize("left", ["an empty folder", "an empty shard", "half a shard"])
def test_a_version_without_an_identity_is_made_again(db: Path, left: str) -> None:
    with EdgeStore(db) as store:
        store.open_version("photos", MODEL).close()
    version = db / "photos" / MODEL.version
    (version / "identity.json").unlink()
    if left != "half a shard":
        for file in sorted(version.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    if left == "an empty shard":
        (version / "shard").mkdir()
    with EdgeStore(db) as store:
        assert store.staged_versions("photos") == []
        store_points(store, range(3))
    assert_holds(db, 3)


def test_a_kill_9_during_switches_leaves_one_whole_live_version(db: Path) -> None:
    switcher = """
store = EdgeStore(sys.argv[1])
while True:
    for model in (MODEL, OTHER_MODEL):
        version = store.open_version("photos", model)
        version.upsert([str(uuid.UUID(int=1))], point_of(1)[1][None], [{"category": model.model}])
        version.close()
        store.promote("photos", model)
        print(model.model, flush=True)
"""
    rng = random.Random(5)
    for _ in range(3):
        process = start(switcher, db)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        end(process)
        with EdgeStore(db, create=False) as store:
            assert store.collections() == ["photos"]
            live = store.live("photos")
            assert live in (MODEL, OTHER_MODEL)
            assert store.open("photos").facet("category") == {live.model: 1}
    with EdgeStore(db) as store:
        store.open_version("photos", MODEL)
        store.promote("photos", MODEL)
        assert store.staged_versions("photos") == []
    left = [path.name for path in layout.version_folders(db / "photos")]
    assert left == [MODEL.version]
    assert not list(db.glob("**/.removed-*"))


def test_a_second_process_is_told_who_holds_the_store_and_what_to_do(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    holder = start(
        'c = EdgeStore(sys.argv[1]).open("photos"); print(c.count(), flush=True); time.sleep(60)', db
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "3\n"
    with EdgeStore(db, lock_timeout_s=0.2) as store:
        assert store.live("photos") == MODEL  # that much needs no lock
        for use in (store.open, lambda name: store.open_version(name, MODEL), store.drop):
            with pytest.raises(StoreLocked) as caught:
                use("photos")
            for part in (f"process {holder.pid}", "'photos'", str(db), "docker compose up qdrant", "Wait"):
                assert part in str(caught.value)
        store.open_version("others", MODEL)  # another collection is free
    end(holder)
    assert_holds(db, 3)


def test_a_collection_that_is_open_anywhere_is_not_renamed(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        reader = store.open("photos")
        with pytest.raises(StoreLocked, match=r"'photos' .* is open in this program; close it first"):
            store.rename("photos", "pictures")
        assert reader.count() == 3
    holder = start('c = EdgeStore(sys.argv[1]).open("photos"); print(flush=True); time.sleep(60)', db)
    assert holder.stdout is not None
    holder.stdout.readline()
    with EdgeStore(db, lock_timeout_s=0.0) as store:
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            store.rename("photos", "pictures")
        assert store.collections() == ["photos"]
        end(holder)
        wait_until(lambda: _can_rename(store))
        assert store.collections() == ["pictures"]
        assert store.open("pictures").count() == 3
    assert os.listdir(db / "pictures" / MODEL.version)
    assert not (db / "photos").exists()


def _can_rename(store: EdgeStore) -> bool:
    try:
        store.rename("photos", "pictures")
    except StoreLocked:
        return False
    return True


def test_what_a_killed_making_left_does_not_take_a_name(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        half = db / "pictures" / MODEL.version / "shard"
        half.mkdir(parents=True)
        (half.parent.parent / f"{MODEL.version}.lock").touch()
        store.rename("photos", "pictures")
        assert store.open("pictures").count() == 3


def test_a_kill_9_during_renames_leaves_one_whole_collection(db: Path) -> None:
    renamer = """
store = EdgeStore(sys.argv[1], lock_timeout_s=0.0)
store.open("photos").close()
print(worker_pid(store), flush=True)
while True:
    store.rename("photos", "pictures")
    store.rename("pictures", "photos")
"""
    with EdgeStore(db) as store:
        store_points(store, range(3))
    rng = random.Random(7)
    for _ in range(3):
        process = start(renamer, db)
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(worker, signal.SIGKILL)
        end(process)
        with EdgeStore(db) as store:
            (name,) = store.collections()
            assert store.open(name).count() == 3
        with EdgeStore(db) as store:
            if name != "photos":
                store.rename(name, "photos")


def test_opening_waits_for_a_holder_that_is_about_to_end(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    holder = start('c = EdgeStore(sys.argv[1]).open("photos"); print(flush=True); time.sleep(1)', db)
    assert holder.stdout is not None
    holder.stdout.readline()
    with EdgeStore(db, lock_timeout_s=20) as store:
        assert store.open("photos").count() == 3
    end(holder)


def test_a_store_opened_twice_by_one_program_says_so(db: Path) -> None:
    with EdgeStore(db) as first, EdgeStore(db, lock_timeout_s=0.0) as second:
        first.open_version("photos", MODEL)
        with pytest.raises(StoreLocked, match=r"this process .* opened the store twice"):
            second.open_version("photos", MODEL)


def test_a_handle_that_was_closed_soon_lets_others_open_the_collection(db: Path) -> None:
    with EdgeStore(db) as first, EdgeStore(db, lock_timeout_s=10) as second:
        first.open_version("photos", MODEL).close()
        assert second.open_version("photos", MODEL).count() == 0


def test_a_new_version_can_be_built_and_made_live_while_the_old_one_is_read(db: Path) -> None:
    with EdgeStore(db) as reader, EdgeStore(db) as writer:
        store_points(writer, range(3))
        wait_until(lambda: not list(db.glob("photos/*.lock")) or _can_open(reader))
        old = reader.open("photos")
        new = writer.open_version("photos", OTHER_MODEL)
        assert old.count() == 3
        writer.promote("photos", OTHER_MODEL)
        assert writer.live("photos") == OTHER_MODEL
        assert (
            writer.staged_versions("photos") == []
        )  # the old one lies there still, but it is not being built
        assert old.count() == 3
        old.close()
        reader.close()
        writer.promote("photos", OTHER_MODEL)
        assert [path.name for path in layout.version_folders(db / "photos")] == [OTHER_MODEL.version]
        new.close()


def _can_open(store: EdgeStore) -> bool:
    store.open("photos").close()
    return True


def test_a_retired_version_can_be_taken_up_again(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        old = store.open("photos")  # held, so that the switch cannot remove it
        store.open_version("photos", OTHER_MODEL).close()
        store.promote("photos", OTHER_MODEL)
        again = store.open_version("photos", MODEL)
        assert store.staged_versions("photos") == [MODEL]
        assert again.count() == old.count() == 3
        store.promote("photos", MODEL)
        assert store.open("photos").count() == 3


@pytest.fixture(scope="module")
def clustered() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """12,000 vectors and 100 queries around 300 centres, (N, 64) float32 of unit norm."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 64))
    vectors = centres[rng.integers(0, 300, 12_100)] + 0.7 * rng.standard_normal((12_100, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[:12_000], vectors[12_000:]


def test_components_that_dominate_every_vector_cost_no_recall(db: Path) -> None:
    """As in embeddings of CLIP: a grid of bytes that reaches out to one of 0.95 is coarse for all others."""
    n, dim, k = 8_000, 256, 50
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((count, dim), dtype=np.float32) for count in (n, 100))
    for rows in (vectors, queries):
        rows[:, 7] = 0
        rows *= np.sqrt(1 - 0.95**2) / np.linalg.norm(rows, axis=1, keepdims=True)
        rows[:, 7] = 0.95
    nearest = np.argsort(-queries @ vectors.T, axis=1)[:, :k]
    ids = [str(uuid.UUID(int=i)) for i in range(n)]
    with EdgeStore(db, index_from_kb=500) as store:
        collection = store.open_version("photos", Identity("m", "a1" * 32, dim))
        for start in range(0, n, 4_000):
            rows = slice(start, start + 4_000)
            collection.upsert(ids[rows], vectors[rows], [{"path": f"{i}.jpg"} for i in range(n)[rows]])
        collection.optimize()
        found = [{uuid.UUID(hit.id).int for hit in collection.search(query, limit=k)} for query in queries]
    recall = np.mean([len(hits & set(row.tolist())) / k for hits, row in zip(found, nearest, strict=True)])
    assert recall >= 0.995


def test_the_index_finds_what_an_exact_search_finds(
    db: Path, clustered: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    vectors, queries = clustered
    ids = [str(uuid.UUID(int=i)) for i in range(len(vectors))]
    tenth = Filter(must=(Match("category", ("c3",)),))
    with EdgeStore(db, index_from_kb=500) as store:
        collection = store.open_version("photos", Identity("m", "c3" * 32, 64))
        collection.upsert(ids, vectors, [{"category": f"c{i % 10}"} for i in range(len(ids))])
        assert collection.stats().status == "exact scan"
        collection.optimize()
        stats = collection.stats()
        assert (stats.points, stats.indexed, stats.status) == (12_000, 12_000, "indexed")
        assert stats.disk_bytes is not None
        assert stats.disk_bytes > vectors.nbytes
        for only, allowed in ((None, np.ones(12_000, bool)), (tenth, np.arange(12_000) % 10 == 3)):
            scores = np.where(allowed, queries @ vectors.T, -2.0)
            nearest = np.argsort(-scores, axis=1)[:, :10]
            found = exact = 0
            for query, best in zip(queries, nearest, strict=True):
                expected = {ids[i] for i in best}
                found += len(expected & {p.id for p in collection.search(query, limit=10, filter=only)})
                exact += len(
                    expected & {p.id for p in collection.search(query, limit=10, filter=only, exact=True)}
                )
            assert found / 1000 >= 0.99
            assert exact == 1000


def test_a_filling_is_indexed_as_it_goes(
    db: Path, clustered: tuple[NDArray[np.float32], NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_shard, "INDEX_POINTS", 1_000)
    owner = locks.LockOwner(os.getpid(), "test", "")
    (db / "photos").mkdir(parents=True)
    path, identity = db / "photos" / "v", Identity("m", "c3" * 32, 64)
    ids = [str(uuid.UUID(int=i)) for i in range(8_000)]
    shard = edge_shard.Shard(path, identity, owner=owner, index_from_kb=50)
    indexed = []
    for start in range(0, 8_000, 250):
        if start == 4_000:  # as a program that goes on where another stopped
            shard.close()
            shard = edge_shard.Shard(path, identity, owner=owner, index_from_kb=50)
        batch = slice(start, start + 250)
        shard.upsert(ids[batch], clustered[0][batch], [{"category": "c"} for _ in ids[batch]])
        if shard.needs_optimize():
            shard.optimize()
        stored, with_index, _ = shard.stats()
        assert stored == start + 250
        assert stored - with_index < max(1_000, with_index)
        indexed.append(with_index)
    assert sorted(set(indexed)) == [0, 1_000, 2_000, 4_000, 8_000]
    shard.close()


def test_without_enough_for_an_index_none_is_tried_at_every_batch(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_shard, "INDEX_POINTS", 500)
    owner = locks.LockOwner(os.getpid(), "test", "")
    (db / "photos").mkdir(parents=True)
    shard = edge_shard.Shard(db / "photos" / "v", MODEL, owner=owner, index_from_kb=10_000)
    tries = 0
    for start in range(0, 1_500, 100):
        points = [point_of(i) for i in range(start, start + 100)]
        vectors = np.stack([vector for _, vector, _ in points])
        shard.upsert([one for one, _, _ in points], vectors, [payload for _, _, payload in points])
        if shard.needs_optimize():
            shard.optimize()
            tries += 1
    assert tries == 3
    shard.close()


def in_memory(path: Path) -> float:
    """Return the share of a file's pages that the system holds in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(array) // mmap.PAGESIZE), np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        assert libc.mincore(array.ctypes.data, len(array), pages.ctypes.data) == 0
        del array
    return float((pages & 1).mean())


def forget(path: Path) -> None:
    """Have the system drop a file from memory."""
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_what_one_command_has_read_is_in_memory_for_the_next(
    tmp_path: Path, clustered: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    db = tmp_path / "db"  # on a disk
    vectors = clustered[0]
    with EdgeStore(db, index_from_kb=500) as store:
        identity = Identity("m", "c3" * 32, 64)
        collection = store.open_version("photos", identity)
        collection.upsert([str(uuid.UUID(int=i)) for i in range(len(vectors))], vectors, [{}] * len(vectors))
        collection.optimize()
        store.promote("photos", identity)
    (quantized,) = db.glob("photos/*/shard/segments/*/vector_storage/quantized.data")
    forget(quantized)
    if in_memory(quantized) > 0:
        pytest.skip("this file system keeps its files in memory")
    with EdgeStore(db) as store:
        store.open("photos").search(clustered[1][0], limit=10)
    assert in_memory(quantized) == 1.0


def test_opening_reads_ahead_all_but_vectors_and_payloads(
    tmp_path: Path, clustered: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    db = tmp_path / "db"  # on a disk
    vectors = clustered[0][:3_000]
    with EdgeStore(db, index_from_kb=500) as store:
        identity = Identity("m", "c3" * 32, 64)
        collection = store.open_version("photos", identity)
        ids = [str(uuid.UUID(int=i)) for i in range(len(vectors))]
        collection.upsert(ids, vectors, [{"path": one} for one in ids])
        collection.optimize()
        store.promote("photos", identity)
    (shard,) = db.glob("photos/*/shard")
    files = [one for one in shard.glob("segments/**/*") if one.is_file() and one.stat().st_size]
    for one in files:
        forget(one)
    if any(in_memory(one) for one in files):
        pytest.skip("this file system keeps its files in memory")
    read_ahead(shard)
    left = {one.name if one.name == "matrix.dat" else one.parent.name for one in files if in_memory(one) < 1}
    assert left == {"matrix.dat", "payload_storage", "vectors"}


@pytest.mark.parametrize("above", [-1, 0, 1])
def test_a_value_of_about_as_many_points_as_the_engine_would_scan_is_found(
    db: Path,
    clustered: tuple[NDArray[np.float32], NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
    above: int,
) -> None:
    # Of just as many it neither scans the vectors nor has links between them.
    monkeypatch.setattr(engine_config, "FULL_SCAN_KB", 20)  # 80 vectors of 64 float32
    vectors = clustered[0][:6_000]
    few = np.random.default_rng(0).permutation(len(vectors))[: 80 + above]
    names = np.full(len(vectors), "many", object)
    names[few] = "few"
    ids = [str(uuid.UUID(int=i)) for i in range(len(vectors))]
    owner = locks.LockOwner(os.getpid(), "test", "")
    (db / "photos").mkdir(parents=True)
    identity = Identity("m", "c3" * 32, 64)
    shard = edge_shard.Shard(db / "photos" / "v", identity, owner=owner, index_from_kb=500)
    try:
        shard.upsert(ids, vectors, [{"category": name} for name in names])
        shard.optimize()
        assert shard.stats()[1] == len(vectors)
        for query in clustered[1][:20]:
            best = few[np.argsort(-(vectors[few] @ query))[:10]]
            rows = shard.search(query, 10, Filter(must=(Match("category", ("few",)),)), False)
            assert {row[0] for row in rows} == {ids[i] for i in best}
    finally:
        shard.close()


def test_the_worker_ends_with_the_store(db: Path) -> None:
    with EdgeStore(db) as store:
        store.open_version("photos", MODEL)
        pid = worker_pid(store)
        assert is_running(pid)
    assert not is_running(pid)
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.open("photos")


def test_the_worker_ends_with_a_store_that_nobody_closed(db: Path) -> None:
    store = EdgeStore(db)
    store.open_version("photos", MODEL)
    pid = worker_pid(store)
    del store
    gc.collect()
    assert not is_running(pid)


@pytest.mark.parametrize(
    "how", ["sys.exit()", "raise SystemExit(1)", "os._exit(0)", "os.kill(os.getpid(), 15)"]
)
def test_the_worker_ends_with_the_program(db: Path, how: str) -> None:
    opening = (
        "s = EdgeStore(sys.argv[1]); s.open_version('photos', MODEL); print(worker_pid(s), flush=True); "
    )
    process = start(opening + how, db)
    pid = int(process.communicate(timeout=30)[0])
    wait_until(lambda: not is_running(pid))


def test_the_worker_ends_though_a_forked_child_of_the_program_lives_on(db: Path) -> None:
    script = """
store = EdgeStore(sys.argv[1])
store.open_version("photos", MODEL)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(worker_pid(store), child, flush=True)
os._exit(0)
"""
    process = start("import warnings; warnings.simplefilter('ignore')\n" + script, db)
    assert process.stdout is not None
    worker, child = map(int, process.stdout.readline().split())
    try:
        wait_until(lambda: not is_running(worker))
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def _count_in_a_fork(store: EdgeStore, answers: multiprocessing.queues.Queue[str]) -> None:
    try:
        answers.put(str(store.open("photos").count()))
    except StoreError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_to_open_the_store_itself(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        context = multiprocessing.get_context("fork")
        answers: multiprocessing.queues.Queue[str] = context.Queue()
        child = context.Process(target=_count_in_a_fork, args=(store, answers))
        child.start()
        assert "before a fork" in answers.get(timeout=10)
        child.join()
        assert store.open("photos").count() == 3


def test_a_dead_worker_is_an_error_with_its_last_words_and_never_a_hang(db: Path) -> None:
    with EdgeStore(db) as store:
        collection = store.open_version("photos", MODEL)
        os.kill(worker_pid(store), signal.SIGKILL)
        with pytest.raises(StoreUnavailable, match=r"was killed by SIGKILL.*run the command again"):
            collection.count()
        assert collection.count() == 0  # by another worker
        collection.close()


def test_a_worker_that_cannot_start_is_an_error_with_its_last_words(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.store.embedded.client._BOOT", "raise SystemExit('no engine here')")
    with (
        EdgeStore(db) as store,
        pytest.raises(StoreUnavailable, match=r"(?s)ended with exit code 1.*no engine here"),
    ):
        store.open_version("photos", MODEL)


def test_ctrl_c_ends_the_program_at_once_and_loses_nothing(db: Path) -> None:
    script = """
with EdgeStore(sys.argv[1], index_from_kb=50) as store:
    store_points(store, range(2_500))
    collection = store.open("photos")
    print(worker_pid(store), flush=True)
    while True:
        collection.optimize()
        collection.search(point_of(5)[1], limit=5)
"""
    process = start(script, db, group=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    complained = process.communicate(timeout=15)[1]
    assert re.search(
        r"\nKeyboardInterrupt(: The index of 'photos' is not built; .*collections optimize photos.*)?\n$",
        complained,
    )
    assert not is_running(worker)
    assert_holds(db, 2_500)


def test_a_store_is_not_made_where_none_was_asked_for(db: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"no store at .* imret ingest"):
        EdgeStore(db, create=False)
    assert not db.exists()


def test_a_folder_of_other_things_is_not_made_a_store(db: Path) -> None:
    db.mkdir()
    (db / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"is not a store: it holds 'holiday.jpg'"):
        EdgeStore(db)
    assert os.listdir(db) == ["holiday.jpg"]


def test_a_file_is_not_a_store(db: Path) -> None:
    db.write_bytes(b"")
    with pytest.raises(StoreError, match="is a file"):
        EdgeStore(db)


def test_a_first_start_that_was_cut_short_is_no_obstacle(db: Path) -> None:
    db.mkdir()
    (db / ".imret-store.json.part").write_text("{")
    with EdgeStore(db) as store:
        assert store.collections() == []


def test_other_folders_in_a_store_are_left_alone(db: Path) -> None:
    with EdgeStore(db) as store:
        (db / "lost+found").mkdir()
        (db / "notes").mkdir()
        assert store.collections() == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("imret-store.json", '{"format": 99}'),
        ("photos/live.json", ""),
        ("photos/live.json", "[]"),
        ("photos/live.json", "{}"),
        (f"photos/{MODEL.version}/identity.json", "{"),
        (f"photos/{MODEL.version}/identity.json", '{"format": 1, "model": "m"}'),
        (f"photos/{MODEL.version}/identity.json", '{"format": 99}'),
        (f"photos/{MODEL.version}/shard/edge_config.json", "{"),
    ],
)
def test_a_damaged_store_is_an_error_that_names_the_place(db: Path, file: str, content: str) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    (db / file).write_text(content)
    with pytest.raises(StoreError, match=str(db)), EdgeStore(db) as store:
        store.open("photos")
    with pytest.raises(StoreError, match=str(db)), EdgeStore(db) as store:  # noqa: PT012
        store.open_version("photos", MODEL)
        store.promote("photos", MODEL)


def test_a_store_with_lost_segments_is_an_error_and_not_an_empty_store(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    for file in (db / "photos" / MODEL.version / "shard").rglob("segment.json"):
        file.unlink()
    with (
        pytest.raises(StoreDamaged, match=r"segment\.json is missing"),
        EdgeStore(db) as store,
    ):
        store.open("photos")


def test_a_live_version_that_vanished_is_an_error_that_says_so(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
    (db / "photos" / MODEL.version).rename(db / "elsewhere")
    with EdgeStore(db) as store, pytest.raises(StoreDamaged, match=MODEL.version):
        store.open("photos")


def test_a_full_disk_stops_the_writing_before_it_does_harm(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = locks.LockOwner(os.getpid(), "test", "now")
    path = db / "photos" / MODEL.version
    db.mkdir()
    shard = edge_shard.Shard(path, MODEL, owner=owner, index_from_kb=10_000)
    one, vector, payload = point_of(0)
    shard.upsert([one], vector[None], [payload])
    monkeypatch.setattr(edge_shard, "MIN_FREE_BYTES", 1 << 62)
    for write in (
        lambda: shard.upsert([one], vector[None], [payload]),
        lambda: shard.overwrite_payloads([one], [payload]),
        shard.optimize,
    ):
        with pytest.raises(StoreError, match=r"is full.*Free some space"):
            write()
    assert shard.count(None) == 1
    shard.delete([one])  # this makes room
    assert shard.count(None) == 0
    shard.close()


def test_a_live_json_that_cannot_be_written_stays_the_old_one(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(3))
        store.open_version("photos", OTHER_MODEL).close()
        before = (db / "photos" / "live.json").read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # what writing to a full disk is like
        try:
            with pytest.raises(StoreError, match=r"cannot write .*live\.json"):
                store.promote("photos", OTHER_MODEL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (db / "photos" / "live.json").read_bytes() == before
        assert store.live("photos") == MODEL
        assert not list(db.glob("**/.*.part"))


def test_the_folder_says_what_made_it(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(1))
    identity = json.loads((db / "photos" / MODEL.version / "identity.json").read_text())
    assert identity == {
        "format": 1,
        "model": MODEL.model,
        "fingerprint": MODEL.fingerprint,
        "dim": DIM,
        "engine": identity["engine"],
    }
    assert identity["engine"].startswith("qdrant-edge-py 0.9")


def test_the_program_loads_no_engine_for_an_embedded_store(db: Path) -> None:
    script = """
import sys
from imret.store import open_store, Identity
assert not {"numpy.testing", "qdrant_client", "qdrant_edge", "torch", "grpc"} & set(sys.modules)
with open_store(sys.argv[1]) as store:
    store.open_version("photos", Identity("m", "a" * 64, 8)).count()
print(*sorted({"qdrant_client", "qdrant_edge", "torch", "grpc", "httpx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(db)], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_store_that_is_taken_away_is_unavailable_not_a_mystery(db: Path) -> None:
    with EdgeStore(db) as store:
        shutil.rmtree(db)
        with pytest.raises(StoreUnavailable, match="cannot be read any more: No such file"):
            store.collections()
        with pytest.raises(StoreUnavailable, match="Put it back"):
            store.open("photos")
