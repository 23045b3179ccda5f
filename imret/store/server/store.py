"""The server engine: a store on a Qdrant server or cluster, through qdrant-client.

A version is a Qdrant collection `NAME.FINGERPRINT16`, or `NAME.FINGERPRINT16-2` where that is taken. It keeps
that name when imret's collection is renamed: its metadata says whose it is and which encoder made it. `NAME`
itself is an alias of the live one, so that a switch is one step for every reader. Hides retries, and batches
in flight. A collection or an alias that imret did not make is never written to.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from importlib.metadata import version as package_version
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from imret.errors import DataError, StoreError, StoreUnavailable
from imret.store.collection import (
    check_name,
)
from imret.store.filter import (
    INDEXED_FIELDS,
    INTEGER_FIELDS,
    MOMENT_FIELDS,
)
from imret.store.server.collection import ServerCollection
from imret.store.server.connection import (
    _RETRY_FIRST_S,
    _RETRY_MAX_S,
    CONNECT_PATIENCE_S,
    GRPC_PORT,
    REQUEST_TIMEOUT_S,
    REST_PORT,
    T,
    _answers,
    _checked_key,
    _checked_url,
    _grpc_code,
    _is_loopback,
    _is_transient,
    _looked_up,
    _ReplacedError,
)
from imret.store.types import EF_CONSTRUCT, Identity, M

if TYPE_CHECKING:
    from typing_extensions import Self


FORMAT = 1
_VERSION = re.compile(r"[0-9a-f]{16}(-[1-9][0-9]*)?")


class ServerStore:
    """A store on a Qdrant server. See `Store` for what its methods promise.

    Args:
        address: "http://host[:port]" or "https://host[:port]"; port 6333 unless it says otherwise.
        api_key: Default: environment variable QDRANT_API_KEY, if set.
        client: Use this client instead of connecting to the address.
        patience_s: How long an operation is tried again while the server is gone or busy.
        in_flight: Requests of one upsert that are under way at a time.
        reason: Why this store was chosen.

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
    ) -> None:
        url = _checked_url(address)
        self.address = address
        self.reason = reason
        self._patience_s = patience_s
        self._closing = threading.Event()
        self._api_key = _checked_key(os.environ.get("QDRANT_API_KEY") if api_key is None else api_key)
        self._server_version = ""
        self._client = client if client is not None else self._connect(url)
        self._in_flight = in_flight
        self._senders = ThreadPoolExecutor(in_flight, "imret-qdrant")

    def collections(self) -> list[str]:
        def look() -> list[str]:
            return sorted(
                name
                for name, physical in self._aliases().items()
                if _is_version(physical) and self._identity(name, physical) is not None
            )

        return _looked_up(look)

    def live(self, name: str) -> Identity | None:
        found = _looked_up(lambda: self._live_version(name))
        return None if found is None else found[1]

    def version(self, name: str) -> str | None:
        physical = self._aliases().get(check_name(name))
        return physical if physical is not None and _is_version(physical) else None

    def building(self, name: str) -> list[Identity]:
        live = self._live_name(name)
        return [identity for physical, identity in self._versions(name).items() if physical != live]

    def open(self, name: str) -> ServerCollection:
        found = _looked_up(lambda: self._live_version(name))
        if found is None:
            raise self._no_such(name)
        physical, identity = found
        return ServerCollection(self, name, identity, physical)

    def open_version(self, name: str, identity: Identity, *, beside: bool = False) -> ServerCollection:
        live = self._settled_live_name(name)
        there = _of_encoder(self._versions(name), identity, live, beside=beside)
        if beside:
            while there:
                self._delete(there.pop())
        if there:
            physical = there[0]
        else:
            physical = self._free_name(name, identity)
            self._create(name, physical, identity)
        stored = self._identity(name, physical)
        if stored is None:
            raise self._foreign(name, physical)
        if (stored.fingerprint, stored.dim) != (identity.fingerprint, identity.dim):
            raise StoreError(
                f"the collection {physical!r} at {self.address} belongs to the encoder {stored.fingerprint} "
                f"of {stored.dim} dimensions, not to {identity.fingerprint} of {identity.dim}. Use another "
                "name."
            )
        if stored.model != identity.model:
            # The same weights under another name, for example a folder that was moved: the newer one works.
            self._write_note(physical, _metadata(name, identity))
        self._index_payload(physical)
        return ServerCollection(self, name, identity, physical)

    def switch(self, name: str, identity: Identity, *, beside: bool = False) -> None:
        old = self._settled_live_name(name)
        versions = self._versions(name)
        physical = next(iter(_of_encoder(versions, identity, old, beside=beside)), None)
        if physical is None:
            raise StoreError(f"collection {name!r} at {self.address} has no version {identity.version}")
        if old != physical:
            steps: list[models.AliasOperations] = [_create_alias(name, physical)]
            if old is not None:
                steps.insert(0, _delete_alias(name))
            self.request("switch to it", lambda: self._client.update_collection_aliases(steps))
        for other in versions:
            if other != physical:
                self._delete(other)

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
            self._write_note(live, _metadata(old, identity, renamed_to=new))
            self._move_alias(old, new, live)
        for physical, other in self._versions(old).items():  # what is being built
            self._write_note(physical, _metadata(new, other))
        self._settled_live_name(new)

    def drop(self, name: str) -> None:
        for physical in self._versions(name):
            self._delete(physical)  # and with the live one its alias

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()  # ends the waits of retries
            self._senders.shutdown(cancel_futures=True)
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def request(self, what: str, call: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Return what a call to the client returns; try again, ever later, while that may help.

        Every call made through here may be repeated without harm: it says what shall be, not what to add.

        Args:
            what: What is tried, for the error: "search".
            call: Sends one request.
            patience_s: How long to go on trying.

        Raises:
            StoreUnavailable: If the server stayed away or busy.
            StoreError: If it refused.
        """
        deadline = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        delay = _RETRY_FIRST_S
        while True:
            if self._closing.is_set():
                raise StoreError(f"the store {self.address} is closed")
            try:
                return call()
            except Exception as error:
                if not _is_transient(error):
                    raise self._refused(what, error) from error
                # Jitter: many clients of one server that comes back must not all return in step.
                pause = max(random.uniform(delay / 2, delay), float(getattr(error, "retry_after_s", 0)))
                if time.monotonic() + pause > deadline:
                    raise self._gone(error) from error
            self._closing.wait(pause)
            delay = min(delay * 2, _RETRY_MAX_S)

    def send_all(self, what: str, calls: Sequence[Callable[[], object]]) -> None:
        """Make several requests, a few at a time; returns when all are done, raises what the first raised."""
        if len(calls) <= 1 or self._in_flight == 1:
            for call in calls:
                self.request(what, call)
            return
        sent = [self._senders.submit(self.request, what, call) for call in calls]
        done, not_done = wait(sent, return_when=FIRST_EXCEPTION)
        for future in not_done:
            future.cancel()
        wait(not_done)
        for future in done:
            future.result()

    def _connect(self, url: SplitResult) -> QdrantClient:
        host, loopback = url.hostname or "", _is_loopback(url.hostname or "")
        if self._api_key is not None and url.scheme == "http" and not loopback:
            warnings.warn(
                f"the API key travels to {self.address} unencrypted; use https where the server offers it",
                stacklevel=4,
            )
        options: dict[str, Any] = {
            "url": f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}",
            "port": REST_PORT,
            "timeout": REQUEST_TIMEOUT_S,
            "check_compatibility": False,  # done below, without a thread and a warning from inside
            # As a header, because as an argument it brings a warning for every http address, localhost too.
            "headers": {} if self._api_key is None else {"api-key": self._api_key},
        }
        if loopback:  # a proxy cannot reach what runs on this machine
            options["trust_env"] = False
        client = QdrantClient(**options)
        try:
            info = self.request("say its version", client.info, patience_s=CONNECT_PATIENCE_S)
            if "qdrant" not in info.title.lower():
                raise StoreError(f"what answers at {self.address} is {info.title!r}, not a Qdrant server")
            self._server_version = info.version
            self._check_version()
            there = self.request(
                "list its collections", client.get_collections, patience_s=CONNECT_PATIENCE_S
            )
        except BaseException:
            client.close()
            raise
        # gRPC has its own port, which only the usual pair of ports lets us know.
        if (url.port or REST_PORT) == REST_PORT and not url.path.strip("/") and _answers(host, GRPC_PORT):
            channel = {"grpc.enable_http_proxy": 0} if loopback else {}
            faster = QdrantClient(**options, prefer_grpc=True, grpc_port=GRPC_PORT, grpc_options=channel)
            try:
                same = faster.info().version == info.version and faster.get_collections() == there
            except (
                Exception
            ):  # a port that something else has, or that a proxy does not pass on: REST does too
                same = False
            unused, client = (client, faster) if same else (faster, client)
            unused.close()
        return client

    def _check_version(self) -> None:
        """Say in `reason` if client and server are further apart than Qdrant promises to work."""
        ours = package_version("qdrant-client")
        try:
            mine, theirs = (tuple(map(int, one.split(".")[:2])) for one in (ours, self._server_version))
        except ValueError:
            return  # a development build
        if mine[0] != theirs[0] or abs(mine[1] - theirs[1]) > 1:
            apart = (
                f"Qdrant {self._server_version} and qdrant-client {ours} are more than one minor version "
                "apart, which may fail"
            )
            self.reason = f"{self.reason}; {apart}" if self.reason else f"store {self.address}: {apart}"

    def _aliases(self) -> dict[str, str]:
        answer = self.request("list its aliases", self._client.get_aliases)
        return {alias.alias_name: alias.collection_name for alias in answer.aliases}

    def _live_name(self, name: str) -> str | None:
        """Return the Qdrant collection behind a name, or None if the name is free.

        Raises:
            StoreError: If the name is taken by something that imret did not make.
        """
        check_name(name)
        physical = self._aliases().get(name)
        if physical is not None:
            if not _is_version(physical) or self._identity(name, physical) is None:
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
            self._write_note(physical, _metadata(name, identity))
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

    def _move_alias(self, old: str, new: str, physical: str) -> None:
        steps: list[models.AliasOperations] = [_delete_alias(old), _create_alias(new, physical)]
        try:
            self.request("rename it", lambda: self._client.update_collection_aliases(steps))
        except StoreUnavailable:
            raise
        except StoreError:
            aliases = self._aliases()
            if aliases.get(new) != physical or old in aliases:
                raise
            # an earlier try got through though its answer did not

    def _names(self) -> list[str]:
        answer = self.request("list its collections", self._client.get_collections)
        return [one.name for one in answer.collections]

    def _versions(self, name: str) -> dict[str, Identity]:
        """Return every Qdrant collection of a name with its encoder: live, being built, or left behind.

        Not by their names alone, which a rename does not change. What is the alias of another name needs
        no look, unless it is called like one of this.
        """
        check_name(name)
        aliases = self._aliases()
        others = {physical for alias, physical in aliases.items() if alias != name} - {aliases.get(name)}
        found: dict[str, Identity] = {}
        for physical in sorted(self._names()):
            called_so = physical.rpartition(".")[0] == name
            if _is_version(physical) and (called_so or physical not in others):
                identity = self._identity(name, physical)
                if identity is not None:
                    found[physical] = identity
        return found

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

    def _note(self, physical: str) -> dict[str, Any]:
        """Return what imret noted in the metadata of a Qdrant collection, {} if it did not make it."""
        info = self.request("describe a collection", lambda: self._client.get_collection(physical))
        note = (info.config.metadata or {}).get("imret")
        return note if isinstance(note, dict) else {}

    def _write_note(self, physical: str, metadata: dict[str, Any]) -> None:
        self.request(
            "note whose version it is", lambda: self._client.update_collection(physical, metadata=metadata)
        )

    def _identity(self, name: str, physical: str) -> Identity | None:
        """Return the encoder of a version, or None if that Qdrant collection is no version of this name."""
        note = self._note(physical)
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

    def _create(self, name: str, physical: str, identity: Identity) -> None:
        def create() -> bool:
            return self._client.create_collection(
                physical,
                vectors_config=models.VectorParams(size=identity.dim, distance=models.Distance.COSINE),
                hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCT),
                quantization_config=models.ScalarQuantization(
                    scalar=models.ScalarQuantizationConfig(
                        type=models.ScalarType.INT8, quantile=0.99, always_ram=True
                    )
                ),
                metadata=_metadata(name, identity),
            )

        try:
            self.request(f"make the collection {physical!r}", create)
        except StoreUnavailable:
            raise
        except StoreError:
            if physical not in self._names():
                raise
            return  # an earlier try got through though its answer did not, or another process was first
        if self._identity(name, physical) is None:
            # A server ignores what it does not know. Without it another encoder's vectors could be mixed in.
            self._delete(physical)
            raise StoreError(
                f"the Qdrant {self._server_version} at {self.address} keeps no collection metadata. "
                "Qdrant 1.16 or newer is needed: docker compose up qdrant"
            )

    def _index_payload(self, physical: str) -> None:
        info = self.request("describe a collection", lambda: self._client.get_collection(physical))
        for field in INDEXED_FIELDS:
            if field not in info.payload_schema:
                self._create_index(physical, field)

    def _create_index(self, physical: str, field: str) -> None:
        kind = models.PayloadSchemaType.KEYWORD
        if field in INTEGER_FIELDS:
            kind = models.PayloadSchemaType.INTEGER
        elif field in MOMENT_FIELDS:
            kind = models.PayloadSchemaType.DATETIME
        self.request(
            f"index {field!r}",
            lambda: self._client.create_payload_index(physical, field, field_schema=kind, wait=True),
        )

    def _delete(self, physical: str) -> None:
        self.request("delete a version", lambda: self._client.delete_collection(physical))

    def _no_such(self, name: str) -> DataError:
        existing = self.collections()
        if self.building(name):
            return DataError(f"collection {name!r} is not complete yet. Run its ingest again to finish it.")
        there = f"There are: {', '.join(existing)}" if existing else "It holds none of imret's yet"
        return DataError(
            f"no collection {name!r} at {self.address}. {there}.\n"
            f"Make it: imret ingest FOLDER --collection {name} --db {self.address}"
        )

    def _foreign(self, name: str, physical: str) -> StoreError:
        what = "a collection" if name == physical else f"an alias or version ({physical!r})"
        return StoreError(
            f"the Qdrant at {self.address} has {what} named {name!r} that imret did not make; it is left "
            "alone. Use another name: --collection NAME"
        )

    def _gone(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"no answer from Qdrant at {self.address}: {self._reason_of(error)}.\n"
            "Start it (docker compose up qdrant) and run the command again; what it acknowledged is safe. "
            "Or use a folder instead of a server: --db FOLDER"
        )

    def _refused(self, what: str, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        status = error.status_code if isinstance(error, UnexpectedResponse) else _grpc_code(error)
        if status in (401, 403, "UNAUTHENTICATED", "PERMISSION_DENIED"):
            did = "refuses the API key" if self._api_key else "asks for an API key"
            return StoreError(f"Qdrant at {self.address} {did}. Set it: export QDRANT_API_KEY=...")
        reason = self._reason_of(error)
        if status in (404, "NOT_FOUND") and "collection" in reason.lower():
            reason += ". It was replaced or dropped while it was open; open it again"
            return _ReplacedError(f"Qdrant at {self.address} refused to {what}: {reason}")
        return StoreError(f"Qdrant at {self.address} refused to {what}: {reason}")

    def _reason_of(self, error: Exception) -> str:
        """Return why a request failed, in one line, without the API key."""
        text = ""
        if isinstance(error, UnexpectedResponse):
            text = f"{error.status_code} {error.reason_phrase}".strip()
            try:
                text += f": {json.loads(error.content)['status']['error']}"
            except (ValueError, KeyError, TypeError):
                text += f": {error.content[:200].decode(errors='replace')}" if error.content else ""
        elif _grpc_code(error):
            details = getattr(error, "details", str)
            text = f"{_grpc_code(error)}: {details() or ''}"
        else:
            source = error.source if isinstance(error, ResponseHandlingException) else error
            text = str(source) or type(source).__name__
        line = " ".join(text.split()).rstrip(".: ")
        return line.replace(self._api_key, "***") if self._api_key else line


def _metadata(name: str, identity: Identity, *, renamed_to: str = "") -> dict[str, Any]:
    """Return the metadata of a version; of two names, during a rename, the one that is its alias counts."""
    return {
        "imret": {
            "format": FORMAT,
            "collection": name,
            "renamed_to": renamed_to,  # always there: Qdrant merges metadata, so an absent key would stay
            "model": identity.model,
            "fingerprint": identity.fingerprint,
            "dim": identity.dim,
        }
    }


def _is_version(physical: str) -> bool:
    return bool(_VERSION.fullmatch(physical.rpartition(".")[2]))


def _of_encoder(
    versions: Mapping[str, Identity], identity: Identity, live: str | None, *, beside: bool
) -> list[str]:
    """Return the versions of an encoder that a caller may mean: the live one, or those beside it."""
    same = [physical for physical, found in versions.items() if found.version == identity.version]
    if beside:
        return [physical for physical in same if physical != live]
    return [live] if live is not None and live in same else same


def _create_alias(name: str, physical: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=physical, alias_name=name)
    )


def _delete_alias(name: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
