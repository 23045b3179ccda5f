"""Conditions as people write them: what they mean, what is refused and how, and that they read back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imret.errors import DataError
from imret.retrieval.filter_syntax import _EXAMPLES, _RANGE_EXAMPLES, KEYS, make_filter, parse_where
from imret.store import Condition, Filter, Ids, Match, Range
from imret.store.filter import DATETIME_FIELDS, INTEGER_FIELDS, KEYWORD_FIELDS
from imret.store.payload import FIELDS, make_payload

UUID_1 = "6e0a4d0e-6c1f-5d5c-9c53-0c7d3f4b8a11"
LAST = "9999-12-31T23:59:59.999999Z"


def moments(**bounds: str) -> Range:
    return Range("modified", **bounds)


MEANINGS: dict[str, Condition] = {
    "category=aves": Match("category", ("aves",)),
    " category = aves , fungi ": Match("category", ("aves", "fungi")),
    'category="a, b","say ""hi""",""': Match("category", ("a, b", 'say "hi"', "")),
    'path=5" disk.jpg': Match("path", ('5" disk.jpg',)),
    "path=../a=b>c.jpg": Match("path", ("../a=b>c.jpg",)),
    "category=5": Match("category", ("5",)),
    "category=caf\udce9": Match("category", ("caf\\xe9",)),  # as ingest stores a name that is no UTF-8
    f"id={UUID_1.upper()}": Ids((UUID_1,)),
    "width=800": Match("width", (800,)),
    "width=800, 1024": Match("width", (800, 1024)),
    "width>=800": Range("width", gte=800),
    "width > 800": Range("width", gt=800),
    "width<=800": Range("width", lte=800),
    "width<800": Range("width", lt=800),
    "width=800..1600": Range("width", gte=800, lte=1600),
    "width=800 .. 800": Range("width", gte=800, lte=800),
    "width=800..": Range("width", gte=800),
    "width=..800": Range("width", lte=800),
    "width>-1": Range("width", gt=-1),
    "size_bytes>=5MB": Range("size_bytes", gte=5_000_000),
    "size_bytes>=1.5 mb": Range("size_bytes", gte=1_500_000),
    "size_bytes=20k..1MiB": Range("size_bytes", gte=20_000, lte=1_048_576),
    "size_bytes<2GiB": Range("size_bytes", lt=2_147_483_648),
    "size_bytes<1TB": Range("size_bytes", lt=10**12),
    "size_bytes=512B": Match("size_bytes", (512,)),
    "modified=2024": moments(gte="2024-01-01T00:00:00Z", lt="2025-01-01T00:00:00Z"),
    "modified=2024-02": moments(gte="2024-02-01T00:00:00Z", lt="2024-03-01T00:00:00Z"),
    "modified=2024-02-29": moments(gte="2024-02-29T00:00:00Z", lt="2024-03-01T00:00:00Z"),
    "modified=2024-12-31 23:59": moments(gte="2024-12-31T23:59:00Z", lt="2025-01-01T00:00:00Z"),
    "modified=2024-05-01T12:00:00+02:00": moments(gte="2024-05-01T10:00:00Z", lt="2024-05-01T10:00:01Z"),
    "modified=2024-05-01T12:00:00.5": moments(gte="2024-05-01T12:00:00.5Z", lte="2024-05-01T12:00:00.5Z"),
    "modified>=2024": moments(gte="2024-01-01T00:00:00Z"),
    "modified>2024": moments(gte="2025-01-01T00:00:00Z"),
    "modified<2024-05": moments(lt="2024-05-01T00:00:00Z"),
    "modified<=2024-05": moments(lt="2024-06-01T00:00:00Z"),
    "modified>2024-05-01T00:00:00.000000": moments(gt="2024-05-01T00:00:00Z"),
    "modified<=2024-05-01T00:00:00.0Z": moments(lte="2024-05-01T00:00:00Z"),
    "modified=2023..2024-05-02": moments(gte="2023-01-01T00:00:00Z", lt="2024-05-03T00:00:00Z"),
    "modified=2024..2024-01-01": moments(gte="2024-01-01T00:00:00Z", lt="2024-01-02T00:00:00Z"),
    "modified=..2024": moments(lt="2025-01-01T00:00:00Z"),
    "modified=2024-05-01T12:00..": moments(gte="2024-05-01T12:00:00Z"),
    "modified=9999": moments(gte="9999-01-01T00:00:00Z", lte=LAST),
    "modified<=9999": moments(lte=LAST),
    "modified>9999": moments(gt=LAST),
    "modified=0001": moments(gte="0001-01-01T00:00:00Z", lt="0002-01-01T00:00:00Z"),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_condition_means(text: str) -> None:
    assert parse_where(text) == Filter(must=(MEANINGS[text],))
    if "=" in text and text[text.index("=") - 1] not in "<>":
        assert parse_where(text.replace("=", "!=", 1)) == Filter(must_not=(MEANINGS[text],))


