"""What an ingest finds before it begins: categories with counts, and folders a level too high or too low."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import Picture, glance, walk
from ingest.sources import FolderSource
from ingest.survey import categories_of, in_words, odd_levels, survey


def fill(root: Path, *folders: str, n: int = 2) -> Path:
    """Put n files that are named like pictures into each of some folders."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (root / folder / f"{i}.jpg").touch()
    return root


def said(*roots: Path, where: str = "", **options: bool) -> list[str]:
    return odd_levels(survey(FolderSource(root, **options) for root in roots), where)


# ---- A glance --------------------------------------------------------------------------------------------


def test_a_glance_counts_what_a_walk_finds_through_links_and_round_no_loop(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "aves", "aves/deep", "@Recycle", "old", ".hidden")
    fill(tmp_path / "elsewhere", ".", n=3)
    (root / "fungi").symlink_to(tmp_path / "elsewhere")
    (root / "aves" / "loop").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nothing")
    (root / "aves" / "notes.txt").touch()
    exclusion = Exclusion(root, ["old"])
    walked = [os.path.dirname(one.path) for one in walk(str(root), exclusion) if isinstance(one, Picture)]
    counts = {folder: n for folder, n in glance(str(root), exclusion) if n}
    assert counts == {"aves": 2, "aves/deep": 2, "fungi": 3}
    assert counts == {folder: walked.count(folder) for folder in walked}


# ---- Categories ------------------------------------------------------------------------------------------


def test_the_largest_categories_are_named_with_their_counts_and_the_others_counted(tmp_path: Path) -> None:
    for n in range(9):
        fill(tmp_path, f"c{n}", n=n + 1)
    fill(tmp_path, ".", n=3)
    found = survey([FolderSource(tmp_path)])
    assert in_words(found) == (
        "found 48 pictures in 9 categories: c8 9, c7 8, c6 7, c5 6, c4 5 and 4 more; "
        "3 without a category, as they lie in no sub-folder"
    )
    assert list(categories_of(found).items())[::8] == [("c8", 9), ("c0", 1)]


def test_categories_of_several_folders_are_put_together(tmp_path: Path) -> None:
    fill(tmp_path / "one", "aves", "fungi")
    fill(tmp_path / "two", "aves/adult", n=1)
    found = survey([FolderSource(tmp_path / "one"), FolderSource(tmp_path / "two")])
    assert in_words(found) == "found 5 pictures in 2 categories: aves 3, fungi 2"
    assert in_words(survey([FolderSource(tmp_path / "one", categories=False)])) == "found 4 pictures"


def test_a_category_is_printed_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    fill(tmp_path, "a\x1b[2Jb", n=1)
    assert in_words(survey([FolderSource(tmp_path)])) == r"found 1 picture in 1 category: a\x1b[2Jb 1"


# ---- A level too high, or too low ------------------------------------------------------------------------


def test_a_folder_of_categories_is_as_it_should_be(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "aves", "fungi", "insecta")
    fill(tmp_path / "deep", "aves/passer", "aves/corvus", "fungi/amanita", "fungi/boletus")
    fill(tmp_path / "twins", *(f"{c}/{k}" for c in ("aves", "fungi") for k in ("raw", "edited")))
    fill(tmp_path / "dates", *(f"{y}/{m:02}" for y in (2024, 2025) for m in range(1, 13)))
    fill(tmp_path / "months", *(f"{y}/{m}" for y in (2024, 2025) for m in ("May", "June", "July", "August")))
    for name in ("photos", "deep", "twins", "dates", "months"):
        assert said(tmp_path / name) == [], name


def test_splits_are_told_with_what_to_ingest_instead(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *(f"{s}/{c}" for s in ("train", "test") for c in ("aves", "fungi")))
    (sentence,) = said(root, where=" --db db")
    assert sentence == (
        f"Warning: test and train in {root} look like the splits of one data set, and become categories in "
        f"place of aves, fungi. If that is not meant, ingest {root}/test or {root}/train, or each of them: "
        f"imret ingest {root}/test {root}/train --db db"
    )
    assert said(root, categories=False) == []


def test_one_split_alone_is_told_too(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "val2017/aves", "val2017/fungi")
    (sentence,) = said(root)
    assert "val2017 in" in sentence
    assert "looks like a split of a data set, and becomes a category in place of aves, fungi" in sentence
    assert sentence.endswith(f"If that is not meant: imret ingest {root}/val2017")


def test_parts_that_all_hold_the_same_categories_are_told(tmp_path: Path) -> None:
    categories = ("aves", "fungi", "insecta", "plantae")
    root = fill(tmp_path / "data", *(f"{part}/{c}" for part in ("camera a", "camera b") for c in categories))
    assert said(root) == [
        f"Warning: camera a and camera b in {root} become categories, and all hold the same folders "
        f"(aves, fungi, insecta and 1 more). If those are the categories: "
        f"imret ingest '{root}/camera a' '{root}/camera b'"
    ]


def test_one_category_for_all_is_told_and_whether_it_holds_the_categories(tmp_path: Path) -> None:
    fill(tmp_path / "data", "images/aves", "images/fungi")
    assert said(tmp_path / "data") == [
        "Warning: all 4 pictures are of one category, 'images'. If the folders in it (aves, fungi) are the "
        f"categories: imret ingest {tmp_path}/data/images"
    ]
    fill(tmp_path / "holiday", "2024")
    (sentence,) = said(tmp_path / "holiday")
    assert sentence.startswith("note: all 2 pictures are of one category, '2024'")
    assert sentence.endswith("--no-categories")


def test_a_folder_that_is_one_category_of_many_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "data", "aves", "fungi", "insecta")
    assert said(tmp_path / "data" / "aves") == [
        "Warning: all 2 pictures are without a category, as no sub-folder holds any of them. If 'aves' is a "
        f"category itself, as fungi, insecta beside it: imret ingest {tmp_path}/data"
    ]
    assert said(tmp_path / "data" / "aves", categories=False) == []


def test_a_flat_pile_is_told_to_have_no_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = "note: all 2 pictures are without a category, as no sub-folder holds any of them"
    fill(tmp_path / "home" / "pile", ".")
    assert said(tmp_path / "home" / "pile") == [note]
    fill(tmp_path / "home" / "other", ".")
    assert said(tmp_path / "home" / "pile") != [note]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where everything lies beside everything
    assert said(tmp_path / "home" / "pile") == [note]


def test_what_many_folders_have_in_common_is_told_of_a_few(tmp_path: Path) -> None:
    roots = [fill(tmp_path / f"{n}", "only") for n in range(6)]
    sentences = said(*roots)
    assert len(sentences) == 4
    assert sentences[-1] == "and 3 more of these folders are like that"


def test_a_folder_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path / "photos", "aves"))
    (tmp_path / "photos").rename(tmp_path / "away")
    assert in_words(survey([source])) == ""
    assert odd_levels(survey([source]), "") == []
