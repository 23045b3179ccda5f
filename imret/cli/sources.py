"""`imret sources`: the commands around `imret.sources`, the folders that a collection was filled from."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from imret.cli.help import ListByDefault, examples
from imret.cli.options import collection_option, db_option, format_option, progress_bar
from imret.errors import counted
from imret.escape import escape_control, quoted
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.sources.stored import StoredSource


@click.group(
    "sources",
    cls=ListByDefault,
    sections={"Commands": ("list", "rename", "forget")},
    short_help="List, rename and forget the folders of a collection.",
    epilog=examples(
        "imret sources",
        "imret sources --collection photos --format json",
        "imret sources rename photos /mnt/nas/photos --no-check",
        "imret sources forget photos",
    ),
)
def command() -> None:
    """Look after the folders that a collection was filled from. Without a command, list them."""


@command.command(
    "list",
    short_help="List them (the default).",
    epilog=examples(
        "imret sources",
        "imret sources list --collection photos",
        "imret sources list --format json",
        "imret sources list --db http://localhost:6333",
    ),
)
@db_option
@collection_option
@format_option("json: one object per line.")
def list_command(db: str | None, collection: str, output: str) -> None:
    """List the folders: images, what is there now, path."""
    from imret.sources.stored import list_sources, naming_options
    from imret.store import open_store

    with open_store(db, create=False, share="if possible", collection=collection) as store:
        if store.reason:
            announce(store.reason)
        sources, where = list_sources(store, collection), naming_options(store, collection)
    if output == "json":
        for source in sources:
            print(json.dumps(asdict(source), ensure_ascii=False))
    elif sources:
        _print_table(sources)
        for source in sources:
            if source.exclude:
                without = " ".join(map(quoted, source.exclude))
                announce(f"{escape_control(source.folder)} is ingested without {without}")
    else:
        announce(f"collection {collection} holds no pictures; fill it: imret ingest FOLDER{where}")
    if any(source.state in ("gone", "empty") for source in sources):
        announce(f"of a folder that has moved:        imret sources rename OLD NEW{where}")
        announce(f"of one that is gone for good:      imret sources forget OLD{where}")


def _print_table(sources: Sequence[StoredSource]) -> None:
    cells = [("images", "now", "folder")]
    cells += [(f"{source.images:,}", source.state, escape_control(source.folder)) for source in sources]
    width, state = (max(len(row[column]) for row in cells) for column in (0, 1))
    for images, now, folder in cells:
        print(f"{images:>{width}}  {now:<{state}}  {folder}")


@command.command(
    "rename",
    short_help="Say where a folder is now.",
    epilog=examples(
        "imret sources rename photos /mnt/nas/photos --no-check",
        "imret sources rename photos /mnt/nas/photos",
        "imret sources rename photos /mnt/nas/photos --collection holidays",
        "imret sources rename photos /mnt/nas/photos --db http://localhost:6333",
    ),
)
@click.argument("old", type=click.Path(path_type=str))
@click.argument("new", type=click.Path(path_type=str))
@db_option
@collection_option
@click.option(
    "--no-check",
    is_flag=True,
    help="Do not look whether NEW holds the pictures: it is a folder of another machine, say.",
)
def rename_command(old: str, new: str, db: str | None, collection: str, no_check: bool) -> None:
    """Give every picture of the folder OLD its place below NEW, where the folder is now.

    Nothing is embedded, and no model is loaded. Stopped half way, run it again. Then ingest NEW for what else
    has changed in it.
    """
    from imret.sources.stored import rename_source
    from imret.store import open_store

    with open_store(db, create=False, share=True, collection=collection) as store:
        if store.reason:
            announce(store.reason)
        with progress_bar("rename", None) as (on_points, _):
            images = rename_source(
                store, old, new, collection=collection, check=not no_check, on_points=on_points
            )
    if images:
        announce(f"renamed {escape_control(old)} to {escape_control(new)}: {counted(images)} of {collection}")
    else:
        announce(f"{collection} holds no pictures of {escape_control(old)} (any more); nothing to rename")


@command.command(
    "forget",
    short_help="Remove what is stored of folders; asks first.",
    epilog=examples(
        "imret sources forget photos --yes",
        "imret sources forget photos",
        "imret sources forget photos /mnt/nas/photos",
        "imret sources forget photos --collection holidays",
    ),
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=str))
@db_option
@collection_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def forget_command(sources: tuple[str, ...], db: str | None, collection: str, yes: bool) -> None:
    """Remove the pictures of folders from a collection. The files themselves are never touched."""
    from contextlib import closing

    from imret.errors import DataError
    from imret.sources.stored import find_source, forget_source, naming_options, no_such_source
    from imret.store import open_store

    with open_store(db, create=False, share=True, collection=collection) as store:
        if store.reason:
            announce(store.reason)
        with closing(store.open(collection)) as opened:
            known = opened.facet("source")
        found: dict[str, int] = {}
        for named in sources:
            source = find_source(named, known)
            if source is None:
                raise no_such_source(store, collection, named, known)
            found[source] = known[source]
        shown = ", ".join(f"{escape_control(source)} ({counted(images)})" for source, images in found.items())
        question = f"Remove {shown} from {collection}?"
        if not yes:
            if not sys.stdin.isatty():
                raise DataError(f"{question} There is no terminal to ask at. Say so with --yes.")
            if not click.confirm(question, err=True):
                announce("nothing was removed")
                raise click.exceptions.Exit(1)
        for source, images in found.items():
            with progress_bar("forget", images) as (on_points, _):
                forget_source(store, source, collection=collection, on_points=on_points)
            announce(f"forgot {escape_control(source)}: {counted(images)} of {collection}")
            again = f"imret ingest {shlex.quote(source)}{naming_options(store, collection)}"
            announce(f"  to have it again: {escape_control(again)}")
