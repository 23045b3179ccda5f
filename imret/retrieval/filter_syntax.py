"""A filter as people write it: `category=aves,fungi`, `width>=1000`, `modified=2024-05`.

    KEY=VALUE        KEY=A,B      any of them; "double quotes" keep a comma or a space ("" is a quote)
    KEY!=VALUE       KEY!=A,B     none of them, which pictures without the field pass
    KEY>VALUE        also >=, < and <=; numbers and dates only
    KEY=A..B         from A to B, both included; A.. and ..B are open at one end

The keys are the payload's fields, and `id`. A date means all of the year, month, day, minute or second that
it names, in UTC unless it has an offset; with a fraction of a second it is an instant.
"""

from __future__ import annotations

import calendar
import difflib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from itertools import chain
from typing import Any, NoReturn

from imret.datasets.spelling import spellings
from imret.errors import DataError
from imret.escape import escape_undecodable
from imret.store import Condition, Filter, Ids, Match, Range
from imret.store.payload import FIELDS

KEYS = (*FIELDS, "id")

_EXAMPLES = {
    "category": "category=aves,fungi",
    "path": 'path="a, b.jpg"',
    "source": "source=/photos",
    "sha256": "sha256=" + 8 * "e3b0c442",
    "width": "width>=800",
    "height": "height=600..1200",
    "size_bytes": "size_bytes>=5MB",
    "modified": "modified>=2024-05-01",
    "unit": "unit=00012.tar",
    "id": "id=6e0a4d0e-6c1f-5d5c-9c53-0c7d3f4b8a11",
}

_RANGE_EXAMPLES = {"number": "800..1600", "datetime": "2024-01..2024-05-15"}

_CLAUSE = re.compile(r"\s*([^\s=<>!]+)\s*(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
# Bare: neither empty nor begun by a quote.
_VALUE = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^\s",][^,]*))(,|\Z)')
_NUMBER = re.compile(r"([+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?) *([A-Za-z]*)")
_DATE = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}{b}": 1000**i for i, prefix in enumerate("kmgt", 1) for b in ("", "b")},
    **{f"{prefix}ib": 1024**i for i, prefix in enumerate("kmgt", 1)},
}
_NUMBER_MAX = 2**53 - 1
_LAST_MOMENT = datetime.max.replace(tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


def make_filter(
    *, categories: Iterable[str] = (), not_categories: Iterable[str] = (), where: Iterable[str] = ()
) -> Filter | None:
    """Return a filter for all that is asked at once, or None if nothing is; see `in_any_spelling`.

    Args:
        categories: Only pictures of any of these.
        not_categories: No pictures of any of these; those of no category stay.
        where: Only pictures that meet every one of these conditions, as for `parse_where`.

    Raises:
        DataError: If a condition cannot be read.
    """
    must: list[Condition] = []
    must_not: list[Condition] = []
    for names, conditions in ((tuple(categories), must), (tuple(not_categories), must_not)):
        if names:
            conditions.append(Match("category", tuple(_stored(name, name) for name in names)))
    for text in where:
        condition = parse_where(text)
        must += condition.must
        must_not += condition.must_not
    return in_any_spelling(Filter(tuple(must), tuple(must_not))) or None


def in_any_spelling(filter: Filter) -> Filter:
    """Return a filter by which names and paths are met in either normal form of Unicode.

    Categories are stored composed, but not by an older imret; paths are stored as they are on disk.
    """
    return Filter(*(tuple(map(_spelled, conditions)) for conditions in (filter.must, filter.must_not)))


def _spelled(condition: Condition) -> Condition:
    if not isinstance(condition, Match) or condition.field not in ("category", "path", "source"):
        return condition
    ways = (spellings(value) if isinstance(value, str) else [value] for value in condition.values)
    return Match(condition.field, tuple(dict.fromkeys(chain.from_iterable(ways))))


def parse_where(text: str) -> Filter:
    """Read one condition, as in the module's description.

    Sizes take kB, MB, GB and TB (powers of 1000; the B may be left out) and KiB, MiB, GiB and TiB (of 1024).

    Returns:
        A filter of one condition: in `must`, or for != in `must_not`.

    Raises:
        DataError: If it cannot be read; the message says what of it, and shows one that can.
    """
    parts = _CLAUSE.fullmatch(text)
    if parts is None:
        raise DataError(
            f"cannot read the condition {text!r}: there is no =, !=, <, <=, > or >= after a field's name.\n"
            f"Write for example: {_EXAMPLES['width']} (in quotes: a shell takes > and < for itself)"
        )
    key, operator, value = parts.groups()
    _check_key(key)
    clause = _Clause(text, key, operator, value.strip())
    condition = clause.condition()
    return Filter(must_not=(condition,)) if operator == "!=" else Filter(must=(condition,))


def _check_key(key: str) -> None:
    if key in KEYS:
        return
    near = difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"no field {key!r} to filter by.{meant}\nThere are: {', '.join(KEYS)}")


