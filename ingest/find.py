"""`imret find FOLDER WORDS`, or `imret FOLDER WORDS`: what is new is ingested, then it is searched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import examples
from imret.cli.search import as_usage, no_concepts_option, run_search, search_options
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.store import Store
    from ingest.report import Report
    from ingest.sources import FolderSource, Source


@click.command(
    "find",
    short_help="Find pictures in a folder by words: one command, nothing to set up.",
    epilog=examples(
        'imret find photos "a red car" --limit 5',
        "imret find photos mushroom --relevant --html mushrooms.html",
        "imret find photos mushroom --no-ingest",
        'imret ./photos "a red car"',
    ),
)
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=str))
@click.argument("terms", nargs=-1, metavar="TERM [+|- TERM]...")
@click.option("--no-ingest", is_flag=True, help="Search what was ingested of the folder before.")
@click.option("--no-template", is_flag=True, help="Take words as they are: see imret search.")
@no_concepts_option
@search_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    folder: str,
    terms: tuple[str, ...],
    no_ingest: bool,
    no_template: bool,
    no_concepts: bool,
    **options: Any,
) -> None:
    """Find the pictures of a folder that fit best.

    `imret FOLDER WORDS` is the same. Pictures that are new or have changed are ingested first, into the
    collection that all other commands use; with nothing new that takes a moment. It says how many there are
    before it begins, Ctrl-C keeps what is done, and the same command goes on there. TERMs and options are
    those of imret search, and so is what is printed.
    """
    from imret.retrieval.query import check_pictures, parse_query
    from ingest.sources import FolderSource

    if not terms:
        raise click.UsageError(
            f"what is to be found in {folder!r}? Type it behind the folder: imret find FOLDER WORDS.\n"
            "To look around in the browser: imret serve FOLDER"
        )
    with as_usage():
        query = parse_query(terms)
    check_pictures(query)
    source = FolderSource(folder)
    encoding = {name: options[name] for name in ("model", "arch", "device", "precision")}

    def prepare() -> Sequence[str]:
        return _conditions(source, options["db"], options["collection"], encoding, is_ingested=no_ingest)

    given = {"template": not no_template, "concepts": not no_concepts, **options}
    ctx.exit(run_search(ctx, query, " ".join(terms), given, prepare=prepare))


def _conditions(
    asked: FolderSource, db: str | None, collection: str, encoding: dict[str, Any], *, is_ingested: bool
) -> list[str]:
    """Ingest what is new of a folder, and return the conditions that only its pictures meet."""
    from imret.errors import DataError
    from imret.escape import escape_control, escape_undecodable
    from imret.sources.overlap import covers
    from imret.store import open_store
    from ingest.cli import ingest_with_bar, recall_excluded, settling_of
    from ingest.sources import FolderSource

    source = asked
    with open_store(db, create=not is_ingested, share=True, collection=collection) as store:
        excluded = store.excluded(collection)
        stored = _stored(store, collection)
        around = [
            known
            for known in stored
            if covers(known, asked.root, excluded.get(known, ())) and os.path.isdir(known)
        ]
        if around:
            source = FolderSource(around[0])
            announce(
                f"{escape_control(asked.root)} is a part of {escape_control(source.root)}, which was ingested"
            )
        if is_ingested and escape_undecodable(source.root) not in stored:
            raise DataError(f"nothing of {asked.root!r} was ingested yet. Search it without --no-ingest.")
        if not is_ingested:
            (recalled,) = recall_excluded(store, [_as_before(store, collection, source)], collection)
            has_new = _say_what_is_to_come(store, collection, recalled, encoding["model"])
            settling = settling_of(store, [recalled], collection)
            report = ingest_with_bar(
                store,
                [recalled],
                collection,
                rebuild=False,
                tells_model=has_new,
                **settling,
                **encoding,
            )
            _summarise(report, store, collection)
    conditions = [f"source={_in_quotes(escape_undecodable(source.root))}"]
    if source.root != asked.root:
        below = os.path.relpath(asked.root, source.root).split(os.sep)
        paths = ["/".join([*below, path]) for path in _paths_of(asked)]
        if not paths:
            raise DataError(f"no pictures in {asked.root!r}.")
        conditions.append(f"path={','.join(map(_in_quotes, paths))}")
    return conditions


def _stored(store: Store, collection: str) -> dict[str, int]:
    """Return how many pictures a collection holds of each source; none where there is no collection yet."""
    if store.live(collection) is None:
        return {}
    with closing(store.open(collection)) as opened:
        return opened.facet("source")


def _as_before(store: Store, collection: str, source: FolderSource) -> FolderSource:
    """Return a folder as it was ingested: one whose sub-folders were no categories stays so."""
    from imret.escape import escape_undecodable
    from imret.sources.moved import of_source
    from ingest.sources import FolderSource

    if store.live(collection) is None:
        return source
    with closing(store.open(collection)) as opened:
        mine = of_source(escape_undecodable(source.root))
        if opened.facet("category", mine):
            return source
        below = any("/" in str(point.payload["path"]) for points in opened.scan(mine) for point in points)
    return FolderSource(source.root, categories=False) if below else source


def _say_what_is_to_come(store: Store, collection: str, source: Source, model: str | None) -> bool:
    """Say so before much is done; return whether there seems to be anything new."""
    from imret.defaults import DEFAULT_MODEL
    from imret.errors import counted
    from imret.escape import escape_control, escape_undecodable

    there, stored = source.count() or 0, _stored(store, collection).get(escape_undecodable(source.root), 0)
    if there <= stored:
        return False
    is_default = store.live(collection) is None and model is None
    how = f" with {DEFAULT_MODEL} (--model NAME takes another)" if is_default else ""
    # Those that could not be taken are tried again each time: not all of them are new.
    what = f"{there - stored:,} of {counted(there)} not in the collection yet" if stored else counted(there)
    announce(
        f"{escape_control(source.root)}: {what}, to ingest first{how}; Ctrl-C keeps what is done, and the "
        "same command goes on there"
    )
    return True


def _summarise(report: Report, store: Store, collection: str) -> None:
    """Say what was done, if anything was; what could not be taken is told in full by an ingest."""
    from imret.errors import DataError, counted
    from imret.sources.stored import naming_options
    from ingest.summary import summarise

    if report.added or report.updated or report.moved or report.taken_over:
        summarise(report, None, check_content=False, where=naming_options(store, collection))
    elif report.skipped:
        announce(f"{counted(len(report.skipped))} could not be taken, as before; imret ingest says which")
    if report.without_pictures:
        raise DataError("\n".join(report.without_pictures))


def _paths_of(folder: FolderSource) -> list[str]:
    from ingest.sources import Record

    return [entry.path for entry in folder.entries() if isinstance(entry, Record)]


def _in_quotes(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
