"""Names in two normal forms of Unicode are one name, and what opens a file stays as it is on disk."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from imret.datasets.captions_csv import read_captioned
from imret.datasets.labelled import read_labelled
from imret.datasets.scan import Picture, walk
from imret.datasets.spelling import composed, on_disk, path_on_disk, spellings
from tests.fakes.pictures import draw_picture


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_a_path_may_be_spelled_in_either_form_in_each_of_its_folders() -> None:
    assert spellings("aves/1.jpg") == ["aves/1.jpg"]
    typed = "Vögel/Möwe.jpg"
    assert spellings(typed)[0] == typed
    assert set(spellings(typed)) == {
        typed,
        nfd(typed),
        f"{nfd('Vögel')}/Möwe.jpg",
        f"Vögel/{nfd('Möwe.jpg')}",
    }
    deep = "ä/" * 40 + "ö"
    assert len(spellings(deep)) <= 66
    assert {deep, nfd(deep)} <= set(spellings(deep))
    assert {composed(way) for way in spellings(nfd(deep))} == {deep}


def test_what_is_typed_is_found_as_it_is_spelled_on_disk(tmp_path: Path) -> None:
    here = tmp_path / nfd("Vögel")
    draw_picture(here / "Möwe.png")
    typed = "Vögel/Möwe.png"
    assert on_disk(tmp_path, [typed, "Vögel/Ü.png", "no.png"]) == {typed: f"{nfd('Vögel')}/Möwe.png"}
    assert path_on_disk(tmp_path / "Vögel") == str(here)
    assert path_on_disk(tmp_path / "Füchse") == str(tmp_path / "Füchse")
    (tmp_path / "Vögel").mkdir()  # where both are there, the one that is spelled alike is meant
    assert path_on_disk(tmp_path / "Vögel") == str(tmp_path / "Vögel")
    assert path_on_disk(here) == str(here)


def test_two_folders_that_differ_only_in_the_form_are_one_category_with_all_files(tmp_path: Path) -> None:
    for folder in ("Vögel", nfd("Vögel"), "Pilze"):
        draw_picture(tmp_path / folder / "1.png")
    found = {entry.path: entry.category for entry in walk(str(tmp_path)) if isinstance(entry, Picture)}
    assert found == {"Pilze/1.png": "Pilze", "Vögel/1.png": "Vögel", f"{nfd('Vögel')}/1.png": "Vögel"}
    assert read_labelled(tmp_path).categories == ["Pilze", "Vögel"]


@pytest.mark.parametrize("folder", [".", "images"])
def test_captions_of_pictures_find_them_as_they_are_spelled_on_disk(tmp_path: Path, folder: str) -> None:
    draw_picture(tmp_path / folder / nfd("Möwe.png"))
    file = tmp_path / "c.csv"
    file.write_text(f"path,caption\nMöwe.png,a gull\n{nfd('Möwe.png')},a bird\n", encoding="utf-8")
    expected = {nfd("Möwe.png"): ("a gull", "a bird")}
    assert read_captioned(file) == (tmp_path / folder, expected)
    whole = tmp_path.rename(tmp_path.with_name(nfd("größe-") + folder.strip(".")))
    typed = whole.with_name(composed(whole.name)) / file.name
    assert read_captioned(typed) == (whole / folder, expected)
