"""Hits to where somebody wants them: stdout, a contact sheet, a folder of copies, a viewer."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from imret.errors import DataError, ImageError
from imret.escape import escape_control
from imret.output.console import announce, silence_closed_stdout
from imret.output.formats import groups_of, write_hits
from imret.sources.opened import Door, is_plain_file, own_door

if TYPE_CHECKING:
    from imret.retrieval.results import Hit


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
    group_by: str | None = None,
    left_out: int = 0,
) -> int:
    """Put hits where somebody wants them.

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
        group_by: The field by which hits come in groups, whose headings a table and a sheet have.
        left_out: How many identical pictures were left out, for JSON.

    Returns:
        The exit code: 1 if a picture could not be copied.

    Raises:
        DataError: If a sheet or folder cannot be written, or there is nothing to show pictures with.
    """
    door = own_door()
    if preview or html is not None or copy_to is not None or open_them:
        _tell_refused(hits, door)
    with results() as stdout:
        write_hits(
            hits,
            output,
            stdout,
            null=null,
            payload=payload,
            width=shutil.get_terminal_size().columns if stdout.isatty() else None,
            thumbnail=_thumbnails(stdout, door) if preview and output == "table" else None,
            group_by=group_by,
            left_out=left_out,
        )
    code = 0
    if html is not None:
        announce(
            f"Contact sheet: {escape_control(str(_write_sheet(html, query, note, hits, group_by, door)))}"
        )
    if copy_to is not None:
        from imret.output.copy_files import copy_hits

        copied, failed = copy_hits(hits, copy_to, door=door)
        for path, reason in failed:
            announce(f"not copied: {escape_control(path)}: {reason}")
        rest = f", {len(failed):,} not" if failed else ""
        announce(f"{_count(copied)} copied to {escape_control(copy_to)}{rest}")
        code = 1 if failed else 0
    if open_them and hits:
        open_hits(hits, query=query, note=note, sheet=html, group_by=group_by, door=door)
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


def _thumbnails(stream: TextIO, door: Door) -> Callable[[Hit], str] | None:
    from imret.output.terminal_images import cell_pixels, no_preview, preview, protocol_of

    protocol = protocol_of(os.environ, stream)
    if protocol == "none":
        announce("no thumbnails: this is no terminal that can show them; --html FILE writes them to a page")
        return None
    cell = cell_pixels(stream)

    def shown(hit: Hit) -> str:
        try:
            with door.open(hit.payload, hit.path) as file:
                return preview(file, protocol, cell=cell)
        except ImageError as error:
            return no_preview(error)

    return shown


def open_hits(
    hits: Sequence[Hit],
    *,
    query: str,
    note: str = "",
    sheet: str | os.PathLike[str] | None = None,
    group_by: str | None = None,
    door: Door | None = None,
) -> None:
    """Show the pictures of hits in a viewer, or several as a page in a browser: see `imret.output.viewer`.

    Args:
        hits: What to show; those whose files are gone are left out, and said so.
        query: As it was asked; the title of a page.
        note: What else to say about it there.
        sheet: The page, if there is one already. Otherwise it is made in a folder for temporary files that
            only this user can read, and so are pictures out of containers and buckets.
        group_by: The field by which hits come in groups.
        door: Opens the pictures; None for `own_door`.

    Raises:
        DataError: If no file is there, or there is nothing to show them with.
    """
    from imret.output.viewer import show

    door = door or own_door()
    paths = _files_of(hits, door)
    if len(paths) < len(hits):
        announce(f"not shown: {_count(len(hits) - len(paths))} whose files are gone")
    if not paths:
        raise DataError("nothing to open: the files are gone. Bring the collection up to date: imret ingest")

    def page() -> Path:
        if sheet is not None:
            return Path(sheet).absolute()
        file = os.path.join(tempfile.mkdtemp(prefix="imret-"), "hits.html")
        return _write_sheet(file, query, note, hits, group_by, door)

    shown = show(paths, page)
    if shown is not None and sheet is None:
        announce(f"Contact sheet: {escape_control(str(shown))}")


def _files_of(hits: Sequence[Hit], door: Door) -> list[str]:
    """Return the files of hits that are there; what is no file of its own is copied, for a viewer to open."""
    from imret.output.copy_files import copy_hits

    within = [hit for hit in hits if not is_plain_file(hit.payload)]
    copies: list[str] = []
    if within:
        folder = tempfile.mkdtemp(prefix="imret-")
        copy_hits(within, folder, door=door)
        copies = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    return [hit.path for hit in hits if is_plain_file(hit.payload) and os.path.exists(hit.path)] + copies


def _tell_refused(hits: Sequence[Hit], door: Door) -> None:
    """Say which buckets nothing is fetched from, and how that is allowed."""
    for source in sorted({door.refusal(hit.payload) for hit in hits} - {""}):
        announce(
            f"not fetched: pictures of {escape_control(source)}. Only below a URL that you name are they: "
            f"IMRET_ROOTS={escape_control(source)}"
        )


def _write_sheet(
    file: str, query: str, note: str, hits: Sequence[Hit], group_by: str | None, door: Door
) -> Path:
    from imret.output.contact_sheet import Strip, write_sheet

    summary = _count(len(hits)) + (f" · {note}" if note else "")
    try:
        strips = [Strip(heading, "", group) for heading, group in groups_of(hits, group_by)]
        return write_sheet(file, query, summary, strips, door=door)
    except OSError as error:
        raise DataError(
            f"cannot write the contact sheet {file!r}: {error.strerror}.\nName another place: --html FILE"
        ) from error


def _count(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"
