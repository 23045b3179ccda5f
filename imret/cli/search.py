"""`imret search` and `imret similar`: options, one search (through a server that runs, or not), output."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from imret.cli.help import MODEL, STORE, SectionedCommand, examples
from imret.cli.numbers import Real, Whole
from imret.cli.options import (
    arch_option,
    ask_at_terminal,
    collection_option,
    db_option,
    device_option,
    max_pixels_option,
    model_option,
    output_options,
    precision_option,
)
from imret.errors import DataError, StoreLocked, StoreUnavailable
from imret.escape import escape_control
from imret.output.console import announce
from imret.output.deliver import deliver
from imret.retrieval.notes import notes_of, on_command_line
from imret.retrieval.results import SORTS
from imret.retrieval.search_options import SearchOptions
from imret.settings import read_settings

if TYPE_CHECKING:
    from imret.errors import ImretError
    from imret.models.lazy_encoder import LazyEncoder
    from imret.retrieval.query import Term
    from imret.retrieval.results import Facet, Hits

F = TypeVar("F", bound=Callable[..., Any])

# The options of both under the headings of their help; those that are used most have none.
_SECTIONS = {
    "Which pictures": (
        *("--not-category", "--where", "--min-score", "--offset"),
        *("--include-self", "--allow-private-urls"),
    ),
    "Order and groups": ("--group-by", "--per-group", "--sort", "--facets"),
    "Output": ("--format", "--null", "--payload", "--preview", "--html", "--copy-to", "--open"),
    "Store": STORE,
    "Model": ("--no-template", "--no-concepts", *MODEL),
}

# Options that `search` and `similar` share. Those that are fields of SearchOptions have its names.
_OPTIONS = (
    click.option(
        "--category",
        "-c",
        "categories",
        multiple=True,
        metavar="NAME",
        help="Only pictures of this category; may be repeated, for any of them. The case of letters does not "
        "matter.",
    ),
    click.option(
        "--not-category",
        "not_categories",
        multiple=True,
        metavar="NAME",
        help="No pictures of this category; may be repeated.",
    ),
    click.option(
        "--where",
        multiple=True,
        metavar="CONDITION",
        help="Only pictures that meet a condition, such as 'width>=1000', 'modified=2024-05', "
        "'size_bytes<5MB' or 'path!=a.jpg'; may be repeated, for all of them.",
    ),
    click.option(
        *("--limit", "-n", "--top", "-t"),
        "limit",
        type=Whole(1),
        default=SearchOptions.limit,
        show_default=True,
        help="Show this many pictures at most.",
    ),
    click.option(
        "--offset",
        type=Whole(0),
        default=SearchOptions.offset,
        help="Leave out this many of the best, to go on where an answer ended.",
    ),
    click.option(
        "--min-score",
        type=Real(-1, 1),
        help="Only pictures of this score or more. Which score is good differs from query to query.",
    ),
    click.option(
        "--relevant",
        is_flag=True,
        help="Only good matches: stop where they end. Where nothing fits, nothing is found.",
    ),
    click.option(
        "--unique",
        is_flag=True,
        help="Hide duplicates: of pictures that look the same show the best; +2 says that two are hidden.",
    ),
    click.option(
        "--group-by",
        type=click.Choice(["category"]),
        help="Show the best few of each category; --limit is then the number of categories.",
    ),
    click.option(
        "--per-group",
        type=Whole(1),
        default=SearchOptions.per_group,
        show_default=True,
        help="Pictures of each group at most.",
    ),
    click.option(
        "--sort",
        type=click.Choice(SORTS),
        default=SearchOptions.sort,
        show_default=True,
        help="In which order to show what was found; date: the newest first.",
    ),
    click.option(
        "--facets",
        is_flag=True,
        help="Instead of pictures show how many of each category were found, and how many there are.",
    ),
    click.option(
        "--include-self", is_flag=True, help="Show the picture that is asked with, and identical ones, too."
    ),
    click.option(
        "--allow-private-urls",
        is_flag=True,
        help="Fetch pictures from addresses of this machine and its network, too.",
    ),
    output_options,
    db_option,
    collection_option,
    model_option("Model to encode the query with. Default: the one the collection was built with."),
    arch_option,
    max_pixels_option,
    device_option,
    precision_option,
)


def search_options(command: F) -> F:
    """Add the options that `search`, `similar` and `find` share: which pictures, how many, in what order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


no_concepts_option = click.option(
    "--no-concepts",
    is_flag=True,
    help="Ask the words alone, also where they are or hold a name that was learnt from pictures.",
)


