"""A store that may only be read, by its mount or as another user's: searched, or refused in words."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imret.errors import StoreError
from imret.store.embedded import locks, read_only
from imret.store.embedded.permissions import obstacle
from imret.store.embedded.shard import Shard
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import MODEL, point_of, store_points

N = 60
OWNER = locks.LockOwner(os.getpid(), "imret search x", "2026-01-31 14:02")
NOBODY = 65534

# Says what each of some lines gives, for a store that is there and may not be written to.
ASK = """
import os, sys; sys.path.insert(0, ".")
from pathlib import Path
from tests.fakes.edge_points import *
db = Path(sys.argv[1])
def ask(line):
    try:
        with EdgeStore(db, create=False, share="if possible") as store:
            print(line, "->", eval(line), flush=True)
    except Exception as error:
        print(line, "->", type(error).__name__, str(error).replace(chr(10), " "), flush=True)
for line in sys.argv[2:]:
    ask(line)
"""
READS = (
    "store.collections()",
    "store.open('photos').count()",
    "[*store.open('photos').get([point_of(7)[0]]).values()][0].payload['width']",
    "[hit.payload['width'] for hit in store.open('photos').search(point_of(5)[1], limit=1)]",
    "store.open('photos').stats().points",
    "sum(map(len, store.open('photos').scan()))",
    "store.document('photos', 'names')",
    "len(store.document_mark('photos', 'names'))",
)
ANSWERS = ("['photos']", str(N), "7", "[5]", str(N), str(N), "b'kept'", "16")
WRITES = (
    "store_points(store, range(60, 61))",
    "store.open('photos').delete([point_of(3)[0]])",
    "store.open('photos').upsert([point_of(99)[0]], point_of(99)[1][None], [point_of(99)[2]])",
    "store.open('photos').optimize()",
    "store.drop('photos')",
    "store.rename('photos', 'other')",
    "store.create_staging('new', MODEL)",
    "store.change_document('photos', 'names', lambda old: b'new')",
    "store.remove_document('photos', 'names')",
)


@pytest.fixture(params=["without an index", "with an index"])
def db(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A store in a folder that every user may enter; with an index its files are of other kinds."""
    root = Path(tempfile.mkdtemp(prefix="imret-test-"))
    root.chmod(0o755)
    indexed = request.param == "with an index"
    with EdgeStore(root / "db", index_from_kb=1 if indexed else 10_000) as store:
        store_points(store, range(N))
        store.change_document("photos", "names", lambda _: b"kept")
        if indexed:
            store.open("photos").optimize()
            assert store.open("photos").stats().indexed == N
    yield root / "db"
    shutil.rmtree(root)


