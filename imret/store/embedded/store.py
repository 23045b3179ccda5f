"""The embedded engine: a store in a folder, served to this program by a worker process of its own.

Hides the worker (started by the first collection that is opened, ended with the store) and the versions on
disk. One worker at a time can have a version open, also to search it. Where that of another program has it
and shares it (all of imret's commands do), this program uses it through that one, and when that program ends,
opens it itself or through the next.
"""

from __future__ import annotations

import os
import random
import shlex
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imret import system
from imret.errors import DataError, StoreDamaged, StoreError, StoreUnavailable
from imret.store.collection import Collection, changed_meanwhile, check_name
from imret.store.documents import DocumentKind, check_kind
from imret.store.embedded import documents, incoming, locks
from imret.store.embedded import layout as folder
from imret.store.embedded.absence import check_not_replaced, no_such
from imret.store.embedded.client import PeerClient, WorkerClient, WorkerGone, WorkerProcess
from imret.store.embedded.collection import EdgeEngine, Opened
from imret.store.embedded.damage import damaged
from imret.store.embedded.ledger import SqliteLedger
from imret.store.embedded.patience import Patience
from imret.store.embedded.unix_socket import folder_to_share_in
from imret.store.placement import Creation, check_embedded, check_same
from imret.store.types import Identity, LiveState, Share, new_mark

if TYPE_CHECKING:
    from typing_extensions import Self

_POLL_S = 0.05


class StoreWarning(UserWarning):
    """Something about an embedded store that whoever uses it should know."""


MAX_CRASHES = 2  # of the worker over one opening: then it is the files


