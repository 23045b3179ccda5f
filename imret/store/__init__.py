"""A collection of vectors bound to one encoder: one small interface, two engines.

    with open_store("photos.db") as store:              # a folder: Qdrant Edge, in a worker process
        ...
    with open_store("http://localhost:6333") as store:  # a Qdrant server or cluster
        ...

Hides which engine it is, its filters, versions, locks and retries. Loads none before one is opened.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING, Any

from imret.errors import StoreError
from imret.store.address import resolve_address

if TYPE_CHECKING:
    from imret.store.collection import Collection
    from imret.store.filter import INDEXED_FIELDS, Condition, Filter, Ids, Match, Range
    from imret.store.placement import Creation
    from imret.store.protocol import Store
    from imret.store.types import Identity, Point, Share, Stats

__all__ = [
    "INDEXED_FIELDS",
    "Collection",
    "Condition",
    "Creation",
    "Filter",
    "Identity",
    "Ids",
    "Match",
    "Point",
    "Range",
    "Stats",
    "Store",
    "open_store",
    "resolve_address",
]

# Some of these modules need numpy; a search through a running server needs only an address from here.
_HOME = {
    "Collection": "collection",
    "Creation": "placement",
    "Store": "protocol",
    **dict.fromkeys(("INDEXED_FIELDS", "Condition", "Filter", "Ids", "Match", "Range"), "filter"),
    **dict.fromkeys(("Identity", "Point", "Stats"), "types"),
}

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]+")


def __getattr__(name: str) -> Any:
    """Load a class from its module the first time it is asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'imret.store' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"imret.store.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def open_store(
    address: str | os.PathLike[str] | None = None,
    *,
    create: bool = True,
    share: Share = False,
    collection: str | None = None,
    creation: Creation | None = None,
) -> Store:
    """Open a store: a URL is a Qdrant server, a path an embedded one.

    Args:
        address: "http://..." or "https://...", or a folder; None for what `resolve_address` finds, which
            `Store.reason` then tells.
        create: Make an embedded store whose folder is missing or empty.
        share: Let other programs of this user search and fill what this one has open of an embedded store,
            as a server lets all in any case; "if possible" goes on alone where there is no private folder to
            share through.
        collection: The one that is meant, where no address is given: see `resolve_address`.
        creation: What is asked of the collections that are made through it: see `Creation`. Those that exist
            are refused where they are not so.

    Raises:
        StoreUnavailable: If nothing answers at the URL, or the folder holds no store and `create` is false.
        StoreError: If the address cannot be used: a file, a folder of other things, a refused API key; or
            if there is no private folder to share through.
    """
    address, reason = resolve_address(address, collection=collection)
    if _HOST_AND_PORT.fullmatch(address) and not os.path.exists(address):
        raise StoreError(f"{address!r} is no address of a store. Did you mean http://{address} ?")
    if "://" in address:
        from imret.store.server.store import ServerStore

        return ServerStore(address, reason=reason, creation=creation)
    from imret.store.embedded.store import EdgeStore

    return EdgeStore(address, create=create, share=share, reason=reason, creation=creation)
