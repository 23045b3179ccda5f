"""Threads that compute beside the others, and have ended before Python does.

One that is left running is stopped wherever it next wants the interpreter's lock. Within C++ code, as torch
is, that aborts the process.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

_lock = threading.Lock()
_running: dict[threading.Thread, Callable[[], None]] = {}
_ending = False


def run_in_background(name: str, work: Callable[[], None], *, stop: Callable[[], None] | None = None) -> None:
    """Run `work` in a thread of its own; the end of the process waits for it. Once it ends, nothing begins.

    Args:
        name: Of the thread.
        work: What it runs.
        stop: Called when the process ends, to have `work` return soon.
    """

    def run() -> None:
        try:
            work()
        finally:
            with _lock:
                _running.pop(thread, None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    with _lock:
        if _ending:
            return
        _running[thread] = stop or (lambda: None)
        thread.start()


@atexit.register
def _end() -> None:
    global _ending
    with _lock:
        _ending = True
        running = list(_running.items())
    for _, stop in running:
        stop()
    for thread, _ in running:
        thread.join()
