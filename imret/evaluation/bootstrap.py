"""How far a difference between two models could be chance: paired bootstrap intervals over images.

Queries are few and fixed, the categories of a collection, so it is the images that are drawn anew: with
replacement, as many of each category as there are. Both models are scored on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Cells of the (b, N) arrays that are scored at once: some 30 MB each, however many images there are.
_CELLS = 1 << 22


def draw_counts(labels: NDArray[np.integer], resamples: int, *, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image comes in each resample, stratified by category, some resamples at a time.

    Args:
        labels: (N,) category of each image, N >= 1.
        resamples: How many draws, B.
        seed: Same labels and seed, same draws.

    Yields:
        (b, N) int64, B rows in all; over the images of a category each row sums to their number.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    step = max(1, _CELLS // len(labels))
    for start in range(0, resamples, step):
        counts = np.zeros((min(step, resamples - start), len(labels)), dtype=np.int64)
        for of_category in members:
            n = len(of_category)
            counts[:, of_category] = rng.multinomial(n, np.full(n, 1 / n), size=len(counts))
        yield counts


def resampled_ap(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the average precision of each query in each resample; its mean over queries is the mAP.

    An image that was drawn c times stands in the ranking c times, one copy behind the other. With s images
    before it, f of them relevant, its copies add the precisions (f + j) / (s + j) for j = 1 ... c, which is
    c - (s - f) (H(s + c) - H(s)) with the harmonic numbers H: no loop over copies.

    Args:
        scores: (Q, N) float, higher is better.
        relevant: (Q, N) bool.
        counts: (b, N) from `draw_counts`; something relevant to each query must be drawn in each row.

    Returns:
        (b, Q) float64 in (0, 1].
    """
    n_drawn = int(counts.sum(axis=1).max(initial=0))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n_drawn + 1))])
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
    result = np.empty((len(counts), len(order)))
    for query, ranking in enumerate(order):
        at = np.flatnonzero(relevant[query][ranking])  # ranks of the relevant, from 0
        drawn = counts[:, ranking]  # (b, N), best first
        copies = drawn[:, at]  # (b, R)
        before = np.cumsum(drawn, axis=1)[:, at] - copies
        relevant_before = np.cumsum(copies, axis=1) - copies
        irrelevant_before = before - relevant_before
        precisions = copies - irrelevant_before * (harmonic[before + copies] - harmonic[before])
        result[:, query] = precisions.sum(axis=1) / copies.sum(axis=1)
    return result


def interval(values: NDArray[np.floating], *, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds that hold the middle `level` of the values: the percentile interval.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
