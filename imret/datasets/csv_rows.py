"""Rows of a CSV file with a header line: the one reading of captions, names and manifests."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence

from imret.errors import DataError


def read_rows(
    file: str | os.PathLike[str], columns: Sequence[str], *, kind: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a UTF-8 CSV file, each with the number of its last line.

    Args:
        file: With a header line; empty lines are skipped.
        columns: What the header must name, in any order and case.
        kind: What errors call the file, such as "captions file".

    Yields:
        The line, and the cells by column in the order of the file. What is missing at the end of a line is
        empty. A column without a name, or with that of an earlier one, goes by its place: "column 3".

    Raises:
        DataError: If the file cannot be read, is not UTF-8 CSV, or lacks one of the columns.
    """
    shown = repr(os.fspath(file))
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = [cell.strip() for cell in next(reader, [])]
            header = [cell.lower() if cell.lower() in columns else cell for cell in header]
            if missing := [name for name in columns if name not in header]:
                raise DataError(
                    f"{kind} {shown} has no column {' and no column '.join(missing)}; "
                    f"its first line is {','.join(header)!r}. Begin it with: {','.join(columns)}"
                )
            names = [
                name if name and name not in header[:i] else f"column {i + 1}"
                for i, name in enumerate(header)
            ]
            for cells in reader:
                if not cells:
                    continue
                row = dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))
                row.update({f"column {i + 1}": cells[i] for i in range(len(names), len(cells))})
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"cannot read the {kind} {shown}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the {kind} {shown} as UTF-8 CSV: {error}. Save it as UTF-8.") from error
