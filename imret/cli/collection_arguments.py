"""What the commands about one collection share: how it is named, and what is said of the store."""

from __future__ import annotations

import shlex

import click

from imret.cli.options import collection_choice
from imret.output.console import announce

# Of the commands that are about one collection, which may be named as everywhere else, too.
name_argument = click.argument("name", required=False, metavar="NAME")
name_option = collection_choice("The same as NAME.")


def arguments_of(collection: str | None, **given: str | None) -> list[str]:
    """Return the arguments by their names, the first of which --collection may have given instead.

    Raises:
        click.UsageError: If one is missing, or the collection was named twice.
    """
    values = [value for value in (collection, *given.values()) if value is not None]
    if len(values) > len(given):
        raise click.UsageError(f"--collection is what {next(iter(given))} is. Give one of them.")
    if len(values) < len(given):
        raise click.UsageError(f"Missing argument '{list(given)[len(values)]}'.")
    return values


def say_reason(reason: str) -> None:
    """Announce why a store was chosen, where that was not said."""
    if reason:
        announce(reason)


def db_again(address: str, db: str | None) -> str:
    """Return the option that names the store again, if it was named."""
    return "" if db is None else f" --db {shlex.quote(address)}"
