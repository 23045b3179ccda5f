"""Near copies among hits folded into one."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imret.errors import ImageError
from imret.images.phash import ImageHash, cluster, compute_hash, near_duplicates
from imret.store import Point
from imret.store.payload import file_of

_LOOK_SIZE = (252, 252)  # what the limits of imret.images.phash were measured at
_MAX_WORKERS = 8  # each holds a decoded picture


class NearCopies:
    """Folds the near copies among the hits of one search, which asks for more until it has enough.

    Looks at each file once. Not safe to use from several threads; all together decode `_MAX_WORKERS` at a
    time.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, ImageHash | None] = {}  # by id of the point; None where nothing can be read

    def fold(self, points: Sequence[Point]) -> list[tuple[Point, int]]:
        """Return the best of every group of near copies, in order, and how many others each stands for.

        Copies have the same bytes, or look alike by `imret.images.phash`, whose judgement of photos saved
        anew, smaller or brighter is better than that of an encoder. Files that cannot be read have their
        bytes alone.
        """
        new = [point for point in points if point.id not in self._hashes]
        self._hashes |= zip((point.id for point in new), _pool(os.getpid()).map(_hash_of, new), strict=True)
        hashes = {i: hash for i, point in enumerate(points) if (hash := self._hashes[point.id]) is not None}
        readable = list(hashes)
        pairs = [(readable[i], readable[j]) for i, j in near_duplicates(list(hashes.values()))]
        by_hash: dict[str, int] = {}
        for i, point in enumerate(points):
            first = by_hash.setdefault(str(point.payload.get("sha256", point.id)), i)
            pairs += [(first, i)] if first != i else []
        groups = cluster(len(points), pairs)
        sizes = Counter(groups.tolist())
        return [(point, sizes[i] - 1) for i, point in enumerate(points) if groups[i] == i]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of all searches of a process: those of a server would each bring their own.

    A forked child inherits the object, and none of the threads.
    """
    return ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1), "imret-look")


def _hash_of(point: Point) -> ImageHash | None:
    from imret.images.decode import load_image
    from imret.images.resize import fit_image

    try:
        return compute_hash(np.asarray(fit_image(load_image(file_of(point.payload)), size=_LOOK_SIZE)))
    except ImageError:
        return None
