"""Requests that end before they are answered: the server's end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra web")

from imret.web.departure import DepartureWatch


def test_a_request_that_outlives_the_time_the_end_waits_is_answered_503() -> None:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(60)

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            if not read:
                read.append(True)
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.sleep(60)  # the client stays
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        read: list[bool] = []
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        task = asyncio.ensure_future(DepartureWatch(app)(scope, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()  # as uvicorn does with requests that run when its patience has ended
        await asyncio.wait([task])

    asyncio.run(run())
    assert [message.get("status") for message in sent] == [503, None]
    assert (b"retry-after", b"10") in sent[0]["headers"]
    assert b"ending" in sent[1]["body"]
