"""Commands that are stopped: at once, with one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import MODEL, point_of, store_points
from tests.fakes.pictures import draw_picture

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "photos"
    for seed in range(60):
        draw_picture(folder / "fungi" / f"{seed}.png", seed=seed)
    return folder


class Command:
    """A command that runs, in a session of its own."""

    def __init__(self, *arguments: str | Path, temporary: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imret", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # Before, it is Python that starts, and nothing of imret's runs.
        while not _heeds(self.process.pid) and self.process.poll() is None:
            time.sleep(0.001)

    def workers(self) -> list[int]:
        with suppress(OSError):
            return [
                int(pid)
                for task in Path(f"/proc/{self.process.pid}/task").iterdir()
                for pid in (task / "children").read_text().split()
            ]
        return []

    def stop(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self) -> str:
        """Return what it said on stderr."""
        return self.process.communicate(timeout=60)[1]


def _heeds(pid: int) -> bool:
    with suppress(OSError, AttributeError):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)  # type: ignore[index]
    return False


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose index takes seconds."""
    db = tmp_path_factory.mktemp("large") / "db"
    with EdgeStore(db, index_from_kb=50) as store:
        for begin in range(0, 24_000, 4_000):
            store_points(store, range(begin, begin + 4_000))
            numbers = range(begin, begin + 4_000)
            payloads = [{**point_of(i)[2], "source": "/photos", "sha256": f"{i:064x}"} for i in numbers]
            store.open("photos").overwrite_payloads([point_of(i)[0] for i in numbers], payloads)
    return db


@pytest.mark.parametrize("number", CODES)
def test_a_command_that_is_stopped_says_so_and_its_exit_code_says_by_what(
    number: signal.Signals, pictures: Path, random_model: Path, tmp_path: Path
) -> None:
    command = Command(
        *("ingest", pictures, "--db", tmp_path / "db", "--model", random_model), temporary=tmp_path
    )
    assert command.process.stderr is not None
    assert command.process.stderr.readline().startswith("found 60 pictures in 1 category: ")
    assert command.process.stderr.readline().startswith("note: all 60 pictures are of one category")
    assert command.process.stderr.readline().startswith("model ")
    command.stop(number)
    said = command.end()
    assert said.lstrip().splitlines()[-1] == "Stopped. Run the same command again to continue."
    assert command.process.returncode == CODES[number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_optimize_ends_when_it_is_stopped_and_says_that_the_index_is_not_built(
    number: signal.Signals, large: Path, tmp_path: Path
) -> None:
    command = Command("collections", "optimize", "photos", "--db", large, temporary=tmp_path)
    assert command.process.stderr is not None
    assert command.process.stderr.readline().endswith("building the index ...\n")
    wait_for_index(large)
    workers = command.workers()
    assert workers
    began = time.monotonic()
    command.stop(number)
    said = command.end()
    assert time.monotonic() - began < 3
    assert command.process.returncode == CODES[number]
    assert said.strip() == (
        "Stopped. The index of 'photos' is not built; its pictures are safe, and are found by comparing one "
        f"by one. Build it: imret collections optimize photos --db {large}"
    )
    wait_until_gone(workers)
    with EdgeStore(large, create=False) as store:
        assert store.open("photos").count() == 24_000


def wait_for_index(db: Path) -> None:
    deadline = time.monotonic() + 30
    while not (db / "photos" / MODEL.version / "optimizing").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)


def test_who_shares_the_worker_goes_on_when_its_owner_is_stopped_while_it_builds_the_index(
    large: Path, tmp_path: Path
) -> None:
    command = Command("collections", "optimize", "photos", "--db", large, temporary=tmp_path)
    wait_for_index(large)
    with EdgeStore(large, create=False, share="if possible") as store:
        command.stop(signal.SIGINT)
        assert store.open("photos").count() == 24_000
    command.end()
    assert command.process.returncode == 130


SPANS_S = {"search": 1.5, "ingest": 6.0, "serve": 5.0, "optimize": 2.0}


@pytest.mark.parametrize(
    ("what", "moments"),
    [
        ("search", 8),
        ("ingest", 6),
        ("serve", 5),
        ("optimize", 4),
        *(pytest.param(what, 40, marks=pytest.mark.slow) for what in SPANS_S),
    ],
)
def test_two_signals_at_any_moments_print_no_traceback_and_leave_nothing(
    what: str, moments: int, large: Path, pictures: Path, random_model: Path, tmp_path: Path
) -> None:
    arguments = {
        "search": ("search", "id:00000000-0000-0000-0000-000000000005", "--db", large),
        "ingest": ("ingest", pictures, "--model", random_model, "--batch-size", "2"),
        "serve": ("serve", "--port", "0", "--db", tmp_path / "served"),
        "optimize": ("collections", "optimize", "photos", "--db", large),
    }[what]
    if what == "serve":  # which needs a collection whose model is there
        done = Command(
            *("ingest", pictures, "--model", random_model, "--db", tmp_path / "served"), temporary=tmp_path
        )
        assert "added" in done.end()
    draw = random.Random(f"{what} {moments}")
    for moment in range(moments):
        temporary = tmp_path / f"temporary{moment}"
        temporary.mkdir()
        place = ("--db", tmp_path / f"db{moment}") if what == "ingest" else ()
        command = Command(*arguments, *place, temporary=temporary)
        time.sleep(draw.random() * SPANS_S[what])
        workers = command.workers()
        first, second = draw.choice([*CODES, signal.SIGINT]), draw.choice([*CODES])
        command.stop(first)
        time.sleep(draw.random() ** 2)
        command.stop(second)
        said = command.end()
        assert "Traceback" not in said, said
        assert "ignored" not in said, said
        # Of two that are both there before Python looks, the one of the lower number is the first; and when
        # Python has shut down after all was done, a signal kills, which a shell shows by the same code.
        codes = (CODES[first], CODES[second], -first, -second, 0)
        assert command.process.returncode in codes, said
        assert not [path for path in temporary.iterdir() if not path.name.startswith(("imret-0", "torch"))]
        wait_until_gone(workers)


def test_a_command_whose_terminal_went_before_ignores_that_it_goes(large: Path, tmp_path: Path) -> None:
    script = (
        "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-m', 'imret', *sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "collections", "--db", str(large)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not _heeds(process.pid) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    assert "24,000" in process.communicate(timeout=60)[0]
    assert process.returncode == 0
