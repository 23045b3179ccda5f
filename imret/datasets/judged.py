"""Queries with judged pictures, as INQUIRE-Rerank has them: a row is a query, a picture and a label.

Parquet with the pictures in it, as it lies on the Hugging Face Hub, or CSV beside a folder of pictures. Hides
columns' names and batches; pictures are read only when they are asked for.

Source: https://huggingface.co/datasets/evendrow/INQUIRE-Rerank, the dataset's card.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imret.datasets.csv_rows import read_rows
from imret.datasets.scan import Skipped
from imret.datasets.spelling import on_disk, path_on_disk
from imret.datasets.webdataset import MAX_PICTURE_BYTES
from imret.errors import DataError, counted, some_of, summary

# What columns may be called; the first that is there is taken.
_QUERY, _RELEVANT, _IMAGE = ("query",), ("relevant",), ("image",)
_ID = ("inat24_image_id", "image_id")
_PATH = ("inat24_file_name", "file_name", "path")

_LABELS = {"0": False, "1": True, "false": False, "true": True}
_IMAGES = "images"  # a folder of this name beside a CSV file may hold its pictures
_ROWS = 16  # pictures that are read at a time
_MAX_GROUP_BYTES = 2 << 30  # a file that asks for more memory than this at a time is not of this kind
_OF = re.compile(r"-of-([0-9]{1,6})$")


@dataclass(frozen=True)
class JudgedLists:
    """For each query the pictures that are to be ranked, and which of them are relevant.

    Attributes:
        lists: By query, as it is written: (picture, relevant) in the order of the rows.
        pictures: Ids, in the order of the rows, and where each lies on disk; None where it is in a file.
        files: That were read.
        notes: What a person should know of them.
    """

    lists: dict[str, list[tuple[str, bool]]]
    pictures: dict[str, str | None]
    files: list[Path]
    notes: list[str] = field(default_factory=list)


# ---- Which files ----------------------------------------------------------------------------------


def find_tables(folder: str | os.PathLike[str], split: str) -> list[Path]:
    """Return the Parquet files of a split of a folder that was downloaded from the Hub; [] if it has none.

    Raises:
        DataError: If there are only other splits, or one of several parts is not there.
    """
    top = Path(folder)
    for at in (top, top / "data"):
        tables = sorted(at.glob("*.parquet"))
        found = [path for path in tables if re.match(re.escape(split) + r"(?![^\W_])", path.name)]
        if not found and (there := sorted({path.name.partition("-")[0] for path in tables})):
            raise DataError(
                f"no Parquet file of the split {split!r} in {str(at)!r}; there are {some_of(there, 5)}. "
                f"Choose one, --split {there[0].removesuffix('.parquet')}, or name the files."
            )
        if found:
            parts = {int(of.group(1)) for path in found if (of := _OF.search(path.stem))}
            if parts and len(found) != max(parts):
                raise DataError(
                    f"{str(at)!r} holds {len(found)} of the {max(parts)} parts of the split {split!r}. "
                    "Download the others: a part is no benchmark."
                )
            return found
    return sorted((top / split).glob("*.parquet"))


def read_judged(
    files: Sequence[str | os.PathLike[str]], *, images: str | os.PathLike[str] | None = None
) -> JudgedLists:
    """Read which pictures are judged for which query; no picture is read.

    Columns are `query`, `relevant` (0 or 1) and what tells pictures apart: `inat24_image_id` or `image_id`,
    else the path, in `inat24_file_name`, `file_name` or `path`. Pictures are in a column `image` (Parquet),
    else in files of those paths. Others are ignored. Rows of one query make one list, wherever they stand.

    Args:
        files: Parquet (.parquet) or CSV.
        images: What paths are relative to; None for the folder of the file, or `images` in it.

    Raises:
        DataError: If a file cannot be read, lacks a column, has a row without a query, picture or label or
            with a label that is neither 0 nor 1, gives one id to two pictures, or names pictures that are not
            there.
    """
    lists: dict[str, list[tuple[str, bool]]] = {}
    pictures: dict[str, str | None] = {}
    twice: list[tuple[str, str]] = []
    seen: set[tuple[str, str]] = set()
    tables = [Path(path_on_disk(file)) for file in files]
    for table in tables:
        paths: dict[str, str | None] = {}
        for place, row in _rows(table):
            query, image, relevant, path = _checked(table, place, row)
            if (known := paths.setdefault(image, path)) != path:
                raise DataError(
                    f"{str(table)!r} gives one id, {image!r}, to {known!r} and, in {place}, to {path!r}."
                )
            if (query, image) in seen:
                twice.append((query, image))
            seen.add((query, image))
            lists.setdefault(query, []).append((image, relevant))
        for image, file in _located(table, paths, images).items():
            pictures.setdefault(image, file)
    if not lists:
        raise DataError(f"there is no row in {some_of([str(table) for table in tables], 5)}.")
    notes = []
    if twice:
        notes.append(
            f"judged more than once for one query, and each counts: {counted(len(twice))}, the first "
            f"{twice[0][1]!r} for {twice[0][0][:100]!r}"
        )
    return JudgedLists(lists, pictures, tables, notes)


def pictures_of(judged: JudgedLists) -> Iterator[tuple[str, str | bytes] | Skipped]:
    """Yield each picture once: its id, and its path or its bytes; or why it has none.

    Raises:
        DataError: If a file cannot be read any more.
    """
    left = set()
    for image, path in judged.pictures.items():
        if path is None:
            left.add(image)
        else:
            yield image, path
    for table in judged.files:
        for image, picture in _stored(table):
            if image in left:
                left.discard(image)
                if not isinstance(picture, bytes) or not picture:
                    yield Skipped(image, "the file holds no picture in its row")
                elif len(picture) > MAX_PICTURE_BYTES:
                    reason = (
                        f"has {len(picture):,} bytes, and {MAX_PICTURE_BYTES:,} are the most that are read"
                    )
                    yield Skipped(image, reason)
                else:
                    yield image, picture


# ---- Rows -----------------------------------------------------------------------------------------


def _checked(table: Path, place: str, row: Mapping[str, Any]) -> tuple[str, str, bool, str | None]:
    """Return query, id, label and path of a row."""

    def cell(names: Sequence[str], what: str) -> str:
        name = next(name for name in names if name in row)
        text = "" if row[name] is None else str(row[name])
        if not text.strip():
            raise DataError(
                f"{str(table)!r} has no {what} in {place} ({name}). Every row needs a query, a picture and "
                "whether it is relevant: fill it in, or remove the row."
            )
        return text

    label = cell(_RELEVANT, "label")
    relevant = _LABELS.get(label.strip().lower().removesuffix(".0"))
    if relevant is None:
        raise DataError(
            f"{str(table)!r} has the label {label[:40]!r} in {place} (relevant). It is 0 or 1 in this format."
        )
    has_path = any(name in row for name in _PATH)
    has_id = any(name in row for name in _ID)
    path = cell(_PATH, "path").strip() if has_path else None
    return cell(_QUERY, "query"), cell(_ID if has_id else _PATH, "picture").strip(), relevant, path


def _rows(table: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table and where they stand; of the columns, those that are known."""
    if table.suffix.lower() == ".parquet":
        with _opened(table) as parquet:
            names = _columns(table, parquet.schema_arrow.names)
            wanted = [name for name in names if name not in _IMAGE]
            number = 0
            for batch in parquet.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    yield f"row {(number := number + 1):,}", row
        return
    optional = (*_ID, *_PATH)
    for line, row in read_rows(table, (*_QUERY, *_RELEVANT), kind="judgements file", optional=optional):
        _columns(table, list(row), in_files=True)
        yield f"line {line:,}", row


