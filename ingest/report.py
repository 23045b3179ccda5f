"""What an ingest did: counts, what was skipped and why, how fast, with which model, into which store."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from imret.datasets.exclusion import PHOTO_LIBRARY
from imret.datasets.kinds import holds_picture, may_be_misnamed
from imret.datasets.scan import Ignored
from imret.escape import escape_undecodable
from imret.files import write_atomically
from imret.store import Collection, Store

# What is counted of pictures, and adds up.
COUNTS = (
    "added",
    "updated",
    "unchanged",
    "compared",
    "other_content",
    "moved",
    "removed",
    "missing",
    "left_out",
    "encoded",
    "unlisted",
)
_LOOKED_AT = 8  # of the files of each kind that is no picture by its name


@dataclass
class Unreached:
    """A folder or link whose pictures were kept, for it cannot be told whether they are gone.

    Attributes:
        folder: Its absolute path.
        reason: What is the matter with it: "is empty now".
        images: Points of pictures that lie there.
    """

    folder: str
    reason: str
    images: int = 0


@dataclass
class Report:
    """The account of one run; every picture that was met is in exactly one count.

    Attributes:
        collection: Name of the collection that was filled.
        store: Its address: a folder or a URL.
        engine: "embedded" or "server".
        model: Model id of the encoder.
        fingerprint: Fingerprint of the encoder.
        sources: Absolute folders that were walked.
        added: New pictures stored.
        updated: Pictures whose content or category changed since the last run.
        unchanged: Pictures that were there already; none of them was decoded.
        compared: Files of the size and time that are stored, whose content was compared: a few drawn at
            random, or all with `--check-content`.
        other_content: Those of them that had other content than is stored; it was renewed.
        moved: Pictures found at a new place; their vector was kept.
        removed: Points deleted because their file is gone (`--prune`), or because the same picture now
            stands elsewhere.
        missing: Points whose file is gone and that were kept, because `--prune` was not given.
        left_out: Points that were kept, because `--prune` was not given, of pictures that are left out now:
            in a folder of a system, say, or excluded.
        out_of_reach: Points that were kept because it cannot be told whether their file is gone, by the
            folder or link in the way: an empty folder, a link that leads nowhere, what cannot be read.
        taken_over: Pictures of other sources that are those of a walked folder now, by source: one that has
            moved there, or that lies within. They keep their vectors, and are counted as any other, too.
        notes: What else is to be told about the sources of the collection.
        encoded: Pictures that went through the image tower.
        encoding_s: From when the model was loaded until the last of them had.
        categories: Pictures by category, most first, as they were counted at a glance before the run.
        dry_run: Whether nothing was done: the counts are what a run would do.
        skipped: What could not be taken: path and reason, one entry each.
        noted: Pictures that were taken of which something is to be known, such as that their last rows are
            missing: path and note, one entry each note. Told when they are decoded, so once.
        ignored: What was left out on purpose, counted by reason.
        misnamed: Some of that which are pictures by their content: of those whose names do not tell what they
            are a few of each kind are looked at.
        photo_libraries: Of that, the folders that a photo program manages.
        without_pictures: What is to be said of folders that hold no picture, while others do.
        unlisted: More of what could not be taken: of a source by units, the first of each unit are listed.
        units: Where sources were ingested by units, how many were "ingested", "done before" and "failed".
        failed_units: Units that could not be ingested: unit and reason, one entry each.
        seconds: Wall time of the run.
        complete: False if the run was stopped before its end.
    """

    collection: str
    store: str
    engine: str
    model: str
    fingerprint: str
    sources: list[str]
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    compared: int = 0
    other_content: int = 0
    moved: int = 0
    removed: int = 0
    missing: int = 0
    left_out: int = 0
    out_of_reach: list[Unreached] = field(default_factory=list)
    taken_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    encoded: int = 0
    encoding_s: float = 0.0
    categories: dict[str, int] = field(default_factory=dict)
    dry_run: bool = False
    skipped: list[dict[str, str]] = field(default_factory=list)
    noted: list[dict[str, str]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    misnamed: list[str] = field(default_factory=list)
    photo_libraries: list[str] = field(default_factory=list)
    without_pictures: list[str] = field(default_factory=list)
    unlisted: int = 0
    units: dict[str, int] = field(default_factory=dict)
    failed_units: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False

    @property
    def images_per_s(self) -> float:
        """Pictures encoded a second, once the model was loaded; 0 where none was."""
        return self.encoded / self.encoding_s if self.encoding_s else 0.0

    @property
    def total(self) -> int:
        """Pictures met: stored now or before, or skipped."""
        return self.added + self.updated + self.unchanged + self.moved + self.n_skipped

    @property
    def n_skipped(self) -> int:
        """Pictures that could not be taken, listed or not."""
        return len(self.skipped) + self.unlisted

    @property
    def n_noted(self) -> int:
        """Pictures of which something is noted."""
        return len({note["path"] for note in self.noted})

    def count_unit(self, how: str) -> None:
        """Count a unit that ended so."""
        self.units[how] = self.units.get(how, 0) + 1

    def add(self, part: Report) -> None:
        """Take in what a part of the run did and found."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.encoding_s += part.encoding_s
        self.notes += part.notes
        self.skipped += part.skipped
        self.noted += part.noted
        self.misnamed += part.misnamed
        self.photo_libraries += part.photo_libraries
        self.out_of_reach += part.out_of_reach
        self.failed_units += part.failed_units
        for mine, more in ((self.ignored, part.ignored), (self.units, part.units)):
            for what, n in more.items():
                mine[what] = mine.get(what, 0) + n

    def blank(self) -> Report:
        """Return a report of the same run that nothing was counted into yet."""
        return Report(self.collection, self.store, self.engine, self.model, self.fingerprint, self.sources)

    def add_later(self, later: Report) -> None:
        """Take in what a second walk of the same folders did and found."""
        for name in ("added", "updated", "moved", "removed", "encoded"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.encoding_s = max(self.encoding_s, later.encoding_s)
        self.missing, self.left_out = later.missing, later.left_out
        self.out_of_reach = later.out_of_reach
        self.skipped += [skip for skip in later.skipped if skip not in self.skipped]
        self.failed_units += [one for one in later.failed_units if one not in self.failed_units]
        self.noted += [note for note in later.noted if note not in self.noted]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-safe values; "skipped", "noted" and "out_of_reach" count, others list."""
        values = asdict(self)
        values["unreached"] = values.pop("out_of_reach")
        values["out_of_reach"] = sum(one.images for one in self.out_of_reach)
        values["images_per_s"] = round(self.images_per_s, 2)
        values["seconds"] = round(self.seconds, 3)
        values["encoding_s"] = round(self.encoding_s, 3)
        values["skips"] = values.pop("skipped")
        values["skipped"] = self.n_skipped
        del values["unlisted"]
        values["picture_notes"] = values.pop("noted")
        values["noted"] = self.n_noted
        return values

    def write(self, file: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all; into a device or a pipe, if that is one.

        Raises:
            OSError: If the folder is missing or cannot be written.
        """
        write_atomically(file, json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", in_place=True)


class Counters:
    """Counts into a report from any thread, and says so to whoever draws the progress bar.

    Args:
        report: What to count into.
        on_progress: Called with a number of pictures that are dealt with.
    """

    def __init__(self, report: Report, on_progress: Callable[[int], object] | None = None) -> None:
        self.report = report
        self._on_progress = on_progress or (lambda n: None)
        self._lock = threading.Lock()  # the scan, the encoder and the store all count

    def part(self) -> Counters:
        """Return what counts a part of the run into a report of its own, and goes on drawing the bar."""
        return Counters(self.report.blank(), self._on_progress)

    def advance(self, n: int) -> None:
        """Have the bar go on by pictures that were counted elsewhere."""
        with self._lock:
            self._on_progress(n)

    def count(self, what: str, n: int = 1, *, progress: bool = True) -> None:
        """Add n to one of the report's counts."""
        with self._lock:
            setattr(self.report, what, getattr(self.report, what) + n)
            if progress:
                self._on_progress(n)

    def count_encoded(self, n: int, *, seconds: float) -> None:
        """Add n pictures that went through the model, of which so many seconds ago nothing had."""
        with self._lock:
            self.report.encoded += n
            self.report.encoding_s = max(self.report.encoding_s, seconds)

    def skip(self, source: str, path: str, reason: str) -> None:
        """Note a picture that could not be taken; an empty path is the source itself."""
        with self._lock:
            self.report.skipped.append({"path": _shown(source, path), "reason": reason})
            self._on_progress(1)

    def note(self, source: str, path: str, notes: Sequence[str]) -> None:
        """Note what is to be known of a picture that was taken; it is counted as such elsewhere."""
        with self._lock:
            self.report.noted += [{"path": _shown(source, path), "note": note} for note in notes]

    def keep(self, folder: str, reason: str) -> None:
        """Note a point that is kept because of a folder or link that cannot be looked into."""
        shown = escape_undecodable(folder)
        with self._lock:
            for one in self.report.out_of_reach:
                if (one.folder, one.reason) == (shown, reason):
                    break
            else:
                one = Unreached(shown, reason)
                self.report.out_of_reach.append(one)
            one.images += 1

    def ignore(self, source: str, entry: Ignored) -> None:
        """Note something that was left out on purpose."""
        with self._lock:
            self.report.ignored[entry.reason] = self.report.ignored.get(entry.reason, 0) + 1
            n = self.report.ignored[entry.reason]
        file = os.path.join(source, entry.path)
        if entry.reason == PHOTO_LIBRARY:
            self.report.photo_libraries.append(escape_undecodable(file))
        elif n <= _LOOKED_AT and may_be_misnamed(entry.reason) and holds_picture(file):
            self.report.misnamed.append(escape_undecodable(file))


def empty_report(store: Store, version: Collection, roots: Sequence[str]) -> Report:
    """Return the account of a run that has not begun.

    Args:
        store: Where it stores.
        version: What it fills.
        roots: Its folders, absolute.
    """
    return Report(
        collection=version.name,
        store=store.address,
        engine=store.engine,
        model=version.identity.model,
        fingerprint=version.identity.fingerprint,
        sources=[escape_undecodable(root) for root in roots],
    )


def _shown(source: str, path: str) -> str:
    return escape_undecodable(os.path.join(source, *path.split("/")) if path else source)
