"""Sources whose pictures are fetched one by one: a prefix of an object store, and a list of addresses."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from imret.datasets import kinds
from imret.datasets.addresses import Address, read_addresses
from imret.datasets.exclusion import Exclusion
from imret.datasets.kinds import EMPTY
from imret.datasets.scan import Ignored, Skipped, looks_like_picture
from imret.datasets.spelling import composed
from imret.places.listing import Unlisted, list_tree
from imret.places.names import join
from imret.places.reading import patiently, read_whole
from imret.places.stores import Stored, look_up
from imret.sources.presence import OutOfReach, Presence
from ingest.sources import UNKNOWN_SIZE, Entry, Record, SourceKind, Unit, slices

# Pictures that are read at a time: while one is waited for, nothing is computed.
READS_AHEAD = 32


@dataclass(frozen=True, slots=True)
class Remote:
    """A picture that is an object."""

    url: str

    def read(self) -> bytes:
        """Return its bytes. Raises DataError if they cannot be read."""
        return read_whole(self.url)


@dataclass(frozen=True, slots=True)
class OnWeb:
    """A picture behind an address on the web."""

    url: str

    def read(self) -> bytes:
        """Return its bytes. Raises ImageError if they cannot be fetched."""
        from imret.retrieval.fetch import fetch_picture

        return fetch_picture(self.url, allow_private=True)


class PrefixSource:
    """Pictures below a URL of an object store, each an object; the first folder below is its category.

    Args:
        root: The URL, canonical.
        categories: As for `FolderSource`.
        exclude: The same.
    """

    def __init__(self, root: str, *, categories: bool = True, exclude: Sequence[str] | None = None) -> None:
        self.root, self.categories = root, categories
        self.exclusion = Exclusion("", exclude or ())
        self.exclude = None if exclude is None else self.exclusion.patterns
        self.kind: SourceKind = "prefix"
        self.is_folder, self.reads_ahead = False, READS_AHEAD
        self._n_found = 0

    def excluding(self, patterns: Sequence[str]) -> PrefixSource:
        """Return the same prefix, with other patterns of what is left out."""
        other = copy.copy(self)
        other.exclusion = Exclusion("", patterns)
        other.exclude = other.exclusion.patterns
        return other

    def entries(self) -> Iterator[Entry]:
        """Yield every picture below the prefix, in the order of names, and what is left out, and why.

        Raises:
            DataError: If it cannot be listed.
        """
        self._n_found = 0
        for listed in list_tree(self.root, enter=lambda path: self._reason(path, is_folder=True) is None):
            if isinstance(listed, Unlisted):
                yield Skipped(listed.path, listed.reason, unseen=True)
            else:
                yield self._entry(*listed)

    def _entry(self, path: str, stored: Stored) -> Entry:
        reason = self._reason(path, is_folder=False)
        if reason is None and not looks_like_picture(path):
            reason = kinds.kind_of(path.rpartition("/")[2])
        if reason is None and not stored.size_bytes:
            reason = EMPTY
        if reason is not None:
            return Ignored(path, reason)
        self._n_found += 1
        folder, slash, _ = path.partition("/")
        category = composed(folder) if slash and self.categories else None
        content = Remote(join(self.root, path))
        return Record(path, category, stored.size_bytes, stored.mtime_ns, self.root, content)

    def _reason(self, path: str, *, is_folder: bool) -> str | None:
        return self.exclusion.reason(path, is_folder=is_folder)

    def units(self) -> Iterator[Unit]:
        """Yield slices of the listing. Raises as `entries`."""
        return slices(self.entries())

    def glance(self) -> Iterator[tuple[str, int]]:
        """Yield nothing: to list is the longest part of a run in which nothing is new."""
        return iter(())

    def count(self) -> int | None:
        """Return None, for the same reason."""
        return None

    def presence(self, paths: Iterable[str], *, unseen: Collection[str] = ()) -> dict[str, Presence]:
        """Return what is at each path now; below a prefix that holds nothing, nothing is gone."""
        found: dict[str, Presence] = {}
        asked: list[str] = []
        for path in paths:
            above = next((one for one in unseen if path.startswith(f"{one}/")), None)
            if above is not None:
                found[path] = OutOfReach(above, "could not be read a moment ago")
            elif self.exclusion.reason_within(path) is not None or not looks_like_picture(path):
                found[path] = "left out"
            else:
                asked.append(path)
        urls = [join(self.root, path) for path in asked]
        for path, stored in zip(asked, patiently(lambda: look_up(urls)), strict=True):
            if stored is not None and not stored.is_folder and stored.size_bytes:
                found[path] = "here"
            else:
                found[path] = "gone" if self._n_found else OutOfReach("", "holds no picture now")
        return found


class ListSource:
    """Pictures whose addresses are the lines of a text file. What an address stands for is fetched once.

    Args:
        file: The text file, absolute.
        exclude: As for `FolderSource`; patterns are compared with the addresses.
    """

    def __init__(self, file: str, *, exclude: Sequence[str] | None = None) -> None:
        self.root, self.categories = file, False
        self.exclusion = Exclusion("", exclude or ())
        self.exclude = None if exclude is None else self.exclusion.patterns
        self.kind: SourceKind = "list"
        self.is_folder, self.reads_ahead = False, READS_AHEAD
        self._named: tuple[tuple[int, int], set[str]] | None = (
            None  # time and size of the file, what it names
        )

    def excluding(self, patterns: Sequence[str]) -> ListSource:
        """Return the same list, with other patterns of what is left out."""
        return ListSource(self.root, exclude=patterns)

    def entries(self) -> Iterator[Entry]:
        """Yield a record for each line, and what is left out, and why.

        Raises:
            DataError: If the file cannot be read.
        """
        changed_ns = os.stat(self.root).st_mtime_ns if os.path.exists(self.root) else 0
        for entry in read_addresses(self.root):
            if not isinstance(entry, Address):
                yield entry
            elif (reason := self.exclusion.reason_by_pattern(entry.path, is_folder=False)) is not None:
                yield Ignored(entry.path, reason)
            else:
                content = OnWeb(entry.url) if entry.is_on_web else Remote(entry.url)
                yield Record(entry.path, None, UNKNOWN_SIZE, changed_ns, self.root, content)

    def units(self) -> Iterator[Unit]:
        """Yield slices of the list. Raises as `entries`."""
        return slices(self.entries())

    def glance(self) -> Iterator[tuple[str, int]]:
        """Yield the number of lines, as if all lay in one folder."""
        yield "", self.count()

    def count(self) -> int:
        """Return how many addresses there are."""
        return sum(isinstance(entry, Record) for entry in self.entries())

    def presence(self, paths: Iterable[str], *, unseen: Collection[str] = ()) -> dict[str, Presence]:
        """Return for each address whether a line names it."""
        named = self._names()
        if not named:
            return dict.fromkeys(paths, OutOfReach("", "holds no address now"))
        return {path: "here" if path in named else "gone" for path in paths}

    def _names(self) -> set[str]:
        """Return the addresses in the file, which is read again only where it has changed."""
        try:
            info = os.stat(self.root)
            now = info.st_mtime_ns, info.st_size
        except OSError:  # which reading it tells of
            now = -1, -1
        if self._named is None or self._named[0] != now:
            self._named = now, {entry.path for entry in self.entries() if isinstance(entry, Record)}
        return self._named[1]
