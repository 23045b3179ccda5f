"""The documents of collections on a Qdrant server: where they are, whichever version is live.

That is a Qdrant collection `NAME.documents-RANDOM`, which nothing takes for a version. The metadata of each
version names it from the version's making on, and a version that becomes live takes over what the one before
it names: so documents stay through a rename and a rebuild without a copy, and a change at that moment is not
lost. It is made by the first document, and deleted with the collection.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from imret.errors import DataError, StoreError
from imret.store.collection import changed_meanwhile
from imret.store.documents import DocumentKind, broken, check_kind
from imret.store.server.connection import Connection, ReplacedError, look_up
from imret.store.server.physical_names import is_version
from imret.store.server.revisions import DamagedRevision, Revisions
from imret.store.types import new_mark

Change = Callable[[bytes | None], bytes | None]

_KEY = "imret_documents"  # of a version's metadata
_PLACE = re.compile(r".+\.documents-[0-9a-f]{16}")
_TRIES = 30  # where other programs go on changing the same
_PAUSE_S, _PAUSE_MAX_S = 0.01, 2.0


def note_for(name: str) -> dict[str, Any]:
    """Return the metadata by which a new version of a collection names a place for documents."""
    return {_KEY: f"{name}.documents-{new_mark()}"}


class Documents:
    """The documents of the collections of a server.

    Args:
        connection: To the server.
        live: Returns the live version of a collection, None if there is none.
        no_such: Returns the error for a collection that does not exist.
    """

    def __init__(
        self,
        connection: Connection,
        live: Callable[[str], str | None],
        no_such: Callable[[str], DataError],
    ) -> None:
        self._connection = connection
        self._live, self._no_such = live, no_such
        self._revisions = Revisions(connection)
        self._places: dict[str, str] = {}  # by version

    def read(self, name: str, kind: DocumentKind) -> bytes | None:
        """See `Store.document`."""
        check_kind(kind)

        def look() -> bytes | None:
            physical = self._live(name)
            place = "" if physical is None else self._place_of(physical)
            with self._naming(name, kind):
                return self._revisions.read(place, kind)[1] if place else None

        return look_up(look)

    def mark(self, name: str, kind: DocumentKind) -> str:
        """See `Store.document_mark`."""
        check_kind(kind)

        def look() -> str:
            physical = self._live(name)
            if physical is None:
                return ""
            place = self._places.get(physical, "")
            head = self._revisions.head(place, kind) if place else None
            if head is None and place != self._place_of(physical):  # a collection made anew by that name
                head = self._revisions.head(self._place_of(physical), kind)
            return "" if head is None or head.size is None else head.revision

        return look_up(look)

    def change(self, name: str, kind: DocumentKind, change: Change | None) -> None:
        """Change a document, see `Store.change_document`; without a change remove it, whatever it is.

        Raises:
            DataError: If there is no such collection.
            ChangedMeanwhile: If there is none any more.
            StoreError: If the document is broken, or other programs go on changing it.
        """
        check_kind(kind)
        place = look_up(lambda: self._noted_place(name))
        if place is None:
            raise self._no_such(name)
        for n in range(_TRIES):
            try:
                with self._naming(name, kind):
                    is_done = self._revisions.change(place, name, kind, change)
            except ReplacedError:  # the collection was deleted this moment
                is_done = False
            now = look_up(lambda: self._noted_place(name))
            if now is None:
                self._forget(place)
                raise changed_meanwhile(name, self._connection.address)
            if is_done and now == place:
                return
            place = now
            time.sleep(random.uniform(0, min(_PAUSE_MAX_S, _PAUSE_S * 2**n)))
        raise StoreError(
            f"other programs go on changing the {kind} of collection {name!r} at "
            f"{self._connection.address}. Run the command again."
        )

    def take_over(self, old: str, new: str) -> None:
        """Have a version that is about to be live name what the one before it does."""
        if place := self._place_of(old):
            self._note(new, place)

    def drop(self, versions: list[str]) -> None:
        """Remove the documents of versions that are about to be deleted."""
        for place in sorted({self._place_of(physical) for physical in versions} - {""}):
            self._revisions.drop(place)

    def _forget(self, place: str) -> None:
        """Remove what was stored for a collection that another program deleted, and did not only rename."""
        request, client = self._connection.request, self._connection.client
        with suppress(StoreError):
            aliases = request("list its aliases", client.get_aliases).aliases
            live = {alias.collection_name for alias in aliases}
            if all(self._place_of(physical) != place for physical in live if is_version(physical)):
                self._revisions.drop(place)

    def _noted_place(self, name: str) -> str | None:
        """Return the place for documents of a collection, None if no version is live.

        A version that an older imret made names none until now. Then it is the same for all who come to
        name one at a time, and no other version's, as those of new versions are random.
        """
        physical = self._live(name)
        if physical is None or (place := self._place_of(physical)):
            return None if physical is None else place
        place = f"{name}.documents-{hashlib.sha256(physical.encode()).hexdigest()[:16]}"
        self._note(physical, place)
        return place

    def _place_of(self, physical: str) -> str:
        """Return the place that a version names, "" if there is none that imret would name."""
        info = self._connection.request(
            "describe a collection", lambda: self._connection.client.get_collection(physical)
        )
        place = (info.config.metadata or {}).get(_KEY)
        place = place if isinstance(place, str) and _PLACE.fullmatch(place) else ""
        self._places[physical] = place
        return place

    def _note(self, physical: str, place: str) -> None:
        self._connection.request(
            "note where its documents are",
            lambda: self._connection.client.update_collection(physical, metadata={_KEY: place}),
        )

    @contextmanager
    def _naming(self, name: str, kind: DocumentKind) -> Iterator[None]:
        """Have the error for a broken document say whose it is."""
        try:
            yield
        except DamagedRevision as error:
            raise broken(name, kind, self._connection.address, error) from None