@click.command(
    "search",
    cls=SectionedCommand,
    sections=_SECTIONS,
    short_help="Find pictures by words, pictures, or sums of them.",
    epilog=examples(
        "imret search red mushroom",
        "imret search bird --category aves --relevant --limit 20",
        "imret search 'golden retriever' + ./pool.jpg - 2:fruit",
        "imret search bird --where 'width>=60' --where modified=2020.. --unique",
        "imret search mushroom --html mushrooms.html --copy-to mushrooms",
    ),
)
@click.argument("terms", nargs=-1, metavar="TERM [+|- TERM]...")
@click.option(
    "--no-template",
    is_flag=True,
    help='Take words as they are. Otherwise one to three words are asked for as "a photo of a ..." and five '
    "sentences like it, and the mean is taken.",
)
@no_concepts_option
@search_options
@click.pass_context
def command(
    ctx: click.Context, /, terms: tuple[str, ...], no_template: bool, no_concepts: bool, **options: Any
) -> None:
    """Find the pictures that fit best.

    A TERM is words ("red mushroom"), a picture (./pool.jpg, a URL), or a stored picture (its id, or
    stored:PATH). Terms are added with + and subtracted with -, each an argument of its own; 2:fruit counts
    double. Within a term nothing is parsed: "black-and-white" is words. text:16:9 says that it is words.

    A score is the cosine of query and picture. Scores of one query can be compared with each other, not with
    those of another query; --relevant shows only good matches.
    """
    from imret.retrieval.query import check_pictures, parse_query, within_containers

    with as_usage():
        query = within_containers(parse_query(terms))
    check_pictures(query)
    options |= {"template": not no_template, "concepts": not no_concepts}
    ctx.exit(run_search(ctx, query, " ".join(terms), options))


@click.command(
    "similar",
    cls=SectionedCommand,
    sections=_SECTIONS,
    short_help="Find pictures like one.",
    epilog=examples(
        "imret similar ./pool.jpg --limit 5",
        "imret similar stored:fungi/0.jpg",
        "imret similar photos/fungi/0.jpg --not-category fungi --unique",
        "imret similar ./pool.jpg --format json --payload",
        "imret similar https://example.com/pool.jpg --relevant",
    ),
)
@click.argument("picture", metavar="PATH|ID|URL")
@search_options
@click.pass_context
def similar(ctx: click.Context, /, picture: str, **options: Any) -> None:
    """Find pictures like one: a file, a URL, or a picture of the collection by its id or path.

    A picture of the collection, also if it is named by its file, needs no model and answers at once.
    """
    from imret.retrieval.query import PICTURE_KINDS, Term, check_pictures, parse_term, within_containers

    with as_usage():
        term = parse_term(picture)
        if term.kind not in PICTURE_KINDS or term.weight != 1:
            term = Term(picture, "image")
    (term,) = within_containers([term])
    words = picture.removeprefix("text:")
    if words != picture and not os.path.exists(picture):
        raise click.UsageError(f"it takes a picture, and these are words: imret search {shlex.quote(words)}")
    check_pictures([term], if_words=f"imret search {shlex.quote(picture)}")
    ctx.exit(run_search(ctx, (term,), picture, {"template": False, "concepts": False, **options}))


def run_search(
    ctx: click.Context,
    terms: Sequence[Term],
    typed: str,
    given: dict[str, Any],
    *,
    prepare: Callable[[], Sequence[str]] | None = None,
) -> int:
    """Search, deliver, and return the exit code.

    Args:
        ctx: Of the command.
        terms: The query.
        typed: The query as it was typed.
        given: All options by the names of their parameters, and the fields `template` and `concepts`.
        prepare: Called when nothing is wrong with the options, before the search; gives further conditions.
    """
    _check_combinations(ctx, given)
    _check_outputs(terms, given)
    options = SearchOptions(**_take(given, *(field.name for field in fields(SearchOptions))))
    with as_usage():
        options.make_filter()  # a condition that cannot be read is refused before anything is opened
    typed_where = options.where
    added = () if prepare is None else tuple(prepare())
    options = replace(options, where=(*typed_where, *added))
    encoding = _take(given, "model", "arch", "device", "precision")
    db, show_facets = given.pop("db"), given.pop("facets")
    fetch = _fetcher(given.pop("allow_private_urls"))
    is_default = all(ctx.get_parameter_source(name) is ParameterSource.DEFAULT for name in encoding)
    hits: Hits | None = None
    problem = None
    if is_default and not show_facets and read_settings().use_server:
        hits, problem = _from_server(db, terms, options, fetch)
    counts: list[Facet] = []
    if hits is None:
        try:
            hits, counts = _from_store(db, terms, options, fetch, encoding, show_facets=show_facets)
        except (StoreLocked, StoreUnavailable):
            if problem is None:
                raise
            raise problem from None  # the server has the store, and said what is wrong
    _tell(hits, added)
    if show_facets:
        from imret.output.formats import write_facets

        write_facets(counts, given["output"], sys.stdout)
        return 0
    note = [f"--category {name}" for name in options.categories]
    note += [f"--not-category {name}" for name in options.not_categories]
    note += [f"--where {condition}" for condition in typed_where]
    # In another order than by score, hits of one group are apart.
    group_by = options.group_by if options.sort == "score" else None
    return deliver(hits, query=typed, note=" ".join(note), group_by=group_by, left_out=hits.left_out, **given)


