"""The ledger of a version on a Qdrant server: a Qdrant collection `VERSION.units`, made by the first line.

It is searched by nothing, so it has vectors of one number. A version that gets another name or becomes live
keeps what it is called, and so its ledger; one that is deleted takes it along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qdrant_client import models

from imret.errors import StoreError, StoreUnavailable
from imret.escape import escape_undecodable
from imret.store.ledger import UnitLine, line_id, line_of
from imret.store.server.connection import Connection, ReplacedError

_BATCH = 256


def place_of(physical: str) -> str:
    """Return what the ledger of a version is called."""
    return f"{physical}.units"


def drop(connection: Connection, physical: str) -> None:
    """Remove the ledger of a version, if there is one."""
    connection.request(
        "delete what is known of units", lambda: connection.client.delete_collection(place_of(physical))
    )


class QdrantLedger:
    """See `imret.store.ledger.Ledger`.

    Args:
        connection: To the server.
        physical: The version.
    """

    def __init__(self, connection: Connection, physical: str) -> None:
        self._connection, self._client = connection, connection.client
        self._physical, self._place = physical, place_of(physical)

    def get(self, source: str, units: Sequence[str]) -> dict[str, UnitLine]:
        found: dict[str, UnitLine] = {}
        for start in range(0, len(units), _BATCH):
            ids = [line_id(source, unit) for unit in units[start : start + _BATCH]]
            with self._if_made():
                records = self._connection.request(
                    "look up units",
                    lambda ids=ids: self._client.retrieve(self._place, ids, with_payload=True),  # type: ignore[misc]
                )
                lines = (line_of(record.payload) for record in records)
                found |= {line.unit: line for line in lines if line is not None}
        return found

    def scan(self, source: str) -> Iterator[list[UnitLine]]:
        only, start = _of_source(source), None
        with self._if_made():
            while True:
                records, start = self._connection.request(
                    "look up units",
                    lambda start=start: self._client.scroll(  # type: ignore[misc]
                        self._place, scroll_filter=only, limit=_BATCH, offset=start, with_payload=True
                    ),
                )
                lines = [line for record in records if (line := line_of(record.payload)) is not None]
                if lines:
                    yield lines
                if start is None:
                    return

    def put(self, lines: Sequence[UnitLine]) -> None:
        for start in range(0, len(lines), _BATCH):
            points = [
                models.PointStruct(id=line.id, vector=[1.0], payload=line.as_dict())
                for line in lines[start : start + _BATCH]
            ]
            if not self._is_stored(points):
                self._make()
                self._store(points)

    def _is_stored(self, points: list[models.PointStruct]) -> bool:
        """Store points, and return whether there was a place for them."""
        with self._if_made():
            self._store(points)
            return True
        return False  # type: ignore[unreachable]  # where the block's error has passed

    def _store(self, points: list[models.PointStruct]) -> None:
        self._connection.request(
            "note what is done of units", lambda: self._client.upsert(self._place, points, wait=True)
        )

    def forget(self, source: str, units: Sequence[str] | None = None) -> None:
        selectors: list[Any] = [models.FilterSelector(filter=_of_source(source))]
        if units is not None:
            ids = [line_id(source, unit) for unit in units]
            batches = (ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH))
            selectors = [models.PointIdsList(points=[*batch]) for batch in batches]
        with self._if_made():
            for selector in selectors:
                self._connection.request(
                    "forget units",
                    lambda selector=selector: self._client.delete(self._place, selector, wait=True),  # type: ignore[misc]
                )

    @contextmanager
    def _if_made(self) -> Iterator[None]:
        """Have an error pass where nobody has made the Qdrant collection yet."""
        try:
            yield
        except ReplacedError:
            pass
        except StoreUnavailable:
            raise
        except StoreError:
            if self._exists():
                raise

    def _exists(self) -> bool:
        listed = self._connection.request("list its collections", self._client.get_collections)
        return self._place in {one.name for one in listed.collections}

    def _make(self) -> None:
        """Make the Qdrant collection, with as many replicas as the version has.

        Raises:
            StoreError: If there is no such version any more, say.
        """
        info = self._connection.request(
            "describe a collection", lambda: self._client.get_collection(self._physical)
        )
        replicas = info.config.params.replication_factor

        def create() -> bool:
            return self._client.create_collection(
                self._place,
                vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT),
                shard_number=1,
                replication_factor=replicas,
                on_disk_payload=True,
                metadata={"imret_units_of": self._physical},
            )

        try:
            self._connection.request(f"make the collection {self._place!r}", create)
        except StoreUnavailable:
            raise
        except StoreError:  # another program was first, or an earlier try whose answer got lost
            if not self._exists():
                raise
        self._connection.request(
            "index 'source'",
            lambda: self._client.create_payload_index(
                self._place, "source", field_schema=models.PayloadSchemaType.KEYWORD, wait=True
            ),
        )


def _of_source(source: str) -> models.Filter:
    match = models.MatchValue(value=escape_undecodable(source))
    return models.Filter(must=[models.FieldCondition(key="source", match=match)])
