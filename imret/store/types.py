"""What every engine of the store keeps: the data that goes in and out, the two protocols, the checks.

The checks run before an engine sees anything, because an engine's own refusal may come too late: Qdrant
Edge keeps an arbitrary part of a batch that it refused. Knows of no engine.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Self

# Filterable fields. Indexed before the first point is stored, so that the graph built over the vectors
# gets the links that a filtered search walks. A field with an index holds only values of its kind: an index
# does not see the others, so that what a filter finds would depend on whether there is one.
KEYWORD_FIELDS = ("category", "path", "sha256", "source")  # any str or int
INTEGER_FIELDS = ("width", "height", "size_bytes")  # int
MOMENT_FIELDS = ("modified",)  # str, RFC 3339
INDEXED_FIELDS = KEYWORD_FIELDS + INTEGER_FIELDS + MOMENT_FIELDS

# The graph. On sets made hard on purpose, ef_construct 200 instead of 100 takes half again to twice as long
# to build, and a walk then finds as much with half of HNSW_EF (benchmarks/index.py).
M, EF_CONSTRUCT = 16, 200

# How far a walk over the graph looks round, and how many int8 candidates for each hit are compared again as
# float32. On sets made hard on purpose (benchmarks/index.py) the first decides: 256 found 0.97 to 0.99 of the
# ten nearest, and 0.93 of a million's where queries are off as texts are. More oversampling found no more.
HNSW_EF = 512
OVERSAMPLING = 2.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
# RFC 3339, section 5.6, to the microsecond, the finest that Qdrant compares. No leap second: with an index it
# reads one as the next second, without one as the last.
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_FINGERPRINT = re.compile(r"[0-9a-f]{16,}")
_TIE_SPARE = 8  # asked for beyond the limit, to see whether the last score is shared
_TIE_MAX = 10_000


@dataclass(frozen=True)
class Match:
    """A condition: the payload's field equals any of the values.

    Attributes:
        field: Name of a payload field.
        values: At least one str or int. No bool: Qdrant Edge takes True for the number 1 and finds nothing.
            No float: ask with a `Range` from a little below to a little above.
    """

    field: str
    values: tuple[str | int, ...]

    def __post_init__(self) -> None:
        _check_field(self.field)
        if not self.values:
            raise ValueError(f"Match({self.field!r}) needs at least one value")
        for value in self.values:
            _check_scalar(value, (str, int), f"Match({self.field!r})")


@dataclass(frozen=True)
class Range:
    """A condition: the payload's field lies between bounds. A point without the field is in no range.

    Between numbers lie int and float alike, between moments the str that are moments. Anything else is in no
    range; but a date or a time without an offset is taken for UTC. A range that nothing can lie in is no
    error.

    Attributes:
        field: Name of a payload field.
        gte, gt, lte, lt: The bounds: at least, more than, at most, less than. One or two of them, at most one
            on each side, int or float, or str. Numbers lie within +-(2**53 - 1), beyond which engines, which
            compare as float64, would confuse whole numbers. Equal floats are found by gte = lte only if they
            have up to 15 digits, which is what is kept. Moments are RFC 3339 with an offset, to the
            microsecond, such as "2024-05-01T12:00:00Z"; they compare as times, and are kept in UTC with six
            decimals.
    """

    field: str
    _: KW_ONLY
    gte: float | str | None = None
    gt: float | str | None = None
    lte: float | str | None = None
    lt: float | str | None = None

    def __post_init__(self) -> None:
        _check_field(self.field)
        bounds = self.bounds
        if not bounds:
            raise ValueError(f"Range({self.field!r}) needs at least one of gte, gt, lte and lt")
        if bounds.keys() >= {"gte", "gt"} or bounds.keys() >= {"lte", "lt"}:
            # An index would heed only one of them.
            raise ValueError(f"Range({self.field!r}) takes gte or gt, and lte or lt, not {', '.join(bounds)}")
        for name, bound in bounds.items():
            what = f"Range({self.field!r}, {name}=...)"
            _check_scalar(bound, (str, int, float), what)
            if isinstance(bound, str):
                in_utc = parse_moment(bound).replace(tzinfo=None).isoformat(timespec="microseconds")
                object.__setattr__(self, name, f"{in_utc}Z")  # so that equal ranges are equal
            elif abs(bound) >= 2**53:
                raise ValueError(f"{what}: {bound!r} is beyond +-(2**53 - 1)")
        if len({isinstance(bound, str) for bound in bounds.values()}) > 1:
            raise TypeError(f"Range({self.field!r}): the bounds {bounds} are of two kinds")
        if self.field in (INTEGER_FIELDS if self.of_moments else MOMENT_FIELDS):
            kind = "moments" if self.of_moments else "numbers"
            raise ValueError(f"Range({self.field!r}): no value of that field lies between {kind}")

    @property
    def bounds(self) -> dict[str, float | str]:
        """The bounds that there are, by name."""
        named = {"gte": self.gte, "gt": self.gt, "lte": self.lte, "lt": self.lt}
        return {name: bound for name, bound in named.items() if bound is not None}

    @property
    def of_moments(self) -> bool:
        """Whether the bounds are moments, not numbers."""
        return any(isinstance(bound, str) for bound in self.bounds.values())

    def numbers(self) -> dict[str, float]:
        """Return bounds between numbers by name; between whole numbers they are whole, too."""
        bounds = {name: bound for name, bound in self.bounds.items() if not isinstance(bound, str)}
        if self.field not in INTEGER_FIELDS:
            return bounds
        # An index of whole numbers has to round them; so no engine's way of doing it matters.
        return {
            name: math.ceil(bound) if name in ("gte", "lt") else math.floor(bound)
            for name, bound in bounds.items()
        }

    def moments(self) -> dict[str, str]:
        """Return bounds between moments by name."""
        return {name: bound for name, bound in self.bounds.items() if isinstance(bound, str)}


@dataclass(frozen=True)
class Ids:
    """A condition: the point is one of these.

    Attributes:
        ids: At least one UUID in canonical form; a point need not exist.
    """

    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("Ids needs at least one id")
        for one in self.ids:
            _check_id(one)


Condition: TypeAlias = Match | Range | Ids


@dataclass(frozen=True)
class Filter:
    """All of `must` and none of `must_not`; an empty filter lets every point through.

    A point without a field meets no condition on it, so `must_not` keeps it.
    """

    must: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.must or self.must_not)

    @property
    def fields(self) -> set[str]:
        """The payload fields that it asks about."""
        return {one.field for one in (*self.must, *self.must_not) if not isinstance(one, Ids)}


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


def is_name(name: str) -> bool:
    """Whether a text can name a collection."""
    return _NAME.fullmatch(name) is not None


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return ids as a list.

    Raises:
        ValueError: If one is no UUID in canonical form (lower case, with hyphens), or appears twice.
    """
    for one in ids:
        _check_id(one)
    if len(set(ids)) != len(ids):
        raise ValueError("the ids of one call must differ")
    return list(ids)