class EdgeStore:
    """A store in a folder. See `Store` for what its methods promise.

    Args:
        path: The folder.
        create: Make a store of it if it is missing or empty.
        lock_timeout_s: How long to wait for another process that has a collection open.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built; a scan of fewer is as
            fast.
        share: Let other programs of this user use what this one has open: search and fill it. Their requests
            and this one's are answered one at a time, this one's at every second turn. "if possible" goes on
            without where there is nothing private to share through.
        reason: Why this store was chosen.
        creation: What is asked of the collections that it makes.

    Raises:
        StoreUnavailable: If there is no store and `create` is false.
        StoreError: If the folder cannot be used, nothing private is there to share through, or something is
            asked that only a server has.
    """

    engine = "embedded"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        lock_timeout_s: float = 5.0,
        index_from_kb: int = 10_000,
        share: Share = False,
        reason: str = "",
        creation: Creation | None = None,
    ) -> None:
        self.address = os.fspath(path)
        self.reason = reason
        self.creation = creation or Creation()
        check_embedded(self.creation, self.address)
        self._folder = Path(self.address).expanduser().absolute()
        folder.prepare(self._folder, create=create)
        self._lock_timeout_s = lock_timeout_s
        self._index_from_kb = index_from_kb
        self._must_share = share is True and system.has_unix_sockets()
        self._share_in = folder_to_share_in(share)
        self._worker: WorkerProcess | None = None
        self._peers: dict[str, PeerClient] = {}  # by socket
        self._starting = threading.Lock()
        self._closed = False
        self.kept: dict[str, Any] = {}

    def collections(self) -> list[str]:
        return [name for name in folder.collection_names(self._folder) if self._has_live(name)]

    def incomplete(self) -> list[str]:
        return [
            name
            for name in folder.collection_names(self._folder)
            if not self._has_live(name) and self._has_left_over(name)
        ]

    def _has_left_over(self, name: str) -> bool:
        try:
            return bool(self.staged_versions(name)) or folder.is_left_over(self._folder / name)
        except StoreError:
            return True

    def _has_live(self, name: str) -> bool:
        try:
            return self.live(name) is not None
        except StoreError:  # whoever opens it is told
            return True

    def live(self, name: str) -> Identity | None:
        collection = self._folder / check_name(name)
        while True:
            live = folder.read_versions(collection).live
            identity = None if live is None else folder.read_identity(collection / live)
            if identity is not None or folder.read_versions(collection).live == live:
                return identity

    def version(self, name: str) -> str | None:
        return folder.read_versions(self._folder / check_name(name)).live

    def state(self, name: str) -> LiveState:
        return folder.read_versions(self._folder / check_name(name)).state

    def finish(self, name: str, begun: LiveState) -> None:
        collection = self._folder / check_name(name)
        with self._switching(collection, begun) as known:
            if not known.state.has_version_of(begun):
                raise changed_meanwhile(name, self.address)
            folder.write_versions(collection, replace(known, ended=new_mark()))

    def staged_versions(self, name: str) -> list[Identity]:
        collection = self._folder / check_name(name)
        known = folder.read_versions(collection)
        staged = []
        for version in folder.version_folders(collection):
            if version.name != known.live and version.name not in known.retired:
                with suppress(StoreDamaged):  # whoever fills it is told
                    staged.append(folder.read_identity(version))
        return [identity for identity in staged if identity is not None]

    def open(self, name: str, *, patience_s: float | None = None) -> Collection:
        collection = self._folder / check_name(name)
        self._check_open()
        for attempt in (1, 2):
            live = folder.read_versions(collection).live
            if live is None:
                raise self._no_such(name)
            try:
                return self._open(name, collection / live, None)
            except DataError:
                # Another process may have switched to a new version, and removed this one, this moment.
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def open_version(self, name: str, identity: Identity) -> Collection:
        return self._open_to_fill(name, identity, staged=False)

    def join(self, name: str, identity: Identity, version: str) -> Collection:
        return self._open(name, self._folder / check_name(name) / version, identity)

    def ledger(self, name: str, version: str) -> SqliteLedger:
        return SqliteLedger(self._folder / check_name(name) / version)

    def create_staging(self, name: str, identity: Identity) -> Collection:
        return self._open_to_fill(name, identity, staged=True)

    def incoming(self) -> AbstractContextManager[Path]:
        """Make a folder for the files of shards, for the time of a block. Raises StoreError if it cannot."""
        return incoming.folder_in(self._folder)

    def unpack(self, snapshot: Path, target: Path) -> None:
        """Make the files of a shard of a snapshot of its. Raises DataError if it is damaged."""
        self._started().call("unpack", snapshot, target)

    def adopt(self, name: str, identity: Identity, parts: Sequence[Path]) -> Collection:
        """Make a version beside the live one of the files of shards, which are moved."""
        return self._open_to_fill(name, identity, staged=True, parts=parts)

    def link_files(self, name: str, target: Path) -> tuple[Identity, int]:
        """Give the engine's files of the live version a second place; return encoder and number of points."""
        live = folder.read_versions(self._folder / check_name(name)).live
        if live is None:
            raise self._no_such(name)
        opened, identity = self._acquire(self._folder / name / live, None)
        try:
            return identity, int(opened.worker.call("link", opened.handle, target.absolute()))
        finally:
            with suppress(StoreError):
                opened.worker.tell("close", opened.handle)

    def _open_to_fill(
        self, name: str, identity: Identity, *, staged: bool, parts: Sequence[Path] = ()
    ) -> Collection:
        collection = self._folder / check_name(name)

        def begin(version: str) -> Collection:
            path = collection / version
            points = self._started().call("adopt", path, identity, list(parts)) if parts else None
            opened = self._open(name, path, identity, empty=staged and not parts)
            if points is not None and opened.count() != points:  # begun anew by another program
                opened.close()
                raise changed_meanwhile(name, self.address)
            return opened

        version = folder.version_of(collection, identity, staged=staged)
        try:
            opened = begin(version)
        except locks.LiveMeanwhile:  # while its lock was waited for; then the other one is free
            version = folder.version_of(collection, identity, staged=staged)
            opened = begin(version)
        if self.creation.asked:
            check_same(self.creation, opened.creation(), name, self.address)
        known = folder.read_versions(collection)
        if version in known.retired:
            with locks.switching(collection):
                known = folder.read_versions(collection)
                retired = tuple(item for item in known.retired if item != version)
                folder.write_versions(collection, replace(known, retired=retired))
        self._clean(collection)
        return opened

    def promote(
        self,
        name: str,
        identity: Identity,
        *,
        staged: bool = False,
        version: str | None = None,
        expected: LiveState | None = None,
    ) -> LiveState:
        collection = self._folder / check_name(name)
        version = version or folder.version_of(collection, identity, staged=staged)
        with self._switching(collection, expected) as known:
            if expected is not None and known.state != expected:
                raise changed_meanwhile(name, self.address)
            if folder.read_identity(collection / version) is None:
                raise StoreError(f"collection {name!r} has no version {version} to switch to")
            # What another program fills is neither live nor replaced: it will be made live, or resumed.
            retired = tuple(
                path.name
                for path in folder.version_folders(collection)
                if path.name != version
                and (path.name in (known.live, *known.retired) or not locks.is_held_by_another(path))
            )
            switch = known.switch if known.live == version else new_mark()
            now = folder.Versions(version, retired, switch, known.ended)
            folder.write_versions(collection, now)
        self._clean(collection)
        return now.state

    @contextmanager
    def _switching(self, collection: Path, expected: LiveState | None) -> Iterator[folder.Versions]:
        """Yield what live.json says, which nobody else changes meanwhile."""
        try:
            with locks.switching(collection):
                yield folder.read_versions(collection)
        except FileNotFoundError:  # the collection is gone, or has another name
            if expected is not None and expected.version is not None:
                raise changed_meanwhile(collection.name, self.address) from None
            raise StoreError(f"collection {collection.name!r} has no version to switch to") from None

    def rename(self, old: str, new: str) -> None:
        source, target = self._folder / check_name(old), self._folder / check_name(new)
        if self.live(old) is None:
            raise self._no_such(old)
        if self.live(new) is not None or self.staged_versions(new):
            raise folder.taken(source, target)
        self._started().call("rename", source, target)

    def drop(self, name: str) -> None:
        collection = self._folder / check_name(name)
        if collection.is_dir() and folder.is_own(collection):
            self._started().call("drop", collection)
        folder.empty_trash(self._folder)

    def excluded(self, name: str) -> dict[str, tuple[str, ...]]:
        return folder.read_excluded(self._folder / check_name(name))

    def exclude(self, name: str, excluded: Mapping[str, Sequence[str]]) -> None:
        try:
            folder.write_excluded(self._folder / check_name(name), excluded)
        except FileNotFoundError:  # the collection is gone, or has another name
            raise changed_meanwhile(name, self.address) from None

    def document(self, name: str, kind: DocumentKind) -> bytes | None:
        check_kind(kind)
        return documents.read(self._folder / check_name(name), kind)[1]

    def document_mark(self, name: str, kind: DocumentKind) -> str:
        check_kind(kind)
        return documents.mark(self._folder / check_name(name), kind)

    def change_document(
        self, name: str, kind: DocumentKind, change: Callable[[bytes | None], bytes | None]
    ) -> None:
        check_kind(kind)
        with self._of_a_collection(name) as (collection, check_live):
            documents.change(collection, kind, change, check_live)

    def remove_document(self, name: str, kind: DocumentKind) -> None:
        check_kind(kind)
        with self._of_a_collection(name) as (collection, _):
            documents.remove(collection, kind)

    @contextmanager
    def _of_a_collection(self, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
        """Yield the folder of a collection that has a live version, and what looks whether it still has."""
        collection = self._folder / check_name(name)

        def check_live() -> None:
            if folder.read_versions(collection).live is None:
                raise self._no_such(name)

        check_live()
        try:
            yield collection, check_live
        except FileNotFoundError:  # the collection is gone, or has another name
            raise changed_meanwhile(name, self.address) from None

    def close(self) -> None:
        self.kept.clear()
        with self._starting:
            self._closed = True
            clients: list[WorkerClient] = [*self._peers.values()]
            clients += [] if self._worker is None else [self._worker]
            self._peers, self._worker = {}, None
        for client in clients:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._worker is not None and isinstance(exc_info[1], KeyboardInterrupt):
            self._worker.abandon()  # it may be busy for others, and a person waits
        self.close()

    def _open(
        self, name: str, version: Path, identity: Identity | None, *, empty: bool = False
    ) -> Collection:
        opened, stored = self._acquire(version, identity, empty=empty)
        try:
            place = system.HeldFolder(version)
        except OSError as error:  # another program has removed it this moment
            with suppress(StoreError):
                opened.worker.tell("close", opened.handle)
            raise DataError(
                f"there is no version {version.name} of collection {name!r} any more: {error.strerror}"
            ) from error

        def reopen() -> Opened:
            again, _ = self._acquire(version, None)
            try:
                check_not_replaced(self.address, version, place, to_fill=identity is not None)
            except BaseException:
                with suppress(StoreError):
                    again.worker.tell("close", again.handle)
                raise
            return again

        unbuilt = (
            f"The index of {name!r} is not built; its pictures are safe, and are found by comparing one by "
            f"one. Build it: imret collections optimize {name} --db {shlex.quote(self.address)}"
        )
        engine = EdgeEngine(opened, reopen, unbuilt=unbuilt)
        weakref.finalize(engine, place.close)  # kept, so that no other folder can be taken for it
        return Collection(name, version.name, stored, engine, self)

    def _acquire(
        self, version: Path, identity: Identity | None, *, empty: bool = False
    ) -> tuple[Opened, Identity]:
        """Open a version, in the worker of the program that has it, else in the own one.

        Raises:
            LockedElsewhere: If a program that does not share has it for longer than the patience for one.
            StoreDamaged: If its worker dies of a fault over it, again and again.
        """
        patience, crashes = Patience(self._lock_timeout_s), 0
        with locks.Turn(version.parent) as turn:
            while True:
                owner = locks.read_owner(version)
                # What is to be emptied must not be open elsewhere, so nobody is asked for it.
                peer = None if empty else self._peer_of(owner)
                opened = None if peer is None else self._open_through(peer, version, identity)
                if peer is not None and opened is not None:
                    return Opened(peer, opened[0]), opened[1]
                # One program at a time starts a worker: it shares, and the others go through it.
                if self._worker is not None or turn.take() or patience.has_ended(owner):
                    worker = self._started()
                    try:
                        handle, stored = worker.call("open", version, identity, empty)
                        if note := worker.call("opening_note", handle):
                            warnings.warn(note, StoreWarning, stacklevel=2)
                        return Opened(worker, handle), stored
                    except StoreUnavailable:
                        if not worker.crash:
                            raise
                        crashes += 1
                        if crashes == MAX_CRASHES:
                            reason = f"Qdrant Edge crashed {crashes} times as it opened it ({worker.crash})"
                            raise damaged(version.parent, reason, version=version) from None
                        continue  # in another worker
                    except locks.LockedElsewhere:
                        # The wait is here and not in the worker, which others may be waiting for.
                        if patience.has_ended(owner):
                            raise
                time.sleep(random.uniform(0.5, 1.5) * _POLL_S)

    def _peer_of(self, owner: locks.LockOwner | None) -> PeerClient | None:
        """Return a client of the program that has a version, if it shares and answers."""
        if owner is None or not owner.socket or owner.sharing != folder.SHARING:
            return None
        with self._starting:
            self._check_open()
            if self._worker is not None and owner.socket == self._worker.socket:
                return None
            peer = self._peers.get(owner.socket)
            if peer is None or peer.is_abandoned:
                peer = PeerClient.connect(self.address, owner)
            if peer is not None:
                self._peers[owner.socket] = peer
            return peer

    def _open_through(
        self, peer: PeerClient, version: Path, identity: Identity | None
    ) -> tuple[int, Identity] | None:
        """Open a version in another program's worker; None if it has it no more: then the lock decides."""
        try:
            opened: tuple[int, Identity] | None = peer.call("open", version, identity)
            return opened
        except WorkerGone:
            with self._starting:
                self._peers = {path: other for path, other in self._peers.items() if other is not peer}
            peer.close()
            return None

    def _clean(self, collection: Path) -> None:
        """Remove what earlier switches retired, except what is still being read."""
        for version in folder.read_versions(collection).retired:
            if (collection / version).is_dir():
                with suppress(StoreError):  # the next switch tries again
                    self._started().call("remove", collection / version)
        for place in (collection, self._folder):
            folder.empty_trash(place)

    def _no_such(self, name: str) -> DataError:
        is_staged = bool(self.staged_versions(name))
        return no_such(self.address, name, self.collections(), is_staged, name in self.incomplete())

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.address!r} is closed")

    def _started(self) -> WorkerProcess:
        with self._starting:
            self._check_open()
            if self._worker is None or self._worker.is_abandoned or self._worker.has_died:
                if self._worker is not None:
                    self._worker.close()
                self._worker = WorkerProcess(
                    self.address,
                    self._share_in,
                    must_share=self._must_share,
                    index_from_kb=self._index_from_kb,
                    creation=self.creation,
                )
            return self._worker
