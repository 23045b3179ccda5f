"""Names of places: which are URLs of object stores, how those are written, and patterns that name several."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imret.errors import DataError

SCHEMES = ("s3", "gs", "az")
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)")
MOST_NAMES = 1_000_000  # that a pattern may stand for


def is_url(name: str) -> bool:
    """Whether a name is a URL, of whatever scheme, and not a path."""
    return _URL.fullmatch(name) is not None


def canonical(url: str) -> str:
    """Return a URL as it is stored: without query, fragment, user name, password and idle slashes.

    Raises:
        DataError: If it is of no object store that is read, or names no bucket.
    """
    match = _URL.fullmatch(url)
    scheme = "" if match is None else match[1].lower()
    scheme = _ALIASES.get(scheme, scheme)
    if match is None or scheme not in SCHEMES:
        raise DataError(
            f"{without_secrets(url)!r} is of no store that imret reads, which are "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)} and folders. Copy it to a folder, or write "
            "addresses of pictures on the web into a text file, one a line, and ingest that."
        )
    rest = match[2].partition("?")[0].partition("#")[0]
    bucket, _, key = rest.partition("/")
    bucket = bucket.rpartition("@")[2]
    if not bucket:
        raise DataError(f"{without_secrets(url)!r} names no bucket. Write {scheme}://BUCKET/PREFIX.")
    parts = [part for part in key.split("/") if part]
    return f"{scheme}://" + "/".join([bucket, *parts])


def without_secrets(url: str) -> str:
    """Return a URL that may be shown: without user name, password and query."""
    text = re.sub(r"://[^/?#]*@", "://", url.strip())
    return text.partition("?")[0].partition("#")[0]


def join(root: str, path: str) -> str:
    """Return the URL of what lies at a path below another."""
    return f"{root}/{path}" if path else root


def split_last(url: str) -> tuple[str, str]:
    """Return the URL above the last part of one, and that part; of a bucket its URL and ""."""
    scheme, _, rest = url.partition("://")
    above, slash, last = rest.rpartition("/")
    return (f"{scheme}://{above}", last) if slash else (url, "")


def expanded(pattern: str) -> list[str]:
    """Return what a pattern with braces stands for, as a shell would write it; one without, itself.

    `{00000..00099}` is each number in turn, as many digits as are written; `{a,b}` each of the texts. Braces
    that are neither stand for themselves.

    Raises:
        DataError: If that is more than `MOST_NAMES`.
    """
    names = [""]
    at = 0
    for braces in _BRACES.finditer(pattern):
        choices = list(_choices(braces[1], pattern))
        if not choices:
            continue
        literal = pattern[at : braces.start()]
        at = braces.end()
        if len(names) * len(choices) > MOST_NAMES:
            raise _too_many(pattern)
        names = [name + literal + choice for name in names for choice in choices]
    return [name + pattern[at:] for name in names]


def _choices(text: str, pattern: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(text)
    if numbers is None:
        if "," in text:
            yield from text.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= MOST_NAMES:
        raise _too_many(pattern)
    padded = any(re.match(r"-?0[0-9]", one) for one in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield f"{number:0{width}d}" if width else str(number)


def _too_many(pattern: str) -> DataError:
    return DataError(
        f"the pattern {pattern!r} stands for more than {MOST_NAMES:,} names. Name the folder they lie in."
    )
