"""What comes out of a search: formats for people and programs, thumbnails, a sheet, copies, a viewer.

The formats are a contract. Results go to stdout; what is said about them, and about files, does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from imret.cli.options import announce, silence_closed_stdout
from imret.errors import DataError
from imret.store.payload import one_line

if TYPE_CHECKING:
    from imret.retrieval.results import Facet, Hit

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "tsv", "json", "paths")
_LEAST_PATH, _LEAST_CATEGORY = 8, 6  # columns that they get in the narrowest terminal


def output_options(command: F) -> F:
    """Add the options of `deliver` to a command."""
    for option in reversed(
        (
            click.option(
                "--format",
                "output",
                type=click.Choice(FORMATS),
                default="table",
                show_default=True,
                help="json: one object per line; paths: for pipes.",
            ),
            click.option("-0", "--null", is_flag=True, help="End paths with NUL, for xargs -0."),
            click.option("--payload", is_flag=True, help="With json: everything stored beside each picture."),
            click.option(
                "--preview/--no-preview",
                default=False,
                help="Show thumbnails, in a terminal; IMRET_PREVIEW chooses how.",
            ),
            click.option(
                "--html", metavar="FILE", help="Write a contact sheet: one page with all thumbnails."
            ),
            click.option(
                "--copy-to",
                metavar="DIR",
                help="Copy the pictures there, named by rank: 001_owl.jpg. Nothing is overwritten.",
            ),
            click.option(
                "--open",
                "open_them",
                is_flag=True,
                help="Show the pictures: with the command in IMRET_VIEWER, else one in the system's viewer, "
                "several on a page in the browser (that of --html, if given).",
            ),
        )
    ):
        command = option(command)
    return command


def deliver(
    hits: Sequence[Hit],
    *,
    query: str,
    note: str = "",
    output: str = "table",
    null: bool = False,
    payload: bool = False,
    preview: bool = False,
    html: str | None = None,
    copy_to: str | None = None,
    open_them: bool = False,
) -> int:
    """Put hits where somebody asked for them.

    Args:
        hits: What was found.
        query: As it was asked; the title of a sheet.
        note: What else to say about it there.
        output: One of FORMATS, for stdout.
        null: Whether paths end with NUL.
        payload: Whether JSON has everything that is stored.
        preview: Whether a table has thumbnails.
        html: Where to write a sheet.
        copy_to: Folder to copy the pictures to.
        open_them: Whether to show them in a viewer.

    Returns:
        The exit code: 1 if a picture could not be copied.

    Raises:
        DataError: If a sheet or folder cannot be written, or there is nothing to show pictures with.
    """
    with results() as stdout:
        write_hits(
            hits,
            output,
            stdout,
            null=null,
            payload=payload,
            width=shutil.get_terminal_size().columns if stdout.isatty() else None,
            thumbnail=_thumbnails(stdout) if preview and output == "table" else None,
        )
    code = 0
    if html is not None:
        announce(f"Contact sheet: {one_line(str(_write_sheet(html, query, note, hits)))}")
    if copy_to is not None:
        from imret.output.copy_files import copy_hits

        copied, failed = copy_hits(hits, copy_to)
        for path, reason in failed:
            announce(f"not copied: {one_line(path)}: {reason}")
        lost = f", {len(failed):,} not" if failed else ""
        announce(f"{_pictures(copied)} copied to {one_line(copy_to)}{lost}")
        code = 1 if failed else 0
    if open_them and hits:
        open_hits(hits, query=query, note=note, sheet=html)
    return code


@contextlib.contextmanager
def results() -> Iterator[TextIO]:
    """Give stdout to write results to; if its reader has gone (`| head`), that is its end and no error."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        if not silence_closed_stdout():
            raise


# ---- Formats --------------------------------------------------------------------------------------------


