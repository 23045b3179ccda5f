"""What a store promises, whichever engine keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from imret.store.collection import Collection
from imret.store.types import Identity

if TYPE_CHECKING:
    from typing_extensions import Self


class Store(Protocol):
    """Collections by name, each with one live version and perhaps others being built. A context manager.

    Attributes:
        engine: "embedded" or "server".
        address: Folder or URL, as a user would pass it to --db.
        reason: Why this store was chosen, for people; empty if it was named.
        kept: What those who use it keep with it; let go when it is closed.
    """

    engine: str
    address: str
    reason: str
    kept: dict[str, Any]

    def collections(self) -> list[str]:
        """Return the names that have a live version, sorted, also one that is damaged."""

    def incomplete(self) -> list[str]:
        """Return the names, sorted, of what an ingest or a deletion that was cut short left: none is live."""

    def live(self, name: str) -> Identity | None:
        """Return the encoder of the live version, or None if there is none.

        Raises:
            StoreDamaged: If there was one, and what says so is lost or broken (embedded only).
        """

    def version(self, name: str) -> str | None:
        """Return what names the live version, or None if there is none: another as soon as another is live.

        For whoever follows it: cheap, and reads nothing of the version itself.

        Raises:
            DataError: If `name` cannot name a collection.
        """

    def staged_versions(self, name: str) -> list[Identity]:
        """Return the encoders of the versions that exist beside the live one and were never live."""

    def open(self, name: str, *, patience_s: float | None = None) -> Collection:
        """Open the live version.

        Args:
            name: Of the collection.
            patience_s: How long a server, or a part of it, that is away is waited for to open it; None for as
                long as in everything else.

        Raises:
            DataError: If there is none; the message names the collections that exist.
            StoreDamaged: If it has lost files (embedded only); the message says what ends that.
            StoreLocked: If another process holds it and does not share it (embedded only).
        """

    def open_version(self, name: str, identity: Identity) -> Collection:
        """Open the version of an encoder to fill it, live or not; make it if there is none.

        A version cut short by a kill is resumed, one whose making was cut short is made again. An older one
        gets the indexes of the fields that were not indexed then.

        Args:
            name: Of the collection.
            identity: The encoder.

        Raises:
            DataError: If `name` cannot name a collection.
            ModelMismatch: If the version that such an encoder's would be is of another, against all odds.
            StoreDamaged: If it has lost files (embedded only).
            StoreLocked: If another process holds it and does not share it (embedded only).
        """

    def create_staging(self, name: str, identity: Identity) -> Collection:
        """Make an empty version beside the live one, which may be of the same encoder, to fill and `promote`.

        What an earlier attempt left in its place, whoever made it, is removed. Arguments and errors are those
        of `open_version`.
        """

    def promote(self, name: str, identity: Identity, *, staged: bool = False) -> None:
        """Make a version live in one step, then remove the others.

        A version that somebody still reads is removed when nobody does any more.

        Args:
            name: Of the collection.
            identity: The encoder of the version; the live one if that is of this encoder.
            staged: The one that is not live, as `create_staging` made it.

        Raises:
            StoreError: If the version does not exist.
        """

    def rename(self, old: str, new: str) -> None:
        """Give a collection another name; no point is copied, and no reader ever finds half of it.

        A version that is being built goes with it. Interrupted and called again, it ends in the same state.

        Raises:
            DataError: If there is no live version of `old`, or `new` cannot name a collection or is taken.
            StoreLocked: If it is open, in this program or in another (embedded only). On a server the
                handles that are open go on working.
        """

    def drop(self, name: str) -> None:
        """Remove all versions, whatever is left of them; a name that does not exist is no error.

        Raises:
            StoreLocked: If another process holds one (embedded only); then none is removed.
        """

    def close(self) -> None:
        """Close every collection and the engine; closing twice is no error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
