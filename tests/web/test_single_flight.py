"""What many ask for at once is made once, and ends when the last of them has left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from imret.abandon import AbandonedError, check_wanted
from imret.web.pool.executors import BoundedExecutor
from imret.web.single_flight import SingleFlight
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


def test_work_in_a_thread_learns_that_nobody_waits_for_it() -> None:
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
        executor = BoundedExecutor("slow", threads=1, waiting=1)
        asking = asyncio.ensure_future(SingleFlight().do("a", lambda: executor.run(work)))
        while not began.is_set():
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        executor.close()

    asyncio.run(ask())
    until(lambda: outcome == ["ended"])
