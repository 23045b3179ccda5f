"""Bounded queues in front of threads: a request waits its turn, or is refused at once where too many wait.

Each kind of work has an executor of its own, so that slow pictures never hold up words.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from imret.abandon import abandonable

T = TypeVar("T")


class Busy(Exception):
    """So many requests wait already that another would wait too long.

    Attributes:
        retry_after_s: When to ask again.
    """

    def __init__(self, executor: str, retry_after_s: int) -> None:
        super().__init__(f"too many requests are waiting ({executor}). Ask again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class BoundedExecutor:
    """Threads of their own for one kind of work.

    Args:
        name: For metrics and messages.
        threads: How many requests are worked on at a time.
        waiting: How many may wait beside them.
        retry_after_s: What to say to those that are refused.
    """

    def __init__(self, name: str, *, threads: int, waiting: int, retry_after_s: int = 1) -> None:
        self.name = name
        self._room = threads + waiting
        self._threads = threads
        self._retry_after_s = retry_after_s
        self._held = 0
        self._pool = ThreadPoolExecutor(threads, f"imret-{name}")

    @property
    def depth(self) -> int:
        """How many requests wait, beside those that are worked on."""
        return max(0, self._held - self._threads)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what `work` returns, run in one of the threads with the caller's context variables.

        A caller that is cancelled (its client has gone) leaves the queue; work that has begun learns of it
        when it looks: see `imret.abandon`.

        Raises:
            Busy: If the queue is full.
        """
        if self._held >= self._room:
            raise Busy(self.name, self._retry_after_s)
        self._held += 1
        left = threading.Event()
        try:
            context = contextvars.copy_context()
            future = self._pool.submit(context.run, _run, left, work, arguments)
        except BaseException:
            self._held -= 1
            raise
        loop = asyncio.get_running_loop()
        # Counted until the thread is free again, also where nobody waits for the result any more.
        future.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self._release))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            left.set()
            raise

    def close(self) -> None:
        """Let no more work begin; what has begun is finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _release(self) -> None:
        self._held -= 1


def _run(left: threading.Event, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    with abandonable(left):
        return work(*arguments)
