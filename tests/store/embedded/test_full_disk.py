"""A disk without a free byte, and one that takes none: searched, listed and relieved, or refused in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as qe

from imret.errors import StoreError
from imret.store.embedded import full_disk, layout, locks
from imret.store.embedded.shard import Shard
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import MODEL, point_of, store_points

N = 60
OWNER = locks.LockOwner(os.getpid(), "imret search x", "2026-01-31 14:02")

# Run where {disk} is mounted in a namespace of its own: says what each of some lines gives on a full disk.
ON_A_FULL_DISK = """
import os, sys; sys.path.insert(0, ".")
from pathlib import Path
from tests.fakes.edge_points import *
disk = Path(sys.argv[1])
with EdgeStore(disk / "db") as store:
    store_points(store, range(60))
    store_points(store, range(60), name="more")
os.environ.update(TMPDIR=str(disk), XDG_RUNTIME_DIR=str(disk))

def fill(number):
    with open(disk / f"fill{number}", "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16 if number == 0 else 512)):
                pass
        except OSError:
            return file.tell() > 0

number = 0
while fill(number):
    number += 1
state = os.statvfs(disk)
print("free", state.f_bavail)

def ask(line):
    try:
        with EdgeStore(disk / "db", create=False, share="if possible") as store:
            print(line, "->", eval(line))
    except Exception as error:
        print(line, "->", type(error).__name__, str(error).splitlines()[0])

for line in sys.argv[2:]:
    ask(line)
print("more free", os.statvfs(disk).f_bfree > state.f_bfree)
"""


def on_full_disk(tmp_path: Path, *lines: str) -> dict[str, str]:
    """Return what lines of Python answer on a disk that is full."""
    if os.getuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root, to mount a small disk of its own")
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, 260 << 20)
    disk.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    mounted = 'mount -o loop "$0" "$1" || exit 77; exec "$2" -c "$3" "$1" "${@:4}"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", mounted, image, disk, sys.executable, ON_A_FULL_DISK, *lines],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode == 77:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return dict(line.partition(" -> ")[::2] for line in done.stdout.splitlines())


def test_on_a_full_disk_all_is_read_nothing_is_written_and_what_is_deleted_is_free(tmp_path: Path) -> None:
    reads = {
        "store.collections()": "['more', 'photos']",
        "store.open('photos').count()": str(N),
        "store.open('photos').search(point_of(7)[1], limit=1)[0].payload": "{'path': '7.jpg', 'width': 7}",
        "len(store.open('photos').facet('path'))": str(N),
        "sum(len(b) for b in store.open('more').scan(vectors=True))": str(N),
        "store.open('photos').stats().points": str(N),
    }
    writes = (
        "store.open('photos').upsert([point_of(1)[0]], point_of(1)[1][None], [{}])",
        "store.open('photos').optimize()",
        "store.create_staging('photos', MODEL)",
    )
    changes = {
        "store.rename('photos', 'pictures')": "None",
        "store.open('pictures').count()": str(N),
        "store.drop('more')": "None",
        "store.collections() ": "['pictures']",
    }
    said = on_full_disk(tmp_path, *reads, *writes, *changes)
    assert "free 0" in said
    for line, answer in {**reads, **changes}.items():
        assert said[line] == answer, line
    for line in writes:
        assert said[line].startswith("StoreError"), said[line]
        assert "No space left" in said[line] or "is full: 0 MB are left" in said[line]
    assert "more free True" in said


@pytest.fixture
def version(tmp_path: Path) -> Path:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(N))
    return tmp_path / "db" / "photos" / MODEL.version


def test_a_shard_whose_disk_has_no_room_for_its_configuration_is_opened_through_a_stand_in(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    (runtime / f"imret-open-{2**30}-left").mkdir(parents=True)  # by a process that was killed
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    load = qe.EdgeShard.load

    class FullDisk:
        @staticmethod
        def load(path: str) -> Any:
            if Path(path).is_relative_to(version):
                raise Exception("Failed to save structure on disk: No space left on device (os error 28)")
            return load(path)

    monkeypatch.setattr("imret.store.embedded.shard.qe.EdgeShard", FullDisk)
    before = (version / "shard" / full_disk.CONFIG).read_bytes()
    for end in ("close", "end"):
        shard = Shard(version, None, owner=OWNER, index_from_kb=10_000)
        (stand_in,) = runtime.iterdir()
        assert stand_in.name.startswith(f"imret-open-{os.getpid()}-")
        assert shard.count(None) == N
        assert shard.search(point_of(7)[1], 1, None, False)[0][0] == point_of(7)[0]
        getattr(shard, end)()
        assert not list(runtime.iterdir())
        if end == "end":  # which leaves it to the process to end
            shard.close()
    assert (version / "shard" / full_disk.CONFIG).read_bytes() == before
    with pytest.MonkeyPatch.context() as nowhere:
        nowhere.setattr(full_disk, "stand_in", lambda shard: None)
        with pytest.raises(StoreError, match=r"is full: 0 MB are left.*Free some space"):
            Shard(version, None, owner=OWNER, index_from_kb=10_000)


def test_a_note_is_written_where_the_last_one_was(version: Path) -> None:
    path = version.with_name(version.name + ".lock")
    size = path.stat().st_size
    assert size >= 2_048
    assert locks.read_owner(version) is None
    long = locks.LockOwner(1, "imret " + "ü" * 190, "2026-01-31 14:02", "/s" * 50, layout.SHARING)
    for owner in (OWNER, long, OWNER):
        lock = locks.VersionLock(version, owner)
        assert locks.read_owner(version) == owner
        assert path.stat().st_size == size
        lock.release()
        assert locks.read_owner(version) is None
        assert path.stat().st_size == size


def test_a_store_that_is_protected_from_writing_is_refused_in_words(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def protected(path: Any, flags: int, *more: Any) -> int:
        raise PermissionError(13, os.strerror(13), path)

    monkeypatch.setattr(locks.os, "open", protected)  # root may write everywhere
    with pytest.raises(StoreError, match=r"'photos' in .*: Permission denied\.\n.* copy the folder"):
        locks.VersionLock(version, OWNER)


def test_when_one_collection_brings_its_process_down_the_next_is_opened_all_the_same(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(N))
        photos = store.open("photos")
        assert store._worker is not None
        store._worker._process.kill()
        with pytest.raises(StoreError, match="was killed by SIGKILL"):
            photos.count()
        assert store.open("photos").count() == N
