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
from imret.net import accepts_connections
from imret.settings import NO_HOME, read_settings, store_dir

if TYPE_CHECKING:
    from imret.store.collection import Collection
    from imret.store.filter import INDEXED_FIELDS, Condition, Filter, Ids, Match, Range
    from imret.store.protocol import Store
    from imret.store.types import Identity, Point, Share, Stats

__all__ = [
    "INDEXED_FIELDS",
    "Collection",
    "Condition",
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
    "Store": "protocol",
    **dict.fromkeys(("INDEXED_FIELDS", "Condition", "Filter", "Ids", "Match", "Range"), "filter"),
    **dict.fromkeys(("Identity", "Point", "Stats"), "types"),
}

LOCAL_SERVER = "http://localhost:6333"
PROBE_TIMEOUT_S = 0.3
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]+")


def __getattr__(name: str) -> Any:
    """Load a class from its module the first time it is asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'imret.store' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"imret.store.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def open_store(
    address: str | os.PathLike[str] | None = None, *, create: bool = True, share: Share = False
) -> Store:
    """Open a store: a URL is a Qdrant server, a path an embedded one.

    Args:
        address: "http://..." or "https://...", or a folder; None for what `resolve_address` finds, which
            `Store.reason` then tells.
        create: Make an embedded store whose folder is missing or empty.
        share: Let other programs of this user search and fill what this one has open of an embedded store,
            as a server lets all in any case; "if possible" goes on alone where there is no private folder to
            share through.

    Raises:
        StoreUnavailable: If nothing answers at the URL, or the folder holds no store and `create` is false.
        StoreError: If the address cannot be used: a file, a folder of other things, a refused API key; or
            if there is no private folder to share through.
    """
    address, reason = resolve_address(address)
    if _HOST_AND_PORT.fullmatch(address) and not os.path.exists(address):
        raise StoreError(f"{address!r} is no address of a store. Did you mean http://{address} ?")
    if "://" in address:
        from imret.store.server.store import ServerStore

        return ServerStore(address, reason=reason)
    from imret.store.embedded.store import EdgeStore

    return EdgeStore(address, create=create, share=share, reason=reason)


def resolve_address(address: str | os.PathLike[str] | None = None) -> tuple[str, str]:
    """Return the address of the store that a command means, and why it is that one.

    Without an address it is what the environment variable IMRET_DB names, else the Qdrant at localhost:6333
    if one answers, else the embedded store of this user.

    Returns:
        The address as it was named; and why, for people, empty if it was given.

    Raises:
        StoreError: If none was given, and this user has no home.
    """
    if address is not None:
        return os.fspath(address), ""
    named = read_settings().db
    if named:
        return named, f"store {named} (from IMRET_DB)"
    if _is_qdrant(LOCAL_SERVER):
        return LOCAL_SERVER, f"store {LOCAL_SERVER} (a Qdrant answers there; --db names another)"
    folder = str(store_dir())
    if store_dir().is_relative_to(NO_HOME):
        raise StoreError(
            "there is no home folder for a store: HOME is not set, or is no absolute path.\n"
            "Name one with --db FOLDER, or set IMRET_HOME to a folder that you can write to."
        )
    return folder, f"store {folder} (embedded; no Qdrant answers at {LOCAL_SERVER})"


def _is_qdrant(url: str) -> bool:
    """Whether a Qdrant server answers at a URL of this machine, and soon."""
    host, _, port = url.removeprefix("http://").partition(":")
    # Refused at once where nothing listens, as with most who use an embedded store.
    if not accepts_connections(host, int(port), timeout_s=PROBE_TIMEOUT_S):
        return False
    # Not urllib.request: it would use a proxy, follow redirects, and take a twentieth of a second to load.
    import http.client
    import json

    connection = http.client.HTTPConnection(host, int(port), timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        answer = json.loads(response.read(10_000)) if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and "qdrant" in str(answer.get("title", "")).lower()
