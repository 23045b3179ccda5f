"""One version of a collection in the embedded store: requests to the worker that has it open."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import StoreError
from imret.store.embedded.client import WorkerClient
from imret.store.filter import Filter
from imret.store.types import M, Point, RawPoint, Stats

UPSERT_BATCH = 512  # points in one message to the worker


class EdgeEngine:
    """A version that a worker has open. See `Engine`.

    Args:
        worker: Who has it.
        handle: The number that the worker gave it.
    """

    def __init__(self, worker: WorkerClient, handle: int) -> None:
        self._worker = worker
        self._handle = handle

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

    def optimize(self) -> None:
        self._call("optimize")

    def stats(self) -> Stats:
        points, indexed, disk_bytes = self._call("stats")
        status = "exact scan" if indexed == 0 else "indexed" if indexed >= points else "partly indexed"
        return Stats(points, min(indexed, points), disk_bytes, status, M)

    def ping(self) -> None:
        pass

    def close(self) -> None:
        with suppress(StoreError):  # the store may be closed already, or its worker gone
            self._call("close")

    def _call(self, operation: str, *arguments: Any) -> Any:
        return self._worker.call(operation, self._handle, *arguments)
