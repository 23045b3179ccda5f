"""Files written whole or not at all, folders put on disk, digests of what is read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(
    path: str | os.PathLike[str],
    content: bytes | str | Callable[[Path], object],
    *,
    durable: bool = False,
    mode: int | None = None,
    overwrite: bool = True,
    wait: bool = True,
) -> None:
    """Write a file so that, whatever happens, there is the old one or the new one, whole.

    The content goes to `.NAME.part` beside the file, which then takes its name. That name is always the
    same, so what a killed process left is used again; writers of one file take turns by a lock on it. A link
    is written through; a device or a pipe is written to, for it cannot be replaced.

    Args:
        path: Where to.
        content: What to write, text as UTF-8; or a function that writes it to the path it is given.
        durable: Whether to wait until file and name would survive a power cut.
        mode: Permissions. Default: those of the file that is replaced, else those of any new file.
        overwrite: Whether to replace a file that exists.
        wait: Whether to wait for another writer of the same file.

    Raises:
        FileExistsError: If the file exists, or came into being meanwhile, and `overwrite` is false.
        BlockingIOError: If another process writes it and `wait` is false.
        OSError: If it cannot be written; the old file is as it was.
    """
    target = Path(os.path.realpath(path))
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    if not callable(data) and target.exists() and not target.is_file() and not target.is_dir():
        target.write_bytes(data)
        return
    with _part_of(target, mode=mode, wait=wait) as (part, permissions):
        try:
            if callable(data):
                data(part)
                os.chmod(part, permissions)  # some libraries make a file of their own
            else:
                part.write_bytes(data)
            if durable:
                _sync(part, os.O_RDONLY)
            if overwrite:
                os.replace(part, target)
            else:
                replace_if_absent(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    if durable:
        with contextlib.suppress(OSError):  # the file is there; not every file system syncs folders
            sync_folder(target.parent)


@contextlib.contextmanager
def _part_of(target: Path, *, mode: int | None, wait: bool) -> Iterator[tuple[Path, int]]:
    """Lock and empty the file that becomes the target; yield it and the permissions it is to have."""
    part = target.with_name(f".{target.name}.part")
    # O_NOFOLLOW: in a folder of many users somebody may have put a link there.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(part, flags, 0o666 if mode is None else mode)
        try:
            _lock(descriptor, wait=wait)
            info = os.fstat(descriptor)
            if not _is_same(info, part):  # another writer's, which became its target while this one waited
                continue
            if not stat.S_ISREG(info.st_mode):
                raise FileExistsError(errno.EEXIST, "something else is in the way; remove it", str(part))
            permissions = stat.S_IMODE(info.st_mode) if mode is None else mode
            if mode is None:
                with contextlib.suppress(FileNotFoundError):
                    permissions = stat.S_IMODE(target.stat().st_mode)
            os.ftruncate(descriptor, 0)
            os.fchmod(descriptor, permissions)
            yield part, permissions
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
    """Make the names in a folder survive a power cut."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


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


def sha256_if_readable(path: str | os.PathLike[str]) -> str | None:
    """Return the hex digest of a file's content, or None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return sha256_of(file)
    except OSError:
        return None
