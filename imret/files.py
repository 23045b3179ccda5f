"""Files written whole or not at all, folders put on disk, digests of what is read."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from imret import system

# Of `os.replace`, and of making a file beside the target: a file that is mounted by itself, as containers do;
# a folder that takes no files; somebody else's file in a folder of many users.
_NOT_REPLACEABLE = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV)
_MOST_LINKS = 40  # as the kernel follows
_LONGEST_NAME = 255  # bytes


def write_atomically(
    path: str | os.PathLike[str],
    content: bytes | str | Callable[[Path], object],
    *,
    durable: bool = False,
    mode: int | None = None,
    overwrite: bool = True,
    wait: bool = True,
    in_place: bool = False,
) -> None:
    """Write a file so that, whatever happens, there is the old one or the new one, whole.

    The content goes to `.NAME.part` beside the file, which then takes its name; writers of one file take
    turns by a lock on it. What a function writes goes to `.NAME.part~`, as some libraries put a file of their
    own there, which nobody has locked. The names are always the same, so what a killed process left goes with
    the next write. A link is written through, also one that leads nowhere yet. What cannot be replaced is
    written to: a device, a pipe, a descriptor of this process such as /dev/stdout or /dev/fd/63.

    Args:
        path: Where to.
        content: What to write, text as UTF-8; or a function that writes it to the path it is given.
        durable: Whether to wait until file and name would survive a power cut.
        mode: Permissions. Default: those of the file that is replaced, else those of any new file.
        overwrite: Whether to replace a file that exists.
        wait: Whether to wait for another writer of the same file.
        in_place: Whether a file that may be written but not replaced, being mounted by itself or in a folder
            that takes no files, is rewritten instead. It is then not whole until all is written.

    Raises:
        FileExistsError: If the file exists, or came into being meanwhile, and `overwrite` is false.
        BlockingIOError: If another process writes it and `wait` is false.
        OSError: If it cannot be written; the old file is as it was.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    if (stream := _open_stream(path)) is not None:
        _write_stream(stream, data)
        return
    target = Path(os.path.realpath(path))
    try:
        _replace(target, data, durable=durable, mode=mode, overwrite=overwrite, wait=wait)
    except OSError as error:
        if not in_place or error.errno not in _NOT_REPLACEABLE or not target.is_file():
            raise
        _write_stream(os.open(target, os.O_WRONLY | os.O_TRUNC | system.CLOEXEC), data)
    if durable:
        with contextlib.suppress(OSError):  # the file is there; not every file system syncs folders
            sync_folder(target.parent)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Find out, before there is anything to write, whether `write_atomically` could write a file.

    Args:
        path: Where to. Nothing is made, opened or changed.
        overwrite: Whether it may be there already.

    Raises:
        FileExistsError: If it is there and may not be.
        OSError: If it could not be written; `strerror` is what to tell a person, such as "it is a folder".
    """
    name = os.fspath(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "it has no name", name)
    descriptor = own_descriptor(name)
    if descriptor is not None:
        if system.is_read_only(descriptor):
            raise OSError(errno.EBADF, "it is open for reading alone", name)
        return
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        _check_place(os.path.realpath(name), name)
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", name)
    if stat.S_ISSOCK(mode):
        raise OSError(errno.ENXIO, "it is a socket", name)
    if stat.S_ISREG(mode) and not overwrite:
        raise FileExistsError(errno.EEXIST, "it exists already", name)
    if not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, "it is protected from writing", name)


def _check_place(target: str, name: str) -> None:
    """Raise OSError if no file of this name, `target` without links, could be made."""
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", name)
    if name.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, "it is named like a folder", name)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "its folder is protected from writing", name)


def own_descriptor(path: str | os.PathLike[str]) -> int | None:
    """Return the descriptor of this process that a path stands for, as /dev/stdout does; None for others.

    Such a path, or a link to it, names nothing that another file could take the place of; and to open it
    again would write over what was written before.
    """
    # Of Linux, where /dev/fd is a link to it; and of other systems.
    folders = re.compile(rf"/proc/{os.getpid()}(/task/\d+)?/fd|/dev/fd")
    name = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        folder, last = os.path.split(name)
        if last.isdecimal() and folders.fullmatch(os.path.realpath(folder)):
            return int(last)
        try:
            name = os.path.join(folder, os.readlink(name))
        except OSError:
            return None
    return None


def _open_stream(path: str | os.PathLike[str]) -> int | None:
    """Open for writing what cannot be replaced; None for a file, and where there is none yet."""
    descriptor = own_descriptor(path)
    if descriptor is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # what was printed before comes before
        return os.dup(descriptor)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return os.open(path, os.O_WRONLY | system.NOCTTY | system.CLOEXEC)


def _write_stream(descriptor: int, data: bytes | Callable[[Path], object]) -> None:
    """Write content to a descriptor, and close it."""
    with os.fdopen(descriptor, "wb") as out:
        if not callable(data):
            out.write(data)
            return
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory(prefix="imret-") as folder:
            part = Path(folder) / "part"
            data(part)
            with part.open("rb") as made:
                shutil.copyfileobj(made, out)


def _replace(
    target: Path,
    data: bytes | Callable[[Path], object],
    *,
    durable: bool,
    mode: int | None,
    overwrite: bool,
    wait: bool,
) -> None:
    """Write a part and give it the target's name."""
    with _part_of(target, mode=mode, wait=wait) as (part, descriptor):
        written = _own_of_function(part) if callable(data) else part
        try:
            if callable(data):
                info = os.fstat(descriptor)
                written.unlink(missing_ok=True)
                os.close(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.CLOEXEC, 0o600))
                data(written)
                if hasattr(os, "chown"):
                    with contextlib.suppress(OSError):  # only root can, and needs to
                        os.chown(written, info.st_uid, info.st_gid)
                os.chmod(written, stat.S_IMODE(info.st_mode))
            else:
                part.write_bytes(data)
            if durable:
                _sync(written, os.O_RDONLY)
            if overwrite:
                os.replace(written, target)
            else:
                replace_if_absent(written, target)
            if written != part:
                part.unlink(missing_ok=True)
        except BaseException:
            with contextlib.suppress(OSError):
                written.unlink()
            part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _part_of(target: Path, *, mode: int | None, wait: bool) -> Iterator[tuple[Path, int]]:
    """Make and lock a file with the owner and permissions of the target; yield it, and its descriptor."""
    part = target.with_name(_part_name(target.name))
    # O_NOFOLLOW: in a folder of many users somebody may have put a link there.
    flags = os.O_RDWR | system.NOFOLLOW | system.CLOEXEC
    while True:
        is_new = True
        try:
            descriptor = os.open(part, flags | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        except FileExistsError:
            is_new = False
            try:
                descriptor = os.open(part, flags)
            except FileNotFoundError:
                continue
        try:
            _lock(descriptor, wait=wait)
            info = os.fstat(descriptor)
            if not _is_same(info, part):  # another writer's, which became its target while this one waited
                continue
            if not stat.S_ISREG(info.st_mode):
                raise FileExistsError(errno.EEXIST, "something else is in the way; remove it", str(part))
            if not is_new:
                # What a killed process left has its permissions, which are no reason for those of a new file.
                part.unlink()
                _own_of_function(part).unlink(missing_ok=True)
                continue
            if mode is not None:
                system.set_mode(descriptor, part, mode)
            else:
                with contextlib.suppress(FileNotFoundError):
                    system.set_owner_and_mode(descriptor, part, target.stat())
            yield part, descriptor
            return
        finally:
            os.close(descriptor)


def _part_name(name: str) -> str:
    part = f".{name}.part"
    if len(os.fsencode(part)) < _LONGEST_NAME:  # by one, for `_own_of_function`
        return part
    return f".{zlib.crc32(os.fsencode(name)):08x}.part"


def _own_of_function(part: Path) -> Path:
    """Return the file beside a part that a function writes; no part has such a name."""
    return part.with_name(part.name + "~")


def _lock(descriptor: int, *, wait: bool) -> None:
    try:
        system.lock(descriptor, wait=wait)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):  # a share without locks
            raise


