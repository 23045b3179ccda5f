"""The data that goes into a store and comes out of it, and the settings that every engine shares."""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from imret.errors import ModelMismatch, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The graph. On sets made hard on purpose, ef_construct 200 instead of 100 takes half again to twice as long
# to build, and a walk then finds as much with half of HNSW_EF (benchmarks/index.py).
M, EF_CONSTRUCT = 16, 200

# How far a walk over the graph looks round, and how many int8 candidates for each hit are compared again as
# float32. On sets made hard on purpose (benchmarks/index.py) the first decides: 256 found 0.97 to 0.99 of the
# ten nearest, and 0.93 of a million's where queries are off as texts are. The second matters where a few
# components dominate every vector, as in embeddings of CLIP: with 2, int8 lost up to 0.05 of what float32
# finds, with 4 it loses nothing (benchmarks/index_quantization.py).
HNSW_EF = 512
OVERSAMPLING = 4.0

# Whether other programs may use what this one has open of an embedded store.
Share: TypeAlias = bool | Literal["if possible"]

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

    def require_same(self, other: Identity, *, subject: str, user: str, advice: str) -> None:
        """Refuse another encoder than this one. The name of the model may differ: a folder can be moved.

        Args:
            other: The encoder in use.
            subject: What this one made, to begin the message with: "collection 'photos'".
            user: What uses the other: "this search uses".
            advice: What to do then, a sentence.

        Raises:
            ModelMismatch: If fingerprint or length of vectors differ.
        """
        if (self.fingerprint, self.dim) == (other.fingerprint, other.dim):
            return
        mine, theirs = self.fingerprint[:8], other.fingerprint[:8]
        if mine == theirs:
            mine, theirs = (
                f"{identity.fingerprint}, {identity.dim} dimensions" for identity in (self, other)
            )
        raise ModelMismatch(
            f"{subject} was built with {self.model!r} ({mine}), "
            f"but {user} {other.model!r} ({theirs}).\n{advice}"
        )


@dataclass(frozen=True)
class LiveState:
    """Which version of a collection is live, and marks by which a later look tells what happened in between.

    Attributes:
        version: As `Store.version` names it; None if none is live.
        switch: Another after each switch, also after one back to a version that was live before.
        ended: Another after each program that has ended its work on the live version. See `Store`.
    """

    version: str | None = None
    switch: str = ""
    ended: str = ""

    def has_version_of(self, other: LiveState) -> bool:
        """Whether no switch lies between two looks."""
        return (self.version, self.switch) == (other.version, other.switch)


def new_mark() -> str:
    """Return a mark for `LiveState` that no other is."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Point:
    """A stored point; vector (D,) float32 and score (a cosine in [-1, 1]) only where they were asked for."""

    id: str
    payload: dict[str, Any]
    vector: NDArray[np.float32] | None = None
    score: float | None = None


@dataclass(frozen=True)
class RawPoint:
    """A point as it lies there, whoever wrote it.

    Attributes:
        id: A UUID; or a number, which imret never gives.
        payload: Any JSON.
        vector: A list of D numbers; of whoever writes otherwise an empty or another mapping or nested lists,
            and None among the numbers for one that JSON has no word for.
    """

    id: str | int
    payload: dict[str, Any]
    vector: Any


@dataclass(frozen=True)
class Stats:
    """The state of a collection.

    Attributes:
        points: Exact number of points.
        indexed: How many of them are in the graph; the others are scanned, which is exact. None on a server:
            it counts vectors that it has optimized, also where that made no graph.
        disk_bytes: Space taken, or None where the engine does not tell.
        status: Embedded: "indexed", "partly indexed" or "exact scan". On a server what that says of the
            collection: "green" when it has built all that it means to, "yellow" while it builds, "grey" when
            it would with the next write, "red: ..." and why.
        m: Links of a vector in the graph that is configured; 0 for none.
    """

    points: int
    indexed: int | None
    disk_bytes: int | None
    status: str
    m: int

    @property
    def index(self) -> str:
        """What is known of the index, in a line: status, size, graph."""
        if self.indexed == 0:
            return f"not needed yet, as each search compares all {counted(self.points, 'vector')}, exactly"
        if self.indexed is not None:
            return f"{self.status}, {self.indexed:,} of {self.points:,} vectors in the graph (m = {self.m})"
        graph = f"a graph is configured (m = {self.m})" if self.m else "no graph is configured (m = 0)"
        scan = "" if self.m else ", so every search compares them all"
        return f"{self.status}, {self.points:,} vectors; {graph}{scan}"


@dataclass(frozen=True)
class Progress:
    """How far the making of an index is, as far as its engine tells.

    Attributes:
        points: Of the collection, approximately; None where that is not known while it is made.
        indexed: How many of them are in segments that are as they shall be.
        why: What is still to be done, for people.
    """

    points: int | None
    indexed: int | None
    why: str


def is_point_id(text: object) -> bool:
    """Whether a text is a UUID in canonical form, which is lower case with hyphens."""
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False
