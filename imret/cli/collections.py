"""`imret collections`: the commands around a store's collections, and `imret.store.parquet`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from imret.cli.backups import backup_command, pull_command, restore_command
from imret.cli.collection_arguments import arguments_of, db_again, name_argument, name_option, say_reason
from imret.cli.creation import change_options, creation_options, take_creation
from imret.cli.help import ListByDefault, examples
from imret.cli.options import collection_choice, db_option, format_option, progress_bar
from imret.errors import StoreUnavailable, counted
from imret.escape import escape_control
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.store import Stats, Store
    from imret.store.check import CheckReport


@click.group(
    "collections",
    cls=ListByDefault,
    sections={
        "Every day": ("list", "show", "rename", "delete"),
        "To another machine or store": ("export", "import", "pull"),
        "For a bad day": ("backup", "restore"),
        "Now and then": ("check", "optimize"),
    },
    short_help="List, show, check, rename, delete, move, back up and optimize collections.",
    epilog=examples(
        "imret collections",
        "imret collections show photos",
        "imret collections rename photos holidays",
        "imret collections export photos photos.parquet",
        "imret collections import photos.parquet --db http://localhost:6333",
        "imret collections backup photos photos-monday.backup",
    ),
)
def command() -> None:
    """Look after the collections of a store. Without a command, list them."""


for _other in (pull_command, backup_command, restore_command):
    command.add_command(_other)


@command.command(
    "list",
    short_help="List them (the default).",
    epilog=examples(
        "imret collections",
        "imret collections list --format json",
        "imret collections list --collection photos",
        "imret collections list --db http://localhost:6333",
    ),
)
@db_option
@collection_choice("List this one alone.  [default: all]")
@format_option("json: one object per line.")
def list_command(db: str | None, collection: str | None, output: str) -> None:
    """List the collections: name, images, size on disk, model."""
    from imret.cli.describe import describe, undescribed
    from imret.store import open_store

    rows: list[dict[str, Any]] = []
    with open_store(db, create=False, share="if possible", collection=collection) as store:
        say_reason(store.reason)
        address = store.address
        for described in describe(store, collection)["collections"]:
            row = {key: described.get(key) for key in ("name", "images", "model", "disk_bytes")}
            how = undescribed(described)
            rows.append({**row, "state": how or "complete", "reason": described.get(how)})
            if how:  # the others can be listed all the same
                announce(_why_not_listed(described, how, db_again(address, db)))
    if output == "json":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    elif rows:
        _print_table(rows)
    else:
        announce(f"no collections in {address} yet; make one: imret ingest FOLDER{db_again(address, db)}")


def _why_not_listed(described: dict[str, Any], how: str, db: str) -> str:
    name, why = described["name"], escape_control(described[how])
    if how == "unavailable":
        return f"{name}: its images cannot be counted now; {why}"
    if how == "damaged":
        return f"{name}: {why}; what mends it: imret collections show {name}{db}"
    return f"{name}: {why}; or delete what it left: imret collections delete {name}{db}"


def _state_shown(state: str) -> str:
    return "-" if state == "unavailable" else state


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    cells = [("name", "images", "size", "model")]
    cells += [
        (
            row["name"],
            _state_shown(row["state"]) if row["images"] is None else f"{row['images']:,}",
            _size(row["disk_bytes"]),
            escape_control(row["model"] or "-"),
        )
        for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    for name, images, size, model in cells:
        print(f"{name:<{widths[0]}}  {images:>{widths[1]}}  {size:>{widths[2]}}  {model}")


@command.command(
    "show",
    short_help="Show one collection.",
    epilog=examples(
        "imret collections show photos",
        "imret collections show --collection photos",
        "imret collections show photos --format json",
        "imret collections show photos --db http://localhost:6333",
    ),
)
@name_argument
@name_option
@db_option
@format_option("json: one object, for programs.")
def show_command(name: str | None, collection: str | None, db: str | None, output: str) -> None:
    """Show one collection: model, images by category and by folder, index, size on disk."""
    (name,) = arguments_of(collection, NAME=name)
    from imret.cli.describe import describe_collection, format_table
    from imret.store import open_store

    with open_store(db, create=False, share="if possible", collection=name) as store:
        say_reason(store.reason)
        described = describe_collection(store, name)
        with closing(store.open(name)) as opened:
            sources, creation = opened.facet("source"), opened.creation()
        engine, address = store.engine, store.address
    if output == "json":
        print(
            json.dumps(
                {**described, "sources": sources, "layout": creation.asked}, indent=2, ensure_ascii=False
            )
        )
        return
    print(format_table({"engine": engine, "address": address, "collections": [described]}))
    if creation.asked:
        print(f"laid out     {creation}")
    width = max((len(escape_control(source)) for source in sources), default=0)
    for label, (source, images) in zip(["folders", *[""] * len(sources)], sources.items(), strict=False):
        print(f"{label:<11}  {escape_control(source):<{width}}  {images:>9,}")


@command.command(
    "check",
    short_help="Look for points that imret did not write.",
    epilog=examples(
        "imret collections check photos",
        "imret collections check photos --remove",
        "imret collections check photos --format json",
        "imret collections check photos --db http://localhost:6333",
    ),
)
@name_argument
@name_option
@db_option
@click.option("--remove", is_flag=True, help="Remove the points that are found.")
@format_option("json: one object, for programs.")
def check_command(
    name: str | None, collection: str | None, db: str | None, remove: bool, output: str
) -> None:
    """Look for what only other programs could have put into a collection.

    That is: vectors of NaN (one of which spoils every search on a server), infinity, zero or another length,
    payloads without the fields of a picture or with wrong ones, ids that are no UUIDs. Fields that others
    added to a picture are no reason. Ends with 3 if it found any and left them. A picture whose point was
    removed comes back with the next ingest of its folder. The names and concepts that are kept with the
    collection are read, too; those that are damaged are told and removed alike.
    """
    (name,) = arguments_of(collection, NAME=name)
    from imret.store import open_store
    from imret.store.check import check_collection, check_documents

    with open_store(db, create=False, share="if possible", collection=name) as store:
        say_reason(store.reason)
        with closing(store.open(name)) as opened, progress_bar("check", opened.count()) as (on_points, _):
            report = check_collection(opened, remove=remove, on_points=on_points)
        damaged = check_documents(store, name, remove=remove)
        address = store.address
    if output == "json":
        first = [{"id": finding.id, **finding.reasons} for finding in report.first]
        counts = {
            "checked": report.checked,
            "found": report.found,
            "removed": report.removed,
            "kinds": report.kinds,
            "first": first,
        }
        print(json.dumps({"name": name, **counts, "damaged": damaged}, ensure_ascii=False))
    else:
        _print_check(report)
        for kind, why in damaged.items():
            print(f"{kind:<11}  {'removed, as ' if remove else ''}{escape_control(why)}")
    if report.found > report.removed or (damaged and not remove):
        announce(f"remove them: imret collections check {name} --remove{db_again(address, db)}")
        raise click.exceptions.Exit(3)


def _print_check(report: CheckReport) -> None:
    print(f"checked      {counted(report.checked, 'point')}")
    kinds = ", ".join(f"{n:,} by {kind}" for kind, n in report.kinds.items() if n)
    print(f"found        {report.found:,} that imret did not write" + (f" ({kinds})" if kinds else ""))
    if report.removed:
        print(f"removed      {report.removed:,}")
    for finding in report.first:
        print(f"point        {finding.id}  {escape_control('; '.join(finding.reasons.values()))}")
    if report.found > len(report.first):
        print(f"             and {report.found - len(report.first):,} more")


@command.command(
    "rename",
    short_help="Give a collection another name.",
    epilog=examples(
        "imret collections rename photos holidays",
        "imret collections rename --collection photos holidays",
        "imret collections rename photos holidays --db http://localhost:6333",
    ),
)
@click.argument("old", required=False, metavar="OLD")
@click.argument("new", required=False, metavar="NEW")
@collection_choice("The same as OLD.")
@db_option
def rename_command(old: str | None, new: str | None, collection: str | None, db: str | None) -> None:
    """Give a collection another name. Nothing is copied, so it takes no time."""
    old, new = arguments_of(collection, OLD=old, NEW=new)
    from imret.store import open_store

    with open_store(db, create=False, collection=old) as store:
        say_reason(store.reason)
        store.rename(old, new)
        address = store.address
    announce(
        f"renamed {old} to {new}; search it: imret search TEXT --collection {new}{db_again(address, db)}"
    )


@command.command(
    "delete",
    short_help="Delete collections; asks first.",
    epilog=examples(
        "imret collections delete photos --yes",
        "imret collections delete photos",
        "imret collections delete photos holidays",
        "imret collections delete photos --db http://localhost:6333",
    ),
)
@click.argument("names", nargs=-1, metavar="NAME...")
@collection_choice("The same as NAME; may be repeated.", multiple=True)
@db_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def delete_command(names: tuple[str, ...], collection: tuple[str, ...], db: str | None, yes: bool) -> None:
    """Delete collections. The pictures themselves are never touched."""
    names += collection
    if not names:
        raise click.UsageError("Missing argument 'NAME...'.")
    from imret.errors import DataError
    from imret.store import open_store

    with open_store(db, create=False, collection=names[0]) as store:
        say_reason(store.reason)
        plans = [_deletion(store, name, db) for name in dict.fromkeys(names)]
        question = f"Delete {', '.join(plan.shown for plan in plans)} from {store.address}?"
        if not yes:
            if not sys.stdin.isatty():
                raise DataError(f"{question} There is no terminal to ask at. Say so with --yes.")
            if not click.confirm(question, err=True):
                announce("nothing was deleted")
                raise click.exceptions.Exit(1)
        for plan in plans:
            store.drop(plan.name)
            announce(f"deleted {plan.shown}")
            announce(f"  to make it again: {plan.again}")


@dataclass(frozen=True)
class _Deletion:
    """What is about to be deleted: its name, what the question calls it, what to type to make it again."""

    name: str
    shown: str
    again: str


def _deletion(store: Store, name: str, db: str | None) -> _Deletion:
    """Look up what a deletion would delete, also where it is not complete.

    Raises:
        DataError: If there is nothing of that name.
    """
    from imret.errors import StoreDamaged

    sources: list[str] = []
    model = None
    try:
        building = store.staged_versions(name)
        if store.live(name) is None and (building or name in store.incomplete()):
            model, shown = building[0].model if building else None, f"{name} (not complete)"
        else:
            with closing(store.open(name)) as opened:
                images = opened.count()
                sources = sorted(opened.facet("source"))
                model = opened.identity.model
            shown = f"{name} ({counted(images, 'image')})"
    except StoreDamaged as error:
        shown, sources, model = f"{name} (damaged)", list(error.sources), error.model
    except StoreUnavailable:  # of a full disk not all can be opened, but each can be deleted
        live = store.live(name)
        if live is None or store.engine != "embedded":
            raise
        model, shown = live.model, f"{name} (its images cannot be counted)"
    again = f"imret ingest {' '.join(map(shlex.quote, sources)) or 'FOLDER'} --collection {name}"
    again += f" --model {shlex.quote(model)}" if model else ""
    return _Deletion(name, shown, escape_control(again) + db_again(store.address, db))


@command.command(
    "export",
    short_help="Write a collection to a Parquet file.",
    epilog=examples(
        "imret collections export photos photos.parquet",
        "imret collections export --overwrite photos photos.parquet",
        "imret collections export --collection photos photos.parquet",
        "imret collections export photos photos.parquet --db http://localhost:6333",
    ),
)
@name_argument
@click.argument("file", required=False, metavar="FILE", type=click.Path())
@name_option
@db_option
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
def export_command(
    name: str | None, file: str | None, collection: str | None, db: str | None, overwrite: bool
) -> None:
    """Write a collection, vectors and payload, to a Parquet FILE.

    `import` makes a collection of it again: on another machine, or on a server. The pictures are not in it.
    """
    name, file = arguments_of(collection, NAME=name, FILE=file)
    from imret.store import open_store
    from imret.store.parquet import export_collection

    started = time.monotonic()
    with open_store(db, create=False, share="if possible", collection=name) as store:
        say_reason(store.reason)
        with closing(store.open(name)) as opened:
            total = opened.count()
        with progress_bar("export", total) as (on_points, _):
            n = export_collection(store, name, file, overwrite=overwrite, on_points=on_points)
    announce(f"exported {counted(n, 'image')} of {name} to {file} in {time.monotonic() - started:.1f} s")


@command.command(
    "import",
    short_help="Make a collection of an exported file.",
    epilog=examples(
        "imret collections import photos.parquet",
        "imret collections import photos.parquet --collection holidays",
        "imret collections import photos.parquet --replace",
        "imret collections import photos.parquet --merge",
        "imret collections import photos.parquet --replace --quantize bits4",
        "imret collections import photos.parquet --db http://localhost:6333",
    ),
)
@click.argument("file", type=click.Path())
@db_option
@collection_choice("Collection to make.  [default: its name in the file]")
@click.option(
    "--replace", is_flag=True, help="Replace a collection that exists; it answers until the new is complete."
)
@click.option("--merge", is_flag=True, help="Add to a collection that exists, of the same model.")
@creation_options()
def import_command(
    file: str, db: str | None, collection: str | None, replace: bool, merge: bool, **options: Any
) -> None:
    """Make a collection of a FILE that `export` wrote. It is verified before anything is changed."""
    from imret.sources.stored import list_sources
    from imret.store import open_store
    from imret.store.parquet import import_collection, read_header

    if replace and merge:
        raise click.UsageError("--replace and --merge exclude each other")
    started = time.monotonic()
    creation = take_creation(options)
    header = read_header(file)
    name = collection or header.collection
    with open_store(db, share="if possible", collection=name, creation=creation) as store:
        say_reason(store.reason)
        with progress_bar("verify", header.points) as (on_points, on_stage):
            n = import_collection(
                file, store, name, replace=replace, merge=merge, on_points=on_points, on_stage=on_stage
            )
        address = store.address
        away = [source for source in list_sources(store, name) if source.state != "present"]
    announce(
        f"imported {counted(n, 'image')} into {name} at {address} in {time.monotonic() - started:.1f} s; "
        f"its model is {escape_control(header.identity.model)}"
    )
    if away:
        are = "is" if len(away) == 1 else "are"
        announce(
            f"  {counted(len(away), 'folder')} of it {are} not here; where one is now: imret sources rename "
            f"OLD NEW --collection {name}{db_again(address, db)}"
        )


@command.command(
    "optimize",
    short_help="Build the index.",
    epilog=examples(
        "imret collections optimize photos",
        "imret collections optimize --collection photos",
        "imret collections optimize photos --to-current",
        "imret collections optimize photos --to-current --quantize bits4",
        "imret collections optimize photos --timeout 600 --db http://localhost:6333",
    ),
)
@name_argument
@name_option
@db_option
@change_options
def optimize_command(
    name: str | None,
    collection: str | None,
    db: str | None,
    timeout: float | None,
    to_current: bool,
    **options: Any,
) -> None:
    """Build the index over what is not in it yet. An ingest does so by itself at its end.

    On a server, which builds it by itself, this waits until it has, and says what it waits for.
    """
    (name,) = arguments_of(collection, NAME=name)
    from imret.cli.optimize import optimize
    from imret.store import open_store

    asked = take_creation(options)
    if asked.asked and not to_current:
        raise click.UsageError("what a collection is like is changed with --to-current.")
    with open_store(db, create=False, share="if possible", collection=name) as store:
        say_reason(store.reason)
        with closing(store.open(name)) as opened:
            optimize(opened, timeout_s=timeout, creation=asked if to_current else None, state=_state)


def _state(stats: Stats) -> str:
    size = "" if stats.disk_bytes is None else f", {_size(stats.disk_bytes)} on disk"
    return f"{'index ' if stats.indexed == 0 else ''}{stats.index}{size}"


def _size(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e6:,.1f} MB"
