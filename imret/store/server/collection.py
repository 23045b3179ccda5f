"""A collection of a Qdrant server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from imret.errors import DataError, StoreError
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
from imret.store.filter import KEYWORD_FIELDS, Condition, Filter, Ids, Match, Range, parse_moment
from imret.store.server.connection import T

if TYPE_CHECKING:
    from imret.store.server.store import ServerStore
from imret.store.types import HNSW_EF, OVERSAMPLING, Identity, Point, Stats

UPSERT_BATCH_MIN, UPSERT_BATCH_MAX = 64, 256  # points in one request


LOOKUP_BATCH = 512  # ids in one request


FACET_LIMIT = 1_000


class ServerCollection:
    """One version of a collection on a server. See `Collection` for what its methods promise."""

    def __init__(self, store: ServerStore, name: str, identity: Identity, physical: str) -> None:
        self.name = name
        self.version = physical
        self.identity = identity
        self._store = store
        self._client = store._client
        self._physical = physical
        self._indexed: set[str] | None = None  # fields, once a filter needs to know
        self._closed = False

    def upsert(
        self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[Mapping[str, Any]]
    ) -> None:
        ids = check_ids(ids)
        rows = check_vectors(vectors, (len(ids), self.identity.dim))
        payloads = check_payloads(payloads, len(ids))
        # As many requests as may be in flight, unless they would be very small or very large.
        even = -(-len(ids) // self._store._in_flight)
        size = max(UPSERT_BATCH_MIN, min(UPSERT_BATCH_MAX, even))

        def send(part: slice) -> object:
            points = [
                models.PointStruct(id=one, vector=row, payload=payload)
                for one, row, payload in zip(ids[part], rows[part].tolist(), payloads[part], strict=True)
            ]
            return self._client.upsert(self._physical, points, wait=True)

        self._send_parts("store points", send, len(ids), size)

    def overwrite_payloads(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> None:
        ids = check_ids(ids)
        payloads = check_payloads(payloads, len(ids))
        found = self._get(ids, payload=False, vectors=False)
        missing = [one for one in ids if one not in found]
        if missing:
            raise DataError(f"collection {self.name!r} holds no point {missing[0]}")

        def send(part: slice) -> object:
            operations: list[models.UpdateOperation] = [
                models.OverwritePayloadOperation(
                    overwrite_payload=models.SetPayload(payload=payload, points=[one])
                )
                for one, payload in zip(ids[part], payloads[part], strict=True)
            ]
            return self._client.batch_update_points(self._physical, operations, wait=True)

        self._send_parts("store payloads", send, len(ids), UPSERT_BATCH_MAX)

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Point]:
        return self._get(check_ids(ids), payload=True, vectors=vectors)

    def _get(self, ids: list[str], *, payload: bool, vectors: bool) -> dict[str, Point]:
        found: dict[str, Point] = {}
        for start in range(0, len(ids), LOOKUP_BATCH):
            part = ids[start : start + LOOKUP_BATCH]
            records = self._request(
                "look up points",
                lambda part=part: self._client.retrieve(  # type: ignore[misc]
                    self._physical, part, with_payload=payload, with_vectors=vectors
                ),
            )
            found.update((str(record.id), _point(record)) for record in records)
        return found

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
        self, filter: Filter | None, vectors: bool, batch_size: int, start: str | None
    ) -> Iterator[list[Point]]:
        offset: Any = start
        while True:
            records, offset = self._request(
                "scan",
                lambda offset=offset: self._client.scroll(  # type: ignore[misc]
                    self._physical,
                    scroll_filter=_filter(filter),
                    limit=batch_size,
                    offset=offset,
                    with_payload=True,
                    with_vectors=vectors,
                ),
            )
            if records:
                yield [_point(record) for record in records]
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        ids = check_ids(ids)

        def send(part: slice) -> object:
            return self._client.delete(self._physical, models.PointIdsList(points=list(ids[part])), wait=True)

        self._send_parts("delete points", send, len(ids), LOOKUP_BATCH)

    def search(
        self, vector: NDArray[np.float32], *, limit: int, filter: Filter | None = None, exact: bool = False
    ) -> list[Point]:
        query = check_vectors(vector, (self.identity.dim,)).tolist()
        # Without an index nobody knows how few pass, and a walk that goes only where they are finds half.
        exact = exact or not self._has_indexes(filter)
        quantization = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
        params = models.SearchParams(
            hnsw_ef=HNSW_EF,
            exact=exact,
            quantization=quantization,
            acorn=models.AcornSearchParams(enable=True) if filter else None,
        )

        def fetch(n: int) -> list[Point]:
            answer = self._request(
                "search",
                lambda: self._client.query_points(
                    self._physical,
                    query=query,
                    query_filter=_filter(filter),
                    search_params=params,
                    limit=n,
                    with_payload=True,
                ),
            )
            return [
                Point(str(hit.id), hit.payload or {}, None, max(-1.0, min(1.0, float(hit.score))))
                for hit in answer.points
            ]

        return in_rank_order(fetch, limit)

    def count(self, filter: Filter | None = None) -> int:
        return self._request(
            "count",
            lambda: self._client.count(self._physical, count_filter=_filter(filter), exact=True).count,
        )

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        if field not in KEYWORD_FIELDS:
            return by_frequency(count_values(self.scan(filter), field))
        limit = FACET_LIMIT
        while True:
            hits = self._request(
                "count values",
                lambda limit=limit: (
                    self._client.facet(  # type: ignore[misc]
                        self._physical, field, facet_filter=_filter(filter), limit=limit, exact=True
                    ).hits
                ),
            )
            if len(hits) < limit:  # as many as asked for may be fewer than there are
                return by_frequency({str(hit.value): hit.count for hit in hits})
            limit *= 8

    def flush(self) -> None:
        pass  # a write is acknowledged when it is in the server's log

    def index_lags(self) -> bool:
        return False  # the server builds while it is filled

    def optimize(self) -> None:
        """Wait until the server has built what it builds by itself."""
        pause = 0.05
        while True:
            info = self._info()
            if info.status != models.CollectionStatus.YELLOW:  # grey waits for the next write, not for us
                break
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)
        if info.status == models.CollectionStatus.RED:
            raise StoreError(
                f"Qdrant at {self._store.address} failed to index {self._physical!r}: {info.optimizer_status}"
            )

    def stats(self) -> Stats:
        info, points = self._info(), self.count()
        indexed = min(info.indexed_vectors_count or 0, points)
        status = index_status(points, indexed)
        if info.status == models.CollectionStatus.YELLOW:
            status = "indexing"
        elif info.status == models.CollectionStatus.RED:
            status = f"failed: {info.optimizer_status}"
        return Stats(points, indexed, None, status)

    def close(self) -> None:
        self._closed = True

    def _info(self) -> models.CollectionInfo:
        return self._request("describe a collection", lambda: self._client.get_collection(self._physical))

    def _has_indexes(self, only: Filter | None) -> bool:
        """Whether every field that a filter asks about is indexed."""
        asked = only.fields - set(KEYWORD_FIELDS) if only else set()  # those are in every collection
        if asked and self._indexed is None:
            self._indexed = set(self._info().payload_schema)
        return not asked or asked <= (self._indexed or set())

    def _send_parts(self, what: str, send: Callable[[slice], object], n: int, size: int) -> None:
        self._check_open()
        parts = [slice(start, start + size) for start in range(0, n, size)]
        self._store.send_all(what, [lambda part=part: send(part) for part in parts])  # type: ignore[misc]

    def _request(self, what: str, call: Callable[[], T]) -> T:
        self._check_open()
        return self._store.request(what, call)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"this handle of collection {self.name!r} is closed")


def _filter(only: Filter | None) -> models.Filter | None:
    if not only:
        return None
    return models.Filter(
        must=[_condition(one) for one in only.must],
        must_not=[_condition(one) for one in only.must_not],
    )


def _condition(one: Condition) -> models.Condition:
    if isinstance(one, Ids):
        return models.HasIdCondition(has_id=list(one.ids))
    if isinstance(one, Range):
        if one.of_moments:
            moments = {name: parse_moment(bound) for name, bound in one.moments().items()}
            return models.FieldCondition(key=one.field, range=models.DatetimeRange(**moments))
        return models.FieldCondition(key=one.field, range=models.Range(**one.numbers()))
    return _match(one)


def _match(match: Match) -> models.Condition:
    texts = [value for value in match.values if isinstance(value, str)]
    numbers = [value for value in match.values if isinstance(value, int)]
    by_type: list[models.Condition] = []
    if texts:
        by_type.append(models.FieldCondition(key=match.field, match=models.MatchAny(any=texts)))
    if numbers:
        by_type.append(models.FieldCondition(key=match.field, match=models.MatchAny(any=numbers)))
    return by_type[0] if len(by_type) == 1 else models.Filter(should=by_type)


def _point(record: models.Record) -> Point:
    vector = None if record.vector is None else np.asarray(record.vector, dtype=np.float32)
    return Point(str(record.id), record.payload or {}, vector)
