"""What one `imret search` costs: the first time a text is asked, and when it was asked before.

    python benchmarks/search_cold.py MODEL PICTURES [--times 5] [--query TEXT]

Ingests PICTURES into an embedded store with MODEL, then runs the command as a person does, each time in a new
process, with a fresh cache for the first-time rows. Prints the median and the range of the wall time, the
median of processor time (which a busy machine changes less), and whether torch was imported.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

IMRET = "from imret.cli.main import main; main()"
# What a process of the command says of itself at its end, on a stream of its own.
TELL = """
import atexit, os, sys
atexit.register(lambda: os.write(int(os.environ["TELL"]), b"torch" if "torch" in sys.modules else b"-"))
"""


def main() -> None:
    """Ingest, search cold and warm, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--query", default="a mushroom on a log in a wood")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        os.environ["IMRET_HOME"] = str(home)
        db = str(Path(folder) / "db")
        python("ingest", str(arguments.pictures), "--model", arguments.model, "--db", db)
        command = ("search", arguments.query, "--db", db, "--format", "paths")
        forget = home / "cache" / "queries"
        rows: dict[str, Callable[[], None]] = {
            "asked for the first time": lambda: shutil.rmtree(forget, ignore_errors=True),
            "asked before": lambda: None,
        }
        for name, before in rows.items():
            python(*command)  # brings files into memory, and the query into the cache
            taken, worked, imported = [], [], set()
            for _ in range(arguments.times):
                before()
                start, before_it = time.perf_counter(), os.times()
                imported.add(python(*command))
                taken.append(time.perf_counter() - start)
                after = os.times()
                worked.append(
                    after.children_user
                    + after.children_system
                    - before_it.children_user
                    - before_it.children_system
                )
            print(
                f"{name:<26} {statistics.median(taken):6.2f} s  [{min(taken):.2f}, {max(taken):.2f}]"
                f"  processor {statistics.median(worked):.2f} s"
                f"  {'imports torch' if 'torch' in imported else 'no torch'}"
            )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import numpy, imret.cli.main"], check=True)
        print(f"{'python and numpy alone':<26} {time.perf_counter() - start:6.2f} s")


def python(*arguments: str) -> str:
    """Run the command; return "torch" if it imported it."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reading:
        subprocess.run(
            [sys.executable, "-c", TELL + IMRET, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write_end],
            env={**os.environ, "TELL": str(write_end)},
        )
        os.close(write_end)
        return reading.read().strip("-")


if __name__ == "__main__":
    main()
