"""`imret demo`: draw a data set and, with --tour, walk the whole chain over it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from imret.cli.help import examples
from imret.cli.numbers import MAX_SEED, Whole
from imret.output.console import announce

COLLECTION = "demo"


@click.command(
    "demo",
    short_help="Draw a data set, and tour the chain.",
    epilog=examples(
        "imret demo build/demo --train 40 --test 20",
        "imret demo build/other --train 40 --test 20 --seed 1",
        "imret demo build/large --train 4000 --test 200 --tour",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--train", type=Whole(10), default=4000, show_default=True, help="Pictures to train on.")
@click.option("--test", type=Whole(10), default=200, show_default=True, help="Pictures to search.")
@click.option(
    "--seed", type=Whole(0, MAX_SEED), default=0, show_default=True, help="Another seed draws other pictures."
)
@click.option("--workers", type=Whole(1), help="Drawing processes.  [default: one per core]")
@click.option("--tour", is_flag=True, help="Then train, ingest, search, measure, and write a contact sheet.")
def command(folder: Path, train: int, test: int, seed: int, workers: int | None, tour: bool) -> None:
    """Draw ten categories of pictures into DIR/train and DIR/test, nothing to download.

    Each picture's subject, colour, number, pattern and background are known, and stand in its captions, so
    that a search can be marked right or wrong. With --tour the commands of the whole chain are run on them,
    each shown as you would type it.
    """
    from imret.demo.dataset import write_dataset

    started = time.monotonic()
    announce(f"Drawing {train:,} training and {test:,} test pictures into {folder}")
    write_dataset(folder, train=train, test=test, seed=seed, workers=workers, progress=sys.stderr.isatty())
    if not tour:
        announce(
            f"Done in {time.monotonic() - started:.0f} s. Next: imret finetune {folder / 'train'} "
            f"--model imret-tiny --from-scratch --output {folder / 'model'}"
        )
        return
    store, model = folder / "store", folder / "model"
    _run("finetune", folder / "train", "--model", "imret-tiny", "--from-scratch", "--output", model)
    _run("ingest", folder / "test", "--model", model, "--db", store, "--collection", COLLECTION)
    from imret.demo.tour import examples, measure

    _search("mushroom", store, "--category", "fungi")
    for query, pictures in examples(folder):
        _search(query, store)
        announce(f"({pictures} of the {test:,} pictures show{'s' if pictures == 1 else ''} this)")

    announce("\nMeasuring: every query ranks every test picture")
    click.echo(measure(folder, store, COLLECTION, sheet=folder / "sheet.html"))
    announce(
        f"The whole tour took {time.monotonic() - started:.0f} s. To look through the pictures yourself: "
        f"imret serve --db {store} --collection {COLLECTION} --open"
    )


def _search(query: str, store: Path, *options: str) -> None:
    _run("search", query, *options, "--limit", "5", "--db", store, "--collection", COLLECTION)


def _run(*arguments: str | os.PathLike[str]) -> None:
    """Run one imret command as a person would type it, and stop the tour if it fails."""
    words = [os.fspath(argument) for argument in arguments]
    announce(f"\n$ imret {shlex.join(words)}")
    code = subprocess.run([sys.executable, "-m", "imret", *words]).returncode
    if code:
        sys.exit(code)
