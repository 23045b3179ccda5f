"""Hits and facets as text, for people (a table) and programs (TSV, JSON, paths). Formats are a contract."""

from __future__ import annotations

import itertools
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from imret.datasets.spelling import composed
from imret.escape import escape_control

if TYPE_CHECKING:
    from imret.retrieval.results import Facet, Hit

FORMATS = ("table", "tsv", "json", "paths")
_MIN_PATH, _MIN_CATEGORY = 8, 6  # columns that they get in the narrowest terminal


def write_hits(
    hits: Sequence[Hit],
    output: str,
    stream: TextIO,
    *,
    null: bool = False,
    payload: bool = False,
    width: int | None = None,
    thumbnail: Callable[[Hit], str] | None = None,
    group_by: str | None = None,
    left_out: int = 0,
) -> None:
    """Write hits in one of the formats, which are a contract.

    Args:
        hits: In the order to write them.
        output: One of FORMATS.
        stream: Where to.
        null: Whether paths end with NUL instead of a line feed.
        payload: Whether JSON has everything that is stored.
        width: Columns of the terminal that a table has to fit; None for no limit.
        thumbnail: Gives what a table has above a row.
        group_by: The field by which hits come in groups, each of which has a heading in a table.
        left_out: How many identical pictures were left out, which JSON has in every line.
    """
    if output == "paths":
        # A file or a pipe gets the bytes of the name; a terminal would obey some of them.
        shown = escape_control if stream.isatty() else str
        for hit in hits:
            print(shown(hit.path), file=stream, end="\0" if null else "\n")
    elif output == "json":
        for hit in hits:
            print(json_line(hit, payload=payload, left_out=left_out), file=stream)
    elif output == "tsv":
        print("rank\tscore\tcategory\tpath", file=stream)
        for hit in hits:
            print(f"{hit.rank}\t{hit.score:.6f}\t{tsv(hit.category or '')}\t{tsv(hit.path)}", file=stream)
    else:
        rows = iter(_rows(hits, width))
        for number, (heading, group) in enumerate(groups_of(hits, group_by)):
            if heading:
                print(("\n" if number else "") + shortened(heading, width or len(heading)), file=stream)
            for hit, row in zip(group, rows, strict=False):
                if thumbnail is not None:
                    stream.write(thumbnail(hit))
                print(row, file=stream)


def groups_of(hits: Sequence[Hit], group_by: str | None) -> list[tuple[str, list[Hit]]]:
    """Return hits in groups, each with its heading; all in one that has none if they come in none.

    Args:
        hits: Those of one group behind each other.
        group_by: A payload field, or None.
    """
    if group_by is None or not hits:
        return [("", list(hits))]
    # A Mac's names are decomposed, and an older imret stored them so.
    grouped = itertools.groupby(hits, lambda hit: composed(str(hit.payload.get(group_by))))
    return [(escape_control(f"{group_by}: {value}"), list(group)) for value, group in grouped]


