"""The options of `imret ingest` that say how units are ingested: which of them, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imret.cli.numbers import Real, Whole
from imret.errors import DataError, counted
from imret.output.console import announce
from imret.settings import pixel_limit

if TYPE_CHECKING:
    from imret.store import Store
    from ingest.units import ByUnits

F = TypeVar("F", bound=Callable[..., Any])

_OF_AN_ACTOR = ("device", "precision", "check_content", "batch_size", "workers")


def check_where(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse the address of Ray's client, which Ray's own pages warn against for such work.

    Raises:
        DataError: If it is one.
    """
    if value is not None and value.startswith("ray://"):
        host = value.removeprefix("ray://").partition(":")[0] or "HOST"
        raise DataError(
            f"{value!r} is the address of Ray's client, which is not made for a run of hours: it ends with "
            "the connection. Have the cluster itself run it:\n"
            f"ray job submit --address http://{host}:8265 -- imret ingest SOURCE --db URL --ray auto"
        )
    return value


def spread_options(command: F) -> F:
    """Add the options to a command; it gets them as `check_units`, `ray`, `actors` and `gpus_per_actor`."""
    for option in (
        click.option(
            "--gpus-per-actor",
            type=Real(0),
            metavar="N",
            help="GPUs of each actor, or a part of one.  [default: 1 where there are some]",
        ),
        click.option(
            "--actors",
            type=Whole(1),
            help="How many ingest at a time.  [default: one a GPU; without GPUs one a node]",
        ),
        click.option(
            "--ray",
            metavar="WHERE",
            callback=check_where,
            help="Spread the units over a Ray cluster: auto for the one of this machine, HOST:PORT, or local "
            "for this machine alone. Needs a server: --db URL.",
        ),
        click.option(
            "--check-units",
            is_flag=True,
            help="Look into all shards, also those that are done and as before, or that failed too often.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def units_as_asked(
    store: Store,
    *,
    check_units: bool,
    ray: str | None,
    actors: int | None,
    gpus_per_actor: float | None,
    running: Mapping[str, Any],
) -> Iterator[ByUnits]:
    """Yield how units are ingested; while it runs, actors are there if they were asked for.

    Args:
        store: That is filled.
        check_units: As given, and so are the next three.
        ray: Where.
        actors: How many.
        gpus_per_actor: GPUs of each.
        running: The other options of the command.

    Raises:
        DataError: If Ray is not there, or has no room.
    """
    from ingest.units import ByUnits

    if ray is None:
        if actors is not None or gpus_per_actor is not None:
            raise click.UsageError("--actors and --gpus-per-actor are for --ray, and it is not given.")
        yield ByUnits(store, check_units=check_units)
        return
    from ingest.spread import Spreading

    of_an_actor = {name: running[name] for name in _OF_AN_ACTOR} | {"max_pixels": pixel_limit()}
    with Spreading(store, ray, actors=actors, gpus_per_actor=gpus_per_actor, **of_an_actor) as spreading:
        shape = spreading.shape
        each = counted(shape.cpus, "CPU") + (f", {shape.gpus:g} GPUs" if shape.gpus else "")
        announce(f"Ray: {counted(shape.actors, 'actor')}, each with {each}")
        yield ByUnits(store, check_units=check_units, hands=spreading)
