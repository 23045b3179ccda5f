"""`imret serve FOLDER`: pictures are taken in while the page is served, and found as they come."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imret.store import open_store
from tests.cli.test_serve import Process, serving
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import QdrantOverHTTP

IMRET = (sys.executable, "-m", "imret")


def draw(folder: Path, n: int, *, first: int = 0) -> Path:
    for seed in range(first, first + n):
        draw_picture(folder / ("fungi", "aves")[seed % 2] / f"{seed:03d}.png", seed=seed)
    return folder


def draw_slow(folder: Path, n: int) -> Path:
    """Write pictures that take long to decode."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "large-0.png"
    Image.new("RGB", (4000, 3000), (200, 30, 30)).save(first)
    for number in range(1, n):
        content = first.read_bytes()
        (folder / f"large-{number}.png").write_bytes(content)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", 12)


def progress(server: Process) -> dict[str, Any]:
    status, answer = server.get("/api/v1/ingest")
    assert status == 200
    assert isinstance(answer, dict)
    return answer


def until_state(server: Process, state: str) -> dict[str, Any]:
    server.until(lambda: progress(server)["state"] != "running")
    told = progress(server)
    assert told["state"] == state, (told, server.said)
    return told


def said(server: Process) -> str:
    return "\n".join(server.said)


