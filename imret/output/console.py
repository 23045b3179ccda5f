"""What a command tells on stderr, and readers of stdout and stderr that have gone."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING

import click

from imret.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def prepare_streams() -> None:
    """Make stdin, stdout and stderr fit for what commands write, whatever this process was given for them.

    One that is closed (`>&-`) leads nowhere: Python has None for it, and the next file that is opened would
    get its number. Where stdout cannot be written (a full disk), that is an error with a sentence. File names
    may hold bytes that are no UTF-8, which are passed on as they are.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _write_nowhere(number)
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115 - stays open
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if sys.stdout is sys.__stdout__:
        stdout = _Stdout(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(stdout), line_buffering=stdout.isatty())
    for text in (sys.stdout, sys.stderr):
        if isinstance(text, io.TextIOWrapper):
            text.reconfigure(encoding="utf-8", errors="surrogateescape")


class _Stdout(io.FileIO):
    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _write_nowhere(self.fileno())  # or Python at its end would try again
            raise DataError(
                f"the results cannot be written to stdout: {error.strerror}.\n"
                "Make room there or send them elsewhere, and run the command again."
            ) from error


def announce(message: str) -> None:
    """Tell the person at the terminal something that is no result.

    Where nobody reads any more (`2>&1 | head`), or it cannot be written, nothing is told: that is no reason
    to leave work undone.
    """
    try:
        click.echo(message, err=True)
    except OSError:
        _write_nowhere(sys.stderr.fileno())


def silence_closed_stdout() -> bool:
    """If the reader of stdout has gone (`| head`), send what is left to write nowhere; say whether it has."""
    number = sys.stdout.fileno()
    if not hasattr(select, "poll"):  # Windows, where a pipe without a reader shows only when it is written to
        _write_nowhere(number)
        return True
    poll = select.poll()
    poll.register(number, 0)  # what is wrong with it is reported unasked
    if not poll.poll(0):
        return False
    _write_nowhere(number)
    return True


def _write_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:  # which it is where that was closed, and the lowest
        os.dup2(nowhere, number)
        os.close(nowhere)
