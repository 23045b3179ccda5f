"""The server engine: a store on a Qdrant server or cluster, through qdrant-client.

A version is a Qdrant collection `NAME.FINGERPRINT16`, or `NAME.FINGERPRINT16-2` where that is taken. It keeps
that name when imret's collection is renamed: its metadata says whose it is and which encoder made it. `NAME`
itself is an alias of the live one, so that a switch is one step for every reader. Hides retries, and batches
in flight. A collection or an alias that imret did not make is never written to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from imret.errors import DataError, StoreError, StoreUnavailable, no_such_collection
from imret.store.collection import Collection, changed_meanwhile, check_name, is_name
from imret.store.documents import DocumentKind
from imret.store.placement import Creation, check_same, inherited
from imret.store.server import excluded as noted
from imret.store.server.collection import ServerEngine
from imret.store.server.connection import Connection, PartAway, ReplacedError, look_up, patient_for
from imret.store.server.creation import creation_of, dialect_of, index_payload
from imret.store.server.documents import Documents, note_for
from imret.store.server.marks import STAGED, Marks
from imret.store.server.physical_names import is_version
from imret.store.server.versions import (
    FORMAT,
    create_alias,
    delete_alias,
    keeps_no_metadata,
    move_alias,
    not_made_by_imret,
    note_of,
    of_encoder,
)
from imret.store.types import Identity, LiveState, new_mark

if TYPE_CHECKING:
    from typing_extensions import Self

# Of two programs that switch at once each sees the other's alias or none after so long.
SETTLE_S = 0.3


class ServerStore:
    """A store on a Qdrant server. See `Store` for what its methods promise.

    Args:
        address: "http://host[:port][/path]", or with https; without a port it is 6333, below a path that of
            the scheme.
        api_key: Default: environment variable QDRANT_API_KEY, if set.
        client: Use this client instead of connecting to the address.
        patience_s: How long an operation is tried again while the server is gone or busy.
        in_flight: Requests of one upsert that are under way at a time.
        reason: Why this store was chosen.
        creation: What is asked of the collections that it makes.

    Raises:
        StoreUnavailable: If no Qdrant answers at the address.
        StoreError: If the address or the key cannot be one, or the server refuses the key.
    """

    engine = "server"

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        client: QdrantClient | None = None,
        patience_s: float = 15.0,
        in_flight: int = 4,
        reason: str = "",
        creation: Creation | None = None,
    ) -> None:
        self._connection = Connection(
            address, api_key=api_key, client=client, patience_s=patience_s, in_flight=in_flight
        )
        self._client, self._request = self._connection.client, self._connection.request
        self._marks = Marks(self._connection)
        self._documents = Documents(self._connection, self.version, self._no_such)
        self.address = address
        self.reason = reason
        self.creation = creation or Creation()
        self._like: dict[str, Creation] = {}  # what Qdrant collections are like, once they were looked at
        self.kept: dict[str, Any] = {}
        if warning := self._connection.warning:
            self.reason = f"{reason}; {warning}" if reason else f"store {address}: {warning}"

    def collections(self) -> list[str]:
        def is_ours(name: str, physical: str) -> bool:
            try:
                return self._identity(name, physical, waits_for_part=False) is not None
            except PartAway:  # it cannot be described now, and is called as only imret's are
                return True

        def look() -> list[str]:
            names = self._aliases().items()
            return sorted(name for name, it in names if is_version(it) and is_ours(name, it))

        return look_up(look)

    def incomplete(self) -> list[str]:
        aliases = self._aliases()
        names = set()
        for physical in self._names():
            if is_version(physical) and physical not in aliases.values():
                with suppress(PartAway):  # it cannot be described now
                    names.add(str(self._note(physical, waits_for_part=False).get("collection", "")))
        return sorted(name for name in names - set(aliases) if is_name(name))

    def live(self, name: str) -> Identity | None:
        version = look_up(lambda: self._live_version(name))
        return None if version is None else version[1]

    def version(self, name: str) -> str | None:
        physical = self._aliases().get(check_name(name))
        return physical if physical is not None and is_version(physical) else None

    def state(self, name: str) -> LiveState:
        def look() -> LiveState:
            physical = self.version(name)
            return LiveState() if physical is None else self._marks.state(physical)

        return look_up(look)

    def finish(self, name: str, begun: LiveState) -> None:
        physical = begun.version
        if physical is None or not self.state(name).has_version_of(begun):
            raise changed_meanwhile(name, self.address)
        try:
            self._marks.write(physical, ended=new_mark())
            self._marks.await_switch(physical, lambda: self.version(name) == physical)
        except ReplacedError:
            raise changed_meanwhile(name, self.address) from None
        if not self.state(name).has_version_of(begun):
            raise changed_meanwhile(name, self.address)

    def staged_versions(self, name: str) -> list[Identity]:
        live = self._live_name(name)
        versions = self._versions(name, skips_away=True)
        return [identity for physical, identity in versions.items() if physical != live]

    def open(self, name: str, *, patience_s: float | None = None) -> Collection:
        with patient_for(patience_s):
            version = look_up(lambda: self._live_version(name))
        if version is None:
            raise self._no_such(name)
        physical, identity = version
        return self._collection(name, identity, physical)

    def open_version(self, name: str, identity: Identity) -> Collection:
        live = self._settled_live_name(name)
        existing = of_encoder(self._versions(name), identity, live, staged=False)
        mine = (one for one in existing if one == live or not self._marks.read(one, "staged"))
        return self._open_to_fill(name, identity, next(mine, None))

    def create_staging(self, name: str, identity: Identity) -> Collection:
        live = self._settled_live_name(name)
        for physical in of_encoder(self._versions(name), identity, live, staged=True):
            if not self._marks.is_filled_by_another(physical) and self._aliases().get(name) != physical:
                self._delete(physical)
        return self._open_to_fill(name, identity, None, staged=True)

    def _open_to_fill(
        self, name: str, identity: Identity, physical: str | None, *, staged: bool = False
    ) -> Collection:
        if physical is None:
            physical = self._free_name(name, identity)
            # An ingest that begins now does not take it for one of its own that was cut short.
            self._create(name, physical, identity, STAGED if staged else {})
        stored = self._identity(name, physical)
        if stored is None:
            raise self._foreign(name, physical)
        stored.require_same(
            identity,
            subject=f"collection {physical!r} at {self.address}",
            user="this program uses",
            advice="Use another name for the collection: --collection NAME",
        )
        if stored.model != identity.model:
            # The same weights under another name, for example a folder that was moved: the newer one works.
            self._write_note(physical, note_of(name, identity))
        check_same(self.creation, self._like.get(physical, Creation()), name, self.address)
        index_payload(self._connection, physical)
        return self._collection(name, identity, physical, fills=True)

    def _collection(self, name: str, identity: Identity, physical: str, *, fills: bool = False) -> Collection:
        filling = self._marks.filling(physical) if fills else None
        engine = ServerEngine(self._connection, name, physical, filling, self._like.get(physical))
        return Collection(name, physical, identity, engine, self)

    def promote(
        self,
        name: str,
        identity: Identity,
        *,
        staged: bool = False,
        version: str | None = None,
        expected: LiveState | None = None,
    ) -> LiveState:
        old = self._settled_live_name(name)
        now = self.state(name)
        if expected is not None and now != expected:
            raise changed_meanwhile(name, self.address)
        versions = self._versions(name)
        physical = version or next(iter(of_encoder(versions, identity, old, staged=staged)), None)
        if physical not in versions:
            raise StoreError(f"collection {name!r} at {self.address} has no version {identity.version}")
        if old != physical:
            now = LiveState(physical, new_mark())
            if old is not None:
                noted.write(self._connection, physical, noted.read(self._connection, old))
                self._documents.take_over(old, physical)
            self._marks.write(physical, switch=now.switch, ended=now.ended, switching="")
            self._switch(name, old, physical, expected)
        for other in versions:
            if other != physical and (other == old or not self._marks.is_filled_by_another(other)):
                self._delete(other)
        return now

    def _switch(self, name: str, old: str | None, physical: str, expected: LiveState | None) -> None:
        """Make a version the alias's.

        Raises:
            ChangedMeanwhile: If the state is another than is expected.
        """
        steps: list[models.AliasOperations] = [create_alias(name, physical)]
        if old is not None:
            steps.insert(0, delete_alias(name))
        if old is not None and expected is not None:
            try:
                may_switch = self._marks.begin_switch(old, expected)
                if self._aliases().get(name) != old:
                    raise changed_meanwhile(name, self.address)
            except ReplacedError:
                raise changed_meanwhile(name, self.address) from None

        def switch() -> bool:
            if old is not None and expected is not None and not may_switch():  # at each try
                raise changed_meanwhile(name, self.address)
            return self._client.update_collection_aliases(steps)

        try:
            self._request("switch to it", switch)
        except BaseException:
            if old is not None and expected is not None:
                with suppress(StoreError):
                    self._marks.end_switch(old)
            raise
        if expected is not None:
            time.sleep(SETTLE_S)
            if self._aliases().get(name) != physical:
                raise changed_meanwhile(name, self.address)

    def rename(self, old: str, new: str) -> None:
        check_name(new)
        live = self._live_name(old)
        if live is None:
            live = self._half_renamed(old, new)
            if live is None:
                raise self._no_such(old)
        else:
            self._check_free(old, new)
            identity = self._identity(old, live)
            assert identity is not None
            # From here on it belongs to whichever of the two names is its alias, so that the alias alone
            # decides, in one step.
            self._write_note(live, note_of(old, identity, renamed_to=new))
            move_alias(self._connection, self._aliases, old, new, live)
        for physical, other in self._versions(old).items():  # what is being built
            self._write_note(physical, note_of(new, other))
        self._settled_live_name(new)

    def drop(self, name: str) -> None:
        versions = list(self._versions(name))
        self._documents.drop(versions)  # first: then nothing would say where they are
        for physical in versions:
            self._delete(physical)  # and with the live one its alias

    def excluded(self, name: str) -> dict[str, tuple[str, ...]]:
        def look() -> dict[str, tuple[str, ...]]:
            physical = self.version(name)
            return {} if physical is None else noted.read(self._connection, physical)

        return look_up(look)

    def exclude(self, name: str, excluded: Mapping[str, Sequence[str]]) -> None:
        physical = self.version(name)
        if physical is None:
            raise self._no_such(name)
        noted.write(self._connection, physical, excluded)

    def document(self, name: str, kind: DocumentKind) -> bytes | None:
        return self._documents.read(name, kind)

    def document_mark(self, name: str, kind: DocumentKind) -> str:
        return self._documents.mark(name, kind)

    def change_document(
        self, name: str, kind: DocumentKind, change: Callable[[bytes | None], bytes | None]
    ) -> None:
        self._documents.change(name, kind, change)

    def remove_document(self, name: str, kind: DocumentKind) -> None:
        self._documents.change(name, kind, None)

    def close(self) -> None:
        self.kept.clear()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _aliases(self) -> dict[str, str]:
        response = self._request("list its aliases", self._client.get_aliases)
        return {alias.alias_name: alias.collection_name for alias in response.aliases}

    def _live_name(self, name: str) -> str | None:
        """Return the Qdrant collection behind a name, or None if the name is free.

        Raises:
            StoreError: If the name is taken by something that imret did not make.
        """
        check_name(name)
        physical = self._aliases().get(name)
        if physical is not None:
            if not is_version(physical) or self._identity(name, physical) is None:
                raise self._foreign(name, physical)
        elif name in self._names():
            raise self._foreign(name, name)
        return physical

    def _live_version(self, name: str) -> tuple[str, Identity] | None:
        """Return the Qdrant collection behind a name and its encoder, or None if there is none."""
        physical = self._live_name(name)
        identity = None if physical is None else self._identity(name, physical)
        return None if physical is None or identity is None else (physical, identity)

    def _settled_live_name(self, name: str) -> str | None:
        """Return the same, and end a rename to this name that was cut short after its alias had moved."""
        physical = self._live_name(name)
        if physical is not None and self._note(physical).get("renamed_to") == name:
            identity = self._identity(name, physical)
            assert identity is not None
            self._write_note(physical, note_of(name, identity))
        return physical

    def _half_renamed(self, old: str, new: str) -> str | None:
        """Return the Qdrant collection of a rename that was cut short after its alias had moved."""
        physical = self._aliases().get(new)
        note = {} if physical is None else self._note(physical)
        return physical if (note.get("collection"), note.get("renamed_to")) == (old, new) else None

    def _check_free(self, old: str, new: str) -> None:
        """Refuse to give a collection a name that is taken.

        Raises:
            DataError: If it is, be it by something that imret did not make.
        """
        if new in self._aliases() or new in self._names() or self._versions(new):
            raise DataError(
                f"cannot rename {old!r} to {new!r}: {self.address} holds {new!r} already. Use another name, "
                f"or if it is imret's delete it first: imret collections delete {new} --db {self.address}"
            )

    def _names(self) -> list[str]:
        response = self._request("list its collections", self._client.get_collections)
        return [collection.name for collection in response.collections]

    def _versions(self, name: str, *, skips_away: bool = False) -> dict[str, Identity]:
        """Return every Qdrant collection of a name with its encoder: live, being built, or left behind.

        Not by their names alone, which a rename does not change. What is the alias of another name needs
        no look, unless it is called like one of this.

        Args:
            name: Of the collection.
            skips_away: Leave out those that cannot be described now, and wait for none of them.
        """
        check_name(name)
        aliases = self._aliases()
        others = {physical for alias, physical in aliases.items() if alias != name} - {aliases.get(name)}
        versions: dict[str, Identity] = {}
        for physical in sorted(self._names()):
            called_so = physical.rpartition(".")[0] == name
            if is_version(physical) and (called_so or physical not in others):
                try:
                    identity = self._identity(name, physical, waits_for_part=not skips_away)
                except PartAway:
                    if not skips_away:
                        raise
                    continue
                if identity is not None:
                    versions[physical] = identity
        return versions

    def _free_name(self, name: str, identity: Identity) -> str:
        """Return a name for a new version: the plain one, unless a renamed or the live one has it."""
        taken = {*self._names(), *self._aliases()}
        plain = f"{name}.{identity.version}"
        for n in count(1):
            physical = plain if n == 1 else f"{plain}-{n}"
            if physical not in taken:
                return physical
            if not self._note(physical):
                raise self._foreign(name, physical)
        raise AssertionError("unreachable")

    def _note(self, physical: str, *, waits_for_part: bool = True) -> dict[str, Any]:
        """Return what imret noted in the metadata of a Qdrant collection, {} if it did not make it."""
        info = self._request(
            "describe a collection",
            lambda: self._client.get_collection(physical),
            waits_for_part=waits_for_part,
        )
        self._like[physical] = creation_of(info)
        note = (info.config.metadata or {}).get("imret")
        return note if isinstance(note, dict) else {}

    def _write_note(self, physical: str, metadata: dict[str, Any]) -> None:
        self._request(
            "note whose version it is", lambda: self._client.update_collection(physical, metadata=metadata)
        )

    def _identity(self, name: str, physical: str, *, waits_for_part: bool = True) -> Identity | None:
        """Return the encoder of a version, or None if that Qdrant collection is no version of this name."""
        note = self._note(physical, waits_for_part=waits_for_part)
        owner, later = note.get("collection"), note.get("renamed_to")
        if later and self._aliases().get(later) == physical:
            owner = later
        if owner != name:
            return None
        if note.get("format") != FORMAT:
            raise StoreError(
                f"the collection {physical!r} at {self.address} has format {note.get('format')!r}, this "
                f"imret reads format {FORMAT}. Upgrade imret."
            )
        try:
            return Identity(str(note["model"]), str(note["fingerprint"]), int(note["dim"]))
        except (KeyError, TypeError, ValueError):
            return None

    def _create(self, name: str, physical: str, identity: Identity, marks: Mapping[str, str]) -> None:
        metadata = {**note_of(name, identity), **marks, **note_for(name)}

        live = self._like.get(self._aliases().get(name, ""), Creation())  # looked at before
        asked = self.creation.over(inherited(live))
        options = dialect_of(self._connection).creation(identity.dim, asked)

        def create() -> bool:
            return self._client.create_collection(physical, metadata=metadata, **options)

        try:
            self._request(f"make the collection {physical!r}", create)
        except StoreUnavailable:
            raise
        except StoreError:
            if physical not in self._names():
                raise
            return  # an earlier try got through though its answer did not, or another process was first
        if self._identity(name, physical) is None:
            # A server ignores what it does not know. Without it another encoder's vectors could be mixed in.
            self._delete(physical)
            raise keeps_no_metadata(self._connection.server_version, self.address)

    def _delete(self, physical: str) -> None:
        self._request("delete a version", lambda: self._client.delete_collection(physical))

    def _no_such(self, name: str) -> DataError:
        existing = self.collections()
        if self.staged_versions(name):
            return DataError(f"collection {name!r} is not complete yet. Run its ingest again to finish it.")
        none = "It holds none of imret's yet"
        what = no_such_collection(name, existing, f"at {self.address}", none)
        # Whoever renames, deletes or shows one does not want to make it; where there are some, one is meant.
        ingest = f"\nMake it: imret ingest FOLDER --collection {name} --db {self.address}"
        return DataError(
            what if existing else what + ingest, public=no_such_collection(name, existing, "", none)
        )

    def _foreign(self, name: str, physical: str) -> StoreError:
        return not_made_by_imret(name, physical, self.address)
