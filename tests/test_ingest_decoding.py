"""Decoding in processes: the same outcomes as in threads, and no picture and no death stops a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw_picture

from imret.models import Preprocess
from ingest import decoding
from ingest.decoding import Decoders, Pixels, decode

PREPROCESS = Preprocess(size=(32, 32))

# What stands in for a picture that brings libjpeg down: a decoder that dies of one name.
DEADLY = (
    "import os, sys; sys.path[:] = sys.argv[2:]; import ingest.decoding as d; real = d.decode; "
    "d.decode = lambda file, *rest: os.kill(os.getpid(), 9) if 'deadly' in file else real(file, *rest); "
    "d.serve(int(sys.argv[1]))"
)


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with closing(Decoders(PREPROCESS, max_pixels=10_000)) as made:
        yield made


def spread(decoders: Decoders, n: int) -> None:
    """Start processes and wait until all are ready."""
    decoders.spread(n)
    assert eventually(lambda: all(process.has_begun() for process in decoders._all))


def same(one: Pixels | str, other: Pixels | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    plain = (one.width, one.height, one.sha256) == (other.width, other.height, other.sha256)
    return plain and np.array_equal(one.pixels, other.pixels)


def pids(decoders: Decoders) -> list[int]:
    return sorted(process._process.pid for process in decoders._all)


def never(*_: object) -> str:
    pytest.fail("decoded in the thread")


def eventually(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_a_process_gives_what_a_thread_gives_for_good_files_and_bad(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [draw_picture(tmp_path / f"{seed}.jpg", seed=seed, size=(90 + seed, 60)) for seed in range(9)]
    odd = draw_picture(tmp_path / os.fsdecode(b"caf\xe9.png"), seed=20)
    cut = draw_picture(tmp_path / "cut.jpg", size=(90, 60))
    cut.write_bytes(cut.read_bytes()[:700])
    large = draw_picture(tmp_path / "large.png", size=(200, 100))
    files = [str(file) for file in (*good, odd, cut, large, tmp_path, tmp_path / "missing.jpg")]
    expected = [decode(file, PREPROCESS, 10_000) for file in files]
    assert [isinstance(one, str) for one in expected] == [False] * 10 + [True] * 4
    spread(decoders, 3)
    monkeypatch.setattr(decoding, "decode", never)
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(decoders.decode, files * 3))
    assert all(map(same, made, expected * 3))


def test_threads_decode_until_the_processes_are_ready(decoders: Decoders, tmp_path: Path) -> None:
    file = str(draw_picture(tmp_path / "a.jpg"))
    decoders.spread(1)
    began = time.monotonic()
    assert isinstance(decoders.decode(file), Pixels)
    assert not decoders._idle  # its process was starting still
    assert time.monotonic() - began < 1
    assert eventually(lambda: isinstance(decoders.decode(file), Pixels) and bool(decoders._idle))


def test_a_process_that_was_killed_is_replaced_and_its_picture_decoded(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(draw_picture(tmp_path / "a.jpg"))
    spread(decoders, 1)
    (before,) = pids(decoders)
    os.kill(before, signal.SIGKILL)
    expected = decode(file, PREPROCESS, 10_000)
    monkeypatch.setattr(decoding, "decode", never)
    assert same(decoders.decode(file), expected)
    (after,) = pids(decoders)
    assert after != before
    assert same(decoders.decode(file), expected)
    assert pids(decoders) == [after]


def test_a_picture_that_brings_down_two_processes_is_left_out_and_the_next_decoded(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_BOOT", DEADLY)
    spread(decoders, 1)
    monkeypatch.setattr(decoding, "decode", never)
    deadly = draw_picture(tmp_path / "deadly.jpg")
    assert decoders.decode(str(deadly)) == "the process that decoded it was killed by SIGKILL, twice"
    assert eventually(lambda: all(process.has_begun() for process in decoders._all))
    assert isinstance(decoders.decode(str(draw_picture(tmp_path / "fine.jpg"))), Pixels)


def test_where_no_process_can_start_threads_decode(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    decoders.spread(2)
    assert isinstance(decoders.decode(str(draw_picture(tmp_path / "a.jpg"))), Pixels)


def test_closing_ends_every_process(tmp_path: Path) -> None:
    decoders = Decoders(PREPROCESS, max_pixels=10_000)
    spread(decoders, 2)
    decoders.spread(1)  # this one has not begun
    started = pids(decoders)
    assert len(started) == 3
    decoders.close()
    assert all(map(gone, started))


def test_processes_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    script = (
        "from imret.models import Preprocess; from ingest.decoding import Decoders; import time\n"
        "decoders = Decoders(Preprocess(), max_pixels=10_000); decoders.spread(2)\n"
        "print(*[process._process.pid for process in decoders._all], flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as program:
        assert program.stdout is not None
        started = [int(pid) for pid in program.stdout.readline().split()]
        assert len(started) == 2
        assert not any(map(gone, started))
        program.kill()
    assert eventually(lambda: all(map(gone, started)))
