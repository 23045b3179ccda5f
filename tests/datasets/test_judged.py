"""Judged lists: the Parquet of INQUIRE-Rerank and CSV, what they lack, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from imret.datasets import judged
from imret.datasets.judged import find_tables, pictures_of, read_judged
from imret.datasets.scan import Skipped
from imret.errors import DataError
from tests.fakes.benchmark_files import drawn_inquire, inquire_row, write_parquet
from tests.fakes.pictures import draw_picture


def test_rows_of_a_query_make_a_list_and_a_picture_of_two_lists_is_given_once(tmp_path: Path) -> None:
    rows = [
        inquire_row("a fox ", 7, 1, b"seven"),
        inquire_row("an owl", 7, 0, b"seven"),
        inquire_row("a fox ", 8, 0, b"eight"),
    ]
    lists = read_judged([write_parquet(tmp_path / "a.parquet", rows)])
    assert lists.lists == {"a fox ": [("7", True), ("8", False)], "an owl": [("7", False)]}
    assert list(pictures_of(lists)) == [("7", b"seven"), ("8", b"eight")]
    assert lists.notes == []


@pytest.mark.parametrize("label", [True, False, 1.0, "0", "1.0", "True"])
def test_a_label_is_yes_or_no_however_it_is_written(tmp_path: Path, label: Any) -> None:
    rows = [inquire_row("fox", 7, label, b"x")]
    lists = read_judged([write_parquet(tmp_path / "a.parquet", rows)])
    assert lists.lists["fox"] == [("7", str(label) in ("True", "1.0"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant": 2}, r"the label '2' in row 2 \(relevant\). It is 0 or 1"),
        ({"relevant": -1}, "the label '-1'"),
        ({"relevant": None}, r"no label in row 2 \(relevant\)"),
        ({"query": None}, "no query in row 2"),
        ({"query": " "}, "no query in row 2"),
        ({"inat24_image_id": None}, r"no picture in row 2 \(inat24_image_id\)"),
        ({"inat24_file_name": "train/other.jpg"}, "gives one id, '7', to .* in row 2, to 'train/other.jpg'"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [inquire_row("fox", 7, 1, b"x"), inquire_row("owl", 7, 0, b"x") | change]
    with pytest.raises(DataError, match=message):
        read_judged([write_parquet(tmp_path / "a.parquet", rows)])


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (("query",), "no column query for the queries"),
        (("relevant",), "no column relevant for the labels"),
        (
            ("inat24_image_id", "inat24_file_name"),
            "no column inat24_image_id or image_id or .* for the pictures",
        ),
        (("image", "inat24_file_name"), "says nowhere where its pictures are"),
    ],
)
def test_a_lacking_column_is_named_with_those_there_are(
    tmp_path: Path, without: tuple[str, ...], message: str
) -> None:
    row = {name: cell for name, cell in inquire_row("fox", 7, 1, b"x").items() if name not in without}
    with pytest.raises(DataError, match=message) as error:
        read_judged([write_parquet(tmp_path / "a.parquet", [row])])
    assert "clip_score" in str(error.value)


def test_a_picture_judged_twice_for_a_query_counts_twice_and_is_noted(tmp_path: Path) -> None:
    rows = [inquire_row("fox", 7, 1, b"x"), inquire_row("fox", 7, 0, b"x")]
    lists = read_judged([write_parquet(tmp_path / "a.parquet", rows)])
    assert lists.lists["fox"] == [("7", True), ("7", False)]
    assert lists.notes == [
        "judged more than once for one query, and each counts: 1 picture, the first '7' for 'fox'"
    ]


def test_pictures_that_are_not_in_the_file_or_too_large_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "MAX_PICTURE_BYTES", 3)
    rows = [inquire_row("fox", n, 1, data) for n, data in ((1, None), (2, b""), (3, b"much"), (4, b"few"))]
    found = list(pictures_of(read_judged([write_parquet(tmp_path / "a.parquet", rows)])))
    assert [one.path for one in found if isinstance(one, Skipped)] == ["1", "2", "3"]
    assert ("4", b"few") in found


def test_pictures_may_be_a_column_of_bytes(tmp_path: Path) -> None:
    row = inquire_row("fox", 7, 1, None) | {"image": b"plain"}
    assert list(pictures_of(read_judged([write_parquet(tmp_path / "a.parquet", [row])]))) == [("7", b"plain")]


def test_a_csv_names_files_beside_it_in_images_or_in_a_folder_that_is_named(tmp_path: Path) -> None:
    for folder in (".", "images", "elsewhere"):
        draw_picture(tmp_path / folder / "deep" / f"{folder.strip('.') or 'here'}.png")
    for folder, name in ((".", "here.png"), ("images", "images.png"), ("elsewhere", "elsewhere.png")):
        (tmp_path / "judged.csv").write_text(f"note,query,file_name,relevant\nx,a fox,deep/{name},1\n")
        lists = read_judged([tmp_path / "judged.csv"], images=tmp_path / folder if folder[0] == "e" else None)
        assert list(pictures_of(lists)) == [(f"deep/{name}", str(tmp_path / folder / "deep" / name))]
    with pytest.raises(DataError, match=r"1 picture not in .*elsewhere.png'. Say which .* --images DIR"):
        read_judged([tmp_path / "judged.csv"])


def test_a_csv_lacking_a_column_or_a_label_says_which(tmp_path: Path) -> None:
    file = tmp_path / "judged.csv"
    for text, message in (
        ("query,path\nfox,a.png\n", "no column relevant"),
        ("query,relevant,image_id\nfox,1,7\n", "says nowhere where its pictures are"),
        ("query,relevant\nfox,1\n", "for the pictures"),
        ("query,relevant,path\nfox,,a.png\n", "no label in line 2"),
        ("query,relevant,path\nfox,maybe,a.png\n", "the label 'maybe' in line 2"),
        ("query,relevant,path\n", "no row"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_judged([file])


def test_pictures_of_a_csv_and_of_parquet_are_given_together(tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png")
    (tmp_path / "judged.csv").write_text("query,path,relevant\nfox,a.png,1\n")
    table = write_parquet(tmp_path / "b.parquet", [inquire_row("fox", 7, 0, b"x")])
    lists = read_judged([tmp_path / "judged.csv", table])
    assert list(pictures_of(lists)) == [("a.png", str(tmp_path / "a.png")), ("7", b"x")]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_what_is_no_parquet_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read .*a.parquet' as Parquet: "):
        read_judged([tmp_path / "a.parquet"])


def test_a_parquet_file_in_too_large_parts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "_MAX_GROUP_BYTES", 1000)
    rows = [inquire_row("fox", n, 1, os.urandom(900)) for n in range(4)]
    with pytest.raises(DataError, match="smaller row groups"):
        read_judged([write_parquet(tmp_path / "a.parquet", rows)])


def test_the_parts_of_a_split_are_found_as_they_were_downloaded(tmp_path: Path) -> None:
    folder = drawn_inquire(tmp_path / "set")
    drawn_inquire(tmp_path / "set", split="validation")
    names = ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]
    assert [file.name for file in find_tables(folder, "test")] == names
    assert [file.name for file in find_tables(folder / "data", "test")] == names
    with pytest.raises(DataError, match=r"there are test, validation. Choose one, --split test"):
        find_tables(folder, "train")
    os.remove(folder / "data" / names[1])
    with pytest.raises(DataError, match="holds 1 of the 2 parts of the split 'test'"):
        find_tables(folder, "test")
    assert find_tables(tmp_path, "test") == []
