"""How far a run is: a bar for those who watch, a line now and then for a log file."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests import ROOT
from tests.fakes.pictures import draw_picture

COMMAND = "from finetune.cli import command; command()"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of ten drawn pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(20):
        draw_picture(folder / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


def arguments(photos: Path, output: Path, epochs: int) -> list[str]:
    options = ["--from-scratch", "--batch-size", "9", "--device", "cpu", "--epochs", str(epochs)]
    return [sys.executable, "-c", COMMAND, str(photos), "--output", str(output), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_log_file_gets_ten_lines_with_all_that_matters(photos: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        arguments(photos, tmp_path / "model", 12),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.stdout == ""
    assert "\r" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in lines] == [3, 5, 8, 10, 12, 15, 17, 20, 22, 24]
    pattern = (
        r"step \d+ of 24: loss \d\.\d{3} \(floor \d\.\d{3}\), lr \d\.\de-\d\d, [\d,]+ MiB, "
        r"[\d,]+\.\d images/s, \d\d:\d\d left"
    )
    for line in lines:
        assert re.fullmatch(pattern, line), line
    assert lines[-1].endswith(" 00:00 left")


def test_a_short_run_gets_a_line_a_step(photos: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        arguments(photos, tmp_path / "model", 1),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment(),
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 2", "step 2 of 2"]
    assert "left" not in lines[0]  # one step says nothing of how long one takes
    assert lines[1].endswith("00:00 left")
    metrics = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert all(f"{line['memory_mib']:,} MiB" in shown for line, shown in zip(metrics, lines, strict=True))


def test_a_terminal_gets_a_bar_with_all_that_matters(photos: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    with subprocess.Popen(
        arguments(photos, tmp_path / "model", 12),
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=ROOT,
        env=environment(),
    ) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                read = os.read(leader, 1 << 16)
            except OSError:  # what Linux says when nobody holds the other end any more
                break
            if not read:
                break
            written += read
        assert process.wait() == 0
    os.close(leader)
    shown = re.split(r"[\r\n]+", written.decode())
    bars = [line for line in shown if line.startswith("train:")]
    assert bars
    assert "/216 " in bars[-1]  # pictures
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s, loss", bars[-1]), bars[-1]  # left, rate
    assert re.search(r"loss \d\.\d{3} \(floor \d\.\d{3}\), lr \d\.\de-\d\d, [\d,]+ MiB\]", bars[-1]), bars[-1]
    assert any(line.startswith("decode:") for line in shown)
    assert not any(line.startswith("step ") for line in shown)