def fails(*arguments: str | Path) -> str:
    done = subprocess.run(
        [*IMRET, "serve", "--port", "0", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "the page is at" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("engine", ["embedded", "server"])
def test_a_folder_is_taken_in_and_found_while_it_is_served(
    engine: str, photos: Path, random_model: Path, tmp_path: Path
) -> None:
    (photos / "fungi" / "broken.jpg").write_bytes(b"no picture")
    (photos / "notes.psd").write_bytes(b"x")
    with QdrantOverHTTP() as qdrant:
        db = str(tmp_path / "new" / "db") if engine == "embedded" else qdrant.url
        with serving(photos, "--db", db, "--model", random_model) as server:
            told = until_state(server, "done")
            assert (told["done"], told["total"], told["collection"]) == (13, 13, "photos")
            assert told["counts"]["added"] == 12
            assert told["counts"]["skipped"] == 1
            assert [skip["path"] for skip in told["not_taken"]] == [str(photos / "fungi" / "broken.jpg")]
            assert told["left_out"] == "1 .psd"
            server.until(lambda: server.get("/readyz") == (200, b"ready\n"))
            status, answer = server.get("/api/v1/search?q=owl&limit=20")
            assert (status, len(answer["hits"]), answer["model"]) == (200, 12, str(random_model))
            assert "photos: 12 added, 1 skipped" in said(server)
            assert server.end(signal.SIGINT) == 0
            assert server.said[-1] == "imret serve has ended"
        # Once more: nothing is decoded or encoded, what came meanwhile is taken.
        draw(photos, 2, first=100)
        with serving(photos, "--db", db, "--port", "0") as server:
            assert "photos: 12 pictures" in said(server)
            told = until_state(server, "done")
            assert (told["counts"]["added"], told["counts"]["unchanged"]) == (2, 12)
            assert told["counts"]["skipped"] == 1


def test_without_a_folder_there_is_no_ingest_to_tell_of(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    with serving("--db", tmp_path.joinpath("db"), photos, "--model", random_model) as server:
        until_state(server, "done")
    with serving("--db", tmp_path / "db") as server:
        assert progress(server)["state"] == "none"


def test_what_is_there_is_found_before_the_rest_has_come(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    draw_slow(photos / "zoo", 24)
    with serving(photos, "--db", tmp_path / "db", "--model", random_model) as server:
        assert server.get("/")[0] == 200  # at once
        assert progress(server)["state"] == "running"
        sizes: list[int] = []
        while progress(server)["state"] == "running":
            status, answer = server.get("/api/v1/search?q=owl&limit=100")
            sizes.append(len(answer["hits"]) if status == 200 else 0)
            time.sleep(0.1)
        assert sorted(sizes) == sizes
        assert any(0 < size < 36 for size in sizes), sizes
        until_state(server, "done")
        assert server.get("/api/v1/images?limit=1")[1]["images"] == 36


@pytest.mark.parametrize("how", ["int", "kill"])
def test_stopped_half_way_it_keeps_what_it_has_and_goes_on_there(
    how: str, photos: Path, random_model: Path, tmp_path: Path
) -> None:
    draw_slow(photos / "zoo", 24)
    db = tmp_path / "db"
    with serving(photos, "--db", db, "--model", random_model) as server:
        server.until(lambda: server.get("/api/v1/images?limit=1")[0] == 200)
        stored = server.get("/api/v1/images?limit=1")[1]["images"]
        assert 0 < stored < 36
        started = time.monotonic()
        code = server.end(signal.SIGINT if how == "int" else signal.SIGKILL)
        assert time.monotonic() - started < 10
        if how == "int":
            assert code == 0
            assert server.said[-2].startswith("photos: stopped at ")
            assert server.said[-2].endswith("the same command goes on from there")
            assert "Traceback" not in said(server)
            assert "Error" not in said(server)
    with open_store(str(db)) as store:
        assert store.open("photos").count() >= stored
    with serving(photos, "--db", db) as server:
        told = until_state(server, "done")
        assert told["counts"]["unchanged"] >= stored
        assert told["counts"]["added"] + told["counts"]["unchanged"] == 36
        assert server.get("/api/v1/images?limit=1")[1]["images"] == 36


def test_what_cannot_be_is_said_before_anything_is_served(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    db, model = ("--db", tmp_path / "db"), ("--model", random_model)
    assert "no such folder: 'nowhere'" in fails("nowhere", *db, *model)
    assert not (tmp_path / "db").exists()
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in fails(tmp_path / "empty", *db, *model)
    assert "was not found: no such folder or file" in fails(photos, *db, "--model", "./no-model")
    assert "lies within" in fails(photos, photos / "fungi", *db, *model)
    with serving(photos, *db, *model) as server:
        until_state(server, "done")
    other = write_random_model(tmp_path / "other", seed=1)
    assert "collection 'photos' was built with" in fails(photos, *db, "--model", other)
    done = subprocess.run([*IMRET, "serve", "--exclude", "raw"], capture_output=True, text=True)
    assert (done.returncode, "none is given" in done.stderr) == (2, True)


def test_an_ingest_that_fails_later_is_told_on_the_page_and_in_the_terminal(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    """A model whose weights are no weights: that shows when the first picture is encoded."""
    broken = write_random_model(tmp_path / "broken", seed=3)
    config = json.loads((broken / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 3  # of which the weights have two
    (broken / "open_clip_config.json").write_text(json.dumps(config))
    with serving(photos, "--db", tmp_path / "db", "--model", broken) as server:
        told = until_state(server, "failed")
        assert told["error"]
        assert "Error: the ingest has failed: " in said(server)
        assert server.get("/")[0] == 200
        assert server.get("/readyz")[0] == 503
        assert server.end(signal.SIGINT) == 0


def test_an_ingest_of_another_command_beside_it_ends_in_the_same_collection(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    draw_slow(photos / "zoo", 12)
    more = draw(tmp_path / "more", 5, first=200)
    db = tmp_path / "db"
    with serving(photos, "--db", db, "--model", random_model) as server:
        command = [*IMRET, "ingest", str(more), "--db", str(db), "--model", str(random_model)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        until_state(server, "done")
        assert server.get("/api/v1/images?limit=1")[1]["images"] == 12 + 12 + 5


def test_where_the_process_of_the_store_dies_the_ingest_goes_on(
    photos: Path, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_slow(photos / "zoo", 24)
    monkeypatch.setattr("ingest.beside._AGAIN_S", 0.1)
    with serving(photos, "--db", tmp_path / "db", "--model", random_model) as server:
        server.until(lambda: progress(server)["done"] > 0)
        for worker in _workers_of(server.pid):
            os.kill(worker, signal.SIGKILL)
        told = until_state(server, "done")
        assert told["counts"]["added"] + told["counts"]["unchanged"] == 36
        assert server.get("/api/v1/images?limit=1")[1]["images"] == 36


def _workers_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    pattern = re.compile(rf"\s*(\d+)\s+{pid}\s.*imret\.store\.embedded\.worker")
    found = [int(match[1]) for line in listed.splitlines() if (match := pattern.match(line))]
    assert found, listed
    return found


def test_one_model_is_in_memory_for_the_ingest_and_the_searches(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    from imret.models.lazy_encoder import LazyEncoder
    from imret.web.pool.collections import CollectionPool
    from ingest.beside import IngestBeside
    from ingest.sources import FolderSource

    pool = CollectionPool(lambda: open_store(str(tmp_path / "db")), keep="photos")
    encoding = {"model": str(random_model), "arch": None, "device": "auto", "precision": "auto"}
    try:
        for n_more in (0, 1):
            draw(photos, n_more, first=300)
            beside = IngestBeside(
                pool, [FolderSource(photos)], collection="photos", notify=print, encoding=encoding
            )
            beside.begin()
            _wait(lambda beside=beside: beside.progress().state != "running")  # type: ignore[misc]
            assert beside.progress().counts["added"] == (12, 1)[n_more]
            with pool.use("photos") as served:
                lazy = served.encoder.inner
                assert isinstance(lazy, LazyEncoder)
                assert set(lazy.encoder._towers) >= {"image"}  # the ingest has loaded it
    finally:
        pool.close()


def _wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