def check_start(start: str | None) -> str | None:
    """Return the id that a scan begins at.

    Raises:
        ValueError: If it is no UUID in canonical form.
    """
    if start is not None:
        _check_id(start)
    return start


def check_payloads(payloads: Sequence[Mapping[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return n payloads as plain dicts.

    Raises:
        ValueError: If their number, a float (NaN, infinite), an int (over 64 bits), a text (lone
            surrogates, which are no Unicode) or a moment is wrong.
        TypeError: If a value is no str, int or float, or not of its field's kind.
    """
    if len(payloads) != n:
        raise ValueError(f"{n} ids but {len(payloads)} payloads")
    for payload in payloads:
        for key, value in payload.items():
            if not isinstance(key, str) or not key:
                raise TypeError(f"a payload key is a text of at least one character, not {key!r}")
            _check_scalar(key, (str,), "payload key")
            types = (int,) if key in INTEGER_FIELDS else (str,) if key in MOMENT_FIELDS else (str, int, float)
            _check_scalar(value, types, f"payload field {key!r}")
            if key in MOMENT_FIELDS:
                parse_moment(value)
    return [dict(payload) for payload in payloads]


def parse_moment(text: str) -> datetime:
    """Return a moment as a time in UTC.

    Raises:
        ValueError: If it is not RFC 3339 with an offset, to the microsecond, in the years 1 to 9999.
    """
    parts = _MOMENT.fullmatch(text)
    if parts:
        second, fraction, offset = parts.groups()
        # As Python 3.10 reads it: six digits, and no Z.
        exact = f"{second}.{(fraction or '').ljust(6, '0')}{offset.replace('Z', '+00:00')}"
        try:
            return datetime.fromisoformat(exact).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"a moment looks like 2024-05-01T12:00:00Z (RFC 3339), not {text!r}")


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


def in_rank_order(fetch: Callable[[int], list[Point]], limit: int) -> list[Point]:
    """Return the best `limit` points by falling score, ties by id, also where the limit cuts a tie.

    Engines order equal scores as they please, and so would choose which of them fall behind the limit.
    Asks for more until the group that the limit cuts is complete (up to 10,000 points of one score).

    Args:
        fetch: Gives the best n points by score, scores set.
        limit: Points at most, >= 1.

    Raises:
        ValueError: If the limit is less than 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    ask = limit + _TIE_SPARE
    while True:
        points = sorted(fetch(ask), key=lambda point: (-_score(point), point.id))
        tied_to_the_end = len(points) == ask and _score(points[-1]) == _score(points[limit - 1])
        if not tied_to_the_end or ask >= limit + _TIE_MAX:
            return points[:limit]
        ask = min(ask * 8, limit + _TIE_MAX)


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
    there = ((value, n) for value, n in counts.items() if n)
    return dict(sorted(there, key=lambda pair: (-pair[1], pair[0])))


def index_status(points: int, indexed: int) -> str:
    """Return in words how much of a collection the vector index covers."""
    if indexed == 0:
        return "exact scan"
    return "indexed" if indexed >= points else "partly indexed"


def _score(point: Point) -> float:
    return -math.inf if point.score is None else point.score


def _check_field(field: str) -> None:
    if not _FIELD.fullmatch(field):
        raise ValueError(f"a field to filter by is letters, digits, _ and -, not {field!r}")


def _check_id(one: str) -> None:
    try:
        canonical = str(uuid.UUID(one))
    except (ValueError, AttributeError, TypeError):
        canonical = None
    if canonical != one:
        raise ValueError(f"a point id is a UUID such as {uuid.UUID(int=0)}, not {one!r}")


def _check_scalar(value: object, types: tuple[type, ...], what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{what}: {value!r} is of type {type(value).__name__}, which cannot be stored")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what}: {value!r} holds lone surrogates, which are no Unicode") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what}: {value!r} is not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{what}: {value!r} does not fit 64 bits")
