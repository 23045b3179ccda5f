"""`imret serve [FOLDER...]`: the command around `imret.cli.serve`, and the ingest that runs beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import examples
from imret.cli.options import exclude_option
from imret.cli.serve import serve, serve_options
from imret.output.console import announce
from imret.places.names import is_url

if TYPE_CHECKING:
    from imret.web.pool.collections import CollectionPool
    from ingest.beside import IngestBeside


@click.command(
    "serve",
    short_help="Search in the browser: a page and an API, with the model kept warm.",
    epilog=examples(
        "imret serve photos --open",
        "imret serve --collection photos --port 8080",
        "imret serve --root photos --preload",
        "imret serve --root s3://bucket/photos --db http://localhost:6333",
        "imret serve --host 0.0.0.0 --allow-host nas.example --token-file token.txt",
    ),
)
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=str))
@click.option("--no-categories", is_flag=True, help="Of FOLDERs: sub-folders are not categories.")
@exclude_option
@serve_options
def command(folders: tuple[str, ...], no_categories: bool, exclude: tuple[str, ...], **options: Any) -> None:
    """Serve the search page and its API, with collections open and their models in memory.

    With FOLDERs it ingests them, too, while it serves: the page shows how far that is, and what is there
    already is found. Started again, it takes what is new or has changed.

    While it runs, `imret search` for the same store is answered by it, in a fraction of the time. New
    versions of a collection are taken up as they become live. Ctrl-C ends it, after the requests that run;
    a second one, a little later, at once. What was ingested stays.
    """
    if not folders:
        if no_categories or exclude:
            raise click.UsageError("--no-categories and --exclude are for FOLDERs, and none is given.")
        serve(**options)
        return
    from ingest.cli import find_folders, recall_excluded, settling_of

    db, collection = options["db"], options["collection"]
    sources = find_folders(folders, db, collection, categories=not no_categories, exclude=exclude or None)
    encoding = {name: options[name] for name in ("model", "arch", "device", "precision")}

    def fill(pool: CollectionPool) -> IngestBeside:
        from ingest.beside import IngestBeside

        recalled = recall_excluded(pool.store, sources, collection)
        settling = settling_of(pool.store, recalled, collection)
        beside = IngestBeside(
            pool,
            recalled,
            collection=collection,
            notify=announce,
            encoding=encoding,
            **settling,
        )
        beside.begin()
        return beside

    serve(fill=fill, urls=[source.root for source in sources if is_url(source.root)], **options)
