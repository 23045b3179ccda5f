"""Vectors, filters and queries that are hard on purpose, and what an exact search finds: for `index.py`.

Two thousand overlapping clusters in every dimension there is, with a spectrum that falls off slowly: at equal
numbers the nearest is further off, and the local dimension higher, than among real embeddings of photos. Half
of the queries are drawn as the points are; the others are to them as texts are to photos: moved off by a
vector of their own kind, and blurred. A filter keeps a tenth, a hundredth or a thousandth: at random, or a
corner of the space that no query comes from, whose clusters are no query's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CLUSTERS = 2000
DECAY = 0.5  # the k-th latent direction has the scale k ** -DECAY
NOISE = 0.1  # per dimension, before normalising
QUERIES = 400
LIMIT = 10
SHARES = {"tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001}
KINDS = {"random": "random", "corner": "corner", "range": "random, range of a number"}
FLOAT = np.float32


class Case(NamedTuple):
    """A filter: all points, or the share of them that has one value, or a number in a range."""

    kind: str  # "none", "random", "corner" or "range"
    share: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.share}" if self.share else self.kind

    def __str__(self) -> str:
        return f"{100 * SHARES[self.share]:g} %, {KINDS[self.kind]}" if self.share else "none"


CASES = (Case("none"), *(Case(kind, share) for kind in KINDS for share in SHARES))


def make_data(folder: Path, n: int, dim: int) -> None:
    """Write vectors (N, dim), labels and queries (Q, dim) to a folder."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, dim + 1, dtype=FLOAT) ** -DECAY
    scale /= np.sqrt((scale**2).mean())
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(FLOAT)
    centres = rng.standard_normal((CLUSTERS, dim), dtype=FLOAT) * scale
    corner_first = np.argsort(np.argsort(-centres[:, 0]))  # rank of a cluster along the widest direction

    def draw(clusters: NDArray[np.int64]) -> NDArray[np.float32]:
        latent = centres[clusters] + scale * rng.standard_normal((len(clusters), dim), dtype=FLOAT)
        return _unit(latent @ rotation + NOISE * rng.standard_normal(latent.shape, dtype=FLOAT))

    clusters = rng.integers(CLUSTERS, size=n)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (n, dim))
    for start in range(0, n, 50_000):
        vectors[start : start + 50_000] = draw(clusters[start : start + 50_000])
    labels = {
        "random": _share_out(rng.permutation(n)),
        "corner": _share_out(np.argsort(corner_first[clusters], kind="stable")),
    }
    far = np.flatnonzero(corner_first > CLUSTERS // 5)
    queries = draw(rng.choice(far, QUERIES))
    half = QUERIES // 2
    gap = _unit(rng.standard_normal((1, dim), dtype=FLOAT))
    blur = _unit(rng.standard_normal((half, dim), dtype=FLOAT))
    queries[half:] = _unit(0.6 * queries[half:] + 0.5 * gap + 0.6 * blur)
    np.save(folder / "queries.npy", queries)
    np.savez(folder / "labels.npz", **labels)


def make_answers(folder: Path) -> None:
    """Write what an exact search of every case gives: the tenth score, and of all points the best hundred."""
    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    labels, n = dict(np.load(folder / "labels.npz")), len(vectors)
    scores = np.empty((QUERIES, n), dtype=FLOAT)
    for start in range(0, n, 50_000):
        scores[:, start : start + 50_000] = queries @ vectors[start : start + 50_000].T
    answers = {case.key: _tenth_best(scores, allowed(labels, case)) for case in CASES}
    answers["best"] = -np.sort(-np.partition(scores, n - 100, axis=1)[:, n - 100 :], axis=1)
    np.savez(folder / "answers.npz", **answers)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(FLOAT)


def _share_out(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels (N,): the first thousandth in an order gets 2, the next hundredth 1, the next tenth 0."""
    labels, start = np.full(len(order), -1), 0
    for number, share in reversed(list(enumerate(SHARES.values()))):
        end = start + max(1, round(share * len(order)))
        labels[order[start:end]] = number
        start = end
    return labels


def allowed(labels: Any, case: Case) -> NDArray[np.int64] | None:
    """Return the rows that a filter keeps, or None for all."""
    if not case.share:
        return None
    if case.kind == "range":
        return np.arange(max(1, round(SHARES[case.share] * len(labels["random"]))))
    return np.flatnonzero(labels[case.kind] == list(SHARES).index(case.share))


def _tenth_best(scores: NDArray[np.float32], rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """Return the exact score (Q,) at rank 10, or the last where fewer pass."""
    kept = scores if rows is None else scores[:, rows]
    k = min(LIMIT, kept.shape[1])
    return np.partition(kept, kept.shape[1] - k, axis=1)[:, kept.shape[1] - k]


def local_dimension(best: NDArray[np.float32]) -> float:
    """Return the median local intrinsic dimension, by maximum likelihood from the 100 nearest.

    Source: Levina & Bickel (2004), Maximum Likelihood Estimation of Intrinsic Dimension.
    """
    distance = np.sqrt(np.maximum(2 - 2 * best, 1e-9))
    return float(np.median(-1 / np.log(distance[:, :-1] / distance[:, -1:]).mean(axis=1)))
