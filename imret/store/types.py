"""What every engine of the store keeps: the data that goes in and out, the two protocols, the checks.

The checks run before an engine sees anything, because an engine's own refusal may come too late: Qdrant
Edge keeps an arbitrary part of a batch that it refused. Knows of no engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imret.store.filter import Filter

if TYPE_CHECKING:
    from typing_extensions import Self


# The graph. On sets made hard on purpose, ef_construct 200 instead of 100 takes half again to twice as long
# to build, and a walk then finds as much with half of HNSW_EF (benchmarks/index.py).
M, EF_CONSTRUCT = 16, 200

# How far a walk over the graph looks round, and how many int8 candidates for each hit are compared again as
# float32. On sets made hard on purpose (benchmarks/index.py) the first decides: 256 found 0.97 to 0.99 of the
# ten nearest, and 0.93 of a million's where queries are off as texts are. More oversampling found no more.
HNSW_EF = 512
OVERSAMPLING = 2.0

_FINGERPRINT = re.compile(r"[0-9a-f]{16,}")


@dataclass(frozen=True)
class Identity:
    """The encoder that a collection is bound to.

    Attributes:
        model: What to type to get it again.
        fingerprint: Hex digest of its weights, architecture and preprocessing.
        dim: Length of its vectors.
    """

    model: str
    fingerprint: str
    dim: int

    def __post_init__(self) -> None:
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise ValueError(f"a fingerprint is at least 16 lower-case hex digits, not {self.fingerprint!r}")
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, not {self.dim}")

    @property
    def version(self) -> str:
        """What the physical collection is named by: the same encoder finds the same version again."""
        return self.fingerprint[:16]


@dataclass(frozen=True)
class Point:
    """A stored point; vector (D,) float32 and score (a cosine in [-1, 1]) only where they were asked for."""

    id: str
    payload: dict[str, Any]
    vector: NDArray[np.float32] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Stats:
    """The state of a collection.

    Attributes:
        points: Exact number of points.
        indexed: How many of them the vector index covers; the others are scanned, which is exact.
        disk_bytes: Space taken, or None where the engine does not tell.
        status: "indexed", "partly indexed", "exact scan", "indexing" or "failed: ...".
    """

    points: int
    indexed: int
    disk_bytes: int | None
    status: str


class Collection(Protocol):
    """One version of a collection. Its vectors all come from one encoder. Safe to use from many threads.

    Every method may raise StoreUnavailable (the engine is gone) and StoreError (it refused).

    Attributes:
        name: Of the collection.
        version: Names the version that this handle has open, live or not, as `Store.version` does.
        identity: The encoder.
    """

    name: str
    version: str
    identity: Identity

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
                no None. `INTEGER_FIELDS` hold only int, `MOMENT_FIELDS` only RFC 3339.

        Raises:
            ValueError: If a point is not like that; then none was stored.
            TypeError: If a payload value is of another type; then none was stored.
        """

    def overwrite_payloads(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Replace whole payloads and keep the vectors.

        Raises:
            DataError: If a point does not exist; then none was changed.
        """

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, Point]:
        """Return the points that exist among `ids`, by id."""

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
            ValueError: If `start` is no UUID in canonical form.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points; ids that do not exist are no error."""

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

    def count(self, filter: Filter | None = None) -> int:
        """Return the exact number of points."""

    def facet(self, field: str, filter: Filter | None = None) -> dict[str, int]:
        """Return every value of a field with its exact number of points, most frequent first, then by value.

        Fast for `KEYWORD_FIELDS`; any other field is counted by a scan.
        """

    def flush(self) -> None:
        """Make everything stored so far survive a power cut."""

    def index_lags(self) -> bool:
        """Return whether whoever fills the collection should `optimize` now, and not at the end only.

        An embedded store's engine keeps what has no index in memory, and scans it at every search.
        """

    def optimize(self) -> None:
        """Build the vector index over what is not in it yet; returns when it is built."""

    def stats(self) -> Stats:
        """Return numbers for people to read."""

    def close(self) -> None:
        """Release this handle; the store stays open."""


class Store(Protocol):
    """Collections by name, each with one live version and perhaps others being built. A context manager.

    Attributes:
        engine: "embedded" or "server".
        address: Folder or URL, as a user would pass it to --db.
        reason: Why this store was chosen, for people; empty if it was named.
    """

    engine: str
    address: str
    reason: str

    def collections(self) -> list[str]:
        """Return the names that have a live version, sorted."""

    def live(self, name: str) -> Identity | None:
        """Return the encoder of the live version, or None if there is none."""

    def version(self, name: str) -> str | None:
        """Return what names the live version, or None if there is none: another as soon as another is live.

        For whoever follows it: cheap, and reads nothing of the version itself.

        Raises:
            DataError: If `name` cannot name a collection.
        """

    def building(self, name: str) -> list[Identity]:
        """Return the encoders of the versions that exist beside the live one and were never live."""

    def open(self, name: str) -> Collection:
        """Open the live version.

        Raises:
            DataError: If there is none; the message names the collections that exist.
            StoreLocked: If another process holds it and does not share it (embedded only).
        """

    def open_version(self, name: str, identity: Identity, *, beside: bool = False) -> Collection:
        """Open the version of an encoder to fill it, live or not; make it if there is none.

        A version cut short by a kill is resumed, one whose making was cut short is made again. An older one
        gets the indexes of the fields that were not indexed then.

        Args:
            name: Of the collection.
            identity: The encoder.
            beside: Make an empty one that is not live, also where the live one is of the same encoder.
                What an earlier attempt left in its place, whoever made it, is removed.

        Raises:
            DataError: If `name` cannot name a collection.
            StoreLocked: If another process holds it and does not share it (embedded only).
        """

    def switch(self, name: str, identity: Identity, *, beside: bool = False) -> None:
        """Make a version live in one step, then remove the others.

        A version that somebody still reads is removed when nobody does any more.

        Args:
            name: Of the collection.
            identity: The encoder of the version; the live one if that is of this encoder.
            beside: The one that is not live, as `open_version` made it.

        Raises:
            StoreError: If the version does not exist.
        """

    def rename(self, old: str, new: str) -> None:
        """Give a collection another name; no point is copied, and no reader ever finds half of it.

        A version that is being built goes with it. Interrupted and called again, it ends in the same state.

        Raises:
            DataError: If there is no live version of `old`, or `new` cannot name a collection or is taken.
            StoreLocked: If it is open, in this program or in another (embedded only). On a server the
                handles that are open go on working.
        """

    def drop(self, name: str) -> None:
        """Remove all versions; a name that does not exist is no error.

        Raises:
            StoreLocked: If another process holds one (embedded only); then none is removed.
        """

    def close(self) -> None:
        """Close every collection and the engine; closing twice is no error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
