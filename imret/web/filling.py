"""What a server tells of an ingest that runs in it: the page shows it, who fills the collection knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

State = Literal["none", "running", "done", "stopped", "failed"]
Stage = Literal["", "folders", "model", "pictures", "index"]


@dataclass(frozen=True)
class FillingProgress:
    """How far an ingest is.

    Attributes:
        state: "none" where there is none, and there was none; "failed" with `error`.
        stage: What a running one is at: looking at its folders, finding its model, the pictures, the index.
        collection: Name of the collection that it fills.
        folders: What it takes pictures from.
        done: Pictures that are dealt with: stored, stored before, or not taken.
        total: How many there seem to be; None while that is not known.
        images_per_s: Lately; None while nothing can be said.
        seconds_left: By that; None while nothing can be said.
        error: Why it has failed, in a sentence.
        counts: Of one that has ended: added, updated, moved, unchanged, skipped, missing.
        not_taken: Some of those that were skipped, a path and a reason each.
        left_out: What was left out on purpose, in words; empty if nothing was.
        notes: What else is to be told.
    """

    state: State = "none"
    stage: Stage = ""
    collection: str = ""
    folders: Sequence[str] = ()
    done: int = 0
    total: int | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    error: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    not_taken: Sequence[Mapping[str, str]] = ()
    left_out: str = ""
    notes: Sequence[str] = ()


class Filling(Protocol):
    """An ingest in a thread of this process."""

    def progress(self) -> FillingProgress:
        """Return how far it is now; from any thread."""

    def stop(self) -> None:
        """Have it end soon, wherever it is; what it stored stays. Returns at once."""

    def join(self) -> None:
        """Wait a moment for it to have ended, and say where it stands if that is not at its end."""