def _columns(table: Path, names: Sequence[str], *, in_files: bool = False) -> list[str]:
    """Return the columns that are of use; refuse a table that lacks one."""
    for needed, what in ((_QUERY, "queries"), (_RELEVANT, "labels"), ((*_ID, *_PATH), "pictures")):
        if not any(name in names for name in needed):
            raise DataError(
                f"{str(table)!r} has no column {' or '.join(needed)} for the {what}, but "
                f"{some_of(names, between=',')!r}."
            )
    if not any(name in names for name in (*(() if in_files else _IMAGE), *_PATH)):
        raise DataError(
            f"{str(table)!r} says nowhere where its pictures are: it has no column "
            f"{' or '.join((*(() if in_files else _IMAGE), *_PATH))}, but {some_of(names, between=',')!r}."
        )
    return [name for name in names if name in {*_QUERY, *_RELEVANT, *_ID, *_PATH, *_IMAGE}]


def _located(
    table: Path, paths: Mapping[str, str | None], images: str | os.PathLike[str] | None
) -> dict[str, str | None]:
    """Return where the pictures of a table are on disk; None for those that are in the table."""
    if table.suffix.lower() == ".parquet":
        with _opened(table) as parquet:
            if any(name in parquet.schema_arrow.names for name in _IMAGE):
                return dict.fromkeys(paths)
    wanted = [path for path in paths.values() if path is not None]
    roots = [Path(images)] if images is not None else [table.parent, table.parent / _IMAGES]
    there: dict[str, str] = {}
    for root in roots:
        found = {path: str(root / file) for path, file in on_disk(root, wanted).items()}
        found = {path: file for path, file in found.items() if os.path.isfile(file)}
        there = max(there, found, key=len)
    if missing := [path for path in wanted if path not in there]:
        raise DataError(
            f"{str(table)!r} names {counted(len(set(missing)))} not in {str(roots[0])!r}, the first "
            f"{missing[0]!r}. Say which folder the paths begin in: --images DIR"
        )
    return {image: there[str(path)] for image, path in paths.items()}


