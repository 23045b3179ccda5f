"""Stages that run ahead: in order, bounded, and ending as they should."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest.prefetch import in_lists, map_prefetch, prefetched


def _numbers(n: int, made: list[int] | None = None) -> Generator[int, None, None]:
    for number in range(n):
        if made is not None:
            made.append(number)
        yield number


def test_results_come_in_order_though_later_ones_are_ready_first() -> None:
    def slow_when_early(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0.0)
        return number * number

    with ThreadPoolExecutor(4) as pool:
        assert list(map_prefetch(slow_when_early, _numbers(40), pool, ahead=lambda: 8)) == [
            n * n for n in range(40)
        ]


def test_no_more_items_are_taken_than_the_look_ahead() -> None:
    made: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        results = map_prefetch(lambda n: n, _numbers(1000, made), pool, ahead=lambda: 5)
        for taken in range(1, 20):
            next(results)
            assert len(made) <= taken + 5
        results.close()


def test_an_error_comes_in_its_turn() -> None:
    def refuse_seven(number: int) -> int:
        if number == 7:
            raise RuntimeError("seven")
        return number

    got: list[int] = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(RuntimeError, match="seven"):
        got.extend(map_prefetch(refuse_seven, _numbers(50), pool, ahead=lambda: 4))
    assert got == list(range(7))


def test_another_thread_makes_the_items_in_order_and_ends() -> None:
    makers: set[str] = set()

    def items() -> Generator[int, None, None]:
        for number in range(100):
            makers.add(threading.current_thread().name)
            yield number

    assert list(prefetched(items(), depth=3)) == list(range(100))
    assert makers == {"imret-ahead"}


def test_a_queue_of_two_holds_two() -> None:
    made: list[int] = []
    ahead = prefetched(_numbers(1000, made), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    # One is in our hands, two wait in the queue, one is in the maker's hands.
    assert len(made) == 4
    ahead.close()


def test_closing_early_stops_the_other_thread_and_closes_its_items() -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = prefetched(endless(), depth=2)
    next(ahead)
    ahead.close()
    assert closed.is_set()
    assert "imret-ahead" not in {thread.name for thread in threading.enumerate()}


def test_an_error_of_the_other_thread_comes_after_what_it_made() -> None:
    def failing() -> Generator[int, None, None]:
        yield from (1, 2)
        raise OSError("gone")

    got: list[int] = []
    with pytest.raises(OSError, match="gone"):
        got.extend(prefetched(failing(), depth=2))
    assert got == [1, 2]


def test_an_error_of_the_items_comes_at_once_and_what_waits_is_cancelled() -> None:
    def failing() -> Generator[int, None, None]:
        yield from range(3)
        raise OSError("gone")

    done: list[int] = []
    release = threading.Event()

    def slow(number: int) -> None:
        release.wait(10)
        done.append(number)

    with ThreadPoolExecutor(1) as pool:
        results = map_prefetch(slow, failing(), pool, ahead=lambda: 9)
        with pytest.raises(OSError, match="gone"):
            next(results)
        release.set()
    assert done in ([], [0])  # one may have begun


def test_the_look_ahead_may_change_on_the_way() -> None:
    made: list[int] = []
    ahead = 2
    with ThreadPoolExecutor(2) as pool:
        results = map_prefetch(lambda n: n, _numbers(1000, made), pool, ahead=lambda: ahead)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert len(made) == 4
        ahead = 20
        assert next(results) == 3
        assert len(made) == 23
        ahead = 1
        assert [next(results) for _ in range(19)] == list(range(4, 23))
        results.close()


def test_lists_keep_the_order_and_may_grow_on_the_way() -> None:
    size = 1
    lists = in_lists(range(8), lambda: size)
    assert next(lists) == [0]
    size = 3
    assert list(lists) == [[1, 2, 3], [4, 5, 6], [7]]
    assert list(in_lists([], lambda: 2)) == []
