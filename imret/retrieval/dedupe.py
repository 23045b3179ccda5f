"""Near copies among hits folded into one."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from imret.abandon import check_wanted
from imret.errors import ImageError
from imret.images.phash import ImageHash, cluster, compute_hash
from imret.sources.opened import Door, own_door
from imret.store import Point

# One search looks at twice as many hits as it was asked for, and at so many more at most. Copies by the
# thousand would otherwise have it decode them all, to find one picture.
MAX_FURTHER = 1_000

_LOOK_SIZE = (252, 252)  # what the limits of imret.images.phash were measured at
_MAX_WORKERS = 8
_LOOKS_AT_ONCE = 32  # before it is asked whether anybody still waits for the search


class NearCopies:
    """Folds the near copies among the hits of one search, which asks for more until it has enough.

    Looks at each file once, and once at files of the same bytes. Not safe to use from several threads; all
    together decode `_MAX_WORKERS` at a time.

    Attributes:
        compared: How many hits a ranking had been followed for when it was followed no further, though it
            goes on and gave less than was wanted; 0 if that did not happen.
        refused: Buckets whose pictures were not looked at, for no URL names them.
    """

    def __init__(self, door: Door | None = None) -> None:
        """Look at nothing yet.

        Args:
            door: Opens the pictures; None for `own_door`.
        """
        self._door = door or own_door()
        self._hashes: dict[str, ImageHash | None] = {}  # by SHA-256 of the bytes; None: nothing can be read
        self._further = MAX_FURTHER
        self._tried: set[str] = set()  # ids
        self.compared = 0
        self.refused: set[str] = set()

    def widen(self, n_asked: int) -> int:
        """Return how many hits to look at where so many fold into too few: no more if there were enough."""
        further = min(3 * n_asked, self._further)
        self._further -= further
        if not further:
            self.compared = max(self.compared, n_asked)
        return n_asked + further

    def fold(self, points: Sequence[Point]) -> list[tuple[Point, int]]:
        """Return the best of every group of near copies, in order, and how many others each stands for.

        Copies have the same bytes, or look alike by `imret.images.phash`, whose judgement of photos saved
        anew, smaller or brighter is better than that of an encoder. Files that cannot be read have their
        bytes alone.
        """
        content = [str(point.payload.get("sha256", point.id)) for point in points]
        firsts: dict[str, int] = {}
        for i, sha256 in enumerate(content):
            firsts.setdefault(sha256, i)
        self._look([(sha256, point) for sha256, point in zip(content, points, strict=True)])
        seen = [sha256 for sha256 in firsts if self._hashes[sha256] is not None]
        groups = cluster([hash for sha256 in seen if (hash := self._hashes[sha256]) is not None])
        best = {sha256: firsts[seen[group]] for sha256, group in zip(seen, groups.tolist(), strict=True)}
        sizes = Counter(best.get(sha256, firsts[sha256]) for sha256 in content)
        return [(point, sizes[i] - 1) for i, point in enumerate(points) if sizes[i]]

    def _look(self, points: Sequence[tuple[str, Point]]) -> None:
        """Hash what is new; of several files of the same bytes the next where one cannot be read."""
        while True:
            first: dict[str, Point] = {}
            for sha256, point in points:
                if self._hashes.get(sha256) is None and point.id not in self._tried:
                    first.setdefault(sha256, point)
            if not first:
                return
            waiting = list(first.items())
            for at in range(0, len(waiting), _LOOKS_AT_ONCE):
                check_wanted()
                some = waiting[at : at + _LOOKS_AT_ONCE]
                hashes = _pool(os.getpid()).map(self._hash_of, (point for _, point in some))
                self._hashes |= zip((sha256 for sha256, _ in some), hashes, strict=True)
                self._tried |= {point.id for _, point in some}

    def _hash_of(self, point: Point) -> ImageHash | None:
        from imret.images.decode import load_to_cover
        from imret.images.decode_memory import DECODE_MEMORY, released
        from imret.images.resize import fit_image

        if refused := self._door.refusal(point.payload):
            self.refused.add(refused)
            return None
        try:
            with self._door.open(point.payload) as file, DECODE_MEMORY.reserving() as reserve:
                reduced = load_to_cover(file, max(_LOOK_SIZE), reserve=reserve)
                with released(reduced.image):
                    return compute_hash(fit_image(reduced.image, size=_LOOK_SIZE, reduced=reduced))
        except ImageError:
            return None


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of all searches of a process: those of a server would each bring their own.

    A forked child inherits the object, and none of the threads.
    """
    return ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1), "imret-look")
