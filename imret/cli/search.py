"""`imret search` and `imret similar`: options, one search (through a server that runs, or not), output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from imret.cli.options import (
    arch_option,
    collection_option,
    db_option,
    device_option,
    model_option,
    output_options,
    precision_option,
)
from imret.errors import StoreLocked, StoreUnavailable
from imret.escape import escape_control
from imret.output.console import announce
from imret.output.deliver import deliver
from imret.settings import read_settings

if TYPE_CHECKING:
    from imret.errors import ImretError
    from imret.retrieval.query import Term
    from imret.retrieval.results import Facet, Hit

F = TypeVar("F", bound=Callable[..., Any])


def _which_options(command: F) -> F:
    """Add the options that `search` and `similar` share: which pictures, how many, in what order."""
    for option in reversed(
        (
            click.option(
                "--category",
                "-c",
                "categories",
                multiple=True,
                metavar="NAME",
                help="Any of these categories.",
            ),
            click.option(
                "--not-category", "not_categories", multiple=True, metavar="NAME", help="None of these."
            ),
            click.option(
                "--where",
                multiple=True,
                metavar="CONDITION",
                help="Such as 'width>=1000', 'modified=2024-05', 'size_bytes<5MB', 'path!=a.jpg'; may be "
                "repeated, all of them hold.",
            ),
            click.option(
                *("--limit", "-n", "--top", "-t"),
                "limit",
                type=click.IntRange(1),
                default=10,
                show_default=True,
                help="Hits at most.",
            ),
            click.option(
                "--offset", type=click.IntRange(0), default=0, help="Leave out so many of the best."
            ),
            click.option(
                "--min-score",
                type=click.FloatRange(-1, 1),
                help="Least score; what is good differs by query.",
            ),
            click.option(
                "--relevant",
                is_flag=True,
                help="End where the answers end, which may be at once. Better than --min-score.",
            ),
            click.option("--unique", is_flag=True, help="Fold near copies into the best; +2 stands for two."),
            click.option(
                "--group-by",
                type=click.Choice(["category"]),
                help="The best few of each; --limit is then the number of groups.",
            ),
            click.option(
                "--per-group", type=click.IntRange(1), default=3, show_default=True, help="Hits of a group."
            ),
            click.option(
                "--sort",
                type=click.Choice(["score", "date", "path"]),
                default="score",
                show_default=True,
                help="Order of the hits that were found; date has the newest first.",
            ),
            click.option(
                "--facets",
                is_flag=True,
                help="Instead of hits, how they and the whole collection spread over categories.",
            ),
            click.option(
                "--include-self", is_flag=True, help="Keep the picture that is asked for among the hits."
            ),
            click.option(
                "--allow-private-urls", is_flag=True, help="Fetch pictures from this machine's network, too."
            ),
            output_options,
            db_option,
            collection_option,
            model_option("Model to encode the query with. Default: the one the collection was built with."),
            arch_option,
            device_option,
            precision_option,
        )
    ):
        command = option(command)
    return command


@click.command(
    "search",
    short_help="Find pictures by words, pictures, or sums of them.",
    epilog='Example:  imret search "golden retriever" + ./pool.jpg - 2:fruit --category mammalia --relevant',
)
@click.argument("terms", nargs=-1, metavar="TERM [+|- TERM]...")
@click.option(
    "--no-template",
    is_flag=True,
    help='Take words as they are. Otherwise up to three of them are asked for as "a photo of a ...", in six '
    "wordings, averaged.",
)
@_which_options
@click.pass_context
def command(ctx: click.Context, /, terms: tuple[str, ...], no_template: bool, **options: Any) -> None:
    """Find the pictures that fit best.

    A TERM is words ("red mushroom"), a picture (./pool.jpg, a URL), or a stored picture (its id, or
    stored:PATH). Terms are added with + and subtracted with -, each an argument of its own; 2:fruit counts
    double. Within a term nothing is parsed: "black-and-white" is words. text:16:9 says that it is words.

    A score is the cosine of query and picture. Scores of one query can be compared with each other, not with
    those of another query; --relevant finds where the answers end.
    """
    from imret.retrieval.query import parse_query

    ctx.exit(_find(parse_query(terms), " ".join(terms), template=not no_template, **options))


@click.command(
    "similar",
    short_help="Find pictures like one.",
    epilog="Example:  imret similar ./pool.jpg --limit 5",
)
@click.argument("picture", metavar="PATH|ID|URL")
@_which_options
@click.pass_context
def similar(ctx: click.Context, /, picture: str, **options: Any) -> None:
    """Find pictures like one: a file, a URL, or a picture of the collection by its id or path.

    A picture of the collection, also if it is named by its file, needs no model and answers at once.
    """
    from imret.retrieval.query import LOOKED_AT, Term, parse_term

    term = parse_term(picture)
    if term.kind not in LOOKED_AT or term.weight != 1:
        term = Term(picture, "image")
    ctx.exit(_find((term,), picture, template=False, **options))


def _find(
    terms: Sequence[Term],
    typed: str,
    *,
    template: bool,
    categories: tuple[str, ...],
    not_categories: tuple[str, ...],
    where: tuple[str, ...],
    limit: int,
    offset: int,
    min_score: float | None,
    relevant: bool,
    unique: bool,
    group_by: str | None,
    per_group: int,
    sort: str,
    facets: bool,
    include_self: bool,
    allow_private_urls: bool,
    db: str | None,
    collection: str,
    model: str | None,
    arch: str | None,
    device: str,
    precision: str,
    **delivery: Any,
) -> int:
    """Search, deliver, and return the exit code."""
    given = click.get_current_context().get_parameter_source("per_group")
    if group_by is None and given is not ParameterSource.DEFAULT:
        raise click.UsageError("--per-group is for --group-by, which is not given.")
    output = delivery["output"]
    for flag, wanted in (("null", "paths"), ("payload", "json"), ("preview", "table")):
        if delivery[flag] and output != wanted:
            raise click.UsageError(f"--{flag} is for --format {wanted}, not {output}.")
    if facets and output == "paths":
        raise click.UsageError("--facets has no paths; use --format table, tsv or json.")
    for flag in ("html", "copy_to", "open_them", "payload", "preview"):
        if facets and delivery[flag]:
            name = {"copy_to": "copy-to", "open_them": "open"}.get(flag, flag)
            raise click.UsageError(f"--{name} is for hits, and --facets shows none.")
    asked = {
        "collection": collection,
        "limit": limit,
        "offset": offset,
        "min_score": min_score,
        "relevant": relevant,
        "unique": unique,
        "group_by": group_by,
        "per_group": per_group,
        "sort": sort,
        "template": template,
        "include_self": include_self,
        "fetch": _fetcher(allow_private_urls),
    }
    conditions = {"categories": categories, "not_categories": not_categories, "where": where}
    hits, problem = (None, None) if facets else _from_server(db, terms, {**asked, **conditions})
    spread: list[Facet] = []
    if hits is None:
        encoding = {"model": model, "arch": arch, "device": device, "precision": precision}
        try:
            hits, spread = _from_store(db, terms, asked, conditions, encoding, facets=facets)
        except (StoreLocked, StoreUnavailable):
            if problem is None:
                raise
            raise problem from None  # the server has the store, and said what is wrong
    if not hits:
        announce(
            "no hits: no picture is about that (without --relevant, the nearest are shown)"
            if relevant
            else "no hits"
        )
    if facets:
        from imret.output.formats import write_facets

        write_facets(spread, output, sys.stdout)
        return 0
    said = [f"--category {name}" for name in categories]
    said += [f"--not-category {name}" for name in not_categories]
    said += [f"--where {condition}" for condition in where]
    return deliver(hits, query=typed, note=" ".join(said), **delivery)


def _fetcher(allow_private: bool) -> Callable[[str], bytes]:
    def fetch(url: str) -> bytes:
        from imret.retrieval.fetch import fetch_picture

        return fetch_picture(url, allow_private=allow_private)

    return fetch


def _from_server(
    db: str | None, terms: Sequence[Term], asked: dict[str, Any]
) -> tuple[list[Hit] | None, ImretError | None]:
    """Return what a running server answers; else None, and what it says is wrong, if anything."""
    context = click.get_current_context()
    if not read_settings().use_server or any(
        context.get_parameter_source(name) is not ParameterSource.DEFAULT
        for name in ("model", "arch", "device", "precision")
    ):
        return None, None
    from imret.client.discovery import find
    from imret.store import resolve_address

    running = find(resolve_address(db)[0])
    if running is None:
        return None, None
    from imret.client import search  # a hundredth of a second, for those who have a server

    try:
        hits = search.search(running, terms, **asked)
    except search.NoAnswer as error:
        if str(error):
            announce(f"imret serve at {running.url} {error}; searching without it")
        return None, error.problem
    announce(f"answered by imret serve at {running.url} (store {escape_control(running.address)})")
    return hits, None


def _from_store(
    db: str | None,
    terms: Sequence[Term],
    asked: dict[str, Any],
    conditions: Mapping[str, Sequence[str]],
    encoding: dict[str, Any],
    *,
    facets: bool,
) -> tuple[list[Hit], list[Facet]]:
    """Search in this process; return the hits, and how they spread if that is wanted."""
    from concurrent.futures import ThreadPoolExecutor

    from imret.retrieval.filters import make_filter
    from imret.store import open_store

    only = make_filter(**conditions)
    collection = asked["collection"]
    with open_store(db, create=False) as store, ThreadPoolExecutor(1) as meanwhile:
        if store.reason:
            announce(store.reason)
        # An embedded store starts a process for it, which takes as long as what is imported here.
        opening = meanwhile.submit(store.open, collection)
        from imret.retrieval import search
        from imret.retrieval.collection_encoder import collection_encoder

        # Stored pictures have their vectors: the model need not even be found, let alone downloaded.
        stored = encoding["model"] is None and all(term.kind in ("id", "stored") for term in terms)
        encoder = (
            None
            if stored
            else collection_encoder(store, collection, **encoding, notify=announce, existing=True)
        )
        with closing(opening.result()) as opened:
            hits = search.search(opened, terms, **asked, encoder=encoder, filter=only)
            spread = search.facets(opened, hits, filter=only) if facets else []
    return hits, spread
