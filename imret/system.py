"""What systems have of their own: locks on files, flags of `open`, users, signals, folders held open.

The one home of what Linux and macOS have and Windows has not, or has otherwise. It can be imported anywhere;
where a system lacks something, what comes nearest is done, and the docstring says what that is.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import stat
from pathlib import Path
from typing import Any


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl = _module("fcntl")  # None on Windows
msvcrt = _module("msvcrt")  # None elsewhere

# 0 where the system has no such flag. On Windows files are opened as text without O_BINARY.
BINARY = getattr(os, "O_BINARY", 0)
CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0) | BINARY
DIRECTORY = getattr(os, "O_DIRECTORY", 0)
NOCTTY = getattr(os, "O_NOCTTY", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)

_HAS_USERS = hasattr(os, "geteuid")

# Windows keeps others from reading what is locked: a byte that no file of imret's has.
_LOCKED_BYTE = (1 << 31) - 2


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed.

    Args:
        descriptor: Of the file; on Linux and macOS it may be a folder.
        shared: Let others hold it, too, who ask for that. On Windows nobody else does.
        wait: For whoever holds it.

    Raises:
        BlockingIOError: If another holds it, and is not waited for.
        OSError: If the file system has no locks; ENOTSUP where the system has none.
    """
    if fcntl is not None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    elif msvcrt is not None:
        _lock_byte(descriptor, msvcrt, wait=wait)
    else:
        raise OSError(errno.ENOTSUP, "this system has no locks on files")


def _lock_byte(descriptor: int, windows: Any, *, wait: bool) -> None:
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        while True:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            try:
                windows.locking(descriptor, windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
                return
            except OSError as error:
                # LK_LOCK gives up after ten seconds, and is asked again.
                if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.EDEADLOCK):
                    raise
                if not wait:
                    raise BlockingIOError(errno.EAGAIN, "another program has locked it") from error
    finally:
        os.lseek(descriptor, at, os.SEEK_SET)


def is_read_only(descriptor: int) -> bool:
    """Whether an open file cannot be written to; False where the system does not tell."""
    if fcntl is None:
        return False
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY)


def write_at_start(descriptor: int, data: bytes) -> None:
    """Write over the beginning of an open file."""
    if hasattr(os, "pwrite"):
        os.pwrite(descriptor, data, 0)
    else:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, data)


def set_owner_and_mode(descriptor: int, path: Path, like: os.stat_result) -> None:
    """Give an open file the owner and the permissions of another, as far as the system lets this user."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):  # only root can, and needs to
            os.fchown(descriptor, like.st_uid, like.st_gid)
    set_mode(descriptor, path, stat.S_IMODE(like.st_mode))


def set_mode(descriptor: int, path: Path, mode: int) -> None:
    """Give an open file its permissions."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)
    else:
        path.chmod(mode)


def has_unix_sockets() -> bool:
    """Whether a program can let others of the same user connect to it through a socket in a folder."""
    import socket  # here: a look for a running server needs none

    return hasattr(socket, "AF_UNIX")


def user_id() -> int:
    """Return the number of this user; 0 where users have none."""
    return os.geteuid() if _HAS_USERS else 0


def user_name(uid: int) -> str:
    """Return what a user is called; "user 7" where there is no name, as in a container."""
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"user {uid}"


def is_mine(info: os.stat_result) -> bool:
    """Whether a file is this user's; True where files do not tell (Windows: folders are private)."""
    return not _HAS_USERS or info.st_uid == os.geteuid()


def is_closed_to_others(info: os.stat_result, bits: int = 0o077) -> bool:
    """Whether a file's mode lacks some bits; True where modes say nothing (Windows)."""
    return not _HAS_USERS or not info.st_mode & bits


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a command: Ctrl-C, a plain kill, a terminal that closes."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def signals_named(*names: str) -> frozenset[int]:
    """Return the numbers of those signals that this system has."""
    return frozenset(getattr(signal, name) for name in names if hasattr(signal, name))


class HeldFolder:
    """A folder as it was found, so that another that takes its place is told apart.

    It is held open where the system opens folders, so that its number is given to no other; elsewhere the
    number alone is kept.

    Args:
        folder: The folder.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | DIRECTORY | CLOEXEC) if DIRECTORY else -1
        self._info = os.stat(folder)

    def is_at(self, folder: Path) -> bool:
        """Whether it is what lies at a path now."""
        try:
            return os.path.samestat(os.fstat(self._descriptor) if DIRECTORY else self._info, os.stat(folder))
        except OSError:
            return False

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
