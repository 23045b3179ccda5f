"""How a command ends early: Ctrl-C, SIGTERM, a closed terminal; once, twice, at any moment.

The first signal is raised as KeyboardInterrupt, and what the command has open is closed in order. Those that
follow are not raised, so that none cuts the closing short; one that comes a while later ends the process at
once. When all is closed, nothing is waited for: threads that still load or compute something are no use any
more. Loads nothing that takes time: the command's own imports can be stopped, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from imret import system

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS = system.stopping_signals()
GRACE_S = 2.0  # a second Ctrl-C sooner than this is taken for the same; later it says that it takes too long

_pid = os.getpid()
_since: float | None = None  # when the command was first stopped
_number = signal.SIGINT  # by what
_instead: Callable[[], None] | None = None  # what to do when it is


class Stopped(KeyboardInterrupt):
    """A signal that ends the command; its arguments are what those whom it stopped have to tell."""


def heed_signals() -> None:
    """Have the signals raise `Stopped` in the main thread, except those that are ignored (nohup, `cmd &`)."""
    global _pid
    _pid = os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)
    sys.unraisablehook = _raise_again


@contextmanager
def stopping_by(stop: Callable[[], None]) -> Iterator[None]:
    """Have the first signal call a function, rather than be raised, while the context lasts."""
    global _instead
    _instead = stop
    try:
        yield
    finally:
        _instead = None


def farewell(stop: BaseException) -> NoReturn:
    """Tell on stderr that the command was stopped, and end the process with the exit code for that.

    Args:
        stop: What stopped it; its arguments are what there is to tell.
    """
    text = " ".join(map(str, stop.args)) or "Run the same command again to continue."
    begin = "\n" if _number == signal.SIGINT else ""  # the terminal has put ^C there
    with suppress(OSError, ValueError):  # nobody may be there to read it
        print(f"{begin}Stopped. {text}", file=sys.stderr)
    _end(128 + _number)


def leave(code: int) -> NoReturn:
    """End the process in the usual way, or if it was stopped, at once."""
    if _since is None:
        sys.exit(code)
    _end(code)


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    global _since, _number
    if os.getpid() != _pid:  # a fork, which ends as if it had never heard of this
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    now = time.monotonic()
    if _since is None:
        _since, _number = now, signal.Signals(number)
        if _instead is None:
            raise Stopped
        _instead()
    if now - _since >= GRACE_S:
        os._exit(128 + number)  # processes of its own notice, and end


def _raise_again(unraisable: UnraisableHookArgs) -> None:
    """Stop again, a moment later, what was stopped where nothing can be raised, as in a finalizer."""
    global _since
    stop = unraisable.exc_value
    if not isinstance(stop, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    _since = None
    threading.Timer(0.02, os.kill, (os.getpid(), _number)).start()
