"""Decoding in processes: the same outcomes as in threads, and no picture and no death stops a run."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imret.images.decode_memory import DecodeMemory
from imret.images.preprocess import Preprocess
from ingest import decode_workers
from ingest.decode_workers import Decoders, Pixels, decode
from tests import ROOT
from tests.fakes.pictures import draw_picture

PREPROCESS = Preprocess(size=(32, 32))

# What stands in for a picture that brings libjpeg down: a decoder that dies of one name.
DEADLY = (
    "import os, sys; sys.path[:] = sys.argv[2:]; import ingest.decode_workers as d; real = d.decode; "
    "d.decode = lambda file, *rest: os.kill(os.getpid(), 9) if 'deadly.jpg' in file else real(file, *rest); "
    "d.serve([int(one) for one in sys.argv[1].split(',')])"
)


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with closing(Decoders(PREPROCESS, max_pixels=10_000)) as made:
        yield made


def spread(decoders: Decoders, n: int) -> None:
    """Start processes and wait until all are ready."""
    decoders.spread(n)
    assert eventually(lambda: all(worker.has_begun() for worker in decoders._starting))


def same(one: Pixels | str, other: Pixels | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    plain = (one.width, one.height, one.sha256, one.notes) == (
        other.width,
        other.height,
        other.sha256,
        other.notes,
    )
    return plain and np.array_equal(one.pixels, other.pixels)


def family_of(pid: int) -> list[int]:
    """Return the processes of a session, but for those that have ended."""
    sessions = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                sessions[int(stat.parent.name)] = int(fields[3])
    return sorted(one for one, session in sessions.items() if session == pid)


def forks(decoders: Decoders) -> list[int]:
    heads = {fork_server._process.pid for fork_server in decoders._fork_servers}
    return sorted({pid for head in heads for pid in family_of(head)} - heads)


def one_of(decoders: Decoders, file: str) -> Pixels | str:
    (made,) = decoders.decode([file])
    return made


def never(*_: object) -> str:
    pytest.fail("decoded in the thread")


def eventually(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


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
    assert decoders.at_once == 1
    assert [isinstance(one, str) for one in expected] == [False] * 10 + [True] * 4
    spread(decoders, 3)
    monkeypatch.setattr(decode_workers, "decode", never)
    with ThreadPoolExecutor(3) as pool:
        made = [
            one for some in pool.map(decoders.decode, [files, files[::-1], [], files[3:5]]) for one in some
        ]
    assert all(map(same, made, [*expected, *expected[::-1], *expected[3:5]]))
    assert len(made) == 2 * len(files) + 2
    assert decoders.at_once > 1


def test_bytes_are_decoded_as_their_file_is_in_a_thread_and_in_a_process(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [draw_picture(tmp_path / f"{seed}.jpg", seed=seed, size=(90, 60)) for seed in range(4)]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    files = [str(file) for file in (*good, bad)]
    contents = [Path(file).read_bytes() for file in files]
    expected = [decode(file, PREPROCESS, 10_000) for file in files]
    assert all(map(same, [decode(content, PREPROCESS, 10_000) for content in contents], expected))
    spread(decoders, 1)
    monkeypatch.setattr(decode_workers, "decode", never)
    mixed = [files[0], contents[1], contents[4], files[4], contents[2], b""]
    made = decoders.decode(mixed)
    assert made[5] == "the file is empty"
    assert all(map(same, made, [expected[at] for at in (0, 1, 4, 4, 2)]))


def test_a_file_above_the_limit_of_memory_is_decoded_and_hashed_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(draw_picture(tmp_path / "a.jpg", size=(90, 60)))
    expected = decode(file, PREPROCESS, None)
    monkeypatch.setattr(decode_workers, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(decode_workers, "sha256_of_bytes", never)
    assert same(decode(file, PREPROCESS, None), expected)


def test_threads_decode_until_the_processes_are_ready(decoders: Decoders, tmp_path: Path) -> None:
    file = str(draw_picture(tmp_path / "a.jpg"))
    decoders.spread(1)
    began = time.monotonic()
    assert isinstance(one_of(decoders, file), Pixels)
    assert not decoders._idle  # its process was starting still
    assert time.monotonic() - began < 1
    assert eventually(lambda: isinstance(one_of(decoders, file), Pixels) and bool(decoders._idle))


def test_a_process_that_was_killed_is_replaced_and_its_picture_decoded(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(draw_picture(tmp_path / "a.jpg"))
    spread(decoders, 2)
    before = forks(decoders)
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    expected = decode(file, PREPROCESS, 10_000)
    monkeypatch.setattr(decode_workers, "decode", never)
    for _ in range(3):
        assert same(one_of(decoders, file), expected)
    assert len(decoders._fork_servers) == 2  # what was started for the first serves the others


def test_a_picture_that_brings_down_two_processes_is_left_out_and_the_next_decoded(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_workers, "_BOOT", DEADLY)
    spread(decoders, 1)
    monkeypatch.setattr(decode_workers, "decode", never)
    deadly = draw_picture(tmp_path / "deadly.jpg")
    assert one_of(decoders, str(deadly)) == "it brought down the process that decodes it, twice"
    assert eventually(lambda: all(worker.has_begun() for worker in decoders._starting))
    assert isinstance(one_of(decoders, str(draw_picture(tmp_path / "fine.jpg"))), Pixels)


def test_a_deadly_picture_among_others_is_left_out_alone(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_workers, "_BOOT", DEADLY)
    spread(decoders, 1)
    monkeypatch.setattr(decode_workers, "decode", never)  # not in the thread, whatever is still starting
    files = [str(draw_picture(tmp_path / name)) for name in ("a.jpg", "deadly.jpg", "b.jpg")]
    first, deadly, last = decoders.decode(files)
    assert deadly == "it brought down the process that decodes it, twice"
    assert isinstance(first, Pixels)
    assert isinstance(last, Pixels)


def test_where_no_process_can_start_threads_decode(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    decoders.spread(2)
    assert isinstance(one_of(decoders, str(draw_picture(tmp_path / "a.jpg"))), Pixels)


def test_where_processes_end_as_they_start_threads_decode_and_none_is_started_again(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_workers, "_BOOT", "raise SystemExit(3)")
    spread(decoders, 2)
    files = [str(draw_picture(tmp_path / name)) for name in ("a.jpg", "b.jpg")]
    for _ in range(3):
        assert all(isinstance(one, Pixels) for one in decoders.decode(files))
    assert len(decoders._fork_servers) == 1


def test_a_program_with_many_files_open_still_sees_which_process_has_begun() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        one, other = socket.socketpair()
        with one, other, socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD, 1_500)) as high:
            line = decode_workers._Worker(high, PREPROCESS, 10_000)
            assert not line.has_begun()
            other.sendall(b"x")
            assert line.has_begun()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_closing_ends_every_process() -> None:
    with closing(Decoders(PREPROCESS, max_pixels=10_000)) as decoders:
        spread(decoders, 2)
        decoders.spread(1)  # this one has not begun
        heads = [fork_server._process.pid for fork_server in decoders._fork_servers]
        assert sum(len(family_of(head)) for head in heads) == 2 + 2
    assert eventually(lambda: not any(map(family_of, heads)))


def test_processes_end_with_a_program_that_is_killed() -> None:
    script = (
        "import time; from imret.images.preprocess import Preprocess; "
        "from ingest.decode_workers import Decoders\n"
        "decoders = Decoders(Preprocess(), max_pixels=10_000); decoders.spread(2)\n"
        "while not all(worker.has_begun() for worker in decoders._starting): time.sleep(0.05)\n"
        "print(decoders._fork_servers[0]._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as program:
        assert program.stdout is not None
        head = int(program.stdout.readline())
        assert len(family_of(head)) == 3
        program.kill()
    assert eventually(lambda: not family_of(head))


def test_notes_come_back_from_a_process_as_from_a_thread(decoders: Decoders, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    file = tmp_path / "cut.jpg"
    noise.save(file, quality=95)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.97)])
    (plain,) = decoders.decode([str(file)])
    assert isinstance(plain, Pixels)
    assert [note.endswith("% are missing") for note in plain.notes] == [True]
    spread(decoders, 1)
    (through,) = decoders.decode([str(file)])
    assert same(plain, through)


class Watched(DecodeMemory):
    """Remembers the most that was taken at the same time, and how often some was."""

    most = times = 0

    def _take(self, n_bytes: int) -> None:
        super()._take(n_bytes)
        self.most, self.times = max(self.most, self._taken), self.times + 1


def test_large_pictures_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Watched(60_000_000)
    monkeypatch.setattr(decode_workers, "_MEMORY", memory)
    files = [str(draw_picture(tmp_path / f"{seed}.png", seed=seed, size=(3000, 2000))) for seed in range(4)]
    with closing(Decoders(PREPROCESS, max_pixels=10_000_000)) as decoders, ThreadPoolExecutor(4) as pool:
        results = [result for (result,) in pool.map(lambda file: decoders.decode([file]), files)]
    assert all(isinstance(result, Pixels) for result in results)
    assert memory.times == 4
    assert 40_000_000 < memory.most <= 60_000_000, "one at a time"
