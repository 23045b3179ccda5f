"""Retrieval metrics on arrays, numpy only: what a ranking is worth.

A row is a query, a column an image. Equal scores rank by column, lowest first, so every figure is
deterministic. Nothing here knows of models, files or stores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision of each query over its full ranking.

    AP is the mean, over the relevant images, of the precision at the rank of each: with the relevant
    images at ranks 1 and 3 of 4, (1/1 + 2/3) / 2 = 0.833. A random order gives about the share of
    relevant images. The mean over queries is mAP.

    Args:
        scores: (Q, N) float, higher is better; row = query, column = image.
        relevant: (Q, N) bool, True where the image answers the query.

    Returns:
        (Q,) float64 in (0, 1].

    Raises:
        ValueError: If the shapes differ, a score is NaN, or a query has nothing relevant (its AP would
            be 0/0); the message names the row.

    Source: Manning, Raghavan & Schuetze (2008), Introduction to Information Retrieval, section 8.4.
    """
    ranked = _ranked(scores, relevant, None)
    n_relevant = ranked.sum(axis=1)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    result: NDArray[np.float64] = (precision * ranked).sum(axis=1) / n_relevant
    return result


def precision_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the share of relevant images among the k best of each query.

    Args:
        scores: (Q, N) float, higher is better.
        relevant: (Q, N) bool.
        k: Cut-off in ranks, 1 <= k <= N.

    Returns:
        (Q,) float64 in [0, 1].

    Raises:
        ValueError: As `average_precision`, or if k is out of range.
    """
    result: NDArray[np.float64] = np.mean(_ranked(scores, relevant, k), axis=1, dtype=np.float64)
    return result


def hit_rate_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return 1 for each query with anything relevant among its k best, else 0; papers on CLIP say "R@k".

    Args, Returns and Raises are those of `precision_at_k`.
    """
    return np.asarray(_ranked(scores, relevant, k).any(axis=1), dtype=np.float64)


def recall_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the share of each query's relevant images that is among its k best.

    Args, Returns and Raises are those of `precision_at_k`.
    """
    found: NDArray[np.float64] = _ranked(scores, relevant, k).sum(axis=1) / np.sum(relevant, axis=1)
    return found


def r_precision(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the precision among the R best of each query, where R is how many are relevant to it.

    Args, Returns and Raises are those of `average_precision`.

    Source: Manning, Raghavan & Schuetze (2008), Introduction to Information Retrieval, section 8.4.
    """
    ranked = _ranked(scores, relevant, None)
    n_relevant = ranked.sum(axis=1)
    within = np.arange(ranked.shape[1])[None, :] < n_relevant[:, None]
    result: NDArray[np.float64] = (ranked & within).sum(axis=1) / n_relevant
    return result


def ndcg_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the discounted cumulative gain of the k best, over that of the best possible order.

    A relevant image at rank r gains 1 / log2(r + 1).

    Args, Returns and Raises are those of `precision_at_k`.

    Source: Jaervelin & Kekaelaeinen (2002), "Cumulated gain-based evaluation of IR techniques",
        https://doi.org/10.1145/582415.582418.
    """
    ranked = _ranked(scores, relevant, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(np.sum(relevant, axis=1), k) - 1]
    result: NDArray[np.float64] = (ranked * discount).sum(axis=1) / ideal
    return result


def confusion(true: NDArray[np.integer], predicted: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """Return how many images of each category (row) were taken for each (column).

    Args:
        true: (N,) int in [0, n).
        predicted: (N,) int in [0, n).
        n: Categories.

    Returns:
        (n, n) int64 that sums to N.
    """
    counts = np.zeros((n, n), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    return counts


def _ranked(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int | None) -> NDArray[np.bool_]:
    """Return (Q, k) whether the image at each rank is relevant, best first, after checking the arrays."""
    scores, relevant = np.asarray(scores), np.asarray(relevant, dtype=bool)
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(f"scores {scores.shape} and relevant {relevant.shape} must be one (Q, N) shape")
    if np.isnan(scores).any():
        raise ValueError(f"scores of query {int(np.isnan(scores).any(axis=1).argmax())} hold NaN")
    empty = ~relevant.any(axis=1)
    if empty.any():
        raise ValueError(f"query {int(empty.argmax())} has no relevant image")
    n = scores.shape[1]
    if k is not None and not 1 <= k <= n:
        raise ValueError(f"k must lie in [1, {n}], not {k}")
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(relevant, order, axis=1)
