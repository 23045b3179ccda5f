"""Programs that go on when another ends through which they used the store, and many that start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from imret.errors import ChangedMeanwhile, DataError, StoreDamaged, StoreError, StoreLocked, StoreUnavailable
from imret.store import Collection, Filter, Match
from imret.store.embedded import layout, locks, unix_socket
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import MODEL, OTHER_MODEL, point_of, store_points, worker_pid
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.store.embedded.test_sharing import (
    N,
    Sharing,
    db,
    filled,
    runtime,
    start,
    version_of,
)

__all__ = ["db", "filled", "runtime"]  # fixtures

NEW, NEW_VECTOR, NEW_PAYLOAD = point_of(1_000)
FEW = Filter(must=(Match("path", ("5.jpg", "6.jpg")),))

# Everything that can be asked of a collection; none of it changes what the next finds.
REQUESTS: dict[str, Callable[[Collection], Any]] = {
    "upsert": lambda c: c.upsert([point_of(5)[0]], point_of(5)[1][None], [point_of(5)[2]]),
    "overwrite_payloads": lambda c: c.overwrite_payloads([point_of(5)[0]], [point_of(5)[2]]),
    "get": lambda c: list(c.get([point_of(5)[0], point_of(9_999)[0]])),
    "scan": lambda c: [p.id for batch in c.scan(batch_size=7, start=point_of(40)[0]) for p in batch],
    "inspect": lambda c: [p.id for batch in c.inspect(batch_size=7) for p in batch],
    "delete": lambda c: c.delete([point_of(9_999)[0]]),
    "search": lambda c: [p.id for p in c.search(point_of(7)[1], limit=3)],
    "count": lambda c: c.count(FEW),
    "facet": lambda c: c.facet("path", FEW),
    "flush": lambda c: c.flush(),
    "needs_optimize": lambda c: c.needs_optimize(),
    "optimize": lambda c: c.optimize(),
    "stats": lambda c: c.stats().points,
}


def end_normally(sharing: Sharing) -> None:
    sharing.process.communicate(timeout=20)


def kill(sharing: Sharing) -> None:
    for pid in (sharing.worker, sharing.process.pid):
        os.kill(pid, signal.SIGKILL)
    sharing.process.communicate(timeout=20)


def stored(db: Path) -> list[Any]:
    """Return all points of a store, with their vectors."""
    with EdgeStore(db, create=False) as store:
        points = [p for batch in store.open("photos").scan(vectors=True) for p in batch]
    return [(p.id, p.payload, np.round(cast(Any, p.vector), 5).tolist()) for p in points]


def test_whatever_is_asked_after_the_owner_has_ended_is_answered(db: Path) -> None:
    before = stored(db)
    for name, ask in REQUESTS.items():
        sharing = Sharing(db)
        with EdgeStore(db) as store:
            photos = store.open("photos")
            expected = ask(photos)
            assert store._worker is None
            end_normally(sharing)
            assert ask(photos) == expected, name
            assert store._worker is not None
    assert stored(db) == before


def test_what_was_asked_when_the_owner_was_killed_is_asked_again(db: Path) -> None:
    before = stored(db)
    for name, ask in REQUESTS.items():
        sharing = Sharing(db)
        with EdgeStore(db) as store:
            photos = store.open("photos")
            expected = ask(photos)
            os.kill(sharing.worker, signal.SIGSTOP)  # so that the request lies there, unanswered
            answers: list[Any] = []
            asking = threading.Thread(target=_append_answer, args=(answers, ask, photos))
            asking.start()
            time.sleep(0.05)
            kill(sharing)
            asking.join(30)
            assert answers == [expected], name
    assert stored(db) == before


def _append_answer(answers: list[Any], ask: Callable[[Collection], Any], photos: Collection) -> None:
    answers.append(ask(photos))


def test_what_is_done_twice_is_done_once(db: Path) -> None:
    # A request may have been carried out by an owner that died before it could say so.
    changes: list[Callable[[Collection], Any]] = [
        lambda c: c.upsert([NEW], NEW_VECTOR[None], [NEW_PAYLOAD]),
        lambda c: c.overwrite_payloads([point_of(3)[0]], [{"path": "moved.jpg"}]),
        lambda c: c.delete([point_of(4)[0]]),
    ]
    for change in changes:
        with EdgeStore(db) as store:
            change(store.open("photos"))
        once = stored(db)
        with EdgeStore(db) as store:
            change(store.open("photos"))
        assert stored(db) == once


def test_what_was_acknowledged_and_not_flushed_is_there_after_the_owner_was_killed(db: Path) -> None:
    sharing = Sharing(db)
    with EdgeStore(db) as store:
        photos = store.open_version("photos", MODEL)
        photos.upsert([NEW], NEW_VECTOR[None], [NEW_PAYLOAD])
        photos.delete([point_of(0)[0]])
        kill(sharing)
        assert photos.get([NEW, point_of(0)[0]])[NEW].payload == NEW_PAYLOAD
        assert photos.count() == N
        photos.flush()
    assert [row[0] for row in stored(db)] == [*(point_of(i)[0] for i in range(1, N)), NEW]


def test_many_threads_of_one_program_go_on_through_one_worker(db: Path) -> None:
    sharing = Sharing(db)
    found: list[bool] = []
    with EdgeStore(db) as store:
        photos = store.open("photos")

        def search(begin: int) -> None:
            for i in range(begin, N, 8):
                found.append(photos.search(point_of(i)[1], limit=1)[0].id == point_of(i)[0])
                time.sleep(0.02)

        threads = [threading.Thread(target=search, args=(begin,)) for begin in range(8)]
        for thread in threads:
            thread.start()
        kill(sharing)
        for thread in threads:
            thread.join(60)
    assert found == [True] * N


@pytest.mark.parametrize("remade", [False, True])
def test_a_collection_that_was_dropped_meanwhile_is_not_written_to(remade: bool, db: Path) -> None:
    sharing = Sharing(db)
    with EdgeStore(db) as store, EdgeStore(db) as other:
        photos = store.open_version("photos", MODEL)
        end_normally(sharing)
        other.drop("photos")
        if remade:
            store_points(other, range(3))
            other.close()
        with pytest.raises((StoreError, DataError), match=r"dropped by another program|any more"):
            photos.upsert([NEW], NEW_VECTOR[None], [NEW_PAYLOAD])
        photos.close()
        if remade:
            with EdgeStore(db) as again:
                assert sorted(again.open("photos").get([NEW, point_of(0)[0]])) == [point_of(0)[0]]


def test_a_version_that_was_replaced_meanwhile_is_not_written_to(db: Path) -> None:
    sharing = Sharing(db)
    with EdgeStore(db) as store, EdgeStore(db) as other, EdgeStore(db, share=True) as reader:
        read = reader.open("photos")
        photos = store.open_version("photos", MODEL)
        end_normally(sharing)
        assert read.count() == N  # has it open from now on, so that it stays
        other.open_version("photos", OTHER_MODEL).close()
        other.promote("photos", OTHER_MODEL)
        with pytest.raises(ChangedMeanwhile, match="another program has changed the collection 'photos'"):
            photos.upsert([NEW], NEW_VECTOR[None], [NEW_PAYLOAD])
        assert read.count() == N
        photos.close()


def test_a_program_that_does_not_share_is_waited_for_and_then_named(db: Path) -> None:
    sharing = Sharing(db)
    with EdgeStore(db, lock_timeout_s=0.3) as store, EdgeStore(db) as holder:
        photos = store.open("photos")
        end_normally(sharing)
        held = holder.open("photos")
        assert held.count() == N
        with pytest.raises(StoreLocked, match="opened the store twice"):
            photos.count()
        holder.close()
        assert photos.count() == N


def test_a_handle_is_closed_though_its_owner_is_busy(db: Path) -> None:
    sharing = Sharing(db)
    with EdgeStore(db) as store:
        photos = store.open("photos")
        os.kill(sharing.worker, signal.SIGSTOP)
        began = time.monotonic()
        photos.close()
    assert time.monotonic() - began < 3
    sharing.end()


CHAIN = """
mine, ends_after = int(sys.argv[2]), float(sys.argv[3])
with EdgeStore(sys.argv[1], share=True) as store:
    photos = store.open_version("photos", MODEL)
    until = time.monotonic() + ends_after
    i = mine
    while time.monotonic() < until:
        one, vector, payload = point_of(i)
        photos.upsert([one], vector[None], [payload])
        assert photos.get([one])[one].payload == payload
        if i % 50 == 7:
            photos.flush()
        i += 10
