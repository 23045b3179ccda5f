"""What many ask for at once is made once, and ends when the last of them has left."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from imret.abandon import AbandonedError, check_wanted
from imret.web.pool.executors import BoundedExecutor
from imret.web.single_flight import SingleFlight, while_connected
from tests.fakes.web_server import until


def test_sixty_four_who_ask_for_one_have_it_made_once_and_all_are_told() -> None:
    async def ask() -> None:
        flights, made = SingleFlight(), 0
        go = asyncio.Event()

        async def make() -> str:
            nonlocal made
            made += 1
            await go.wait()
            if made == 2:
                raise ValueError("spoilt")
            return f"picture {made}"

        waiting = [asyncio.ensure_future(flights.do("a", make)) for _ in range(64)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*waiting) == ["picture 1"] * 64
        spoilt = await asyncio.gather(*(flights.do("a", make) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in spoilt] == ["spoilt"] * 3
        assert await flights.do("a", make) == "picture 3"

    asyncio.run(ask())


def test_it_goes_on_while_one_of_them_waits_and_ends_when_none_does() -> None:
    async def ask() -> None:
        flights, ended = SingleFlight(), asyncio.Event()

        async def make() -> str:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.set()
                raise
            return ""

        waiting = [asyncio.ensure_future(flights.do("a", make)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        waiting[2].cancel()
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(ask())


def request_of(messages: list[dict[str, Any]], more: asyncio.Event) -> Request:
    async def receive() -> dict[str, Any]:
        if not messages:
            await more.wait()
            return {"type": "http.disconnect"}
        return messages.pop(0)

    return Request({"type": "http", "method": "GET", "headers": []}, receive)


def test_work_in_a_thread_learns_that_its_client_has_left() -> None:
    outcome: list[str] = []

    def work() -> None:
        began.set()
        try:
            while True:
                check_wanted()
        except AbandonedError:
            outcome.append("ended")

    began = threading.Event()

    async def ask() -> None:
        gone = asyncio.Event()
        executor = BoundedExecutor("slow", threads=1, waiting=1)
        request = request_of([{"type": "http.request", "body": b"", "more_body": False}], gone)
        asking = asyncio.ensure_future(while_connected(request, executor.run(work)))
        while not began.is_set():
            await asyncio.sleep(0.01)
        gone.set()
        with pytest.raises(ClientDisconnect):
            await asking
        executor.close()

    asyncio.run(ask())
    until(lambda: outcome == ["ended"])


def test_who_stays_gets_the_answer_or_the_error() -> None:
    async def ask() -> None:
        async def answer() -> int:
            return 7

        async def fail() -> int:
            raise ValueError("wrong")

        assert await while_connected(request_of([], asyncio.Event()), answer()) == 7
        with pytest.raises(ValueError, match="wrong"):
            await while_connected(request_of([], asyncio.Event()), fail())

    asyncio.run(ask())
