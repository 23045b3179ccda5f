"""What comes out of a search: formats for people and programs, thumbnails, a sheet, copies, a viewer.

The formats are a contract. Results go to stdout; what is said about them, and about files, does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from imret.errors import DataError
from imret.options import announce
from imret.payload import one_line, printable

if TYPE_CHECKING:
    from imret.retrieval import Facet, Hit

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "tsv", "json", "paths")
_LEAST_PATH = 12  # characters of a path that a narrow terminal still gets


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
            click.option("--copy-to", metavar="DIR", help="Copy the pictures there, named by rank."),
            click.option(
                "--open",
                "open_them",
                is_flag=True,
                help="Show the pictures: with the command in IMRET_VIEWER, else as a page in the browser.",
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
    write_hits(
        hits,
        output,
        sys.stdout,
        null=null,
        payload=payload,
        width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None,
        thumbnail=_thumbnails(sys.stdout) if preview and output == "table" else None,
    )
    code = 0
    if html is not None:
        announce(f"Contact sheet: {_write_sheet(html, query, note, hits)}")
    if copy_to is not None:
        copied, failed = copy_hits(hits, copy_to)
        for path, reason in failed:
            announce(f"not copied: {one_line(path)}: {reason}")
        lost = f", {len(failed):,} not" if failed else ""
        announce(f"{copied:,} pictures copied to {one_line(copy_to)}{lost}")
        code = 1 if failed else 0
    if open_them and hits:
        open_hits(hits, query=query, note=note)
    return code


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
        for hit in hits:
            print(hit.path, file=stream, end="\0" if null else "\n")
    elif output == "json":
        for hit in hits:
            print(json_line(hit, payload=payload), file=stream)
    elif output == "tsv":
        print("rank\tscore\tcategory\tpath", file=stream)
        for hit in hits:
            print(f"{hit.rank}\t{hit.score:.6f}\t{tsv(hit.category or '')}\t{tsv(hit.path)}", file=stream)
    else:
        rows = [(hit, one_line(hit.category or "-")) for hit in hits]
        column = max((display_width(category) for _, category in rows), default=0)
        for hit, category in rows:
            if thumbnail is not None:
                stream.write(thumbnail(hit))
            more = f"  +{hit.folded:,}" if hit.folded else ""
            start = f"{hit.rank:>4}  {hit.score:.3f}  {category}{' ' * (column - display_width(category))}  "
            name = one_line(_near(hit.path))
            if width is not None:
                room = max(_LEAST_PATH, width - display_width(start) - len(more))
                name = shortened(name, room)
            print(f"{start}{name}{more}", file=stream)


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
    # Escaped where a name is no valid Unicode: still JSON, and its path still opens the file.
    return json.dumps(fields, ensure_ascii=printable(hit.path) != hit.path)


def write_facets(facets: Sequence[Facet], output: str, stream: TextIO) -> None:
    """Write how hits and collection spread: a table, TSV, or a JSON object per line."""
    if output == "json":
        for facet in facets:
            fields = {"category": facet.value, "hits": facet.hits, "images": facet.images}
            print(json.dumps(fields, ensure_ascii=False), file=stream)
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
    r"""Return a value that ends no field and no line: \t, \n, \r and \\ are written as two characters."""
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def display_width(text: str) -> int:
    """Return how many columns a terminal gives a text: two to wide characters, none to combining ones."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shortened(text: str, room: int) -> str:
    """Return a text of at most `room` columns: its beginning and, more of it, its end, which names a file."""
    if display_width(text) <= room:
        return text
    ahead, behind = (room - 1) // 3, room - 1 - (room - 1) // 3
    head, tail = "", ""
    for char in text:
        if display_width(head + char) > ahead:
            break
        head += char
    for char in reversed(text):
        if display_width(char + tail) > behind:
            break
        tail = char + tail
    return f"{head}…{tail}"


