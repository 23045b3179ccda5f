"""One version of a collection on a Qdrant server: its requests, and filters and points in Qdrant's terms."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from qdrant_client import models
from qdrant_client.http.exceptions import UnexpectedResponse

from imret.errors import DataError, StoreError
from imret.store.filter import KEYWORD_FIELDS, Condition, Filter, Ids, Match, Range, parse_datetime
from imret.store.placement import Creation, candidates
from imret.store.server.building import wait_until_built
from imret.store.server.connection import Connection, UnreadableError
from imret.store.server.creation import creation_of, to_current
from imret.store.server.marks import Filling
from imret.store.types import HNSW_EF, Point, Progress, RawPoint, Stats

T = TypeVar("T")

UPSERT_BATCH_MIN, UPSERT_BATCH_MAX = 64, 256  # points in one request
LOOKUP_BATCH = 512  # ids in one request
FACET_LIMIT = 1_000
PING_TIMEOUT_S = 2


class ServerEngine:
    """A version that is open. See `Engine`.

    Args:
        connection: To the server.
        name: Of the collection, for errors.
        physical: Of the Qdrant collection.
        filling: Is said of it if it is open to be filled.
        creation: What it is like, as far as that is known.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        physical: str,
        filling: Filling | None = None,
        creation: Creation | None = None,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._name = name
        self._physical = physical
        self._filling = filling
        self._candidates = candidates(creation or Creation())
        self._indexed: set[str] | None = None  # fields, once a filter needs to know

    def upsert(self, ids: list[str], vectors: NDArray[np.float32], payloads: list[dict[str, Any]]) -> None:
        if self._filling is not None:
            self._filling.say()
        # As many requests as may be in flight, unless they would be very small or very large.
        even = -(-len(ids) // self._connection.in_flight)
        size = max(UPSERT_BATCH_MIN, min(UPSERT_BATCH_MAX, even))

        def send(part: slice) -> object:
            points = [
                models.PointStruct(id=id_, vector=row, payload=payload)
                for id_, row, payload in zip(ids[part], vectors[part].tolist(), payloads[part], strict=True)
            ]
            return self._client.upsert(self._physical, points, wait=True)

        self._send_parts("store points", send, len(ids), size)

    def overwrite_payloads(self, ids: list[str], payloads: list[dict[str, Any]]) -> None:
        stored = {point.id for point in self._retrieve(ids, payload=False, vectors=False)}
        missing = [id_ for id_ in ids if id_ not in stored]
        if missing:
            raise DataError(f"collection {self._name!r} holds no point {missing[0]}")

        def send(part: slice) -> object:
            operations: list[models.UpdateOperation] = [
                models.OverwritePayloadOperation(
                    overwrite_payload=models.SetPayload(payload=payload, points=[id_])
                )
                for id_, payload in zip(ids[part], payloads[part], strict=True)
            ]
            return self._client.batch_update_points(self._physical, operations, wait=True)

        self._send_parts("store payloads", send, len(ids), UPSERT_BATCH_MAX)

    def get(self, ids: list[str], vectors: bool) -> list[Point]:
        return self._retrieve(ids, payload=True, vectors=vectors)

    def _retrieve(self, ids: list[str], *, payload: bool, vectors: bool) -> list[Point]:
        points: list[Point] = []
        for start in range(0, len(ids), LOOKUP_BATCH):
            part = ids[start : start + LOOKUP_BATCH]
            records = self._request(
                "look up points",
                lambda part=part: self._client.retrieve(  # type: ignore[misc]
                    self._physical, part, with_payload=payload, with_vectors=vectors
                ),
            )
            points += map(_point, records)
        return points

    def scan(
        self, filter: Filter | None, vectors: bool, batch_size: int, start: str | int | None
    ) -> tuple[list[Point], str | int | None]:
        records, following = self._request(
            "scan",
            lambda: self._client.scroll(
                self._physical,
                scroll_filter=_filter(filter),
                limit=batch_size,
                offset=start,
                with_payload=True,
                with_vectors=vectors,
            ),
        )
        return [_point(record) for record in records], None if following is None else _id(following)

    def inspect(self, batch_size: int, start: str | int | None) -> tuple[list[RawPoint], str | int | None]:
        try:
            records, following = self._connection.request(
                "scan",
                lambda: self._client.scroll(
                    self._physical, limit=batch_size, offset=start, with_payload=True, with_vectors=True
                ),
            )
            rows = [(_id(record.id), record.payload, record.vector) for record in records]
        except UnreadableError:  # null among the numbers, which is NaN
            asked = models.ScrollRequest(limit=batch_size, offset=start, with_payload=True, with_vector=True)
            answer = self._raw("scan", "scroll", asked)
            rows = [(point["id"], point.get("payload"), point.get("vector")) for point in answer["points"]]
            following = answer.get("next_page_offset")
        points = [RawPoint(id_, payload or {}, vector) for id_, payload, vector in rows]
        return points, None if following is None else _id(following)

    def delete(self, ids: Sequence[str | int]) -> None:
        def send(part: slice) -> object:
            return self._client.delete(self._physical, models.PointIdsList(points=list(ids[part])), wait=True)

        self._send_parts("delete points", send, len(ids), LOOKUP_BATCH)

    def search(
        self, vector: NDArray[np.float32], limit: int, filter: Filter | None, exact: bool
    ) -> list[Point]:
        # Without an index nobody knows how few pass, and a walk that goes only where they are finds half.
        exact = exact or not self._has_indexes(filter)
        params = models.SearchParams(
            hnsw_ef=HNSW_EF,
            exact=exact,
            quantization=models.QuantizationSearchParams(
                ignore=exact, rescore=True, oversampling=self._candidates
            ),
            acorn=models.AcornSearchParams(enable=True) if filter else None,
        )
        query, only = vector.tolist(), _filter(filter)
        try:
            hits = self._connection.request(
                "search",
                lambda: self._client.query_points(
                    self._physical,
                    query=query,
                    query_filter=only,
                    search_params=params,
                    limit=limit,
                    with_payload=True,
                ),
            ).points
        except UnreadableError as error:
            asked = models.QueryRequest(query=query, filter=only, params=params, limit=limit)
            scores = [(hit["id"], hit.get("score")) for hit in self._raw("search", "query", asked)["points"]]
            raise self._spoilt([id_ for id_, score in scores if score is None], error) from error
        if spoilt := [hit.id for hit in hits if math.isnan(hit.score)]:
            raise self._spoilt(spoilt, None)
        return [
            Point(str(hit.id), hit.payload or {}, None, max(-1.0, min(1.0, float(hit.score)))) for hit in hits
        ]

    def count(self, filter: Filter | None) -> int:
        return self._request(
            "count",
            lambda: self._client.count(self._physical, count_filter=_filter(filter), exact=True).count,
        )

    def facet(self, field: str, filter: Filter | None) -> dict[str, int]:
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
            if len(hits) < limit:  # as many as the limit may be fewer than there are
                return {str(hit.value): hit.count for hit in hits}
            limit *= 8

    def flush(self) -> None:
        pass  # a write is acknowledged when it is in the server's log

    def needs_optimize(self) -> bool:
        return False  # the server builds while it is filled

    def optimize(
        self, timeout_s: float | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Wait until the server has built what it builds by itself."""
        wait_until_built(
            self._connection,
            self._physical,
            self._name,
            timeout_s=timeout_s,
            on_progress=on_progress,
            on_look=(lambda: None) if self._filling is None else self._filling.say,
        )

    def creation(self) -> Creation:
        return creation_of(self._info())

    def to_current(self, asked: Creation) -> list[str]:
        changed = to_current(self._connection, self._physical, asked)
        self._candidates = candidates(self.creation())
        return changed

    def stats(self) -> Stats:
        info = self._info()
        status = info.status.value
        if info.status == models.CollectionStatus.RED:
            status += f": {info.optimizer_status}"
        # Not `indexed_vectors_count`: it is above 0 where there is no graph at all.
        vectors = info.config.params.vectors
        own = vectors.hnsw_config if isinstance(vectors, models.VectorParams) else None
        m = info.config.hnsw_config.m if own is None or own.m is None else own.m
        return Stats(self.count(None), None, None, status, m)

    def ping(self) -> None:
        nobody = models.Filter(must=[models.HasIdCondition(has_id=[str(uuid.UUID(int=0))])])
        self._connection.request(
            "answer",  # every shard has to
            lambda: self._client.count(self._physical, nobody, exact=True, timeout=PING_TIMEOUT_S),
            patience_s=0.0,
        )

    def close(self) -> None:
        if self._filling is not None:  # the store closes the connection
            self._filling.end()

    def _request(self, what: str, call: Callable[[], T]) -> T:
        """Make a request, and say of an answer that cannot be read what may be done about it."""
        try:
            return self._connection.request(what, call)
        except UnreadableError as error:
            raise StoreError(f"{error}. {self._advice}", public=error.public) from error

    def _raw(self, what: str, route: str, asked: BaseModel) -> Any:
        """Return what REST answers about points, as JSON."""
        answer: dict[str, Any] = self._connection.request(
            what,
            lambda: self._client.http.client.request(
                type_=dict[str, Any],
                method="POST",
                url="/collections/{name}/points/" + route,
                path_params={"name": self._physical},
                json=asked.model_dump(mode="json", exclude_none=True),
            ),
        )
        return answer["result"]

    def _spoilt(self, ids: Sequence[object], error: StoreError | None) -> StoreError:
        """Return what a search is told that met points with which nothing can be compared."""
        if not ids:
            return StoreError(f"{error}. {self._advice}", public=error.public if error else "")
        more = f" and {len(ids) - 1:,} more" if len(ids) > 1 else ""
        what = f"the vector of point {ids[0]}{more} holds NaN, and no search gets past it"
        return StoreError(
            f"collection {self._name!r} at {self._connection.address} cannot be searched: {what}.\n"
            f"Another program stored it. {self._advice}",
            public=f"the collection cannot be searched: {what}. imret collections check removes it.",
        )

    @property
    def _advice(self) -> str:
        command = f"imret collections check {self._name} --db {self._connection.address}"
        return f"Look for what imret did not write: {command} (--remove removes it)"

    def _info(self) -> models.CollectionInfo:
        return self._request("describe a collection", lambda: self._client.get_collection(self._physical))

    def _has_indexes(self, filter: Filter | None) -> bool:
        """Whether every field that a filter asks about is indexed."""
        fields = filter.fields - set(KEYWORD_FIELDS) if filter else set()  # those are in every collection
        if fields and self._indexed is None:
            self._indexed = set(self._info().payload_schema)
        return not fields or fields <= (self._indexed or set())

    def _send_parts(self, what: str, send: Callable[[slice], object], n: int, size: int) -> None:
        parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        self._connection.send_all(what, [lambda part=part: _send_in_halves(send, part) for part in parts])  # type: ignore[misc]


def _send_in_halves(send: Callable[[slice], object], part: slice) -> None:
    """Send a part in one request, or in two or more where that would be too large for who takes it."""
    try:
        send(part)
    except UnexpectedResponse as error:
        # Qdrant takes 32 MB by default, a proxy before it perhaps 1.
        is_too_large = error.status_code == 413 or b"larger than allowed" in error.content
        if not is_too_large or part.stop - part.start < 2:
            raise
        middle = (part.start + part.stop) // 2
        _send_in_halves(send, slice(part.start, middle))
        _send_in_halves(send, slice(middle, part.stop))


def _filter(filter: Filter | None) -> models.Filter | None:
    if not filter:
        return None
    return models.Filter(
        must=[_condition(condition) for condition in filter.must],
        must_not=[_condition(condition) for condition in filter.must_not],
    )


def _condition(condition: Condition) -> models.Condition:
    if isinstance(condition, Ids):
        return models.HasIdCondition(has_id=list(condition.ids))
    if isinstance(condition, Range):
        if condition.is_datetime:
            datetimes = {name: parse_datetime(bound) for name, bound in condition.datetimes().items()}
            return models.FieldCondition(key=condition.field, range=models.DatetimeRange(**datetimes))
        return models.FieldCondition(key=condition.field, range=models.Range(**condition.numbers()))
    return _match(condition)


def _match(match: Match) -> models.Condition:
    texts = [value for value in match.values if isinstance(value, str)]
    numbers = [value for value in match.values if isinstance(value, int)]
    by_type: list[models.Condition] = [
        models.FieldCondition(key=match.field, match=models.MatchAny(any=values))
        for values in (texts, numbers)
        if values
    ]
    return by_type[0] if len(by_type) == 1 else models.Filter(should=by_type)


def _id(id_: object) -> str | int:
    return id_ if isinstance(id_, int) else str(id_)  # a number is none of imret's


def _point(record: models.Record) -> Point:
    # Not a list: none, or several by name, as other programs may store.
    vector = np.asarray(record.vector, dtype=np.float32) if isinstance(record.vector, list) else None
    return Point(str(record.id), record.payload or {}, vector)
