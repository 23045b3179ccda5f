"""`imret collections backup`, `restore` and `pull`: the commands around `imret.store.backup`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from imret.cli.collection_arguments import arguments_of, db_again, name_argument, name_option, say_reason
from imret.cli.help import examples
from imret.cli.options import collection_choice, db_option
from imret.errors import counted
from imret.escape import escape_control
from imret.output.console import announce

_peer_option = click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="URL",
    help="Another node of the server's cluster, which has other shards; may be repeated.",
)


@click.command(
    "backup",
    short_help="Keep a collection in a file.",
    epilog=examples(
        "imret collections backup photos photos.backup",
        "imret collections backup --collection photos photos-friday.backup",
        "imret collections backup photos photos.backup --db http://localhost:6333",
        "imret collections backup photos photos.backup --db http://localhost:6333 --peer http://localhost:6343",
    ),
)
@name_argument
@click.argument("file", required=False, metavar="FILE", type=click.Path())
@name_option
@db_option
@_peer_option
def backup_command(
    name: str | None, file: str | None, collection: str | None, db: str | None, peers: tuple[str, ...]
) -> None:
    """Keep a collection in FILE, as its engine has it: vectors, index, payload, names, concepts.

    A file that exists is never replaced. The collection is searched and filled meanwhile as ever. `restore`
    makes a collection of it again; where that has another engine or an older one, `export` and `import` do.
    The pictures are not in it.
    """
    name, file = arguments_of(collection, NAME=name, FILE=file)
    from imret.store import open_store
    from imret.store.backup import backup_collection

    started = time.monotonic()
    with open_store(db, create=False, share="if possible", collection=name) as store:
        say_reason(store.reason)
        with _bytes_bar("backup") as (on_bytes, _):
            note = backup_collection(store, name, file, peers=peers, on_bytes=on_bytes)
    held = f"about {name}" if note.points is None else f"{counted(note.points, 'image')} of {name}"
    announce(f"backed up {held} to {file} in {time.monotonic() - started:.1f} s")
    if note.points is None:
        announce("  another program wrote to it meanwhile: what came last may not be in it")


@click.command(
    "restore",
    short_help="Make a collection of a backup.",
    epilog=examples(
        "imret collections restore photos.backup",
        "imret collections restore photos.backup --collection holidays",
        "imret collections restore photos.backup --replace",
        "imret collections restore photos.backup --db http://localhost:6333",
    ),
)
@click.argument("file", type=click.Path())
@db_option
@collection_choice("Collection to make.  [default: its name in the file]")
@click.option(
    "--replace", is_flag=True, help="Replace a collection that exists; it answers until the new is complete."
)
def restore_command(file: str, db: str | None, collection: str | None, replace: bool) -> None:
    """Make a collection of a FILE that `backup` wrote. It is verified before anything is changed.

    To an embedded store its files are copied, index and all. To a server its pictures are sent, and the
    server builds the index.
    """
    from imret.store import open_store
    from imret.store.backup import restore_collection
    from imret.store.backup_file import Reader

    started = time.monotonic()
    with Reader(file) as reader:
        note = reader.note
    name = collection or note.collection
    with open_store(db, share="if possible", collection=name) as store:
        say_reason(store.reason)
        with _bytes_bar("verify") as (on_bytes, on_stage):
            n = restore_collection(file, store, name, replace=replace, on_bytes=on_bytes, on_stage=on_stage)
        address = store.address
    announce(
        f"restored {counted(n, 'image')} into {name} at {address} in {time.monotonic() - started:.1f} s; "
        f"its model is {escape_control(note.identity.model)}"
    )


@click.command(
    "pull",
    short_help="Take a collection from a server, as files.",
    epilog=examples(
        "imret collections pull photos --db http://localhost:6333",
        "imret collections pull photos --db http://localhost:6333 --to home.db",
        "imret collections pull photos --db http://localhost:6333 --peer http://localhost:6343 --replace",
    ),
)
@name_argument
@name_option
@db_option
@_peer_option
@click.option("--to", metavar="FOLDER", help="Embedded store to take it to.  [default: that of this user]")
@click.option("--replace", is_flag=True, help="Replace a collection that is there; it answers until then.")
def pull_command(
    name: str | None,
    collection: str | None,
    db: str | None,
    peers: tuple[str, ...],
    to: str | None,
    replace: bool,
) -> None:
    """Make a collection of a server's in an embedded store, by the snapshots of its shards.

    With its index, names and concepts: it takes as long as to copy the files. Every shard comes from a node
    that has it; of a cluster whose nodes do not all have all, name the others with --peer. A snapshot takes
    its size on the server's disk while it is fetched.
    """
    (name,) = arguments_of(collection, NAME=name)
    from imret.errors import DataError
    from imret.settings import store_dir
    from imret.store import open_store
    from imret.store.backup import pull_collection

    started = time.monotonic()
    if to is not None and "://" in to:
        raise DataError(f"{to!r} is a server, and a collection is pulled to a folder: --to FOLDER")
    with open_store(db, create=False, collection=name) as server:
        say_reason(server.reason)
        with open_store(to or store_dir()) as store, _bytes_bar("pull") as (on_bytes, _):
            pulled = pull_collection(server, name, store, peers=peers, replace=replace, on_bytes=on_bytes)
            address = store.address
    announce(
        f"pulled {counted(pulled.points, 'image')} of {name} ({counted(pulled.shards, 'shard')}) to "
        f"{address} in {time.monotonic() - started:.1f} s; search it: imret search TEXT --collection {name}"
        + db_again(address, to)
    )
    if pulled.is_behind:
        announce("  another program wrote to it meanwhile: pull it again for what came last (--replace)")


@contextmanager
def _bytes_bar(description: str) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Draw progress in bytes where there is a terminal; yields what to call with them, and at a stage."""
    from tqdm import tqdm

    with tqdm(
        desc=description, unit="B", unit_scale=True, unit_divisor=1_000, disable=not sys.stderr.isatty()
    ) as bar:

        def advance(n_bytes: int) -> None:
            bar.update(n_bytes)

        def begin(stage: str) -> None:
            bar.reset()
            bar.set_description(stage)

        yield advance, begin