def _tell(hits: Hits, added: Sequence[str]) -> None:
    """Say what was left out; and of no hits, which condition left none.

    Args:
        hits: The answer.
        added: Conditions that nobody typed: they keep to a folder.
    """
    from imret.output.formats import near_path

    def naming(field: str, value: Any) -> str:
        return "this folder" if field == "where" and value in added else on_command_line(field, value)

    for note in notes_of(hits, naming, shown=lambda path: escape_control(near_path(path))):
        announce(note)
    if not hits and not hits.emptied_by:
        announce("no hits")


@contextmanager
def as_usage() -> Iterator[None]:
    """Tell what cannot be read of the command itself as wrong usage, which it is."""
    try:
        yield
    except DataError as error:
        raise click.UsageError(str(error)) from error


def _take(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove options from those given, and return them."""
    return {name: given.pop(name) for name in names}


def _check_combinations(ctx: click.Context, given: Mapping[str, Any]) -> None:
    """Refuse options that do not go together as wrong usage."""
    per_group = ctx.get_parameter_source("per_group")
    if given["group_by"] is None and per_group is not ParameterSource.DEFAULT:
        raise click.UsageError("--per-group is for --group-by, which is not given.")
    output = given["output"]
    for flag, wanted in (("null", "paths"), ("payload", "json"), ("preview", "table")):
        if given[flag] and output != wanted:
            raise click.UsageError(f"--{flag} is for --format {wanted}, not {output}.")
    if not given["facets"]:
        return
    if output == "paths":
        raise click.UsageError("--facets has no paths; use --format table, tsv or json.")
    for flag in ("html", "copy_to", "open_them", "payload", "preview"):
        if given[flag]:
            name = {"copy_to": "copy-to", "open_them": "open"}.get(flag, flag)
            raise click.UsageError(f"--{name} is for hits, and --facets shows none.")


def _check_outputs(terms: Sequence[Term], given: Mapping[str, Any]) -> None:
    """Refuse, before the search, what could not be written after it."""
    if given["html"] is None and given["copy_to"] is None:
        return
    from imret.output.written_files import check_output_folder, check_outputs
    from imret.retrieval.query import path_of_term

    pictures = [str(term.value) for term in terms if term.kind == "image"]
    check_outputs({"--html": given["html"]}, inputs={name: path_of_term(name) for name in pictures})
    check_output_folder("--copy-to", given["copy_to"])


def _fetcher(allow_private: bool) -> Callable[[str], bytes]:
    def fetch(url: str) -> bytes:
        from imret.retrieval.fetch import fetch_picture

        return fetch_picture(url, allow_private=allow_private)

    return fetch


def _from_server(
    db: str | None, terms: Sequence[Term], options: SearchOptions, fetch: Callable[[str], bytes]
) -> tuple[Hits | None, ImretError | None]:
    """Return what a running server answers; else None, and what it says is wrong, if anything."""
    from imret.client.discovery import find_server
    from imret.store import resolve_address

    server = find_server(resolve_address(db, collection=options.collection)[0])
    if server is None:
        return None, None
    from imret.client import search  # a hundredth of a second, for those who have a server

    try:
        hits = search.search(server, terms, options, fetch=fetch)
    except search.FallbackToLocal as error:
        if str(error):
            announce(f"imret serve at {server.url} {str(error).rstrip('.')}; searching without it")
        return None, error.problem
    announce(f"answered by imret serve at {server.url} (store {escape_control(server.address)})")
    return hits, None


def _from_store(
    db: str | None,
    terms: Sequence[Term],
    options: SearchOptions,
    fetch: Callable[[str], bytes],
    encoding: dict[str, Any],
    *,
    show_facets: bool,
) -> tuple[Hits, list[Facet]]:
    """Search in this process; return the hits, and how they spread if that is wanted."""
    from concurrent.futures import ThreadPoolExecutor

    from imret.store import open_store

    filter_ = options.make_filter()
    with (
        open_store(db, create=False, share="if possible", collection=options.collection) as store,
        ThreadPoolExecutor(1) as pool,
    ):
        if store.reason:
            announce(store.reason)
        # An embedded store starts a process for it, which takes as long as what is imported here.
        opening = pool.submit(store.open, options.collection)
        from imret.retrieval import search
        from imret.retrieval.category_names import stored_names
        from imret.retrieval.collection_encoder import collection_encoder

        def find_encoder() -> LazyEncoder:
            return collection_encoder(
                store,
                options.collection,
                **encoding,
                notify=announce,
                ask=ask_at_terminal(),
                existing=True,
            )

        # While the store is opened, unless it may be that nothing has to be encoded: pictures that are stored
        # have their vectors, and their model need not even be found, let alone downloaded.
        has_words = any(term.kind == "text" for term in terms)
        is_needed = encoding["model"] is not None or has_words
        encoder = find_encoder() if is_needed else None
        names = stored_names(store, options.collection, notify=search.warn) if has_words else {}
        with closing(opening.result()) as collection:
            hits = search.find_hits(
                collection,
                terms,
                options,
                encoder=encoder,
                find_encoder=find_encoder,
                fetch=fetch,
                names=names,
            )
            counts = search.facets(collection, hits, filter=filter_) if show_facets else []
    return hits, counts
