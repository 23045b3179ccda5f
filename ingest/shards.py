"""Sources that are containers: tar and Parquet files below a folder or URL, each a unit."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import Ignored, Skipped
from imret.datasets.shards import PARQUET, TAR, ShardPicture, is_shard, read_shard
from imret.places.listing import Unlisted, list_tree
from imret.places.names import is_url
from imret.places.stores import Stored
from imret.sources.presence import OutOfReach, Presence
from ingest.sources import Entry, Record, SourceKind, Unit


class ShardSource:
    """Tar and Parquet files below a folder or URL.

    Args:
        root: The folder, absolute, or the URL, canonical.
        only: Paths of files below it, where not all are meant; they need not be there.
        categories: As for `FolderSource`: the first folder in a container.
        exclude: Patterns of what is left out, of containers and of what is in them.

    Attributes:
        skipped: What could not be listed the last time: unreadable folders, files that are not there.
    """

    def __init__(
        self,
        root: str,
        *,
        only: Collection[str] | None = None,
        categories: bool = True,
        exclude: Sequence[str] | None = None,
    ) -> None:
        self.root, self.categories = root, categories
        self.exclusion = Exclusion("" if is_url(root) else root, exclude or ())
        self.exclude = None if exclude is None else self.exclusion.patterns
        self.kind: SourceKind = "shards"
        self.is_folder, self.reads_ahead = False, 1
        self._only = None if only is None else frozenset(only)
        self._listed: set[str] = set()
        self.skipped: list[Skipped] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out which containers there are: they may be many, and go along with each unit."""
        return {**self.__dict__, "_only": None, "_listed": set(), "skipped": []}

    def excluding(self, patterns: Sequence[str]) -> ShardSource:
        """Return the same source, with other patterns of what is left out."""
        other = copy.copy(self)
        other.exclusion = Exclusion("" if is_url(self.root) else self.root, patterns)
        other.exclude = other.exclusion.patterns
        other._listed, other.skipped = set(), []
        return other

    def units(self) -> Iterator[Unit]:
        """Yield each container, in the order of names.

        Raises:
            DataError: If the source cannot be listed.
        """
        for listed in self._containers():
            if isinstance(listed, Unit):
                yield listed

    def entries(self) -> Iterator[Entry]:
        """Yield what is in each container, and what is left out, and why. Raises as `units`."""
        for listed in self._containers():
            if isinstance(listed, Unit):
                yield from listed.entries()
            else:
                yield listed

    def selects(self, unit: str) -> bool:
        """Whether a container is one of those that are meant, whether it is there or not."""
        return self._only is None or unit in self._only

    def _containers(self) -> Iterator[Unit | Skipped | Ignored]:
        self._listed.clear()
        self.skipped.clear()
        for listed in _beside(self._files()):
            if isinstance(listed, Unlisted):
                self.skipped.append(Skipped(listed.path, listed.reason, unseen=True))
                yield self.skipped[-1]
                continue
            path, stored, has_tar = listed
            self._listed.add(path)
            if path.lower().endswith(PARQUET) and has_tar:
                continue  # what img2dataset says of the tar file of its name
            read = partial(_records, self.root, path, self.exclusion, self.categories)
            digest = hashlib.sha256(
                f"{path}\0{stored.size_bytes}\0{stored.mtime_ns}".encode("utf-8", "replace")
            )
            yield Unit(path, digest.hexdigest(), stored.size_bytes, read, is_container=True)
        for path in sorted((self._only or frozenset()) - self._listed):
            self.skipped.append(Skipped(path, "is not there"))
            yield self.skipped[-1]

    def _files(self) -> Iterator[tuple[str, Stored] | Unlisted]:
        """Yield the containers that are meant, in the order of names."""
        tree = list_tree(
            self.root,
            enter=lambda path: self._enters(path) and self.exclusion.reason(path, is_folder=True) is None,
        )
        for listed in tree:
            if isinstance(listed, Unlisted):
                yield listed
                continue
            path, stored = listed
            if not is_shard(path) or not self.selects(path):
                continue
            if self.exclusion.reason(path, is_folder=False) is None:
                yield path, stored

    def _enters(self, folder: str) -> bool:
        return self._only is None or any(path.startswith(f"{folder}/") for path in self._only)

    def glance(self) -> Iterator[tuple[str, int]]:
        """Yield nothing: what is in a container shows when it is read."""
        return iter(())

    def count(self) -> int | None:
        """Return None, for the same reason."""
        return None

    def presence(self, paths: Iterable[str], *, unseen: Collection[str] = ()) -> dict[str, Presence]:
        """Return whether the container of each path was there when the source was listed last.

        Whether a picture is still in its container is known to who has read that: see `Reconciler.prune`.
        """
        return {path: self._presence(path, unseen) for path in paths}

    def _presence(self, path: str, unseen: Collection[str]) -> Presence:
        unit = _unit_of(path)
        unseen = (*unseen, *(one.path for one in self.skipped if one.unseen))
        above = next((folder for folder in unseen if unit == folder or unit.startswith(f"{folder}/")), None)
        if above is not None:
            return OutOfReach(above, "could not be read a moment ago")
        if not self._listed:
            return OutOfReach("", "holds none of its files")
        return "here" if unit in self._listed or not self.selects(unit) else "gone"


def _unit_of(path: str) -> str:
    """Return the container that a path leads into."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        if is_shard(parts[depth - 1]):
            return "/".join(parts[:depth])
    return path


def _beside(
    files: Iterable[tuple[str, Stored] | Unlisted],
) -> Iterator[tuple[str, Stored, bool] | Unlisted]:
    """Yield files, and whether a tar file of the same name lies beside each Parquet file: it comes next."""
    waiting: tuple[str, Stored] | None = None
    for listed in files:
        if waiting is not None:
            stem = os.path.splitext(waiting[0])[0]
            has_tar = not isinstance(listed, Unlisted) and listed[0] == stem + TAR
            yield (*waiting, has_tar)
            waiting = None
        if isinstance(listed, Unlisted):
            yield listed
        elif listed[0].lower().endswith(PARQUET):
            waiting = listed
        else:
            yield (*listed, False)
    if waiting is not None:
        yield (*waiting, False)


def _records(root: str, unit: str, exclusion: Exclusion, categories: bool) -> Iterator[Entry]:
    for entry in read_shard(root, unit, exclusion, categories=categories):
        if isinstance(entry, ShardPicture):
            yield Record(
                entry.path,
                entry.category,
                entry.size_bytes,
                entry.mtime_ns,
                root,
                content=entry.content,
                unit=entry.unit,
                at=entry.at,
                caption=entry.caption,
                meta=entry.meta,
            )
        else:
            yield entry
