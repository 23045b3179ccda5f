"""Another version put in the place of the live one for good, whatever that holds: what an import does.

Hides how it is told that the live version holds what it held when that was decided, and nothing of another
program that was stored since.
"""

from __future__ import annotations

import hashlib
from contextlib import closing, suppress

from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.store import Collection, Store
from imret.store.types import LiveState

_TRIES = 10  # where other programs go on ending work that changed nothing


class Replacement:
    """A decision to replace what is live of a collection; nothing, if there is none.

    Args:
        store: Where it is.
        name: Of the collection.
        begun: Its state when that was decided.
    """

    def __init__(self, store: Store, name: str, begun: LiveState) -> None:
        self._store = store
        self._name = name
        self._begun = begun
        self._held = self._pictures()

    def carry_out(self, version: Collection) -> None:
        """Switch to a version, which is open: else another program might begin it anew this moment.

        Raises:
            ChangedMeanwhile: If another program has stored or removed pictures since, or switched.
        """
        now = self._begun
        for _ in range(_TRIES):
            try:
                self._store.promote(self._name, version.identity, version=version.version, expected=now)
                return
            except ChangedMeanwhile:
                now = self._store.state(self._name)
                is_same = now.has_version_of(self._begun) and self._held is not None
                if not is_same or self._pictures() != self._held:
                    raise
        raise ChangedMeanwhile(f"other programs go on changing the collection {self._name!r}")

    def _pictures(self) -> str | None:
        """Return a digest of which pictures are live, by place and content; None if they cannot be read."""
        digest = hashlib.sha256()
        # What is damaged, or open elsewhere, may be replaced all the same.
        with suppress(StoreError, DataError):
            if self._begun.version is not None:
                with closing(self._store.open(self._name)) as live:
                    for points in live.scan():
                        for point in points:
                            digest.update(f"{point.id}{point.payload.get('sha256')}\n".encode())
            return digest.hexdigest()
        return None