REFUSALS = {
    "": "no =, !=, <, <=, > or >= after a field's name.*width>=800 .in quotes: a shell takes > and <",
    "width": "no =, !=, <, <=, > or >= after a field's name",
    "=5": "no =, !=, <, <=, > or >= after a field's name",
    "wdith>=3": "no field 'wdith' to filter by. Did you mean 'width'.*There are: category, path, .*, id",
    "Size>=4": "no field 'Size' to filter by. Did you mean 'size_bytes'",
    "xyzzy=4": "no field 'xyzzy' to filter by.\nThere are: category",
    "file_base64=4": "no field 'file_base64'",
    "category=": "a value is missing.*Write for example: category=aves,fungi",
    "category=a,,b": "a value is missing",
    'category="a': 'the quotes of "a do not pair',
    'category="a"b': 'the quotes of "a"b do not pair',
    "category>a": "category is text, which takes only = and !=",
    "id<5": "id is text, which takes only = and !=",
    "id=5": "'5' is no id of a picture, which is a UUID.*id=6e0a4d0e",
    "category=\ud800": "it holds surrogates, which are no characters",
    "width>=tall": "'tall' is no whole number.*Write for example: width>=800",
    "width=>800": "'>800' is no whole number",
    "width=": "a value is missing",
    "width>=1e3": "'1e3' is no whole number",
    "width>=800.5": "'800.5' is no whole number",
    "width>=5k": "'5k' is no whole number",
    "width>=٣": "'٣' is no whole number",
    "width=1,000": "'000' is no whole number",  # would be 1 or 0
    "width>=1,2": "width>= takes one value, not 2",
    "width>=1..2": "a range takes = or !=, not >=.*Write for example: width=800..1600",
    "width=5..3": "the range is empty, as 5 comes after 3.*Write for example: width=800..1600",
    "width=..": "the range has no ends.*Write for example: width=800..1600",
    "width=1..2..3": "'2..3' is no whole number",
    "width=1..tall": "'tall' is no whole number",
    f"width<{2**53}": f"'{2**53}' is too large a number",
    "width<" + 9_999 * "9": "is too large a number",
    "size_bytes>=5XB": "'XB' is no unit of size; there are kB, MB, .* and TiB.*size_bytes>=5MB",
    "size_bytes>=1.0001kB": "'1.0001kB' is no whole number of bytes",
    "size_bytes>=9999999TB": "is too large a number",
    "modified=yesterday": "'yesterday' is no date.*Write for example: modified>=2024-05-01",
    "modified=24-05-01": "is no date",
    "modified=2024,2025": "modified= takes one value, not 2",
    "modified=2023-02-29": "'2023-02-29' is no date: day is out of range",
    "modified=2024-13": "no date: month must be in 1..12",
    "modified=0000": "no date: year 0 is out of range",
    "modified=2024-05-01T25:00": "no date: hour must be in 0..23",
    "modified=2024-06-30T23:59:60Z": "no date: second must be in 0..59",
    "modified=2024-05-01T12:00+25:00": "is no date",
    "modified=0001-01-01T00:00+14:00": "outside the years 1 to 9999",
    "modified=2024-05-02..2024-05-01": "the range is empty.*Write for example: modified=2024-01..2024-05-15",
}


