"""Which store a command means that is given no address: found, never opened.

Hides that there may be two, the embedded one of this user and a Qdrant on this machine, which programs other
than imret may have started for themselves. Loads neither; a search through a running server needs only this.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from imret.errors import StoreError
from imret.net import accepts_connections
from imret.settings import NO_HOME, read_settings, store_dir

if TYPE_CHECKING:
    import http.client

LOCAL_SERVER = "http://localhost:6333"
PROBE_TIMEOUT_S = 0.3  # for a Qdrant to say that it is one
LIST_TIMEOUT_S = 1.0  # for it to say what it holds
_MAX_BYTES = 64 << 20  # of a list, on a server with a million collections


def resolve_address(
    address: str | os.PathLike[str] | None = None, *, collection: str | None = None
) -> tuple[str, str]:
    """Return the address of the store that a command means, and why it is that one.

    Without an address it is what the environment variable IMRET_DB names, else the one that holds the
    collection, of the Qdrant at localhost:6333 and the embedded store of this user. Where both do, or neither
    does, it is the one that holds collections of imret's, and again of the two the Qdrant if it answers.
    Whoever reads and whoever writes a collection is given the same.

    Args:
        address: As it was named, if it was.
        collection: The one that is meant; None for whichever there are.

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
    reason = f"no Qdrant answers at {LOCAL_SERVER}"
    with _Qdrant(LOCAL_SERVER) as qdrant:
        if qdrant.answers():
            reason = _why_embedded(qdrant, collection)
            if not reason:
                return LOCAL_SERVER, f"store {LOCAL_SERVER} (a Qdrant answers there; --db names another)"
    folder = str(store_dir())
    if store_dir().is_relative_to(NO_HOME):
        raise StoreError(
            "there is no home folder for a store: HOME is not set, or is no absolute path.\n"
            "Name one with --db FOLDER, or set IMRET_HOME to a folder that you can write to."
        )
    return folder, f"store {folder} (embedded; {reason})"


def _why_embedded(qdrant: _Qdrant, collection: str | None) -> str:
    """Return why the embedded store is meant though a Qdrant answers; empty where the Qdrant is."""
    mine = _embedded_names()
    if not mine:
        return ""
    theirs = qdrant.names()
    if theirs is None:  # it is busy, or asks for a key: what is known to be there is used
        return (
            f"the Qdrant at {LOCAL_SERVER} does not say what it holds" if collection in (None, *mine) else ""
        )
    if not theirs:
        return f"the Qdrant at {LOCAL_SERVER} holds no collection of imret's"
    if collection in mine and collection not in theirs:
        return f"it holds {collection!r}, and the Qdrant at {LOCAL_SERVER} does not"
    return ""


def _embedded_names() -> set[str]:
    """Return the collections of this user's embedded store, whole or not."""
    folder = store_dir()
    if not folder.is_dir():
        return set()
    from imret.store.embedded import layout  # only where there is such a store and a Qdrant, too

    try:
        return set(layout.collection_names(folder))
    except StoreError:
        return set()


class _Qdrant:
    """A Qdrant of this machine, asked a few things soon or not at all. A context manager.

    Not urllib.request: it would use a proxy, follow redirects, and take a twentieth of a second to load. Nor
    qdrant-client, which takes longer.
    """

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> _Qdrant:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def answers(self) -> bool:
        """Whether something is there that says it is a Qdrant."""
        # Refused at once where nothing listens, as with most who use an embedded store.
        if not accepts_connections(self._host, self._port, timeout_s=PROBE_TIMEOUT_S):
            return False
        answer = self._get("/", timeout_s=PROBE_TIMEOUT_S)
        return isinstance(answer, dict) and "qdrant" in str(answer.get("title", "")).lower()

    def names(self) -> set[str] | None:
        """Return the names of imret's collections on it, complete or not; None where it does not say."""
        from imret.store.server.physical_names import is_version

        try:
            aliases = self._get("/aliases", timeout_s=LIST_TIMEOUT_S)["result"]["aliases"]
            held = self._get("/collections", timeout_s=LIST_TIMEOUT_S)["result"]["collections"]
            live = {one["collection_name"]: one["alias_name"] for one in aliases}
            versions = {name for name in (*live, *(one["name"] for one in held)) if is_version(name)}
            return {live.get(name, name.rpartition(".")[0]) for name in versions}
        except (TypeError, KeyError):  # refused, late, or something else than a Qdrant says
            return None

    def _get(self, path: str, *, timeout_s: float) -> Any:
        """Return the JSON that is answered, None if that is none, or none in time."""
        import http.client
        import json

        key = os.environ.get("QDRANT_API_KEY")
        deadline = time.monotonic() + timeout_s
        try:
            if self._connection is None or self._connection.sock is None:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            else:
                self._connection.sock.settimeout(timeout_s)
            # Whoever listens at `/` need not be a Qdrant: it is shown no key.
            self._connection.request("GET", path, headers={"api-key": key} if key and path != "/" else {})
            response = self._connection.getresponse()
            body = bytearray()
            while chunk := response.read1(1 << 16):
                body += chunk
                if time.monotonic() > deadline or len(body) > _MAX_BYTES:
                    raise TimeoutError
            return json.loads(body) if response.status == 200 else None
        except (OSError, ValueError, http.client.HTTPException):
            if self._connection is not None:
                self._connection.close()
            return None