def snapshot(db: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return all that a store's files are: what reads them may change nothing."""
    return {
        str(path.relative_to(db)): (path.stat().st_mtime_ns, path.stat().st_size, path.read_bytes())
        for path in sorted(db.rglob("*"))
        if path.is_file()
    }


def on_a_read_only_mount(db: Path, *lines: str) -> dict[str, str]:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root, to mount a folder so that it may only be read")
    mounted = (
        'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 77; exec "$1" -c "$2" "$0" "${@:3}"'
    )
    return _said(["unshare", "-m", "bash", "-c", mounted, str(db), sys.executable, ASK, *lines])


def bound_by_permissions(db: Path, *lines: str) -> dict[str, str]:
    """Ask as a user whom permissions bind: root without the capabilities by which they do not bind it."""
    command = [sys.executable, "-c", ASK, str(db), *lines]
    if os.getuid() != 0:
        return _said(command)
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, for root to be bound by permissions")
    return _said(["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command])


def give_away(db: Path) -> None:
    """Make a store that of another user."""
    if os.getuid() != 0:
        pytest.skip("needs root, to give files to another user")
    for path in [db, *db.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)


def _said(command: list[str]) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("XDG_RUNTIME_DIR", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode == 77:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return dict(line.split(" -> ", 1) for line in done.stdout.splitlines())


def _left() -> list[Path]:
    return [
        path for path in Path(tempfile.gettempdir()).glob("imret-open-*") if path.stat().st_uid == os.getuid()
    ]


def test_on_a_read_only_mount_all_is_read_and_nothing_written(db: Path) -> None:
    before, left = snapshot(db), _left()
    said = on_a_read_only_mount(db, *READS, *WRITES)
    assert tuple(said[line] for line in READS) == ANSWERS
    for line in WRITES:
        assert said[line].startswith("ProtectedStore cannot write to the collection"), said[line]
        assert "mounted to be read only" in said[line]
        assert "--db" in said[line]
    assert snapshot(db) == before
    assert _left() == left


def test_a_store_that_another_user_made_is_read_by_whom_he_lets(db: Path) -> None:
    give_away(db)
    for path in [db, *db.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = snapshot(db)
    said = bound_by_permissions(db, *READS, *WRITES[:4])
    assert tuple(said[line] for line in READS) == ANSWERS
    for line in WRITES[:4]:
        assert said[line].startswith("ProtectedStore cannot write to the collection 'photos'"), said[line]
        assert "belongs to nobody, has mode 0644, and cannot be written to by root" in said[line]
        assert f"Run imret as nobody, or make the store yours: sudo chown -R root {db}" in said[line]
    assert snapshot(db) == before


@pytest.mark.parametrize(
    ("shut", "mode"),
    [(".", 0o700), ("imret-store.json", 0o600), ("photos", 0o700), ("photos/live.json", 0o600)],
)
def test_a_store_that_another_user_keeps_to_himself_says_which_file_whose_and_what_opens_it(
    db: Path, shut: str, mode: int
) -> None:
    give_away(db)
    (db / shut).chmod(mode)
    said = bound_by_permissions(db, READS[1])[READS[1]]
    kind = "folder" if (db / shut).is_dir() else "file"
    assert f"the {kind} {str(db / shut)!r} belongs to nobody, has mode {mode:04o}" in said
    assert f"sudo chmod -R o+rX {db} (or run imret as nobody)" in said


def test_of_a_folder_above_the_store_no_more_is_opened_than_the_way_through(db: Path) -> None:
    give_away(db)
    os.chown(db.parent, NOBODY, NOBODY)
    db.parent.chmod(0o700)
    said = bound_by_permissions(db, READS[1])[READS[1]]
    assert f"the folder {str(db.parent)!r} belongs to nobody" in said
    assert f"Let others pass: sudo chmod o+x {db.parent}." in said


def test_a_shut_file_of_the_engine_is_named(db: Path) -> None:
    (config,) = db.glob("photos/*/shard/edge_config.json")
    give_away(db)
    config.chmod(0o600)
    said = bound_by_permissions(db, READS[1])[READS[1]]
    assert f"the file {str(config)!r} belongs to nobody" in said


def test_own_files_that_are_protected_are_read_as_well(db: Path) -> None:
    """As `chmod -R a-w` leaves them, or a disc that was copied."""
    for path in [db, *db.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    said = bound_by_permissions(db, *READS, WRITES[0])
    assert tuple(said[line] for line in READS) == ANSWERS
    assert "chmod -R u+rwX" in said[WRITES[0]]
    for path in [db, *db.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)


def test_a_store_without_lock_files_is_read_as_from_a_disc(db: Path) -> None:
    for path in db.rglob("*.lock"):
        path.unlink()
    said = on_a_read_only_mount(db, *READS)
    assert tuple(said[line] for line in READS) == ANSWERS


def test_what_is_lost_is_found_before_it_is_copied(db: Path) -> None:
    next(db.glob("photos/*/shard/segments/*/version.info")).unlink()
    said = on_a_read_only_mount(db, READS[1])[READS[1]]
    assert said.startswith("StoreDamaged")
    assert "version.info is missing" in said


# ---- The copy -------------------------------------------------------------------------------------------


@pytest.fixture
def version(db: Path) -> Path:
    (version,) = (path for path in (db / "photos").iterdir() if path.is_dir())
    return version


def test_the_copy_is_what_is_there_without_its_holes_and_links_what_is_never_written(version: Path) -> None:
    copy = read_only.copy_of(version)
    try:
        for file in (path for path in version.rglob("*") if path.is_file()):
            twin = copy.version / file.relative_to(version)
            assert twin.read_bytes() == file.read_bytes()
            assert twin.is_symlink() == (
                file.name in ("matrix.dat", "quantized.data")
                or file.suffix == ".bin"
                or file.name in ("id_tracker.e2i", "id_tracker.i2e", "id_tracker.is_uuid")
            )
            # No more than the chunk that it lies in takes what is not nothing.
            assert twin.is_symlink() or twin.stat().st_blocks <= file.stat().st_blocks + 2048
    finally:
        copy.cleanup()
    assert not copy.version.exists()


def test_without_room_for_the_copy_it_says_how_much_and_where_to_name_another_place(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_only, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(StoreError, match="TMPDIR=FOLDER") as caught:
        read_only.copy_of(version)
    assert tempfile.gettempdir() in str(caught.value)


def test_a_large_copy_is_told(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = read_only.copy_of(version)
    copy.cleanup()
    assert copy.note == ""
    monkeypatch.setattr(read_only, "LARGE_BYTES", 1)
    copy = read_only.copy_of(version)
    copy.cleanup()
    assert "are copied to" in copy.note


def test_readers_share_a_version_that_writers_have_to_themselves(version: Path) -> None:
    first, second = locks.ReaderLock(version, OWNER), locks.ReaderLock(version, OWNER)
    with pytest.raises(locks.LockedElsewhere):
        locks.VersionLock(version, OWNER)
    first.release()
    second.release()
    writer = locks.VersionLock(version, OWNER)
    with pytest.raises(locks.LockedElsewhere):
        locks.ReaderLock(version, OWNER)
    writer.release()


def test_what_is_open_to_be_read_only_refuses_every_change(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_only, "is_writable", lambda version: False)
    shard = Shard(version, None, owner=OWNER, index_from_kb=10_000)
    id_, vector, payload = point_of(N)
    try:
        assert shard.count(None) == N
        for change in (
            lambda: shard.upsert([id_], vector[None].astype(np.float32), [payload]),
            lambda: shard.overwrite_payloads([point_of(0)[0]], [{"width": 1}]),
            lambda: shard.delete([point_of(0)[0]]),
            lambda: shard.optimize(),
            lambda: shard.resume(MODEL),
        ):
            with pytest.raises(locks.ProtectedStore):
                change()
        shard.flush()
    finally:
        shard.close()
    with EdgeStore(version.parent.parent, create=False) as store:
        assert store.open("photos").count() == N


def test_nothing_is_in_the_way_of_what_can_be_read(version: Path) -> None:
    assert obstacle(version, store=version.parent.parent, write=False) == ""
    assert obstacle(version / "no such file", store=version.parent.parent, write=False) == ""
