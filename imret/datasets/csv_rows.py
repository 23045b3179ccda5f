"""Rows of a CSV file with a header line: the one reading of captions, names and manifests.

Strict, as RFC 4180 is: what Python's csv module would guess at (a comma too many, a quote that is never
closed) is refused with the line to mend, for a guess is trained on and nobody sees it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from imret.datasets.spelling import path_on_disk
from imret.errors import DataError, some_of

_QUOTE_THE_CELL = 'Put a cell that holds a comma into quotes: "a bird, red".'
# What other programs separate by, and what errors call it.
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

_NOTHING = frozenset(("NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"))

_BLANKS = re.compile(r"[ \t]*")
_BARE_CELL = re.compile(r"[^,\r\n]*")
_UP_TO_QUOTE = re.compile(r'[^"]*(?:""[^"]*)*')
_LONGEST_SHOWN = 40


class _Malformed(Exception):
    """What is wrong with a file and how to mend it: a sentence without its subject, the file."""


def read_rows(
    file: str | os.PathLike[str],
    columns: Sequence[str],
    *,
    kind: str,
    optional: Sequence[str] = (),
    repeatable: Sequence[str] = (),
    more_cells: str = _QUOTE_THE_CELL,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a UTF-8 CSV file, each with the number of its first line.

    Blanks before a quote are no part of the cell. Empty lines are skipped, and empty cells beyond the last
    column, which spreadsheets write.

    Args:
        file: With a header line.
        columns: What the header must name, in any order and case.
        kind: What errors call the file, such as "captions file".
        optional: What it may name, in any case; other columns go by the name that they have.
        repeatable: Which of these may be there more than once.
        more_cells: What an error tells to do about a line of more cells than there are columns.

    Yields:
        The line, and the cells by column in the order of the file, one for each. A column without a name, or
        with that of an earlier one, goes by its place: "column 3".

    Raises:
        DataError: If the file cannot be read, is not UTF-8 CSV, lacks one of the columns or has one twice, or
            if a line has fewer or more cells than the header has columns, or a quote without its partner;
            the message names the line.
    """
    shown = repr(os.fspath(file))
    try:
        # What is no UTF-8 is found line by line, so that its line can be named.
        with open(path_on_disk(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            records = _records(lines)
            number, header = next(records, (1, [""]))
            if number == 1 and ",".join(header).strip() == "sep=,":  # how Excel is told of commas
                number, header = next(records, (1, [""]))
            if not any(map(str.strip, header)):
                raise _Malformed(f"is empty. Begin it with: {','.join(columns)}")
            known = {*columns, *optional}
            header = [name.lower() if name.lower() in known else name for name in map(str.strip, header)]
            while header and not header[-1]:
                header.pop()
            _check_header(header, columns, known.difference(repeatable))
            names = [
                name if name and name not in header[:i] else f"column {i + 1}"
                for i, name in enumerate(header)
            ]
            for number, cells in records:
                while len(cells) > len(names) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(names):
                    raise _wrong_length(number, cells, names, more_cells)
                if rows := _swallowed(cells, names):
                    raise _Malformed(
                        f"opens a quote in line {number} that takes in what looks like a row, "
                        f"{_short(rows)}. Close it where its cell ends."
                    )
                yield number, dict(zip(names, cells, strict=True))
    except OSError as error:
        raise DataError(f"cannot read the {kind} {shown}: {error.strerror}.") from error
    except _Malformed as error:
        raise DataError(f"{kind} {shown} {error}") from None


def stands_for_nothing(cell: str) -> bool:
    """Whether a cell is what other programs write where there is nothing: NA of R, NaN, #N/A, NULL."""
    return cell in _NOTHING


def _check_header(header: Sequence[str], columns: Sequence[str], once: set[str]) -> None:
    """Refuse a header that lacks a column, or has one of those that may be there only once again."""
    if missing := [name for name in columns if name not in header]:
        raise _Malformed(
            f"has no column {' and no column '.join(missing)}; its first line is "
            f"{some_of(header, between=',')!r}{_separator_of(header)}. Begin it with: {','.join(columns)}"
        )
    if twice := [name for name, n in Counter(header).items() if n > 1 and name in once]:
        raise _Malformed(f"has two columns {twice[0]!r}. Give one of them another name.")


def _wrong_length(number: int, cells: Sequence[str], names: Sequence[str], more_cells: str) -> _Malformed:
    what = (
        f"has {len(cells)} cell{'s' if len(cells) > 1 else ''} in line {number}, and its first line names "
        f"{len(names)} columns: {some_of(names, between=',')}"
    )
    if len(cells) > len(names):
        return _Malformed(f"{what}. {more_cells}")
    return _Malformed(f"{what}{_separator_of(cells)}. Fill in what is missing, or remove the line.")


def _separator_of(cells: Sequence[str]) -> str:
    """Say which other separator a line has, that is one cell by commas."""
    for separator, called in _OTHER_SEPARATORS.items():
        if len(cells) == 1 and separator in cells[0]:
            return f"; it looks separated by {called}, and commas are wanted"
    return ""


def _swallowed(cells: Sequence[str], names: Sequence[str]) -> str:
    """Return a line within a cell that looks like a row, if there is one.

    A caption may have several lines with commas in them; a row of captions has a picture where its path is.
    """
    for cell in cells:
        for line in cell.splitlines()[1:]:
            parts = line.split(",")
            if "path" not in names:
                if len(parts) == len(names):
                    return line
            elif 1 < len(parts) > names.index("path"):
                from imret.datasets.scan import (
                    looks_like_picture,
                )  # loads what names of categories do without

                if looks_like_picture(parts[names.index("path")].strip(' "')):
                    return line
    return ""


# ---- Lines to cells --------------------------------------------------------------------------------------


def _records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each record that has any, and the number of its first line."""
    numbered = _checked(lines)
    for number, line in numbered:
        cells = _quoted_record(number, line, numbered) if '"' in line else line.rstrip("\r\n").split(",")
        if any(map(str.strip, cells)):
            yield number, cells


def _checked(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Number lines from 1; refuse those that are no text."""
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise _Malformed(f"has NUL characters in line {number}, as UTF-16 has. Save it as UTF-8.")
        try:
            line.isascii() or line.encode()
        except UnicodeEncodeError:
            raise _Malformed(f"is not UTF-8 in line {number}. Save it as UTF-8 CSV.") from None
        yield number, line


def _quoted_record(number: int, line: str, following: Iterator[tuple[int, str]]) -> list[str]:
    """Return the cells of a record that has quotes; its quoted cells may go on in the lines that follow."""
    cells, at = [], 0
    while True:
        start = _end(_BLANKS, line, at)
        if line.startswith('"', start):
            opened, parts, at = number, [], start + 1
            while (end := _end(_UP_TO_QUOTE, line, at)) == len(line):
                parts.append(line[at:])
                number, line = next(following, (0, ""))
                if not line:
                    raise _Malformed(f"opens a quote in line {opened} that is never closed. Close it.")
                at = 0
            cells.append("".join((*parts, line[at:end])).replace('""', '"'))
            at = _end(_BLANKS, line, end + 1)
            if stray := line[at : _end(_BARE_CELL, line, at)]:
                raise _Malformed(_stray(opened, number, stray))
        else:
            end = _end(_BARE_CELL, line, at)
            cells.append(line[at:end])
            at = end
            if cells[-1].count('"') % 2:
                raise _Malformed(
                    f"has a quote without its partner in line {number}: {_short(cells[-1])}. Add the other, "
                    'or put the cell into quotes and write its own twice: "a 6"" board"'
                )
        if not line.startswith(",", at):
            return cells
        at += 1


def _stray(opened: int, closed: int, text: str) -> str:
    """Say what is wrong where a quoted cell goes on after its quote."""
    if opened == closed:
        return (
            f"goes on after a closed quote in line {closed}: {_short(text)}. Write a quote within a quoted "
            'cell twice: "a ""red"" bird"'
        )
    return (
        f"opens a quote in line {opened} that is closed only in line {closed}, before {_short(text)}. Close "
        "it where its cell ends."
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return where a pattern that also matches nothing ends."""
    found = pattern.match(text, at)
    return found.end() if found else at
