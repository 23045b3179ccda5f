"""A manifest of training pictures, CSV or Parquet, read or refused with the line that is wrong.

Hides the two formats. Opens no picture.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.records import Record, refuse_one_category
from finetune.data.species import RANKS, read_taxon
from imret.datasets.csv_rows import read_rows, stands_for_nothing
from imret.datasets.spelling import composed, on_disk
from imret.errors import DataError, counted, some_of

_SUFFIXES = (".csv", ".parquet")

_COLUMNS = ("path", "category", "caption", "species", "common_name", "split", *RANKS)
_SPLITS = {"": "train", "train": "train", "val": "validation", "validation": "validation", "test": "test"}


def is_manifest(train: str | os.PathLike[str]) -> bool:
    """Whether training data is given as a manifest, by its name; else it is a folder."""
    return Path(train).suffix.lower() in _SUFFIXES and not Path(train).is_dir()


def read_manifest(file: str | os.PathLike[str]) -> list[Record]:
    """Read the pictures of a manifest.

    Args:
        file: UTF-8 CSV with a header line, or Parquet, with the columns path and category and, if wanted,
            caption, species, common_name, split (train, val or validation, test), and kingdom, phylum,
            class, order, family, genus; others are ignored. Paths are relative to the file's folder, in
            either normal form of Unicode. Several rows for one picture are several captions and agree in
            everything else.

    Returns:
        Records in the order of their paths, whatever their split.

    Raises:
        DataError: If the file cannot be read or lacks a column, or a row has no path or no category, leads
            outside, contradicts an earlier one, or names a file that is not there; the message gives the
            row. If categories and folders contradict each other, or there is one category only.
    """
    file = Path(file)
    known: dict[str, Record] = {}
    lines: dict[str, str] = {}
    rows = [(line, _read_row(file, line, row)) for line, row in _rows(file)]
    spelled = on_disk(file.parent, dict.fromkeys(record.path for _, record in rows))
    for line, read in rows:
        record = replace(read, path=spelled.get(read.path, read.path))
        first = known.setdefault(record.path, record)
        lines.setdefault(record.path, line)
        if first is record:
            continue
        if difference := _difference(first, record):
            raise DataError(
                f"manifest {str(file)!r} says in {line} that {record.path!r} is {difference} in "
                f"{lines[record.path]}. Correct one of them: a picture has one category, species and split, "
                "and may have several captions."
            )
        new = tuple(caption for caption in record.captions if caption not in first.captions)
        known[record.path] = replace(first, captions=first.captions + new)
    if not known:
        raise DataError(f"manifest {str(file)!r} names no picture. Write lines of path,category.")
    _refuse_other_folders(file, known, lines)
    records = _with_sizes(file, known, lines)
    refuse_one_category(records, file)
    return records


def _read_row(file: Path, line: str, row: dict[str, str]) -> Record:
    """Return the record of one row, without its size."""
    for column in ("path", "category"):
        if not row[column]:
            raise DataError(
                f"manifest {str(file)!r} has an empty {column} in {line}. Fill it in, or remove the line."
            )
    path = posixpath.normpath(row["path"])
    if path.startswith(("/", "../")) or path in ("..", "."):
        raise DataError(
            f"manifest {str(file)!r} names {row['path']!r} in {line}, which does not lie below its folder. "
            "Write paths relative to the manifest, and put it above the pictures."
        )
    split = _SPLITS.get(row.get("split", "").lower())
    if split is None:
        raise DataError(
            f"manifest {str(file)!r} has the split {row['split']!r} in {line}. "
            "Write train, val, validation or test."
        )
    caption = row.get("caption", "")
    return Record(
        path,
        composed(row["category"]),
        0,
        captions=(caption,) if caption else (),
        taxon=read_taxon(row),
        split=split,
    )


def _difference(first: Record, second: Record) -> str:
    """Say how a second row for a picture contradicts the first; nothing if it does not."""
    if first.category != second.category:
        return f"of category {second.category!r}, and of {first.category!r}"
    if first.split != second.split:
        return f"for {second.split!r}, and for {first.split!r}"
    if first.taxon != second.taxon:
        return f"{_shown(second)}, and {_shown(first)}"
    return ""


def _shown(record: Record) -> str:
    taxon = record.taxon
    if taxon is None:
        return "of no species"
    return "of " + " ".join(filter(None, (*taxon.ranks, repr(taxon.species or taxon.common_name))))


def _refuse_other_folders(file: Path, known: Mapping[str, Record], lines: Mapping[str, str]) -> None:
    """Refuse categories that the folders contradict: aves/1.jpg in fungi, where both are categories."""
    categories = {record.category for record in known.values()}
    folders = {path: composed(path.split("/", 1)[0]) for path in known if "/" in path}
    wrong = [path for path, top in folders.items() if top in categories and top != known[path].category]
    if wrong:
        raise DataError(
            f"manifest {str(file)!r} puts {counted(len(wrong))} in another category than their folder "
            f"says, the first {wrong[0]!r} in {known[wrong[0]].category!r} ({lines[wrong[0]]}). Correct the "
            "categories, or move the pictures out of folders that are named like a category."
        )


def _with_sizes(file: Path, known: Mapping[str, Record], lines: Mapping[str, str]) -> list[Record]:
    records, missing = [], []
    for path, record in known.items():
        try:
            records.append(replace(record, size_bytes=os.stat(file.parent / path).st_size))
        except (OSError, ValueError):
            missing.append(path)
    if missing:
        raise DataError(
            f"manifest {str(file)!r} names {counted(len(missing))} not in {str(file.parent)!r}, "
            f"the first {missing[0]!r} in {lines[missing[0]]}. Put them there, or take out their lines."
        )
    return sorted(records, key=lambda record: record.path)


# ---- The two formats -------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what to call each row, and its known columns with spaces tidied; what is missing is empty."""
    read = _parquet_rows if file.suffix.lower() == ".parquet" else _csv_rows
    for line, row in read(file):
        yield line, {name: _cell(file, line, name, row[name]) for name in _COLUMNS if name in row}


