"""Work that ends when nobody waits for it any more: its client has hung up.

Each request has a flag, which the threads that work for it look at between two parts: a call of the store, a
text that is to be encoded. What waits for a thread is taken out of the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

from imret.abandon import abandonable

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class DepartureWatch:
    """ASGI middleware that ends a request whose client leaves before the answer begins.

    Once the body has been read, the client's leave is the only message that is left to come, and it is waited
    for beside the app.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left = threading.Event()
        with abandonable(left):
            await self._watched(scope, receive, send, left)

    async def _watched(self, scope: _Scope, receive: _Receive, send: _Send, left: threading.Event) -> None:
        has_begun = False
        messages: asyncio.Queue[_Message] = asyncio.Queue()
        watcher: asyncio.Task[None] | None = None

        async def watch() -> None:
            message: _Message = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await receive()
                messages.put_nowait(message)
            left.set()
            if not has_begun:
                work.cancel()

        async def receive_watched() -> _Message:
            nonlocal watcher
            if watcher is not None:
                return await messages.get()
            message = await receive()
            if message["type"] == "http.disconnect":
                left.set()
            elif not message.get("more_body", False):
                watcher = asyncio.ensure_future(watch())
            return message

        async def send_watched(message: _Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        work = asyncio.ensure_future(self._app(scope, receive_watched, send_watched))
        names = {name for name, _ in scope["headers"]}
        if not names & {b"content-length", b"transfer-encoding"}:  # no body, so perhaps nobody asks for one
            watcher = asyncio.ensure_future(watch())
        try:
            await work
        except asyncio.CancelledError:
            if has_begun or not work.cancelled():
                raise
            if not left.is_set():  # the server ends, and has waited for this as long as it waits
                await Response("the server is ending.\n", 503, {"Retry-After": "10"})(scope, receive, send)
                return
            # Nobody reads this; it is counted as nginx does.
            await Response(status_code=499)(scope, receive, send)
        finally:
            if watcher is not None:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
