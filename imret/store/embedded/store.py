"""The embedded engine: a store in a folder, served to this program by a worker process of its own.

Hides the worker (started by the first collection that is opened, ended with the store) and the versions on
disk. One worker at a time can have a version open, also to search it. Where that of
another program has it and shares it (`imret serve` does), this program uses it through that one.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imret.errors import DataError, StoreError, StoreLocked, StoreUnavailable, some_of
from imret.store.collection import Collection, check_name
from imret.store.embedded import layout as folder
from imret.store.embedded import locks
from imret.store.embedded.client import PeerClient, WorkerClient, WorkerProcess
from imret.store.embedded.collection import EdgeEngine
from imret.store.embedded.unix_socket import private_folder
from imret.store.types import Identity

if TYPE_CHECKING:
    from typing_extensions import Self

_POLL_S = 0.05


class EdgeStore:
    """A store in a folder. See `Store` for what its methods promise.

    Args:
        path: The folder.
        create: Make a store of it if it is missing or empty.
        lock_timeout_s: How long to wait for another process that has a collection open.
        index_from_kb: Vectors of a segment, in KiB, from which on an index is built; a scan of fewer is as
            fast.
        share: Let other programs of this user use what this one has open: search and fill it. Their requests
            and this one's are answered one at a time, this one's at every second turn.
        reason: Why this store was chosen.

    Raises:
        StoreUnavailable: If there is no store and `create` is false.
        StoreError: If the folder cannot be used, or nothing private is there to share through.
    """

    engine = "embedded"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        lock_timeout_s: float = 5.0,
        index_from_kb: int = 10_000,
        share: bool = False,
        reason: str = "",
    ) -> None:
        self.address = os.fspath(path)
        self.reason = reason
        self._folder = Path(self.address).expanduser().absolute()
        folder.prepare(self._folder, create=create)
        self._lock_timeout_s = lock_timeout_s
        self._index_from_kb = index_from_kb
        self._share_in = private_folder() if share else None
        self._worker: WorkerProcess | None = None
        self._peers: dict[str, PeerClient] = {}  # by socket
        self._starting = threading.Lock()
        self._closed = False
        self.kept: dict[str, Any] = {}

    def collections(self) -> list[str]:
        return [name for name in folder.collection_names(self._folder) if self.live(name) is not None]

    def live(self, name: str) -> Identity | None:
        collection = self._folder / check_name(name)
        live = folder.read_versions(collection).live
        return None if live is None else folder.read_identity(collection / live)

    def version(self, name: str) -> str | None:
        return folder.read_versions(self._folder / check_name(name)).live

    def staged_versions(self, name: str) -> list[Identity]:
        collection = self._folder / check_name(name)
        known = folder.read_versions(collection)
        staged = [
            folder.read_identity(version)
            for version in folder.version_folders(collection)
            if version.name != known.live and version.name not in known.retired
        ]
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

    def create_staging(self, name: str, identity: Identity) -> Collection:
        return self._open_to_fill(name, identity, staged=True)

    def _open_to_fill(self, name: str, identity: Identity, *, staged: bool) -> Collection:
        collection = self._folder / check_name(name)
        version = _version_of(collection, identity, staged=staged)
        opened = self._open(name, collection / version, identity, empty=staged)
        known = folder.read_versions(collection)
        if version in known.retired:
            with locks.switching(collection):
                known = folder.read_versions(collection)
                retired = tuple(item for item in known.retired if item != version)
                folder.write_versions(collection, folder.Versions(known.live, retired))
        self._clean(collection)
        return opened

    def promote(self, name: str, identity: Identity, *, staged: bool = False) -> None:
        collection = self._folder / check_name(name)
        version = _version_of(collection, identity, staged=staged)
        if not collection.is_dir():
            raise StoreError(f"collection {name!r} has no version {version} to switch to")
        with locks.switching(collection):
            if folder.read_identity(collection / version) is None:
                raise StoreError(f"collection {name!r} has no version {version} to switch to")
            others = [path.name for path in folder.version_folders(collection) if path.name != version]
            folder.write_versions(collection, folder.Versions(version, tuple(others)))
        self._clean(collection)

    def rename(self, old: str, new: str) -> None:
        source, target = self._folder / check_name(old), self._folder / check_name(new)
        if self.live(old) is None:
            raise self._no_such(old)
        if self.live(new) is not None or self.staged_versions(new):
            raise folder.taken(source, target)
        self._started().call("rename", source, target)

    def drop(self, name: str) -> None:
        collection = self._folder / check_name(name)
        if collection.is_dir():
            self._started().call("drop", collection)
        folder.empty_trash(self._folder)

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
        self.close()

    def _open(
        self, name: str, version: Path, identity: Identity | None, *, empty: bool = False
    ) -> Collection:
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            # What is to be emptied must not be open elsewhere, so nobody is asked for it.
            peer = None if empty else self._peer_of(version)
            if peer is not None:
                opened = self._open_through(peer, version, identity)
                if opened is not None:
                    handle, stored = opened
                    return Collection(name, version.name, stored, EdgeEngine(peer, handle))
            try:
                worker = self._started()
                handle, stored = worker.call("open", version, identity, empty)
                return Collection(name, version.name, stored, EdgeEngine(worker, handle))
            except locks.LockedElsewhere:
                # The wait is here and not in the worker, which others may be waiting for.
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL_S)

    def _peer_of(self, version: Path) -> PeerClient | None:
        """Return a client of the program that shares a version, as the version's lock says, if it answers."""
        owner = locks.read_owner(version)
        if owner is None or not owner.socket or owner.sharing != folder.SHARING:
            return None
        with self._starting:
            self._check_open()
            if self._worker is not None and owner.socket == self._worker.socket:
                return None
            peer = self._peers.get(owner.socket) or PeerClient.connect(self.address, owner)
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
        except StoreUnavailable:
            with self._starting:
                self._peers = {path: other for path, other in self._peers.items() if other is not peer}
            peer.close()
            return None

    def _clean(self, collection: Path) -> None:
        """Remove what earlier switches retired, except what is still being read."""
        for version in folder.read_versions(collection).retired:
            if (collection / version).is_dir():
                with suppress(StoreLocked):
                    self._started().call("remove", collection / version)
        folder.empty_trash(collection)

    def _no_such(self, name: str) -> DataError:
        existing = self.collections()
        if self.staged_versions(name):
            return DataError(f"collection {name!r} is not complete yet. Run its ingest again to finish it.")
        listed = f"There are: {some_of(existing)}" if existing else "It holds none yet"
        return DataError(
            f"no collection {name!r} in {self.address!r}. {listed}.\n"
            f"Make it: imret ingest FOLDER --collection {name} --db {shlex.quote(self.address)}"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.address!r} is closed")

    def _started(self) -> WorkerProcess:
        with self._starting:
            self._check_open()
            if self._worker is None:
                self._worker = WorkerProcess(self.address, self._share_in, self._index_from_kb)
            return self._worker


def _version_of(collection: Path, identity: Identity, *, staged: bool) -> str:
    """Return the name of a version's folder; an encoder has two, to fill one while the other is live."""
    plain, second = identity.version, f"{identity.version}-2"
    live = folder.read_versions(collection).live
    if live not in (plain, second):
        return plain
    return live if not staged else second if live == plain else plain
