"""What many requests ask for at the same time, made once; and nothing made for those who have left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

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


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` gives; cancel it when the client leaves. The body has been read by then.

    Raises:
        ClientDisconnect: If the client has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
            # Ended before the answer is: both read from the same connection.
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class WatchedRoute(APIRoute):
    """A route whose work ends when its client has left. One that reads a body watches by itself, after it."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """See `fastapi.routing.APIRoute`."""
        handle = super().get_route_handler()
        if "POST" in (self.methods or ()):
            return handle

        async def watched(request: Request) -> Response:
            response: Response = await while_connected(request, handle(request))
            return response

        return watched
