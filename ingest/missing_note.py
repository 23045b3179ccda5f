"""Which points of a source are known to have no file, so that the next run need not look at all to find them.

Kept with the collection; never the truth: a run that cannot explain the number of points by it looks at each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from imret.errors import DataError, StoreError
from imret.escape import escape_undecodable
from imret.store import Collection
from imret.store.types import is_point_id
from ingest.sources import Source

MOST = 20_000  # points that are noted of a source; where more are missing, each run looks at all
_BATCH = 256


class MissingNote:
    """What is noted of one source in one version.

    Args:
        target: The version.
        source: The source, with what is excluded from it.
    """

    def __init__(self, target: Collection, source: Source) -> None:
        self._target, self._store = target, getattr(target, "store", None)
        self._here = escape_undecodable(source.root)
        self._exclude = list(source.exclusion.patterns)
        self._known = self._read()
        self._n_read = len(self._known)

    def meet(self, id_: str) -> None:
        """Take note that the walk has met the file of a point: it has come back."""
        self._known.pop(id_, None)

    def explains(self, n_points: int) -> dict[str, int] | None:
        """Return how many points there are of what is noted, by what is the matter, if they are that many.

        Args:
            n_points: How many points of the source have no file that was met.
        """
        if len(self._known) < n_points or not self._known:
            return None
        counts = {"missing": 0, "left_out": 0}
        ids = list(self._known)
        for at in range(0, len(ids), _BATCH):
            for id_ in self._target.get(ids[at : at + _BATCH]):
                counts[self._known[id_]] += 1
        return counts if sum(counts.values()) == n_points else None

    def write(self, missing: Sequence[str], left_out: Sequence[str]) -> None:
        """Note the points that were found to have no file, or to be left out by name, and that stay."""
        known = dict.fromkeys(missing, "missing") | dict.fromkeys(left_out, "left_out")
        if len(known) > MOST:
            known = {}
        if self._store is None or (not known and not self._n_read) or known == self._known:
            return
        with suppress(StoreError, DataError):  # as of a collection that is not live yet
            self._store.change_document(self._target.name, "missing", lambda old: self._changed(old, known))

    def _changed(self, old: bytes | None, known: dict[str, str]) -> bytes | None:
        noted = _parsed(old, self._target.version)
        noted.pop(self._here, None)
        if known:
            by_kind = {kind: [id_ for id_ in known if known[id_] == kind] for kind in ("missing", "left_out")}
            noted[self._here] = {"exclude": self._exclude, **by_kind}
        if not noted:
            return None
        return json.dumps({"version": self._target.version, "sources": noted}).encode()

    def _read(self) -> dict[str, str]:
        if self._store is None:
            return {}
        content = None
        with suppress(StoreError, DataError):
            content = self._store.document(self._target.name, "missing")
        noted = _parsed(content, self._target.version).get(self._here)
        if not isinstance(noted, dict) or noted.get("exclude") != self._exclude:
            return {}
        known: dict[str, str] = {}
        for kind in ("missing", "left_out"):
            ids = noted.get(kind)
            known |= dict.fromkeys(filter(is_point_id, ids), kind) if isinstance(ids, list) else {}
        return known


def _parsed(content: bytes | None, version: str) -> dict[str, Any]:
    """Return what is noted of each source of a version; nothing where it is of another, or broken."""
    try:
        noted = json.loads(content or b"{}")
    except ValueError:
        return {}
    if not isinstance(noted, dict) or noted.get("version") != version:
        return {}
    sources = noted.get("sources")
    return sources if isinstance(sources, dict) else {}
