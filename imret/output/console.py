"""What a command tells on stderr, and a reader of stdout that has gone."""

from __future__ import annotations

import os
import select
import sys

import click


def announce(message: str) -> None:
    """Tell the person at the terminal something that is no result."""
    click.echo(message, err=True)


def silence_closed_stdout() -> bool:
    """If the reader of stdout has gone (`| head`), send what is left to write nowhere; say whether it has."""
    number = sys.stdout.fileno()
    poll = select.poll()
    poll.register(number, 0)  # what is wrong with it is reported unasked
    if not poll.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
    return True
