"""What an ingest did: counts, what was skipped and why, how fast, with which model, into which store."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imret.payload import printable


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
        moved: Pictures found at a new place; their vector was kept.
        removed: Points deleted because their file is gone (`--prune`), or because the same picture now
            stands elsewhere.
        missing: Points whose file is gone and that were kept, because `--prune` was not given.
        encoded: Pictures that went through the image tower.
        skipped: What could not be taken: path and reason, one entry each.
        ignored: What was left out on purpose, counted by reason.
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
    moved: int = 0
    removed: int = 0
    missing: int = 0
    encoded: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    complete: bool = False

    @property
    def images_per_s(self) -> float:
        """Pictures encoded and stored for each second of the whole run."""
        return self.encoded / self.seconds if self.seconds else 0.0

    @property
    def total(self) -> int:
        """Pictures met: stored now or before, or skipped."""
        return self.added + self.updated + self.unchanged + self.moved + len(self.skipped)

    def skip(self, source: str, path: str, reason: str) -> None:
        """Note a picture that could not be taken."""
        where = os.path.join(source, *path.split("/")) if path else source
        self.skipped.append({"path": printable(where), "reason": reason})

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-safe values, counts first."""
        values = asdict(self)
        long = {name: values.pop(name) for name in ("skipped", "ignored")}
        values["images_per_s"] = round(self.images_per_s, 2)
        values["seconds"] = round(self.seconds, 3)
        values["skipped"] = len(self.skipped)
        values["ignored"] = dict(long["ignored"])
        values["skips"] = long["skipped"]
        return values

    def write(self, file: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all.

        Raises:
            OSError: If the folder is missing or cannot be written.
        """
        target = Path(file)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(self.as_dict(), out, indent=2, ensure_ascii=False)
                out.write("\n")
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
