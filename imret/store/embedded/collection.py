"""One version of a collection in the embedded store: requests to the worker that has it open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imret.errors import StoreError
from imret.store.embedded.client import TookTooLong, WorkerClient, WorkerGone
from imret.store.filter import Filter
from imret.store.placement import Creation
from imret.store.types import M, Point, Progress, RawPoint, Stats

UPSERT_BATCH = 512  # points in one message to the worker
MAX_REOPENED = 64  # for one request: of so many searches at once each may end before it answers the others


class Opened(NamedTuple):
    """A version that a worker has open.

    Attributes:
        worker: Who has it.
        handle: The number that the worker gave it.
    """

    worker: WorkerClient
    handle: int


class EdgeEngine:
    """A version that a worker has open, and when that is gone, another. See `Engine`.

    A worker is gone when the program ends whose it is: the one that shared it, normally or killed. All
    requests may be repeated: what was acknowledged is in the log, and to store, delete or build the same
    twice is to do it once.

    Args:
        opened: The version.
        reopen: Opens it again; raises the error that tells why it is not to be used any more.
        unbuilt: What to tell whoever stops the making of the index.
    """

    def __init__(self, opened: Opened, reopen: Callable[[], Opened], *, unbuilt: str) -> None:
        self._opened = opened
        self._reopen = reopen
        self._unbuilt = unbuilt
        self._reopening = threading.Lock()
        self._is_closed = False

    def upsert(self, ids: list[str], vectors: NDArray[np.float32], payloads: list[dict[str, Any]]) -> None:
        for start in range(0, len(ids), UPSERT_BATCH):
            part = slice(start, start + UPSERT_BATCH)
            self._call("upsert", ids[part], vectors[part], payloads[part])

    def overwrite_payloads(self, ids: list[str], payloads: list[dict[str, Any]]) -> None:
        self._call("overwrite_payloads", ids, payloads)

    def get(self, ids: list[str], vectors: bool) -> list[Point]:
        return [Point(*row) for row in self._call("get", ids, vectors)]

    def scan(
        self, filter: Filter | None, vectors: bool, batch_size: int, start: str | int | None
    ) -> tuple[list[Point], str | int | None]:
        rows, following = self._call("scan", filter, vectors, batch_size, start)
        return [Point(*row) for row in rows], following

    def inspect(self, batch_size: int, start: str | int | None) -> tuple[list[RawPoint], str | int | None]:
        rows, following = self._call("inspect", batch_size, start)
        return [RawPoint(*row) for row in rows], following

    def delete(self, ids: Sequence[str | int]) -> None:
        self._call("delete", list(ids))

    def search(
        self, vector: NDArray[np.float32], limit: int, filter: Filter | None, exact: bool
    ) -> list[Point]:
        return [Point(*row) for row in self._call("search", vector, limit, filter, exact)]

    def count(self, filter: Filter | None) -> int:
        return int(self._call("count", filter))

    def facet(self, field: str, filter: Filter | None) -> dict[str, int]:
        counts: dict[str, int] = self._call("facet", field, filter)
        return counts

    def flush(self) -> None:
        self._call("flush")

    def needs_optimize(self) -> bool:
        return bool(self._call("needs_optimize"))

    def optimize(
        self, timeout_s: float | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        def look() -> None:  # the engine tells nothing until it is done
            if on_progress is not None:
                on_progress(Progress(None, None, "the index is being built"))

        try:
            self._call("optimize", timeout_s=timeout_s, on_wait=None if on_progress is None else look)
        except TookTooLong:
            # Another program's process goes on, this one's has ended.
            raise StoreError(
                f"the index is not built after {timeout_s:,.0f} s, which was the limit; what this command "
                f"had of it is given up, and begins anew. {self._unbuilt}"
            ) from None
        except KeyboardInterrupt as stop:
            stop.args += (self._unbuilt,)
            raise

    def creation(self) -> Creation:
        creation: Creation = self._call("creation")
        return creation

    def to_current(self, asked: Creation) -> list[str]:
        changed: list[str] = self._call("to_current", asked)
        return changed

    def stats(self) -> Stats:
        points, indexed, disk_bytes = self._call("stats")
        status = "exact scan" if indexed == 0 else "indexed" if indexed >= points else "partly indexed"
        return Stats(points, min(indexed, points), disk_bytes, status, M)

    def ping(self) -> None:
        pass

    def close(self) -> None:
        self._is_closed = True
        with suppress(StoreError):  # the store may be closed already, or its worker gone
            self._opened.worker.tell("close", self._opened.handle)

    def _call(self, operation: str, *arguments: Any, **waiting: Any) -> Any:
        for attempt in range(MAX_REOPENED + 1):
            opened = self._opened
            try:
                return opened.worker.call(operation, opened.handle, *arguments, **waiting)
            except WorkerGone:
                if attempt == MAX_REOPENED:
                    raise
            self._replace(opened)
        raise AssertionError("unreachable")

    def _replace(self, gone: Opened) -> None:
        """Open the version anew, unless another thread has."""
        with self._reopening:
            if self._opened is not gone:
                return
            opened = self._reopen()
            self._opened = opened
        if self._is_closed:  # meanwhile
            self.close()
