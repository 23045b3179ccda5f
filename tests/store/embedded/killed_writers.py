"""Kill writers of one version at random moments, and look: nothing is lost, and nothing called damaged.

    python -m tests.store.embedded.killed_writers FOLDER SEED N

Each writer opens the version, stores, deletes, overwrites, flushes, indexes, closes and opens again until it
is killed. Every fifth time what lies there is compared with what was acknowledged. A program of its own,
because it forks: a process that has loaded the engine cannot.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imret.store.embedded import inventory, locks
from imret.store.embedded.shard import Shard
from tests.fakes.edge_points import DIM, MODEL

OWNER = locks.LockOwner(os.getpid(), "test", "now")
NUMBERS = 3_000
VECTORS = np.random.default_rng(0).standard_normal((64, DIM)).astype(np.float32)


def _ids(numbers: list[int]) -> list[str]:
    return [str(uuid.UUID(int=i + 1)) for i in numbers]


def _payloads(numbers: list[int]) -> list[dict[str, Any]]:
    return [{"path": f"{i}", "category": f"c{i % 5}", "source": "/photos", "width": i} for i in numbers]


def write(version: Path, seed: int, alive: set[int], say: Callable[..., None]) -> None:
    """Do this and that, and say before and after what it is, until somebody kills this process."""
    rng = random.Random(seed)
    shard = Shard(version, MODEL, owner=OWNER, index_from_kb=1)
    say("open", [shard.count(None)])
    while True:
        operation = rng.choices(
            ["add", "one", "delete", "overwrite", "flush", "index", "close", "end", "search"],
            [8, 4, 3, 2, 4, 2, 1, 1, 2],
        )[0]
        if operation in ("add", "one"):
            n = 1 if operation == "one" else rng.choice([1, 25, 512])
            numbers = sorted({rng.randrange(NUMBERS) for _ in range(n)})
            say("add", numbers)
            shard.upsert(_ids(numbers), VECTORS[[i % 64 for i in numbers]], _payloads(numbers))
            say("added", numbers)
            alive |= set(numbers)
        elif operation == "delete" and alive:
            numbers = rng.sample(sorted(alive), min(len(alive), rng.choice([1, 20, 200])))
            say("delete", numbers)
            shard.delete(list(_ids(numbers)))
            say("deleted", numbers)
            alive -= set(numbers)
        elif operation == "overwrite" and alive:
            numbers = rng.sample(sorted(alive), min(len(alive), 5))
            shard.overwrite_payloads(_ids(numbers), _payloads(numbers))
        elif operation == "flush":
            shard.flush()
        elif operation == "index":
            shard.optimize()
        elif operation == "search":
            shard.search(VECTORS[0], 5, None, False)
        elif operation == "close":
            shard.close()
            shard = Shard(version, MODEL, owner=OWNER, index_from_kb=1)
            say("open", [shard.count(None)])
        elif operation == "end":
            shard.end()
            os._exit(0)


def look(version: Path, say: Callable[..., None]) -> None:
    """Say which points are there."""
    shard = Shard(version, None, owner=OWNER, index_from_kb=1)
    rows, _ = shard.scan(None, False, NUMBERS + 1, None)
    say("there", [uuid.UUID(row[0]).int - 1 for row in rows])
    say("count", [shard.count(None)])
    shard.end()


def in_a_fork(task: Callable[..., None], *arguments: Any, for_s: float | None = None) -> list[Any]:
    """Run a task in a process that is killed after a while, and return what it said."""
    reading, writing = os.pipe()

    def say(*message: Any) -> None:
        os.write(writing, (json.dumps(message) + "\n").encode())

    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            task(*arguments, say)
        except BaseException as error:
            say("failed", [f"{type(error).__name__}: {error}"])
        os._exit(0)
    os.close(writing)
    deadline = None if for_s is None else time.monotonic() + for_s
    said = b""
    while deadline is None or time.monotonic() < deadline:
        if select.select([reading], [], [], None if deadline is None else deadline - time.monotonic())[0]:
            chunk = os.read(reading, 1 << 20)
            if not chunk:
                break
            said += chunk
    os.kill(pid, signal.SIGKILL)
    while chunk := os.read(reading, 1 << 20):
        said += chunk
    os.close(reading)
    os.waitpid(pid, 0)
    return [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith(b"\n")]


def main(folder: str, seed: int, n: int) -> None:
    version = Path(folder) / "photos" / MODEL.version
    version.parent.mkdir(parents=True)
    rng = random.Random(seed)
    known: set[int] = set()
    perhaps: set[int] = set()
    for kill in range(n):
        for_s = rng.choice([rng.uniform(0, 0.06), rng.uniform(0, 0.4), rng.uniform(0, 1.2)])
        for what, numbers in in_a_fork(write, version, seed * 100_000 + kill, set(known), for_s=for_s):
            if what == "failed":
                sys.exit(f"kill {kill}: {numbers[0]}")
            elif what == "open":
                assert len(known) <= numbers[0] <= len(known | perhaps), (kill, numbers, len(known))
            elif what == "add":
                perhaps |= set(numbers) - known
            elif what == "added":
                known, perhaps = known | set(numbers), perhaps - set(numbers)
            elif what == "delete":
                known, perhaps = known - set(numbers), perhaps | set(numbers)
            else:
                perhaps -= set(numbers)
        if kill % 5 == 4 and (version / "identity.json").exists():
            there, count = in_a_fork(look, version)
            if there[0] == "failed":
                sys.exit(f"kill {kill}: {there[1][0]}")
            assert known <= set(there[1]) <= known | perhaps, f"kill {kill}: lost"
            assert count[1] == [len(there[1])]
            noted = inventory.read(version)
            assert noted is not None
            assert (noted.since, noted.points) == ("flushed", len(there[1]))
            known, perhaps = set(there[1]), set()
    print(f"{n} kills, {len(known)} points at the end")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
