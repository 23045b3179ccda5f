"""Rows of a CSV file with a header: cells by column, and one set of refusals, each with its line."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from imret.datasets.captions_csv import read_captions
from imret.datasets.csv_rows import read_rows
from imret.datasets.names_csv import read_names
from imret.errors import DataError


def rows_of(tmp_path: Path, text: str | bytes, *columns: str) -> list[tuple[int, dict[str, str]]]:
    file = tmp_path / "r.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_rows(file, columns or ("path", "caption"), kind="list"))


def test_rows_are_cells_by_column_with_the_line_they_begin_in(tmp_path: Path) -> None:
    text = '\ufeffnote, Path ,,note\nx,"a\nb",1,2\n\ny,,,\n'
    assert rows_of(tmp_path, text, "path") == [
        (2, {"note": "x", "path": "a\nb", "column 3": "1", "column 4": "2"}),
        (5, {"note": "y", "path": "", "column 3": "", "column 4": ""}),
    ]


def test_whatever_the_csv_module_writes_is_read_as_it_was(tmp_path: Path) -> None:
    rng = random.Random(0)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        cells = [
            ["".join(rng.choices('ab ,"\n\ré', k=rng.randrange(1, 9))) for _ in "xy"] for _ in range(300)
        ]
        cells = [row for row in cells if any(map(str.strip, row))]
        for row in cells:  # a blank before a quote is taken for one before the cell
            row[:] = [cell.lstrip() or "-" for cell in row]
        file = tmp_path / "w.csv"
        with file.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, quoting=quoting).writerows([["path", "caption"], *cells])
        read = [list(row.values()) for _, row in read_rows(file, ("path", "caption"), kind="list")]
        assert read == cells


def test_a_missing_column_is_named_with_the_first_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"list '.*r\.csv' has no column category; its first line is 'path,la"
    ):
        rows_of(tmp_path, "path,label\n", "path", "category")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # A comma too many, as captions have that nobody quoted.
        ("a.jpg,x\nb.jpg,a bird, red, small\n", r"4 cells in line 3, .* names 2 .*\"a bird, red\""),
        ("a.jpg,x\nb.jpg\n", r"1 cell in line 3, .* 2 columns: path,caption. Fill in"),
        ("a.jpg;x\n", r"1 cell in line 2, .*; it looks separated by semicolons, and commas"),
        # A quote that is not closed: the line that opens it, wherever that is found out.
        ('a.jpg,x\nb.jpg,"a bird\nc.jpg,y\nd.jpg,z\n', "opens a quote in line 3 that is never closed"),
        ('a.jpg,"x\ny"\n"b.jpg",z\nc.jpg,"a bird', "opens a quote in line 5 that is never closed"),
        ('a.jpg,"two\nlines","open\n', "opens a quote in line 3 that is never closed"),
        ('a.jpg,"a bird\nb.jpg,"a fish, red"\n', "in line 2 that is closed only in line 3, before 'a fish'"),
        ('"a.jpg","a bird\n"b.jpg","a fish"\n', 'in line 2 that is closed only in line 3, before \'b.jpg"'),
        ('a.jpg,"a bird\nb.jpg,a fish\nc.jpg,6"\n', "in line 2 that takes in .* row, 'b.jpg,a fish'"),
        # A quote where none can be.
        ('a.jpg,"ab"c\n', "goes on after a closed quote in line 2: 'c'"),
        ('a.jpg,"a "red" bird"\n', "goes on after a closed quote in line 2: 'red\" bird\"'"),
        ('a.jpg,a bird"\n', "a quote without its partner in line 2: 'a bird\"'"),
        # No text, or not UTF-8.
        (b"a.jpg,x\nb.jpg,caf\xe9\n", "is not UTF-8 in line 3"),
        ("a.jpg,x\nb.jpg,y\0z\n", "has NUL characters in line 3"),
    ],
)  # fmt: skip
def test_a_line_that_could_be_read_in_two_ways_is_refused_by_its_number(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    data = text.encode() if isinstance(text, str) else text
    for ending in (b"\n", b"\r\n", b"\r"):
        with pytest.raises(DataError, match=says):
            rows_of(tmp_path, (b"path,caption\n" + data).replace(b"\n", ending))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("path;caption\n", "it looks separated by semicolons, and commas are wanted"),
        ("path\tcaption\n", "it looks separated by tabs, and commas are wanted"),
        ("path,caption,Caption\n", "has two columns 'caption'"),
        ("path,caption\n".encode("utf-16"), "has NUL characters in line 1, as UTF-16 has"),
        ("path,caption\n".encode("utf-16-le"), "has NUL characters in line 1, as UTF-16 has"),
    ],
)
def test_a_header_of_another_kind_of_file_is_told_from_it(
    tmp_path: Path, header: str | bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        rows_of(tmp_path, header)


@pytest.mark.parametrize(
    "text",
    [
        "path,caption\na.jpg,a bird\n",
        'path, caption\na.jpg, "a bird"\n',  # a blank after the comma is nobody's meaning
        "path,caption\r\n\r\n  \r\na.jpg,a bird\r\n,\r\n",
        "path,caption\ra.jpg,a bird",
        "path,caption,\na.jpg,a bird,\n",  # as spreadsheets write
        "path,caption,\na.jpg,a bird\n",
        "path,caption\na.jpg,a bird,,\n",
        '"path","caption"\n"a.jpg" , "a bird" \n',
    ],
)
def test_what_means_the_same_is_read_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_text(text, newline="")
    assert read_captions(tmp_path / "c.csv") == {"a.jpg": ("a bird",)}


def test_a_caption_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('path,caption\na.jpg,"a bird,\nred, on a lawn,\nat dusk"\n')
    assert read_captions(tmp_path / "c.csv") == {"a.jpg": ("a bird, red, on a lawn, at dusk",)}


def test_quotes_within_a_cell_are_kept(tmp_path: Path) -> None:
    text = 'path,caption\na.jpg,a "red" bird\nb.jpg,"a ""red"" bird, 6"" long"\n'
    assert [row["caption"] for _, row in rows_of(tmp_path, text)] == [
        'a "red" bird',
        'a "red" bird, 6" long',
    ]


def test_only_what_comes_after_the_name_is_another_name(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    rows = "7,aves,owl,night bird,hooter\n8,fungi,morel,,\n"
    file.write_text(f"id,category,name,name,\n{rows}")  # the last column has no name
    with pytest.raises(DataError, match="5 cells in line 2"):
        read_names(file)
    file.write_text(f"id,category,name,name,more\n{rows}")
    assert read_names(file) == {"aves": ("owl", "night bird", "hooter"), "fungi": ("morel",)}


def test_an_open_quote_in_a_file_of_names_takes_no_other_category_in(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text('category,name\naves,"bird\nfungi,mushroom"\n')
    with pytest.raises(DataError, match=r"a quote in line 2 that takes in .* row, 'fungi,mushroom'"):
        read_names(tmp_path / "names.csv")


def test_a_name_with_a_comma_that_nobody_quoted_is_no_second_name(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("category,name\naves,bird, of any kind\n")
    with pytest.raises(DataError, match=r"3 cells in line 2.*give a further name a line of its own"):
        read_names(tmp_path / "names.csv")
