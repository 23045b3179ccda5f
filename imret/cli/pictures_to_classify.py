"""The pictures that the arguments of `imret classify` name: files, folders, shards, and buckets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import Picture, Skipped, but_left_out, looks_like_picture, walk
from imret.datasets.shards import ShardPicture, is_shard, read_shard
from imret.errors import DataError, ImretError
from imret.places.listing import Unlisted, list_tree
from imret.places.names import canonical, is_url, join, split_last
from imret.places.reading import read_whole


class NamedBytes(bytes):
    """A picture's bytes that are called by where they were read."""

    name: str

    @classmethod
    def of(cls, name: str, data: bytes) -> NamedBytes:
        """Return bytes under a name."""
        named = cls(data)
        named.name = name
        return named

    def __str__(self) -> str:
        return self.name


@dataclass
class PicturesToClassify:
    """The pictures of the arguments, those of a folder or shard in its order.

    What cannot be one is reported and counted. A URL is read because somebody typed it.

    Attributes:
        arguments: As typed.
        exclude: Patterns of what is left out.
        report: Called with a path, and why it is no picture.
        n_skipped: How many it was called for.
    """

    arguments: Sequence[str]
    exclude: Sequence[str]
    report: Callable[[str, str], None]
    n_skipped: int = 0

    def __post_init__(self) -> None:
        self._exclusions = {
            one: Exclusion("" if is_url(one) else one, self.exclude) for one in self.arguments
        }

    def report_missing(self) -> None:
        """Report the arguments that are not there, and leave them out; URLs are not looked at yet."""
        there = [one for one in self.arguments if is_url(one) or os.path.lexists(one)]
        for argument in self.arguments:
            if argument not in there:
                self._report(argument, "no such file")
        self.arguments = there

    def __iter__(self) -> Iterator[str | NamedBytes]:
        for argument in self.arguments:
            if is_url(argument):
                yield from self._at_url(argument)
            elif os.path.isdir(argument):
                yield from self._in_folder(argument)
            elif is_shard(argument):
                folder, unit = os.path.split(argument)
                yield from self._in_shard(folder or ".", unit, self._exclusions[argument])
            else:
                yield argument

    def _in_folder(self, folder: str) -> Iterator[str]:
        n = 0
        try:
            for entry in walk(folder, self._exclusions[folder]):
                if isinstance(entry, Picture):
                    n += 1
                    yield entry.file_in(folder)
                elif isinstance(entry, Skipped):
                    self._report(os.path.join(folder, entry.path), entry.reason)
        except OSError as error:
            self._report(folder, f"cannot be read: {error.strerror}")
            return
        if not n:
            left_out = but_left_out(folder, self._exclusions[folder])
            self._report(folder, f"no pictures in this folder{left_out}")

    def _in_shard(self, root: str, unit: str, exclusion: Exclusion) -> Iterator[NamedBytes]:
        for entry in read_shard(root, unit, exclusion):
            path = join(root, entry.path)
            if isinstance(entry, Skipped):
                self._report(path, entry.reason)
            elif isinstance(entry, ShardPicture):
                yield from self._read(path, entry.content.read)

    def _at_url(self, typed: str) -> Iterator[NamedBytes]:
        exclusion = self._exclusions[typed]
        try:
            url = canonical(typed)
            if is_shard(url):
                yield from self._in_shard(*split_last(url), exclusion)
            elif looks_like_picture(url):
                yield from self._read(url, partial(read_whole, url))
            else:
                yield from self._below(url, exclusion)
        except DataError as error:
            self._report(typed, str(error))

    def _below(self, url: str, exclusion: Exclusion) -> Iterator[NamedBytes]:
        n = 0
        for listed in list_tree(url, enter=lambda path: exclusion.reason(path, is_folder=True) is None):
            if isinstance(listed, Unlisted):
                self._report(join(url, listed.path), listed.reason)
                continue
            path, _ = listed
            if exclusion.reason(path, is_folder=False) is not None:
                continue
            if is_shard(path):
                n += 1
                yield from self._in_shard(url, path, exclusion)
            elif looks_like_picture(path):
                n += 1
                yield from self._read(join(url, path), partial(read_whole, join(url, path)))
        if not n:
            self._report(url, "no pictures below it")

    def _read(self, name: str, read: Callable[[], bytes]) -> Iterator[NamedBytes]:
        try:
            yield NamedBytes.of(name, read())
        except (ImretError, OSError) as error:
            self._report(name, str(error))

    def _report(self, path: str, reason: str) -> None:
        self.n_skipped += 1
        self.report(path, reason)
