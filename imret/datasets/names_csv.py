"""What categories are called, from a CSV file."""

from __future__ import annotations

import os

from imret.datasets.csv_rows import read_rows
from imret.datasets.spelling import composed
from imret.errors import DataError

_MORE_NAMES = "Put a name that holds a comma into quotes, and give a further name a line of its own."


def name_key(category: str) -> str:
    """Return what a category goes by in `names`, however its folder and a file of names spell it.

    Case does not matter, nor whether an umlaut is one character or two: folders from a Mac have two, and
    what is typed has one.
    """
    return composed(category).strip().lower()


def read_names(file: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read what categories are to be called.

    Args:
        file: UTF-8 CSV with the columns category and name. A category may have several lines, each another
            name; columns after that of the name hold more names, and may be called name, too. The first name
            is the one that queries use.

    Returns:
        Names by `name_key` of the category, each once, in the order of the file.

    Raises:
        DataError: If the file cannot be read, lacks a column, names nothing, or has a line without a
            category or a name, or of another number of cells than its first; the message gives the line.
    """
    shown = repr(os.fspath(file))
    names: dict[str, dict[str, None]] = {}
    rows = read_rows(
        file, ("category", "name"), kind="names file", repeatable=("name",), more_cells=_MORE_NAMES
    )
    for line, row in rows:
        category = name_key(row.pop("category"))
        cells = list(row.values())[list(row).index("name") :]
        words = [" ".join(cell.split()) for cell in cells if cell.strip()]
        if not category or not words:
            raise DataError(
                f"names file {shown} has no {'name' if category else 'category'} in line {line}. "
                "Fill it in, or remove the line."
            )
        names.setdefault(category, {}).update(dict.fromkeys(words))
    if not names:
        raise DataError(f"names file {shown} names no category. Write lines of category,name.")
    return {category: tuple(words) for category, words in names.items()}
