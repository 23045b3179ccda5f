"""A captions file is read and its pictures are found, or it is refused with the line or the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from imret.datasets.captions_csv import read_captioned, read_captions
from imret.errors import DataError
from tests.fakes.pictures import draw_picture


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_a_picture_may_have_several_captions_and_other_columns_are_ignored(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.csv",
        'path,who,caption\na/1.jpg,x,one\n./a/1.jpg,y,"two, with comma"\na/1.jpg,z,one\nb/ü 2.jpg,w,three\n',
        encoding="utf-8-sig",
    )
    assert read_captions(file) == {"a/1.jpg": ("one", "two, with comma", "one"), "b/ü 2.jpg": ("three",)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,text\na,b\n", "no column path and no column caption"),
        ("path,caption\na/1.jpg,\n", "empty caption in line 2"),
        ("path,caption\na/1.jpg,x\n,y\n", "empty path in line 3"),
        ("path,caption\na/1.jpg\n", "has 1 cell in line 2"),
        ("", "is empty. Begin it with: path,caption"),
        ("\n\n", "is empty. Begin it with: path,caption"),
        ("sep=,\n", "is empty. Begin it with: path,caption"),
        ("sep=;\npath;caption\na;b\n", "it looks separated by semicolons"),
        ("path,caption\na/1.jpg,x\na/2.jpg,NA\n", "has 'NA' for a caption in line 3"),
        ('path,caption\n"a/1.jpg","#N/A"\n', "has '#N/A' for a caption in line 2"),
        ("path,caption\n", "names no picture"),
    ],
)
def test_a_captions_file_with_a_gap_is_refused_naming_the_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_captions(write(tmp_path / "c.csv", text))


def test_a_captions_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(b"path,caption\na/1.jpg,caf\xe9\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_captions(tmp_path / "c.csv")
    with pytest.raises(DataError, match="No such file"):
        read_captions(tmp_path / "nothing.csv")


def test_pictures_lie_beside_the_file_or_in_its_folder_images(tmp_path: Path) -> None:
    draw_picture(tmp_path / "images" / "a.png")
    beside = read_captioned(write(tmp_path / "c.csv", "caption,path,more\na thing,images/a.png,x\n"))
    assert beside == (tmp_path, {"images/a.png": ("a thing",)})
    inside = read_captioned(write(tmp_path / "c.csv", "path,caption\na.png,a thing\n./a.png,a dot\n"))
    assert inside == (tmp_path / "images", {"a.png": ("a thing", "a dot")})


def test_a_first_line_that_tells_excel_of_commas_is_no_header(tmp_path: Path) -> None:
    for first in ("sep=,", '"sep=,"', "\ufeffsep=,"):
        file = write(tmp_path / "c.csv", f"{first}\npath,caption\na.png,Naples NA\n")
        assert read_captions(file) == {"a.png": ("Naples NA",)}


@pytest.mark.parametrize("folder", [".", "images"])
def test_missing_pictures_are_counted_where_the_others_are(tmp_path: Path, folder: str) -> None:
    draw_picture(tmp_path / folder / "a.png")
    (tmp_path / folder / "b.png").mkdir()
    swapped = "a bird on a branch " * 20  # too long for a file's name
    rows = f"path,caption\nb.png,x\n{swapped},c.png\na.png,y\n"
    with pytest.raises(DataError, match=rf"2 pictures not in '{tmp_path / folder}', .*'b.png'"):
        read_captioned(write(tmp_path / "c.csv", rows))
