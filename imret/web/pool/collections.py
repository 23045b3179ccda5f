"""Collections kept open with their encoders, always in their live version.

A watcher looks whether another version has become live. It opens that one and loads its model first, and only
then do requests move on to it; the old one is closed when its last request has ended. A request that met the
moment in between is asked again.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from imret.errors import ImretError, ModelMismatch, StoreError, StoreUnavailable
from imret.models.fingerprint import ModelFiles
from imret.models.known_models import note_model
from imret.models.lazy_encoder import LazyEncoder
from imret.models.resolve import resolve_model
from imret.retrieval.category_names import stored_names
from imret.retrieval.collection_encoder import check_same_encoder, read_as_made
from imret.retrieval.own_model import find_own_model
from imret.store import Collection, Store
from imret.web.metrics import Telemetry
from imret.web.pool.batching import BatchingEncoder
from imret.web.pool.pooled_collection import PooledCollection

T = TypeVar("T")

POLL_S = 0.5  # how often the live versions are looked at
IDLE_S = 900.0  # a collection that nobody asks for is closed, and its model let go
REOPEN_S = 2.0  # between two attempts to get a store back that was lost


class CollectionPool:
    """The collections of a store, ready to answer. Safe to use from many threads.

    Args:
        open_store: Opens the store; called again if the embedded store's process should die.
        device: Where the models run, as for `Encoder`.
        precision: In which precision, as for `Encoder`.
        keep: A collection that stays open though nobody asks for it, and is opened when it comes to be.
        models: Model names to use instead of the one that a collection keeps, by collection.
        arch: Architecture of those that are bare checkpoint files.
        notify: Called with lines for the person who runs the server.
        telemetry: Where durations go.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        *,
        device: str = "auto",
        precision: str = "auto",
        keep: str | None = None,
        models: Mapping[str, str] | None = None,
        arch: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.telemetry = telemetry or Telemetry()
        self._open_store, self._notify = open_store, notify
        self._device, self._precision = device, precision
        self._keep = keep
        self._models, self._arch = dict(models or {}), arch
        self._store = open_store()
        self._reopened = 0.0
        self._lost_at = 0.0  # when the embedded store's process was last found gone
        self._live: dict[str, PooledCollection] = {}
        self._in_use: set[PooledCollection] = set()
        self._encoders: dict[tuple[str, str], BatchingEncoder] = {}
        self._lent: dict[str, LazyEncoder] = {}
        self._lock = threading.Lock()  # of the dictionaries; held for moments
        self._opening = threading.RLock()  # one collection or model at a time
        self._failed: dict[str, tuple[float, ImretError]] = {}  # the last attempt to open a collection
        self._complaints: dict[str, str] = {}
        self._away: dict[str, str] = {}  # open collections whose store does not answer, and how that was told
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="imret-versions", daemon=True)
        self._watcher.start()

    @property
    def store(self) -> Store:
        """The store, for what is asked of it as a whole."""
        return self._store

    @property
    def depth(self) -> int:
        """How many text queries wait to be encoded."""
        with self._lock:
            return sum(encoder.depth for encoder in self._encoders.values())

    @property
    def is_encoding(self) -> bool:
        """Whether somebody waits for a text that is being encoded, or about to be."""
        with self._lock:
            return any(encoder.is_busy or encoder.depth for encoder in self._encoders.values())

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[PooledCollection]:
        """Give the live version of a collection; it stays open until the end of the block.

        Raises:
            DataError: If there is no such collection.
            StoreError: If it cannot be opened.
            ModelError: If its model cannot be found, or is not the one that made it.
        """
        pooled = self._take(name)
        try:
            yield pooled
        finally:
            self._leave(pooled)

    def ask(self, name: str, question: Callable[[PooledCollection], T]) -> T:
        """Return the answer of a collection to a question; asked again if its version changed meanwhile.

        Raises:
            What `use` and the question raise.
        """
        used: PooledCollection | None = None
        try:
            with self.use(name) as pooled:
                used = pooled
                answer = question(pooled)
            self._away.pop(name, None)
            return answer
        except (StoreError, ModelMismatch) as error:
            failure = error
        # With that process all is lost that it had open, whatever else of it says, such as that it is closed.
        lost = isinstance(failure, StoreUnavailable) or (used is not None and used.opened < self._lost_at)
        if lost and self._store.engine == "server":
            if used is not None:
                self._note_away(name, failure)
            raise failure  # its own retries have ended by now
        if used is not None:
            self._refresh(name, used, lost=lost)
        elif lost:
            with self._opening:
                self._reopen()
        else:
            raise failure
        with self.use(name) as pooled:
            if pooled is used:
                raise failure
            return question(pooled)

    def lend(self, name: str, encoder: LazyEncoder) -> None:
        """Have a collection that is still to come use the encoder that makes it: one model in memory."""
        self._lent[name] = encoder

    def peek(self, name: str) -> PooledCollection | None:
        """Return a collection if it is open already, for a look at its encoder."""
        with self._lock:
            return self._live.get(name)

    def is_away(self, name: str) -> bool:
        """Whether an open collection did not answer when it was last asked, which it is every few seconds."""
        return name in self._away

    def _note_away(self, name: str, error: Exception) -> None:
        """Remember that a collection does not answer, and tell who runs the server why, once."""
        if self._away.get(name) is None:
            self._notify(f"{name}: {error}")
        self._away[name] = str(error)

    def close(self) -> None:
        """Close everything; requests that still run fail."""
        self._stop.set()
        self._watcher.join()
        with self._lock:
            pooled, self._live = list(self._live.values()), {}
        for collection in pooled:
            self._leave(collection)
        self._store.close()

    # ---- Versions -----------------------------------------------------------------------------------

    def _take(self, name: str) -> PooledCollection:
        with self._lock:
            if name in self._live:
                return self._taken(self._live[name])
        waiting_since = time.monotonic()
        with self._opening:
            with self._lock:
                if name in self._live:
                    return self._taken(self._live[name])
            failed = self._failed.get(name)
            if failed is not None and failed[0] > waiting_since:
                raise failed[1]  # while we waited for our turn; it would take as long to fail again
            try:
                pooled = self._open(name)
            except ImretError as error:
                self._failed[name] = (time.monotonic(), error)
                raise
            self._failed.pop(name, None)
            with self._lock:
                self._live[name] = pooled
                return self._taken(pooled)

    def _taken(self, pooled: PooledCollection) -> PooledCollection:
        pooled.users += 1
        pooled.used = time.monotonic()
        return pooled

    def _leave(self, pooled: PooledCollection) -> None:
        with self._lock:
            pooled.users -= 1
            if pooled.users:
                return
            self._in_use.discard(pooled)
            in_use = {id(other.encoder) for other in self._in_use}
            self._encoders = {
                key: encoder for key, encoder in self._encoders.items() if id(encoder) in in_use
            }
        pooled.close()

    def _open(self, name: str) -> PooledCollection:
        collection = self._store.open(name)
        key = (collection.identity.fingerprint, self._models.get(name, collection.identity.model))
        try:
            encoder = self._encoder(collection, key)
            check_same_encoder(collection, encoder)
        except BaseException:
            collection.close()
            raise
        pooled = PooledCollection(name, collection, encoder, self.telemetry)
        try:
            self._read_names(pooled)
        except BaseException:
            collection.close()
            raise
        with self._lock:
            self._in_use.add(pooled)
            self._encoders[key] = encoder  # only now: those that no open collection has are let go
        return pooled

    def _read_names(self, pooled: PooledCollection) -> None:
        """Take up what a collection's categories are called, where that has changed since it was read."""
        mark = self._store.document_mark(
            pooled.name, "names"
        )  # before: a change in between is seen next time
        if mark == pooled.names_mark:
            return
        pooled.names = stored_names(
            self._store, pooled.name, notify=lambda why: self._notify(f"{pooled.name}: {why}")
        )
        pooled.names_mark = mark

    def _encoder(self, collection: Collection, key: tuple[str, str]) -> BatchingEncoder:
        """Return the encoder of a fingerprint and model name: the one in memory already, or a new one."""
        with self._lock:
            known = self._encoders.get(key)
        if known is not None:
            return known
        lent = self._lent.get(collection.name)
        if lent is not None and lent.embeds_as(collection.identity.fingerprint):
            return BatchingEncoder(lent, self.telemetry)
        files = read_as_made(
            self._find_model(collection), collection.name, collection.identity, notify=self._notify
        )
        lazy = LazyEncoder(files, device=self._device, precision=self._precision)
        return BatchingEncoder(lazy, self.telemetry)

    def _find_model(self, collection: Collection) -> ModelFiles:
        """Find the model of a collection; whoever asks from afar is never asked whether it may be loaded."""
        name, identity = collection.name, collection.identity
        if name in self._models:
            files = resolve_model(self._models[name], arch=self._arch, notify=self._notify)
            note_model(files, notify=self._notify)
            return files
        model = f"--collection {shlex.quote(name)} --model {shlex.quote(identity.model)}"
        advice = (
            f"start the server with it: imret serve {model}"
            if name == self._keep
            else f"use it once where the server runs: imret search WORDS {model}"
        )
        return find_own_model(name, identity, advice=advice, notify=self._notify)

    def _retire(self, name: str, pooled: PooledCollection) -> None:
        """Give a collection to no more requests; it is closed when the last of those that have it ends."""
        with self._lock:
            if self._live.get(name) is not pooled:
                return
            del self._live[name]
        self._away.pop(name, None)
        self._leave(pooled)

    def _refresh(self, name: str, seen: PooledCollection, *, lost: bool = False) -> None:
        """Move on to the live version of a collection, if that is not the one seen.

        Args:
            name: Of the collection.
            seen: What was open.
            lost: Whether the embedded store's process is gone: it is then opened anew.
        """
        with self._opening:
            with self._lock:
                if self._live.get(name) is not seen:
                    return
            if lost:
                # The process that had it open has ended.
                self._lost_at = time.monotonic()
                try:
                    following = self._open(name)
                    self._notify(f"{name}: opened again")
                except StoreUnavailable:
                    self._reopen()
                    return
            else:
                version = self._store.version(name)
                if version == seen.version:
                    return
                if version is None:
                    self._retire(name, seen)
                    return
                following = self._open(name)
            # Its model is loaded before anybody waits for it, if that of the version before it was.
            if following.encoder is not seen.encoder and seen.encoder.inner.is_loaded:
                following.load()
            with self._lock:
                self._live[name] = following
            self._leave(seen)
            if following.version != seen.version:
                self._notify(f"{name}: a new version is live, made by {following.identity.model}")

    def _reopen(self) -> None:
        """Open an embedded store anew whose process has died."""
        if time.monotonic() - self._reopened < REOPEN_S:
            return
        self._reopened = time.monotonic()
        with self._lock:
            old = dict(self._live)
        store = self._open_store()  # if this fails, the old one stays, and the next question tries again
        for name, pooled in old.items():
            self._retire(name, pooled)
        self._store, lost = store, self._store
        with contextlib.suppress(StoreError):
            lost.close()
        self._notify(f"store {self._store.address}: opened again")

    def _answers(self, name: str, pooled: PooledCollection) -> bool:
        """Look whether a collection answers; what a version that is gone says is none of this."""
        try:
            pooled.ping()
        except StoreUnavailable as error:
            self._note_away(name, error)
            return False
        except StoreError:
            return True
        if self._away.pop(name, None) is not None:
            self._notify(f"{name}: answers again")
        return True

    def _watch(self) -> None:
        # A server is asked over the network, and a version that it has dropped is noticed by `ask`.
        patience = 1 if self._store.engine == "embedded" else 4
        while not self._stop.wait(patience * POLL_S):
            with self._lock:
                live = dict(self._live)
            for name, pooled in live.items():
                try:
                    if name != self._keep and time.monotonic() - pooled.used > IDLE_S:
                        self._retire(name, pooled)
                    elif self._answers(name, pooled):
                        self._refresh(name, pooled)
                        self._read_names(pooled)
                    self._complaints.pop(name, None)
                except ImretError as error:
                    # A version that its ingest has not let go of yet, a server that is away for a moment:
                    # the old version answers, and the next look may go well.
                    if self._complaints.get(name) != str(error):
                        self._complaints[name] = str(error)
                        self._notify(f"{name}: still the version before: {error}")
                except Exception as error:  # the watcher must outlive whatever happens
                    print(f"imret serve: {type(error).__name__}: {error}", file=sys.stderr)
            if self._keep is not None and self._keep not in live:
                # Why it cannot be opened, whoever asks for it is told.
                with contextlib.suppress(Exception):
                    if self._store.version(self._keep) is not None:
                        self._leave(self._take(self._keep))
