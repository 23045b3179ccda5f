"""Where pictures come from: a source becomes records and units of them, and nothing is decoded here."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import Ignored, Picture, Skipped, glance, walk
from imret.datasets.spelling import path_on_disk
from imret.errors import DataError
from imret.escape import escape_undecodable
from imret.sources.presence import Presence, presence
from imret.store.payload import modified_time, point_id

UNKNOWN_SIZE = -1  # of a picture whose size shows when it is read, as behind an address

SourceKind: TypeAlias = Literal["folder", "prefix", "shards", "list"]

# A slice of a listing begins where the checksum of a path says so, about every so many: a picture that comes
#  or goes changes the slice that it is in, and no other. No slice has more than MOST_IN_SLICE.
_SLICE, MOST_IN_SLICE = 4_096, 16_384


class Content(Protocol):
    """The bytes of a picture that is no file of this machine by itself. Any thread may read them."""

    def read(self) -> bytes:
        """Return them.

        Raises:
            OSError: If they cannot be read; `strerror` says why.
            ImretError: The same, with what to do.
        """


@dataclass(frozen=True, slots=True)
class Record(Picture):
    """A picture of a source, before decoding.

    Attributes:
        source: Absolute folder, or URL, that was asked for; `path` lies below it.
        content: Its bytes, where it is no file of its own on this machine; else None.
        unit: Path of the container that it lies in, below the source: a tar or Parquet file; None for none.
        at: Where its bytes begin in that container, if they lie there as they are.
        caption: What is said of it.
        meta: What else is known of it: a text or a number by name.
    """

    source: str
    content: Content | None = None
    unit: str | None = None
    at: int | None = None
    caption: str | None = None
    meta: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """The point id: always the same for one place."""
        return point_id(self.source, self.path)

    @property
    def file(self) -> str | None:
        """The absolute path that opens it, if it is a file of this machine."""
        return self.file_in(self.source) if self.content is None else None

    @property
    def modified(self) -> str:
        """Time of its last change, RFC 3339; of one in a container, the container's."""
        return modified_time(self.mtime_ns)

    def open(self) -> BinaryIO:
        """Open its bytes.

        Raises:
            OSError: If they cannot be read.
            ImretError: The same, with what to do.
        """
        if self.content is None:
            return open(self.file_in(self.source), "rb")
        return io.BytesIO(self.content.read())

    def read(self) -> bytes:
        """Return its bytes, all at once. Raises as `open`."""
        if self.content is not None:
            return self.content.read()
        with self.open() as file:
            return file.read()


Entry: TypeAlias = Record | Skipped | Ignored


@dataclass(frozen=True)
class Unit:
    """A part of a source that is done or not as a whole: a container, or a slice of a listing. Pickles.

    Attributes:
        name: Always the same for the same part, and another for each part of a source.
        digest: Another if any picture in it is another: of a container from its size and time, of a slice
            from the paths, sizes and times in it.
        size_bytes: About how much is read for all of it.
        read: Gives its entries, each time anew.
        is_container: Whether its pictures have its name as their `unit`.
    """

    name: str
    digest: str
    size_bytes: int
    read: Callable[[], Iterable[Entry]]
    is_container: bool = False

    def entries(self) -> Iterator[Entry]:
        """Yield its pictures, and what is left out, and why. Raises as `Source.entries`."""
        return iter(self.read())


class Source(Protocol):
    """Pictures under one name, which is a part of each of their ids.

    Attributes:
        root: Absolute folder of this machine, or a URL without query and credentials.
        categories: Whether the first folder below is a picture's category, where nothing else says one.
        exclusion: What is left out.
        exclude: Patterns of that, as they were said; None where those that are remembered are meant.
        kind: "folder" and "prefix" for pictures that are files, or objects, of their own below the root;
            "shards" for those in containers below it, "list" for addresses in a file.
        is_folder: Whether `root` is a folder whose pictures are files of their own on this machine.
        reads_ahead: How many of its pictures are worth reading at a time; 1 for a disk of this machine.
    """

    root: str
    categories: bool
    exclusion: Exclusion
    exclude: tuple[str, ...] | None
    kind: SourceKind
    is_folder: bool
    reads_ahead: int

    def excluding(self, patterns: Sequence[str]) -> Source:
        """Return the same source, with other patterns of what is left out."""

    def entries(self) -> Iterator[Entry]:
        """Yield every picture in it, units one after the other, and what is left out, and why.

        Raises:
            DataError: If the source itself has gone, or cannot be read any more.
        """

    def units(self) -> Iterator[Unit]:
        """Yield the parts of it, each when it has been listed; together they have what `entries` gives."""

    def glance(self) -> Iterator[tuple[str, int]]:
        """Yield each folder in it, and how many pictures that holds itself, as far as names tell."""

    def count(self) -> int | None:
        """Return how many pictures there seem to be, no promise; None where only reading all would tell."""

    def presence(self, paths: Iterable[str], *, unseen: Collection[str] = ()) -> dict[str, Presence]:
        """Return what is at each path now: see `imret.sources.presence`."""


def slices(entries: Iterable[Entry]) -> Iterator[Unit]:
    """Yield the entries of a listing, which are in its order, as units; memory stays at one of them.

    A slice is named by the first path in it, and the first one "".
    """
    name, held = "", list[Entry]()
    for entry in entries:
        begins = zlib.crc32(os.fsencode(entry.path)) % _SLICE == 0 or len(held) == MOST_IN_SLICE
        if held and begins:
            yield _slice(name, held)
            name, held = entry.path, []
        held.append(entry)
    if held:
        yield _slice(name, held)


