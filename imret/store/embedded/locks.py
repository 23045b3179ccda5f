"""Locks between processes on an embedded store, and who holds them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from imret import system
from imret.errors import ChangedMeanwhile, StoreError, StoreLocked
from imret.store.embedded.damage import damaged
from imret.store.embedded.permissions import PROTECTED, is_read_only_disk, obstacle

SWITCH_LOCK = ".switch.lock"
_NOTE_BYTES = 2048  # what a note takes at least: the rest is spaces, which JSON allows


@dataclass(frozen=True)
class LockOwner:
    """The process that has a version open, as others will read it in their error, or reach it.

    Attributes:
        pid: The program, not its worker.
        command: What was typed to start it.
        since: Local time, "2026-01-31 14:02".
        socket: Path of the socket through which its worker lets other programs use what it has open; "" if
            it does not share.
        sharing: The `SHARING` of that worker.
    """

    pid: int
    command: str
    since: str
    socket: str = ""
    sharing: int = 0


class LockedElsewhere(StoreLocked):
    """Another process has a version open, perhaps not for long."""


class ProtectedStore(StoreError):
    """Files of a store cannot be written to: it can be searched, and nothing else."""


class LiveMeanwhile(ChangedMeanwhile):
    """A version that is to be emptied was made live while its lock was waited for."""


class VersionLock:
    """The right to open a version, held until `release` or until the process dies.

    Beside the version, not in it, so that it covers making and removing it. Qdrant Edge has a lock of its
    own inside; this one also knows who holds it.

    Args:
        version: Folder of the version.
        owner: Who will be told to others.

    Attributes:
        was_held_by_older: Whether an older imret held it last, which noted less.

    Raises:
        LockedElsewhere: If another process holds it: maybe for a moment only, one that was killed may still
            be closing.
        StoreDamaged: If something else is in its place.
        ProtectedStore: If the store cannot be written to.
    """

    def __init__(self, version: Path, owner: LockOwner) -> None:
        self._path = _lock_of(version)
        existed = self._path.is_file()
        while True:
            descriptor = _open_lock(self._path)
            try:
                system.lock(descriptor)
                if _is_file(descriptor, self._path):
                    break
                os.close(descriptor)  # its last owner removed the file between our open and our lock
            except BlockingIOError:
                os.close(descriptor)
                raise locked(version, read_owner(version), owner.pid) from None
            except OSError:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        self.was_held_by_older = existed and os.fstat(descriptor).st_size < _NOTE_BYTES
        self._note(json.dumps(asdict(owner)))

    def clear_owner(self) -> None:
        """Forget who holds it, and hold it until the process ends, which is now."""
        self._note("")

    def release(self, *, remove: bool = False) -> None:
        """Let others open the version; with `remove` it is gone, and so is the file."""
        with suppress(OSError):
            if remove:
                os.unlink(self._path)
            else:
                self._note("")
        os.close(self._descriptor)

    def _note(self, text: str) -> None:
        """Write over what is noted, in the place that it has: on a full disk there is no other.

        A disk without room for the first note has none; then nobody is told who holds the lock.
        """
        with suppress(OSError):
            size = max(_NOTE_BYTES, os.fstat(self._descriptor).st_size)
            system.write_at_start(self._descriptor, text.encode().ljust(size))


class ReaderLock:
    """The right to read a version that cannot be written to: many have it, and meanwhile nobody writes.

    Whoever cannot write to it cannot note who reads, either. A version without a lock's file is one that
    nobody has open, as on a disc.

    Args:
        version: Folder of the version.
        owner: Who asks.

    Attributes:
        was_held_by_older: As of `VersionLock`.

    Raises:
        LockedElsewhere: If somebody who can write to it has it open.
        ProtectedStore: If it cannot be read, either.
    """

    def __init__(self, version: Path, owner: LockOwner) -> None:
        self.was_held_by_older = False
        self._descriptor = -1
        try:
            self._descriptor = os.open(_lock_of(version), os.O_RDONLY | system.CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise protected(version, error, write=False) from error
        try:
            system.lock(self._descriptor, shared=True)
        except BlockingIOError:
            os.close(self._descriptor)
            raise locked(version, read_owner(version), owner.pid) from None
        except OSError:  # a medium without locks, which nobody writes to
            pass
        self.was_held_by_older = os.fstat(self._descriptor).st_size < _NOTE_BYTES

    def clear_owner(self) -> None:
        """There is none noted."""

    def release(self, *, remove: bool = False) -> None:
        """Let others write to it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Turn:
    """The turn of a program to open what a collection holds, while others wait for what comes of it.

    A courtesy: of many programs that start at once, one opens the version and shares it, where all would
    have started a worker for nothing. A context manager, which gives it back.

    Args:
        collection: Its folder, which is what is locked: no file is made, so a full disk is no obstacle.
    """

    def __init__(self, collection: Path) -> None:
        self._collection = collection
        self._descriptor = -1

    def take(self) -> bool:
        """Take it unless another has it; True also where none can be had: nobody is held up for it."""
        if self._descriptor >= 0:
            return True
        try:
            descriptor = os.open(self._collection, os.O_RDONLY | system.DIRECTORY | system.CLOEXEC)
        except OSError:  # there is no such collection yet
            return True
        try:
            system.lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # a share without locks on folders
            os.close(descriptor)
            return True
        self._descriptor = descriptor
        return True

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held_by_another(version: Path) -> bool:
    """Whether another program has a version open, or is making it, and not only to end with it."""
    try:
        descriptor = os.open(_lock_of(version), os.O_RDONLY | system.CLOEXEC)
    except OSError:
        return False
    try:
        system.lock(descriptor, shared=True)
    except BlockingIOError:
        owner = read_owner(version)
        return owner is not None and owner.pid != os.getpid()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@contextmanager