@pytest.mark.parametrize("text", REFUSALS)
def test_what_cannot_be_read_is_refused_with_the_reason_and_an_example(text: str) -> None:
    with pytest.raises(DataError, match=f"(?s){REFUSALS[text]}"):
        parse_where(text)


def test_the_examples_in_the_messages_can_be_read() -> None:
    assert set(_EXAMPLES) == set(KEYS)
    for key, example in _EXAMPLES.items():
        assert example.startswith(key)
        parse_where(example)
    for key, kind in FIELDS.items():
        if kind != "text":
            parse_where(f"{key}={_RANGE_EXAMPLES[kind]}")


def test_the_fields_are_those_that_ingest_stores_and_of_the_kinds_that_the_store_indexes() -> None:
    payload = make_payload(
        source="/p",
        path="a",
        category="c",
        sha256="0",
        width=1,
        height=1,
        size_bytes=1,
        modified="m",
        unit="u",
    )
    assert set(payload) == set(FIELDS)
    kinds = ("text", "number", "datetime")
    by_kind = {kind: {key for key in FIELDS if FIELDS[key] == kind} for kind in kinds}
    assert by_kind == {
        "text": set(KEYWORD_FIELDS),
        "number": set(INTEGER_FIELDS),
        "datetime": set(DATETIME_FIELDS),
    }


def test_a_filter_holds_all_that_is_asked() -> None:
    assert make_filter() is None
    assert make_filter(
        categories=["aves", "fungi"], not_categories=("plantae",), where=iter(["width>1"])
    ) == (
        Filter(
            must=(Match("category", ("aves", "fungi")), Range("width", gt=1)),
            must_not=(Match("category", ("plantae",)),),
        )
    )
    assert make_filter(where=["path!=a.jpg", "path!=b.jpg"]) == Filter(
        must_not=(Match("path", ("a.jpg",)), Match("path", ("b.jpg",)))
    )
    assert make_filter(categories=["caf\udce9"]) == Filter(must=(Match("category", ("caf\\xe9",)),))
    with pytest.raises(DataError, match="surrogates"):
        make_filter(not_categories=["\ud800"])
    with pytest.raises(DataError, match="no field 'a'"):
        make_filter(where=["width>1", "a=b"])


# ---- The oracle: conditions written as text -----------------------------------------------------

_COMPARISONS = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}


def _written(read: Filter) -> str:
    """Return a text of the one condition of a filter that `parse_where` gave."""
    (condition,) = (*read.must, *read.must_not)
    equals = "!=" if read.must_not else "="
    if isinstance(condition, Ids):
        return f"id{equals}{','.join(condition.ids)}"
    if isinstance(condition, Match):
        return f"{condition.field}{equals}{','.join(map(_format_value, condition.values))}"
    return condition.field + _format_range(condition, equals)


def _format_value(value: str | int) -> str:
    text = str(value)
    if isinstance(value, str) and (not text or text != text.strip() or text[0] == '"' or "," in text):
        return '"' + text.replace('"', '""') + '"'
    return text


def _format_range(condition: Range, equals: str) -> str:
    """Return what follows the key, as short as it can be said."""
    bounds = {name: _format_bound(name, bound) for name, bound in condition.bounds.items()}
    if len(bounds) == 1 and equals == "=":
        ((name, bound),) = bounds.items()
        return _COMPARISONS[name] + bound
    low, high = bounds.get("gte", ""), bounds.get("lte", "")
    if isinstance(condition.lt, str):
        high = _format_end(datetime.fromisoformat(condition.lt.replace("Z", "+00:00")))
    for whole in (low[:4], low[:7], low[:10]) if isinstance(condition.gte, str) and condition.lt else ():
        if parse_where(f"{condition.field}={whole}").must == (condition,):
            return equals + whole
    if isinstance(condition.gte, str) and (condition.gte == condition.lte or low == high):
        return equals + high
    return f"{equals}{low}..{high}"


