"""Work for somebody who may leave before it is done, and need not be done then.

Whoever gives work to a thread runs it under `abandonable`; work that waits or takes long calls
`check_wanted` now and then. Threads that it starts itself do not know of this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_left: ContextVar[threading.Event | None] = ContextVar("imret_left", default=None)


class AbandonedError(Exception):
    """Nobody waits for this work any more."""


@contextmanager
def abandonable(event: threading.Event) -> Iterator[None]:
    """Let the work of a block end early once the event is set, which is for the one who waits to do."""
    token = _left.set(event)
    try:
        yield
    finally:
        _left.reset(token)


def left() -> threading.Event | None:
    """Return what is set once nobody waits for the work at hand any more; None where nobody watches."""
    return _left.get()


def check_wanted() -> None:
    """Go on only while somebody waits for the work at hand.

    Raises:
        AbandonedError: If whoever asked for it has left.
    """
    event = _left.get()
    if event is not None and event.is_set():
        raise AbandonedError("whoever asked for this has left")
