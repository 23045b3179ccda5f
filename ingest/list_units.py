"""`imret units`: what is known of the shards of a source, or of the slices of its listing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import click

from imret.cli.help import examples
from imret.cli.options import collection_option, db_option, exclude_option, format_option
from imret.errors import counted
from imret.escape import escape_control, escape_undecodable
from imret.output.console import announce

_STATES = ("done", "changed", "failed", "begun", "never begun")


@click.command(
    "units",
    short_help="Show which shards of a source are done.",
    epilog=examples(
        "imret units photos",
        "imret units photos --state failed",
        "imret units photos --format json",
        "imret units s3://bucket/laion --db http://localhost:6333 --state changed",
    ),
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=str))
@db_option
@collection_option
@exclude_option
@click.option(
    "--state",
    type=click.Choice(_STATES),
    multiple=True,
    help="Only units in this state; may be repeated.",
)
@format_option("json: one object per line.")
def command(
    sources: tuple[str, ...],
    db: str | None,
    collection: str,
    exclude: tuple[str, ...],
    state: tuple[str, ...],
    output: str,
) -> None:
    """List the units of a source, which are its shards or slices of its listing, and what is known of each.

    done: ingested, and as it was then. changed: another since. failed: it could not be ingested, or ended the
    process three times. begun: it is being ingested, or was when a run ended. never begun: nothing is known.
    A folder of this machine is ingested without units, unless --ray asks for them.
    """
    from imret.store import open_store
    from ingest.excluded import recalled
    from ingest.find_source import find_sources
    from ingest.units import states_of

    counts: Counter[str] = Counter()
    found = find_sources(sources, exclude=exclude or None)
    with open_store(db, create=False, share="if possible", collection=collection) as store:
        version = store.version(collection)
        if version is None:
            store.open(collection).close()  # says which there are
        assert version is not None
        ledger = store.ledger(collection, version)
        shows = _show_json if output == "json" else _show_row
        for source in recalled(store, found, collection):
            for unit, line in states_of(ledger, source):
                now = "never begun" if line is None else line.state(unit.digest)
                counts[now] += 1
                if not state or now in state:
                    known: dict[str, Any] = {} if line is None else line.as_dict()
                    names = {"source": escape_undecodable(source.root), "unit": escape_undecodable(unit.name)}
                    shows({**known, **names, "state": now})
    said = ", ".join(f"{counts[one]:,} {one}" for one in _STATES if counts[one])
    announce(f"{counted(counts.total(), 'unit')}{f': {said}' if said else ''}")


def _show_json(unit: dict[str, Any]) -> None:
    print(json.dumps(unit, ensure_ascii=False))


def _show_row(unit: dict[str, Any]) -> None:
    """Print a row at once: there may be very many."""
    row = f"{unit['state']:<11}"
    if "points" in unit:
        row += f"  {unit['points']:>9,} pictures  {sum(unit['skipped'].values()):>7,} skipped"
    else:
        row += " " * 37
    name = escape_control(f"{unit['source']}/{unit['unit']}" if unit["unit"] else unit["source"])
    reason = unit.get("error") or (f"{unit['attempts']} attempts" if unit.get("attempts") else "")
    print(f"{row}  {name}{f'  ({escape_control(reason)})' if reason else ''}")
