"""A source by units: what the ledger knows as done is not opened, the others are handed out, largest first.

The ledger is a shortcut: where fewer points are stored than it says, every unit is looked into. Hides
listing, summing up, failures, and what is stored of units that are not there any more. Who does the work is
told by `Hands`: this process, or actors on many machines (`ingest.spread`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from imret.errors import StoreUnavailable
from imret.escape import escape_undecodable
from imret.sources.presence import OutOfReach
from imret.sources.stored import count_source
from imret.store import Filter, Match, Store
from imret.store.collection import changed_meanwhile
from imret.store.ledger import Ledger, UnitLine
from ingest.pipeline import Run
from ingest.reconcile import Reconciler, Totals
from ingest.sources import Source, Unit
from ingest.unit_work import UnitResult, UnitTask, UnitWorker

_LOOK_UP = 256  # units in the ledger at a time
_TRIES = 3  # at a unit while the store does not do what it is asked to
_STORE_FAILURES = 10  # in a row: then it is the store, and not a unit
_LISTED_SKIPS = 10_000  # of a run; beyond that they are only counted


class Hands(Protocol):
    """Those who do the work of a run."""

    def results(self, tasks: Iterator[UnitTask]) -> Generator[UnitResult, None, None]:
        """Do each task, some at a time, and yield how it ended.

        The next task is taken when somebody is free for it. Closing the iterator ends what is in work.
        """


@dataclass
class OwnHands:
    """This process, one unit after the other."""

    worker: UnitWorker

    def results(self, tasks: Iterator[UnitTask]) -> Generator[UnitResult, None, None]:
        for task in tasks:
            yield self.worker.ingest(task)


class ByUnits:
    """Brings a version in line with sources unit by unit: what `ingest` does for each source otherwise.

    Args:
        store: Where the version is.
        check_units: Look into every unit, also into those that are done by the ledger, and those that have
            ended their process too often.
        hands: Gives those who do the work of a run; None for this process.
    """

    def __init__(
        self, store: Store, *, check_units: bool = False, hands: Callable[[Run], Hands] | None = None
    ) -> None:
        self._store, self._hands = store, hands
        self._check_units = check_units

    @property
    def is_elsewhere(self) -> bool:
        """Whether others do the work, so that this process needs no device."""
        return self._hands is not None

    def takes(self, source: Source) -> bool:
        """Whether a source is ingested by units: all but a folder of this machine that one process reads."""
        return self._hands is not None or not source.is_folder

    def reconcile(self, run: Run, source: Source, *, check_content: bool, prune: bool) -> Reconciler:
        """Ingest the units of a source that are not done; return what stands for all of it.

        Raises:
            StoreUnavailable: If the store stays away.
            ChangedMeanwhile: If another program has replaced the version.
        """
        reconciler = Reconciler(run.target, source, run.counters, sample=None, hashes_new=False)
        hands = None if self._hands is None else self._hands(run)
        pass_ = _Pass(self._store, run, source, hands, check_content=check_content, prune=prune)
        totals = pass_.ingest(check_units=self._check_units)
        if pass_.n_taken_on_trust and count_source(run.target, source.root) < totals.points:
            run.counters.report.notes.append(
                f"fewer pictures of {escape_undecodable(source.root)} are stored than its units had when "
                "they were ingested; all of them are looked into"
            )
            totals = pass_.ingest(check_units=True)
        run.counters.report.add(pass_.counters.report)
        for one in getattr(source, "skipped", ()):
            run.counters.skip(source.root, one.path, one.reason)
        reconciler.note_added(totals.points)
        reconciler.units = totals
        return reconciler

    def prune(self, reconciler: Reconciler, *, missing: bool) -> None:
        """Deal with what is stored of units that are not listed any more; call it when all is stored.

        Args:
            reconciler: From `reconcile`.
            missing: Whether that may go.
        """
        totals, target = reconciler.units, reconciler.target
        assert totals is not None
        root = escape_undecodable(reconciler.source.root)
        ledger = self._store.ledger(target.name, target.version)
        if totals.listed:
            for lines in ledger.scan(root):
                if stale := [line.unit for line in lines if line.unit not in totals.listed]:
                    ledger.forget(root, stale)
        if totals.has_slices:
            reconciler.prune(missing=missing)
        elif totals.listed and count_source(target, reconciler.source.root) > totals.points:
            stored = target.facet("unit", Filter(must=(Match("source", (root,)),)))
            for unit in sorted(stored.keys() - totals.listed):
                self._prune_unit(reconciler, unit, stored[unit], missing=missing)

    def _prune_unit(self, reconciler: Reconciler, unit: str, n_points: int, *, missing: bool) -> None:
        """Deal with what is stored of a container that was not listed: gone, or not among those meant."""
        target, root = reconciler.target, reconciler.source.root
        (state,) = reconciler.source.presence([f"{unit}/"]).values()
        if isinstance(state, OutOfReach):
            for _ in range(n_points):
                reconciler.counters.keep(f"{root}/{state.folder}".rstrip("/"), state.reason)
        elif state == "gone" and missing:
            only = Filter(must=(Match("source", (escape_undecodable(root),)), Match("unit", (unit,))))
            for points in target.scan(only):
                target.delete([point.id for point in points])
            reconciler.counters.count("removed", n_points, progress=False)
        elif state == "gone":
            reconciler.counters.count("missing", n_points, progress=False)


class _Pass:
    """Walks once over the units of a source.

    Attributes:
        n_taken_on_trust: Units that were not opened, because the ledger knows them as done.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        source: Source,
        hands: Hands | None,
        *,
        check_content: bool,
        prune: bool,
    ) -> None:
        self._prune = prune
        self._run, self._source = run, source
        self.counters = run.counters.part()
        self._ledger: Ledger = store.ledger(run.target.name, run.target.version)
        worker = UnitWorker(run, self._ledger, check_content=check_content)
        self._hands = OwnHands(worker) if hands is None else hands
        self._is_elsewhere = hands is not None
        self._address = store.address
        self.n_taken_on_trust = 0

    def ingest(self, *, check_units: bool) -> Totals:
        self._totals, self._again = Totals(), list[UnitTask]()
        self.counters = self._run.counters.part()
        self._tries: dict[str, int] = {}
        self._failures_in_row = self.n_taken_on_trust = 0
        # Of an iterator whose end is not reached, what is in work is ended.
        tasks = self._tasks(check_units=check_units)
        while True:
            self._again.clear()
            with closing(self._hands.results(tasks)) as results:
                for result in results:
                    self._take(result)
            if not self._again:
                return self._totals
            tasks = iter(list(self._again))

    def _tasks(self, *, check_units: bool) -> Iterator[UnitTask]:
        """Yield what is not done: slices as they are listed, containers when all are, the largest first."""
        root = escape_undecodable(self._source.root)
        containers: list[Unit] = []
        for units in _in_batches(self._source.units()):
            names = [escape_undecodable(unit.name) for unit in units]
            self._totals.listed.update(names)
            self._totals.has_slices |= not all(unit.is_container for unit in units)
            lines = self._ledger.get(root, names)
            for unit, name in zip(units, names, strict=True):
                line = lines.get(name)
                if not check_units and line is not None and self._is_done(unit, line):
                    self._count_done(line)
                elif unit.is_container:
                    containers.append(unit)
                else:
                    yield UnitTask(self._source, unit, anew=check_units, prune=self._prune)
        containers.sort(key=lambda unit: -unit.size_bytes)
        for unit in containers:
            yield UnitTask(self._source, unit, anew=check_units, prune=self._prune)

    def _is_done(self, unit: Unit, line: UnitLine) -> bool:
        """Whether nothing is to be done for a unit: it may have to lose what was kept as missing."""
        return line.state(unit.digest) == "done" and not (self._prune and line.missing)

    def _count_done(self, line: UnitLine) -> None:
        self.n_taken_on_trust += 1
        self._totals.points += line.points
        self.counters.count("unchanged", line.points)
        self.counters.count("missing", line.missing, progress=False)
        self.counters.report.count_unit("done before")
        self._note_skips(line)

    def _take(self, result: UnitResult) -> None:
        """Add up how a unit ended.

        Raises:
            StoreUnavailable: If it ended by the store's fault, as too many before it.
            ChangedMeanwhile: If another program has replaced the version.
        """
        report = self.counters.report
        if result.failure == "changed":
            raise changed_meanwhile(self._run.target.name, self._address)
        if result.failure == "store":
            self._failures_in_row += 1
            if self._failures_in_row >= _STORE_FAILURES:
                raise StoreUnavailable(
                    f"{self._failures_in_row} units in a row could not be stored; the last one said: "
                    f"{result.error}\nWhat is done stays: run the same command again."
                )
            tries = self._tries[result.task.name] = self._tries.get(result.task.name, 0) + 1
            if tries < _TRIES:
                self._again.append(result.task)
                return
        else:
            self._failures_in_row = 0
        report.add(result.report)
        if self._is_elsewhere:
            self.counters.advance(result.report.total)
        if result.line.points:
            self._run.on_stored()
        if result.failure:
            report.count_unit("failed")
            unit = f"{result.task.root}/{result.task.name}"
            report.failed_units.append({"unit": unit, "reason": result.error})
        else:
            report.count_unit("ingested")
        # Of one that failed half way, what the ledger knows from before is stored as well, or more.
        self._totals.points += result.line.points
        self._note_skips(result.line)

    def _note_skips(self, line: UnitLine) -> None:
        report = self.counters.report
        listed = line.skips[: max(0, _LISTED_SKIPS - len(report.skipped))]
        report.skipped += [dict(skip) for skip in listed]
        report.unlisted += line.n_skipped - len(listed)


def states_of(ledger: Ledger, source: Source) -> Iterator[tuple[Unit, UnitLine | None]]:
    """Yield each unit of a source with what is known of it."""
    root = escape_undecodable(source.root)
    for units in _in_batches(source.units()):
        names = [escape_undecodable(unit.name) for unit in units]
        lines = ledger.get(root, names)
        yield from ((unit, lines.get(name)) for unit, name in zip(units, names, strict=True))


def _in_batches(units: Iterable[Unit]) -> Iterator[Sequence[Unit]]:
    listing = iter(units)
    return iter(lambda: list(islice(listing, _LOOK_UP)), [])
