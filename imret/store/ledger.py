"""What is known of the units of a collection's sources: shards, or slices of a listing, that were ingested.

A shortcut for whoever fills the collection, and never the truth: that is the points. Without it a run ends in
the same collection, and only takes longer. Hides how a line of it becomes a row or a point.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from imret.escape import escape_undecodable

FIRST_SKIPS = 20  # of each unit these are listed, and all are counted by their reason
MOST_ATTEMPTS = 3  # so often a unit may end the process that ingests it
_MOST_REASONS = 50
_OTHERS = "other reasons"
_SPACE = uuid.UUID("0f5c1d5e-7f0e-4a43-9d0b-6a3a0d5f2c77")

UnitState: TypeAlias = Literal["done", "changed", "failed", "begun", "never begun"]


@dataclass(frozen=True)
class UnitLine:
    """What is known of a unit.

    Attributes:
        source: As the collection names it.
        unit: Its name within the source.
        digest: Of the unit as it was when it was last ingested to its end; "" if it never was.
        points: That it had then.
        missing: Pictures that are stored and were no longer in it.
        skips: The first pictures of it that could not be taken then: path and reason.
        skipped: How many they were, by reason.
        seconds: That it took.
        imret: The version that did it.
        attempted: Digest of the unit as it was when it was last begun.
        attempts: How often it was begun so by a process that did not live to say how it ended.
        error: Why it last failed, where the process did; "" if it did not.
    """

    source: str
    unit: str
    digest: str = ""
    points: int = 0
    missing: int = 0
    skips: tuple[Mapping[str, str], ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    imret: str = ""
    attempted: str = ""
    attempts: int = 0
    error: str = ""

    @property
    def id(self) -> str:
        """Always the same for one unit: a UUID."""
        return line_id(self.source, self.unit)

    @property
    def n_skipped(self) -> int:
        """Pictures that could not be taken."""
        return sum(self.skipped.values())

    def attempts_at(self, digest: str) -> int:
        """Return how often the unit was begun as it is now, without an end that is known."""
        return self.attempts if self.attempted == digest else 0

    def state(self, digest: str) -> UnitState:
        """Return what is known of the unit as it is now."""
        if self.digest == digest:
            return "done"
        if self.attempted == digest and (self.error or self.attempts >= MOST_ATTEMPTS):
            return "failed"
        if self.attempted == digest:
            return "begun"
        return "changed" if self.digest else "never begun"

    def as_dict(self) -> dict[str, Any]:
        """Return the line as JSON-safe values."""
        return {**asdict(self), "skips": [dict(skip) for skip in self.skips], "skipped": dict(self.skipped)}


class Ledger(Protocol):
    """The lines of one version of a collection. Safe to use from many threads and programs.

    Every method may raise StoreError. Lines that cannot be read are as if they were not there.
    """

    def get(self, source: str, units: Sequence[str]) -> dict[str, UnitLine]:
        """Return what is known of some units of a source, by name."""

    def scan(self, source: str) -> Iterator[list[UnitLine]]:
        """Yield what is known of all units of a source, in batches."""

    def put(self, lines: Sequence[UnitLine]) -> None:
        """Store lines, in the place of those of the same units; they survive the death of every process."""

    def forget(self, source: str, units: Sequence[str] | None = None) -> None:
        """Remove the lines of some units of a source, or of all; those that are not there are no error."""


def line_id(source: str, unit: str) -> str:
    """Return the id of the line of a unit: a UUID, always the same."""
    return str(uuid.uuid5(_SPACE, f"{escape_undecodable(source)}\0{escape_undecodable(unit)}"))


def line_of(content: Mapping[str, Any] | None) -> UnitLine | None:
    """Return a line as `UnitLine.as_dict` gave it; None for what is no such line."""
    try:
        assert content is not None
        return UnitLine(
            source=str(content["source"]),
            unit=str(content["unit"]),
            digest=str(content["digest"]),
            points=int(content["points"]),
            missing=int(content["missing"]),
            skips=tuple({str(k): str(v) for k, v in skip.items()} for skip in content["skips"]),
            skipped={str(reason): int(n) for reason, n in content["skipped"].items()},
            seconds=float(content["seconds"]),
            imret=str(content["imret"]),
            attempted=str(content["attempted"]),
            attempts=int(content["attempts"]),
            error=str(content["error"]),
        )
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        return None


def counted_reasons(reasons: Mapping[str, int]) -> dict[str, int]:
    """Return counts by reason, of which there are not too many: the most frequent, and the rest as one."""
    ranked = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(ranked) <= _MOST_REASONS:
        return dict(ranked)
    return {**dict(ranked[:_MOST_REASONS]), _OTHERS: sum(n for _, n in ranked[_MOST_REASONS:])}
