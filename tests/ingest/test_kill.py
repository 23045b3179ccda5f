"""kill -9 at twenty random moments of an ingest; the run after it ends where an undisturbed one does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from imret import open_store
from tests import ROOT
from tests.fakes.pictures import draw_picture

# Imports once, then forks a process for each ingest: each is a real process with a real kill -9, without
# paying for the import of torch forty times. Nothing has run in the parent, so the fork is clean.
DRIVER = """
import json, os, signal, sys, time
import torch, open_clip
import imret.models.encoder, imret.retrieval.search, ingest.cli, ingest.pipeline, tqdm
from imret.cli.main import main

def ingest(db, kill_after_s=None, whole_group=False):
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        options = ["--model", MODEL, "--db", db, "--precision", "fp32", "--batch-size", "8"]
        sys.argv = ["imret", "ingest", PHOTOS, *options]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        try:
            (os.killpg if whole_group else os.kill)(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = os.waitpid(child, 0)[1]
    return time.monotonic() - started, status

PHOTOS, MODEL = sys.argv[1:3]
for line in sys.stdin:
    print(json.dumps(ingest(**json.loads(line))), flush=True)
"""


def _contents(db: Path) -> dict[str, tuple[dict[str, object], np.ndarray]]:
    with open_store(str(db), create=False) as store:
        points = [p for batch in store.open("photos").scan(vectors=True) for p in batch]
    return {point.id: (point.payload, point.vector) for point in points}


def test_twenty_kills_lose_nothing_and_store_nothing_twice(tmp_path: Path, random_model: Path) -> None:
    n_images = 160
    for seed in range(n_images):
        draw_picture(tmp_path / "photos" / f"category{seed % 4}" / f"{seed}.png", seed=seed)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "photos"), str(random_model)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip

    def ingest(db: Path, **options: object) -> tuple[float, int]:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(json.dumps({"db": str(db), **options}) + "\n")
        driver.stdin.flush()
        seconds, status = json.loads(driver.stdout.readline())
        return seconds, status

    try:
        # The first run also fills caches that the others find filled, and a machine may be busy just then.
        whole_runs = [ingest(tmp_path / name) for name in ("first", "undisturbed")]
        assert [status for _, status in whole_runs] == [0, 0]
        undisturbed_s = min(seconds for seconds, _ in whole_runs)
        expected = _contents(tmp_path / "undisturbed")
        assert len(expected) == n_images
        rng = random.Random(0)
        n_killed = 0
        for attempt in range(20):
            db = tmp_path / f"db{attempt}"
            moment = rng.uniform(0.0, undisturbed_s)
            seconds, status = ingest(db, kill_after_s=moment, whole_group=attempt % 2 == 0)
            n_killed += status == 9
            if status == 0:  # the kill came after the end: a whole run, and a faster one
                undisturbed_s = min(undisturbed_s, seconds)
            _, status = ingest(db)
            assert status == 0, f"the run after a kill at {moment:.3f} s failed"
            found = _contents(db)
            assert found.keys() == expected.keys(), f"after a kill at {moment:.3f} s"
            for point_id, (payload, vector) in expected.items():
                assert found[point_id][0] == payload
                np.testing.assert_allclose(found[point_id][1], vector, atol=1e-5)
        assert n_killed >= 10, "the kills came too late to mean anything"
    finally:
        driver.kill()
        driver.communicate()
