"""Rows of a CSV file with a header: cells by column, and one set of refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from imret.datasets.csv_rows import read_rows
from imret.datasets.names_csv import read_names
from imret.errors import DataError


def test_rows_are_cells_by_column_with_the_line_they_end_in(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text('\ufeffnote, Path ,,path\nx,"a\nb",1,2,3\n\ny\n', encoding="utf-8")
    assert list(read_rows(file, ("path",), kind="list")) == [
        (3, {"note": "x", "path": "a\nb", "column 3": "1", "column 4": "2", "column 5": "3"}),
        (5, {"note": "y", "path": "", "column 3": "", "column 4": ""}),
    ]


def test_a_missing_column_is_named_with_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text("path,label\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"list '.*r\.csv' has no column category; its first line is 'path,la"
    ):
        list(read_rows(file, ("path", "category"), kind="list"))


def test_only_what_comes_after_the_name_is_another_name(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("id,category,name,name\n7,aves,owl,night bird,hooter\n", encoding="utf-8")
    assert read_names(file) == {"aves": ("owl", "night bird", "hooter")}
