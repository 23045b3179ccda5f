"""What lay in a version when it was last written to the end, by which an opening finds what was lost since.

Qdrant Edge opens without many of its files, and then answers as if whole. So the worker notes its files and
their sizes beside them, and how many points it held. One file with three names, because a file can be given
another name on a full disk, too:

    flushed.json                  nothing was written since: the files are all there, and as long
    flushed-before-adding.json    something was: the engine's log makes whole what a kill has cut short
    flushed-before-deleting.json  points were deleted as well, so that there may be fewer

A version of an older imret has none until it is opened, and none that counts where an older one opened it
since. Only what is there is looked at, never what is in it: a byte that has changed in its place is not
found. Knows of the engine what its files are called and which of them it removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from imret.files import sync_folder, write_atomically

FORMAT = 1
_SHARD = "shard"
_UNFINISHED = "temp_segments"  # what an index is made in
OPTIMIZING = "optimizing"  # there while an index is built, and after a kill meanwhile

Since: TypeAlias = Literal["flushed", "adding", "deleting"]
# The first that is there is the true one: the others are what a kill left while it was written.
_NAMES: dict[Since, str] = {
    "flushed": "flushed.json",
    "deleting": "flushed-before-deleting.json",
    "adding": "flushed-before-adding.json",
}

_CLOSED_LOG = re.compile(r"wal/closed-(\d+)")
# JSON, which the engine writes anew at times, longer or shorter; half of it is none.
_REWRITTEN = re.compile(r".*\.json|wal/first-index")
# What changed of a list of positions; the engine puts it into the list at the next load, and removes it.
_JOURNAL = "/tracker_journal.dat"
_FLAGS = re.compile(r"/flags_[ab]\.dat")  # one replaces the other as they grow


@dataclass(frozen=True)
class Inventory:
    """What lay in a version.

    Attributes:
        model: Its encoder, for whoever has to make it again.
        points: How many it held; None where that may change without anybody's doing, as after an operation
            that the engine refused half way and may repeat.
        sources: The folders that they came from.
        files: Those of the engine, relative to its folder, with "/", and their sizes in bytes.
        since: What was done afterwards.
    """

    model: str
    points: int | None
    sources: tuple[str, ...]
    files: dict[str, int]
    since: Since = "flushed"


def read(version: Path) -> Inventory | None:
    """Return what is noted of a version; None if nothing is, or nothing that can be read."""
    for since, name in _NAMES.items():
        try:
            content = json.loads((version / name).read_bytes())
        except (OSError, ValueError):
            continue
        noted = _parsed(content, since)
        if noted is not None:
            return noted
    return None


def _parsed(content: Any, since: Since) -> Inventory | None:
    try:
        if content["format"] != FORMAT:
            return None
        points = content["points"]
        return Inventory(
            model=str(content["model"]),
            points=None if points is None else int(points),
            sources=tuple(str(source) for source in content["sources"]),
            files={str(name): int(size) for name, size in content["files"].items()},
            since=since,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


class Ledger:
    """What is noted of a version that is open, and the changes that are yet to be noted.

    Args:
        version: Its folder.

    Attributes:
        is_counted: Whether the number of its points is worth noting.
    """

    def __init__(self, version: Path) -> None:
        self._version = version
        self._noted = self._found = read(version)
        self.is_counted = self._noted is None or self._noted.points is not None

    def forget(self) -> None:
        """Forget what is noted: an older imret has opened the version since, and noted nothing."""
        for name in _NAMES.values():
            with suppress(OSError):
                (self._version / name).unlink(missing_ok=True)
        self._noted = self._found = None
        self.is_counted = True

    @property
    def is_closed(self) -> bool:
        """Whether what is noted is what lies there."""
        return self._noted is not None and self._noted.since == "flushed"

    def find_loss(self) -> str:
        """Return what the version has lost of its files, in words; empty if nothing that is known of."""
        return "" if self._noted is None else find_loss(self._version, self._noted)

    def find_miscount(self, points: int) -> str:
        """Return in words that it holds another number of points than it can; empty if that may be."""
        return "" if self._found is None else find_miscount(points, self._found)

    def begin_loading(self) -> None:
        """Note that the engine is about to open the version, if that changes files."""
        if self._noted is not None and any(name.endswith(_JOURNAL) for name in self._noted.files):
            self.begin("adding")

    def begin(self, since: Since) -> None:
        """Note that points are about to be added or deleted, so that it holds also after a power cut.

        Raises:
            OSError: If it cannot be noted.
        """
        if self._noted is None or self._noted.since in ("deleting", since):
            return
        now, names = _NAMES[self._noted.since], set(_NAMES.values())
        try:
            for name in names - {now}:
                (self._version / name).unlink(missing_ok=True)
            os.replace(self._version / now, self._version / _NAMES[since])
            sync_folder(self._version)
            self._noted = replace(self._noted, since=since)
        except OSError:  # a disk too full for it: then nothing is noted, as by an older imret
            for name in names:
                (self._version / name).unlink(missing_ok=True)
            self._noted = None

    def close(self, model: str, points: int, sources: tuple[str, ...]) -> None:
        """Note what lies in the version, all of which is on disk.

        Where that cannot be written, what was noted before holds, and what was done since.
        """
        noted = Inventory(
            model, points if self.is_counted else None, sources, _files_in(self._version / _SHARD)
        )
        content = asdict(noted)
        del content["since"]
        with suppress(OSError):
            text = json.dumps({"format": FORMAT, **content})
            write_atomically(self._version / _NAMES["flushed"], text, durable=True)
            self._noted = noted
            for name in set(_NAMES.values()) - {_NAMES["flushed"]}:
                (self._version / name).unlink(missing_ok=True)


def find_loss(version: Path, noted: Inventory) -> str:
    """Return what a version has lost of its files, in words; empty if nothing that is known of."""
    shard = version / _SHARD
    if not shard.is_dir():
        return f"its folder {version.name}/{_SHARD} is missing"
    logs = _closed_logs(os.listdir(shard / "wal")) if (shard / "wal").is_dir() else []
    newest_noted = max(_closed_logs(name.rpartition("/")[2] for name in noted.files), default=-1)
    for name, size in sorted(noted.files.items()):
        if name.startswith(f"{_UNFINISHED}/"):
            continue
        found = _size_of(shard / name)
        shown = f"{version.name}/{_SHARD}/{name}"
        if found is None:
            is_log_done = name.startswith("wal/") and _is_log_done(name, logs, newest_noted)
            if not is_log_done and not (noted.since != "flushed" and _may_vanish(version, name)):
                return f"{shown} is missing (it had {size:,} bytes)"
        elif noted.since != "flushed" and name.endswith(_JOURNAL):
            continue  # put into its list, and begun again
        elif found < size and not (_REWRITTEN.fullmatch(name) and _is_json(shard / name)):
            return f"{shown} has {found:,} bytes of {size:,}"
    return ""


def remove_unfinished(version: Path) -> None:
    """Remove what an index left whose making was cut short, as much as its vectors take; nothing reads it.

    Whoever holds the lock of the version, and makes no index, may do so.
    """
    with suppress(FileNotFoundError):
        for left in (version / _SHARD / _UNFINISHED).iterdir():
            shutil.rmtree(left, ignore_errors=True)


def find_miscount(points: int, noted: Inventory) -> str:
    """Return in words that a version holds another number of points than it can; empty if that may be."""
    if noted.points is None or noted.since == "deleting" or points == noted.points:
        return ""
    if noted.since == "adding" and points > noted.points:
        return ""
    return f"it holds {points:,} points, and {noted.points:,} were stored"


def _may_vanish(version: Path, name: str) -> bool:
    """Whether the engine itself removes a file of its while it is written to."""
    if name.endswith(_JOURNAL) or _FLAGS.search(name):
        return True
    if not name.startswith("segments/") or not (version / OPTIMIZING).exists():
        return False
    segment = "/".join(name.split("/")[:2])
    return not (version / _SHARD / segment).exists()  # made one with others, and gone in one step


def _is_log_done(name: str, logs: list[int], newest_noted: int) -> bool:
    """Whether a file of the log may be gone: a newer one was closed, and the engine keeps the newest."""
    closed = _CLOSED_LOG.fullmatch(name)
    if closed:
        return any(log > int(closed[1]) for log in logs)
    return name != "wal/first-index" and any(log > newest_noted for log in logs)


def _closed_logs(names: Any) -> list[int]:
    return [int(found[1]) for name in names if (found := _CLOSED_LOG.fullmatch(f"wal/{name}"))]


def _files_in(shard: Path) -> dict[str, int]:
    files = {}
    for parent, folders, names in os.walk(shard):
        on_their_way = [name for name in folders if name.endswith(".deleted") or name == _UNFINISHED]
        folders[:] = [name for name in folders if name not in on_their_way]
        for name in names:
            path = os.path.join(parent, name)
            with suppress(FileNotFoundError):  # of a log that the engine has just removed
                files[Path(path).relative_to(shard).as_posix()] = os.stat(path).st_size
    return files


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _size_of(path: Path) -> int | None:
    try:
        return os.stat(path).st_size if path.is_file() else None
    except OSError:
        return None
