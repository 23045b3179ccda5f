"""`imret ingest`: the command around `ingest.pipeline`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import examples
from imret.cli.numbers import Whole
from imret.cli.options import (
    arch_option,
    ask_at_terminal,
    collection_option,
    db_option,
    device_option,
    exclude_option,
    max_pixels_option,
    model_option,
    precision_option,
)
from imret.escape import escape_control, quoted
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.store import Store
    from ingest.report import Report
    from ingest.sources import FolderSource


_STDOUT = "/dev/stdout"


@click.command(
    "ingest",
    short_help="Fill a collection from folders.",
    epilog=examples(
        "imret ingest data/test --model models/nature --report ingest.json",
        "imret ingest photos",
        "imret ingest photos holiday --collection holidays",
        "imret ingest photos --prune --exclude raw/ --exclude '*.tmp.jpg'",
        "imret ingest photos --model models/nature --rebuild",
    ),
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=str))
@model_option("Model to embed with. Default: the collection's own, or {default} for a new one.")
@arch_option
@db_option
@collection_option
@click.option("--no-categories", is_flag=True, help="A flat pile: sub-folders are not categories.")
@exclude_option
@click.option("--no-exclude", is_flag=True, help="Leave out nothing that --exclude named before.")
@click.option("--prune", is_flag=True, help="Remove pictures from the collection whose files are gone.")
@click.option(
    "--check-content",
    is_flag=True,
    help="Compare the content of all files, also where size and time are as before.",
)
@click.option("--rebuild", is_flag=True, help="Embed all again with another --model; switches when complete.")
@click.option(
    "--report",
    "report_file",
    metavar="FILE",
    help="Write what was done, and every skip, as JSON; - is standard output.",
)
@click.option(
    "--moved-from",
    multiple=True,
    metavar="OLD",
    help="A folder of the collection that has moved here: its pictures keep their vectors.",
)
@click.option(
    "--second-copy",
    is_flag=True,
    help="A folder with the pictures of one that is gone is a copy, not that one moved.",
)
@click.option("--strict", is_flag=True, help="Exit with 3 if any picture was skipped.")
@click.option("--batch-size", type=Whole(1), help="Pictures per encode.  [default: 32, on a GPU 256]")
@click.option("--workers", type=Whole(1), help="Pictures decoded at a time.  [default: one per core]")
@max_pixels_option
@device_option
@precision_option
def command(
    sources: tuple[str, ...],
    db: str | None,
    collection: str,
    no_categories: bool,
    exclude: tuple[str, ...],
    no_exclude: bool,
    moved_from: tuple[str, ...],
    second_copy: bool,
    report_file: str | None,
    strict: bool,
    **options: Any,
) -> None:
    """Fill a collection from folders of pictures, one sub-folder per category.

    Run it again at any time: new and changed pictures are embedded, moved ones are recognised, unchanged
    ones are left alone. Stopped half way, it continues where it was.
    """
    if exclude and no_exclude:
        raise click.UsageError("--exclude and --no-exclude contradict each other.")
    from imret.errors import DataError
    from imret.output.written_files import check_outputs
    from imret.sources.stored import naming_options
    from imret.store import open_store
    from ingest.summary import summarise
    from ingest.target import with_pictures

    excluded = () if no_exclude else exclude or None
    folders = find_folders(sources, db, collection, categories=not no_categories, exclude=excluded)
    if report_file == "-":
        report_file = _STDOUT
    check_outputs(
        {"--report": report_file},
        inputs={"--model": options["model"], **{source: source for source in sources}},
    )
    # Shared: what an ingest fills can be searched, and served, while it runs.
    with open_store(db, share=True, collection=collection) as store:
        where = naming_options(store, collection)
        folders = recall_excluded(store, folders, collection)
        if not no_categories:
            _warn_of_splits(folders)
        moved, copies = ask_what_moved(store, folders, collection, moved_from, second_copy=second_copy)
        # Before a model is looked for, which may be a download.
        with_pictures(folders, store, collection, prune=options["prune"], rebuild=options["rebuild"])
        report = ingest_with_bar(store, folders, collection, moved_from=moved, second_copy=copies, **options)
    if exclude and not report.taken_over:  # of one that was, a folder has more patterns
        _tell_idle_patterns(folders)
    failure = None
    try:
        if report_file is not None:
            report.write(report_file)
    except OSError as error:  # what was done is told all the same
        failure = error
    shown_report = None if failure else report_file
    summarise(report, shown_report, check_content=options["check_content"], where=where)
    if failure is not None:
        raise DataError(f"cannot write the report {report_file!r}: {failure.strerror}.") from failure
    if report.without_pictures:  # the others are done
        raise DataError("\n".join(report.without_pictures))
    if strict and report.skipped:
        sys.exit(3)


def _warn_of_splits(folders: Sequence[FolderSource]) -> None:
    """Tell of folders that become categories and are named like splits of a data set."""
    from imret.datasets.doubtful_categories import doubtful_folders

    for folder in folders:
        if splits := doubtful_folders(folder.root, folder.exclusion.patterns).splits:
            announce(
                f"Warning: {', '.join(splits)} in {folder.root} are named like the splits of a data set and "
                f"become categories; for the folders in them, ingest each: imret ingest "
                f"{shlex.quote(os.path.join(folder.root, splits[0]))} ..., or leave them out: --no-categories"
            )


def find_folders(
    sources: Sequence[str],
    db: str | None,
    collection: str,
    *,
    categories: bool,
    exclude: Sequence[str] | None,
) -> list[FolderSource]:
    """Return the folders to ingest.

    Raises:
        DataError: If one cannot be; where the collection holds pictures of it, with what can be done.
    """
    from imret.errors import DataError, ImretError, counted
    from imret.sources.stored import find_source, naming_options
    from imret.store import open_store
    from ingest.settle import advice_for_gone
    from ingest.sources import FolderSource

    folders = []
    for source in sources:
        try:
            folders.append(FolderSource(source, categories=categories, exclude=exclude))
        except DataError as error:
            stored: dict[str, int] = {}
            where = ""
            with (
                suppress(ImretError),
                open_store(db, create=False, share="if possible", collection=collection) as store,
                closing(store.open(collection)) as opened,
            ):
                stored, where = opened.facet("source"), naming_options(store, collection)
            known = find_source(source, stored)
            if known is None:
                raise
            raise DataError(
                f"{error}\nThe collection holds {counted(stored[known])} of it. "
                f"{advice_for_gone(known, where)}"
            ) from None
    return folders


def _tell_idle_patterns(folders: Sequence[FolderSource]) -> None:
    for pattern in sorted(set.intersection(*(set(folder.exclusion.idle()) for folder in folders))):
        announce(
            f"note: --exclude {quoted(pattern)} left out nothing; one with a slash within begins at the "
            "folder that is ingested"
        )


def recall_excluded(store: Store, folders: Sequence[FolderSource], collection: str) -> list[FolderSource]:
    """Return the folders with what is remembered of them, and say what that is."""
    from ingest.excluded import recalled

    with_all = recalled(store, folders, collection)
    for said, folder in zip(folders, with_all, strict=True):
        if said.exclude is None and folder.exclude:
            announce(
                f"{escape_control(folder.root)} without {' '.join(map(quoted, folder.exclude))}, as before; "
                "--no-exclude takes all"
            )
    return with_all


def ask_what_moved(
    store: Store,
    folders: Sequence[FolderSource],
    collection: str,
    moved_from: Sequence[str],
    *,
    second_copy: bool,
) -> tuple[list[str], bool]:
    """Find out which sources have become one of the folders, before any model is looked for.

    Returns:
        The sources that have; and whether all other folders are what they look like.

    Raises:
        DataError: As for `settle`; where a terminal is there to ask at, of a move only what was named wrong.
    """
    from ingest.settle import find_moved, question, settle

    moved = list(moved_from)
    if not (moved or second_copy) and sys.stdin.isatty():
        for one in find_moved(store, folders, collection=collection):
            second_copy = True  # or the folder of another question, which has its answer, too
            if click.confirm(question(one), default=True, err=True):
                moved.append(one.old)
    settle(store, folders, collection=collection, moved_from=moved, second_copy=second_copy)
    return moved, second_copy


def settling_of(store: Store, folders: Sequence[FolderSource], collection: str) -> dict[str, Any]:
    """Return what `ask_what_moved` finds out, for a command that ingests and lacks options of it.

    Raises:
        DataError: As for `settle`.
    """
    from imret.errors import DataError

    try:
        moved, copies = ask_what_moved(store, folders, collection, (), second_copy=False)
    except DataError as error:
        raise DataError(
            f"{error}\n(Settle that with imret ingest; this command goes on from there.)"
        ) from error
    return {"moved_from": moved, "second_copy": copies}


def ingest_with_bar(
    store: Store,
    folders: Sequence[FolderSource],
    collection: str,
    *,
    model: str | None,
    arch: str | None,
    device: str,
    precision: str,
    rebuild: bool,
    **options: Any,
) -> Report:
    """Find the encoder and fill the collection, with a progress bar where there is a terminal."""
    from tqdm import tqdm

    from imret.retrieval.collection_encoder import collection_encoder
    from ingest.forecast import Forecast
    from ingest.pipeline import ingest

    encoder = collection_encoder(
        store,
        collection,
        model=model,
        arch=arch,
        device=device,
        precision=precision,
        notify=announce,
        ask=ask_at_terminal(),
        rebuild=rebuild,
    )
    # A device that may not be there is looked for at once; else torch loads with the first picture to encode.
    if device not in ("auto", "cpu"):
        encoder.device  # noqa: B018
    announce(f"model {encoder.model_id}; {store.reason or f'store {store.address} ({store.engine})'}")
    forecast = Forecast(store, collection, folders, rebuild=rebuild)
    with tqdm(desc="ingest", unit=" images", disable=not sys.stderr.isatty(), smoothing=0.1) as bar:

        def expect(total: int) -> None:
            bar.total = total
            bar.refresh()

        return ingest(
            store,
            folders,
            encoder=encoder,
            collection=collection,
            rebuild=rebuild,
            on_total=None if bar.disable else expect,
            on_progress=bar.update,
            on_stage=bar.set_description,
            on_encoder=lambda: announce(forecast.told(encoder)),
            **options,
        )