def _slice(name: str, entries: list[Entry]) -> Unit:
    records = [entry for entry in entries if isinstance(entry, Record)]
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.path):
        line = os.fsencode(record.path) + f"\0{record.size_bytes}\0{record.mtime_ns}\n".encode()
        digest.update(line)
    size_bytes = sum(record.size_bytes for record in records)
    return Unit(name, digest.hexdigest(), size_bytes, partial(list[Entry], entries))


class PartSource:
    """Some units of a source, as a source: what is in others is neither read nor missed.

    Args:
        whole: The source.
        units: Of it.
    """

    def __init__(self, whole: Source, units: Sequence[Unit]) -> None:
        self._whole, self._units = whole, list(units)
        self.root, self.categories = whole.root, whole.categories
        self.exclusion, self.exclude = whole.exclusion, whole.exclude
        self.kind, self.is_folder, self.reads_ahead = whole.kind, whole.is_folder, whole.reads_ahead
        self._names = {unit.name for unit in self._units}

    def selects(self, unit: str) -> bool:
        """Whether a container is one of those that are meant."""
        return unit in self._names

    def excluding(self, patterns: Sequence[str]) -> PartSource:
        """Return itself: what the units were listed with is what is left out."""
        return self

    def entries(self) -> Iterator[Entry]:
        """Yield what is in the units. Raises as `Source.entries`."""
        for unit in self._units:
            yield from unit.entries()

    def units(self) -> Iterator[Unit]:
        """Yield the units."""
        return iter(self._units)

    def glance(self) -> Iterator[tuple[str, int]]:
        """Yield nothing: what is in the units shows when they are read."""
        return iter(())

    def count(self) -> int | None:
        """Return None, for the same reason."""
        return None

    def presence(self, paths: Iterable[str], *, unseen: Collection[str] = ()) -> dict[str, Presence]:
        """Return what is at each path now, in this part or another."""
        return self._whole.presence(paths, unseen=unseen)


class FolderSource:
    """A folder of pictures, one sub-folder per category.

    Args:
        folder: The folder to walk, nested as deep as it likes; symlinks are followed.
        categories: Whether the first folder below is a picture's category. False for a flat pile.
        exclude: Patterns of what is left out: see `imret.datasets.exclusion.Exclusion`. They are remembered
            with the folder; None for those that are.

    Raises:
        DataError: If the folder is missing, is a file, or cannot be listed, or a pattern cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        categories: bool = True,
        exclude: Sequence[str] | None = None,
    ) -> None:
        if not os.fspath(folder):  # which the system takes for the folder that one is in
            raise DataError("no such folder: ''. Is a variable of the shell not set?")
        self.root = os.path.realpath(path_on_disk(folder))
        self.categories = categories
        self.exclusion = Exclusion(self.root, exclude or ())
        self.exclude = None if exclude is None else self.exclusion.patterns
        self.kind: SourceKind = "folder"
        self.is_folder, self.reads_ahead = True, 1
        self._n_glanced: int | None = None
        named = repr(os.fspath(folder))
        try:
            with os.scandir(self.root):
                pass
        except FileNotFoundError:
            raise DataError(
                f"no such folder: {named}. Check the path, or that its drive is mounted."
            ) from None
        except NotADirectoryError:
            raise DataError(
                f"{named} is a file; ingest takes a folder of pictures, one sub-folder per category."
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot list the folder {named}: {error.strerror}. Check its permissions."
            ) from None

    def excluding(self, patterns: Sequence[str]) -> FolderSource:
        """Return the same folder, with other patterns of what is left out."""
        other = copy.copy(self)
        other.exclusion = Exclusion(self.root, patterns)
        other.exclude = other.exclusion.patterns
        other._n_glanced = None
        return other

    def entries(self) -> Iterator[Entry]:
        """Yield every picture below the folder, in the order of names, and what is left out, and why.

        Raises:
            DataError: If the folder itself has gone, or cannot be read any more.
        """
        try:
            for entry in walk(self.root, self.exclusion):
                if isinstance(entry, Picture):
                    category = entry.category if self.categories else None
                    yield Record(entry.path, category, entry.size_bytes, entry.mtime_ns, self.root)
                else:
                    yield entry
        except OSError as error:
            raise DataError(
                f"the folder {escape_undecodable(self.root)!r} cannot be read any more: {error.strerror}. "
                "Is its drive mounted?"
            ) from error

    def units(self) -> Iterator[Unit]:
        """Yield slices of the walk. Raises as `entries`."""
        return slices(self.entries())

    def glance(self) -> Iterator[tuple[str, int]]:
        """Yield each folder in it, and how many pictures that holds itself: see `imret.datasets.scan`."""
        total = 0
        for folder, n in glance(self.root, self.exclusion):
            total += n
            yield folder, n
        self._n_glanced = total

    def count(self) -> int:
        """Return how many files looked like pictures by name at the last glance: no promise.

        Who counts first goes through the folders, which takes a while on a slow disk.
        """
        return sum(n for _, n in self.glance()) if self._n_glanced is None else self._n_glanced

    def presence(self, paths: Iterable[str], *, unseen: Collection[str] = ()) -> dict[str, Presence]:
        """Return what is at each path now: see `imret.sources.presence`."""
        return presence(self.root, paths, unseen=unseen, exclusion=self.exclusion)