def _cell(file: Path, line: str, column: str, value: object) -> str:
    """Return a cell as text: a label may be the number 0, and a file name may hold two spaces in a row."""
    if value is None or value != value:  # Parquet has NaN for what is missing among numbers
        return ""
    if isinstance(value, bytes | list | dict):
        raise DataError(
            f"manifest {str(file)!r} has a {type(value).__name__} in column {column} of {line}. Write text; "
            "a picture of several captions has a row for each."
        )
    text = str(value).strip()
    if column not in ("path", "category") and stands_for_nothing(text):
        raise DataError(
            f"manifest {str(file)!r} has {text!r} in column {column} of {line}, which other programs write "
            'where there is nothing. Leave such cells empty (in R: write.csv(..., na = "")).'
        )
    return text if column == "path" else " ".join(text.split())


def _csv_rows(file: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    for line, row in read_rows(file, ("path", "category"), kind="manifest", optional=_COLUMNS):
        yield f"line {line}", row


def _parquet_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"manifest {str(file)!r} is Parquet, which needs: pip install 'imret[parquet]'. "
            "Or write it as CSV."
        ) from error
    try:
        with parquet.ParquetFile(file) as table:  # type: ignore[no-untyped-call]
            columns = table.schema_arrow.names
            wanted = [name for name in columns if name.strip().lower() in _COLUMNS]
            names = [name.strip().lower() for name in wanted]
            _refuse_columns(file, columns, names)
            number = 0
            for batch in table.iter_batches(columns=wanted):
                cells = [batch.column(name).to_pylist() for name in wanted]
                for row in zip(*cells, strict=True):
                    number += 1
                    yield f"row {number}", dict(zip(names, row, strict=True))
    except (OSError, ValueError) as error:  # what pyarrow raises on a file that is no Parquet is a ValueError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        raise DataError(f"cannot read the manifest {str(file)!r} as Parquet: {reason}.") from error


def _refuse_columns(file: Path, columns: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a table that lacks a column, or has a known one twice."""
    if missing := [name for name in ("path", "category") if name not in known]:
        raise DataError(
            f"manifest {str(file)!r} has no column {' and no column '.join(missing)}, but "
            f"{some_of(columns, between=',')!r}. It needs at least: path,category"
        )
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise DataError(f"manifest {str(file)!r} has two columns {twice!r}. Give one of them another name.")
