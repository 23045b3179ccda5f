"""Why a file of an embedded store cannot be read or written: whose it is, and which command ends that."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

from imret import system

# Of an attempt to write to what may only be read.
PROTECTED = (errno.EROFS, errno.EACCES, errno.EPERM)
_DENIED = (errno.EACCES, errno.EPERM)


def is_read_only_disk(path: Path) -> bool:
    """Whether a path lies on a file system that is mounted to be read only."""
    if not hasattr(os, "statvfs"):
        return False
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def obstacle(path: Path, *, store: Path, write: bool, error: OSError | None = None) -> str:
    """Say what keeps this user from a file, with the command that ends it; empty if nothing that shows.

    Args:
        path: The file, which need not exist; its folders are looked at, too, from the root on.
        store: The folder of the store that it belongs to, all of which is then opened.
        write: Whether it is to be written to, or read only.
        error: What the system said; another than that it is not allowed has another reason.
    """
    if error is not None and error.errno not in _DENIED:
        return ""
    path, store = path.absolute(), store.absolute()
    for place in [*reversed(path.parents), path]:
        try:
            info = os.stat(place)
        except FileNotFoundError:
            above = place.parent  # where it would be made
            is_in_the_way = write and not os.access(above, os.W_OK | os.X_OK)
            return _whose(above, os.stat(above), store, write=True) if is_in_the_way else ""
        except OSError:
            return ""
        needed = os.X_OK if stat.S_ISDIR(info.st_mode) else os.R_OK
        if place == path:
            needed |= os.R_OK | (os.W_OK if write else 0)
        if not os.access(place, needed):
            return _whose(place, info, store, write=write and place == path)
    return ""


def _whose(place: Path, info: os.stat_result, store: Path, *, write: bool) -> str:
    kind = "the folder" if stat.S_ISDIR(info.st_mode) else "the file"
    owner, me = system.user_name(info.st_uid), system.user_name(system.user_id())
    is_mine = info.st_uid == system.user_id()
    what = "written to" if write else "read"
    said = (
        f"{kind} {str(place)!r} belongs to {owner}, has mode {stat.S_IMODE(info.st_mode):04o}, and cannot be "
        f"{what} by {me}"
    )
    at = shlex.quote(str(store))
    if not place.is_relative_to(store):  # somebody's own folder: no more of it than the way through
        return (
            said
            if write
            else f"{said}. Let others pass: {'' if is_mine else 'sudo '}chmod o+x {shlex.quote(str(place))}"
        )
    if is_mine:
        return f"{said}. Open it: chmod -R u+rwX {at}"
    if write:  # not to everybody
        return f"{said}. Run imret as {owner}, or make the store yours: sudo chown -R {me} {at}"
    return f"{said}. Let others read it: sudo chmod -R o+rX {at} (or run imret as {owner})"