print((i - mine) // 10)
"""


@pytest.mark.parametrize("with_kills", [False, True])
def test_of_programs_that_end_one_after_the_other_each_stores_all_of_its_own(
    with_kills: bool, db: Path
) -> None:
    programs = [start(CHAIN, db, 10_000 + k, 1.0 + k) for k in range(4)]
    if with_kills:
        time.sleep(2.5)
        kill_worker(db)
    expected = {point_of(i)[0] for i in range(N)}
    ended_well = 0
    for k, program in enumerate(programs):
        said, complained = program.communicate(timeout=60)
        if with_kills and program.returncode:  # the one whose own worker it was
            assert "was killed by SIGKILL" in complained
            continue
        assert (program.returncode, complained) == (0, "")
        ended_well += 1
        expected |= {point_of(10_000 + k + 10 * i)[0] for i in range(int(said))}
    assert ended_well >= (3 if with_kills else 4)
    assert expected <= {row[0] for row in stored(db)}


def kill_worker(db: Path) -> None:
    """Kill the worker of whoever owns the version; between two owners there is none for a moment."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        owner = locks.read_owner(version_of(db))
        connection = unix_socket.connect(owner.socket) if owner is not None else None
        if connection is not None:
            with connection:
                pid = peer_pid(connection)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.01)
    raise AssertionError("no program shared the store")


