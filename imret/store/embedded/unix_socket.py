"""The socket through which the worker of an embedded store serves other programs of the same user.

What travels over it is pickled, so both ends make sure that the other is this user: the socket lies in a
folder that nobody else can enter, and where the kernel tells who is at the other end (Linux; macOS has no
SO_PEERCRED, there the folder alone decides) that must be this user, too. Not even root is served.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

from imret import system
from imret.errors import StoreError
from imret.store.types import Share

_MAX_PATH_BYTES = 103  # of a socket's path: macOS has 104 with the NUL at the end, Linux 108
_BACKLOG = 128
_UCRED = struct.Struct("3i")  # pid, uid, gid: Linux, unix(7)


def private_folder() -> Path:
    """Return the folder of this user's sockets; make it if it is missing.

    Below XDG_RUNTIME_DIR if that is this user's own (`sudo` and `su` may leave somebody else's), else in
    the folder for temporary files.

    Raises:
        StoreError: If it cannot be made, is somebody else's, or can be entered by others.

    Source: XDG Base Directory Specification 0.8, XDG_RUNTIME_DIR.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    mine = f"imret-{system.user_id()}"
    folder = Path(runtime, "imret") if _is_own(runtime) else Path(tempfile.gettempdir(), mine)
    if len(os.fsencode(folder / _new_name())) > _MAX_PATH_BYTES:
        folder = Path("/tmp", mine)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {str(folder)!r}, through which other commands would reach the store: "
            f"{error.strerror}. Set XDG_RUNTIME_DIR to a folder of your own."
        ) from error
    check_private(folder)
    return folder


def folder_to_share_in(share: Share) -> Path | None:
    """Return the folder of this user's sockets where a store is to be shared; None for one that is not.

    Raises:
        StoreError: If it must be shared, and there is no private folder.
    """
    if not system.has_unix_sockets():  # then a store serves one program at a time
        return None
    try:
        return private_folder() if share else None
    except StoreError:
        if share is True:
            raise
        return None


def check_private(folder: Path) -> None:
    """Make sure that a folder is this user's, and that nobody else can reach what is in it.

    Raises:
        StoreError: If it is not; whoever could put a socket there could have a command run what they like.
    """
    try:
        info = folder.lstat()
    except OSError as error:
        raise StoreError(f"cannot look at the folder {str(folder)!r}: {error.strerror}") from error
    what = f"the folder {str(folder)!r}, through which other commands would reach the store,"
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != system.user_id():
        problem = f"belongs to the user {info.st_uid}" if stat.S_ISDIR(info.st_mode) else "is no folder"
        raise StoreError(f"{what} {problem}. Remove it, or set XDG_RUNTIME_DIR to a folder of your own.")
    if info.st_mode & 0o077:
        raise StoreError(
            f"{what} is open to other users (mode {stat.S_IMODE(info.st_mode):o}). "
            f"Close it to them: chmod 700 {folder}"
        )


class Listener:
    """A socket that other programs of this user can connect to, until `close`.

    Args:
        folder: From `private_folder`. What killed workers left there is removed.

    Attributes:
        path: Of the socket.
        socket: Does not block.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptor = os.open(folder, os.O_RDONLY | system.DIRECTORY | system.CLOEXEC)
        try:
            # One at a time, so that a socket that is not listened to yet is not taken for a left one.
            system.lock(descriptor, wait=True)
            _remove_left(folder)
            self.path = folder / _new_name()
            self.socket.bind(os.fspath(self.path))
            self._file = self.path.lstat()
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(descriptor)

    def accept(self) -> socket.socket | None:
        """Return a connection, which does not block, or None if there is none, or it is another user's."""
        try:
            connection, _ = self.socket.accept()
        except OSError:  # BlockingIOError: it hung up before we looked
            return None
        if not _is_this_user(connection):
            connection.close()
            return None
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """End it, and remove the socket unless something else has taken its place."""
        self.socket.close()
        with suppress(OSError):
            if os.path.samestat(self.path.lstat(), self._file):
                self.path.unlink()


def connect(path: str) -> socket.socket | None:
    """Connect to a `Listener`; returns None if none of this user listens there (any more)."""
    if not system.has_unix_sockets():
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        check_private(Path(path).parent)
        connection.connect(path)
        if _is_this_user(connection):
            return connection
    except (OSError, ValueError, StoreError):  # ValueError: what the note says can be no path
        pass
    connection.close()
    return None


def _is_own(folder: str) -> bool:
    try:
        return os.path.isabs(folder) and os.stat(folder).st_uid == system.user_id()
    except OSError:
        return False


def _is_this_user(connection: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return bool(uid == system.user_id())


def _new_name() -> str:
    return f"store-{os.urandom(6).hex()}.sock"


def _remove_left(folder: Path) -> None:
    """Remove the sockets that nobody listens to any more; anything else is left alone."""
    for path in folder.glob("store-*.sock"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if stat.S_ISSOCK(path.lstat().st_mode):
                probe.setblocking(False)
                try:
                    probe.connect(os.fspath(path))
                except ConnectionRefusedError:
                    path.unlink()
