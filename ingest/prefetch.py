"""Work done in advance, in order and in bounded memory: what makes the stages of a pipeline overlap."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_prefetch(
    function: Callable[[T], R], items: Iterable[T], pool: Executor, *, ahead: Callable[[], int]
) -> Generator[R, None, None]:
    """Yield function(item) in the order of items, computed in a pool at most `ahead()` items in advance.

    How far that is may change on the way: it is asked before each result.

    Raises:
        Exception: Whatever the function raises, when its turn comes, or the items raise, at once. What is
            still waiting in the pool is then cancelled.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def in_lists(items: Iterable[T], size: Callable[[], int]) -> Iterator[list[T]]:
    """Yield the items in lists of at most `size()`, in order; how many that is may change on the way."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) >= size():
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _Made(Generic[T]):
    item: T


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None


def prefetched(items: Generator[T, None, None], *, depth: int) -> Generator[T, None, None]:
    """Yield items that another thread makes, at most `depth` of them in advance.

    Closing this generator stops that thread at its next item and closes `items` there.

    Raises:
        BaseException: Whatever making an item raises, in its turn.
    """
    ready: queue.Queue[_Made[T] | _Ended] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(entry: _Made[T] | _Ended) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(_Made(item)):
                    return
            offer(_Ended(None))
        except BaseException as error:
            offer(_Ended(error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="imret-ahead", daemon=True)
    thread.start()
    try:
        while isinstance(entry := ready.get(), _Made):
            yield entry.item
        if entry.error is not None:
            raise entry.error
    finally:
        stopped.set()
        thread.join()
