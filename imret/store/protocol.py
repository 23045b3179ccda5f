"""What a store promises, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from imret.store.collection import Collection
from imret.store.documents import DocumentKind
from imret.store.placement import Creation
from imret.store.types import Identity, LiveState

if TYPE_CHECKING:
    from typing_extensions import Self


class Store(Protocol):
    """Collections by name, each with one live version and perhaps others being built. A context manager.

    Many programs may be at work on one collection, and what one of them was told is stored must not vanish
    because another switches to a version of its own. The promise: whoever said "done" has its points in the
    live version, unless somebody asked to remove them afterwards. It holds by two rules and no lock that is
    held for long:

    1. Who writes to the live version looks at its `state` before the first write, and ends with `finish`,
       which in one step refuses if there was a switch since, and else leaves another mark in the state.
       Only then it says "done".
    2. Who switches looks at the `state`, then at all that the live version holds, decides that nothing of
       it would be lost, and gives that state to `promote`, which in one step refuses if it is not the same
       any more, and else switches.

    Take a writer that said "done", and a switch from the version that it wrote to. Its `finish` came before
    the switch, for afterwards it is refused. Were it between the look at the state and `promote`, its mark
    would have had that refused. So it came before the look at the state, its points before that, and the
    look at all that the live version holds found them. Nobody waits for anybody for more than moments,
    readers not even that, and a program that dies leaves nothing that others would have to wait for longer.

    Attributes:
        engine: "embedded" or "server".
        address: Folder or URL, as a user would pass it to --db.
        reason: Why this store was chosen, for people; empty if it was named.
        creation: What is asked of the collections that it makes.
        kept: What those who use it keep with it; let go when it is closed.
    """

    engine: str
    address: str
    reason: str
    creation: Creation
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

    def state(self, name: str) -> LiveState:
        """Return which version is live now, to be compared with later by `finish` and `promote`."""

    def finish(self, name: str, begun: LiveState) -> None:
        """Take note that a program has ended its work on the live version; what it stored is flushed.

        Args:
            name: Of the collection.
            begun: The state before its first write.

        Raises:
            ChangedMeanwhile: If another version is live by now, or none: what was stored may be lost.
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
        gets the indexes of the fields that were not indexed then. One that is made is as `creation` asks.

        Args:
            name: Of the collection.
            identity: The encoder.

        Raises:
            DataError: If `name` cannot name a collection, or it exists and is not as `creation` asks.
            ModelMismatch: If the version that such an encoder's would be is of another, against all odds.
            StoreDamaged: If it has lost files (embedded only).
            StoreLocked: If another process holds it and does not share it (embedded only).
        """

    def create_staging(self, name: str, identity: Identity) -> Collection:
        """Make an empty version beside the live one, which may be of the same encoder, to fill and `promote`.

        What an earlier attempt left in its place, whoever made it, is removed, unless another program fills
        it this moment. Arguments and errors are those of `open_version`.
        """

    def promote(
        self,
        name: str,
        identity: Identity,
        *,
        staged: bool = False,
        version: str | None = None,
        expected: LiveState | None = None,
    ) -> LiveState:
        """Make a version live in one step, then remove the one that was, and what was left half made.

        A version that somebody still reads is removed when nobody does any more. One that another program
        fills this moment stays.

        Args:
            name: Of the collection.
            identity: The encoder of the version; the live one if that is of this encoder.
            staged: The one that is not live, as `create_staging` made it.
            version: The one that a handle names so, whatever has become live meanwhile.
            expected: Switch only if the state is still this one; None for whatever it is.

        Returns:
            The state after it.

        Raises:
            ChangedMeanwhile: If the state is another than is expected; then nothing was changed.
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

    def excluded(self, name: str) -> dict[str, tuple[str, ...]]:
        """Return what is left out of the sources of a collection: patterns by source, where there are some.

        Raises:
            StoreError: If that is noted and cannot be read.
        """

    def exclude(self, name: str, excluded: Mapping[str, Sequence[str]]) -> None:
        """Note what is left out of sources; it stays with the collection, whatever version is live.

        Args:
            name: Of the collection, of which a version is live.
            excluded: Patterns by source; none for a source of which nothing is. Others stay as they are.
        """

    def document(self, name: str, kind: DocumentKind) -> bytes | None:
        """Return what is kept with a collection under a kind; None for nothing, or no such collection.

        It stays with the collection whatever version is live, and goes with it where it is renamed, exported
        and deleted.

        Raises:
            StoreError: If it is there and cannot be read. The pictures do not depend on it.
        """

    def document_mark(self, name: str, kind: DocumentKind) -> str:
        """Return a mark of that, another after every change, "" while there is nothing; cheap."""

    def change_document(
        self, name: str, kind: DocumentKind, change: Callable[[bytes | None], bytes | None]
    ) -> None:
        """Put in the place of what is kept with a collection under a kind what is made of it.

        Of programs that change it at the same time each makes its change of what the other left; no lock is
        held while it does. What is the same is not written. When it returns, the change survives the death
        of every process; killed before, it is there whole or not at all.

        Args:
            name: Of the collection, of which a version is live.
            kind: Of the document.
            change: Takes what is there, None for nothing, and returns what shall be, None for nothing.
                May be called again where another program comes first. Changes nothing itself.

        Raises:
            DataError: If there is no such collection, or what is made is too large (256 MiB).
            StoreError: If what is there cannot be read, or the new cannot be written; then the old stays.
            ChangedMeanwhile: If another program removed or renamed the collection meanwhile.
        """

    def remove_document(self, name: str, kind: DocumentKind) -> None:
        """Remove what is kept under a kind, also where it cannot be read. Raises as `change_document`."""

    def close(self) -> None:
        """Close every collection and the engine; closing twice is no error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