def switching(collection: Path, *, wait: bool = True) -> Iterator[bool]:
    """Let one process at a time read and replace live.json; held for milliseconds.

    Args:
        collection: Its folder.
        wait: For another process that is at it.

    Yields:
        Whether it is our turn: always, if we wait for it.
    """
    path = collection / SWITCH_LOCK
    while True:
        descriptor = _open_lock(path)
        try:
            try:
                system.lock(descriptor, wait=wait)
            except BlockingIOError:
                yield False
                return
            if _is_file(descriptor, path):
                yield True
                return
            # The collection got another name while its lock was waited for, or was deleted: what is there
            # now, if anything, has a lock of its own.
        finally:
            os.close(descriptor)


def read_owner(version: Path) -> LockOwner | None:
    """Return what is noted in the lock of a version, or None if nothing is.

    A courtesy, which may be stale, or be written this moment: who holds it, only the lock itself tells.
    """
    try:
        note = json.loads(_lock_of(version).read_bytes())
        return LockOwner(
            **{field.name: note[field.name] for field in fields(LockOwner) if field.name in note}
        )
    except (OSError, ValueError, TypeError):
        return None


def locked(version: Path, owner: LockOwner | None, own_pid: int) -> LockedElsewhere:
    """Return the error for a version that another process has open."""
    shares = owner is not None and owner.socket and owner.pid != own_pid and is_running(owner.pid)
    if owner is None:
        by = "another process"
    elif owner.pid == own_pid:
        by = f"this process ({owner.pid}), which opened the store twice"
    elif not is_running(owner.pid):
        by = f"what is left of process {owner.pid} ({owner.command}), which ended and is still writing"
    else:
        by = f"process {owner.pid} ({owner.command}), since {owner.since}"
    use = f"the collection {version.parent.name!r} in {str(version.parent.parent)!r} is in use by {by}. "
    server = "or run a server that serves many: docker compose up qdrant, then --db http://localhost:6333"
    if shares:
        return LockedElsewhere(
            f"{use}It lets other commands of the same user search and fill the collection, but not rename or "
            "delete it.\n"
            f"Stop it (Ctrl-C where imret serve runs) and run this again, {server}"
        )
    return LockedElsewhere(
        f"{use}An embedded store serves one process at a time, for searching too, unless that shares it, as "
        "imret's commands do where they can.\n"
        f"Wait until it has ended or stop it, {server}"
    )


def protected(version: Path, error: OSError | None = None, *, write: bool = True) -> ProtectedStore:
    """Return the error for a version that cannot be written to, or, without `write`, not even be read.

    Args:
        version: Its folder.
        error: What the system said, if it was asked.
        write: Whether it was to be written to.
    """
    store = str(version.parent.parent)
    what = f"cannot {'write to' if write else 'read'} the collection {version.parent.name!r} in {store!r}: "
    if write and is_read_only_disk(version.parent.parent):
        return ProtectedStore(
            f"{what}its disk is mounted to be read only. It can be searched.\n"
            "To change it, copy the folder to where files can be written, and name that with --db."
        )
    places = [_lock_of(version), version, version.parent]
    folder = version.parent.parent
    found = (obstacle(place, store=folder, write=write) for place in places if place.exists())
    if why := next(filter(None, found), ""):
        public = f"the collection {version.parent.name!r} cannot be {'written to' if write else 'read'}."
        return ProtectedStore(f"{what}{why}.", public=public)
    reason = (error and error.strerror) or "its files are protected from writing"
    return ProtectedStore(
        f"{what}{reason}.\n"
        "Make its files writable, or copy the folder to where they are, and name that with --db."
    )


def can_be_held(version: Path) -> bool:
    """Whether anybody can hold the lock of a version: not where a folder is in its place."""
    return not _lock_of(version).is_dir()


def remove_if_empty(folder: Path) -> None:
    """Remove an empty folder that is where a file should be; one that is not empty stays."""
    with suppress(OSError):
        os.rmdir(folder)


def _open_lock(path: Path) -> int:
    """Return a descriptor of a lock's file, which is made if there is none.

    Raises:
        StoreDamaged: If something else is in its place.
        ProtectedStore: If it cannot be written to.
        FileNotFoundError: If the collection is gone.
    """
    if path.is_dir():
        remove_if_empty(path)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | system.CLOEXEC, 0o666)
    except IsADirectoryError:
        raise damaged(path.parent, f"{path.name} is a folder where a file should be") from None
    except OSError as error:
        if error.errno not in PROTECTED:
            raise
        raise protected(path.with_suffix(""), error) from error


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock_of(version: Path) -> Path:
    return version.with_name(version.name + ".lock")


def is_running(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
