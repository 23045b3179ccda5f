"""What the sub-commands share on the command line: the options for a store, a collection and a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imret.defaults import DEFAULT_COLLECTION, DEFAULT_MODEL
from imret.output.console import announce
from imret.output.formats import FORMATS

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder

F = TypeVar("F", bound=Callable[..., Any])

db_option = click.option(
    "--db",
    envvar="IMRET_DB",
    metavar="ADDRESS",
    help="Store: a folder (embedded) or a URL (Qdrant server).  [env IMRET_DB; default: a Qdrant at "
    "localhost:6333 if one answers, else the embedded store of this user]",
)
collection_option = click.option(
    "--collection",
    default=DEFAULT_COLLECTION,
    show_default=True,
    metavar="NAME",
    help="Collection of the store.",
)


def collection_choice(meaning: str, *, multiple: bool = False) -> Callable[[F], F]:
    """Return the --collection option of a command that has no default one; the argument is its help."""
    return click.option("--collection", metavar="NAME", multiple=multiple, help=meaning)


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 where the hardware computes in it, else fp32.",
)
arch_option = click.option(
    "--arch", metavar="ARCH", help="open_clip architecture of --model, where that is a bare checkpoint file."
)


def format_option(meaning: str) -> Callable[[F], F]:
    """Return the --format option of a table that can be had as JSON; the argument says what JSON is there."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help=meaning,
    )


def model_option(purpose: str) -> Callable[[F], F]:
    """Return the --model option; `{default}` in the purpose becomes the default model's name."""
    return click.option(
        "--model",
        metavar="MODEL",
        help=purpose.format(default=DEFAULT_MODEL)
        + " ARCH/TAG as in open_clip, hf-hub:ORG/REPO, a model folder, or a checkpoint file with --arch.",
    )


def output_options(command: F) -> F:
    """Add the options of `deliver` to a command."""
    for option in reversed(
        (
            click.option(
                "--format",
                "output",
                type=click.Choice(FORMATS),
                default="table",
                show_default=True,
                help="json: one object per line; paths: for pipes.",
            ),
            click.option("-0", "--null", is_flag=True, help="End paths with NUL, for xargs -0."),
            click.option("--payload", is_flag=True, help="With json: everything stored beside each picture."),
            click.option(
                "--preview/--no-preview",
                default=False,
                help="Show thumbnails, in a terminal; IMRET_PREVIEW chooses how.",
            ),
            click.option(
                "--html", metavar="FILE", help="Write a contact sheet: one page with all thumbnails."
            ),
            click.option(
                "--copy-to",
                metavar="DIR",
                help="Copy the pictures there, named by rank: 001_owl.jpg. Nothing is overwritten.",
            ),
            click.option(
                "--open",
                "open_them",
                is_flag=True,
                help="Show the pictures: with the command in IMRET_VIEWER, else one in the system's viewer, "
                "several on a page in the browser (that of --html, if given).",
            ),
        )
    ):
        command = option(command)
    return command


def category_names(encoder: QueryEncoder, given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return what categories are called: as in the file, else as the model was tuned, which is announced."""
    from imret.retrieval import prompts

    names, recorded = prompts.resolve_names(encoder, given)
    if recorded:
        shown = ", ".join(f"{key} = {called[0]}" for key, called in list(recorded.items())[:5])
        more = f" and {len(recorded) - 5} more" if len(recorded) > 5 else ""
        announce(f"asking by the names that the model was tuned with: {shown}{more} (--names overrides)")
    return names
