"""One collection kept open, with its encoder and its cached facets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.datasets.phrases import read_phrases
from imret.errors import StoreError
from imret.store import Collection, Filter, Identity, Point, Stats
from imret.store.sanitize import mended
from imret.web.metrics import Telemetry, stage
from imret.web.pool.batching import BatchingEncoder

FACETS_S = 2.0  # how long counts of a whole collection are believed


HANDLE_S = 60.0  # how long what was learnt of a collection (its spread of scores) is believed


class PooledCollection:
    """A version of a collection, open, and its encoder.

    Attributes:
        name: Of the collection.
        version: Which of its versions.
        encoder: The collection's.
    """

    def __init__(
        self, name: str, collection: Collection, encoder: BatchingEncoder, telemetry: Telemetry
    ) -> None:
        self.name, self.version, self.encoder = name, collection.version, encoder
        self._collection, self._telemetry = collection, telemetry
        self._view = _View(collection, telemetry)
        self.used = time.monotonic()
        self.users = 1  # the one that keeps it open for the next request

    @property
    def identity(self) -> Identity:
        """Which encoder made the collection."""
        return self._collection.identity

    @property
    def collection(self) -> Collection:
        """The collection, to ask; closing it does nothing."""
        if time.monotonic() - self._view.since > HANDLE_S:
            self._view = _View(self._collection, self._telemetry)
        return self._view

    def load(self, *, pictures: bool = False) -> None:
        """Load the text tower and what every query needs, so that the first query does not wait for it.

        Args:
            pictures: Load the image tower too.
        """
        self.encoder.submit(["a photo."]).result()
        self.encoder.encode_bank(read_phrases())
        if pictures:
            size = self.encoder.preprocess.size
            self.encoder.encode_pixels(np.zeros((1, *size, 3), dtype=np.uint8))

    def close(self) -> None:
        """Release the collection."""
        with contextlib.suppress(StoreError):
            self._collection.close()


class _View:
    """A collection whose calls are timed, whose points are mended, and whose counts are kept for a moment.

    See `Collection`. Every search asks which categories exist, which on a large collection costs more than
    the search.
    """

    def __init__(self, collection: Collection, telemetry: Telemetry) -> None:
        self.name, self.identity, self.version = collection.name, collection.identity, collection.version
        self._inner, self._telemetry = collection, telemetry
        self._facets: dict[str, tuple[float, dict[str, int]]] = {}
        self.since = time.monotonic()

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Point]:
        with self._timed():
            found = self._inner.get(ids, vectors=vectors)
        return {one: mended(point) for one, point in found.items()}

    def scan(
        self,
        filter: Filter | None = None,
        *,
        vectors: bool = False,
        batch_size: int = 256,
        start: str | None = None,
    ) -> Iterator[list[Point]]:
        batches = self._inner.scan(filter, vectors=vectors, batch_size=batch_size, start=start)
        while True:
            with self._timed():
                batch = next(batches, None)
            if batch is None:
                return
            yield [mended(point) for point in batch]

    def search(
        self, vector: NDArray[np.float32], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[Point]:
        with self._timed():
            found = self._inner.search(vector, limit=limit, filter=filter, exact=exact)
        return [mended(point) for point in found]

    def count(self, filter: Filter | None = None) -> int:
        with self._timed():
            return self._inner.count(filter)

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        if filter:
            with self._timed():
                return self._inner.facet(field, filter)
        counted, values = self._facets.get(field, (0.0, {}))
        if time.monotonic() - counted > FACETS_S:
            with self._timed():
                values = self._inner.facet(field)
            self._facets[field] = (time.monotonic(), values)
        return dict(values)

    def stats(self) -> Stats:
        with self._timed():
            return self._inner.stats()

    def close(self) -> None:
        pass

    def upsert(
        self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[Mapping[str, Any]]
    ) -> None:
        self._inner.upsert(ids, vectors, payloads)

    def overwrite_payloads(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> None:
        self._inner.overwrite_payloads(ids, payloads)

    def delete(self, ids: Sequence[str]) -> None:
        self._inner.delete(ids)

    def flush(self) -> None:
        self._inner.flush()

    def index_lags(self) -> bool:
        return self._inner.index_lags()

    def optimize(self) -> None:
        self._inner.optimize()

    def _timed(self) -> contextlib.AbstractContextManager[None]:
        return stage(self._telemetry, "store")
