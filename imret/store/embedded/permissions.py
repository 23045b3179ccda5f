"""Why a file of an embedded store cannot be read or written: whose it is, and which command ends that."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import stat
from pathlib import Path

# Of an attempt to write to what may only be read.
PROTECTED = (errno.EROFS, errno.EACCES, errno.EPERM)
_DENIED = (errno.EACCES, errno.EPERM)


def is_read_only_disk(path: Path) -> bool:
    """Whether a path lies on a file system that is mounted to be read only."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def obstacle(path: Path, *, write: bool, error: OSError | None = None) -> str:
    """Say what keeps this user from a file, with the command that ends it; empty if nothing that shows.

    Args:
        path: The file, which need not exist; its folders are looked at, too, from the root on.
        write: Whether it is to be written to, or read only.
        error: What the system said; another than that it is not allowed has another reason.
    """
    if error is not None and error.errno not in _DENIED:
        return ""
    for place in [*reversed(path.absolute().parents), path.absolute()]:
        try:
            info = os.stat(place)
        except PermissionError:
            continue  # its folder says why
        except FileNotFoundError:
            above = place.parent  # where it would be made
            if write and not os.access(above, os.W_OK | os.X_OK):
                return _whose(above, os.stat(above), write=True)
            return ""
        except OSError:
            return ""
        is_folder = stat.S_ISDIR(info.st_mode)
        needed = (os.X_OK if is_folder else os.R_OK) | (os.W_OK if write and place == path.absolute() else 0)
        needed |= os.R_OK if is_folder and place == path.absolute() else 0
        if not os.access(place, needed, effective_ids=os.access in os.supports_effective_ids):
            return _whose(place, info, write=write)
    return ""


def _whose(place: Path, info: os.stat_result, *, write: bool) -> str:
    kind = "the folder" if stat.S_ISDIR(info.st_mode) else "the file"
    owner, me = _name_of(info.st_uid), _name_of(os.geteuid())
    what, letters = ("written by", "rwX") if write else ("read by", "rX")
    mend = f"chmod -R u+{letters} {shlex.quote(str(place))}"
    if info.st_uid != os.geteuid():
        mend = f"sudo chmod -R o+{letters} {shlex.quote(str(place))} (or run imret as {owner})"
    return (
        f"{kind} {str(place)!r} belongs to {owner}, has mode {stat.S_IMODE(info.st_mode):04o}, and cannot be "
        f"{what} {me}. Open it: {mend}"
    )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in a container
        return f"the user {uid}"
