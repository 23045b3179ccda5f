"""Labelled pictures of a folder, and which of them are in another folder too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune.data.records import read_records
from imret.datasets.labelled import duplicates_in, read_labelled
from imret.datasets.scan import Ignored, Picture, walk
from imret.errors import DataError
from tests.fakes.pictures import draw_picture


def test_a_picture_is_listed_with_its_category_size_and_time(tmp_path: Path) -> None:
    file = draw_picture(tmp_path / "aves" / "nest" / "a.png")
    loose = draw_picture(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    picture, other, notes = walk(str(tmp_path))
    assert picture == Picture("aves/nest/a.png", "aves", file.stat().st_size, file.stat().st_mtime_ns)
    assert picture.file_in(tmp_path) == str(file)
    assert other == Picture("b.png", None, loose.stat().st_size, loose.stat().st_mtime_ns)
    assert notes == Ignored("notes.txt", "not a picture by its name (*.txt)")


def test_duplicates_are_the_same_bytes_whatever_their_names(tmp_path: Path) -> None:
    for split, seeds in (("train", (0, 1, 2)), ("test", (3, 4, 5))):
        for seed in seeds:
            draw_picture(tmp_path / split / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    shutil.copy(tmp_path / "test" / "fungi" / "3.png", tmp_path / "train" / "aves" / "renamed.png")
    train, test = read_labelled(tmp_path / "train"), read_labelled(tmp_path / "test")
    assert duplicates_in(train, test) == ["fungi/3.png"]
    (tmp_path / "train" / "aves" / "renamed.png").unlink()  # gone since the folder was read
    assert duplicates_in(train, test) == []


def test_a_folder_without_pictures_says_what_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "aves").mkdir()
    for name in ("1.NEF", "2.nef", "3.psd"):
        (tmp_path / "aves" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"no pictures in any category, but what is left out: 2 RAW \(.nef\)"):
        read_labelled(tmp_path)
    with pytest.raises(DataError, match="holds no pictures, but what is left out: 2 RAW"):
        read_records(tmp_path)
