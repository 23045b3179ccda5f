"""A text file with an address of a picture on each line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from imret.datasets.scan import Skipped
from imret.errors import DataError
from imret.places.names import SCHEMES, canonical, is_url, without_secrets

SUFFIX = ".txt"
_WEB = ("http", "https")
MAX_LINE_CHARS = 8_192


@dataclass(frozen=True, slots=True)
class Address:
    """A line that names a picture.

    Attributes:
        path: What it is known by: the address without query and password, which may hold keys.
        url: What is fetched.
    """

    path: str
    url: str

    @property
    def is_on_web(self) -> bool:
        """Whether it is http or https, and not of an object store."""
        return self.url.partition("://")[0].lower() in _WEB


def read_addresses(file: str) -> Iterator[Address | Skipped]:
    """Yield the addresses in a text file; empty lines and those that begin with # say nothing.

    In memory is a hash of each address, to tell the second of two that differ only in what is left out.

    Raises:
        DataError: If the file cannot be read.
    """
    seen: set[int] = set()
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip().strip("\ufeff")
                if not text or text.startswith("#"):
                    continue
                entry = _address(text, number)
                if isinstance(entry, Address):
                    if hash(entry.path) in seen:
                        entry = Skipped(
                            entry.path, f"line {number}: named before, but for what follows a '?'"
                        )
                    else:
                        seen.add(hash(entry.path))
                yield entry
    except OSError as error:
        raise DataError(f"cannot read the list {file!r}: {error.strerror}.") from error


def _address(text: str, number: int) -> Address | Skipped:
    scheme = text.partition("://")[0].lower()
    if not is_url(text) or len(text) > MAX_LINE_CHARS or any(ord(char) < 32 for char in text):
        return Skipped(f"line {number}", "no address such as https://example.org/a.jpg or s3://bucket/a.jpg")
    if scheme in _WEB:
        return Address(without_secrets(text), text)
    try:
        url = canonical(text)
    except DataError:
        return Skipped(
            without_secrets(text),
            f"line {number}: imret fetches {', '.join(f'{one}://' for one in (*_WEB, *SCHEMES))}",
        )
    return Address(url, url)


def is_list(name: str) -> bool:
    """Whether a name is that of a text file on this machine, which would hold addresses."""
    return name.lower().endswith(SUFFIX) and os.path.isfile(name)
