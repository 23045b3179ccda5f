"""A collection: what is checked, ordered and counted alike, whichever engine keeps the points.

The checks run before an engine sees anything, because an engine's own refusal may come too late: Qdrant
Edge keeps an arbitrary part of a batch that it refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.store.filter import (
    DATETIME_FIELDS,
    INTEGER_FIELDS,
    KEYWORD_FIELDS,
    Filter,
    check_id,
    check_scalar,
    parse_datetime,
)
from imret.store.rank_order import in_rank_order
from imret.store.types import Identity, Point, RawPoint, Stats

if TYPE_CHECKING:
    from imret.store.protocol import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Engine(Protocol):
    """One open version as an engine keeps it. Its arguments are checked already, its answers are raw.

    Safe to use from many threads. See `Collection` for what each call means.
    """

    def upsert(
        self, ids: list[str], vectors: NDArray[np.float32], payloads: list[dict[str, Any]]
    ) -> None: ...

    def overwrite_payloads(self, ids: list[str], payloads: list[dict[str, Any]]) -> None: ...

    def get(self, ids: list[str], vectors: bool) -> list[Point]: ...

    def scan(
        self, filter: Filter | None, vectors: bool, batch_size: int, start: str | int | None
    ) -> tuple[list[Point], str | int | None]:
        """Return one batch, and the id that the next begins at."""

    def inspect(self, batch_size: int, start: str | int | None) -> tuple[list[RawPoint], str | int | None]:
        """Return one batch as it lies there, and the id that the next begins at."""

    def delete(self, ids: Sequence[str | int]) -> None: ...

    def search(
        self, vector: NDArray[np.float32], limit: int, filter: Filter | None, exact: bool
    ) -> list[Point]:
        """Return the best by score; equal scores in any order."""

    def count(self, filter: Filter | None) -> int: ...

    def facet(self, field: str, filter: Filter | None) -> dict[str, int]:
        """Return the exact number of points for each value of a field of `KEYWORD_FIELDS`, in any order."""

    def flush(self) -> None: ...

    def needs_optimize(self) -> bool: ...

    def optimize(self) -> None: ...

    def stats(self) -> Stats: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


class Collection:
    """One version of a collection. Its vectors all come from one encoder. Safe to use from many threads.

    Every method may raise StoreUnavailable (the engine is gone) and StoreError (it refused).

    Attributes:
        name: Of the collection.
        version: Names the version that this handle has open, live or not, as `Store.version` does.
        identity: The encoder.
        kept: What those who use it keep with it; let go when it is closed.
        store: That it was opened from, which has its documents; None for a handle that no store gave.
    """

    def __init__(
        self, name: str, version: str, identity: Identity, engine: Engine, store: Store | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.identity = identity
        self.store = store
        self._engine = engine
        self._closed = False
        self.kept: dict[str, Any] = {}

    def upsert(
        self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[Mapping[str, Any]]
    ) -> None:
        """Store points, replacing those with the same ids.

        When it returns, the points survive the death of every process; `flush` adds power cuts. When it
        raises StoreUnavailable some of them may be stored, each of them whole.

        Args:
            ids: n different UUIDs in canonical form.
            vectors: (n, dim) float, finite.
            payloads: n flat mappings to str, int of 64 bits or finite float (kept to 15 digits); no bool,
                no None. `meta` alone is such a mapping itself. `INTEGER_FIELDS` hold only int,
                `DATETIME_FIELDS` only RFC 3339.

        Raises:
            ValueError: If a point is not like that; then none was stored.
            TypeError: If a payload value is of another type; then none was stored.
        """
        ids = check_ids(ids)
        rows = check_vectors(vectors, (len(ids), self.identity.dim))
        self._open.upsert(ids, rows, check_payloads(payloads, len(ids)))

    def overwrite_payloads(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Replace whole payloads and keep the vectors.

        Raises:
            DataError: If a point does not exist; then none was changed.
        """
        ids = check_ids(ids)
        self._open.overwrite_payloads(ids, check_payloads(payloads, len(ids)))

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Point]:
        """Return the points that exist among `ids`, by id."""
        return {point.id: point for point in self._open.get(check_ids(ids), vectors)}

    def scan(
        self,
        filter: Filter | None = None,
        *,
        vectors: bool = False,
        batch_size: int = 256,
        start: str | None = None,
    ) -> Iterator[list[Point]]:
        """Yield every point once, in order of id, in batches; memory stays at one batch.

        Points may be deleted or changed while it runs. One added meanwhile may be left out.

        Args:
            filter: Only points that pass it.
            vectors: Give the points their vectors.
            batch_size: Points of a batch, at most.
            start: Leave out the points whose id comes before this one; a point of this id need not exist.

        Raises:
            ValueError: If `start` is no UUID in canonical form, or a batch would have no points.
        """
        start = check_start(start)
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        if filter is not None and (filter := filter.reduced()) is None:
            return iter(())
        return self._scan(filter, vectors, batch_size, start)

    def _scan(
        self, filter: Filter | None, vectors: bool, batch_size: int, start: str | int | None
    ) -> Iterator[list[Point]]:
        while True:
            points, start = self._open.scan(filter, vectors, batch_size, start)
            if points:
                yield points
            if start is None:
                return

    def inspect(self, *, batch_size: int = 256) -> Iterator[list[RawPoint]]:
        """Yield every point as it lies there, in batches, also such as nothing else here can read."""
        start: str | int | None = None
        while True:
            points, start = self._open.inspect(batch_size, start)
            if points:
                yield points
            if start is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points; ids that do not exist are no error."""
        self._open.delete(check_ids(ids))

    def delete_raw(self, points: Sequence[RawPoint]) -> None:
        """Delete points that `inspect` gave, also those whose ids are numbers."""
        self._open.delete([point.id for point in points])

    def search(
        self, vector: NDArray[np.float32], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[Point]:
        """Return the points nearest by cosine, best first, equal scores by id.

        Args:
            vector: (dim,) float, finite.
            limit: Points at most, >= 1.
            filter: Only points that pass it.
            exact: Compare with every vector rather than walk the index: slower, recall 1. A filter on a
                field that has no index makes every search one.
        """
        query = check_vectors(vector, (self.identity.dim,))
        if filter is not None and (filter := filter.reduced()) is None:
            return in_rank_order(lambda _: [], limit)
        return in_rank_order(lambda n: self._open.search(query, n, filter, exact), limit)

    def count(self, filter: Filter | None = None) -> int:
        """Return the exact number of points."""
        if filter is not None and (filter := filter.reduced()) is None:
            return 0
        return self._open.count(filter)

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        """Return every value of a field with its exact number of points, most frequent first, then by value.

        Fast for `KEYWORD_FIELDS`; any other field is counted by a scan.
        """
        if filter is not None and (filter := filter.reduced()) is None:
            return {}
        if field in KEYWORD_FIELDS:
            return by_frequency(self._open.facet(field, filter))
        return by_frequency(count_values(self.scan(filter), field))

    def flush(self) -> None:
        """Make everything stored so far survive a power cut."""
        self._open.flush()

    def needs_optimize(self) -> bool:
        """Return whether whoever fills the collection should `optimize` now, and not at the end only.

        An embedded store's engine keeps what has no index in memory, and scans it at every search.
        """
        return self._open.needs_optimize()

    def optimize(self) -> None:
        """Build the vector index over what is not in it yet; returns when it is built."""
        self._open.optimize()

    def stats(self) -> Stats:
        """Return numbers for people to read."""
        return self._open.stats()

    def ping(self) -> None:
        """Raise StoreUnavailable if a question would not be answered this moment; waits for nothing.

        For whoever reports on it. An embedded store's process comes back with the next question, so there it
        always returns.
        """
        self._open.ping()

    def close(self) -> None:
        """Release this handle; the store stays open."""
        self.kept.clear()
        if not self._closed:
            self._closed = True
            self._engine.close()

    @property
    def _open(self) -> Engine:
        if self._closed:
            raise StoreError(f"this handle of collection {self.name!r} is closed")
        return self._engine


def check_name(name: str) -> str:
    """Return a collection's name if it can be one.

    Raises:
        DataError: If not; a name becomes a folder and a part of a URL.
    """
    if not is_name(name):
        raise DataError(
            f"{name!r} cannot name a collection. Use 1 to 100 letters, digits, '.', '_' and '-', "
            "with a letter or digit first."
        )
    return name


def changed_meanwhile(name: str, address: str) -> ChangedMeanwhile:
    """Return the error for a collection whose state is not the one that a program has begun with."""
    return ChangedMeanwhile(
        f"another program has changed the collection {name!r} of {address!r} meanwhile. "
        "Run the command again.",
        public=f"another program has changed the collection {name!r} meanwhile.",
    )


def is_name(name: str) -> bool:
    """Whether a text can name a collection."""
    return _NAME.fullmatch(name) is not None


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return ids as a list.

    Raises:
        ValueError: If one is no UUID in canonical form (lower case, with hyphens), or appears twice.
    """
    for id_ in ids:
        check_id(id_)
    if len(set(ids)) != len(ids):
        raise ValueError("the ids of one call must differ")
    return list(ids)


