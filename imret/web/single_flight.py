"""What many requests ask for at the same time, made once; and not at all once all of them have left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class _Flight:
    task: asyncio.Task[Any]
    waiting: int = 0


class SingleFlight:
    """What is asked for while it is being made is made once. Those who wait hold no thread."""

    def __init__(self) -> None:
        # By event loop, too: tests have one for each request.
        self._flights: dict[tuple[int, str], _Flight] = {}

    async def do(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        """Return what `make` gives, of this call or of the one that came first; raise what it raises.

        All who wait get the same object: never an open file, whose place one would move for the others.
        If all who wait for it are cancelled, so is it.
        """
        at = (id(asyncio.get_running_loop()), key)
        flight = self._flights.get(at)
        if flight is None:
            flight = self._flights[at] = _Flight(asyncio.ensure_future(_made(make)))
        flight.waiting += 1
        try:
            result: T = await asyncio.shield(flight.task)
            return result
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                if self._flights.get(at) is flight:
                    del self._flights[at]
                flight.task.cancel()  # does nothing where it is done


async def _made(make: Callable[[], Awaitable[T]]) -> T:
    return await make()
