"""`imret concepts`: the names that a collection or a model was taught."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from imret.cli.help import ListByDefault, examples
from imret.cli.options import ask_at_terminal, collection_option, db_option, format_option
from imret.errors import counted, some_of
from imret.escape import escape_control
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.retrieval.concepts import Concept


@click.group(
    "concepts",
    cls=ListByDefault,
    sections={"Commands": ("list", "forget")},
    short_help="List and forget the names that were learnt.",
    epilog=examples(
        "imret concepts",
        "imret concepts --collection photos",
        "imret concepts --format json",
        "imret concepts forget 'my dog' --collection photos",
    ),
)
def command() -> None:
    """Look after the names that imret learn taught. Without a command, list them."""


@command.command(
    "list",
    short_help="List them (the default).",
    epilog=examples(
        "imret concepts",
        "imret concepts list --collection photos",
        "imret concepts list --format json",
        "imret concepts list --db http://localhost:6333",
    ),
)
@db_option
@collection_option
@format_option("json: one object per line.")
def list_command(db: str | None, collection: str, output: str) -> None:
    """List the names that searches of the collection ask by what was learnt: its own and its model's.

    Text and learnt are average precisions on pictures that were held out; where the text is kept, nothing was
    learnt that is better.
    """
    from imret.retrieval.collection_encoder import collection_encoder
    from imret.retrieval.concept_query import known_concepts
    from imret.store import open_store

    with open_store(db, create=False, share="if possible", collection=collection) as store:
        if store.reason:
            announce(store.reason)
        encoder = collection_encoder(store, collection, notify=announce, ask=ask_at_terminal(), existing=True)
        known = known_concepts(store, collection, encoder)
    for remark in known.remarks:
        announce(f"note: {escape_control(remark)}")
    concepts = list(known.concepts.concepts.values()) if known.concepts else []
    if output == "json":
        for concept in concepts:
            print(json.dumps(_fields(concept), ensure_ascii=False))
    elif concepts:
        _print(concepts)
    else:
        announce(f"collection {collection} has learnt no names; teach it some: imret learn --help")


def _fields(concept: Concept) -> dict[str, object]:
    text, learnt = concept.held_out or (None, None)
    return {
        "name": concept.name,
        "names": list(concept.names),
        "images": concept.images,
        "text": text,
        "learnt": learnt,
        "text_kept": concept.vector is None,
        "strength": concept.strength,
        "source": concept.source,
        "date": concept.learnt,
    }


def _print(concepts: Sequence[Concept]) -> None:
    width = max(len("name"), *(len(escape_control(one.name)) for one in concepts))
    print(f"{'name':<{width}}  images   text  learnt  also called, from")
    for one in concepts:
        text, learnt = (f"{value:.3f}" for value in one.held_out) if one.held_out else ("    -", "    -")
        also = ", ".join(name for name in one.names if name != one.name)
        what = escape_control("; ".join(filter(None, (also, one.source, one.learnt))))
        kept = "text kept; " if one.vector is None else ""
        print(f"{escape_control(one.name):<{width}}  {one.images:>6,}  {text}   {learnt}  {kept}{what}")


@command.command(
    "forget",
    short_help="Forget some.",
    epilog=examples(
        "imret concepts forget 'my dog'",
        "imret concepts forget bird mushroom --collection photos",
        "imret concepts forget bird --db http://localhost:6333",
    ),
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@db_option
@collection_option
def forget_command(names: tuple[str, ...], db: str | None, collection: str) -> None:
    """Forget names that the collection was taught; words alone ask for them again. Pictures stay."""
    from imret.concepts.learn import forget_in_collection
    from imret.store import open_store

    with open_store(db, create=False, share="if possible", collection=collection) as store:
        if store.reason:
            announce(store.reason)
        forget_in_collection(store, collection, names)
    announce(f"forgot {counted(len(names), 'name')}: {escape_control(some_of(names, 5))}")
