"""A real server asked for what is heavy: its memory is bounded, and plain searches are answered meanwhile."""

from __future__ import annotations

import http.client
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imret import Encoder
from imret.models.known_models import note_model
from imret.store import Identity, open_store
from imret.store.payload import make_payload, point_id
from tests.cli.test_serve import Process
from tests.images.test_decode_memory import write_picture

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to measure memory"
)

SIZE = (7000, 5000)
KINDS = {
    "a.jpg": ("RGB", {"quality": 80}),
    "b.jpg": ("RGB", {"quality": 80, "progressive": True}),
    "c.png": ("RGB", {"compress_level": 1}),
    "d.png": ("RGBA", {"compress_level": 1}),
    "e.png": ("L", {"compress_level": 1}),
    "f.tif": ("RGB", {}),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for name, (mode, options) in KINDS.items():
        write_picture(folder / name, mode, SIZE, options)
    return folder


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory, pictures: Path, random_model: Path) -> Path:
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    note_model(encoder.files)  # as an ingest does, so that a server takes it
    identity = Identity(encoder.model_id, encoder.images_fingerprint, encoder.dim)
    vectors = np.random.default_rng(0).standard_normal((len(KINDS), encoder.dim)).astype(np.float32)
    payloads = [
        make_payload(
            source=str(pictures),
            path=name,
            category=None,
            sha256=f"{i:064x}",
            width=SIZE[0],
            height=SIZE[1],
            size_bytes=1,
            modified="2026-01-01T00:00:00.000000Z",
        )
        for i, name in enumerate(KINDS)
    ]
    folder = tmp_path_factory.mktemp("db") / "store"
    with open_store(str(folder)) as store:
        collection = store.open_version("photos", identity)
        ids = [point_id(str(pictures), name) for name in KINDS]
        collection.upsert(ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), payloads)
        store.promote("photos", identity)
    return folder


def memory_mb(pid: int, name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1e3


def test_thumbnails_and_originals_of_large_pictures_stay_within_their_memory(
    db: Path, pictures: Path
) -> None:
    server = Process("--db", str(db))
    try:
        server.until(lambda: server.port)
        server.until(lambda: server.get("/api/v1/search?q=owl")[0] == 200)
        before = memory_mb(server.pid, "VmRSS")
        targets = [f"/api/v1/thumbnails/{point_id(str(pictures), name)}?size=320" for name in KINDS]
        targets.append(f"/api/v1/images/{point_id(str(pictures), 'f.tif')}")  # made into a JPEG
        waits = []
        with ThreadPoolExecutor(3 * len(targets)) as pool:
            answers = [pool.submit(server.get, target) for target in 3 * targets]
            while not all(answer.done() for answer in answers):
                began = time.perf_counter()
                assert server.get("/api/v1/search?q=owl")[0] == 200
                waits.append(time.perf_counter() - began)
        bodies = [answer.result() for answer in answers]
        assert {status for status, _ in bodies} == {200}
        assert all(body[:3] == b"\xff\xd8\xff" for _, body in bodies)
        for at in range(len(targets)):
            assert len({body for _, body in bodies[at :: len(targets)]}) == 1
        # These take 140 to 560 MB each, and four to six at a time were decoded.
        assert memory_mb(server.pid, "VmHWM") < before + 512 + 250
        server.until(lambda: memory_mb(server.pid, "VmRSS") < before + 150)
        assert statistics.median(waits) < 0.5
    finally:
        server.end()


def test_a_client_that_leaves_takes_its_thumbnail_out_of_the_queue(db: Path, pictures: Path) -> None:
    server = Process("--db", str(db), "--thumbnail-cache", "0")
    try:
        server.until(lambda: server.port)
        server.until(lambda: server.get("/api/v1/search?q=owl")[0] == 200)
        ids = [point_id(str(pictures), name) for name in KINDS]
        slow = [f"/api/v1/images/{ids[-1]}"]  # made into a JPEG
        slow += [f"/api/v1/thumbnails/{id_}?size={size}" for id_ in ids for size in (160, 640)]
        leaving = []
        for target in slow * 4:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", target)
            leaving.append(connection)

        def metric(pattern: bytes) -> float:
            _, body = server.get("/metrics")
            return sum(map(float, re.findall(pattern + rb" ([0-9.]+)", body)))

        server.until(lambda: metric(rb'imret_queue_depth\{queue="large pictures"\}') >= 4)
        for connection in leaving:
            connection.close()
        # Those that were answered before do not count; of the others nobody waits for their turn.
        server.until(lambda: metric(rb'imret_requests_total\{.*status="499"\}') >= len(leaving) // 2)
        server.until(lambda: metric(rb'imret_queue_depth\{queue="large pictures"\}') == 0)
    finally:
        server.end()
