"""A manifest becomes records, with captions, species and splits, or is refused with the line to correct."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from finetune.data.manifest import read_manifest
from finetune.data.species import TEXT_KINDS, Taxon, read_taxon
from imret.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that are there; nobody decodes them."""
    for name in ("aves/1.jpg", "aves/2.jpg", "fungi/1.jpg", "other/ü 3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    file = folder / "train.csv"
    file.write_text(text, encoding="utf-8")
    return file


ROWS = (
    "path,category,split,caption\n"
    "fungi/1.jpg,fungi,val,\n"
    "./aves/1.jpg,aves,train,a  red bird\n"
    "aves/2.jpg,aves,test,\n"
    "aves/1.jpg,aves,,a bird\n"
    "aves/1.jpg,aves,train,a bird\n"
    "other/ü 3.jpg,fungi,,\n"
)


def test_a_manifest_gives_categories_splits_and_every_caption_of_a_picture(folder: Path) -> None:
    records = read_manifest(write(folder, ROWS))
    assert [record.path for record in records] == ["aves/1.jpg", "aves/2.jpg", "fungi/1.jpg", "other/ü 3.jpg"]
    assert records[0].captions == ("a red bird", "a bird")
    assert [record.category for record in records] == ["aves", "aves", "fungi", "fungi"]
    assert Counter(record.split for record in records) == {"train": 2, "test": 1, "validation": 1}
    assert {record.size_bytes for record in records} == {5}


def test_parquet_says_what_csv_says(folder: Path) -> None:
    header, *lines = [line.split(",") for line in ROWS.splitlines()]
    columns = {name: [line[i] or None for line in lines] for i, name in enumerate(header)}
    parquet.write_table(pa.table({**columns, "number": list(range(6))}), folder / "train.parquet")
    assert read_manifest(folder / "train.parquet") == read_manifest(write(folder, ROWS))


def test_a_column_is_known_in_any_case_and_once(folder: Path) -> None:
    text = "Path,CATEGORY,Split\naves/1.jpg,aves,\naves/2.jpg,aves,Test\nfungi/1.jpg,fungi,\n"
    records = read_manifest(write(folder, text))
    assert [record.split for record in records] == ["train", "test", "train"]
    header, *lines = [line.split(",") for line in text.splitlines()]
    columns = {name: [line[i] for line in lines] for i, name in enumerate(header)}
    parquet.write_table(pa.table(columns), folder / "train.parquet")
    assert read_manifest(folder / "train.parquet") == records
    parquet.write_table(pa.table({**columns, "split": ["", "", ""]}), folder / "train.parquet")
    for file in (folder / "train.parquet", write(folder, text.replace("Split", "Split,split"))):
        with pytest.raises(DataError, match="has two columns 'split'"):
            read_manifest(file)


def test_a_caption_with_commas_that_nobody_quoted_is_no_category(folder: Path) -> None:
    text = (
        "path,caption,category\naves/1.jpg,a small bird, in place 0,aves\nfungi/1.jpg,red, in place 1,fungi\n"
    )
    with pytest.raises(DataError, match=r"4 cells in line 2, .* 3 columns: path,caption,category"):
        read_manifest(write(folder, text))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("aves/1.jpg,,\n", "empty category in line 4"),
        (",aves,\n", "empty path in line 4"),
        ("aves/2.jpg,aves,dev\n", r"split 'dev' in line 4. Write train"),
        ("aves/1.jpg,fungi,\n", r"line 4 that 'aves/1.jpg' is of category 'fungi', and of 'aves' in line 2"),
        ("aves/1.jpg,aves,test\n", r"'aves/1.jpg' is for 'test', and for 'train' in line 2"),
        ("/etc/a.jpg,aves,\n", r"'/etc/a.jpg' in line 4, which does not lie below"),
        ("aves/../../a.jpg,aves,\n", r"'aves/../../a.jpg' in line 4, which does not lie below"),
        ("aves/8.jpg,aves,\naves/9.jpg,aves,\n", r"2 pictures not in .*'aves/8.jpg' in line 4"),
        ("aves/2.jpg,fungi,\n", r"1 picture in another category .*'aves/2.jpg' in 'fungi' \(line 4\)"),
    ],
)
def test_a_wrong_row_is_refused_naming_the_line_and_the_value(folder: Path, rows: str, message: str) -> None:
    good = "path,category,split\naves/1.jpg,aves,\nfungi/1.jpg,fungi,\n"
    read_manifest(write(folder, good))
    with pytest.raises(DataError, match=message):
        read_manifest(write(folder, good + rows))


def test_a_manifest_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no column category"):
        read_manifest(write(folder, "path,label\naves/1.jpg,aves\n"))
    with pytest.raises(DataError, match="names no picture"):
        read_manifest(write(folder, "path,category\n"))
    with pytest.raises(DataError, match=r"one category .* 'aves'"):
        read_manifest(write(folder, "path,category\naves/1.jpg,aves\n"))
    with pytest.raises(DataError, match=r"one category .* 'aves'"):
        read_manifest(write(folder, "path,category,split\naves/1.jpg,aves,\nfungi/1.jpg,fungi,test\n"))
    (folder / "latin1.csv").write_bytes(b"path,category\ncaf\xe9.jpg,aves\n")
    with pytest.raises(DataError, match="as UTF-8 CSV"):
        read_manifest(folder / "latin1.csv")
    (folder / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="as Parquet"):
        read_manifest(folder / "bad.parquet")
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(DataError, match="cannot read the manifest"):
            read_manifest(folder / name)


