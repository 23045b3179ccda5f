"""What categories are called, from a CSV file."""

from __future__ import annotations

import csv
import os
import unicodedata

from imret.errors import DataError


def name_key(category: str) -> str:
    """Return what a category goes by in `names`, however its folder and a file of names spell it.

    Case does not matter, nor whether an umlaut is one character or two: folders from a Mac have two, and
    what is typed has one.
    """
    return unicodedata.normalize("NFC", category).strip().lower()


def read_names(file: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read what categories are to be called.

    Args:
        file: UTF-8 CSV with a header line that begins with category,name; what comes after in a line are
            more names, and a category may have several lines. The first name is the one that queries use.

    Returns:
        Names by `name_key` of the category, each once, in the order of the file.

    Raises:
        DataError: If the file cannot be read, does not begin with category,name, names nothing, or has a
            line without a category or a name; the message gives the line.
    """
    shown = repr(os.fspath(file))
    found: dict[str, dict[str, None]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = [cell.strip().lower() for cell in next(reader, [])]
            if header[:2] != ["category", "name"]:
                raise DataError(
                    f"names file {shown} begins with {','.join(header)!r}. Begin it with: category,name"
                )
            for row in reader:
                if not row:
                    continue
                category = name_key(row[0])
                words = [" ".join(cell.split()) for cell in row[1:] if cell.strip()]
                if not category or not words:
                    raise DataError(
                        f"names file {shown} has no {'name' if category else 'category'} in line "
                        f"{reader.line_num}. Fill it in, or remove the line."
                    )
                found.setdefault(category, {}).update(dict.fromkeys(words))
    except OSError as error:
        raise DataError(f"cannot read the names file {shown}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read the names file {shown} as UTF-8 CSV: {error}. Save it as UTF-8."
        ) from error
    if not found:
        raise DataError(f"names file {shown} names no category. Write lines of category,name.")
    return {category: tuple(words) for category, words in found.items()}
