"""Ingest reconciles: after a run the collection equals the folder, and only what changed was done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_picture, write_random_model

from imret import Encoder, open_store
from imret.errors import DataError, ModelMismatch, StoreError
from imret.store import Identity, Point
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource


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


def test_a_second_run_decodes_nothing(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    _ingest(photos, tmp_path / "db", encoder)
    for file in photos.rglob("*.png"):  # garbage of the same size and time: only a look inside would notice
        info = file.stat()
        file.write_bytes(b"x" * info.st_size)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    report = _ingest(photos, tmp_path / "db", encoder)
    assert _counts(report) == {"unchanged": 5, "encoded": 0}
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


def test_another_model_is_refused_also_when_dimensions_agree(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    assert encoder.dim == other_encoder.dim
    _ingest(photos, tmp_path / "db", encoder)
    with pytest.raises(ModelMismatch, match=r"imret ingest .*photos --model .*other --rebuild"):
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
        assert store.building("photos") == []
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
