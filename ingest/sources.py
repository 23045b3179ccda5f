"""Where pictures come from: a folder becomes records, and nothing is decoded here.

Hides what is left out (hidden files, system folders, files that are no pictures by their name), how
symlink loops are survived, and how a category comes from a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from imret.errors import DataError
from imret.images import IMAGE_EXTENSIONS
from imret.payload import modified_time, point_id

SYSTEM_FOLDERS = frozenset(
    {
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "node_modules",
        "__MACOSX",
    }
)


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a source, before decoding.

    Attributes:
        source: Absolute folder that was asked for.
        path: Path below it, with forward slashes; may hold surrogate escapes.
        category: First folder below the source, or None.
        size_bytes: Size of the file when it was seen.
        modified: Time of its last change, RFC 3339.
    """

    source: str
    path: str
    category: str | None
    size_bytes: int
    modified: str

    @property
    def id(self) -> str:
        """The point id: always the same for one place."""
        return point_id(self.source, self.path)

    @property
    def file(self) -> str:
        """The absolute path that opens it."""
        return os.path.join(self.source, *self.path.split("/"))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture, or what is named like one, that could not be taken, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """What a source leaves out on purpose; `reason` is a kind, such as "hidden", to be counted."""

    path: str
    reason: str


class FolderSource:
    """A folder of pictures, one sub-folder per category.

    Args:
        folder: The folder to walk, nested as deep as it likes; symlinks are followed.
        categories: Whether the first folder below is a picture's category. False for a flat pile.

    Raises:
        DataError: If the folder is missing, is a file, or cannot be listed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, categories: bool = True) -> None:
        self.root = os.path.realpath(folder)
        self.categories = categories
        try:
            with os.scandir(self.root):
                pass
        except FileNotFoundError:
            raise DataError(
                f"no such folder: {os.fspath(folder)!r}. Check the path, or that its drive is mounted."
            ) from None
        except NotADirectoryError:
            raise DataError(
                f"{os.fspath(folder)!r} is a file; ingest takes a folder of pictures, "
                "one sub-folder per category."
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot list the folder {os.fspath(folder)!r}: {error.strerror}. Check its permissions."
            ) from None

    def entries(self) -> Iterator[Record | Skipped | Ignored]:
        """Give every picture below the folder, in the order of names, and what is left out, and why.

        Memory is bounded by the longest single folder, not by the number of pictures.
        """
        return self._walk()

    def count(self) -> int:
        """Return how many files look like pictures by name, for a progress bar: a look, no promise."""
        total = 0
        for _, _, files in os.walk(self.root, onerror=None):
            total += sum(1 for name in files if _looks_like_image(name) and not _hidden(name))
        return total

    def holds(self, path: str) -> bool:
        """Return whether a walk would still meet a file at this path.

        Only a clear "it is gone" is False: a folder that cannot be read at the moment says nothing about
        the pictures in it.
        """
        *folders, name = path.split("/")
        if any(_hidden(part) or part in SYSTEM_FOLDERS for part in folders):
            return False
        if _hidden(name) or not _looks_like_image(name):
            return False
        try:
            os.lstat(os.path.join(self.root, *folders, name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def _walk(self) -> Iterator[Record | Skipped | Ignored]:
        top = os.stat(self.root)
        # An explicit stack, not recursion: a path may be two thousand folders deep.
        stack = [_Frame("", (top.st_dev, top.st_ino), 0)]
        on_the_way_down = {stack[0].key}
        n_records = 0
        while stack:
            frame = stack[-1]
            if frame.names is None:
                try:
                    frame.names = iter(sorted(os.listdir(os.path.join(self.root, frame.path))))
                except OSError as error:
                    yield Skipped(frame.path, f"folder cannot be read: {error.strerror}")
                    on_the_way_down.discard(stack.pop().key)
                    continue
            name = next(frame.names, None)
            if name is None:
                on_the_way_down.discard(stack.pop().key)
                if stack and _looks_like_image(frame.path) and n_records == frame.n_records_before:
                    yield Skipped(frame.path, "a folder, not a picture")
                continue
            path = f"{frame.path}/{name}" if frame.path else name
            entry = self._look_at(path, name)
            if not isinstance(entry, os.stat_result):
                n_records += isinstance(entry, Record)
                yield entry
            elif (key := (entry.st_dev, entry.st_ino)) in on_the_way_down:
                yield Skipped(path, "symlink loop: it leads back to a folder above it")
            else:
                on_the_way_down.add(key)
                stack.append(_Frame(path, key, n_records))

    def _look_at(self, path: str, name: str) -> Record | Skipped | Ignored | os.stat_result:
        """Return what one name is; a folder to descend into comes back as its stat."""
        if _hidden(name):
            return Ignored(path, "hidden")
        if name in SYSTEM_FOLDERS:
            return Ignored(path, "system folder")
        file = os.path.join(self.root, path)
        try:
            info = os.stat(file)
        except OSError as error:
            if _looks_like_image(name) or os.path.islink(file):
                return Skipped(path, _why_no_stat(file, error))
            return Ignored(path, _kind(name))
        if stat.S_ISDIR(info.st_mode):
            return info
        if not _looks_like_image(name):
            return Ignored(path, _kind(name))
        if not stat.S_ISREG(info.st_mode):
            return Skipped(path, "not a regular file")
        category = path.split("/", 1)[0] if self.categories and "/" in path else None
        return Record(self.root, path, category, info.st_size, modified_time(info.st_mtime_ns))


@dataclass(slots=True)
class _Frame:
    """One folder on the way down, and the names in it still to look at."""

    path: str
    key: tuple[int, int]
    n_records_before: int
    names: Iterator[str] | None = None


def _hidden(name: str) -> bool:
    # ".git" and "._photo.jpg" are hidden; "..fungi" or "..." is an odd name that somebody chose.
    return name.startswith(".") and not name.startswith("..")


def _looks_like_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _kind(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()
    return f"not a picture by its name (*{extension})" if extension else "not a picture by its name"


def _why_no_stat(file: str, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "symlink loop: it leads back to itself"
    if isinstance(error, FileNotFoundError):
        return "dangling symlink" if os.path.islink(file) else "gone while the folder was read"
    return f"cannot be read: {error.strerror}"
