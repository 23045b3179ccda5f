"""Near copies among hits folded into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from imret.errors import ImageError
from imret.store import Point
from imret.store.payload import file_of

_LOOK_SIZE = (252, 252)  # what the limits of imret.images.phash were measured at


def fold_near_copies(points: Sequence[Point]) -> list[tuple[Point, int]]:
    """Return the best of every group of near copies, in order, and how many others each stands for.

    Copies have the same bytes, or look alike by `imret.images.phash`, whose judgement of photos saved anew,
    smaller or brighter is better than that of an encoder. Files that cannot be read have their bytes alone.
    """
    from concurrent.futures import ThreadPoolExecutor

    from imret.images.decode import load_image
    from imret.images.phash import ImageHash, cluster, compute_hash, near_duplicates
    from imret.images.resize import fit_image

    def hash_of(point: Point) -> ImageHash | None:
        try:
            return compute_hash(np.asarray(fit_image(load_image(file_of(point.payload)), size=_LOOK_SIZE)))
        except ImageError:
            return None

    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(hash_of, points))
    readable = [i for i, hash in enumerate(hashes) if hash is not None]
    near = near_duplicates([hash for hash in hashes if hash is not None])
    pairs = [(readable[i], readable[j]) for i, j in near]
    by_hash: dict[str, int] = {}
    for i, point in enumerate(points):
        first = by_hash.setdefault(str(point.payload.get("sha256", point.id)), i)
        pairs += [(first, i)] if first != i else []
    groups = cluster(len(points), pairs)
    sizes = Counter(groups.tolist())
    return [(point, sizes[i] - 1) for i, point in enumerate(points) if groups[i] == i]
