"""kill -9 at random moments of a rename; the same command again ends where an undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from imret.store import open_store
from imret.store.payload import point_id
from tests import ROOT
from tests.sources.filled import contents, fill, vector_of

# Everything is imported and the store is open before it is told to begin; small batches have many moments.
RENAME = """
import os, sys
import imret.sources.stored as stored
from imret.store import open_store
stored._BATCH = 4
db, old, new = sys.argv[1:]
with open_store(db, create=False) as store:
    store.open("photos").count()
    print("ready", flush=True)
    sys.stdin.readline()
    stored.rename_source(store, old, new, check=False)
"""


def rename(
    db: Path, old: str, new: str, *, kill_after_s: float | None, whole_group: bool = False
) -> tuple[float, int]:
    """Return how long a rename ran and its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-c", RENAME, str(db), old, new],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    return time.monotonic() - started, process.returncode


def test_a_rename_that_is_killed_at_any_moment_is_finished_by_the_next(tmp_path: Path) -> None:
    paths = [f"c{n % 3}/{n}.jpg" for n in range(160)]
    rng, n_killed, whole_s = random.Random(0), 0, 2.0
    for attempt in range(11):
        db = tmp_path / f"db{attempt}"
        with open_store(str(db)) as store:
            fill(store, "/old", paths)
            fill(store, "/other", ["x.jpg"])
        moment = None if attempt == 0 else rng.uniform(0.0, whole_s)
        seconds, status = rename(db, "/old", "/new", kill_after_s=moment, whole_group=attempt % 2 == 0)
        whole_s = min(whole_s, seconds) if status == 0 else whole_s
        n_killed += status == -signal.SIGKILL
        with open_store(str(db), create=False) as store:
            found = contents(store)
            assert {path for _, path in found} == {*paths, "x.jpg"}, f"lost by a kill at {moment} s"
        if status:
            assert rename(db, "/old", "/new", kill_after_s=None)[1] == 0, f"after a kill at {moment} s"
        with open_store(str(db), create=False) as store:
            found = contents(store)
        assert found.keys() == {("/new", path) for path in paths} | {("/other", "x.jpg")}
        for (source, path), point in found.items():
            assert point.id == point_id(source, path)
            np.testing.assert_allclose(point.vector, vector_of(path), atol=1e-6)
    assert n_killed >= 5, "the kills came too late to mean anything"
