"""Conditions on payloads, and which fields have an index."""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timezone
from typing import TypeAlias

from imret.store.types import is_point_id

# Filterable fields. Indexed before the first point is stored, so that the graph built over the vectors
# gets the links that a filtered search walks. A field with an index holds only values of its kind: an index
# does not see the others, so that what a filter finds would depend on whether there is one.
KEYWORD_FIELDS = ("category", "path", "sha256", "source", "unit")  # any str or int
INTEGER_FIELDS = ("width", "height", "size_bytes")  # int
DATETIME_FIELDS = ("modified",)  # str, RFC 3339
INDEXED_FIELDS = KEYWORD_FIELDS + INTEGER_FIELDS + DATETIME_FIELDS
_FIELD = re.compile(r"[A-Za-z0-9_-]+")

# RFC 3339, section 5.6, to the microsecond, the finest that Qdrant compares. No leap second: with an index it
# reads one as the next second, without one as the last.
_DATETIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)


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
            check_scalar(value, (str, int), f"Match({self.field!r})")


@dataclass(frozen=True)
class Range:
    """A condition: the payload's field lies between bounds. A point without the field is in no range.

    Between numbers lie int and float alike, between datetimes the str that are datetimes. Anything else is
    in no range; but a date or a time without an offset is taken for UTC. A range that nothing can lie in is
    no error.

    Attributes:
        field: Name of a payload field.
        gte, gt, lte, lt: The bounds: at least, more than, at most, less than. One or two of them, at most one
            on each side, int or float, or str. Numbers lie within +-(2**53 - 1), beyond which engines, which
            compare as float64, would confuse whole numbers. Equal floats are found by gte = lte only if they
            have up to 15 digits, which is what is kept. Datetimes are RFC 3339 with an offset, to the
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
            check_scalar(bound, (str, int, float), what)
            if isinstance(bound, str):
                in_utc = parse_datetime(bound).replace(tzinfo=None).isoformat(timespec="microseconds")
                object.__setattr__(self, name, f"{in_utc}Z")  # so that equal ranges are equal
            elif abs(bound) >= 2**53:
                raise ValueError(f"{what}: {bound!r} is beyond +-(2**53 - 1)")
        if len({isinstance(bound, str) for bound in bounds.values()}) > 1:
            raise TypeError(f"Range({self.field!r}): the bounds {bounds} are of two kinds")
        if self.field in (INTEGER_FIELDS if self.is_datetime else DATETIME_FIELDS):
            kind = "datetimes" if self.is_datetime else "numbers"
            raise ValueError(f"Range({self.field!r}): no value of that field lies between {kind}")

    @property
    def bounds(self) -> dict[str, float | str]:
        """The bounds that there are, by name."""
        named = {"gte": self.gte, "gt": self.gt, "lte": self.lte, "lt": self.lt}
        return {name: bound for name, bound in named.items() if bound is not None}

    @property
    def is_datetime(self) -> bool:
        """Whether the bounds are datetimes, not numbers."""
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

    def datetimes(self) -> dict[str, str]:
        """Return bounds between datetimes by name."""
        return {name: bound for name, bound in self.bounds.items() if isinstance(bound, str)}

    def is_sent_like(self, other: Range) -> bool:
        """Whether an engine is asked the same: whole numbers may be rounded to the same bounds."""
        return (self.field, self.numbers(), self.datetimes()) == (
            other.field,
            other.numbers(),
            other.datetimes(),
        )


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
        for id_ in self.ids:
            check_id(id_)


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
        return {
            condition.field for condition in (*self.must, *self.must_not) if not isinstance(condition, Ids)
        }

    def reduced(self) -> Filter | None:
        """Return a filter that the same points pass and in which nothing is both asked for and excluded.

        A Qdrant server with payload indexes does not exclude what stands on both sides: `aves` but not `aves`
        gives all of aves (1.19). So values that are excluded are taken out of those that are asked for.

        Returns:
            The filter, or None if that leaves nothing that could pass.
        """
        must: list[Condition] = []
        for condition in self.must:
            remaining = _without(condition, self.must_not)
            if remaining is None:
                return None
            must.append(remaining)
        return Filter(tuple(must), self.must_not)


def _without(condition: Condition, excluded: tuple[Condition, ...]) -> Condition | None:
    """Return what is left of a condition beside those that must not hold; None for nothing."""
    if isinstance(condition, Range):
        same = any(isinstance(other, Range) and condition.is_sent_like(other) for other in excluded)
        return None if same else condition
    if isinstance(condition, Ids):
        theirs = {id_ for other in excluded if isinstance(other, Ids) for id_ in other.ids}
        ids = tuple(id_ for id_ in condition.ids if id_ not in theirs)
        return Ids(ids) if ids else None
    of_field = (other for other in excluded if isinstance(other, Match) and other.field == condition.field)
    unwanted = {value for other in of_field for value in other.values}
    values = tuple(value for value in condition.values if value not in unwanted)
    return Match(condition.field, values) if values else None


def parse_datetime(text: str) -> datetime:
    """Return a text as a time in UTC.

    Raises:
        ValueError: If it is not RFC 3339 with an offset, to the microsecond, in the years 1 to 9999.
    """
    parts = _DATETIME.fullmatch(text)
    if parts:
        second, fraction, offset = parts.groups()
        # As Python 3.10 reads it: six digits, and no Z.
        exact = f"{second}.{(fraction or '').ljust(6, '0')}{offset.replace('Z', '+00:00')}"
        try:
            return datetime.fromisoformat(exact).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"a datetime looks like 2024-05-01T12:00:00Z (RFC 3339), not {text!r}")


def _check_field(field: str) -> None:
    if not _FIELD.fullmatch(field):
        raise ValueError(f"a field to filter by is letters, digits, _ and -, not {field!r}")


def check_id(text: str) -> None:
    if not is_point_id(text):
        raise ValueError(f"a point id is a UUID such as {uuid.UUID(int=0)}, not {text!r}")


def check_scalar(value: object, types: tuple[type, ...], what: str) -> None:
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
