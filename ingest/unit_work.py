"""One unit of a source, ingested: the same work in this process and in an actor on another machine.

A unit ends with a line in the ledger that says what it was like. Until then an attempt is noted there, so
that one that ends its process is known by it, and left out after a few. Hides what the unit no longer holds.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from imret.datasets.scan import Skipped
from imret.errors import ChangedMeanwhile, DataError, ImretError, ModelError, StoreError, counted
from imret.escape import escape_undecodable
from imret.places.stores import Refused
from imret.settings import __version__
from imret.store import Filter, Match
from imret.store.ledger import FIRST_SKIPS, MOST_ATTEMPTS, Ledger, UnitLine, counted_reasons
from ingest.content_sample import Sample, draw_from
from ingest.decode_workers import may_pass
from ingest.pipeline import Run
from ingest.reconcile import ALMOST_NONE, Reconciler
from ingest.report import Counters, Report
from ingest.sources import Entry, PartSource, Record, Source, Unit

Failure: TypeAlias = Literal["", "unit", "store", "changed", "attempts"]

_CUT = "could not be read to its end"
_ALMOST_NONE_LEFT = "holds almost none of the pictures any more that are stored of it"


@dataclass(frozen=True)
class UnitTask:
    """A unit that is to be ingested. Pickles.

    Attributes:
        source: That it is a part of.
        unit: The unit.
        anew: Whether earlier attempts at it count no more.
        prune: Whether what is stored of it and no longer in it may go.
    """

    source: Source
    unit: Unit
    anew: bool = False
    prune: bool = False

    @property
    def root(self) -> str:
        """The source, as the collection names it."""
        return escape_undecodable(self.source.root)

    @property
    def name(self) -> str:
        """The unit, as the ledger names it."""
        return escape_undecodable(self.unit.name)


@dataclass
class UnitResult:
    """How a unit ended. Pickles.

    Attributes:
        task: What was to be done.
        line: What the ledger says of it now.
        report: The account of it, without its skips, which `line` has.
        failure: What kind of failure it was: the unit's own, the store's, that another program has replaced
            the version, or that the unit has ended its process too often; "" if it was done.
        error: In words.
    """

    task: UnitTask
    line: UnitLine
    report: Report
    failure: Failure = ""
    error: str = ""


class UnitWorker:
    """Ingests one unit after the other into a version of a collection.

    Args:
        run: The stages, over that version.
        ledger: Of the version.
        check_content: Compare the content of every picture, as for `ingest`.
        is_alone: Whether nobody else could go on where the store fails: then that is raised.
    """

    def __init__(
        self, run: Run, ledger: Ledger, *, check_content: bool = False, is_alone: bool = True
    ) -> None:
        self._run, self._ledger, self._is_alone = run, ledger, is_alone
        self._check_content = check_content

    def ingest(self, task: UnitTask) -> UnitResult:
        """Bring what is stored of a unit in line with it.

        Raises:
            ModelError: If the encoder fails, and whatever else is not the unit's fault nor the store's.
            StoreError: If the store fails, for a worker that is alone.
            Refused: If the source lets nobody in, for one that is alone.
        """
        counters = self._run.counters.part()
        report, digest = counters.report, task.unit.digest
        line = UnitLine(task.root, task.name)
        try:
            line = self._ledger.get(task.root, [task.name]).get(task.name, line)
            attempts = 0 if task.anew else line.attempts_at(digest)
            if attempts >= MOST_ATTEMPTS:
                return UnitResult(task, line, report, "attempts", _too_often(attempts))
            begun = replace(line, attempted=digest, attempts=attempts + 1, error="", imret=__version__)
            self._ledger.put([begun])
        except StoreError as error:
            if self._is_alone:
                raise
            return UnitResult(task, line, report, _kind(error), str(error))
        try:
            done = self._ingest(task, counters)
            n_unread = sum(n for reason, n in done.skipped.items() if may_pass(reason))
            unread = f"{counted(n_unread)} could not be read" if n_unread else ""
            line = replace(done, attempted=digest, error=unread, digest=line.digest if unread else digest)
            self._ledger.put([line])
            return UnitResult(task, line, report, "unit" if unread else "", unread)
        except ModelError:
            give_back(self._ledger, task)
            raise
        except (ImretError, OSError) as error:
            # It has lived to say so: that is no attempt that ended a process.
            line = replace(
                begun, attempts=attempts, error="" if isinstance(error, StoreError) else str(error)
            )
            with suppress(StoreError):
                self._ledger.put([line])
            if self._is_alone and isinstance(error, StoreError | Refused):
                raise
            return UnitResult(task, line, report, _kind(error), str(error))
        except Exception:  # perhaps the unit's fault, which shows if it happens again
            raise
        except BaseException:  # somebody stops the run
            give_back(self._ledger, task)
            raise
        finally:
            report.skipped = []  # the line has the first of them, and counts all
            report.noted = report.noted[:FIRST_SKIPS]

    def _ingest(self, task: UnitTask, counters: Counters) -> UnitLine:
        started = time.monotonic()
        if task.source.is_folder and not os.path.isdir(task.source.root):
            raise DataError("its folder is not there; every node has to have it at the same path")
        source = _Met(task.source, task.unit)
        version = self._run.target
        around, self._run.counters = self._run.counters, counters
        try:
            # What changes in a container changes that, so no picture in it is looked into.
            few = draw_from(1)[0] if task.source.is_folder else Sample(0)
            sample = None if self._check_content else few
            reconciler = Reconciler(version, source, self._run.counters, sample=sample)
            self._run.store_all(reconciler)
            missing = self._drop_gone(task, source) if task.unit.is_container else 0
        finally:
            self._run.counters = around
        reasons = Counter(skip["reason"] for skip in counters.report.skipped)
        return UnitLine(
            source=task.root,
            unit=task.name,
            digest=task.unit.digest,
            points=reconciler.n_points,
            missing=missing,
            skips=tuple(counters.report.skipped[:FIRST_SKIPS]),
            skipped=counted_reasons(reasons),
            seconds=round(time.monotonic() - started, 3),
            imret=__version__,
        )

    def _drop_gone(self, task: UnitTask, source: _Met) -> int:
        """Deal with what is stored of a container and no longer in it; return how much of it stays.

        It goes if that may be, but not where the container could not be read to its end, nor where it holds
        almost none of that any more.
        """
        version, counters, stored = self._run.target, self._run.counters, _of_unit(task)
        n_stored = version.count(stored)
        gone = [
            point.id
            for points in (version.scan(stored) if n_stored > len(source.met) or source.is_cut else ())
            for point in points
            if point.id not in source.met
        ]
        few_are_left = n_stored - len(gone) <= ALMOST_NONE * n_stored
        if gone and task.prune and not (source.is_cut or few_are_left):
            version.delete(gone)
            counters.count("removed", len(gone), progress=False)
            return 0
        if source.is_cut or (task.prune and gone):
            why = _CUT if source.is_cut else _ALMOST_NONE_LEFT
            for _ in gone:
                counters.keep(f"{task.source.root}/{task.unit.name}", why)
            return len(gone)
        counters.count("missing", len(gone), progress=False)
        return len(gone)


class _Met(PartSource):
    """A unit as a source that remembers which pictures it gave.

    Attributes:
        met: Their ids.
        is_cut: Whether there may be more of them, which could not be read.
    """

    def __init__(self, whole: Source, unit: Unit) -> None:
        super().__init__(whole, [unit])
        self.kind = "list"  # what other containers hold is nobody's question here
        self.unit = unit
        self.met: set[str] = set()
        self.is_cut = False

    def entries(self) -> Iterator[Entry]:
        """Yield what is in the unit. Raises as `Source.entries`."""
        for entry in super().entries():
            if isinstance(entry, Record):
                self.met.add(entry.id)
            elif isinstance(entry, Skipped) and (entry.unseen or entry.path == self.unit.name):
                self.is_cut = True
            yield entry


def give_back(ledger: Ledger, task: UnitTask) -> None:
    """Take an attempt back that did not end by the unit's fault; a ledger that is away is no error."""
    with suppress(StoreError):
        line = ledger.get(task.root, [task.name]).get(task.name)
        if line is not None and line.attempts_at(task.unit.digest) > 0:
            ledger.put([replace(line, attempts=line.attempts - 1)])


def _of_unit(task: UnitTask) -> Filter:
    return Filter(must=(Match("source", (task.root,)), Match("unit", (task.name,))))


def _too_often(attempts: int) -> str:
    return f"failed {attempts} times: it ended the process that ingested it"


def _kind(error: Exception) -> Failure:
    if isinstance(error, ChangedMeanwhile):
        return "changed"
    return "store" if isinstance(error, StoreError) else "unit"
