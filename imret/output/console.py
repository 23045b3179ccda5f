"""What a command tells on stderr, and readers of stdout and stderr that have gone."""

from __future__ import annotations

import os
import select
import sys

import click


def announce(message: str) -> None:
    """Tell the person at the terminal something that is no result.

    Where nobody reads any more (`2>&1 | head`) nothing is told: that is no reason to leave work undone.
    """
    try:
        click.echo(message, err=True)
    except BrokenPipeError:
        _write_nowhere(sys.stderr.fileno())


def silence_closed_stdout() -> bool:
    """If the reader of stdout has gone (`| head`), send what is left to write nowhere; say whether it has."""
    number = sys.stdout.fileno()
    poll = select.poll()
    poll.register(number, 0)  # what is wrong with it is reported unasked
    if not poll.poll(0):
        return False
    _write_nowhere(number)
    return True


def _write_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
