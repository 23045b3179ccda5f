"""A collection of the embedded store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import StoreError
from imret.store.collection import (
    by_frequency,
    check_ids,
    check_payloads,
    check_start,
    check_vectors,
    count_values,
    in_rank_order,
    index_status,
)
from imret.store.embedded.client import Line
from imret.store.filter import KEYWORD_FIELDS, Filter
from imret.store.types import Identity, Point, Stats

UPSERT_BATCH = 512  # points in one message to the worker


class EdgeCollection:
    """One version of a collection in a folder. See `Collection` for what its methods promise."""

    def __init__(self, name: str, version: str, identity: Identity, handle: int, worker: Line) -> None:
        self.name = name
        self.version = version
        self.identity = identity
        self._handle = handle
        self._worker = worker
        self._closed = False

    def upsert(
        self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[Mapping[str, Any]]
    ) -> None:
        ids = check_ids(ids)
        rows = check_vectors(vectors, (len(ids), self.identity.dim))
        payloads = check_payloads(payloads, len(ids))
        for start in range(0, len(ids), UPSERT_BATCH):
            part = slice(start, start + UPSERT_BATCH)
            self._call("upsert", ids[part], rows[part], payloads[part])

    def overwrite_payloads(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> None:
        ids = check_ids(ids)
        self._call("overwrite_payloads", ids, check_payloads(payloads, len(ids)))

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Point]:
        return {row[0]: Point(*row) for row in self._call("get", check_ids(ids), vectors)}

    def scan(
        self,
        filter: Filter | None = None,
        *,
        vectors: bool = False,
        batch_size: int = 256,
        start: str | None = None,
    ) -> Iterator[list[Point]]:
        return self._scan(filter, vectors, batch_size, check_start(start))

    def _scan(
        self, filter: Filter | None, vectors: bool, batch_size: int, offset: str | None
    ) -> Iterator[list[Point]]:
        while True:
            rows, offset = self._call("scan", filter, vectors, batch_size, offset)
            if rows:
                yield [Point(*row) for row in rows]
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        self._call("delete", check_ids(ids))

    def search(
        self, vector: NDArray[np.float32], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[Point]:
        query = check_vectors(vector, (self.identity.dim,))
        return in_rank_order(
            lambda n: [Point(*row) for row in self._call("search", query, n, filter, exact)], limit
        )

    def count(self, filter: Filter | None = None) -> int:
        return int(self._call("count", filter))

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        if field not in KEYWORD_FIELDS:
            return by_frequency(count_values(self.scan(filter), field))
        return by_frequency(self._call("facet", field, filter))

    def flush(self) -> None:
        self._call("flush")

    def index_lags(self) -> bool:
        return bool(self._call("index_lags"))

    def optimize(self) -> None:
        self._call("optimize")

    def stats(self) -> Stats:
        points, indexed, disk_bytes = self._call("stats")
        return Stats(points, min(indexed, points), disk_bytes, index_status(points, indexed))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with suppress(StoreError):  # the store may be closed already, or its worker gone
                self._worker.call("close", self._handle)

    def _call(self, operation: str, *arguments: Any) -> Any:
        if self._closed:
            raise StoreError(f"this handle of collection {self.name!r} is closed")
        return self._worker.call(operation, self._handle, *arguments)