# ---- Parquet --------------------------------------------------------------------------------------


def _stored(table: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield the id and the picture of every row of a Parquet file, a few rows at a time."""
    if table.suffix.lower() != ".parquet":
        return
    with _opened(table) as parquet:
        names = parquet.schema_arrow.names
        which = next(name for name in (*_ID, *_PATH) if name in names)
        image = next((name for name in _IMAGE if name in names), None)
        if image is None:
            return
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=[which, image]):
            for row in batch.to_pylist():
                cell = row[image]
                # What the Hub calls an image: its bytes, and the name that they once had.
                yield str(row[which]).strip(), cell.get("bytes") if isinstance(cell, dict) else cell


class _opened:  # noqa: N801 - a context manager, read as a word
    """A Parquet file; whatever is wrong with it comes out as a DataError."""

    def __init__(self, table: Path) -> None:
        self._table = table

    def __enter__(self) -> Any:
        try:
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise DataError(
                f"{str(self._table)!r} is Parquet, which needs: pip install 'imret[parquet]'."
            ) from error
        self._errors = (OSError, ValueError, pyarrow.lib.ArrowException)
        try:
            self._file = pyarrow.parquet.ParquetFile(self._table)  # type: ignore[no-untyped-call]
        except self._errors as error:
            raise self._refusal(error) from error
        groups = self._file.metadata
        if any(groups.row_group(i).total_byte_size > _MAX_GROUP_BYTES for i in range(groups.num_row_groups)):
            self._file.close()
            raise DataError(
                f"{str(self._table)!r} is written in parts of more than {_MAX_GROUP_BYTES:,} bytes, each of "
                "which would have to be in memory. Write it with smaller row groups."
            )
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._file.close()
        if isinstance(error, self._errors):
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> DataError:
        reason = getattr(error, "strerror", None) or summary(error)
        return DataError(f"cannot read {str(self._table)!r} as Parquet: {reason}.")
