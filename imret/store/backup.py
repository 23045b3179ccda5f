"""A collection's own files kept in one file, or brought home from a server: backup, restore, pull.

Where `imret.store.parquet` exports what was stored, for any engine and any version of it, this takes the
engine's files as they are, with the graph, the int8 vectors and the indexes of the payload that were built
over them: to open them again takes no longer than to copy them. Qdrant Edge opens those of a server, too, as
its shards' snapshots are such files. A server is given points, and builds its own: a shard's files fit only
a collection of as many shards. Names, concepts and what is excluded come along. Hides who fetches from where.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.store import Collection, Store, exported_documents
from imret.store.backup_file import Note, Reader, Writer
from imret.store.collection import changed_meanwhile, check_name
from imret.store.documents import DOCUMENTS, DocumentKind
from imret.store.exported_file import check_space, write_whole
from imret.store.replacement import Replacement
from imret.store.types import Identity, LiveState

if TYPE_CHECKING:
    from imret.store.embedded.store import EdgeStore
    from imret.store.server.snapshots import FetchedShard

OnBytes: TypeAlias = Callable[[int], None]
_BATCH = 1_024  # points of one upsert to a server


@dataclass(frozen=True)
class _Kept:
    """What is kept with a collection beside its points."""

    documents: Mapping[DocumentKind, bytes | None]
    excluded: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, store: Store, name: str) -> _Kept:
        return cls({kind: store.document(name, kind) for kind in DOCUMENTS}, store.excluded(name))

    def put(self, store: Store, name: str) -> None:
        """Keep it with a collection, in place of what that has."""
        exported_documents.keep(store, name, self.documents, replace=True)
        store.exclude(name, {**dict.fromkeys(store.excluded(name), ()), **self.excluded})


@dataclass(frozen=True)
class Pulled:
    """What was taken from a server.

    Attributes:
        points: How many.
        shards: Of how many shards.
        is_behind: Whether another program wrote to the collection meanwhile.
    """

    points: int
    shards: int
    is_behind: bool


def backup_collection(
    store: Store,
    name: str,
    file: str | os.PathLike[str],
    *,
    peers: Sequence[str] = (),
    on_bytes: OnBytes = lambda n: None,
) -> Note:
    """Write the live version of a collection to a file; whole, or not at all.

    Args:
        store: An open store.
        name: The collection.
        file: What to write; must not exist.
        peers: Other nodes of the server's cluster.
        on_bytes: Called with numbers of bytes that were written.

    Returns:
        What the file says of itself.

    Raises:
        DataError: If there is no such collection, the file exists or cannot be written, or shards are on
            nodes that were not named.
        StoreError: If the store fails, or has lost files.
        ChangedMeanwhile: If another program replaced the collection meanwhile.
    """
    note: Note | None = None

    def write(part: Path) -> None:
        nonlocal note
        with open(part, "wb") as out:
            note = take(Writer(out, on_bytes), part.parent)

    if store.engine == "embedded":
        take = partial(_take_files, store, name)
    else:
        take = partial(_take_snapshots, store, name, peers)
    write_whole(file, write, overwrite=False, advice="Name another file; a backup replaces none.")
    assert note is not None
    return note


def restore_collection(
    file: str | os.PathLike[str],
    store: Store,
    name: str,
    *,
    replace: bool = False,
    on_bytes: OnBytes = lambda n: None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> int:
    """Make a collection of a backup.

    The whole file is verified before the store is touched. What it holds becomes a version beside the live
    one, if any, which becomes live when it is complete; killed before that, nothing has changed.

    Args:
        file: From `backup_collection`.
        store: An open store, embedded or not.
        name: The collection to make.
        replace: Replace one that exists.
        on_bytes: Called with numbers of bytes that were verified, then of those that were copied.
        on_stage: Called with "verify" and "copy", then to a server with "store".

    Returns:
        How many points it holds.

    Raises:
        DataError: If the file is not whole or none of imret's, the disk has too little space, or the
            collection exists and `replace` is not set.
        ChangedMeanwhile: If another program changed the collection meanwhile.
        StoreError: If the store fails.
    """
    begun = _begun(store, name, replace=replace)
    on_stage("verify")
    with Reader(file, on_bytes) as reader, ExitStack() as stack:
        replacement = Replacement(store, name, begun)
        on_stage("copy")
        if store.engine == "embedded":
            opened = stack.enter_context(_adopted(store, name, reader, on_bytes))
        else:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="imret-restore-"))
            local = stack.enter_context(_embedded_in(home))
            held = stack.enter_context(_adopted(local, name, reader, on_bytes))
            on_stage("store")
            opened = stack.enter_context(closing(_copied(held, store, name)))
        points = opened.count()
        with _told(name):
            replacement.carry_out(opened)
        _Kept(reader.documents(), reader.note.excluded).put(store, name)
    return points


def pull_collection(
    server: Store,
    name: str,
    store: Store,
    *,
    peers: Sequence[str] = (),
    replace: bool = False,
    on_bytes: OnBytes = lambda n: None,
) -> Pulled:
    """Make a collection of a server's one of the same name in an embedded store.

    By its shards' snapshots: nothing is sent point by point, and nothing is indexed again. It becomes live
    when it is complete; killed before that, nothing has changed.

    Args:
        server: An open store on a server.
        name: The collection.
        store: An open embedded store.
        peers: Other nodes of the server's cluster.
        replace: Replace a collection of the embedded store.
        on_bytes: Called with numbers of bytes that have come.

    Raises:
        DataError: If there is no such collection, shards are on nodes that were not named, or the embedded
            store has one of that name and `replace` is not set.
        ChangedMeanwhile: If another program replaced it on the server meanwhile, or changed the embedded one.
        StoreError: If a store fails, or the disk has too little space.
    """
    if server.engine != "server" or store.engine != "embedded":
        raise DataError("a collection is pulled from a server (--db http://...) into an embedded store.")
    begun = _begun(store, name, replace=replace)
    identity = server.live(name)
    if identity is None:
        server.open(name).close()  # which says what there is instead
        raise changed_meanwhile(name, server.address)
    replacement = Replacement(store, name, begun)
    embedded = _as_embedded(store)
    with embedded.incoming() as folder:
        parts: list[Path] = []
        with _fetching(server, name, peers, folder, on_bytes) as fetched:
            for shard in fetched.shards:
                parts.append(folder / str(shard.shard))
                embedded.unpack(shard.file, parts[-1])
                shard.file.unlink()
        with closing(embedded.adopt(name, identity, parts)) as opened:
            points = opened.count()
            fetched.check(points)
            kept = _Kept.of(server, name)
            with _told(name):
                replacement.carry_out(opened)
    kept.put(store, name)
    return Pulled(points, len(parts), fetched.is_behind)


def _begun(store: Store, name: str, *, replace: bool) -> LiveState:
    """Return the state of the collection to make.

    Raises:
        DataError: If it exists and is not to be replaced.
    """
    check_name(name)
    begun = store.state(name)
    if begun.version is not None and not replace:
        raise DataError(
            f"collection {name!r} exists already, in {store.address}. Replace it (--replace), or rename it "
            f"first: imret collections rename {name} NEW"
        )
    return begun


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except ChangedMeanwhile as error:
        raise ChangedMeanwhile(
            f"another program changed the collection {name!r} meanwhile; it stays as it is. Run it again."
        ) from error


# ---- Embedded ----------------------------------------------------------------------------------


def _as_embedded(store: Store) -> EdgeStore:
    from imret.store.embedded.store import EdgeStore

    assert isinstance(store, EdgeStore)
    return store


@contextmanager
def _embedded_in(folder: str) -> Iterator[Store]:
    from imret.store.embedded.store import EdgeStore

    with EdgeStore(os.path.join(folder, "db")) as store:
        yield store


@contextmanager
def _room_for_links(store: EdgeStore, beside: Path) -> Iterator[Path]:
    """Make a folder for the files of a shard, in the store, as links reach no further."""
    with ExitStack() as stack:
        try:
            place = stack.enter_context(store.incoming())
        except StoreError:  # a medium that cannot be written to: a copy, then
            place = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=".imret-backup-", dir=beside))
            )
        yield place / "0"


def _take_files(store: Store, name: str, writer: Writer, beside: Path) -> Note:
    from imret.store.embedded.engine_version import engine_version

    embedded = _as_embedded(store)
    with _room_for_links(embedded, beside) as place:
        identity, points = embedded.link_files(name, place)
        check_space(str(beside), 4 * identity.dim * points)
        writer.add_shard_files(0, place)
    kept = _Kept.of(store, name)
    note = Note(name, identity, points, 1, "files", _plain(kept), engine_version())
    writer.end(note, kept.documents)
    return note


@contextmanager
def _adopted(store: Store, name: str, reader: Reader, on_bytes: OnBytes) -> Iterator[Collection]:
    """Make a version of a backup in an embedded store; open, and not live."""
    embedded, note = _as_embedded(store), reader.note
    with embedded.incoming() as folder:
        try:
            # Of a snapshot there is for a moment also what it is unpacked to.
            check_space(str(folder), reader.stored_bytes * (2 if note.form == "snapshots" else 1))
            parts = reader.extract(folder, on_bytes)
        except OSError as error:
            raise DataError(
                f"cannot copy {reader.shown} to {store.address!r}: {error.strerror or error}. Free some "
                "space."
            ) from error
        if note.form == "snapshots":
            for part in parts:
                embedded.unpack(part, part.with_suffix(""))
                part.unlink()
            parts = [part.with_suffix("") for part in parts]
        with closing(embedded.adopt(name, note.identity, parts)) as opened:
            if note.points is not None and (found := opened.count()) != note.points:
                raise DataError(
                    f"{reader.shown} says that it holds {note.points:,} pictures, and Qdrant Edge finds "
                    f"{found:,} in it. Take another backup."
                )
            yield opened


# ---- Server ------------------------------------------------------------------------------------


class _Fetching:
    """The shards of a server's collection, and whether that was the same all the time."""

    def __init__(
        self, server: Store, name: str, identity: Identity, begun: LiveState, shards: Iterator[FetchedShard]
    ) -> None:
        self.identity = identity
        self.shards = shards
        self._server, self._name, self._begun = server, name, begun
        self.points = self._count()
        self.is_behind = False

    def end(self) -> None:
        """Look again.

        Raises:
            ChangedMeanwhile: If the version is not the live one any more.
        """
        now = self._server.state(self._name)
        if not now.has_version_of(self._begun):
            raise changed_meanwhile(self._name, self._server.address)
        self.is_behind = now != self._begun or self._count() != self.points

    def check(self, points: int) -> None:
        """Refuse fewer or more points than there were all the time.

        Raises:
            StoreError: If that is so.
        """
        if not self.is_behind and points != self.points:
            raise StoreError(
                f"the snapshots of collection {self._name!r} hold {points:,} pictures, and "
                f"{self._server.address} holds {self.points:,}. Are its shards being moved? Run it again."
            )

    def _count(self) -> int:
        with closing(self._server.open(self._name)) as opened:
            return opened.count()


