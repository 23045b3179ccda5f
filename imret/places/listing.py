"""All that lies below a folder or prefix, in the order of names at each level.

Folders that come next are listed while one is gone through: who waits for a store waits for many answers at a
time. In memory are the names of the folders on the way down and of the few that were listed ahead.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from imret.errors import DataError
from imret.places.names import is_url, join
from imret.places.reading import patiently
from imret.places.stores import Stored, list_folder

_AHEAD = 16  # folders that are listed at a time


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder that could not be listed, and why."""

    path: str
    reason: str


@dataclass
class _Level:
    """A folder on the way down: what is still to be gone through, and listings of the folders in it."""

    path: str
    entries: Iterator[Stored]
    folders: Iterator[Stored]
    ahead: deque[Future[list[Stored]]] = field(default_factory=deque)


def list_tree(
    root: str,
    *,
    enter: Callable[[str], bool] = lambda path: True,
    list_one: Callable[[str], list[Stored]] | None = None,
) -> Iterator[tuple[str, Stored] | Unlisted]:
    """Yield the path below a folder or URL of every file in it, with what is known of it.

    Args:
        root: A path, or a canonical URL.
        enter: Whether a folder at a path below it is gone into.
        list_one: Lists a folder by its path or URL; by default as it is.

    Raises:
        DataError: If the root itself cannot be listed.
    """
    look = list_one or (_list_remote if is_url(root) else _list_local)
    pool = ThreadPoolExecutor(_AHEAD, "imret-list")
    try:
        stack = [_level("", look(root))]
        while stack:
            level = stack[-1]
            _list_ahead(level, root, pool, look, enter)
            entry = next(level.entries, None)
            if entry is None:
                stack.pop()
                continue
            path = f"{level.path}/{entry.name}" if level.path else entry.name
            if not entry.is_folder:
                yield path, entry
            elif enter(path):
                try:
                    stack.append(_level(path, level.ahead.popleft().result()))
                except DataError as error:
                    yield Unlisted(path, str(error))
    finally:
        pool.shutdown(cancel_futures=True)


def _level(path: str, listed: list[Stored]) -> _Level:
    entries = sorted(listed, key=lambda entry: entry.name)
    return _Level(path, iter(entries), iter([entry for entry in entries if entry.is_folder]))


def _list_ahead(
    level: _Level,
    root: str,
    pool: ThreadPoolExecutor,
    look: Callable[[str], list[Stored]],
    enter: Callable[[str], bool],
) -> None:
    while len(level.ahead) < _AHEAD:
        folder = next(level.folders, None)
        if folder is None:
            return
        path = f"{level.path}/{folder.name}" if level.path else folder.name
        if enter(path):
            level.ahead.append(pool.submit(look, join(root, path)))


def _list_remote(url: str) -> list[Stored]:
    return patiently(lambda: list_folder(url))


def _list_local(folder: str) -> list[Stored]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    info = entry.stat()
                except OSError:  # a link that leads nowhere, or what went meanwhile
                    continue
                if stat.S_ISDIR(info.st_mode):
                    found.append(Stored(entry.name, True))
                elif stat.S_ISREG(info.st_mode):
                    found.append(Stored(entry.name, False, info.st_size, info.st_mtime_ns))
    except OSError as error:
        raise DataError(f"the folder {folder!r} cannot be listed: {error.strerror}.") from error
    return found
