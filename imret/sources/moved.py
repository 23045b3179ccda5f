"""Whether a folder holds the pictures of a source, which has moved there then: told by a sample's content."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from imret.datasets.scan import Picture, walk
from imret.escape import escape_undecodable
from imret.files import sha256_if_readable
from imret.store import Collection, Filter, Match, Point
from imret.store.payload import path_of

SAMPLE = 32  # pictures of a source that are looked for
NEARLY_ALL = 0.9  # of the sample: some may have been edited or deleted since
_TRIES = 8  # files of one size that are read to find a picture at another place


@dataclass(frozen=True)
class Agreement:
    """How many pictures of a source a folder holds.

    Attributes:
        sampled: Pictures that were looked for.
        found: Those whose content is in the folder.
        stored: Those that the collection holds as pictures of that folder already.
        below: Where below the folder (nearly) all of them lie as they lay below the source: empty for the
            folder itself, and where they were re-arranged.
    """

    sampled: int
    found: int
    stored: int
    below: str = ""

    @property
    def moved(self) -> bool:
        """Whether the folder is the source, at another place."""
        return self.sampled > 0 and self.found >= NEARLY_ALL * self.sampled

    @property
    def settled(self) -> bool:
        """Whether the collection holds the folder's pictures as well as the source's: one is too many."""
        return self.sampled > 0 and self.stored >= NEARLY_ALL * self.sampled


def compare(collection: Collection, source: str, folder: str, *, anywhere: bool = True) -> Agreement:
    """Look for a sample of a source's pictures in a folder.

    At most `SAMPLE` pictures are read where they are where they were below the source. For those that are
    not, the folder is walked once, and files of the same size are read.

    Args:
        collection: Holds the source.
        source: As the collection names it.
        folder: Absolute, as `os.path.realpath` gives it.
        anywhere: Look also where they were not before.
    """
    # Ids are hashes of places, so the first ones are as good as drawn.
    sample = next(iter(collection.scan(of_source(source), batch_size=SAMPLE)), [])
    held = _contents_held(collection, escape_undecodable(folder), {_content(point) for point in sample})
    n_stored = sum(_content(point) in held for point in sample)
    if n_stored >= NEARLY_ALL * len(sample):
        return Agreement(len(sample), n_stored, n_stored)
    missing = [point for point in sample if not _is_at(point, os.path.join(folder, path_of(point.payload)))]
    n_here = len(sample) - len(missing)
    elsewhere = _find_elsewhere(missing, folder) if anywhere and missing else []
    below = ""
    if not n_here and elsewhere:
        below, n_below = Counter(elsewhere).most_common(1)[0]
        below = below if n_below >= NEARLY_ALL * len(sample) else ""
    return Agreement(len(sample), n_here + len(elsewhere), n_stored, below)


def of_source(source: str) -> Filter:
    """Return the filter for the points of one source, as the collection names it."""
    return Filter(must=(Match("source", (source,)),))


def _contents_held(collection: Collection, source: str, digests: set[str]) -> set[str]:
    """Return which contents the collection holds as pictures of a source, wherever they lie in it."""
    found: set[str] = set()
    if digests:
        mine = Filter(must=(Match("source", (source,)), Match("sha256", tuple(sorted(digests)))))
        for points in collection.scan(mine):
            found.update(_content(point) for point in points)
            if found == digests:
                break
    return found


def _content(point: Point) -> str:
    return str(point.payload.get("sha256"))


def _is_at(point: Point, file: str) -> bool:
    try:
        if os.stat(file).st_size != point.payload.get("size_bytes"):
            return False
    except OSError:
        return False
    return sha256_if_readable(file) == _content(point)


def _find_elsewhere(points: list[Point], folder: str) -> list[str]:
    """Look for pictures anywhere in a folder: one that was re-arranged, or that the source lies within now.

    Returns:
        For each that is there the path that stands before its old one; empty where that has changed.
    """
    wanted: dict[object, dict[str, list[str]]] = {}
    for point in points:
        same_size = wanted.setdefault(point.payload.get("size_bytes"), {})
        same_size.setdefault(_content(point), []).append(path_of(point.payload))
    tries = {size: _TRIES * len(digests) for size, digests in wanted.items()}
    found: list[str] = []
    with suppress(OSError):  # the folder has gone
        for entry in walk(folder):
            if not isinstance(entry, Picture) or not tries.get(entry.size_bytes):
                continue
            tries[entry.size_bytes] -= 1
            same_size = wanted[entry.size_bytes]
            for old in same_size.pop(sha256_if_readable(entry.file_in(folder)) or "", []):
                found.append(entry.path[: -len(old) - 1] if entry.path.endswith(f"/{old}") else "")
            if not same_size:
                del tries[entry.size_bytes]
            if not tries:
                break
    return found
