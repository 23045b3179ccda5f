"""Whether the pictures of a source are at their places: here, gone for good, or out of reach for now.

Gone is only what clearly is: the folder it lay in is there, can be listed and holds something, but not the
file; or that folder is gone from such a folder. A drive that is not mounted leaves an empty folder or a link
that leads nowhere, a share that is away leaves errors: of what lies there nothing is known. A picture that is
a link is where the link leads, and gone from there by the same rule.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from imret.datasets.exclusion import Exclusion, left_out
from imret.datasets.scan import looks_like_picture
from imret.places.names import is_url

FolderState: TypeAlias = Literal["present", "gone", "empty", "unreadable", "remote"]

EMPTY = "is empty now"
_LEFT_BY_WINDOWS = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_DANGLING = "is a link to a place that is not there"
_LOOP = "is a link that leads back to itself"


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """Why a picture can be neither found nor called gone.

    Attributes:
        folder: The folder or link below the source that stands in the way; empty for the source itself.
        reason: What is the matter with it, to be read after its name: "is empty now".
    """

    folder: str
    reason: str


Presence: TypeAlias = Literal["here", "gone", "left out"] | OutOfReach


def folder_state(folder: str | os.PathLike[str]) -> FolderState:
    """Return what is at the place of a source now.

    "empty" is a folder with nothing in it but what every walk leaves out, such as hidden files, and what
    Windows leaves in folders: that may lie in a mount point, too. "remote" is a URL, where nobody looks; a
    file is a list of addresses.
    """
    name = os.fspath(folder)
    if is_url(name):
        return "remote"
    if name.endswith(".txt") and os.path.isfile(name):
        return "present"
    state = _look_into(os.fspath(folder), "", set()).state
    if not isinstance(state, OutOfReach):
        return "present" if state == "here" else "gone"
    return "empty" if state.reason == EMPTY else "unreadable"


def presence(
    root: str, paths: Iterable[str], *, unseen: Collection[str] = (), exclusion: Exclusion | None = None
) -> dict[str, Presence]:
    """Return for each picture whether a walk of the source would meet it at its place.

    "left out" is what no walk comes to by its name, whether it is there or not; but not what is out of reach.

    Args:
        root: The source.
        paths: Below it, with forward slashes.
        unseen: Folders and links below it that a walk could not look into: what lies there is not gone,
            whatever is found now.
        exclusion: What the walk leaves out by name; None for what always is.
    """
    exclusion = exclusion or Exclusion(root)
    found: dict[str, Presence] = {
        path: "left out"
        if exclusion.reason_within(path) is not None or not looks_like_picture(path)
        else _look_at(root, path)
        for path in paths
    }
    # Folders only after all files: had a drive gone away before, its mount point is seen empty now. And files
    # again after that: had it come back in between, they are found.
    folders = _Folders(root, unseen)
    for path, seen in found.items():
        if seen in ("gone", "left out"):
            above = folders.state_above(path)
            if isinstance(above, OutOfReach):
                found[path] = above
            elif seen == "gone":
                found[path] = _look_at(root, path)
    return found


def _look_at(root: str, path: str) -> Presence:
    """Return what one file is, believing what the system says of it."""
    folder = path.rpartition("/")[0]
    file = os.path.join(root, path)
    try:
        mode = os.lstat(file).st_mode
        if stat.S_ISLNK(mode):
            mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not _is_link(file) or _leads_to_what_is_gone(file):
            return "gone"
        return OutOfReach(folder, "holds links to places that are not there")
    except OSError as error:
        return OutOfReach(folder, _why(error))
    return "here" if stat.S_ISREG(mode) else "gone"


def _leads_to_what_is_gone(link: str) -> bool:
    """Whether the folder that a link leads into is there and holds something, but not what the link names."""
    target = os.path.realpath(link)
    return not os.path.lexists(target) and _look_into(os.path.dirname(target), "", set()).state == "here"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a folder is: "here" if it can be listed and holds something. The key is its device and inode."""

    state: Presence
    key: tuple[int, int] | None = None


class _Folders:
    """The folders on the way to some files, each looked at once."""

    def __init__(self, root: str, unseen: Collection[str]) -> None:
        self._root = root
        self._unseen = unseen
        self._seen: dict[str, _Seen] = {}

    def state_above(self, path: str) -> Presence:
        """Return the state of the first folder on the way to a file that is not "here", else "here"."""
        parts = path.split("/")
        above: set[tuple[int, int]] = set()
        for depth in range(len(parts)):
            folder = "/".join(parts[:depth])
            seen = self._seen.get(folder)
            if seen is None:
                seen = self._seen[folder] = _look_into(os.path.join(self._root, folder), folder, above)
            if isinstance(seen.state, OutOfReach):
                return seen.state
            if folder in self._unseen:
                return OutOfReach(folder, "could not be read a moment ago")
            if seen.state == "gone":
                # Below a source that is there a folder is gone; the source itself may be on another drive.
                return "gone" if folder else OutOfReach("", "is not there")
            if seen.key is not None:
                above.add(seen.key)
        return "here"


def _look_into(full: str, folder: str, above: set[tuple[int, int]]) -> _Seen:
    try:
        info = os.stat(full)
    except (FileNotFoundError, NotADirectoryError):
        return _Seen(OutOfReach(folder, _DANGLING) if folder and _is_link(full) else "gone")
    except OSError as error:
        return _Seen(OutOfReach(folder, _why(error)))
    if not stat.S_ISDIR(info.st_mode):
        return _Seen("gone")
    key = (info.st_dev, info.st_ino)
    if key in above:
        return _Seen(OutOfReach(folder, "is a link that leads back to a folder above it"))
    try:
        with os.scandir(full) as entries:
            holds_something = any(
                left_out(entry.name) is None and entry.name.casefold() not in _LEFT_BY_WINDOWS
                for entry in entries
            )
    except OSError as error:
        return _Seen(OutOfReach(folder, _why(error)))
    return _Seen("here" if holds_something else OutOfReach(folder, EMPTY), key)


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False


def _why(error: OSError) -> str:
    return _LOOP if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