@contextmanager
def _fetching(
    server: Store, name: str, peers: Sequence[str], folder: Path, on_bytes: OnBytes, *, room: float = 2.0
) -> Iterator[_Fetching]:
    """Yield the shards of a collection to fetch; looks in the end whether it was replaced meanwhile."""
    from imret.store.server.snapshots import ShardSnapshots

    begun, identity = server.state(name), server.live(name)
    if begun.version is None or identity is None:
        raise changed_meanwhile(name, server.address)
    with ShardSnapshots(server.address, peers) as snapshots:
        shards = snapshots.fetch(name, begun.version, folder, on_bytes=on_bytes, room=room)
        fetching = _Fetching(server, name, identity, begun, shards)
        yield fetching
        fetching.end()


def _take_snapshots(server: Store, name: str, peers: Sequence[str], writer: Writer, beside: Path) -> Note:
    if server.live(name) is None:
        server.open(name).close()  # which says what there is instead
    n_shards = 0
    with (
        tempfile.TemporaryDirectory(prefix=".imret-backup-", dir=beside) as folder,
        _fetching(server, name, peers, Path(folder), lambda n: None) as fetched,
    ):
        for shard in fetched.shards:
            writer.add_snapshot(shard.shard, shard.file)
            shard.file.unlink()
            n_shards += 1
    kept = _Kept.of(server, name)
    points = None if fetched.is_behind else fetched.points
    note = Note(name, fetched.identity, points, n_shards, "snapshots", _plain(kept), "qdrant server")
    writer.end(note, kept.documents)
    return note


def _copied(held: Collection, store: Store, name: str) -> Collection:
    """Store the points of a collection in a new version of another store; open, and not live."""
    target = store.create_staging(name, held.identity)
    try:
        for points in held.scan(vectors=True, batch_size=_BATCH):
            vectors = np.stack([point.vector for point in points if point.vector is not None])
            target.upsert([point.id for point in points], vectors, [point.payload for point in points])
        if (stored := target.count()) != (n := held.count()):
            raise StoreError(
                f"{store.address} holds {stored:,} of {n:,} pictures after all were stored. Does something "
                "else write to it? Run it again."
            )
        target.flush()
        target.optimize()
    except BaseException:
        target.close()
        raise
    return target


def _plain(kept: _Kept) -> dict[str, tuple[str, ...]]:
    return {source: tuple(patterns) for source, patterns in kept.excluded.items()}
