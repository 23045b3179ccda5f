"""Waiting until a Qdrant server has built what it builds by itself, and telling why it has not."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qdrant_client import models

from imret.errors import StoreError
from imret.store.server.connection import Connection, ServerWarning
from imret.store.types import Progress

# Large collections have been seen yellow for good. Where nothing at all moves for so long, nobody waits on.
STALL_S = 3_600.0
# Grey: there is work that begins with the next write. A change of nothing begins it, too, within moments.
WAKE_S = 10.0
_PAUSE_S = 2.0
LOOK_S = 5.0  # between two looks at what runs: a request of its own
_BUSY = (models.CollectionStatus.YELLOW, models.CollectionStatus.GREY)


def wait_until_built(
    connection: Connection,
    physical: str,
    name: str,
    *,
    timeout_s: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Return when the server has built all that it means to, or when nothing has moved for an hour.

    Args:
        connection: To the server.
        physical: The Qdrant collection.
        name: The collection, for errors.
        timeout_s: How long it is waited for at most.
        on_progress: Called at each look.
        on_look: The same, without what is seen.

    Raises:
        StoreError: If the server failed at it, or the time is over; the server goes on all the same.
    """
    started = moved = time.monotonic()
    pause, seen, woken, running = 0.05, "", False, _Running(connection, physical)
    while True:
        on_look()
        info = connection.request("describe a collection", lambda: connection.client.get_collection(physical))
        if info.status not in _BUSY:
            break
        now = time.monotonic()
        if info.status == models.CollectionStatus.GREY and not woken:
            woken, moved = True, now
            connection.request("go on building", lambda: _wake(connection, physical))
            continue
        progress = progress_of(info, running.look(now))
        if on_progress is not None:
            on_progress(progress)
        if (sight := f"{progress} {info.segments_count} {running.seen}") != seen:
            seen, moved = sight, now
        if timeout_s is not None and now - started >= timeout_s:
            raise _still_building(connection, name, timeout_s, info, progress)
        limit = STALL_S if info.status == models.CollectionStatus.YELLOW else WAKE_S
        if now - moved >= limit:
            warnings.warn(
                f"the collection {name!r} stays {info.status.value}: {progress.why}. It can be searched; "
                "what is not indexed is compared one by one.",
                ServerWarning,
                stacklevel=2,
            )
            return
        left = pause if timeout_s is None else max(0.0, min(pause, started + timeout_s - now))
        time.sleep(left)
        pause = min(pause * 1.5, _PAUSE_S)
    if info.status == models.CollectionStatus.RED:
        raise StoreError(
            f"Qdrant at {connection.address} failed to index {physical!r}: {info.optimizer_status}"
        )


class _Running:
    """What a server says that it optimizes; it does since 1.17, and only over REST."""

    def __init__(self, connection: Connection, physical: str) -> None:
        self._connection, self._physical = connection, physical
        self._looked = time.monotonic()
        self._is_there = True
        self._answer: models.OptimizationsResponse | None = None

    @property
    def seen(self) -> str:
        """What was seen last, down to the step that it is at."""
        return "" if self._answer is None else repr(self._answer)

    def look(self, now: float) -> models.OptimizationsResponse | None:
        """Return what runs, None where that is not known."""
        if self._is_there and now - self._looked >= LOOK_S:
            self._looked, self._is_there = now, False
            with suppress(Exception):  # it is no part of what was asked
                self._answer = self._connection.client.get_optimizations(self._physical)
                self._is_there = True
        return self._answer


def progress_of(info: models.CollectionInfo, running: models.OptimizationsResponse | None) -> Progress:
    """Return how far a server is, and why a collection is not green."""
    points, indexed = info.points_count or 0, min(info.indexed_vectors_count or 0, info.points_count or 0)
    failure = getattr(info.optimizer_status, "error", "")
    why: list[str] = []
    if failure:
        why.append(f"its optimizer failed ({failure})")
    if info.status == models.CollectionStatus.GREY:
        why.append("it has work that it begins with the next write")
    if indexed < points:
        share = 100 * indexed // points
        why.append(f"{indexed:,} of {points:,} vectors are in segments that are done ({share} %)")
    elif not failure:
        why.append(f"all {points:,} vectors are indexed, and segments are still merged or written anew")
    if info.update_queue is not None and info.update_queue.length:
        why.append(f"{info.update_queue.length:,} writes are waiting")
    if running is not None:
        n, queued = len(running.running), running.summary.queued_optimizations
        why.append(f"it works at {n} {'segment' if n == 1 else 'segments'} now, {queued:,} after that")
    return Progress(points, indexed, "; ".join(why))


def _wake(connection: Connection, physical: str) -> bool:
    nothing: Any = models.OptimizersConfigDiff()
    return connection.client.update_collection(physical, optimizers_config=nothing)


def _still_building(
    connection: Connection, name: str, timeout_s: float, info: models.CollectionInfo, progress: Progress
) -> StoreError:
    return StoreError(
        f"the index of {name!r} is not built after {timeout_s:,.0f} s, which was the limit: it is "
        f"{info.status.value}, as {progress.why}. Qdrant at {connection.address} goes on with it, and the "
        "collection can be searched. Wait for it again: imret collections optimize "
        f"{name} --db {connection.address}"
    )