def peer_pid(connection: Any) -> int:
    import socket
    import struct

    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


# ---- Many at once --------------------------------------------------------------------------------


def test_twenty_four_searches_at_once_are_all_answered_and_each_ends_when_it_has_its_answer(
    db: Path,
) -> None:
    search = """
with EdgeStore(sys.argv[1], create=False, share="if possible") as store:
    photos = store.open("photos")
    time.sleep(0.5)  # as if it encoded a text
    for i in range(int(sys.argv[2]), 60, 24):
        assert photos.search(point_of(i)[1], limit=3)[0].id == point_of(i)[0]
"""
    searches = [start(search, db, begin) for begin in range(24)]
    for one in searches:
        assert one.communicate(timeout=120)[1] == ""
        assert one.returncode == 0


def test_of_programs_that_start_at_once_one_starts_a_worker(db: Path) -> None:
    opener = """
with EdgeStore(sys.argv[1], create=False, share=True) as store:
    photos = store.open("photos")
    print(store._worker is not None, flush=True)
    sys.stdin.readline()
"""
    preamble = "import sys; sys.path.insert(0, '.')\nfrom tests.fakes.edge_points import *\n"
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", preamble + opener, str(db)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(8)
    ]
    workers = [cast(Any, program.stdout).readline().strip() for program in programs]
    for program in programs:
        program.communicate("\n", timeout=60)
    assert sorted(workers) == ["False"] * 7 + ["True"]


def test_who_cannot_share_searches_alone(db: Path, runtime: Path) -> None:
    (runtime / "imret").mkdir()
    (runtime / "imret").chmod(0o755)
    with EdgeStore(db, share="if possible") as store:
        assert store.open("photos").count() == N
        note = locks.read_owner(version_of(db))
        assert note is not None
        assert (note.pid, note.socket) == (os.getpid(), "")


def test_the_turn_to_open_a_collection_is_one_programs_at_a_time(tmp_path: Path) -> None:
    with locks.Turn(tmp_path) as first, locks.Turn(tmp_path) as second:
        assert first.take()
        assert first.take()
        assert not second.take()
        with locks.Turn(tmp_path / "to come") as third:
            assert third.take()
    with locks.Turn(tmp_path) as again:
        assert again.take()


def test_a_program_that_is_stopped_in_its_turn_holds_nobody_up_for_long(db: Path) -> None:
    with locks.Turn(db / "photos") as stopped, EdgeStore(db, lock_timeout_s=0.2) as store:
        assert stopped.take()
        assert store.open("photos").count() == N


# ---- Ingests -------------------------------------------------------------------------------------


def test_an_ingest_goes_on_when_the_first_ends_whose_store_it_shared(tmp_path: Path, runtime: Path) -> None:
    model = write_random_model(tmp_path / "model", seed=0)
    for folder, pictures in (("a", 8), ("b", 40)):
        for seed in range(pictures):
            draw_picture(tmp_path / folder / "fungi" / f"{seed}.png", seed=seed)
    db = tmp_path / "db"
    command = [sys.executable, "-m", "imret", "ingest", "--db", str(db), "--model", str(model)]
    ingests = [
        subprocess.Popen(
            [*command, "--batch-size", "1", "--workers", "1", str(tmp_path / folder)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for folder in ("a", "b")
    ]
    for ingest in ingests:
        assert "Error" not in ingest.communicate(timeout=120)[1]
        assert ingest.returncode == 0
    with EdgeStore(db, create=False) as store:
        photos = store.open("photos")
        assert photos.facet("source") == {str(tmp_path / "b"): 40, str(tmp_path / "a"): 8}
        assert layout.version_folders(db / "photos") == [db / "photos" / photos.version]


def test_all_collections_of_a_worker_that_died_go_on_and_only_who_asked_it_then_is_told(db: Path) -> None:
    with EdgeStore(db) as store:
        for name in ("a", "b"):
            store_points(store, range(5), name=name)
        with closing(store.open("a")) as a, closing(store.open("b")) as b:
            assert (a.count(), b.count()) == (5, 5)
            os.kill(worker_pid(store), signal.SIGKILL)
            with pytest.raises(StoreUnavailable, match="was killed by SIGKILL"):
                a.count()
            assert (b.count(), a.count()) == (5, 5)


def test_what_the_engine_refuses_is_no_damage(db: Path) -> None:
    with EdgeStore(db) as store:
        store_points(store, range(5))
        with closing(store.open("photos")) as opened:
            before = opened.count()
            with pytest.raises(StoreError) as raised:
                opened._engine.facet("unheard_of", None)  # has no index for that
            assert not isinstance(raised.value, StoreDamaged)
            assert "delete" not in str(raised.value)
            assert opened.count() == before