def _near(path: str) -> str:
    """Return a path as seen from here, if it lies below."""
    here = os.getcwd()
    return os.path.relpath(path, here) if path.startswith(here.rstrip(os.sep) + os.sep) else path


def _thumbnails(stream: TextIO) -> Callable[[Hit], str] | None:
    from imret.preview import cell_pixels, preview, protocol_of

    protocol = protocol_of(os.environ, stream)
    if protocol == "none":
        announce("no thumbnails: this is no terminal that can show them; --html FILE writes them to a page")
        return None
    cell = cell_pixels(stream)
    return lambda hit: preview(hit.path, protocol, cell=cell)


# ---- Files ----------------------------------------------------------------------------------------------


def copy_hits(hits: Sequence[Hit], folder: str | os.PathLike[str]) -> tuple[int, list[tuple[str, str]]]:
    """Copy the files of hits into a folder, named by rank, so that they stay in order: 001_owl.jpg.

    Nothing is overwritten: a file of that name with the same bytes is taken for the copy, one with others
    gets a neighbour, 001_owl-2.jpg. A copy is whole or absent, whatever happens on the way.

    Returns:
        How many are there, and the path and reason of each that is not.

    Raises:
        DataError: If the folder cannot be made.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {os.fspath(folder)!r}: {error.strerror}.") from error
    digits = max(3, len(str(max((hit.rank for hit in hits), default=0))))
    failed = []
    for hit in hits:
        source = Path(hit.path)
        try:
            _copy(source, target, f"{hit.rank:0{digits}}_{source.name}")
        except OSError as error:
            failed.append((hit.path, error.strerror or str(error)))
    return len(hits) - len(failed), failed


def _copy(source: Path, folder: Path, name: str) -> None:
    stem, suffix = os.path.splitext(name)
    handle, part = tempfile.mkstemp(dir=folder, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as out, open(source, "rb") as data:
            shutil.copyfileobj(data, out)
        shutil.copystat(source, part)
        number = 1
        while True:
            place = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
            try:
                os.link(part, place)  # unlike a rename, refuses to replace
                return
            except FileExistsError:
                if _same(place, Path(part)):
                    return
            except OSError:  # a file system without links
                if not place.exists():
                    os.replace(part, place)
                    return
                if _same(place, Path(part)):
                    return
            number += 1
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _same(one: Path, other: Path) -> bool:
    import filecmp

    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def open_hits(hits: Sequence[Hit], *, query: str, note: str = "") -> None:
    """Show the pictures of hits: with the command in IMRET_VIEWER, which gets all of them, else in a browser.

    Returns when the viewer has been closed, or at once from a browser.

    A browser gets a contact sheet, since the system's own viewers mostly take one picture at a time.

    Raises:
        DataError: If there is no viewer, or it cannot be started.
    """
    viewer = os.environ.get("IMRET_VIEWER", "").strip()
    if viewer:
        command = [*shlex.split(viewer), *(hit.path for hit in hits)]
        try:
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        except OSError as error:
            raise DataError(
                f"cannot start the viewer {command[0]!r} (from IMRET_VIEWER): {error.strerror}. Name "
                "another, or unset it to see the pictures in the browser."
            ) from error
        return
    import webbrowser

    handle, file = tempfile.mkstemp(prefix="imret-", suffix=".html")
    os.close(handle)
    page = _write_sheet(file, query, note, hits)
    if not webbrowser.open(page.as_uri()):
        raise DataError(
            f"there is no browser to show the pictures with; the page is {page}. Name a viewer in "
            "IMRET_VIEWER, or write the page elsewhere: --html FILE"
        )
    announce(f"Contact sheet: {page}")


def _write_sheet(file: str, query: str, note: str, hits: Sequence[Hit]) -> Path:
    from imret.sheet import Strip, write_sheet

    try:
        return write_sheet(file, query, f"{len(hits):,} pictures", [Strip(note, "", hits)])
    except OSError as error:
        raise DataError(f"cannot write the contact sheet {file!r}: {error.strerror}.") from error
