"""Labelled pictures of tar and Parquet files, as evaluation and training read them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from finetune.data.sources import find_sources
from imret import Encoder
from imret.datasets.labelled import read_labelled
from imret.datasets.unpacked import unpacked
from imret.errors import DataError
from imret.evaluation.dataset import embed
from tests.fakes.pictures import draw_picture

CATEGORIES = ("aves", "fungi")


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures as files, and the same in two tar files: JSON says the category in one, folders in another."""
    for seed in range(8):
        draw_picture(tmp_path / "files" / CATEGORIES[seed % 2] / f"{seed}.jpg", seed=seed)
    by_json: dict[str, bytes] = {}
    by_folder: dict[str, bytes] = {}
    for file in sorted((tmp_path / "files").rglob("*.jpg")):
        number, category = int(file.stem), file.parent.name
        if number < 4:
            by_json[f"{number}.jpg"] = file.read_bytes()
            by_json[f"{number}.json"] = json.dumps(
                {"category": category, "caption": f"number {number}"}
            ).encode()
        else:
            by_folder[f"{category}/{number}.jpg"] = file.read_bytes()
    write_tar(tmp_path / "shards" / "0.tar", by_json)
    write_tar(tmp_path / "shards" / "1.tar", {**by_folder, "nowhere.jpg": b"x"})
    return tmp_path


def test_an_evaluation_sees_the_same_pictures_in_shards_as_in_files(folder: Path, random_model: Path) -> None:
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    files = embed(read_labelled(folder / "files"), encoder)
    shards = embed(read_labelled(folder / "shards"), encoder)
    assert files.categories == shards.categories == list(CATEGORIES)
    # By category, then by number: so are the paths of both.
    np.testing.assert_array_equal(files.labels, shards.labels)
    np.testing.assert_array_equal(files.vectors, shards.vectors)


def test_training_has_the_categories_and_captions_of_shards_and_the_same_hash_again(folder: Path) -> None:
    pattern = str(folder / "shards" / "{0..1}.tar")
    sources = find_sources(pattern)
    records = {record.path: record for record in sources.labelled.records}
    assert sorted(record.category for record in records.values()) == ["aves"] * 4 + ["fungi"] * 4
    assert records["fungi/0.tar-1.jpg"].captions == ("number 1",)
    assert find_sources(str(folder / "shards")).hash() == sources.hash()


def test_any_other_name_is_left_as_it_is(folder: Path) -> None:
    for name in (str(folder / "files"), str(folder / "nowhere"), "manifest.csv", ""):
        assert unpacked(name) == name


def test_shards_without_categories_or_cut_off_are_refused(folder: Path) -> None:
    write_tar(folder / "flat" / "0.tar", {"a.jpg": b"x"})
    with pytest.raises(DataError, match="has a category: no column or key 'category' says one"):
        read_labelled(folder / "flat")
    whole = (folder / "shards" / "0.tar").read_bytes()
    (folder / "shards" / "0.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"'0\.tar' in .*damaged or cut off"):
        read_labelled(folder / "shards")