@dataclass(frozen=True)
class _Clause:
    """A condition in its parts."""

    text: str
    key: str
    operator: str
    value: str

    def condition(self) -> Condition:
        kind = FIELDS.get(self.key, "text")
        if kind == "text" and self.operator not in ("=", "!="):
            self._refuse(f"{self.key} is text, which takes only = and !=")
        if self.key == "id":
            return Ids(tuple(self._id(value) for value in self._values()))
        if kind == "text":
            return Match(self.key, tuple(_stored(value, self.text) for value in self._values()))
        if ".." in self.value:
            return self._range(self._number_span if kind == "number" else self._moment_span)
        values = self._values()
        if kind == "number" and self.operator in ("=", "!="):
            return Match(self.key, tuple(self._number(value) for value in values))
        if len(values) > 1:
            self._refuse(f"{self.key}{self.operator} takes one value, not {len(values)}")
        span = self._number_span(values[0]) if kind == "number" else self._moment_span(values[0])
        bounds = {">=": span.since, "<": span.before, ">": span.after, "<=": span.until}
        return Range(self.key, **bounds.get(self.operator, {**span.since, **span.until}))

    def _range(self, span: Callable[[str], _Span]) -> Range:
        example = f"{self.key}={_RANGE_EXAMPLES[FIELDS[self.key]]}"
        if self.operator not in ("=", "!="):
            self._refuse(f"a range takes = or !=, not {self.operator}", example)
        low, _, high = (end.strip() for end in self.value.partition(".."))
        since = span(low) if low else None
        until = span(high) if high else None
        if since is None and until is None:
            self._refuse("the range has no ends", example)
        if since and until and until.last < since.first:
            self._refuse(f"the range is empty, as {low} comes after {high}", example)
        return Range(self.key, **(since.since if since else {}), **(until.until if until else {}))

    def _values(self) -> list[str]:
        """Return the values between the commas, without their quotes."""
        values: list[str] = []
        at = 0
        while True:
            match = _VALUE.match(self.value, at)
            if match is None:
                rest = self.value[at:].strip()
                quoted = f"the quotes of {rest} do not pair" if rest.startswith('"') else "a value is missing"
                self._refuse(quoted)
            quoted_value, bare, end = match.groups()
            values.append(bare.strip() if quoted_value is None else quoted_value.replace('""', '"'))
            if not end:
                return values
            at = match.end()

    def _number(self, value: str) -> int:
        parts = _NUMBER.fullmatch(value)
        unit = parts[2].lower() if parts else ""
        if parts is None or (unit and self.key != "size_bytes"):
            self._refuse(f"{value!r} is no whole number")
        if unit not in _UNITS:
            self._refuse(f"{parts[2]!r} is no unit of size; there are kB, MB, GB, TB, KiB, MiB, GiB and TiB")
        # Not computed if too long: Python refuses to turn more than 4,300 digits into a number.
        if len(value) > 100 or abs(number := Fraction(parts[1]) * _UNITS[unit]) > _NUMBER_MAX:
            self._refuse(f"{value[:30]!r} is too large a number")
        if number.denominator != 1:
            self._refuse(f"{value!r} is no whole number" + (" of bytes" if unit else ""))
        return int(number)

    def _number_span(self, value: str) -> _Span:
        number = self._number(value)
        return _Span(number, number, {"gte": number}, {"lte": number}, {"gt": number}, {"lt": number})

    def _moment_span(self, value: str) -> _Span:
        parts = _DATE.fullmatch(value)
        if parts is None:
            self._refuse(f"{value!r} is no date")
        try:
            first, last = (moment.astimezone(timezone.utc) for moment in _first_and_last(parts))
        except (ValueError, OverflowError) as error:
            reason = "it lies outside the years 1 to 9999" if isinstance(error, OverflowError) else str(error)
            self._refuse(f"{value!r} is no date: {reason}")
        if first == last or last == _LAST_MOMENT:  # an instant; and there is no moment after the last
            until, after = {"lte": last.isoformat()}, {"gt": last.isoformat()}
        else:
            until = {"lt": (last + _MICROSECOND).isoformat()}
            after = {"gte": (last + _MICROSECOND).isoformat()}
        return _Span(first, last, {"gte": first.isoformat()}, until, after, {"lt": first.isoformat()})

    def _id(self, value: str) -> str:
        try:
            return str(uuid.UUID(value))
        except ValueError:
            self._refuse(f"{value!r} is no id of a picture, which is a UUID")

    def _refuse(self, reason: str, example: str | None = None) -> NoReturn:
        example = example or _EXAMPLES[self.key]
        raise DataError(f"cannot read the condition {self.text!r}: {reason}.\nWrite for example: {example}")


@dataclass(frozen=True)
class _Span:
    """What one number or date covers, and the bounds of a range that begins or ends with it or beside it."""

    first: Any  # int or datetime, as last
    last: Any
    since: Mapping[str, float | str]
    until: Mapping[str, float | str]
    after: Mapping[str, float | str]
    before: Mapping[str, float | str]


def _first_and_last(parts: re.Match[str]) -> tuple[datetime, datetime]:
    """Return the first and the last microsecond of a date.

    Raises:
        ValueError: If there is no such date.
    """
    year, month, day, hour, minute, second, fraction, offset = parts.groups()
    zone = datetime.fromisoformat(f"2000-01-01T00:00{(offset or 'Z').replace('Z', '+00:00')}").tzinfo
    first = datetime(
        int(year),
        int(month or 1),
        int(day or 1),
        int(hour or 0),
        int(minute or 0),
        int(second or 0),
        int((fraction or "").ljust(6, "0")),
        tzinfo=zone,
    )
    if fraction is not None:
        return first, first
    last = first.replace(microsecond=999_999)
    if second is None:
        last = last.replace(second=59)
    if hour is None:
        last = last.replace(hour=23, minute=59)
    if month is None:
        last = last.replace(month=12)
    if day is None:
        last = last.replace(day=calendar.monthrange(last.year, last.month)[1])
    return first, last


def _stored(value: str, text: str) -> str:
    """Return a text as the payload has it.

    Raises:
        DataError: If it is neither Unicode nor a file name's undecodable bytes.
    """
    try:
        return escape_undecodable(value)
    except UnicodeEncodeError:
        raise DataError(f"cannot filter by {text!r}: it holds surrogates, which are no characters") from None
