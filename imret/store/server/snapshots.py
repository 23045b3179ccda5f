"""The shards of a collection of a Qdrant server as files: their snapshots, from whichever node has them.

A node makes snapshots of the shards that it has itself, on its own disk, and none of others'. Hides who has
which, and removes from the nodes what was made there. REST alone, as gRPC carries no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from imret.errors import DataError, StoreError, some_of
from imret.store.exported_file import check_space
from imret.store.server.connection import REQUEST_TIMEOUT_S, Connection, ReplacedError

MAKING_TIMEOUT_S = 3_600.0  # for a node to write a snapshot of a shard
_CHUNK_BYTES = 1 << 20
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class FetchedShard:
    """A shard's snapshot.

    Attributes:
        shard: Its number.
        of: How many shards the collection has.
        file: Where it was fetched to.
    """

    shard: int
    of: int
    file: Path


class ShardSnapshots:
    """Fetches the shards of collections. A context manager.

    Args:
        address: Of the server, or of a node of the cluster.
        peers: Of other nodes, as for `address`. All are given the same key.

    Raises:
        StoreUnavailable: If one does not answer.
        StoreError: If an address cannot be one, or the key is refused.
    """

    def __init__(self, address: str, peers: Sequence[str] = ()) -> None:
        self._address = address
        self._stack = ExitStack()
        self._nodes: list[_Node] = []
        with ExitStack() as stack:
            for one in dict.fromkeys((address, *peers)):
                self._nodes.append(stack.enter_context(_Node(one)))
            self._stack = stack.pop_all()

    def __enter__(self) -> ShardSnapshots:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def fetch(
        self, name: str, physical: str, folder: Path, *, on_bytes: Callable[[int], None], room: float = 2.0
    ) -> Iterator[FetchedShard]:
        """Yield every shard, one after the other; the caller removes the file before it asks for the next.

        Args:
            name: Of the collection, for people.
            physical: Of the Qdrant collection.
            folder: Where to.
            on_bytes: Called with numbers of bytes that have come.
            room: How many times the size of a snapshot must be free in that folder.

        Raises:
            DataError: If shards are on nodes that were not named.
            StoreError: If a node refuses, what comes is not what it said, or the disk is too full.
        """
        places, count = self._places(name, physical)
        for shard in range(count):
            file = folder / f"{shard}.snapshot"
            places[shard].fetch(physical, shard, file, on_bytes=on_bytes, room=room)
            yield FetchedShard(shard, count, file)

    def _places(self, name: str, physical: str) -> tuple[dict[int, _Node], int]:
        """Return which node each shard is fetched from, and how many there are."""
        places: dict[int, _Node] = {}
        count = 0
        for node in self._nodes:
            try:
                about = node.shards(physical)
            except ReplacedError as error:
                if node.address == self._address:
                    raise
                raise DataError(
                    f"{node.address} does not know the collection {name!r} of {self._address}. "
                    "Is it a node of the same cluster?"
                ) from error
            count = max(count, int(about["shard_count"]))
            for one in about["local_shards"]:
                if one["state"] == "Active":
                    places.setdefault(int(one["shard_id"]), node)
        if missing := sorted(set(range(count)) - set(places)):
            asked = some_of([node.address for node in self._nodes])
            raise DataError(
                f"of the {count} shards of collection {name!r}, these are whole on none of {asked}: "
                f"{some_of(map(str, missing))}. A node gives no other's.\n"
                "Name the other nodes, too: --peer http://HOST:6333, once for each. Or have the points sent "
                f"through this one: imret collections export {name} FILE --db {self._address}"
            )
        return places, count


class _Node:
    """A node of a cluster, asked over REST. A context manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection = Connection(address, api_key=None, client=None, patience_s=_PATIENCE_S, in_flight=1)
        about = self._connection.rest
        self._http = httpx.Client(
            base_url=about.url, headers=about.headers, trust_env=about.trust_env, timeout=REQUEST_TIMEOUT_S
        )

    def __enter__(self) -> _Node:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()
        self._connection.close()

    def shards(self, physical: str) -> dict[str, Any]:
        """Return which shards of a collection there are, and which of them are here."""
        about: dict[str, Any] = self._asked("say where its shards are", "GET", f"{_url(physical)}/cluster")
        return about

    def fetch(
        self, physical: str, shard: int, file: Path, *, on_bytes: Callable[[int], None], room: float
    ) -> None:
        """Have a snapshot of a shard made, fetch it, and have it removed."""
        place = f"{_url(physical)}/shards/{shard}/snapshots"
        what = f"make a snapshot of shard {shard}"
        # Tried again after an answer that got lost, a node makes another, and the first stays: a file there.
        made = self._asked(what, "POST", place, params={"wait": "true"}, timeout=MAKING_TIMEOUT_S)
        url = f"{place}/{quote(made['name'], safe='')}"
        try:
            try:
                check_space(str(file.parent), int(room * made["size"]))
            except OSError as error:
                raise StoreError(f"{error.strerror} in {str(file.parent)!r}. Free some space.") from error
            self._connection.request(
                f"send the snapshot of shard {shard}", lambda: self._download(url, file, on_bytes)
            )
            self._check(file, shard, made)
        finally:
            with suppress(StoreError):  # a node that has gone away; it is a file among its snapshots
                self._asked(f"remove the snapshot of shard {shard}", "DELETE", url, params={"wait": "true"})

    def _download(self, url: str, file: Path, on_bytes: Callable[[int], None]) -> None:
        come = 0
        try:
            with self._http.stream("GET", url) as response, open(file, "wb") as out:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise UnexpectedResponse.for_response(response)
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    out.write(chunk)
                    come += len(chunk)
                    on_bytes(len(chunk))
        except httpx.HTTPError as error:
            on_bytes(-come)  # all of it comes again
            raise ResponseHandlingException(error) from error
        except OSError as error:
            raise StoreError(f"cannot write {str(file)!r}: {error.strerror or error}.") from error

    def _check(self, file: Path, shard: int, made: dict[str, Any]) -> None:
        """Compare what came with what the node said."""
        digest = hashlib.sha256()
        with open(file, "rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
        said = str(made.get("checksum") or "").lower()
        if file.stat().st_size != made["size"] or (said and said != digest.hexdigest()):
            raise StoreError(
                f"the snapshot of shard {shard} that came from {self.address} is not what was made there "
                f"({file.stat().st_size:,} bytes of {made['size']:,}). Run the command again."
            )

    def _asked(self, what: str, method: str, url: str, **options: Any) -> Any:
        """Return the result of a request."""

        def call() -> Any:
            try:
                response = self._http.request(method, url, **options)
            except httpx.HTTPError as error:
                raise ResponseHandlingException(error) from error
            if response.status_code != httpx.codes.OK:
                raise UnexpectedResponse.for_response(response)
            return response.json()["result"]

        return self._connection.request(what, call)


def _url(physical: str) -> str:
    return f"/collections/{quote(physical, safe='')}"