def check_start(start: str | None) -> str | None:
    """Return the id that a scan begins at.

    Raises:
        ValueError: If it is no UUID in canonical form.
    """
    if start is not None:
        check_id(start)
    return start


def check_payloads(payloads: Sequence[Mapping[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return n payloads as plain dicts.

    Raises:
        ValueError: If their number, a float (NaN, infinite), an int (over 64 bits), a text (lone
            surrogates, which are no Unicode) or a datetime is wrong.
        TypeError: If a value is no str, int or float, or not of its field's kind.
    """
    if len(payloads) != n:
        raise ValueError(f"{n} ids but {len(payloads)} payloads")
    for payload in payloads:
        for key, value in payload.items():
            if not isinstance(key, str) or not key:
                raise TypeError(f"a payload key is a text of at least one character, not {key!r}")
            check_scalar(key, (str,), "payload key")
            types = (
                (int,) if key in INTEGER_FIELDS else (str,) if key in DATETIME_FIELDS else (str, int, float)
            )
            if key == "meta" and isinstance(value, Mapping):
                for name, one in value.items():
                    check_scalar(name, (str,), "key in the payload field 'meta'")
                    check_scalar(one, (str, int, float), f"payload field 'meta', {name!r}")
                continue
            check_scalar(value, types, f"payload field {key!r}")
            if key in DATETIME_FIELDS:
                parse_datetime(value)
    return [dict(payload) for payload in payloads]


def check_vectors(vectors: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return vectors as contiguous float32.

    Raises:
        ValueError: If the shape is another, or a number is not finite.
    """
    array = np.asarray(vectors)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(f"expected vectors of shape {shape} and floats, got {array.shape} of {array.dtype}")
    if not np.isfinite(array).all():
        # NaN compares with nothing: such a point would be stored, and never found.
        raise ValueError("a vector holds NaN or infinity")
    # Engines normalise in float32: beyond this, squares overflow there. Unit vectors are far from it.
    if array.size and float(np.abs(array).max()) > 1e15:
        raise ValueError("a vector holds a number beyond 1e15")
    return np.ascontiguousarray(array, dtype=np.float32)


def count_values(points: Iterator[list[Point]], field: str) -> dict[str, int]:
    """Return how often each value of a payload field occurs, unordered."""
    counts: dict[str, int] = {}
    for batch in points:
        for point in batch:
            if field in point.payload:
                value = str(point.payload[field])
                counts[value] = counts.get(value, 0) + 1
    return counts


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts with the most frequent first, then by value.

    Without those of zero: Qdrant still lists a value after its last point is gone.
    """
    existing = ((value, n) for value, n in counts.items() if n)
    return dict(sorted(existing, key=lambda pair: (-pair[1], pair[0])))