def _format_bound(name: str, bound: float | str) -> str:
    if not isinstance(bound, str):
        return str(int(bound))
    if name in ("gt", "lte"):
        return bound  # with its fraction, which makes it an instant
    return bound.removesuffix("T00:00:00.000000Z").replace(".000000Z", "Z")


def _format_end(following: datetime) -> str:
    """Return the day or second that ends where another begins."""
    if following == datetime.min.replace(tzinfo=timezone.utc):
        return ""
    last = (following - timedelta(microseconds=1)).replace(tzinfo=None).isoformat(timespec="seconds")
    return last.removesuffix("T23:59:59") if following.strftime("%H%M%S") == "000000" else f"{last}Z"


# ---- Properties ----------------------------------------------------------------------------------

texts = st.text(max_size=8)
numbers = st.integers(-(2**53) + 1, 2**53 - 1)
dates = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat()[:10]),
    st.datetimes().map(lambda moment: moment.isoformat()[:7]),
    st.datetimes().map(lambda moment: moment.isoformat()[:4]),
    st.datetimes().map(lambda moment: moment.isoformat(timespec="minutes")),
    st.datetimes().map(lambda moment: moment.isoformat(timespec="seconds")),
    st.datetimes(max_value=datetime(9999, 1, 1)).map(lambda moment: f"{moment.isoformat()[:19]}.0001-03:30"),
)
pieces = st.one_of(
    st.sampled_from([*KEYS, "=", "!=", ">", ">=", "<", "<=", "..", ",", '"', '""', " ", "-", "5", "0", "MB"]),
    texts,
    dates,
    numbers.map(str),
    st.characters(categories=["Cs", "Nd", "Zs", "Cc"]),
)


@settings(max_examples=1_000, derandomize=True, deadline=None)
@given(st.one_of(st.text(), st.lists(pieces, max_size=7).map("".join)))
def test_any_text_is_read_or_refused_and_what_is_read_can_be_written_and_read_again(text: str) -> None:
    try:
        read = parse_where(text)
    except DataError:
        return
    assert parse_where(_written(read)) == read


@settings(max_examples=1_000, derandomize=True, deadline=None)
@given(
    st.one_of(
        st.tuples(st.sampled_from(INTEGER_FIELDS), numbers.map(str)),
        st.tuples(st.just("modified"), dates),
    ),
    st.sampled_from(["=", "!=", ">", ">=", "<", "<="]),
    st.sampled_from(["{}", "{}..", "..{}", "{}..{}"]),
)
def test_what_is_written_of_a_range_reads_the_same(
    key_and_value: tuple[str, str], operator: str, form: str
) -> None:
    key, value = key_and_value
    text = key + operator + form.format(value, value)
    if ".." in form and operator not in ("=", "!="):
        with pytest.raises(DataError, match="a range takes"):
            parse_where(text)
        return
    read = parse_where(text)
    assert parse_where(_written(read)) == read


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.sampled_from(KEYWORD_FIELDS), st.lists(st.text(), min_size=1, max_size=3).map(tuple), st.booleans())
def test_every_match_of_texts_can_be_written(field: str, values: tuple[str, ...], negated: bool) -> None:
    condition = Match(field, values)
    meant = Filter(must_not=(condition,)) if negated else Filter(must=(condition,))
    assert parse_where(_written(meant)) == meant


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.datetimes(timezones=st.just(timezone.utc)), dates)
def test_a_date_covers_exactly_the_moments_whose_text_begins_with_it(moment: datetime, date: str) -> None:
    if date.endswith("-03:30"):
        return
    (condition,) = parse_where(f"modified={date}").must
    assert isinstance(condition, Range)
    start = datetime.fromisoformat(str(condition.gte).replace("Z", "+00:00"))
    for near in (moment, start, start + timedelta(hours=1)) if start.year < 9999 else (moment, start):
        text = near.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
        inside = str(condition.gte) <= text and (
            text < str(condition.lt) if condition.lt else text <= str(condition.lte)
        )
        assert inside == text.startswith(date)
