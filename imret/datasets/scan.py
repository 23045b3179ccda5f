"""A folder of pictures, walked: what is a picture by its name, what is left out, and why.

The one set of rules that `ingest` and `finetune` share, so that both see the same pictures. What is left
out by name is in `imret.datasets.exclusion`. Hides symlink loops; opens no picture.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from imret.datasets import kinds
from imret.datasets.exclusion import Exclusion
from imret.datasets.spelling import composed
from imret.images.decode import IMAGE_EXTENSIONS


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file of a folder, and what is known of it before anything is decoded.

    Attributes:
        path: Below the folder, with forward slashes; may hold surrogate escapes (undecodable names).
        category: The first folder of the path, in NFC: two that differ only in the normal form are one
            category. None where it lies in none.
        size_bytes: Size of the file when it was seen.
        mtime_ns: When it was last changed, in nanoseconds since 1970.
    """

    path: str
    category: str | None
    size_bytes: int
    mtime_ns: int

    def file_in(self, folder: str | os.PathLike[str]) -> str:
        """Return the path that opens it, given the folder that it was found in."""
        return os.path.join(folder, *self.path.split("/"))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture, or what is named like one, or a folder, that cannot be taken, and why.

    Attributes:
        path: Below the folder.
        reason: For people.
        unseen: Whether pictures may lie there that could not be looked at: a folder that cannot be read, a
            link that leads nowhere.
    """

    path: str
    reason: str
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Ignored:
    """What is left out on purpose; `reason` is a kind, such as "hidden", to be counted."""

    path: str
    reason: str


@dataclass(slots=True)
class _Folder:
    """One folder on the way down, and the names in it still to look at."""

    path: str
    key: tuple[int, int]
    n_found_before: int
    names: Iterator[str] | None = None


def walk(root: str, exclusion: Exclusion | None = None) -> Iterator[Picture | Skipped | Ignored]:
    """Yield every picture below a folder, in the order of names, and what is left out, and why.

    Symlinks are followed, loops are not. Memory is bounded by the largest single folder, not by the number
    of pictures.

    Args:
        root: The folder.
        exclusion: What is left out by name; None for what always is.

    Raises:
        OSError: If the folder itself cannot be looked at.
    """
    exclusion = exclusion or Exclusion(root)
    top = os.stat(root)
    # An explicit stack, not recursion: a path may be two thousand folders deep.
    stack = [_Folder("", (top.st_dev, top.st_ino), 0)]
    on_the_way_down = {stack[0].key}
    n_found = 0
    while stack:
        folder = stack[-1]
        if folder.names is None:
            try:
                folder.names = iter(sorted(os.listdir(os.path.join(root, folder.path))))
            except OSError as error:
                yield Skipped(folder.path, f"folder cannot be read: {error.strerror}", unseen=True)
                on_the_way_down.discard(stack.pop().key)
                continue
        name = next(folder.names, None)
        if name is None:
            on_the_way_down.discard(stack.pop().key)
            if stack and looks_like_picture(folder.path) and n_found == folder.n_found_before:
                yield Skipped(folder.path, "a folder, not a picture")
            continue
        path = f"{folder.path}/{name}" if folder.path else name
        entry = _look_at(root, path, name, exclusion)
        if not isinstance(entry, os.stat_result):
            n_found += isinstance(entry, Picture)
            yield entry
        elif (key := (entry.st_dev, entry.st_ino)) in on_the_way_down:
            yield Skipped(path, "symlink loop: it leads back to a folder above it", unseen=True)
        else:
            on_the_way_down.add(key)
            stack.append(_Folder(path, key, n_found))


def glance(root: str, exclusion: Exclusion | None = None) -> Iterator[tuple[str, int]]:
    """Yield each folder that `walk` would go into, and how many files in it look like pictures by name.

    A look, no promise: no file is opened or asked for its size, so it takes a fraction of a walk, and what
    cannot be read counts for nothing. In no order.

    Args:
        root: The folder.
        exclusion: As for `walk`.

    Yields:
        A path below the folder, "" for the folder itself, and a number.
    """
    exclusion = exclusion or Exclusion(root)
    to_look_at: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while to_look_at:
        folder, above = to_look_at.pop()
        n = 0
        try:
            info = os.stat(os.path.join(root, folder))
            if (key := (info.st_dev, info.st_ino)) in above:  # a link that leads back
                continue
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    is_folder = entry.is_dir()
                    if exclusion.reason(path, is_folder=is_folder) is not None:
                        continue
                    if is_folder:
                        to_look_at.append((path, above | {key}))
                    else:
                        n += looks_like_picture(entry.name)
        except OSError:
            pass
        yield folder, n


def but_left_out(root: str, exclusion: Exclusion | None = None) -> str:
    """Walk a folder without pictures, and return what `imret.datasets.kinds.but_left_out` says of it.

    Raises:
        OSError: If the folder cannot be looked at.
    """
    reasons = (entry.reason for entry in walk(root, exclusion) if isinstance(entry, Ignored))
    return kinds.but_left_out(Counter(reasons))


def looks_like_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture; looking inside comes later."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _look_at(
    root: str, path: str, name: str, exclusion: Exclusion
) -> Picture | Skipped | Ignored | os.stat_result:
    """Return what one name is; a folder to descend into comes back as its stat."""
    reason = exclusion.reason_by_name(path)
    if reason is not None:
        return Ignored(path, reason)
    file = os.path.join(root, path)
    try:
        info = os.stat(file)
    except OSError as error:
        if (reason := exclusion.reason_by_pattern(path, is_folder=True)) is not None:  # it may be a folder
            return Ignored(path, reason)
        return _unseen(file, path, name, error)
    if (reason := exclusion.reason_by_pattern(path, is_folder=stat.S_ISDIR(info.st_mode))) is not None:
        return Ignored(path, reason)
    if stat.S_ISDIR(info.st_mode):
        return info
    if not looks_like_picture(name):
        return Ignored(path, kinds.kind_of(name))
    if not stat.S_ISREG(info.st_mode):
        return Skipped(path, "not a regular file")
    folder, _, below = path.partition("/")
    return Picture(path, composed(folder) if below else None, info.st_size, info.st_mtime_ns)


def _unseen(file: str, path: str, name: str, error: OSError) -> Skipped | Ignored:
    """Return what one name is that the system says nothing of."""
    if isinstance(error, FileNotFoundError) and not os.path.islink(file):
        if looks_like_picture(name):
            return Skipped(path, _why_no_stat(file, error))
        return Ignored(path, kinds.kind_of(name))
    # Whatever it is called: it may be a folder, such as the place of a share that is away.
    return Skipped(path, _why_no_stat(file, error), unseen=True)


def _why_no_stat(file: str, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "symlink loop: it leads back to itself"
    if isinstance(error, FileNotFoundError):
        return "dangling symlink" if os.path.islink(file) else "gone while the folder was read"
    return f"cannot be read: {error.strerror}"