def write_hits(
    hits: Sequence[Hit],
    output: str,
    stream: TextIO,
    *,
    null: bool = False,
    payload: bool = False,
    width: int | None = None,
    thumbnail: Callable[[Hit], str] | None = None,
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
    """
    if output == "paths":
        # A file or a pipe gets the bytes of the name; a terminal would obey some of them.
        shown = one_line if stream.isatty() else str
        for hit in hits:
            print(shown(hit.path), file=stream, end="\0" if null else "\n")
    elif output == "json":
        for hit in hits:
            print(json_line(hit, payload=payload), file=stream)
    elif output == "tsv":
        print("rank\tscore\tcategory\tpath", file=stream)
        for hit in hits:
            print(f"{hit.rank}\t{hit.score:.6f}\t{tsv(hit.category or '')}\t{tsv(hit.path)}", file=stream)
    else:
        rows = _rows(hits, width)
        for hit, row in zip(hits, rows, strict=True):
            if thumbnail is not None:
                stream.write(thumbnail(hit))
            print(row, file=stream)


def _rows(hits: Sequence[Hit], width: int | None) -> list[str]:
    """Return the rows of a table, its columns in line, none wider than the terminal if that can be."""
    heads = _in_line([f"{hit.rank:>4}" for hit in hits], [f"{hit.score:.3f}" for hit in hits])
    categories = [one_line(hit.category or "-") for hit in hits]
    paths = [one_line(_near(hit.path)) for hit in hits]
    marks = [f"  +{hit.folded:,}" if hit.folded else "" for hit in hits]
    column = max(map(display_width, categories), default=0)
    around = [len(head) + 4 + len(mark) for head, mark in zip(heads, marks, strict=True)]
    if width is not None:
        full = max((a + column + display_width(p) for a, p in zip(around, paths, strict=True)), default=0)
        if full > width:  # only then does a long category give way to the paths
            column = min(column, max(_LEAST_CATEGORY, (width - max(around)) // 3))
            categories = [shortened(category, column) for category in categories]
            paths = [
                shortened(path, max(_LEAST_PATH, width - a - column))
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


def json_line(hit: Hit, *, payload: bool = False) -> str:
    """Return a hit as a line of JSON."""
    fields: dict[str, Any] = {
        "rank": hit.rank,
        "score": round(hit.score, 6),
        "category": hit.category,
        "path": hit.path,
        "id": hit.id,
    }
    if hit.folded:
        fields["folded"] = hit.folded
    if payload:
        fields["payload"] = hit.payload
    # Still JSON, and the same values: but no terminal obeys it, and a name of any bytes opens its file.
    return _escape(json.dumps(fields, ensure_ascii=False), lambda char: json.dumps(char)[1:-1])


def write_facets(facets: Sequence[Facet], output: str, stream: TextIO) -> None:
    """Write how hits and collection spread: a table, TSV, or a JSON object per line."""
    if output == "json":
        for facet in facets:
            fields = {"category": facet.value, "hits": facet.hits, "images": facet.images}
            print(_escape(json.dumps(fields, ensure_ascii=False), lambda c: json.dumps(c)[1:-1]), file=stream)
    elif output == "tsv":
        print("category\thits\timages", file=stream)
        for facet in facets:
            print(f"{tsv(facet.value)}\t{facet.hits}\t{facet.images}", file=stream)
    else:
        names = [one_line(facet.value) for facet in facets]
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


def _near(path: str) -> str:
    """Return a path as seen from here, if it lies below."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # somebody has removed it
        return path
    return os.path.relpath(path, here) if path.startswith(here.rstrip(os.sep) + os.sep) else path


def _thumbnails(stream: TextIO) -> Callable[[Hit], str] | None:
    from imret.output.terminal_images import cell_pixels, preview, protocol_of

    protocol = protocol_of(os.environ, stream)
    if protocol == "none":
        announce("no thumbnails: this is no terminal that can show them; --html FILE writes them to a page")
        return None
    cell = cell_pixels(stream)
    return lambda hit: preview(hit.path, protocol, cell=cell)


# ---- Files ----------------------------------------------------------------------------------------------


def open_hits(
    hits: Sequence[Hit], *, query: str, note: str = "", sheet: str | os.PathLike[str] | None = None
) -> None:
    """Show the pictures of hits in a viewer, or several as a page in a browser: see `imret.output.viewer`.

    Args:
        hits: What to show; those whose files are gone are left out, and said so.
        query: As it was asked; the title of a page.
        note: What else to say about it there.
        sheet: The page, if there is one already. Otherwise it is made in a folder for temporary files that
            only this user can read.

    Raises:
        DataError: If no file is there, or there is nothing to show them with.
    """
    from imret.output.viewer import show

    there = [hit.path for hit in hits if os.path.exists(hit.path)]
    if len(there) < len(hits):
        announce(f"not shown: {_pictures(len(hits) - len(there))} whose files are gone")
    if not there:
        raise DataError("nothing to open: the files are gone. Bring the collection up to date: imret ingest")

    def page() -> Path:
        if sheet is not None:
            return Path(sheet).resolve()
        return _write_sheet(os.path.join(tempfile.mkdtemp(prefix="imret-"), "hits.html"), query, note, hits)

    shown = show(there, page)
    if shown is not None and sheet is None:
        announce(f"Contact sheet: {one_line(str(shown))}")


def _write_sheet(file: str, query: str, note: str, hits: Sequence[Hit]) -> Path:
    from imret.output.contact_sheet import Strip, write_sheet

    summary = _pictures(len(hits)) + (f" · {note}" if note else "")
    try:
        return write_sheet(file, query, summary, [Strip("", "", hits)])
    except OSError as error:
        raise DataError(
            f"cannot write the contact sheet {file!r}: {error.strerror}.\nName another place: --html FILE"
        ) from error


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"
