"""What one `imret search` costs while `imret serve` runs over the same store.

    python benchmarks/search_warm.py MODEL PICTURES [--times 10] [--query TEXT]

Ingests PICTURES into an embedded store with MODEL, starts the server, then runs the command as a person does,
each time in a new process. Prints the median and the range of the wall time of the whole process, the median
of its processor time (which a busy machine changes less; the server's is not in it), and what it imported.
The last rows are for comparison: the same command without the server, and a Python that does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HEAVY = ("torch", "numpy")
# What a process of the command says of itself at its end, on a stream of its own.
TELL = f"""
import atexit, os, sys
atexit.register(lambda: os.write(int(os.environ["TELL"]), b" ".join(
    name.encode() for name in {HEAVY!r} if name in sys.modules)))
"""
IMRET = TELL + "from imret.cli.main import main; main()"


def main() -> None:
    """Ingest, serve, search, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--query", default="a mushroom on a log in a wood")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMRET_HOME"] = str(Path(folder) / "home")
        db = str(Path(folder) / "db")
        run("ingest", str(arguments.pictures), "--model", arguments.model, "--db", db)
        numbers = itertools.count()
        picture = next(
            file for file in sorted(arguments.pictures.rglob("*")) if file.suffix in (".jpg", ".jpeg", ".png")
        )
        rows: dict[str, Callable[[], list[str]]] = {
            "words, new ones each time": lambda: ["search", f"{arguments.query} {next(numbers)}"],
            "words, asked before": lambda: ["search", arguments.query],
            "a picture file": lambda: ["search", str(picture)],
            "a stored picture": lambda: ["similar", f"stored:{picture.resolve()}"],
            "words, 2,000 hits at most": lambda: ["search", arguments.query, "--limit", "2000"],
        }
        store = ("--db", db, "--format", "paths")
        with serving(db):
            for name, command in rows.items():
                measure(name, lambda command=command: run(*command(), *store, served=True), arguments.times)  # type: ignore[misc]
        measure("asked before, no server", lambda: run("search", arguments.query, *store), arguments.times)
        measure("python alone", python_alone, arguments.times)


def measure(name: str, work: Callable[[], str], times: int) -> None:
    """Run a command once to bring its files into memory, then so many times; print a row."""
    work()
    taken, worked, imported = [], [], set()
    for _ in range(times):
        start, before = time.perf_counter(), os.times()
        imported.add(work())
        taken.append(time.perf_counter() - start)
        after = os.times()
        worked.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    loaded = ", ".join(module for module in sorted(imported) if module) or "neither"
    print(
        f"{name:<26} {statistics.median(taken):6.3f} s  [{min(taken):.3f}, {max(taken):.3f}]"
        f"  processor {statistics.median(worked):.2f} s  imports of torch and numpy: {loaded}",
        flush=True,
    )


@contextlib.contextmanager
def serving(db: str) -> Iterator[None]:
    """Run `imret serve` over a store, with its model loaded."""
    server = subprocess.Popen(
        [sys.executable, "-m", "imret", "serve", "--port", "0", "--preload", "--db", db],
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        lines = []
        for line in server.stderr or ():
            lines.append(line)
            if "the page is at" in line:
                break
        else:
            raise SystemExit("".join(lines))
        try:
            yield
        finally:
            server.send_signal(signal.SIGINT)


def run(*arguments: str, served: bool = False) -> str:
    """Run the command, which a server has to answer if that is said; return which of HEAVY it imported."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reading:
        done = subprocess.run(
            [sys.executable, "-c", IMRET, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[write_end],
            env={**os.environ, "TELL": str(write_end)},
        )
        os.close(write_end)
        if done.returncode or served != ("answered by imret serve" in done.stderr):
            raise SystemExit(done.stderr)
        return reading.read()


def python_alone() -> str:
    """Start Python and end it."""
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return ""


if __name__ == "__main__":
    main()
