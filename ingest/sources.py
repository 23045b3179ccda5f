"""Where pictures come from: a folder becomes records, and nothing is decoded here."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import Ignored, Picture, Skipped, glance, walk
from imret.datasets.spelling import path_on_disk
from imret.errors import DataError
from imret.escape import escape_undecodable
from imret.sources.presence import Presence, presence
from imret.store.payload import modified_time, point_id


@dataclass(frozen=True, slots=True)
class Record(Picture):
    """A picture of a source, before decoding.

    Attributes:
        source: Absolute folder that was asked for; `path` lies below it.
    """

    source: str

    @property
    def id(self) -> str:
        """The point id: always the same for one place."""
        return point_id(self.source, self.path)

    @property
    def file(self) -> str:
        """The absolute path that opens it."""
        return self.file_in(self.source)

    @property
    def modified(self) -> str:
        """Time of its last change, RFC 3339."""
        return modified_time(self.mtime_ns)


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

    def entries(self) -> Iterator[Record | Skipped | Ignored]:
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