def test_categories_may_be_numbers_and_0_is_one(folder: Path) -> None:
    paths = ["aves/1.jpg", "fungi/1.jpg", "aves/2.jpg"]
    columns = {"path": paths, "category": [0, 1, 0], "genus": [float("nan")] * 3}
    parquet.write_table(pa.table(columns), folder / "train.parquet")
    records = read_manifest(folder / "train.parquet")
    assert {record.path: record.category for record in records} == dict(zip(paths, "010", strict=True))
    assert {record.taxon for record in records} == {None}


def test_a_list_in_a_cell_is_refused_and_not_trained_on_as_text(folder: Path) -> None:
    columns = {"path": ["aves/1.jpg"], "category": ["aves"], "caption": [["a bird", "a red bird"]]}
    parquet.write_table(pa.table(columns), folder / "train.parquet")
    with pytest.raises(DataError, match=r"a list in column caption of row 1.*a row for each"):
        read_manifest(folder / "train.parquet")


def test_two_spaces_in_a_file_name_and_windows_lines_are_no_obstacle(folder: Path) -> None:
    (folder / "aves" / "a  bird.jpg").write_bytes(b"1")
    (folder / "train.csv").write_bytes(
        b"\xef\xbb\xbfpath,category\r\naves/a  bird.jpg,aves\r\nfungi/1.jpg,fungi\r\n"
    )
    records = read_manifest(folder / "train.csv")
    assert [record.path for record in records] == ["aves/a  bird.jpg", "fungi/1.jpg"]


# ---- Species ---------------------------------------------------------------------------------------------

MAGPIE = {
    "species": "Pica hudsonia",
    "common_name": "black-billed magpie",
    "kingdom": "Animalia",
    "class": "Aves",
    "genus": "Pica",
}


def test_a_species_is_told_in_the_five_ways_of_bioclip() -> None:
    taxon = read_taxon(MAGPIE)
    assert taxon is not None
    assert [taxon.text(kind) for kind in TEXT_KINDS] == [
        "a photo of a black-billed magpie",
        "a photo of Pica hudsonia",
        "a photo of Animalia Aves Pica hudsonia",
        "a photo of Pica hudsonia with common name black-billed magpie",
        "a photo of Animalia Aves Pica hudsonia with common name black-billed magpie",
    ]
    assert all(taxon.has(kind) for kind in TEXT_KINDS)


def test_what_is_not_known_of_a_species_is_left_out_of_its_texts() -> None:
    only_name = Taxon("", "magpie")
    assert {only_name.text(kind) for kind in TEXT_KINDS} == {"a photo of a magpie"}
    assert [kind for kind in TEXT_KINDS if only_name.has(kind)] == ["common"]
    only_species = Taxon("Pica pica", "")
    assert {only_species.text(kind) for kind in TEXT_KINDS} == {"a photo of Pica pica"}
    assert [kind for kind in TEXT_KINDS if only_species.has(kind)] == ["scientific"]
    assert read_taxon({"genus": "Pica", "class": "Aves"}) is None


def test_a_species_of_one_word_gets_its_genus() -> None:
    assert read_taxon({**MAGPIE, "species": "hudsonia"}) == read_taxon(MAGPIE)


def test_rows_of_one_picture_agree_on_its_species(folder: Path) -> None:
    text = "path,category,species\naves/1.jpg,aves,Pica pica\nfungi/1.jpg,fungi,\n"
    with pytest.raises(DataError, match=r"line 4 .* of 'Pica nuttalli', and of 'Pica pica' in line 2"):
        read_manifest(write(folder, text + "aves/1.jpg,aves,Pica nuttalli\n"))
    (record, other) = read_manifest(write(folder, text))
    assert record.taxon == Taxon("Pica pica", "")
    assert other.taxon is None


def test_a_manifest_names_pictures_in_either_normal_form_of_unicode(folder: Path) -> None:
    birds = folder / unicodedata.normalize("NFD", "Vögel")
    birds.mkdir()
    (birds / "Möwe.jpg").write_bytes(b"12345")  # the path is of two forms
    typed, decomposed = "Vögel/Möwe.jpg", unicodedata.normalize("NFD", "Vögel/Möwe.jpg")
    text = (
        f"path,category,caption\n{typed},Vögel,a gull\n{decomposed},{decomposed.split('/')[0]},a bird\n"
        "fungi/1.jpg,fungi,\n"
    )
    (bird, _) = sorted(read_manifest(write(folder, text)), key=lambda record: record.category)
    assert (bird.path, bird.category) == (f"{birds.name}/Möwe.jpg", "Vögel")
    assert bird.captions == ("a gull", "a bird")


@pytest.mark.parametrize(
    ("column", "cell"), [("caption", "NA"), ("species", "NA"), ("genus", "NULL"), ("common_name", "nan")]
)
def test_a_cell_that_stands_for_nothing_is_no_text_to_train_on(folder: Path, column: str, cell: str) -> None:
    text = f"path,category,{column}\naves/1.jpg,aves,\nfungi/1.jpg,NA,{cell}\n"
    with pytest.raises(DataError, match=rf"has '{cell}' in column {column} of line 3.*Leave such"):
        read_manifest(write(folder, text))
    records = read_manifest(write(folder, text.replace(f",NA,{cell}", ",NA,")))
    assert [record.category for record in records] == ["aves", "NA"], "a category may be called so"
