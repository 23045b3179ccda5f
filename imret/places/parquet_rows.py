"""The rows of a Parquet file that holds pictures: the bytes, a key, and what else each row says.

Knows the layouts of img2dataset (a binary column named like a format) and of Hugging Face's datasets (a
struct of bytes and path; labels as numbers, whose names stand in the schema). Memory stays at a few rows, and
at a page of each column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, BinaryIO

from imret.errors import DataError, summary

# Columns that hold pictures, the likeliest first.
_PICTURES = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "bytes", "image_bytes"),
    *("gif", "bmp", "tif", "tiff", "avif", "heic"),
)
_KEYS = ("key", "__key__", "id", "image_id", "filename", "file_name")
CATEGORY = "category"  # the column that says what a picture shows
_ROWS = 16  # read at a time


class DamagedParquet(Exception):
    """A Parquet file cannot be read on; the message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row with a place for a picture.

    Attributes:
        key: What names it, always the same: its key, the path in its struct, or a hash of its picture.
        data: The picture's bytes; None where there are none, as of one that could not be downloaded.
        columns: What else it says: texts, numbers, dates as text, by column.
    """

    key: str
    data: bytes | None
    columns: dict[str, Any] = field(default_factory=dict)


def open_parquet(file: BinaryIO) -> Any:
    """Open a Parquet file: a pyarrow.parquet.ParquetFile.

    Raises:
        DataError: If pyarrow is not there.
        DamagedParquet: If it is no Parquet file.
    """
    pa = _pyarrow()
    try:
        return pa.parquet.ParquetFile(file, buffer_size=1 << 20)
    except (OSError, pa.ArrowException) as error:
        raise DamagedParquet(f"no Parquet file, or a damaged one: {summary(error)}") from error


def picture_column(opened: Any) -> str | None:
    """Return the column of a Parquet file that holds pictures; None if none does."""
    types = _pyarrow().types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    schema = opened.schema_arrow
    structs = [
        one.name
        for one in schema
        if types.is_struct(one.type)
        and one.type.get_field_index("bytes") >= 0
        and holds_bytes(one.type.field("bytes").type)
    ]
    binaries = [one.name for one in schema if holds_bytes(one.type) and one.name.lower() in _PICTURES]
    ranked = sorted(structs + binaries, key=lambda name: (*_PICTURES, name.lower()).index(name.lower()))
    return ranked[0] if ranked else None


def rows(opened: Any, column: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Args:
        opened: From `open_parquet`.
        column: From `picture_column`.

    Raises:
        DamagedParquet: If it cannot be read on.
    """
    pa = _pyarrow()
    wanted = [one.name for one in opened.schema_arrow if one.name == column or _is_plain(one.type)]
    labels = label_names(opened)
    n_rows = 0
    try:
        for batch in opened.iter_batches(batch_size=_ROWS, columns=wanted, use_threads=False):
            for values in batch.to_pylist():
                n_rows += 1
                yield _row(values, column, labels)
    except (OSError, pa.ArrowException) as error:
        raise DamagedParquet(f"damaged or cut off after {n_rows:,} rows: {summary(error)}") from error


def keys_of(opened: Any, column: str, group: int) -> list[str | None]:
    """Return the keys of the rows of a row group, without its pictures; None where only the picture tells.

    Args:
        opened: From `open_parquet`.
        column: From `picture_column`.
        group: Number of the row group.

    Raises:
        DamagedParquet: If they cannot be read.
    """
    pa = _pyarrow()
    schema = opened.schema_arrow
    wanted = [name for name in _KEYS if name in schema.names and _is_plain(schema.field(name).type)]
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        wanted.append(f"{column}.path")
    if not wanted:
        return [None] * int(opened.metadata.row_group(group).num_rows)
    try:
        values = opened.read_row_group(group, columns=wanted, use_threads=False).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DamagedParquet(f"its keys cannot be read: {summary(error)}") from error
    return [_key_of(row, row.pop(column, None)) for row in values]


def _key_of(values: Mapping[str, Any], held: Any) -> str | None:
    columns = {name: _plain(value) for name, value in values.items() if value is not None}
    path = held.get("path") if isinstance(held, dict) else None
    return next((str(columns[name]) for name in _KEYS if columns.get(name) not in (None, "")), path) or None


def picture_in(held: Any) -> bytes | None:
    """Return the bytes in a value of the column that `picture_column` names."""
    data: bytes | None = held.get("bytes") if isinstance(held, dict) else held
    return data


def label_names(opened: Any) -> dict[str, Sequence[str]]:
    """Return what the numbers in a column stand for, by column, the likeliest first: ClassLabel, as they say.

    Source: the schema's metadata under "huggingface", as `datasets` writes it.
    """
    try:
        said = json.loads((opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    found = {}
    for name, feature in features:
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            found[name] = names
    # Of several the one that data sets name so says what a picture shows.
    return dict(sorted(found.items(), key=lambda item: item[0] != "label"))


def _is_plain(kind: Any) -> bool:
    types = _pyarrow().types
    names = ("string", "large_string", "integer", "floating", "boolean", "temporal", "dictionary")
    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _pyarrow() -> Any:
    """Return pyarrow, which has no types."""
    try:
        import pyarrow
        import pyarrow.parquet
        import pyarrow.types
    except ModuleNotFoundError as error:
        raise DataError("Parquet is read with pyarrow: pip install 'imret[remote]'") from error
    return pyarrow


def _row(values: dict[str, Any], column: str, labels: Mapping[str, Sequence[str]]) -> Row:
    value = values.pop(column)
    held = picture_in(value)
    columns = {name: _plain(value) for name, value in values.items() if value is not None}
    for at, (name, names) in enumerate(labels.items()):
        number = columns.get(name)
        if isinstance(number, int) and 0 <= number < len(names):
            columns[name] = names[number]
            if at == 0:
                columns.setdefault(CATEGORY, names[number])
    key = _key_of(values, value)
    if key is None:
        # Never the row's number: that is another when rows before it go.
        key = hashlib.sha256(held or repr(sorted(columns.items())).encode()).hexdigest()[:32]
    return Row(key, held, columns)


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float)) else str(value)
