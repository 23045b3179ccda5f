"""One collection kept open, with its encoder and its cached facets."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from imret.abandon import check_wanted
from imret.datasets.phrases import read_phrases
from imret.errors import StoreError
from imret.retrieval.prompts import Names
from imret.store import Collection, Filter, Identity, Point
from imret.store.sanitize import sanitize_payload
from imret.web.metrics import Telemetry, stage
from imret.web.pool.batching import BatchingEncoder

T = TypeVar("T")

FACETS_S = 2.0  # how long counts of a whole collection are believed
HANDLE_S = 60.0  # how long what was learnt of a collection (its spread of scores) is believed


class PooledCollection:
    """A version of a collection, open, and its encoder.

    Attributes:
        name: Of the collection.
        version: Which of its versions.
        encoder: The collection's.
        names: What its categories are called, by what is stored with it.
        names_mark: Of that, in the store; None before it was looked for.
        opened: When, of the monotonic clock.
        used: When last, of that clock.
        users: Who have it: the one that keeps it open for the next request, and requests.
    """

    def __init__(
        self, name: str, collection: Collection, encoder: BatchingEncoder, telemetry: Telemetry
    ) -> None:
        self.name, self.version, self.encoder = name, collection.version, encoder
        self.names: Names = {}
        self.names_mark: str | None = None
        self._collection, self._telemetry = collection, telemetry
        self._served = _ServedCollection(collection, telemetry)
        self.opened = self.used = time.monotonic()
        self.users = 1  # the one that keeps it open for the next request

    @property
    def identity(self) -> Identity:
        """Which encoder made the collection."""
        return self._collection.identity

    @property
    def collection(self) -> Collection:
        """The collection, to ask; closing it does nothing."""
        if time.monotonic() - self._served.since > HANDLE_S:
            self._served = _ServedCollection(self._collection, self._telemetry)
        return cast(Collection, self._served)

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

    def ping(self) -> None:
        """Raise StoreUnavailable if its store would not answer a question this moment."""
        self._collection.ping()

    def close(self) -> None:
        """Release the collection."""
        with contextlib.suppress(StoreError):
            self._collection.close()


class _ServedCollection:
    """A `Collection` whose calls are timed, whose points are sanitized, and whose facets are cached.

    No call begins for a request whose client has left.

    Every search asks which categories exist, which on a large collection costs more than the search.
    """

    def __init__(self, collection: Collection, telemetry: Telemetry) -> None:
        self._inner = collection
        self._telemetry = telemetry
        self._facets: dict[str, tuple[float, dict[str, int]]] = {}
        self._n_images = 0
        self.since = time.monotonic()

    def _timed(self, call: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> T:
            check_wanted()
            with stage(self._telemetry, "store"):
                return call(*arguments, **options)

        return timed

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return self._timed(attribute) if callable(attribute) else attribute

    def get(self, ids: Sequence[str], **options: Any) -> dict[str, Point]:
        points = self._timed(self._inner.get)(ids, **options)
        return {id: sanitize_payload(point) for id, point in points.items()}

    def scan(self, filter: Filter | None = None, **options: Any) -> Iterator[list[Point]]:
        batches = self._inner.scan(filter, **options)
        while (batch := self._timed(next)(batches, None)) is not None:
            yield [sanitize_payload(point) for point in batch]

    def search(self, vector: NDArray[np.float32], **options: Any) -> list[Point]:
        return [sanitize_payload(point) for point in self._timed(self._inner.search)(vector, **options)]

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        facet = self._timed(self._inner.facet)
        if filter:
            return facet(field, filter)
        counted, counts = self._facets.get(field, (0.0, {}))
        if time.monotonic() - counted > FACETS_S:
            counts = facet(field)
            self._facets[field] = (time.monotonic(), counts)
        return dict(counts)

    def count(self, filter: Filter | None = None) -> int:
        n_images = self._timed(self._inner.count)(filter)
        if not filter and n_images != self._n_images:
            # Beside it, older counts of categories would tell a wrong number of pictures that have none.
            self._facets.clear()
            self._n_images = n_images
        return n_images

    def close(self) -> None:
        """Do nothing: other requests use it, too."""
