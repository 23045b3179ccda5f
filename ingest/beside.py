"""An ingest in a thread beside a server, with the model and the store of its searches.

Hides how it is told how far it is, how it is stopped, and that a store which is away for a while comes back.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from imret.abandon import AbandonedError
from imret.datasets.kinds import in_words
from imret.errors import ImretError, StoreUnavailable, summary
from imret.escape import escape_control, escape_undecodable
from imret.models.lazy_encoder import LazyEncoder
from imret.retrieval.collection_encoder import collection_encoder
from imret.sources.stored import naming_options
from imret.web.filling import FillingProgress, Stage, State
from imret.web.pool.collections import CollectionPool
from ingest.pipeline import ingest
from ingest.priority import YieldingEncoder
from ingest.report import Report
from ingest.settle import settle
from ingest.sources import Source
from ingest.summary import summarise
from ingest.target import with_pictures

RATE_OVER_S = 20.0  # of which the pictures a second are told
TELL_EVERY_S = 30.0  # on the terminal
SHOWN = 100  # of what was not taken
_FOUND_WITHIN_S = 60.0  # a model that is on disk
_JOIN_S = 3.0
_TRIES = 20  # where the store is away
_AGAIN_S = 10.0


class IngestBeside:
    """Fills one collection of a pool from folders: `imret.web.filling.Filling`.

    Args:
        pool: Whose store is filled, and whose searches use the same model.
        folders: The folders, with what is remembered of them.
        collection: Name; made if it is new.
        notify: Called with lines for the person who runs the server.
        encoding: Of `collection_encoder`: model, arch, device, precision.
        moved_from: As for `ingest.pipeline.ingest`.
        second_copy: The same.
    """

    def __init__(
        self,
        pool: CollectionPool,
        folders: Sequence[Source],
        *,
        collection: str,
        notify: Callable[[str], None],
        encoding: dict[str, Any],
        moved_from: Sequence[str] = (),
        second_copy: bool = False,
    ) -> None:
        self._pool, self._folders, self._collection = pool, list(folders), collection
        self._notify, self._encoding = notify, encoding
        self._settling: dict[str, Any] = {"moved_from": moved_from, "second_copy": second_copy}
        self._lock = threading.Lock()  # of what follows
        self._state: State = "running"
        self._stage: Stage = "folders"
        self._done, self._total = 0, None if folders else 0
        self._lately: deque[tuple[float, int]] = deque()
        self._error = ""
        self._report: Report | None = None
        self._told = time.monotonic()
        self._stop = threading.Event()
        self._has_model = threading.Event()  # or will not have it soon
        self._refusal: ImretError | None = None
        self._thread = threading.Thread(target=self._run, name="imret-fill", daemon=True)

    def begin(self) -> None:
        """Look whether it can be done, as far as that shows soon, and begin.

        Returns when the model is found, or has to be downloaded, which may take long.

        Raises:
            DataError: If no folder holds a picture, or folders overlap or have moved.
            ImretError: If there is no such model, or it is not the collection's.
        """
        store = self._pool.store
        with_pictures(self._folders, store, self._collection, prune=False, rebuild=False)
        settle(store, self._folders, collection=self._collection, **self._settling)
        self._thread.start()
        self._has_model.wait(_FOUND_WITHIN_S)
        if self._refusal is not None:
            raise self._refusal

    def progress(self) -> FillingProgress:
        with self._lock:
            report = self._report
            speed, left = self._speed()
            progress = FillingProgress(
                state=self._state,
                stage=self._stage if self._state == "running" else "",
                collection=self._collection,
                folders=[escape_undecodable(folder.root) for folder in self._folders],
                done=self._done,
                total=None if self._total is None else max(self._total, self._done),
                images_per_s=speed if self._state == "running" else None,
                seconds_left=left if self._state == "running" else None,
                error=self._error,
            )
        return progress if report is None else _with_report(progress, report)

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        self._stop.set()
        self._thread.join(_JOIN_S)
        with self._lock:
            if self._state in ("running", "stopped"):
                self._state = "stopped"
                self._notify(
                    f"{self._collection}: stopped at {self._how_far()}; the same command goes on from there"
                )

    # ---- In its thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._at("model")
            encoder = self._find_encoder()
            self._has_model.set()
            self._end(self._ingest(encoder))
        except Exception as error:  # whatever happens, the server goes on, and it is told
            if self._stop.is_set():  # what a store says that is closed meanwhile, for example
                self._state = "stopped"
            else:
                self._fail(error)
        finally:
            self._has_model.set()

    def _find_encoder(self) -> LazyEncoder:
        """Return the encoder of the searches, or of a collection that is still to come one that they get."""
        if self._pool.store.live(self._collection) is not None:
            with self._pool.use(self._collection) as served:
                return served.encoder.inner

        def notify(line: str) -> None:
            self._has_model.set()  # a download is about to begin, which nothing waits for
            self._notify(line)

        encoder = collection_encoder(self._pool.store, self._collection, notify=notify, **self._encoding)
        if self._encoding["device"] not in ("auto", "cpu"):
            encoder.device  # noqa: B018 - one that may not be there is looked for at once
        self._pool.lend(self._collection, encoder)
        return encoder

    def _ingest(self, encoder: LazyEncoder) -> Report:
        """Ingest; begin again where the store is away for a while."""
        for left in range(_TRIES, -1, -1):
            with self._lock:
                self._done, self._stage = 0, "pictures"
                self._lately.clear()
            try:
                return ingest(
                    self._pool.store,
                    self._folders,
                    encoder=cast(LazyEncoder, YieldingEncoder(encoder, lambda: self._pool.is_encoding)),
                    collection=self._collection,
                    gives_way=True,
                    on_total=self._expect,
                    on_progress=self._advance,
                    on_stage=lambda stage: self._at("index" if stage == "index" else "pictures"),
                    on_encoder=lambda: self._notify(f"encoding on {encoder.device} in {encoder.precision}"),
                    **self._settling,
                )
            except StoreUnavailable as error:
                if not left:
                    raise
                self._notify(f"Warning: {error}\n(The ingest tries again in {_AGAIN_S:.0f} s.)")
                self._stop.wait(_AGAIN_S)
                self._check_wanted()
        raise AssertionError("unreachable")

    def _expect(self, total: int) -> None:
        with self._lock:
            self._total = total

    def _advance(self, n: int) -> None:
        self._check_wanted()
        now = time.monotonic()
        with self._lock:
            self._done += n
            self._lately.append((now, self._done))
            while len(self._lately) > 2 and self._lately[1][0] < now - RATE_OVER_S:
                self._lately.popleft()
            line = self._how_far() if now - self._told >= TELL_EVERY_S else ""
        if line:
            self._told = now
            self._notify(f"{self._collection}: {line}")

    def _at(self, stage: Stage) -> None:
        self._check_wanted()
        with self._lock:
            self._stage = stage

    def _check_wanted(self) -> None:
        if self._stop.is_set():
            raise AbandonedError("the server is about to end")

    def _speed(self) -> tuple[float | None, float | None]:
        """Return pictures a second, and how many seconds are left by that."""
        if len(self._lately) < 2:
            return None, None
        (since, before), (_, now) = self._lately[0], self._lately[-1]
        rate = (now - before) / max(time.monotonic() - since, 0.001)
        left = None if self._total is None or not rate else max(0, self._total - self._done) / rate
        return rate, left

    def _how_far(self) -> str:
        of = "" if self._total is None else f" of {max(self._total, self._done):,}"
        speed, _ = self._speed()
        return f"{self._done:,}{of} pictures{'' if speed is None else f', {speed:.1f} images/s'}"

    def _end(self, report: Report) -> None:
        with self._lock:
            self._report, self._state = report, "done"
        where = naming_options(self._pool.store, self._collection)
        summarise(report, None, check_content=False, where=where)
        for said in report.without_pictures:
            self._notify(f"Warning: {said}")

    def _fail(self, error: Exception) -> None:
        told = (error.public or str(error)) if isinstance(error, ImretError) else summary(error)
        with self._lock:
            self._error, self._state = told, "failed"
        if not isinstance(error, ImretError):
            traceback.print_exception(error)
        elif not self._has_model.is_set():
            self._refusal = error  # it is raised where the server would begin
            return
        self._notify(f"Error: the ingest has failed: {error}\n(What it stored stays, and can be searched.)")


def _with_report(progress: FillingProgress, report: Report) -> FillingProgress:
    names = ("added", "updated", "moved", "unchanged", "removed", "missing")
    return replace(
        progress,
        counts={**{name: getattr(report, name) for name in names}, "skipped": len(report.skipped)},
        not_taken=[
            {name: escape_control(told) for name, told in skip.items()} for skip in report.skipped[:SHOWN]
        ],
        left_out=in_words(report.ignored),
        notes=[*report.without_pictures, *report.notes],
    )
