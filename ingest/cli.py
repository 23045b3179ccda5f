"""`imret ingest`: the command around `ingest.pipeline`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
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
    shown_names,
    warn_of_strangers,
)
from imret.escape import escape_control, quoted
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.store import Store
    from ingest.report import Report
    from ingest.sources import Source


_STDOUT = "/dev/stdout"
_PATIENCE_S = 2.0  # so long nothing is said while files are counted
_STAGES = {"load": "load the model"}  # what the bar calls them


@click.command(
    "ingest",
    short_help="Fill a collection from folders.",
    epilog=examples(
        "imret ingest data/test --model models/nature --report ingest.json",
        "imret ingest photos",
        "imret ingest photos holiday --collection holidays",
        "imret ingest photos --prune --exclude raw/ --exclude '*.tmp.jpg'",
        "imret ingest photos --names names.csv",
        "imret ingest photos --dry-run",
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
@click.option(
    "--names",
    "names_file",
    metavar="FILE",
    help="CSV file (category,name) of what categories are called, kept with the collection for searches.",
)
@click.option("--no-names", is_flag=True, help="Forget what --names said before.")
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
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be taken, left out and removed, and stop: no model is loaded, nothing written.",
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
    names_file: str | None,
    no_names: bool,
    moved_from: tuple[str, ...],
    second_copy: bool,
    report_file: str | None,
    dry_run: bool,
    strict: bool,
    **options: Any,
) -> None:
    """Fill a collection from folders of pictures, one sub-folder per category.

    Run it again at any time: new and changed pictures are embedded, moved ones are recognised, unchanged
    ones are left alone. Stopped half way, it continues where it was.
    """
    if exclude and no_exclude:
        raise click.UsageError("--exclude and --no-exclude contradict each other.")
    if names_file and no_names:
        raise click.UsageError("--names and --no-names contradict each other.")
    from imret.datasets.names_csv import read_names
    from imret.output.written_files import check_outputs
    from imret.sources.stored import naming_options
    from imret.store import open_store
    from ingest.summary import summarise
    from ingest.target import with_pictures

    names = read_names(names_file) if names_file else {}
    excluded = () if no_exclude else exclude or None
    folders = find_folders(sources, db, collection, categories=not no_categories, exclude=excluded)
    if report_file == "-":
        report_file = _STDOUT
    check_outputs(
        {"--report": report_file},
        inputs={"--model": options["model"], "--names": names_file, **_files_of(sources)},
    )
    if dry_run:
        options |= {"moved_from": moved_from, "second_copy": second_copy}
        _dry_run(folders, db, collection, report_file, strict=strict, **options)
        return
    # Shared: what an ingest fills can be searched, and served, while it runs.
    with open_store(db, share=True, collection=collection) as store:
        where = naming_options(store, collection)
        folders = recall_excluded(store, folders, collection)
        categories = _tell_found(folders, where)
        moved, copies = ask_what_moved(store, folders, collection, moved_from, second_copy=second_copy)
        # Before a model is looked for, which may be a download.
        with_pictures(folders, store, collection, prune=options["prune"], rebuild=options["rebuild"])
        report = ingest_with_bar(store, folders, collection, moved_from=moved, second_copy=copies, **options)
        if names or no_names:
            _keep_names(store, collection, names)
    report.categories = categories
    if exclude and not report.taken_over:  # of one that was, a folder has more patterns
        _tell_idle_patterns(folders)
    with _written(report, report_file) as written:  # what was done is told, also where that is lost
        summarise(report, written, check_content=options["check_content"], where=where)
    _end(report, strict=strict)


def _files_of(sources: Sequence[str]) -> dict[str, str]:
    from imret.places.names import is_url

    return {source: source for source in sources if not is_url(source)}


def _keep_names(store: Store, collection: str, names: Mapping[str, Sequence[str]]) -> None:
    """Keep names with a collection; tell of those of no category of it, such as a misspelt one."""
    from imret.retrieval.category_names import keep_names

    keep_names(store, collection, names)
    if not names:
        announce("the names of categories are forgotten")
        return
    announce(f"searches ask by the names {shown_names(names)}")
    with closing(store.open(collection)) as opened:
        categories = opened.facet("category")
    warn_of_strangers(names, categories)


@contextmanager
def _written(report: Report, file: str | None) -> Iterator[str | None]:
    """Write the report to a file, if one is named; give that, or None where it failed, raised at the end."""
    from imret.errors import DataError

    failure = None
    try:
        if file is not None:
            report.write(file)
    except OSError as error:
        failure = error
    yield None if failure else file
    if failure is not None:
        raise DataError(f"cannot write the report {file!r}: {failure.strerror}.") from failure


def _end(report: Report, *, strict: bool) -> None:
    from imret.errors import DataError

    if report.without_pictures:  # the others are done
        raise DataError("\n".join(report.without_pictures))
    if strict and report.skipped:
        sys.exit(3)


def _dry_run(
    folders: list[Source],
    db: str | None,
    collection: str,
    report_file: str | None,
    *,
    model: str | None,
    rebuild: bool,
    strict: bool,
    **options: Any,
) -> None:
    """Say what a run would do."""
    from imret.sources.stored import naming_options
    from ingest.dry_run import dry_run, open_for_dry_run
    from ingest.summary import foretell

    with open_for_dry_run(db, collection) as store:
        where = naming_options(store, collection)
        folders = recall_excluded(store, folders, collection)
        categories = _tell_found(folders, where)
        deciding = ("moved_from", "second_copy", "prune", "check_content")
        report = dry_run(
            store,
            folders,
            collection=collection,
            rebuild=rebuild,
            **{name: options[name] for name in deciding},
        )
    report.categories = categories
    with _written(report, report_file) as written:
        for line in foretell(report, written, where=where, model=model, rebuild=rebuild):
            click.echo(line)
    _end(report, strict=strict)


def _tell_found(folders: Sequence[Source], where: str) -> dict[str, int]:
    """Say what lies in the folders, and what is odd about it; return how many pictures each category has."""
    from ingest.survey import categories_of, in_words, odd_levels, survey

    patience = threading.Timer(_PATIENCE_S, announce, ["counting the pictures ..."])
    patience.daemon = True
    patience.start()
    try:
        found = survey(folders)
    finally:
        patience.cancel()
    if said := in_words(found):
        announce(said)
    for sentence in odd_levels(found, where):
        announce(sentence)
    return categories_of(found)


def find_folders(
    sources: Sequence[str],
    db: str | None,
    collection: str,
    *,
    categories: bool,
    exclude: Sequence[str] | None,
) -> list[Source]:
    """Return the folders to ingest.

    Raises:
        DataError: If one cannot be; where the collection holds pictures of it, with what can be done.
    """
    from imret.errors import DataError, ImretError, counted
    from imret.places.names import is_url
    from imret.sources.stored import find_source, naming_options
    from imret.store import open_store
    from ingest.find_source import find_sources
    from ingest.settle import advice_for_gone

    try:
        return find_sources(sources, categories=categories, exclude=exclude)
    except DataError as error:
        stored: dict[str, int] = {}
        where = ""
        with (
            suppress(ImretError),
            open_store(db, create=False, share="if possible", collection=collection) as store,
            closing(store.open(collection)) as opened,
        ):
            stored, where = opened.facet("source"), naming_options(store, collection)
        gone = (source for source in sources if not is_url(source) and not os.path.exists(source))
        known = next(filter(None, (find_source(source, stored) for source in gone)), None)
        if known is None:
            raise
        raise DataError(
            f"{error}\nThe collection holds {counted(stored[known])} of it. {advice_for_gone(known, where)}"
        ) from None


def _tell_idle_patterns(folders: Sequence[Source]) -> None:
    for pattern in sorted(set.intersection(*(set(folder.exclusion.idle()) for folder in folders))):
        announce(
            f"note: --exclude {quoted(pattern)} left out nothing; one with a slash within begins at the "
            "folder that is ingested"
        )


def recall_excluded(store: Store, folders: Sequence[Source], collection: str) -> list[Source]:
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
    folders: Sequence[Source],
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


def settling_of(store: Store, folders: Sequence[Source], collection: str) -> dict[str, Any]:
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
    folders: Sequence[Source],
    collection: str,
    *,
    model: str | None,
    arch: str | None,
    device: str,
    precision: str,
    rebuild: bool,
    tells_model: bool = True,
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
    if tells_model:
        announce(f"model {encoder.model_id}; {store.reason or f'store {store.address} ({store.engine})'}")
    forecast = Forecast(store, collection, folders, rebuild=rebuild)
    with tqdm(desc="ingest", unit=" images", disable=not sys.stderr.isatty(), smoothing=0.1) as bar:

        def expect(total: int) -> None:
            bar.total = total
            bar.refresh()

        def enter(stage: str) -> None:
            bar.set_description(_STAGES.get(stage, stage))
            if stage == "ingest":  # what came before is no part of its rate
                bar.unpause()

        return ingest(
            store,
            folders,
            encoder=encoder,
            collection=collection,
            rebuild=rebuild,
            on_total=None if bar.disable else expect,
            on_progress=bar.update,
            on_stage=enter,
            on_encoder=lambda: announce(forecast.told(encoder)),
            **options,
        )
