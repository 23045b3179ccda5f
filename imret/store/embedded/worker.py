"""The process that owns the shards of an embedded store.

Qdrant Edge keeps Python's interpreter lock while it searches and while it builds an index (a second each
2,000 vectors), and a shard can be open only once. So one process of its own holds the shards, and
`imret.store.embedded.client` talks to it over a socket. If its program shares, other programs of the same
user talk to it, too, about the versions that it has open. It ends when its program hangs up or is gone.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from imret import ipc
from imret.errors import ImretError, StoreDamaged, StoreError, StoreLocked
from imret.store.embedded import adoption, damage, locks
from imret.store.embedded import layout as folder
from imret.store.embedded.engine_config import stored_creation
from imret.store.embedded.scheduler import Peer, RequestScheduler
from imret.store.embedded.shard import Shard
from imret.store.embedded.unix_socket import Listener
from imret.store.placement import Creation, inherited
from imret.store.types import Identity

LINGER_S = 1.0  # a shard stays open this long after its last handle: opening a large one takes about as long


class Handle(NamedTuple):
    """What a program has open.

    Attributes:
        shard: The version.
        peer: Whose it is; None for the worker's own program.
    """

    shard: Shard
    peer: Peer | None


class Worker:
    """Answers requests, one after the other, for the shards of one store.

    Args:
        owner: Whom to name to other processes.
        index_from_kb: As for `Shard`.
        creation: The same.
    """

    def __init__(self, owner: locks.LockOwner, index_from_kb: int, creation: Creation | None = None) -> None:
        self._lock_owner = owner
        self._index_from_kb = index_from_kb
        self._creation = creation or Creation()
        self._shards: dict[Path, Shard] = {}
        self._handles: dict[int, Handle] = {}
        self._next_handle = count(1)

    def answer(self, operation: str, arguments: tuple[Any, ...], peer: Peer | None = None) -> Any:
        """Return what a request asks for.

        Args:
            operation: "open", "remove", "drop", "rename", "unpack" or "adopt", or one for an open shard:
                "close", "link" or a method of `Shard`.
            arguments: For an open shard its handle, then what the method takes.
            peer: Who asks; None is the worker's own program. Others may use what that has open, and
                nothing else: to what it has not they have the same right as it.
        """
        if operation == "open":
            return self._open(*arguments) if peer is None else self._share(peer, *arguments)
        if operation in ("remove", "drop", "rename", "unpack", "adopt"):
            if peer is not None:
                raise StoreError(f"a program that shares a store does not {operation} for another")
            if operation == "unpack":
                return adoption.unpack(*arguments)
            if operation == "adopt":
                return self._adopt(*arguments)
            if operation == "rename":
                return self._rename(*arguments)
            return self._drop(*arguments) if operation == "drop" else self._remove_retired(*arguments)
        handle, *rest = arguments
        opened = self._handles.get(handle)
        if opened is None or opened.peer is not peer:
            raise StoreError("this collection was dropped while it was open")
        if operation == "close":
            self._let_go(handle)
            return None
        try:
            if operation == "link":
                return self._link(opened.shard, *rest)
            return getattr(opened.shard, operation)(*rest)
        except BaseException as error:
            if damage.is_engine_failure(error):
                raise opened.shard.failure(operation, error) from error
            raise

    def leave(self, peer: Peer) -> None:
        """Close the handles of another program that is gone."""
        for number in [number for number, opened in self._handles.items() if opened.peer is peer]:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._handles.pop(number).shard.idle_since = time.monotonic()

    def _open(self, path: Path, identity: Identity | None, empty: bool) -> tuple[int, Identity]:
        if empty and path in self._shards:
            self._close_unused(path)
        shard = self._shards.get(path)
        if shard is None:
            shard = Shard(
                path,
                identity,
                owner=self._lock_owner,
                index_from_kb=self._index_from_kb,
                empty=empty,
                creation=self._creation.over(_replaced(path)),
            )
            shard.idle_since = time.monotonic()
            self._shards[path] = shard
        elif identity is not None:
            shard.resume(identity)
        return self._hand_out(shard, None)

    def _adopt(self, path: Path, identity: Identity, parts: list[Path]) -> int:
        if path in self._shards:
            self._close_unused(path)
        return adoption.adopt(
            path, identity, parts, owner=self._lock_owner, index_from_kb=self._index_from_kb
        )

    def _link(self, shard: Shard, target: Path) -> int:
        """Give the files of a version a second place, with all that is stored; return how many points."""
        shard.flush()
        adoption.link_files(shard.path / "shard", target)
        return shard.count(None)

    def _share(self, peer: Peer, path: Path, identity: Identity | None) -> tuple[int, Identity] | None:
        """Open a version for another program, which may spell its path otherwise; None if it is not open."""
        shard = self._shards.get(path)
        if shard is None:
            with suppress(FileNotFoundError):
                shard = next(
                    (other for other in self._shards.values() if os.path.samefile(other.path, path)), None
                )
        if shard is None:
            return None
        if identity is not None:
            shard.resume(identity)
        return self._hand_out(shard, peer)

    def _hand_out(self, shard: Shard, peer: Peer | None) -> tuple[int, Identity]:
        number = next(self._next_handle)
        self._handles[number] = Handle(shard, peer)
        return number, shard.identity

    def _drop(self, collection: Path) -> None:
        """Remove a collection, also where this program has it open.

        Raises:
            StoreLocked: If another process has a version open; then nothing is removed.
        """
        paths = folder.locked_versions(collection)
        for opened in self._handles.values():
            if opened.peer is not None and opened.shard.path in paths:
                raise _in_use(opened.shard.path, "by another program, through this one; end that first")
        for path in paths:
            if path in self._shards:
                self._close(path)
        with suppress(FileNotFoundError):  # somebody else was faster
            held = self._lock_all([path for path in paths if locks.can_be_held(path)])
            try:
                trash = folder.remove(collection)
            finally:
                for lock in held:
                    lock.release()
            shutil.rmtree(trash, ignore_errors=True)

    def _remove_retired(self, path: Path) -> None:
        """Remove a version that another has replaced, if that is still so and nobody is about to change it.

        Raises:
            StoreLocked: If it is open, here or in another process.
        """
        with locks.switching(path.parent, wait=False) as locked:
            if locked and folder.is_retired(path):
                [lock] = self._lock_all([path])
                removed = False
                try:
                    folder.move_to_trash(path)
                    removed = True
                finally:
                    lock.release(remove=removed)

    def _rename(self, source: Path, target: Path) -> None:
        """Give a collection another name.

        Raises:
            StoreLocked: If one of its versions is open, here or in another process.
            DataError: If the name is taken.
        """
        if target.exists():
            # Checked before, without a lock. What is left has no finished version: a making was cut short.
            holds = any(folder.read_identity(path) is not None for path in folder.version_folders(target))
            if holds or not folder.is_left_over(target):
                raise folder.taken(source, target)
            self._drop(target)
        held = self._lock_all(folder.locked_versions(source))
        try:
            folder.rename(source, target)
        finally:
            for lock in held:
                lock.release()

    def _lock_all(self, paths: list[Path]) -> list[locks.VersionLock]:
        """Lock versions, all or none.

        Raises:
            StoreLocked: If one of them is open, here or in another process.
        """
        for path in paths:
            if path in self._shards:
                self._close_unused(path)
        held: list[locks.VersionLock] = []
        try:
            for path in paths:
                held.append(locks.VersionLock(path, self._lock_owner))
        except BaseException:
            for lock in held:
                lock.release()
            raise
        return held

    def _close_unused(self, path: Path) -> None:
        """Close a shard that lingers.

        Raises:
            StoreLocked: If it is in use.
        """
        users = {opened.peer for opened in self._handles.values() if opened.shard.path == path}
        if None in users:
            raise _in_use(path, "in this program; close it first")
        if users:
            raise _in_use(path, "by another program, through this one; end that first")
        self._close(path)

    def _close(self, path: Path) -> None:
        self._handles = {
            number: opened for number, opened in self._handles.items() if opened.shard.path != path
        }
        self._shards.pop(path).close()

    def close_idle(self) -> None:
        """Close the shards that nobody has used for a while, so that other processes can.

        Those that another version has replaced are removed: they were there for their last reader only.
        """
        now = time.monotonic()
        in_use = {opened.shard.path for opened in self._handles.values()}
        for path, shard in list(self._shards.items()):
            if path not in in_use and now - shard.idle_since >= LINGER_S:
                self._close_for_good(path)

    def end(self) -> None:
        """Remove the shards that another version has replaced, flush the others; the process ends next."""
        self._handles.clear()
        for path in list(self._shards):
            self._close_for_good(path, retired_only=True)
        for shard in self._shards.values():
            shard.end()

    def _close_for_good(self, path: Path, *, retired_only: bool = False) -> None:
        """Close a shard that nobody uses, and remove it if it is retired; or leave it for another time.

        That is while another process writes live.json. Nobody waits for it: it may be stopped.
        """
        try:
            with locks.switching(path.parent, wait=False) as locked:
                if locked:
                    try:
                        retired = folder.is_retired(path)
                    except StoreError:  # damaged; whoever opens the collection will be told
                        retired = False
                    if retired or not retired_only:
                        self._shards.pop(path).close(remove=retired)
        except (FileNotFoundError, StoreDamaged):  # somebody removed the folder under us, or broke it
            if path in self._shards:
                self._close(path)


def _replaced(version: Path) -> Creation:
    """Return what a version, if it is to be made, takes over from the live one."""
    with suppress(StoreError):
        if live := folder.read_versions(version.parent).live:
            return inherited(stored_creation(version.parent / live / "shard"))
    return Creation()


def _in_use(path: Path, by: str) -> StoreLocked:
    return StoreLocked(f"the collection {path.parent.name!r} in {str(path.parent.parent)!r} is open {by}")


def main(descriptor: int) -> None:
    """Serve requests from a socket until it ends or the parent process is gone.

    The first is ("hello", (parent pid, the folder for a socket if other programs may connect or None, whether
    to fail where none can be made, and what `Worker` takes)), and the answer the path of the socket or "".

    Args:
        descriptor: Of the socket whose other end is the program that started this process.
    """
    connection = socket.socket(fileno=descriptor)
    try:
        _, (parent, share_in, must_share, owner, *options) = ipc.receive(connection)
    except EOFError:
        return
    listener: Listener | None = None
    try:
        if share_in is not None:
            listener = Listener(share_in)
            owner = replace(owner, socket=str(listener.path), sharing=folder.SHARING)
    except OSError as error:
        if must_share:
            failure = f"cannot make a socket in {str(share_in)!r}, to share the store: "
            ipc.send(connection, (False, StoreError(failure + (error.strerror or str(error)))))
            return
    worker = Worker(owner, *options)
    ipc.send(connection, (True, owner.socket))
    scheduler = RequestScheduler(connection, listener, on_leave=worker.leave)
    last_tidied = time.monotonic()
    try:
        # A forked child of the program may keep its end open after it is gone, hence the look at the parent.
        while os.getppid() == parent and not scheduler.ended:
            peer = scheduler.next(LINGER_S)
            if peer is not None:
                asker = None if peer is scheduler.own else peer
                scheduler.answer(peer, _answer(worker, peer.request, asker))
            if peer is None or time.monotonic() - last_tidied >= LINGER_S:
                worker.close_idle()
                last_tidied = time.monotonic()
    finally:
        scheduler.close()  # first, so that the others soon know
        worker.end()
    os._exit(0)  # at an orderly exit the engine would close its files after all


def _answer(worker: Worker, request: tuple[str, tuple[Any, ...]], peer: Peer | None) -> tuple[bool, Any]:
    operation = "answer"
    try:
        operation, arguments = request
        return True, worker.answer(operation, arguments, peer)
    except ImretError as error:
        return False, error
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror + (f": {error.filename!r}" if error.filename else "")
        hint = " Free some space and run the command again." if "No space left" in text else ""
        return False, StoreError(f"the embedded store failed to {operation.replace('_', ' ')}: {text}.{hint}")


if __name__ == "__main__":
    sys.exit("this is the worker of imret's embedded store; it is started by imret.store.embedded.store")