def _is_same(info: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(info, os.lstat(path))
    except FileNotFoundError:
        return False


def replace_if_absent(part: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a file another name, unless that name is taken.

    Raises:
        FileExistsError: If it is; the file keeps its name.
    """
    try:
        os.link(part, target)  # unlike a rename, refuses to take the place of what has come meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as FAT
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from None
        os.rename(part, target)
    else:
        os.unlink(part)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system lets folders be synced."""
    if system.DIRECTORY:
        _sync(folder, os.O_RDONLY | system.DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(file: BinaryIO) -> str:
    """Return the hex digest of what is left to read of a file; memory stays at a megabyte."""
    import hashlib  # brings OpenSSL, 3.5 MB, which the process of an embedded store never needs

    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """Return the hex digest of bytes."""
    import hashlib

    return hashlib.sha256(data).hexdigest()


def sha256_if_readable(path: str | os.PathLike[str]) -> str | None:
    """Return the hex digest of a file's content, or None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return sha256_of(file)
    except OSError:
        return None


def irregular(path: str | os.PathLike[str]) -> str | None:
    """Say what is at a path, links followed, if it is no regular file: "a pipe", say. None if it is one.

    Raises:
        OSError: If nothing is there.
    """
    return _kind_of(os.stat(path).st_mode)


def _kind_of(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def read_regular(path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
    """Return the content of a file, links followed; neither waits for a pipe nor reads a device.

    Args:
        path: The file.
        max_bytes: Of which no more is read.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more bytes; `strerror` says which.
    """
    kind = irregular(path)  # before it is opened, which some devices take as a command
    if kind is None:
        # Not waiting for a writer: it may have become a pipe this moment.
        descriptor = os.open(path, os.O_RDONLY | system.NONBLOCK | system.CLOEXEC)
        kind = _kind_of(os.fstat(descriptor).st_mode)
        if kind is not None:
            os.close(descriptor)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes", os.fspath(path))
    return data
