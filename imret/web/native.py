"""Daemon threads that compute: what they have begun is finished before Python ends.

Such a thread is stopped wherever it next wants the interpreter's lock, and if that is within C++ code, as
torch is, the whole process aborts. A thread that nobody would wait for computes inside `finished_first`.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Iterator

_changed = threading.Condition()
_computing = 0
_ending = False


@contextlib.contextmanager
def finished_first() -> Iterator[None]:
    """Have the end of the process wait for the block; once it ends, no block begins."""
    global _computing
    with _changed:
        while _ending:
            _changed.wait()  # for ever: this thread goes with the process
        _computing += 1
    try:
        yield
    finally:
        with _changed:
            _computing -= 1
            _changed.notify_all()


@atexit.register
def _finish() -> None:
    global _ending
    with _changed:
        _ending = True
        while _computing:
            _changed.wait()
