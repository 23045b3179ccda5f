"""How far a difference between two models could be chance: paired bootstrap intervals over images.

Queries are few and fixed, the categories of a collection, so it is the images that are drawn anew: with
replacement, as many of each category as there are. Both models are scored on the same draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Resamples that are scored at once: (chunk, N) arrays of a few MiB.
_CHUNK = 256


def draw_counts(labels: NDArray[np.integer], resamples: int, *, seed: int) -> NDArray[np.int64]:
    """Return how often each image comes in each resample, stratified by category.

    Args:
        labels: (N,) category of each image.
        resamples: How many draws, B.
        seed: Same seed, same draws.

    Returns:
        (B, N) int64; over the images of a category each row sums to their number.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(labels)), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        n = len(members)
        counts[:, members] = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return counts


def resampled_map(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mAP of each resample.

    An image that was drawn c times stands in the ranking c times, one copy behind the other.

    Args:
        scores: (Q, N) float, higher is better.
        relevant: (Q, N) bool.
        counts: (B, N) from `draw_counts`.

    Returns:
        (B,) float64 in (0, 1].
    """
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
    result = np.zeros(len(counts))
    for query, ranking in enumerate(order):
        hits = relevant[query][ranking]
        for start in range(0, len(counts), _CHUNK):
            drawn = counts[start : start + _CHUNK, ranking]  # (b, N), best first
            seen = np.cumsum(drawn, axis=1) - drawn  # before this image
            found = np.cumsum(drawn * hits, axis=1) - drawn * hits
            precision = np.zeros(drawn.shape)
            for copy in range(1, int(drawn.max(initial=0)) + 1):
                precision += np.where(drawn >= copy, (found + copy) / (seen + copy), 0)
            n_relevant = (drawn * hits).sum(axis=1)
            result[start : start + _CHUNK] += (precision * hits).sum(axis=1) / n_relevant
    return result / len(order)


def interval(values: NDArray[np.floating], *, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds that hold the middle `level` of the values: the percentile interval.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
