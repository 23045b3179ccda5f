"""Splits and numbers are told from categories by their names, and a train is also a thing to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from imret.datasets.doubtful_categories import Doubtful, doubtful_categories, doubtful_folders
from tests.fakes.pictures import draw_picture


@pytest.mark.parametrize(
    "name",
    ["train", "Training", "valid", "val", "validation", "TEST", "testing", "dev", "val2017", "test_set"],
)  # fmt: skip
def test_a_name_of_a_split_is_known_in_its_spellings(name: str) -> None:
    assert doubtful_categories([name, "aves"]) == Doubtful([name], [])


@pytest.mark.parametrize("name", ["0", "00000", "3.0", "-1", "1e3", "2024-05-01", "١٢", "1,000"])
def test_digits_without_a_letter_are_a_number(name: str) -> None:
    assert doubtful_categories([name, "aves", "fungi"]) == Doubtful([], [name])


@pytest.mark.parametrize(
    "name", ["trainer", "steam train", "testudo", "devil", "vale", "7up", "porsche 911", "nan", "-"]
)  # fmt: skip
def test_words_and_what_has_letters_are_categories(name: str) -> None:
    assert doubtful_categories([name, "aves", "fungi"]) == Doubtful([], [])


def test_a_train_among_other_things_is_one_unless_it_holds_folders_of_its_own() -> None:
    assert doubtful_categories(["car", "plane", "train"]) == Doubtful([], [])
    assert doubtful_categories(["car", "plane", "train"], nested={"train"}) == Doubtful(["train"], [])
    assert doubtful_categories(["car", "plane", "test", "train"]) == Doubtful(["test", "train"], [])
    assert doubtful_categories(["images", "train"]) == Doubtful(["train"], [])
    assert doubtful_categories(["car", "plane", "test"]) == Doubtful(["test"], [])


def test_folders_are_looked_at_and_none_is_no_error(tmp_path: Path) -> None:
    for name in ("aves", "car", "train", "12", ".git"):
        draw_picture(tmp_path / name / "a.png")
    assert doubtful_folders(tmp_path) == Doubtful([], ["12"])
    (tmp_path / "train" / "a.png").rename(tmp_path / "a.png")
    (tmp_path / "train" / "aves").mkdir()
    assert doubtful_folders(tmp_path) == Doubtful(["train"], ["12"])
    assert doubtful_folders(tmp_path / "nothing") == Doubtful([], [])
