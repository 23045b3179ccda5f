"""Options for how a collection is laid out: shards, replicas, compression, what is held in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imret.cli.numbers import Real, Whole

if TYPE_CHECKING:
    from imret.store import Creation, Store

F = TypeVar("F", bound=Callable[..., Any])

# Spelt out, since `imret.store.placement` is loaded only where they are used; a test compares.
_QUANTIZE = ("int8", "bits4", "bits1", "binary")
_MEMORY = ("cold", "cached", "pinned")

_OPTIONS: dict[str, Callable[[F], F]] = {
    "--shards": click.option(
        "--shards",
        type=Whole(1, 10_000),
        help="Parts of a new collection on a cluster; 12 share evenly among 1, 2, 3, 4, 6 or 12 nodes.  "
        "[default: the server's, one a node]",
    ),
    "--replicas": click.option(
        "--replicas",
        type=Whole(1, 1_000),
        help="Nodes of a cluster that hold each part; with 2, one may be lost.  [default: the server's, 1]",
    ),
    "--write-consistency": click.option(
        "--write-consistency",
        type=Whole(1, 1_000),
        help="Replicas that must have stored a picture before it counts as stored.  [default: the "
        "server's, 1]",
    ),
    "--segment-mb": click.option(
        "--segment-mb",
        type=Whole(1),
        help="Megabytes of vectors up to which a server merges segments.  [default: 5000]",
    ),
    "--quantize": click.option(
        "--quantize",
        type=click.Choice(_QUANTIZE),
        help="How vectors are compressed: a byte, 4 bits or 1 bit a number (TurboQuant), or its sign; bits1 "
        "and binary find less.  [default: int8]",
    ),
    "--originals": click.option(
        "--originals",
        type=click.Choice(_MEMORY[:2]),
        help="Uncompressed vectors: on disk until they are read, or read ahead.  [default: cold]",
    ),
    "--quantized": click.option(
        "--quantized",
        type=click.Choice(_MEMORY),
        help="Compressed vectors: the same, or held in memory.  [default: pinned; embedded: cached]",
    ),
}

_TIMEOUT = click.option(
    "--timeout",
    type=Real(0, min_open=True),
    metavar="SECONDS",
    help="Wait so long at most, then end with 1; a server goes on.  [default: until it is built]",
)
_TO_CURRENT = click.option(
    "--to-current",
    is_flag=True,
    help="Lay it out as collections are made now (its payload indexes, what is held in memory), and as the "
    "options below ask.",
)

ALL = tuple(_OPTIONS)
CHANGEABLE = tuple(flag for flag in _OPTIONS if flag not in ("--shards", "--replicas"))


def creation_options(flags: tuple[str, ...] = ALL) -> Callable[[F], F]:
    """Return the options of a command that makes or changes collections."""

    def add(command: F) -> F:
        for flag in reversed(flags):
            command = _OPTIONS[flag](command)
        return command

    return add


def change_options(command: F) -> F:
    """Add the options of the command that builds an index, and changes what a collection is like."""
    return _TIMEOUT(_TO_CURRENT(creation_options(CHANGEABLE)(command)))


def take_creation(options: dict[str, Any]) -> Creation:
    """Take these options out of those of a command, and return what they ask.

    Raises:
        click.UsageError: If they contradict each other.
    """
    names = [flag.removeprefix("--").replace("-", "_") for flag in ALL]
    given = {name: value for name in names if (value := options.pop(name, None)) is not None}
    from imret.store import Creation

    try:
        return Creation(**given)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def check_existing(store: Store, name: str, asked: Creation) -> None:
    """Refuse what is asked of a collection that exists and is not like that, before anything is loaded.

    Raises:
        DataError: If there is one.
        StoreError: If something is asked that only a server has, of another store.
    """
    if not asked.asked:
        return
    from imret.store.placement import check_embedded, check_same

    if store.engine == "embedded":
        check_embedded(asked, store.address)
    if store.live(name) is not None:
        with closing(store.open(name)) as opened:
            check_same(asked, opened.creation(), name, store.address)
