"""The `imret` command: options, output, and errors turned into exit codes.

A thin skin: each command parses, calls one library function and formats. `ingest` and `finetune` bring
their own commands, loaded by name when they are typed; that is the one place where imret knows of them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from imret import __version__
from imret.errors import ImretError
from imret.options import (
    announce,
    arch_option,
    collection_option,
    db_option,
    device_option,
    model_option,
    precision_option,
)

if TYPE_CHECKING:
    from imret.retrieval import Hit

_ELSEWHERE = {
    "ingest": "ingest.cli",
    "finetune": "finetune.cli",
    "evaluate": "imret.evaluation.cli",
    "classify": "imret.classify_cli",
    "demo": "imret.demo.cli",
    "collections": "imret.collections_cli",
}


class _Group(click.Group):
    """A group whose larger sub-commands live in modules of their own, imported when first named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        # In the order of work, which is how a newcomer reads them.
        return [
            *("demo", "finetune", "evaluate", "ingest", "search", "classify", "info", "collections"),
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            command: click.Command = importlib.import_module(_ELSEWHERE[cmd_name]).command
            return command
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Example:  imret ingest data/test  &&  imret search "mushroom" --category fungi',
)
@click.version_option(__version__, "-V", "--version", message="imret %(version)s")
@click.option("--debug", is_flag=True, envvar="IMRET_DEBUG", help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Find pictures by meaning.

    imret turns folders of photos into a collection that answers words: fine-tune a CLIP model on your
    categories, ingest the pictures, search them. Results go to stdout, everything else to stderr.
    """


@cli.command(
    "search",
    short_help="Find pictures that fit a text.",
    epilog='Example:  imret search "red mushroom" --category fungi --limit 5 --format json',
)
@click.argument("query")
@click.option(
    "--category",
    "-c",
    "categories",
    multiple=True,
    metavar="NAME",
    help="Only this category; may be repeated.",
)
@click.option("--limit", "-n", type=click.IntRange(1), default=10, show_default=True, help="Hits to show.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "tsv", "json", "paths"]),
    default="table",
    show_default=True,
    help="json: one object per line; paths: for pipes.",
)
@click.option(
    "--no-template",
    is_flag=True,
    help='Take the query as it is. Otherwise one of up to three words is asked as "a photo of a ...", '
    "in six wordings, averaged.",
)
@db_option
@collection_option
@model_option("Model to encode the query with. Default: the one the collection was built with.")
@arch_option
@device_option
@precision_option
def search_command(
    query: str,
    categories: tuple[str, ...],
    limit: int,
    output: str,
    no_template: bool,
    db: str | None,
    collection: str,
    **encoding: Any,
) -> None:
    """Find the pictures that fit a QUERY in words, best first.

    A score is the cosine of query and picture. Scores of one query can be compared with each other,
    not with those of another query.
    """
    from imret.asking import encoder_for
    from imret.retrieval import search
    from imret.store import open_store

    with open_store(db, create=False) as store:
        if store.reason:
            announce(store.reason)
        hits = search(
            store,
            query,
            collection=collection,
            encoder=encoder_for(store, collection, notify=announce, existing=True, **encoding),
            categories=categories,
            limit=limit,
            template=not no_template,
        )
    write_hits(hits, output, sys.stdout)
    if not hits:
        announce("no hits")


def write_hits(hits: Sequence[Hit], output: str, stream: TextIO) -> None:
    """Write hits in one of the formats, which are a contract: table, tsv, json, paths."""
    from imret.payload import one_line, printable

    if output == "paths":
        for hit in hits:
            print(hit.path, file=stream)
    elif output == "json":
        for hit in hits:
            fields = {
                "rank": hit.rank,
                "score": round(hit.score, 6),
                "category": hit.category,
                "path": hit.path,
                "id": hit.id,
            }
            # Escaped where a name is no valid Unicode: still JSON, and its path still opens the file.
            print(json.dumps(fields, ensure_ascii=printable(hit.path) != hit.path), file=stream)
    elif output == "tsv":
        print("rank\tscore\tcategory\tpath", file=stream)
        for hit in hits:
            print(f"{hit.rank}\t{hit.score:.6f}\t{_tsv(hit.category or '')}\t{_tsv(hit.path)}", file=stream)
    else:
        rows = [(hit, one_line(hit.category or "-")) for hit in hits]
        width = max((len(category) for _, category in rows), default=0)
        for hit, category in rows:
            name = one_line(_near(hit.path))
            print(f"{hit.rank:>4}  {hit.score:.3f}  {category:<{width}}  {name}", file=stream)


def _tsv(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _near(path: str) -> str:
    """Return a path as seen from here, if it lies below."""
    here = os.getcwd()
    return os.path.relpath(path, here) if path.startswith(here.rstrip(os.sep) + os.sep) else path


@cli.command(
    "info",
    short_help="Show what a store holds.",
    epilog="Example:  imret info --db http://localhost:6333 --format json",
)
@db_option
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: one object, for programs.",
)
def info_command(db: str | None, output: str) -> None:
    """Show the store and its collections: model, pictures per category, index, size on disk."""
    from imret.info import describe, format_table
    from imret.store import open_store

    with open_store(db, create=False) as store:
        description = describe(store)
    print(
        json.dumps(description, indent=2, ensure_ascii=False)
        if output == "json"
        else format_table(description)
    )


def main() -> NoReturn:
    """Run the command line; an ImretError is one clear message, a traceback shows only under --debug.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but something was skipped under --strict,
    130 stopped with Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # file names may hold bytes that are no UTF-8; pass them on as they are
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    warnings.showwarning = _show_warning
    debug = "--debug" in sys.argv[1:2] or bool(os.environ.get("IMRET_DEBUG"))
    try:
        sys.exit(cli.main(prog_name="imret", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        announce("\nStopped. Run the same command again to continue.")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has what it wanted (`| head`). Keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = isinstance(error, ImretError)
        message = (
            str(error)
            if known
            else f"{type(error).__name__}: {error}\nRun again as `imret --debug ...` for the traceback."
        )
        announce("Error: " + message.replace("\n", "\n       "))
        sys.exit(1)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # What imret itself warns of concerns the user; what its libraries warn of concerns its authors.
    if issubclass(category, UserWarning) and getattr(category, "__module__", "").startswith("imret"):
        announce(f"Warning: {message}")


if __name__ == "__main__":
    main()
