"""An embedded store that one program shares: what others can do beside it, and that none harms another."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pytest

from imret import Encoder, ipc, open_store
from imret.errors import DataError, ModelMismatch, StoreError, StoreLocked
from imret.store import Filter, Match, Point, Range
from imret.store.embedded import layout, locks, unix_socket
from imret.store.embedded import worker as edge_worker
from imret.store.embedded.collection import EdgeEngine
from imret.store.embedded.scheduler import RequestScheduler
from imret.store.embedded.store import EdgeStore
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests import ROOT
from tests.fakes.edge_points import MODEL, OTHER_MODEL, point_of, store_points
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

N = 60

# A program that shares a store and does what it is told, a line of Python at a time; it answers each with
# the repr of its value, or with the error.
SHARER = """
import sys; sys.path.insert(0, ".")
from tests.fakes.edge_points import *
from imret.store import open_store
store = open_store(sys.argv[1], create=False, share=True)
photos = store.open("photos")
print(worker_pid(store), flush=True)
for line in sys.stdin:
    try:
        try:
            said = repr(eval(line))
        except SyntaxError:
            said = exec(line)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
    print(said, flush=True)
"""


class Sharing:
    """That program, told what to do from here."""

    def __init__(self, db: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHARER, str(db)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        self.worker = int(self.process.stdout.readline())

    def __call__(self, line: str) -> str:
        self.begin(line)
        return self.answer()

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        for pid in (self.worker, self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.process.returncode is None:
            self.process.communicate()  # closes its stdin, at which it ends
        wait_until(lambda: not is_running(self.worker))


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of this test's own, with a name that is short enough for a socket below it."""
    with tempfile.TemporaryDirectory(prefix="imret-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with N points; in memory where that can be, since a collection waits for the disk a lot."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("stores")
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as folder:
        with EdgeStore(Path(folder) / "filled") as store:
            store_points(store, range(N))
        yield Path(folder) / "filled"


@pytest.fixture
def db(filled: Path) -> Iterator[Path]:
    """A store of this test's own with N points."""
    with tempfile.TemporaryDirectory(dir=filled.parent) as folder:
        shutil.copytree(filled, Path(folder) / "db")
        yield Path(folder) / "db"


@contextmanager
def sharer(db: Path) -> Iterator[Sharing]:
    program = Sharing(db)
    try:
        yield program
    finally:
        program.end()


@pytest.fixture
def sharing(db: Path) -> Iterator[Sharing]:
    with sharer(db) as program:
        yield program


@pytest.fixture
def own(db: Path) -> Iterator[EdgeStore]:
    """A store that this very program shares, with "photos" open."""
    with EdgeStore(db, share=True) as store:
        store.open("photos")
        yield store


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another program of the user's that has this module's names."""
    preamble = "import os, pathlib, signal, sys, time; sys.path.insert(0, '.')\n"
    preamble += "from tests.fakes.edge_points import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def imret(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imret", *arguments], capture_output=True, text=True, cwd=ROOT
    )


def version_of(db: Path) -> Path:
    return db / "photos" / MODEL.version


def note_of(db: Path) -> locks.LockOwner:
    owner = locks.read_owner(version_of(db))
    assert owner is not None
    return owner


def connect(db: Path) -> socket.socket:
    connection = unix_socket.connect(note_of(db).socket)
    assert connection is not None
    return connection


def everything(db: Path) -> list[Any]:
    """Return what a store answers to everything that only reads."""
    only = Filter(must=(Range("width", gte=10),), must_not=(Match("path", ("30.jpg",)),))
    with EdgeStore(db, create=False, lock_timeout_s=0.0) as store, closing(store.open("photos")) as photos:
        return [
            store.collections(),
            (photos.version, photos.identity, photos.count(), photos.count(only)),
            [(p.id, p.payload, p.score) for p in photos.search(point_of(7)[1], limit=9)],
            [(p.id, p.score) for p in photos.search(point_of(7)[1], limit=50, filter=only, exact=True)],
            [(p.id, p.payload) for batch in photos.scan(only, batch_size=7) for p in batch],
            [p.id for batch in photos.scan(start=point_of(40)[0]) for p in batch],
            photos.get([point_of(3)[0]])[point_of(3)[0]].payload,
            photos.facet("path"),
            photos.stats(),
        ]


# ---- Beside a program that shares ----------------------------------------------------------------


def test_what_is_read_beside_a_sharer_is_what_is_read_alone(db: Path) -> None:
    alone = everything(db)
    with sharer(db):
        assert everything(db) == alone
        with EdgeStore(db) as store:
            store.open("photos")
            assert store._worker is None  # it needed none
    assert everything(db) == alone


def test_the_commands_that_read_say_the_same_beside_a_sharer_as_alone(db: Path) -> None:
    commands = (
        ["info"],
        ["collections"],
        ["search", f"id:{point_of(5)[0]}", "--limit", "4"],
    )
    with EdgeStore(db) as store, closing(store.open("photos")) as photos:
        payloads = [{**point_of(i)[2], "source": "/photos", "sha256": f"{i:064x}"} for i in range(N)]
        photos.overwrite_payloads([point_of(i)[0] for i in range(N)], payloads)
    alone = [imret(*command, "--db", str(db)) for command in commands]
    with sharer(db):
        beside = [imret(*command, "--db", str(db)) for command in commands]
    for before, after in zip(alone, beside, strict=True):
        assert (after.returncode, after.stderr) == (0, before.stderr)
        assert after.stdout == before.stdout != ""


def test_what_another_program_stores_the_sharer_finds_at_once(sharing: Sharing, db: Path) -> None:
    with EdgeStore(db) as store:
        photos = store.open_version("photos", MODEL)
        one, vector, payload = point_of(1_000)
        photos.upsert([one], vector[None], [payload])
        assert sharing("photos.search(point_of(1_000)[1], limit=1)[0].payload") == repr(payload)
        photos.overwrite_payloads([one], [{"path": "moved.jpg"}])
        photos.delete([point_of(0)[0]])
        photos.flush()
        photos.optimize()
        with pytest.raises(DataError, match="holds no point"):
            photos.overwrite_payloads([point_of(0)[0]], [{}])
        with pytest.raises(ModelMismatch, match=r"was built with .*0000, 16 dimensions"):
            store.open_version("photos", type(MODEL)("other", MODEL.fingerprint[:16] + "0" * 48, MODEL.dim))
        assert store._worker is None
    assert sharing("photos.get([point_of(1_000)[0]]).popitem()[1].payload") == "{'path': 'moved.jpg'}"
    assert sharing("photos.count()") == str(N)


def test_four_programs_search_beside_a_sharer_at_once(sharing: Sharing, db: Path) -> None:
    searcher = """
with EdgeStore(sys.argv[1], lock_timeout_s=0.0) as store:
    photos = store.open("photos")
    print(flush=True)
    for i in range(int(sys.argv[2]), 60, 4):
        assert photos.search(point_of(i)[1], limit=3)[0].id == point_of(i)[0]
    print(photos.count())
"""
    searchers = [start(searcher, db, begin) for begin in range(4)]
    for _ in range(20):
        assert sharing("photos.count()") == str(N)
    for one in searchers:
        said, complained = one.communicate(timeout=60)
        assert (said.split(), complained) == ([str(N)], "")
    assert sharing("photos.count()") == str(N)


def test_while_another_program_builds_the_index_the_sharer_waits_and_does_not_fail(db: Path) -> None:
    with EdgeStore(db, share=True, index_from_kb=50) as own, EdgeStore(db) as other:
        store_points(own, range(2_000), name="more")  # a new one, which has this threshold for an index
        photos, filling = own.open("more"), other.open_version("more", MODEL)
        building = threading.Thread(target=filling.optimize)
        building.start()
        searches = 0
        while building.is_alive() or searches < 3:
            assert photos.search(point_of(77)[1], limit=1)[0].id == point_of(77)[0]
            searches += 1
        building.join()
        assert (photos.stats().status, photos.stats().points) == ("indexed", 2_000)


def test_what_a_sharer_has_not_open_others_open_themselves(sharing: Sharing, db: Path) -> None:
    with EdgeStore(db, lock_timeout_s=0.0) as store:
        photos = store.open("photos")
        assert store._worker is None
        store_points(store, range(5), name="others")
        others = store.open("others")
        assert store._worker is not None
        assert (photos.count(), others.count()) == (N, 5)
        sharing("store._lock_timeout_s = 0.0")
        assert sharing("store.open('others')").startswith("LockedElsewhere: the collection 'others' in ")
    assert sharing("store.open('others').count()") == "5"


def test_a_second_sharer_goes_through_the_first(sharing: Sharing, db: Path) -> None:
    with EdgeStore(db, share=True, lock_timeout_s=0.0) as second:
        assert second.open("photos").count() == N
        assert second._worker is None


def test_the_store_may_be_spelt_otherwise(sharing: Sharing, db: Path) -> None:
    other = db.with_name("link")
    other.symlink_to(db)
    with EdgeStore(other, lock_timeout_s=0.0) as store:
        assert store.open("photos").count() == N


def test_a_collection_that_is_shared_is_neither_dropped_nor_renamed(sharing: Sharing, db: Path) -> None:
    with EdgeStore(db, lock_timeout_s=0.0) as store:
        reader = store.open("photos")
        for change in (lambda: store.drop("photos"), lambda: store.rename("photos", "pictures")):
            with pytest.raises(StoreLocked) as caught:
                change()
            for part in (
                f"process {sharing.process.pid} (",
                "'photos'",
                str(db),
                "search and fill the collection, but not rename or delete it",
                "Stop it (Ctrl-C where imret serve runs) and run this again",
                "docker compose up qdrant",
            ):
                assert part in str(caught.value)
        assert reader.count() == N
        for change_there in ("store.drop('photos')", "store.rename('photos', 'pictures')"):
            assert sharing(f"photos.close(), {change_there}").startswith(
                "StoreLocked: the collection 'photos'"
            )
            assert sharing(change_there).endswith(
                "is open by another program, through this one; end that first"
            )
        assert reader.count() == N


def test_the_wait_for_a_lock_holds_up_nobody(own: EdgeStore, db: Path) -> None:
    opened: list[int] = []
    with EdgeStore(db) as holder:
        store_points(holder, range(5), name="others")
        others = holder.open("others")
        waiting = threading.Thread(target=lambda: opened.append(own.open("others").count()))
        own._lock_timeout_s = 60.0
        waiting.start()
        with EdgeStore(db, lock_timeout_s=0.0) as client:
            assert client.open("photos").count() == own.open("photos").count() == N
        assert (opened, waiting.is_alive()) == ([], True)
        assert others.count() == 5
    waiting.join(timeout=30)
    assert opened == [5]


# ---- Programs that come to grief -----------------------------------------------------------------


def test_a_killed_program_leaves_nothing_open(own: EdgeStore, db: Path) -> None:
    client = start("p = EdgeStore(sys.argv[1]).open('photos'); print(flush=True); time.sleep(60)", db)
    assert client.stdout is not None
    client.stdout.readline()
    with pytest.raises(StoreLocked, match="through this one"):
        own.drop("photos")
    end(client)
    wait_until(lambda: _can_drop(own))
    assert own.collections() == []


def _can_drop(store: EdgeStore) -> bool:
    try:
        store.drop("photos")
    except StoreLocked:
        return False
    return True


STOPPED = {
    "half way through the length of a message": "c.send(message[:5])",
    "half way through a message": "c.send(message[:-5])",
    "before it takes a large answer": "c.send(message)",
}


@pytest.mark.parametrize("when", STOPPED)
def test_a_program_that_is_stopped_holds_up_nobody(when: str, sharing: Sharing, db: Path) -> None:
    # Far more than what a socket takes before its reader reads.
    sharing("photos.overwrite_payloads([point_of(7)[0]], [{'path': 'x' * 8_000_000}])")
    client = start(
        f"""
from imret import ipc
from imret.store.embedded import locks, unix_socket
version = pathlib.Path(sys.argv[1])
c = unix_socket.connect(locks.read_owner(version).socket)
ipc.send(c, ("open", (version, None)))
handle = ipc.receive(c)[1][0]
message = ipc.pack(("get", (handle, [point_of(7)[0]], True)))
{STOPPED[when]}
os.kill(os.getpid(), signal.SIGSTOP)
""",
        version_of(db),
    )
    wait_until(lambda: _state(client.pid) == "T")
    try:
        for _ in range(3):
            assert sharing("photos.count()") == str(N)
            with EdgeStore(db, lock_timeout_s=0.0) as store:
                assert store.open("photos").search(point_of(7)[1], limit=1)[0].id == point_of(7)[0]
    finally:
        os.kill(client.pid, signal.SIGCONT)
        end(client)
    assert sharing("photos.count()") == str(N)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_what_is_no_request_is_hung_up_on_and_disturbs_nobody(own: EdgeStore, db: Path) -> None:
    for rubbish in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        (7).to_bytes(8, "little") + b"rubbish",
    ):
        with connect(db) as connection:
            connection.settimeout(20)
            connection.sendall(rubbish)
            assert connection.recv(1) == b""
    with connect(db) as connection:  # a request that has no meaning is answered
        connection.settimeout(20)
        ipc.send(connection, ("frobnicate",))
        succeeded, error = ipc.receive(connection)
        assert not succeeded
        assert isinstance(error, StoreError)
    assert own.open("photos").count() == N


def test_a_handle_of_one_program_is_of_no_use_to_another(own: EdgeStore, db: Path) -> None:
    with EdgeStore(db) as first, EdgeStore(db) as second:
        mine, theirs = first.open("photos"), second.open("photos")
        mine_engine, theirs_engine = (cast(EdgeEngine, opened._engine) for opened in (mine, theirs))
        assert mine_engine._opened.handle != theirs_engine._opened.handle
        mine_engine._opened = mine_engine._opened._replace(handle=theirs_engine._opened.handle)
        with pytest.raises(StoreError, match="dropped while it was open"):
            mine.count()
        for operation in ("remove", "drop", "rename"):
            with pytest.raises(StoreError, match=f"does not {operation} for another"):
                theirs_engine._opened.worker.call(operation, db / "photos")
        assert theirs.count() == N


@pytest.mark.parametrize("victims", ["the program", "its worker", "both"])
def test_when_the_sharer_is_killed_the_others_go_on_and_so_does_the_next_command(
    victims: str, db: Path, runtime: Path
) -> None:
    sharing = Sharing(db)
    with EdgeStore(db) as store:
        photos = store.open("photos")
        assert photos.count() == N
        for pid in {
            "the program": [sharing.process.pid],
            "its worker": [sharing.worker],
            "both": [sharing.worker, sharing.process.pid],
        }[victims]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(sharing.worker))
        if victims != "the program":  # whose worker tidied up
            assert stat.S_ISSOCK(os.stat(note_of(db).socket).st_mode)
        assert photos.count() == N  # this program opens it itself
        assert store._worker is not None
    assert everything(db)[1][2] == N
    with EdgeStore(db, share=True) as following:
        following.open("photos")
        # What the killed one left is gone.
        assert [str(path) for path in (runtime / "imret").iterdir()] == [note_of(db).socket]
    assert not list((runtime / "imret").iterdir())
    sharing.process.kill()
    sharing.process.communicate()


def test_a_program_can_end_though_the_sharer_does_not_answer(sharing: Sharing, db: Path) -> None:
    raised: list[StoreError] = []
    store = EdgeStore(db)
    photos = store.open("photos")

    def count() -> None:
        try:
            photos.count()
        except StoreError as error:
            raised.append(error)

    os.kill(sharing.worker, signal.SIGSTOP)
    wait_until(lambda: _state(sharing.worker) == "T")
    waiting = threading.Thread(target=count)
    waiting.start()
    assert waiting.is_alive()
    store.close()
    waiting.join(timeout=20)
    assert not waiting.is_alive()
    assert len(raised) == 1
    os.kill(sharing.worker, signal.SIGCONT)
    assert sharing("photos.count()") == str(N)


# ---- Versions ------------------------------------------------------------------------------------


def test_a_rebuild_beside_a_sharer_switches_under_it_and_its_old_version_goes_when_it_is_done_with(
    sharing: Sharing, db: Path
) -> None:
    with EdgeStore(db) as store:
        with closing(store.open("photos")) as live:
            assert live.count() == N
        building = store.open_version("photos", OTHER_MODEL)
        one, vector, payload = point_of(0)
        building.upsert([one], vector[None], [payload])
        store.promote("photos", OTHER_MODEL)
        assert store.staged_versions("photos") == []
        building.close()
    assert sharing("store.version('photos'), photos.version, photos.count()") == repr(
        (OTHER_MODEL.version, MODEL.version, N)
    )
    assert sharing("exec('new = store.open(\"photos\")'), new.version, new.count()") == repr(
        (None, OTHER_MODEL.version, 1)
    )
    assert sharing("photos.count()") == str(N)
    assert version_of(db).is_dir()
    sharing("photos.close()")
    wait_until(lambda: not version_of(db).with_suffix(".lock").exists())
    left = {path.name for path in (db / "photos").iterdir() if not path.name.startswith(".")}
    assert left == {"live.json", OTHER_MODEL.version, f"{OTHER_MODEL.version}.lock"}
    assert sharing("new.count()") == "1"


def test_a_version_that_was_replaced_goes_with_its_last_reader_at_the_latest(db: Path) -> None:
    with EdgeStore(db) as reader, EdgeStore(db) as writer:
        old = reader.open("photos")
        writer.open_version("photos", OTHER_MODEL).close()
        writer.promote("photos", OTHER_MODEL)
        assert old.count() == N
        reader.close()
        assert not version_of(db).exists()
        assert writer.open("photos").count() == 0


def test_a_version_that_is_live_again_stays_when_it_is_closed(db: Path) -> None:
    with EdgeStore(db) as store:
        old = store.open("photos")
        store.open_version("photos", OTHER_MODEL).close()
        store.promote("photos", OTHER_MODEL)
        store.promote("photos", MODEL)
        old.close()
    assert everything(db)[1][2] == N


def test_a_stopped_switch_of_another_program_does_not_stop_the_sharer(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_worker, "LINGER_S", 0.0)
    worker = edge_worker.Worker(locks.LockOwner(os.getpid(), "test", "now"), 10_000)
    handle, _ = worker.answer("open", (version_of(db), None, False))
    worker.answer("close", (handle,))
    layout.write_versions(db / "photos", layout.Versions("another", (MODEL.version,)))
    with locks.switching(db / "photos"):  # as if stopped here
        for tidy in (worker.close_idle, lambda: worker.answer("remove", (version_of(db),))):
            looking = threading.Thread(target=tidy, daemon=True)
            looking.start()
            looking.join(timeout=20)
            assert not looking.is_alive()
        assert version_of(db).is_dir()
    handle, _ = worker.answer("open", (version_of(db), None, False))  # nothing has happened to it
    assert worker.answer("count", (handle, None)) == N
    worker.answer("close", (handle,))
    worker.close_idle()
    assert not version_of(db).exists()


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    return Encoder(str(folder), device="cpu", precision="fp32")


def test_an_ingest_and_a_rebuild_beside_a_sharer_end_as_they_do_alone(
    db: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    for seed in range(6):
        draw_picture(tmp_path / "photos" / "fungi" / f"{seed}.png", seed=seed)
    sources = [FolderSource(tmp_path / "photos")]
    beside, alone = db.with_name("beside"), db.with_name("alone")
    with open_store(beside) as store:
        ingest(store, sources, encoder=encoder)
    for seed in range(6, 12):
        draw_picture(tmp_path / "photos" / "aves" / f"{seed}.png", seed=seed)
    (tmp_path / "photos" / "fungi" / "0.png").unlink()

    with sharer(beside) as sharing:
        with open_store(beside) as store:
            report = ingest(store, sources, encoder=encoder, prune=True)
            assert (report.added, report.removed, report.unchanged) == (6, 1, 5)
            assert store._worker is None  # type: ignore[attr-defined]  # all went through the sharer
        assert sharing("photos.count(), photos.facet('category')") == "(11, {'aves': 6, 'fungi': 5})"
        with open_store(beside) as store:
            rebuilt = ingest(store, sources, encoder=other_encoder, rebuild=True)
            assert (rebuilt.added, rebuilt.complete) == (11, True)
            assert sharing("photos.count(), store.version('photos') == photos.version") == "(11, False)"
        assert sharing("exec('photos.close(); photos = store.open(\"photos\")', globals())") == "None"
        assert sharing("photos.count(), store.version('photos') == photos.version") == "(11, True)"
        wait_until(lambda: len(layout.version_folders(beside / "photos")) == 1)
        there = _contents(beside)
    with open_store(alone) as store:
        ingest(store, sources, encoder=other_encoder)
    expected = _contents(alone)
    assert [(p.id, p.payload) for p in there] == [(p.id, p.payload) for p in expected]
    for found, same in zip(there, expected, strict=True):
        np.testing.assert_allclose(found.vector, same.vector, atol=1e-6)  # type: ignore[arg-type]


def _contents(db: Path) -> list[Point]:
    with open_store(db, create=False) as store:
        return [point for batch in store.open("photos").scan(vectors=True) for point in batch]


# ---- The socket ----------------------------------------------------------------------------------


def test_the_socket_is_this_users_alone(own: EdgeStore, db: Path, runtime: Path) -> None:
    note = note_of(db)
    assert Path(note.socket).parent == runtime / "imret"
    assert stat.S_IMODE(os.stat(runtime / "imret").st_mode) == 0o700
    assert stat.S_ISSOCK(os.stat(note.socket).st_mode)
    assert (note.pid, note.sharing) == (os.getpid(), layout.SHARING)
    own.close()
    assert list((runtime / "imret").iterdir()) == []


def test_a_folder_for_sockets_that_others_can_enter_is_refused(db: Path, runtime: Path) -> None:
    (runtime / "imret").mkdir()
    (runtime / "imret").chmod(0o755)
    with pytest.raises(StoreError, match=rf"open to other users \(mode 755\).*chmod 700 {runtime}/imret"):
        EdgeStore(db, share=True)
    EdgeStore(db).close()  # who does not share does not care
    (runtime / "imret").rmdir()
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "imret").symlink_to(runtime / "elsewhere")
    with pytest.raises(StoreError, match="is no folder"):
        EdgeStore(db, share=True)
    (runtime / "imret").unlink()
    (runtime / "imret").write_text("")
    with pytest.raises(StoreError, match=r"cannot make the folder .*Set XDG_RUNTIME_DIR"):
        EdgeStore(db, share=True)


def test_a_folder_for_sockets_that_somebody_else_owns_is_refused(
    db: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    me = os.getuid()
    with tempfile.TemporaryDirectory(prefix="imret-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        monkeypatch.setattr(tempfile, "tempdir", folder)
        Path(folder, f"imret-{me + 1}").mkdir(mode=0o700)  # as made by the user me for the user me + 1
        with monkeypatch.context() as as_another:
            as_another.setattr(os, "geteuid", lambda: me + 1)
            with pytest.raises(StoreError, match=f"belongs to the user {me}. Remove it, or set XDG"):
                EdgeStore(db, share=True)


def test_where_there_is_no_runtime_folder_of_ones_own_the_temporary_one_does(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = f"imret-{os.getuid()}"
    with tempfile.TemporaryDirectory(prefix="imret-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        for runtime in ("", "relative", "/nowhere", f"{folder}/file"):
            monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
            assert unix_socket.private_folder() == Path(folder, mine)
        with EdgeStore(db, share=True) as store:
            store.open("photos")
            assert Path(note_of(db).socket).parent == Path(folder, mine)
            assert everything(db)[1][2] == N
        long = Path(folder, "x" * 90)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        assert unix_socket.private_folder() == Path("/tmp", mine)


def test_somebody_else_at_the_other_end_is_hung_up_on(
    own: EdgeStore, db: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    listener = unix_socket.Listener(runtime / "imret")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(listener.path))
        with monkeypatch.context() as as_another:
            as_another.setattr(os, "geteuid", lambda: me + 1)
            assert listener.accept() is None
        assert client.recv(1) == b""
    listener.close()
    # And who connects does not talk to another user's process, though its folder looked private.
    monkeypatch.setattr(unix_socket, "check_private", lambda folder: None)
    with monkeypatch.context() as as_another:
        as_another.setattr(os, "geteuid", lambda: me + 1)
        assert unix_socket.connect(note_of(db).socket) is None
    assert everything(db)[1][2] == N


def test_a_foreign_file_at_the_sockets_path_is_neither_spoken_to_nor_removed(
    sharing: Sharing, db: Path
) -> None:
    path = Path(note_of(db).socket)
    path.unlink()
    path.write_text("mine")
    with EdgeStore(db, lock_timeout_s=0.0) as store, pytest.raises(StoreLocked, match="Stop it"):
        store.open("photos")
    sharing.end()
    assert path.read_text() == "mine"
    with EdgeStore(db, share=True) as store:
        store.open("photos")
        assert path.read_text() == "mine"


def test_the_note_of_a_killed_sharer_may_name_what_is_now_another_file(db: Path) -> None:
    sharing = Sharing(db)
    os.kill(sharing.worker, signal.SIGKILL)
    sharing.process.communicate()
    path = Path(note_of(db).socket)
    path.unlink()
    path.write_text("mine")
    assert everything(db)[1][2] == N
    assert path.read_text() == "mine"


def test_notes_of_older_and_newer_versions_are_read(db: Path) -> None:
    lock = version_of(db).with_name(f"{MODEL.version}.lock")
    old = {"pid": 4711, "command": "imret search x", "since": "2026-01-31 14:02"}
    lock.write_text(json.dumps(old))
    assert locks.read_owner(version_of(db)) == locks.LockOwner(**old)  # type: ignore[arg-type]
    lock.write_text(json.dumps({**old, "socket": "/s", "sharing": 99, "mood": "fine"}))
    assert locks.read_owner(version_of(db)) == locks.LockOwner(
        4711, "imret search x", "2026-01-31 14:02", "/s", 99
    )
    for nothing in ("", "{", "[]", '"x"', '{"pid": 1}'):
        lock.write_text(nothing)
        assert locks.read_owner(version_of(db)) is None
    assert everything(db)[1][2] == N


def test_a_sharer_that_speaks_another_way_is_not_spoken_to(
    own: EdgeStore, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SHARING", layout.SHARING + 1)
    with (
        EdgeStore(db, lock_timeout_s=0.0) as store,
        pytest.raises(StoreLocked, match="opened the store twice"),
    ):
        store.open("photos")


# ---- Scheduling ---------------------------------------------------------------------------------------


Scheduling: TypeAlias = tuple[RequestScheduler, socket.socket, Callable[[], socket.socket]]


@pytest.fixture
def scheduling(runtime: Path) -> Iterator[Scheduling]:
    """A scheduler, the own program's end of its connection, and what connects another program."""
    listener = unix_socket.Listener(unix_socket.private_folder())
    own_end, theirs = socket.socketpair()
    scheduler = RequestScheduler(theirs, listener)
    yield scheduler, own_end, lambda: _connect(listener)
    scheduler.close()
    for end in (own_end, theirs):
        end.close()


def _connect(listener: unix_socket.Listener) -> socket.socket:
    connection = unix_socket.connect(str(listener.path))
    assert connection is not None
    return connection


def test_the_own_program_has_every_second_turn_and_the_others_theirs_in_order(
    scheduling: Scheduling,
) -> None:
    scheduler, own_end, connect_one = scheduling
    clients = [connect_one() for _ in range(3)]
    assert scheduler.next(0) is None  # they are taken in, one after the other
    wait_until(lambda: scheduler.next(0) is None and len(scheduler._others) == 3)
    for number, client in enumerate(clients):
        for request in (f"{number} first", f"{number} second"):
            ipc.send(client, request)
    ipc.send(own_end, "own")
    ipc.send(own_end, "own again")
    order: list[str] = []
    while (program := scheduler.next(0)) is not None:
        order.append(program.request)
        scheduler.answer(program, None)
    assert order[::2][:2] == ["own", "own again"] or order[1::2][:2] == ["own", "own again"]
    others = [one for one in order if not one.startswith("own")]
    assert [one.split()[1] for one in others] == ["first"] * 3 + ["second"] * 3
    assert len(set(others)) == 6
    for client in clients:
        client.close()
    assert not scheduler.ended


def test_more_programs_than_may_be_connected_wait_for_their_turn(
    scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.store.embedded.scheduler.MAX_PEERS", 2)
    scheduler, _, connect_one = scheduling
    clients = [connect_one() for _ in range(3)]
    for client in clients:
        ipc.send(client, "request")
    for left in (2, 1, 0):
        asking = (scheduler.next(1.0) for _ in range(20))
        program = next(one for one in asking if one is not None)
        scheduler.answer(program, "answer")
        answered = _readable(clients)
        answered.recv(1_000)
        answered.close()
        clients.remove(answered)
        assert len(clients) == left
    wait_until(lambda: scheduler.next(0) is None and not scheduler._others)


def _readable(clients: list[socket.socket]) -> socket.socket:
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ, client)
        ((key, _),) = selector.select(20)
    found = key.data
    assert isinstance(found, socket.socket)
    return found
