"""Memory of an ingest: at 1,000 and at 100,000 pictures, of the process that encodes and of the store's own.

    python benchmarks/ingest_memory.py [--files 1000 100000] [--rounds 3] [--model FOLDER] [--results FILE]

Draws small JPEGs of which no two have the same bytes, and ingests each number of them into an embedded store
that is empty, in turns. Every 50 ms the anonymous memory (RssAnon: what is no page of a file) of each process
is read from /proc; files in memory are the kernel's to drop. The pipeline is one process and should need the
same at any number; the process that holds the store grows with the points, because the engine keeps in memory
what it has of a segment (ids, payload indexes) until the segment's index is built, and a graph while it
builds one. So it stands apart, with the bytes that each point adds. Without --model, the model has random
weights and 512 dimensions. Linux only.
Everything is made in a temporary folder (1 GB for 100,000 files) and deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from machine import cores
from second_ingest import IMRET, draw_files, random_model

GOAL = 1.10  # of the pipeline's memory: so much more at most
EVERY_S = 0.05
STORE = "imret.store.embedded.worker"  # in the command line of the store's process
PIPELINE, INDEX = "the process that decodes and encodes", "the store's process"


@dataclass
class Watched:
    """Memory of one process in a run, MiB.

    Attributes:
        anonymous: RssAnon of each sample.
        peak: The kernel's own highest mark, pages of files included (VmHWM).
    """

    anonymous: list[float] = field(default_factory=list)
    peak: float = 0.0

    @property
    def most(self) -> float:
        """The highest sample."""
        return max(self.anonymous)

    def between(self, start: float, end: float) -> float:
        """Return the median of a part of the run, given as shares of it."""
        n = len(self.anonymous)
        return statistics.median(self.anonymous[int(start * n) : max(int(end * n), int(start * n) + 1)])


Runs = dict[int, list[tuple[float, dict[str, Watched]]]]  # by number of files: seconds, and who held what


def sample(root: int, watched: dict[str, Watched]) -> None:
    """Read the memory of a process and of all below it."""
    for pid in below(root):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it ended this moment
            continue
        fields = dict(line.split(":", 1) for line in lines)
        if "RssAnon" not in fields:  # it has ended, and nobody has asked how
            continue
        name = PIPELINE if pid == root else INDEX if STORE in command else f"another: {command[:40]!r}"
        process = watched.setdefault(name, Watched())
        process.anonymous.append(int(fields["RssAnon"].split()[0]) / 1024)
        process.peak = max(process.peak, int(fields["VmHWM"].split()[0]) / 1024)


def below(root: int) -> list[int]:
    """Return a process and its children, and theirs."""
    pids = [root]
    for pid in pids:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                pids += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pids


def ingested(photos: Path, model: Path, work: Path, n: int) -> tuple[float, dict[str, Watched]]:
    """Ingest into an empty store; return seconds, and the memory of each process by what it does."""
    watched: dict[str, Watched] = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        report = Path(folder) / "report.json"
        command = [*IMRET, "ingest", str(photos), "--model", str(model), "--db", str(Path(folder) / "store")]
        env = {**os.environ, "IMRET_HOME": str(work / "home")}
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, "--report", str(report)], env=env, stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                sample(process.pid, watched)
                time.sleep(EVERY_S)
            assert process.stderr is not None
            stderr = process.stderr.read()
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(stderr)
        counts = json.loads(report.read_text())
        assert (counts["added"], counts["encoded"]) == (n, n), counts
    return seconds, watched


def page(command: str, n_files: Sequence[int], runs: Runs) -> str:
    """Return what was measured, as Markdown."""
    few, many = n_files
    # Others come and go within a sample or two (asking the compiler's version, a copy that is yet to become
    # the store's process), and not in every run.
    everywhere = [set(watched) for n in n_files for _, watched in runs[n]]
    names = [name for name in (PIPELINE, INDEX) if all(name in seen for seen in everywhere)]
    others = sorted(set.union(*everywhere) - set(names))

    def cells(name: str, key: str) -> tuple[str, list[float]]:
        shown, medians = [], []
        for n in n_files:
            values = [getattr(watched[name], key) for _, watched in runs[n]]
            medians.append(statistics.median(values))
            shown.append(f"{medians[-1]:.1f} ({min(values):.1f} to {max(values):.1f})")
        return " | ".join(shown), medians

    rows, notes = [], []
    for name in names:
        for key, title in (("most", "RssAnon, highest sample"), ("peak", "VmHWM, files included")):
            shown, (small, large) = cells(name, key)
            goal = f"<= {GOAL:.2f}" if (name, key) == (PIPELINE, "most") else ""
            rows.append(f"| {name} | {title} | {shown} | {large / small:.3f} | {goal} |")
            if (name, key) == (INDEX, "most"):
                added = (large - small) * 2**20 / (many - few)
                notes.append(
                    f"The store's process: {added:,.0f} bytes of anonymous memory for each point more."
                )

    def in_fifth(name: str, at: int) -> str:
        parts = [watched[name].between(at / 5, (at + 1) / 5) for _, watched in runs[many]]
        return f"{statistics.median(parts):.1f}"

    course = [f"| {name} | {' | '.join(in_fifth(name, at) for at in range(5))} |" for name in names]
    if others:
        notes.append(f"Other processes, in some samples: {', '.join(others)}.")
    times = " and ".join(f"{statistics.median(s for s, _ in runs[n]):.0f} s for {n:,}" for n in n_files)
    return "\n".join(
        [
            "# Memory of an ingest",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, {cores()}, Python {platform.python_version()}, embedded "
            f"store, empty before each run. `{command}`. MiB; medians of {len(runs[many])} runs in turns, "
            f"with least and most; an ingest took {times}; load average {os.getloadavg()[0]:.1f} at the end.",
            "",
            f"| process | memory | {few:,} pictures | {many:,} pictures | ratio | goal |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *notes,
            "",
            f"RssAnon in the course of an ingest of {many:,}, medians of each fifth of its time:",
            "",
            "| process | first | second | third | fourth | last |",
            "|---|---|---|---|---|---|",
            *course,
        ]
    )


def main() -> None:
    """Measure and print, as a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, nargs=2, default=[1_000, 100_000], metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a model folder")
    parser.add_argument("--results", type=Path, help="write the page there, too")
    arguments = parser.parse_args()
    runs: Runs = {n: [] for n in arguments.files}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = arguments.model.resolve() if arguments.model else random_model(work / "model", dim=512)
        for n in arguments.files:
            draw_files(work / f"{n}", n)
        ingested(work / f"{arguments.files[0]}", model, work, arguments.files[0])  # fills caches
        for _ in range(arguments.rounds):
            for n in arguments.files:
                runs[n].append(ingested(work / f"{n}", model, work, n))
    few, many = arguments.files
    command = f"python benchmarks/ingest_memory.py --files {few} {many} --rounds {arguments.rounds}"
    text = page(command + (" --model FOLDER" if arguments.model else ""), arguments.files, runs)
    print(text)
    if arguments.results is not None:
        arguments.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
