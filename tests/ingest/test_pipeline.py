"""Ingest reconciles: after a run the collection equals the folder, and only what changed was done."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imret import Encoder, open_store
from imret.errors import DataError, ModelError, ModelMismatch, StoreError
from imret.models.lazy_encoder import LazyEncoder
from imret.store import Collection, Identity, Point, Store
from imret.store.payload import modified_time
from ingest import decode_workers
from ingest.content_sample import CONTENT_SAMPLE, Sample
from ingest.decode_workers import Decoders
from ingest.pipeline import ingest, processes_for
from ingest.reconcile import Reconciler
from ingest.report import Counters, Report
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Another model of the same dimension."""
    return Encoder(
        str(write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)),
        device="cpu",
        precision="fp32",
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("fungi/a.png", "fungi/b.png", "aves/c.png", "aves/deep/d.png", "e.png")):
        draw_picture(tmp_path / "photos" / name, seed=seed)
    return tmp_path / "photos"


def _ingest(
    folder: Path | list[Path], db: Path, encoder: Encoder, *, flat: bool = False, **options: Any
) -> Report:
    folders = folder if isinstance(folder, list) else [folder]
    sources = [FolderSource(one, categories=not flat) for one in folders]
    with open_store(str(db)) as store:
        return ingest(store, sources, encoder=encoder, **options)


def _contents(db: Path, collection: str = "photos") -> dict[str, Point]:
    """Return what the live version holds, by path below its source."""
    with open_store(str(db), create=False) as store:
        points = [p for batch in store.open(collection).scan(vectors=True) for p in batch]
    return {point.payload["path"]: point for point in points}


def _counts(report: Report) -> dict[str, int]:
    names = ("added", "updated", "unchanged", "moved", "removed", "missing")
    return {name: getattr(report, name) for name in names if getattr(report, name)} | {
        "encoded": report.encoded
    }


