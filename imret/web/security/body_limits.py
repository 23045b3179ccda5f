"""One request and its response as the middleware sees them: a body within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable

from imret.web.errors import MEDIA_TYPE, RETRY_AFTER_S, problem_body
from imret.web.security.http import (
    Headers,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    add_headers,
    header_values,
)

BUDGET_BODIES = 8  # of the largest that is taken: so much of all bodies together is in memory
SMALL_BODY_BYTES = 64 << 10  # what is taken also beside them; uvicorn reads as much ahead anyway
LINGER_S = 5.0  # how long a client may go on sending a body that was answered already


class BodyBudget:
    """How many bytes of all requests' bodies are in memory, and how many may be.

    A body stays from its first byte until its request is answered: who waits for a thread holds it, too.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0


class Exchange:
    """One request and its response: counts what comes in, adds headers to what goes out, can end both."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        budget: BodyBudget,
    ) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.left_s = body_timeout_s
        self.received_bytes = 0
        self.held_bytes = 0
        self._budget = budget
        self.body_over = not header_values(scope, b"content-length") and not header_values(
            scope, b"transfer-encoding"
        )
        self.started = False
        self.refused = False
        self._must_end = False  # of its response, which waits until the body has been read

    def expect_body(self) -> None:
        """Raise RefusedError for a body that is announced as too large, or announced in a way that lies."""
        lengths = header_values(self.scope, b"content-length")
        encodings = header_values(self.scope, b"transfer-encoding")
        if encodings and (lengths or encodings[0].strip().lower() != b"chunked"):
            # Two readers that disagree about where a body ends are how requests are smuggled.
            raise RefusedError(400, "a body has either a Content-Length or 'Transfer-Encoding: chunked'")
        if lengths:
            if not re.fullmatch(rb"[0-9]{1,19}", lengths[0]):
                raise RefusedError(400, "the Content-Length is not a number of bytes")
            if int(lengths[0]) > self.max_body_bytes:
                raise RefusedError(413, self._too_large(int(lengths[0])))
            self.body_over = int(lengths[0]) == 0

    def _too_large(self, size_bytes: int | None = None) -> str:
        size = "more" if size_bytes is None else f"{size_bytes} bytes"
        return f"the body is too large: {size}, where at most {self.max_body_bytes} bytes are taken"

    async def receive(self) -> Message:
        """What the app receives from: the body within its limits, then the client's leave."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self.body_over:
            return await self._receive()
        # Only waiting is counted: time in which the app does something else is not the client's fault.
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            message = await asyncio.wait_for(self._receive(), self.left_s)
        except asyncio.TimeoutError:
            await self.refuse(408, f"the body did not arrive within {self.body_timeout_s:g} seconds", [])
            return {"type": "http.disconnect"}
        self.left_s -= loop.time() - began
        if message["type"] == "http.request":
            self.received_bytes += len(message.get("body", b""))
            if self.received_bytes > self.max_body_bytes:
                await self.refuse(413, self._too_large(), [])
                return {"type": "http.disconnect"}
            if not self._hold():
                detail = f"too many large requests at a time. Ask again in {RETRY_AFTER_S} s."
                await self.refuse(503, detail, [(b"retry-after", b"%d" % RETRY_AFTER_S)])
                return {"type": "http.disconnect"}
            self.body_over = not message.get("more_body", False)
        return message

    def _hold(self) -> bool:
        """Count what has arrived among all that is in memory; False if that is too much."""
        more = max(0, self.received_bytes - SMALL_BODY_BYTES) - self.held_bytes
        if more > 0:
            if self._budget.n_bytes + more > self._budget.max_bytes:
                return False
            self._budget.n_bytes += more
            self.held_bytes += more
        return True

    async def read(self) -> bytes | None:
        """Return the whole body; None if the client left or was refused meanwhile."""
        parts: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def send(self, message: Message) -> None:
        """What the app sends to; nothing reaches the client any more once the request was refused."""
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": self._add_headers(message.get("headers", ()))}
        elif not self.body_over and not message.get("more_body", False):
            self._must_end = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def end(self) -> None:
        """End the response, after what the client still sends was read for a while.

        A socket that is closed while its client still sends answers with a reset, and a reset takes back what
        the client has not read yet: the very response that says why (RFC 9112, section 9.6).
        """
        if not self._must_end:
            return
        self.release()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard_body(), LINGER_S)
        self._must_end = False
        await self._send({"type": "http.response.body", "body": b""})

    async def _discard_body(self) -> None:
        more = True
        while more:
            message = await self._receive()
            more = message.get("more_body", False)

    def release(self) -> None:
        """Count what this request holds in memory no more."""
        self._budget.n_bytes -= self.held_bytes
        self.held_bytes = 0

    def _add_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        # What is left of a body would have to be read to find the next request behind it.
        return add_headers(headers, self.scope["path"], closes=not self.body_over)

    async def answer(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send a whole response of ours."""
        self.started = True
        head = [*headers, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        await self._send(
            {"type": "http.response.start", "status": status, "headers": self._add_headers(head)}
        )
        self._must_end = not self.body_over
        await self._send({"type": "http.response.body", "body": body, "more_body": self._must_end})

    async def redirect(self, target: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Lead on to a local address, by GET (303)."""
        await self.answer(303, b"", [(b"location", target.encode("ascii")), *headers])

    async def refuse(self, status: int, detail: str, headers: Headers) -> None:
        """End the request: a problem if nothing was sent yet, else the response stays cut short."""
        self.refused = True
        if not self.started:
            kind = (b"content-type", MEDIA_TYPE.encode())
            await self.answer(status, problem_body(status, detail), [kind, *headers])
