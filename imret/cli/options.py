"""What the sub-commands share on the command line: the options for a store, a collection and a model."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from imret import DEFAULT_COLLECTION, DEFAULT_MODEL

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


def model_option(purpose: str) -> Callable[[F], F]:
    """Return the --model option; `{default}` in the purpose becomes the default model's name."""
    return click.option(
        "--model",
        metavar="MODEL",
        help=purpose.format(default=DEFAULT_MODEL)
        + " ARCH/TAG as in open_clip, hf-hub:ORG/REPO, a model folder, or a checkpoint file with --arch.",
    )


def announce(message: str) -> None:
    """Tell the person at the terminal something that is no result."""
    click.echo(message, err=True)


def silence_closed_stdout() -> bool:
    """If the reader of stdout has gone (`| head`), send what is left to write nowhere; say whether it has."""
    number = sys.stdout.fileno()
    if hasattr(select, "poll"):  # Windows has none; there, a broken pipe is taken for this one
        poll = select.poll()
        poll.register(number, 0)  # what is wrong with it is reported unasked
        if not poll.poll(0):
            return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
    return True
