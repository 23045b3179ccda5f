"""A second ingest in which nothing has changed: whole processes, beside the floor of walking the same folder.

    python benchmarks/second_ingest.py [--files 100000] [--rounds 5] [--model FOLDER] [--results FILE]

Draws small JPEGs of which no two have the same bytes, 1,000 to a folder, fills an embedded store with them
once, and then runs `imret ingest` on them again and again, in turns with a bare os.walk and os.stat of every
file. Files and store are in the page cache. That nothing is decoded is taken from imret's report, and tried:
at the end every file is overwritten with zeros, of the same length and time, and ingested once more: only the
few whose content is compared are found out. A run that compares none shows what comparing them costs. Without
--model, the model has random weights; nothing loads it after the first run. Everything is made in a temporary
folder (1 GB for 100,000 files) and deleted at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from machine import cores
from PIL import Image

HERE = Path(__file__).resolve().parent
GOAL_S = 10
IMRET = (sys.executable, "-m", "imret")
COMPARED = 32  # files whose content a run compares, drawn at random
COMPARE_NONE = (
    sys.executable,
    "-c",
    "import ingest.content_sample as r; r.CONTENT_SAMPLE_BYTES = -1\nfrom imret.cli.main import main; main()",
)
WALK = """
import os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.stat(os.path.join(folder, name))
"""


@dataclass(frozen=True)
class Run:
    """A process from its start to its end: wall and processor seconds, those of its children included."""

    wall_s: float
    worked_s: float


def draw_files(folder: Path, n: int) -> None:
    """Write n JPEGs of 64 x 48 pixels, 1,000 to a category; no two have the same bytes."""
    seen: set[bytes] = set()
    for number in range(n):
        rng = np.random.default_rng(number)
        colours = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(colours).resize((64, 48), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        data = out.getvalue()
        seen.add(hashlib.sha256(data).digest()[:16])
        category = folder / f"{number // 1000:03}"
        if number % 1000 == 0:
            category.mkdir(parents=True)
        (category / f"{number % 1000:03}.jpg").write_bytes(data)
    assert len(seen) == n, "two files have the same bytes"


def random_model(folder: Path, *, dim: int = 32) -> Path:
    """Write a CLIP of 32 pixels with random weights, and return where it is."""
    sys.path.insert(0, str(HERE.parent))
    from tests.fakes.models import write_random_model

    return write_random_model(folder, seed=0, dim=dim)


def timed(command: Sequence[str], env: dict[str, str]) -> Run:
    """Run a command to its end."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(done.stderr)
    return Run(wall, sum(after[2:4]) - sum(before[2:4]))


def overwrite(folder: Path) -> None:
    """Fill every file with zeros and leave its length and time as they are."""
    for file in folder.rglob("*.jpg"):
        info = file.stat()
        file.write_bytes(bytes(info.st_size))
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


def measure(work: Path, model: Path, n: int, rounds: int) -> tuple[Run, dict[str, list[Run]], list[float]]:
    """Return the first ingest, the runs of both contenders, and the seconds of imret's own reports."""
    photos, report = work / "photos", work / "report.json"
    env = {**os.environ, "IMRET_HOME": str(work / "home")}
    ingest = [*IMRET, "ingest", str(photos), "--db", str(work / "store"), "--report", str(report)]

    def checked(**counts: int) -> float:
        reported: dict[str, Any] = json.loads(report.read_text())
        wrong = {name: reported[name] for name, count in counts.items() if reported[name] != count}
        assert not wrong, f"the report says {wrong}, not {counts}"
        return float(reported["seconds"])

    draw_files(photos, n)
    first = timed([*ingest, "--model", str(model)], env)
    checked(added=n, encoded=n, skipped=0)
    runs: dict[str, list[Run]] = {"walk": [], "imret": [], "none": []}
    seconds = []
    for number in range(-1, rounds):  # the first brings files into memory
        walk = timed([sys.executable, "-c", WALK, str(photos)], env)
        none = timed([*COMPARE_NONE, *ingest[3:]], env)
        checked(unchanged=n, compared=0)
        again = timed(ingest, env)
        took = checked(
            unchanged=n, compared=min(n, COMPARED), encoded=0, added=0, updated=0, skipped=0, missing=0
        )
        if number >= 0:
            runs["walk"].append(walk)
            runs["none"].append(none)
            runs["imret"].append(again)
            seconds.append(took)
    overwrite(photos)
    timed(ingest, env)
    checked(unchanged=n - COMPARED, encoded=0, skipped=COMPARED, other_content=COMPARED)
    return first, runs, seconds


def page(n: int, command: str, first: Run, runs: dict[str, list[Run]], seconds: list[float]) -> str:
    """Return what was measured, as Markdown."""

    def shown(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    def median(name: str, key: str) -> float:
        return statistics.median(getattr(run, key) for run in runs[name])

    rows = [
        f"| {title} | {shown([run.wall_s for run in runs[name]])} "
        f"| {shown([run.worked_s for run in runs[name]])} | {goal} |"
        for title, name, goal in (
            ("`os.walk` and `os.stat` of every file, the floor", "walk", ""),
            ("`imret ingest`, nothing changed", "imret", f"< {GOAL_S}"),
            (f"the same, comparing the content of none instead of {COMPARED}", "none", ""),
        )
    ]
    wall, worked = (median("imret", key) / median("walk", key) for key in ("wall_s", "worked_s"))
    return "\n".join(
        [
            f"# A second ingest of {n:,} files",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, {cores()}, Python {platform.python_version()}, embedded "
            f"store. `{command}`. Whole processes in turns, medians of {len(seconds)} with least and most, "
            f"files and store in the page cache; load average {os.getloadavg()[0]:.1f} at the end.",
            "",
            "| | wall, s | processor time, s | goal |",
            "|---|---|---|---|",
            *rows,
            f"| ratio | {wall:.1f} | {worked:.1f} | |",
            "",
            f"Of imret's wall time {shown(seconds)} s are the ingest itself; the rest is starting Python and "
            "the store's process, opening the collection and closing it.",
            "",
            f"Every report said {n:,} unchanged, 0 encoded, 0 skipped. That of one more run, after every "
            "file had been overwritten with zeros of the same length and time, said that the content of "
            f"{COMPARED} had changed, and {n - COMPARED:,} unchanged: no other is opened.",
            "",
            f"The first ingest took {first.wall_s:.0f} s, {first.worked_s:.0f} s of processor time "
            f"({n / first.wall_s:,.0f} pictures/s).",
        ]
    )


def main() -> None:
    """Measure and print, as a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a model folder")
    parser.add_argument("--results", type=Path, help="write the page there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = random_model(work / "model") if arguments.model is None else arguments.model.resolve()
        measured = measure(work, model, arguments.files, arguments.rounds)
    command = f"python benchmarks/second_ingest.py --files {arguments.files} --rounds {arguments.rounds}"
    text = page(arguments.files, command + (" --model FOLDER" if arguments.model else ""), *measured)
    print(text)
    if arguments.results is not None:
        arguments.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