def test_a_first_ingest_stores_every_picture_with_its_payload_and_its_embedding(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    report = _ingest(photos, tmp_path / "db", encoder)
    assert _counts(report) == {"added": 5, "encoded": 5}
    stored = _contents(tmp_path / "db")
    assert sorted(stored) == ["aves/c.png", "aves/deep/d.png", "e.png", "fungi/a.png", "fungi/b.png"]
    assert {path: point.payload.get("category") for path, point in stored.items()} == {
        "aves/c.png": "aves", "aves/deep/d.png": "aves", "e.png": None,
        "fungi/a.png": "fungi", "fungi/b.png": "fungi",
    }  # fmt: skip
    for path, point in stored.items():
        expected = encoder.encode_images([photos / path])[0]
        np.testing.assert_allclose(point.vector, expected, atol=1e-5)
        assert (point.payload["width"], point.payload["height"]) == (64, 48)
        assert point.payload["size_bytes"] == (photos / path).stat().st_size


def test_a_long_ingest_indexes_where_the_index_lags_and_says_so(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []  # points, each time that an index was built

    def optimize(collection: Collection) -> None:
        assert threading.current_thread() is threading.main_thread()  # Ctrl-C need not wait for it
        stored.append(collection.count())
        optimized(collection)

    optimized = Collection.optimize
    monkeypatch.setattr(Collection, "optimize", optimize)
    monkeypatch.setattr(Collection, "needs_optimize", lambda collection: collection.count() == 2)
    stages: list[str] = []
    _ingest(photos, tmp_path / "db", encoder, batch_size=1, on_stage=stages.append)
    assert len(stored) == 2
    assert 2 <= stored[0] <= 4  # what had been begun is stored first
    assert stored[1] == 5
    assert stages == ["load", "ingest", "index", "ingest", "index"]
    assert len(_contents(tmp_path / "db")) == 5


def test_encoding_goes_on_while_the_index_is_built(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(10, 30):
        draw_picture(photos / "fungi" / f"{seed}.png", seed=seed)
    encoded: list[int] = []
    meanwhile: list[int] = []
    indexing = threading.Event()

    def encode(given: Encoder, pixels: np.ndarray, **options: Any) -> np.ndarray:
        if len(encoded) >= 6:
            indexing.wait(20)
        encoded.append(len(pixels))
        return really_encode(given, pixels, **options)

    def optimize(collection: Collection) -> None:
        before, deadline = len(encoded), time.monotonic() + 20
        indexing.set()
        while not meanwhile and len(encoded) < before + 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        meanwhile.append(len(encoded) - before)
        really_optimize(collection)

    really_encode, really_optimize = Encoder.encode_pixels, Collection.optimize
    monkeypatch.setattr(Encoder, "encode_pixels", encode)
    monkeypatch.setattr(Collection, "optimize", optimize)
    monkeypatch.setattr(Collection, "needs_optimize", lambda collection: collection.count() == 2)
    _ingest(photos, tmp_path / "db", encoder, batch_size=1)
    assert meanwhile[0] >= 5


def test_a_long_ingest_for_a_gpu_decodes_in_processes_and_stores_the_same(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(10, 60):
        draw_picture(photos / "fungi" / f"{seed}.png", seed=seed)
    (photos / "fungi" / "broken.png").write_bytes(b"no picture")
    plain = _ingest(photos, tmp_path / "plain", encoder, workers=4, batch_size=4)
    spread: list[int] = []
    files: list[str] = []

    def start_and_wait(decoders: Decoders, processes: int) -> None:
        spread.append(processes)
        really_spread(decoders, 2)
        while not all(worker.has_begun() for worker in decoders._starting):
            time.sleep(0.02)

    def decode_there(
        worker: decode_workers._Worker, some: Sequence[str]
    ) -> list[decode_workers.Pixels | str]:
        files.extend(some)
        return really_decode(worker, some)

    really_spread, really_decode = Decoders.spread, decode_workers._Worker.decode
    monkeypatch.setattr(Decoders, "spread", start_and_wait)
    monkeypatch.setattr(decode_workers._Worker, "decode", decode_there)
    monkeypatch.setattr("ingest.pipeline.LONG", 56)
    monkeypatch.setattr("ingest.pipeline.processes_for", lambda device, workers: workers)
    report = _ingest(photos, tmp_path / "db", encoder, workers=4, batch_size=4)
    assert spread == [4]
    assert files
    assert _counts(report) == _counts(plain) == {"added": 55, "encoded": 55}
    assert report.skipped == plain.skipped != []
    expected = _contents(tmp_path / "plain")
    for path, point in _contents(tmp_path / "db").items():
        assert point.payload == expected[path].payload
        np.testing.assert_allclose(point.vector, expected[path].vector, atol=1e-6)


def test_a_short_ingest_starts_no_process_to_decode(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline.processes_for", lambda device, workers: workers)
    monkeypatch.setattr("ingest.pipeline.LONG", 6)
    monkeypatch.setattr(Decoders, "spread", lambda *_: pytest.fail("started"))
    assert _counts(_ingest(photos, tmp_path / "db", encoder)) == {"added": 5, "encoded": 5}


def test_only_a_gpu_beside_enough_cores_is_fed_by_processes() -> None:
    asked = [("cuda", 16), ("cuda:1", 4), ("cuda", 2), ("cpu", 64), ("mps", 10)]
    assert [processes_for(*one) for one in asked] == [16, 4, 0, 0, 0]


def test_a_second_run_decodes_nothing(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    monkeypatch.setattr("ingest.pipeline.Decoders.decode", lambda *_: pytest.fail("decoded"))
    report = _ingest(photos, tmp_path / "db", encoder)
    assert _counts(report) == {"unchanged": 5, "encoded": 0}
    assert (report.compared, report.other_content) == (5, 0)
    assert report.skipped == []


def test_a_changed_picture_is_embedded_again_under_its_id(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    before = _contents(tmp_path / "db")
    draw_picture(photos / "fungi" / "a.png", seed=77)
    report = _ingest(photos, tmp_path / "db", encoder)
    assert _counts(report) == {"updated": 1, "unchanged": 4, "encoded": 1}
    after = _contents(tmp_path / "db")
    assert after["fungi/a.png"].id == before["fungi/a.png"].id
    np.testing.assert_allclose(
        after["fungi/a.png"].vector, encoder.encode_images([photos / "fungi/a.png"])[0], atol=1e-5
    )


def test_a_touched_picture_keeps_its_vector_and_gets_its_new_time(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    os.utime(photos / "e.png", ns=(0, 1_000_000_000))
    assert _counts(_ingest(photos, tmp_path / "db", encoder)) == {"unchanged": 5, "encoded": 0}
    assert _contents(tmp_path / "db")["e.png"].payload["modified"] == "1970-01-01T00:00:01.000000Z"


def test_a_moved_picture_keeps_its_vector_and_leaves_its_old_place(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    before = _contents(tmp_path / "db")
    (photos / "plantae").mkdir()
    (photos / "fungi" / "a.png").rename(photos / "plantae" / "renamed.png")
    assert _counts(_ingest(photos, tmp_path / "db", encoder)) == {"moved": 1, "unchanged": 4, "encoded": 0}
    after = _contents(tmp_path / "db")
    assert "fungi/a.png" not in after
    assert after["plantae/renamed.png"].payload["category"] == "plantae"
    np.testing.assert_array_equal(after["plantae/renamed.png"].vector, before["fungi/a.png"].vector)


def test_a_copy_is_a_picture_of_its_own_but_is_not_embedded_again(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    shutil.copyfile(photos / "e.png", photos / "fungi" / "copy.png")
    assert _counts(_ingest(photos, tmp_path / "db", encoder)) == {"added": 1, "unchanged": 5, "encoded": 0}
    assert {"e.png", "fungi/copy.png"} <= set(_contents(tmp_path / "db"))


def test_two_pictures_that_change_places_are_both_right(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    a, b, spare = photos / "fungi/a.png", photos / "fungi/b.png", photos / "spare"
    a.rename(spare)
    b.rename(a)
    spare.rename(b)
    os.utime(a, ns=(0, 1))
    os.utime(b, ns=(0, 2))
    _ingest(photos, tmp_path / "db", encoder)
    for path, point in _contents(tmp_path / "db").items():
        np.testing.assert_allclose(point.vector, encoder.encode_images([photos / path])[0], atol=1e-5)


def test_a_removed_picture_stays_until_prune(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    (photos / "fungi" / "a.png").unlink()
    assert _counts(_ingest(photos, tmp_path / "db", encoder)) == {"unchanged": 4, "missing": 1, "encoded": 0}
    assert "fungi/a.png" in _contents(tmp_path / "db")
    report = _ingest(photos, tmp_path / "db", encoder, prune=True)
    assert _counts(report) == {"unchanged": 4, "removed": 1, "encoded": 0}
    assert "fungi/a.png" not in _contents(tmp_path / "db")


def test_prune_never_empties_a_collection_because_its_folder_is_empty_or_missing(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    photos.rename(tmp_path / "unplugged")
    with pytest.raises(DataError, match="no such folder"):
        _ingest(photos, tmp_path / "db", encoder, prune=True)
    photos.mkdir()  # an unmounted mount point
    with pytest.raises(DataError, match="Is its drive mounted"):
        _ingest(photos, tmp_path / "db", encoder, prune=True)
    assert len(_contents(tmp_path / "db")) == 5


def test_prune_leaves_the_pictures_of_other_folders(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    draw_picture(tmp_path / "more" / "fungi" / "f.png", seed=40)
    draw_picture(tmp_path / "more" / "fungi" / "g.png", seed=41)
    _ingest([photos, tmp_path / "more"], tmp_path / "db", encoder)
    (tmp_path / "more" / "fungi" / "g.png").unlink()
    (photos / "e.png").unlink()
    report = _ingest(photos, tmp_path / "db", encoder, prune=True)
    assert _counts(report) == {"unchanged": 4, "removed": 1, "encoded": 0}
    assert {"fungi/f.png", "fungi/g.png"} <= set(_contents(tmp_path / "db"))


def test_changing_to_a_flat_pile_refiles_without_embedding(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    assert _counts(_ingest(photos, tmp_path / "db", encoder, flat=True)) == {
        "updated": 4,
        "unchanged": 1,
        "encoded": 0,
    }
    assert all("category" not in point.payload for point in _contents(tmp_path / "db").values())


def test_an_empty_folder_is_refused_and_leaves_no_collection(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "empty" / "fungi").mkdir(parents=True)
    with open_store(str(tmp_path / "db")) as store:
        with pytest.raises(DataError, match="no pictures in"):
            ingest(store, [FolderSource(tmp_path / "empty")], encoder=encoder)
        assert store.collections() == []


@pytest.mark.parametrize("fault", ["weights", "device"])
def test_a_model_that_cannot_encode_leaves_no_collection_that_is_bound_to_it(
    photos: Path, tmp_path: Path, random_model: Path, encoder: Encoder, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(random_model, tmp_path / "broken")
    weights = tmp_path / "broken" / "open_clip_model.safetensors"
    if fault == "weights":
        save_file({**load_file(weights), "visual.proj": torch.zeros(3, 3)}, weights)
    broken = LazyEncoder(tmp_path / "broken", device="cpu" if fault == "weights" else "cuda:99")
    with open_store(tmp_path / "db") as store:
        with pytest.raises(ModelError, match="other shape" if fault == "weights" else "cuda:99"):
            ingest(store, [FolderSource(photos)], encoder=broken)
        assert store.live("photos") is None
        assert store.collections() == []
        assert ingest(store, [FolderSource(photos)], encoder=encoder).complete
        assert store.live("photos") == Identity(encoder.model_id, encoder.images_fingerprint, encoder.dim)
        assert store.staged_versions("photos") == []


def test_an_empty_collection_takes_any_model(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    """A first ingest that is killed before it stores anything leaves one."""
    with open_store(tmp_path / "db") as store:
        killed = Identity("a model that is gone", "0" * 64, 7)
        store.open_version("photos", killed).close()
        store.promote("photos", killed)
        assert ingest(store, [FolderSource(photos)], encoder=encoder).complete
        assert store.live("photos") == Identity(encoder.model_id, encoder.images_fingerprint, encoder.dim)
        assert store.staged_versions("photos") == []


def test_an_ingest_leaves_its_collection_closed(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    with open_store(tmp_path / "db") as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        store.rename("photos", "nature")
        assert ingest(store, [FolderSource(photos)], encoder=encoder, collection="nature").unchanged > 0


def test_another_model_is_refused_also_when_dimensions_agree(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    assert encoder.dim == other_encoder.dim
    _ingest(photos, tmp_path / "db", encoder)
    with pytest.raises(ModelMismatch, match=r"imret ingest .*photos --model .*other --db \S+ --rebuild"):
        _ingest(photos, tmp_path / "db", other_encoder)


def test_a_rebuild_switches_to_the_new_model_when_it_is_complete(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    report = _ingest(photos, tmp_path / "db", other_encoder, rebuild=True)
    assert _counts(report) == {"added": 5, "encoded": 5}
    with open_store(str(tmp_path / "db")) as store:
        live = store.live("photos")
        assert live is not None
        assert live.fingerprint == other_encoder.fingerprint
        assert store.staged_versions("photos") == []
    for path, point in _contents(tmp_path / "db").items():
        np.testing.assert_allclose(point.vector, other_encoder.encode_images([photos / path])[0], atol=1e-5)


def test_a_rebuild_that_fails_half_way_leaves_the_old_version_answering_and_is_resumed(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)

    class Failing(FolderSource):
        looks = 0

        def entries(self) -> Iterator[Any]:
            self.looks += 1
            for index, entry in enumerate(super().entries()):
                if index == 3 and self.looks == 2:
                    raise RuntimeError("the power went")
                yield entry

    with open_store(str(tmp_path / "db")) as store:
        with pytest.raises(RuntimeError, match="the power went"):
            ingest(store, [Failing(photos)], encoder=other_encoder, rebuild=True, batch_size=1)
        live = store.live("photos")
        assert live is not None
        assert live.fingerprint == encoder.fingerprint
    assert len(_contents(tmp_path / "db")) == 5
    report = _ingest(photos, tmp_path / "db", other_encoder, rebuild=True)
    assert report.added + report.unchanged == 5
    assert len(_contents(tmp_path / "db")) == 5


def test_a_rebuild_refuses_to_lose_the_pictures_of_a_folder_that_was_not_named(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    draw_picture(tmp_path / "more" / "fungi" / "f.png", seed=40)
    _ingest([photos, tmp_path / "more"], tmp_path / "db", encoder)
    with pytest.raises(DataError, match=r"Name every folder: imret ingest .*photos .*more"):
        _ingest(photos, tmp_path / "db", other_encoder, rebuild=True)
    assert len(_contents(tmp_path / "db")) == 6


def test_the_command_that_mends_another_model_names_the_collection_and_mends_it(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    draw_picture(tmp_path / "more" / "fungi" / "f.png", seed=40)
    for name, flag in (("photos", ""), ("birds", " --collection birds")):
        _ingest([photos, tmp_path / "more"], tmp_path / "db", encoder, collection=name)
        advice = rf"imret ingest \S+photos \S+more --model \S+other{flag} --db \S+ --rebuild"
        with pytest.raises(ModelMismatch, match=advice):
            _ingest([photos, tmp_path / "more"], tmp_path / "db", other_encoder, collection=name)
        with pytest.raises(DataError, match=advice):
            _ingest(photos, tmp_path / "db", other_encoder, collection=name, rebuild=True)


def test_a_store_lost_in_the_middle_fails_the_run_and_the_next_one_completes(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    with open_store(str(tmp_path / "db")) as store:

        class Losing(FolderSource):
            looks = 0

            def entries(self) -> Iterator[Any]:
                self.looks += 1
                for index, entry in enumerate(super().entries()):
                    if index == 3 and self.looks == 2:
                        store._worker._process.kill()  # type: ignore[attr-defined]
                    yield entry

        with pytest.raises(StoreError):
            ingest(store, [Losing(photos)], encoder=encoder, batch_size=1)
    _ingest(photos, tmp_path / "db", encoder)
    assert len(_contents(tmp_path / "db")) == 5


def test_the_report_is_written_as_json_with_every_skip(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    (photos / "fungi" / "broken.jpg").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("x")
    report = _ingest(photos, tmp_path / "db", encoder)
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["added"] == 5
    assert written["skipped"] == 1
    assert written["skips"][0]["path"] == str(photos / "fungi" / "broken.jpg")
    assert written["ignored"] == {"not a picture by its name (*.txt)": 1}
    assert written["complete"] is True
    assert Identity(written["model"], written["fingerprint"], encoder.dim) == Identity(
        encoder.model_id, encoder.fingerprint, encoder.dim
    )
    assert {"removed", "moved", "unchanged", "updated", "seconds", "images_per_s", "store"} <= set(written)


# ---- Again and again ------------------------------------------------------------------------------------


class _History:
    """Two folders that somebody works in, and what a collection of them has to hold after each ingest."""

    def __init__(self, folder: Path, encoder: Encoder, seed: int) -> None:
        self.rng = random.Random(seed)
        self.roots = [folder / "one", folder / "two"]
        self.encoder = encoder
        self.clock = 10**9  # seconds; every change of a file has a time of its own
        self.n_drawn = 0
        self.vectors: dict[str, np.ndarray] = {}  # of every good content, by its hash
        self.stored: dict[tuple[Path, str], str] = {}  # content of each place
        for root in self.roots:
            for _ in range(6):
                self.add(root)

    def add(self, root: Path) -> None:
        self.draw(self.new_place(root))

    def edit(self, root: Path) -> None:
        self.draw(self.some_file(root))

    def spoil(self, root: Path) -> None:
        file = self.some_file(root)
        file.write_bytes(b"no picture %d" % self.clock)
        self.touched(file)

    def touch(self, root: Path) -> None:
        self.touched(self.some_file(root))

    def delete(self, root: Path) -> None:
        if len(self.files(root)) > 3:  # an empty folder is refused
            self.some_file(root).unlink()

    def move(self, root: Path) -> None:
        if len(self.files(root)) > 3:
            self.some_file(root).rename(self.some_place())  # which keeps its time

    def copy(self, root: Path) -> None:
        target = self.some_place()
        with suppress(shutil.SameFileError):
            shutil.copyfile(self.some_file(root), target)
        self.touched(target)

    def some_place(self) -> Path:
        """A new place, or one that is taken."""
        root = self.rng.choice(self.roots)
        return self.new_place(root) if self.rng.random() < 0.7 else self.some_file(root)

    def new_place(self, root: Path) -> Path:
        self.n_drawn += 1
        place = root / self.rng.choice(["fungi", "aves", "aves/deep", "."]) / f"{self.n_drawn}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def draw(self, file: Path) -> None:
        self.n_drawn += 1
        draw_picture(file, seed=self.n_drawn)
        self.touched(file)
        self.vectors[_sha256(file)] = self.encoder.encode_images([file])[0]

    def touched(self, file: Path) -> None:
        self.clock += 1
        os.utime(file, ns=(0, self.clock * 10**9))

    def files(self, root: Path) -> list[Path]:
        return sorted(root.rglob("*.png"))

    def some_file(self, root: Path) -> Path:
        return self.rng.choice(self.files(root))

    def change(self) -> None:
        """Let somebody work in the folders for a while."""
        for _ in range(self.rng.randint(0, 6)):
            kinds = (
                self.add,
                self.edit,
                self.touch,
                self.delete,
                self.move,
                self.move,
                self.copy,
                self.spoil,
            )
            self.rng.choice(kinds)(self.rng.choice(self.roots))

    def ingested(self, roots: list[Path], *, prune: bool) -> tuple[int, int]:
        """Carry out in `stored` what an ingest has to do.

        Returns:
            How many pictures it keeps without a file, and how many it has to encode at most: those whose
            content is not stored, or only at places that another good picture takes.
        """
        known = {digest for (root, path), digest in self.stored.items() if self.lasts(root, path, roots)}
        n_missing = n_new = 0
        for root in roots:
            here: dict[str, str] = {}
            for file in self.files(root):
                path = file.relative_to(root).as_posix()
                if (digest := _sha256(file)) in self.vectors:
                    here[path] = digest
                    n_new += digest not in known
                elif (root, path) in self.stored:  # a picture that was spoilt keeps what it was
                    here[path] = self.stored[root, path]
            for (of, path), digest in list(self.stored.items()):
                if of == root and not (root / path).exists() and self.is_clear(root / path):
                    if prune or digest in here.values():
                        del self.stored[of, path]
                    else:
                        n_missing += 1
            self.stored.update({(root, path): digest for path, digest in here.items()})
        return n_missing, n_new

    def lasts(self, root: Path, path: str, roots: list[Path]) -> bool:
        """Whether an ingest of `roots` keeps what is stored of a place until it has looked at every file."""
        file = root / path
        new = _sha256(file) if root in roots and file.exists() else None
        return new not in self.vectors or new == self.stored[root, path]

    def is_clear(self, file: Path) -> bool:
        """Whether a file that is not there is gone: an empty folder may be a drive that is not mounted."""
        folder = next(parent for parent in file.parents if parent.exists())
        return any(folder.iterdir())

    def check(self, points: list[Point], roots: list[Path]) -> None:
        """Compare a collection with what it has to hold; the points of the roots with their files, too."""
        found = {(Path(point.payload["source"]), point.payload["path"]): point for point in points}
        assert len(found) == len(points)
        assert {place: point.payload["sha256"] for place, point in found.items()} == self.stored
        for (root, path), point in found.items():
            np.testing.assert_allclose(point.vector, self.vectors[point.payload["sha256"]], atol=1e-5)
            first, _, below = path.partition("/")
            assert point.payload.get("category") == (first if below else None)
            file = root / path
            if root in roots and file.exists() and _sha256(file) == point.payload["sha256"]:
                info = file.stat()
                assert point.payload["size_bytes"] == info.st_size
                assert point.payload["modified"] == modified_time(info.st_mtime_ns)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _stop_encoding_after(encoder: Encoder, n: int, patch: pytest.MonkeyPatch) -> None:
    """Make Ctrl-C arrive while batch n + 1 is encoded."""
    encode, n_batches = encoder.encode_pixels, 0

    def encode_some(*args: Any, **options: Any) -> Any:
        nonlocal n_batches
        n_batches += 1
        if n_batches > n:
            raise KeyboardInterrupt
        return encode(*args, **options)

    patch.setattr(encoder, "encode_pixels", encode_some)


def _new_threads(before: set[threading.Thread]) -> set[str]:
    names = {
        thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("imret-")
    }
    return {name for name in names if not name.startswith("imret-edge")}  # the line to the store stays


@pytest.mark.parametrize("seed", range(6))
def test_after_any_history_the_collection_equals_the_folders(
    seed: int, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches so small that looking up, hashing, encoding and storing overlap.
    monkeypatch.setattr("ingest.reconcile.PLAN_BATCH", 3)
    monkeypatch.setattr("ingest.pipeline.PLAN_BATCH", 2)
    history = _History(tmp_path, encoder, seed)
    rng = random.Random(seed)
    with open_store(str(tmp_path / "db")) as store:

        def run(roots: list[Path], **options: Any) -> tuple[Report, int]:
            calls: list[None] = []
            report = ingest(
                store,
                [FolderSource(root) for root in roots],
                encoder=encoder,
                batch_size=2,
                workers=2,
                on_encoder=lambda: calls.append(None),
                **options,
            )
            return report, len(calls)

        for round_ in range(8):
            history.change()
            roots = rng.sample(history.roots, k=2 if round_ == 0 else rng.choice([1, 2, 2]))
            prune = rng.random() < 0.4
            if rng.random() < 0.3:
                with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                    _stop_encoding_after(encoder, rng.randint(0, 2), patch)
                    run(roots, prune=prune)
            n_missing, n_new = history.ingested(roots, prune=prune)
            report, n_announced = run(roots, prune=prune)
            history.check(_points(store), roots)
            assert report.missing == n_missing
            assert report.encoded <= n_new or round_ == 0
            assert n_announced == bool(report.encoded)
            n_files = sum(len(history.files(root)) for root in roots)
            assert report.total == n_files

            again, n_announced = run(roots, prune=False)
            history.check(_points(store), roots)
            assert (again.unchanged, again.missing) == (n_files - len(again.skipped), n_missing)
            assert (again.encoded, again.removed, n_announced) == (0, 0, 0)


def _points(store: Store) -> list[Point]:
    with closing(store.open("photos")) as opened:
        return [point for points in opened.scan(vectors=True) for point in points]


def test_a_second_run_looks_at_no_point_twice_and_loads_no_model(
    photos: Path, tmp_path: Path, random_model: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ingest(photos, tmp_path / "db", encoder)

    def scan(*args: Any, **options: Any) -> Any:
        raise AssertionError("the collection was scanned")

    monkeypatch.setattr(Collection, "scan", scan)
    named = LazyEncoder(str(random_model))
    report = _ingest(photos, tmp_path / "db", named, prune=True, on_encoder=lambda: pytest.fail("announced"))  # type: ignore[arg-type]
    assert _counts(report) == {"unchanged": 5, "encoded": 0}
    assert not named.is_loaded
    # And it would have been scanned, had a file been gone.
    (photos / "e.png").unlink()
    with pytest.raises(AssertionError, match="was scanned"):
        _ingest(photos, tmp_path / "db", encoder, prune=True)


def test_a_picture_that_moves_while_the_folder_is_walked_hides_none_that_is_gone(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    draw_picture(photos / "zoo" / "z.png", seed=50)
    _ingest(photos, tmp_path / "db", encoder)
    (photos / "fungi" / "a.png").unlink()

    class Moving(FolderSource):
        def entries(self) -> Iterator[Any]:
            for entry in super().entries():
                yield entry
                if entry.path == "aves/c.png":  # met twice: here, and where it goes
                    (photos / "aves/c.png").rename(photos / "zoo" / "c.png")

    with open_store(str(tmp_path / "db")) as store:
        report = ingest(store, [Moving(photos)], encoder=encoder, prune=True)
    assert (report.moved, report.removed, report.encoded) == (1, 1, 0)
    assert sorted(_contents(tmp_path / "db")) == [
        "aves/deep/d.png", "e.png", "fungi/b.png", "zoo/c.png", "zoo/z.png",
    ]  # fmt: skip


def test_what_another_program_adds_to_the_folder_meanwhile_hides_none_that_is_gone(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    (photos / "fungi" / "a.png").unlink()

    class Shared(FolderSource):
        def entries(self) -> Iterator[Any]:
            yield from super().entries()
            # As another ingest would, of a picture that this walk came too early for.
            point = store.open("photos").get([next(iter(super().entries())).id], vectors=True).popitem()[1]
            assert point.vector is not None
            draw_picture(photos / "aves" / "new.png", seed=60)
            record = next(entry for entry in super().entries() if entry.path == "aves/new.png")
            payload = {**point.payload, "path": record.path}
            store.open("photos").upsert([record.id], point.vector[None], [payload])

    with open_store(str(tmp_path / "db")) as store:
        report = ingest(store, [Shared(photos)], encoder=encoder, prune=True)
    assert _counts(report) == {"unchanged": 4, "removed": 1, "encoded": 0}
    assert "fungi/a.png" not in _contents(tmp_path / "db")


def test_a_look_up_that_fails_ends_the_run_with_its_error_and_leaves_no_thread(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr("ingest.reconcile.PLAN_BATCH", 1)
    get, n_looked_up = Collection.get, 0

    def failing(self: Collection, ids: Any, **options: Any) -> Any:
        nonlocal n_looked_up
        n_looked_up += 1
        if n_looked_up == 3:
            raise StoreError("the disk is gone")
        return get(self, ids, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Collection, "get", failing)
        with pytest.raises(StoreError, match="the disk is gone"):
            _ingest(photos, tmp_path / "db", encoder)
    assert _new_threads(before) == set()
    _ingest(photos, tmp_path / "db", encoder)
    assert len(_contents(tmp_path / "db")) == 5


def test_ctrl_c_ends_every_thread_and_the_next_run_goes_on(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr("ingest.reconcile.PLAN_BATCH", 1)
    with monkeypatch.context() as patch:
        _stop_encoding_after(encoder, 2, patch)
        with pytest.raises(KeyboardInterrupt):
            _ingest(photos, tmp_path / "db", encoder, batch_size=1)
    assert _new_threads(before) == set()
    report = _ingest(photos, tmp_path / "db", encoder)
    assert report.added + report.unchanged == 5
    assert len(_contents(tmp_path / "db")) == 5


def test_a_plan_that_is_closed_early_stops_looking_up(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.reconcile.PLAN_BATCH", 1)
    for seed in range(40):
        draw_picture(tmp_path / "photos" / f"{seed:02}.png", seed=seed)
    source = FolderSource(tmp_path / "photos")
    asked: list[str] = []
    get = Collection.get

    def counting(self: Collection, ids: Any, **options: Any) -> Any:
        asked.extend(ids)
        return get(self, ids, **options)

    monkeypatch.setattr(Collection, "get", counting)
    with open_store(str(tmp_path / "db")) as store, ThreadPoolExecutor(1) as pool:
        target = store.open_version("photos", Identity("m", encoder.fingerprint, encoder.dim))
        report = Report("photos", store.address, store.engine, "m", encoder.fingerprint, [])
        plan = Reconciler(target, source, Counters(report), sample=Sample(CONTENT_SAMPLE)).plan(pool)
        assert next(plan).record.path == "00.png"
        plan.close()
        assert "imret-look-up_0" not in {thread.name for thread in threading.enumerate()}
    assert 1 <= len(asked) <= 4


# Runs the command in a process that notes which files below a folder it opens, and what it imports.
WATCHED = """
import json, os, sys
below, opened = sys.argv.pop(1), []
def note(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and os.fsdecode(args[0]).startswith(below):
        opened.append(os.path.relpath(os.fsdecode(args[0]), below))
sys.addaudithook(note)
from imret.cli.main import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code or 0, sorted(opened), sorted({"torch", "open_clip"} & set(sys.modules))]))
"""


def _watched(photos: Path, db: Path, *options: str) -> tuple[int, list[str], list[str], list[str]]:
    """Return exit code, files opened, heavy modules, and lines on stderr of an `imret ingest`."""
    arguments = [str(photos), "ingest", str(photos), "--db", str(db), *options]
    done = subprocess.run([sys.executable, "-c", WATCHED, *arguments], capture_output=True, text=True)
    assert done.stdout, done.stderr
    code, opened, loaded = json.loads(done.stdout)
    return code, opened, loaded, done.stderr.splitlines()


def test_the_command_decodes_no_picture_and_loads_no_torch_where_nothing_changed(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    code, opened, loaded, said = _watched(photos, db, "--model", encoder.model_id, "--precision", "fp32")
    assert code == 0
    assert set(opened) == {"aves/c.png", "aves/deep/d.png", "e.png", "fungi/a.png", "fungi/b.png"}
    assert loaded == ["torch"]
    found, *said = said
    assert found == (
        "found 5 pictures in 2 categories: aves 2, fungi 2; 1 without a category, as it lies in no sub-folder"
    )
    assert said[0] == f"model {encoder.model_id}; store {db} (embedded)"
    assert said[1].startswith(f"5 pictures to embed with {encoder.model_id} on ")
    assert said[1].endswith(" in fp32")
    assert said[2].startswith("photos: 5 added, 0 skipped in ")

    for options in ([], ["--prune"], ["--device", "cpu"]):
        code, opened, loaded, said = _watched(photos, db, *options)
        assert (code, len(opened), loaded) == (0, 5, [])  # each once, to compare its content
        assert said.pop(0) == found
        assert said[0] == f"model {encoder.model_id}; store {db} (embedded)"
        assert said[1].startswith("photos: 0 added, 5 unchanged, 0 skipped in ")
        assert len(said) == 2


def test_each_new_and_each_changed_picture_is_opened_once_whatever_is_stored_already(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    for seed in range(30, 40):
        draw_picture(photos / "fungi" / f"{seed}.png", seed=seed)
    draw_picture(photos / "e.png", seed=50)
    (photos / "fungi" / "a.png").rename(photos / "aves" / "moved.png")
    code, opened, _, said = _watched(
        photos, tmp_path / "db", "--model", encoder.model_id, "--precision", "fp32"
    )
    assert code == 0
    assert "10 added, 1 updated, 1 moved, 3 unchanged, 0 skipped" in said[3]
    assert {name: opened.count(name) for name in opened} == dict.fromkeys(opened, 1)
    assert {"e.png", "aves/moved.png", "fungi/30.png", "fungi/39.png"} <= set(opened)


def test_pictures_above_the_limit_of_memory_are_ingested_as_others_are(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    monkeypatch.setattr("ingest.reconcile.IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("ingest.decode_workers.IN_MEMORY_BYTES", 100)
    draw_picture(photos / "fungi" / "new.png", seed=30)
    (photos / "fungi" / "a.png").rename(photos / "aves" / "moved.png")
    assert _counts(_ingest(photos, tmp_path / "db", encoder)) == {
        "added": 1, "moved": 1, "unchanged": 4, "encoded": 1,
    }  # fmt: skip
    stored = _contents(tmp_path / "db")["fungi/new.png"]
    assert stored.payload["sha256"] == hashlib.sha256((photos / "fungi" / "new.png").read_bytes()).hexdigest()


def test_the_command_loads_no_torch_for_pictures_that_were_moved_copied_or_spoilt(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    (photos / "fungi" / "a.png").rename(photos / "aves" / "moved.png")
    shutil.copyfile(photos / "e.png", photos / "fungi" / "copy.png")
    (photos / "fungi" / "broken.png").write_bytes(b"no picture")
    code, opened, loaded, said = _watched(photos, tmp_path / "db")
    assert code == 0
    assert set(opened) >= {"aves/moved.png", "fungi/copy.png", "fungi/broken.png"}
    assert loaded == []
    assert said[2].startswith("photos: 1 added, 1 moved, 4 unchanged, 1 skipped in ")


def test_a_device_that_is_not_there_is_refused_at_once_though_nothing_changed(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    if torch.cuda.is_available():
        pytest.skip("here is a CUDA device")
    _ingest(photos, tmp_path / "db", encoder)
    code, opened, _, said = _watched(photos, tmp_path / "db", "--device", "cuda")
    assert (code, opened) == (1, [])
    assert said[1].startswith("Error: Device 'cuda' cannot be used: ")
    assert said[1].endswith(" Use --device cpu, or auto.")


def test_a_picture_moved_to_another_folder_keeps_its_vector_though_its_old_place_is_pruned(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    draw_picture(tmp_path / "more" / "z.png", seed=70)
    both = [photos, tmp_path / "more"]
    _ingest(both, tmp_path / "db", encoder)
    (photos / "e.png").rename(tmp_path / "more" / "e.png")
    report = _ingest(both, tmp_path / "db", encoder, prune=True)
    assert _counts(report) == {"added": 1, "unchanged": 5, "removed": 1, "encoded": 0}
    assert Path(_contents(tmp_path / "db")["e.png"].payload["source"]) == tmp_path / "more"


def test_a_picture_that_is_taken_with_a_note_is_counted_and_listed(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    cut = photos / "fungi" / "cut.jpg"
    noise.save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.97)])
    report = _ingest(photos, tmp_path / "db", encoder)
    assert (report.added, report.skipped) == (6, [])
    ((noted, note),) = [tuple(one.values()) for one in report.noted]
    assert noted == str(cut)
    assert re.fullmatch(r"the last \d+ % are missing", note)
    written = report.as_dict()
    assert (written["noted"], written["picture_notes"]) == (1, [{"path": str(cut), "note": note}])
    again = _ingest(photos, tmp_path / "db", encoder)
    assert (again.unchanged, again.noted) == (6, []), "it is not decoded again"