def _rows(hits: Sequence[Hit], width: int | None) -> list[str]:
    """Return the rows of a table, its columns in line, none wider than the terminal if that can be."""
    heads = _in_line([f"{hit.rank:>4}" for hit in hits], [f"{hit.score:.3f}" for hit in hits])
    categories = [escape_control(hit.category or "-") for hit in hits]
    paths = [escape_control(near_path(hit.path)) for hit in hits]
    marks = [f"  +{hit.folded:,}" if hit.folded else "" for hit in hits]
    column = max(map(display_width, categories), default=0)
    around = [len(head) + 4 + len(mark) for head, mark in zip(heads, marks, strict=True)]
    if width is not None:
        full = max((a + column + display_width(p) for a, p in zip(around, paths, strict=True)), default=0)
        if full > width:  # only then does a long category give way to the paths
            column = min(column, max(_MIN_CATEGORY, (width - max(around)) // 3))
            categories = [shortened(category, column) for category in categories]
            paths = [
                shortened(path, max(_MIN_PATH, width - a - column))
                for a, path in zip(around, paths, strict=True)
            ]
    return [
        f"{head}  {category}{' ' * (column - display_width(category))}  {path}{mark}"
        for head, category, path, mark in zip(heads, categories, paths, marks, strict=True)
    ]


def _in_line(ranks: Sequence[str], scores: Sequence[str]) -> list[str]:
    # More than 9,999 ranks, or scores below zero, take a column more.
    rank, score = (max(map(len, column), default=0) for column in (ranks, scores))
    return [f"{r:>{rank}}  {s:>{score}}" for r, s in zip(ranks, scores, strict=True)]


def json_line(hit: Hit, *, payload: bool = False, left_out: int = 0) -> str:
    """Return a hit as a line of JSON.

    Args:
        hit: The hit.
        payload: Whether everything that is stored is in it.
        left_out: How many identical pictures its answer leaves out.
    """
    fields: dict[str, Any] = {
        "rank": hit.rank,
        "score": round(hit.score, 6),
        "category": hit.category,
        "path": hit.path,
        "id": hit.id,
        "folded": hit.folded,
        "left_out": left_out,
    }
    if payload:
        fields["payload"] = hit.payload
    return _json_text(fields)


def _json_text(fields: dict[str, Any]) -> str:
    # Still JSON, and the same values: but no terminal obeys it, and a name of any bytes opens its file.
    return _escape(json.dumps(fields, ensure_ascii=False), lambda char: json.dumps(char)[1:-1])


def write_facets(facets: Sequence[Facet], output: str, stream: TextIO) -> None:
    """Write how hits and collection spread: a table, TSV, or a JSON object per line."""
    if output == "json":
        for facet in facets:
            fields = {"category": facet.value, "hits": facet.hits, "images": facet.images}
            print(_json_text(fields), file=stream)
    elif output == "tsv":
        print("category\thits\timages", file=stream)
        for facet in facets:
            print(f"{tsv(facet.value)}\t{facet.hits}\t{facet.images}", file=stream)
    else:
        names = [escape_control(facet.value) for facet in facets]
        column = max((display_width(name) for name in ("category", *names)), default=0)
        print(f"{'category':<{column}}  {'hits':>9}  {'images':>9}", file=stream)
        for name, facet in zip(names, facets, strict=True):
            gap = " " * (column - display_width(name))
            print(f"{name}{gap}  {facet.hits:>9,}  {facet.images:>9,}", file=stream)


def tsv(value: str) -> str:
    r"""Return a value as one field that ends no line and that no terminal obeys; nothing is lost.

    A backslash is \\, and what does not print is written as in Python's strings: \t, \n, \r, \x1b, \u202e,
    \U000e0001. The bytes of a file name that are no UTF-8 (surrogate escapes) stay as they are.
    """
    return _escape(
        value.replace("\\", "\\\\"), lambda char: char if "\udc80" <= char <= "\udcff" else repr(char)[1:-1]
    )


def _escape(text: str, written: Callable[[str], str]) -> str:
    """Return a text in which every character that does not print is replaced; spaces of any kind stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else written(char) for char in text
    )


def display_width(text: str) -> int:
    """Return how many columns a terminal gives a text: two to wide characters, none to combining ones."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    # File names from macOS are decomposed: of a Hangul syllable, the vowel and the last consonant take no
    # columns beside those of the first.
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shortened(text: str, room: int) -> str:
    """Return a text of at most `room` >= 1 columns: its beginning and more of its end, which names a file."""
    if display_width(text) <= room:
        return text
    ahead = (room - 1) // 3
    tail = _fitting(reversed(text), room - 1 - ahead)[::-1]
    while tail and _columns(tail[0]) == 0:  # would combine with the ellipsis
        tail = tail[1:]
    return f"{_fitting(text, ahead)}…{tail}"


def _fitting(chars: Iterable[str], room: int) -> str:
    """Return as many characters from the start as have room."""
    kept: list[str] = []
    for char in chars:
        room -= _columns(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept)


def near_path(path: str) -> str:
    """Return a path as seen from the working folder, if it lies below it."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # somebody has removed it
        return path
    return os.path.relpath(path, here) if path.startswith(here.rstrip(os.sep) + os.sep) else path
