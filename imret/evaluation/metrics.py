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
    return ap_of_ranked(ranked(scores, relevant))


def ap_of_ranked(hits: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return `average_precision` of what `ranked` gave, so that several figures need one sort.

    Args:
        hits: (Q, N) bool, best first, something relevant in each row.

    Returns:
        (Q,) float64 in (0, 1].
    """
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    result: NDArray[np.float64] = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return result


def ap_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the average precision of each query over its k best, out of what k pictures could have.

    The precisions at the ranks of the relevant within the k best, summed and divided by min(R, k), where R is
    how many are relevant to the query: 1 where all k, or all R, come first. Of R = 3, found at ranks 1 and 3
    of k = 4: (1/1 + 2/3) / 3 = 0.556. Where k is N it is `average_precision`.

    Args, Returns and Raises are those of `precision_at_k`.

    Source: Vendrow et al. (2024), "INQUIRE: A Natural World Text-to-Image Retrieval Benchmark",
        https://arxiv.org/abs/2411.02537; `ap_at_k` of https://github.com/inquire-benchmark/INQUIRE.
    """
    hits = ranked(scores, relevant, k)
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    possible = np.minimum(np.sum(relevant, axis=1), k)
    result: NDArray[np.float64] = (precision * hits).sum(axis=1) / possible
    return result


def reciprocal_rank_at_k(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int
) -> NDArray[np.float64]:
    """Return 1 / rank of the first relevant picture of each query, 0 where it is not among the k best.

    The mean over queries is MRR. Args and Raises are those of `precision_at_k`.

    Returns:
        (Q,) float64 in [0, 1].

    Source: Voorhees (1999), "The TREC-8 Question Answering Track Report",
        https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf, section 3.
    """
    hits = ranked(scores, relevant, k)
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def interpolated_precision(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], levels: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the precision-recall curve of each query: the best precision at any recall from each level up.

    Args:
        scores: (Q, N) float, higher is better.
        relevant: (Q, N) bool.
        levels: (R,) float in [0, 1], recall.

    Returns:
        (Q, R) float64 in (0, 1], falling along a row.

    Raises:
        ValueError: As `average_precision`.

    Source: Manning, Raghavan & Schuetze (2008), Introduction to Information Retrieval, section 8.4.
    """
    curves = []
    for hits in ranked(scores, relevant):
        ranks = np.flatnonzero(hits) + 1  # of the relevant
        best = np.maximum.accumulate((np.arange(1, len(ranks) + 1) / ranks)[::-1])[::-1]
        # The first relevant image whose recall reaches the level; rounding must not ask for one more.
        first = np.ceil(np.asarray(levels) * len(ranks) - 1e-9).astype(np.int64)
        curves.append(best[np.maximum(first, 1) - 1])
    return np.stack(curves)


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
    result: NDArray[np.float64] = np.mean(ranked(scores, relevant, k), axis=1, dtype=np.float64)
    return result


def hit_rate_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return 1 for each query with anything relevant among its k best, else 0; papers on CLIP say "R@k".

    Args, Returns and Raises are those of `precision_at_k`.
    """
    return np.asarray(ranked(scores, relevant, k).any(axis=1), dtype=np.float64)


def recall_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the share of each query's relevant images that is among its k best.

    Args, Returns and Raises are those of `precision_at_k`.
    """
    recall: NDArray[np.float64] = ranked(scores, relevant, k).sum(axis=1) / np.sum(relevant, axis=1)
    return recall


def r_precision(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the precision among the R best of each query, where R is how many are relevant to it.

    Args, Returns and Raises are those of `average_precision`.

    Source: Manning, Raghavan & Schuetze (2008), Introduction to Information Retrieval, section 8.4.
    """
    hits = ranked(scores, relevant)
    n_relevant = hits.sum(axis=1)
    within = np.arange(hits.shape[1])[None, :] < n_relevant[:, None]
    result: NDArray[np.float64] = (hits & within).sum(axis=1) / n_relevant
    return result


def ndcg_at_k(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the discounted cumulative gain of the k best, over that of the best possible order.

    A relevant image at rank r gains 1 / log2(r + 1).

    Args, Returns and Raises are those of `precision_at_k`.

    Source: Jaervelin & Kekaelaeinen (2002), "Cumulated gain-based evaluation of IR techniques",
        https://doi.org/10.1145/582415.582418.
    """
    hits = ranked(scores, relevant, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(np.sum(relevant, axis=1), k) - 1]
    result: NDArray[np.float64] = (hits * discount).sum(axis=1) / ideal
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


def calibration_error(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], n_bins: int = 15
) -> float:
    """Return the expected calibration error: how far stated confidence is from how often it is right.

    Confidences are sorted into bins of equal width; the error is the mean over images of the distance
    between a bin's mean confidence and its share of correct ones. Of two images at 0.9 with one right: 0.4.
    It falls by chance with fewer images per bin, so figures compare only at the same N and bins.

    Args:
        confidence: (N,) float in [0, 1], of the label that was chosen.
        correct: (N,) bool, whether it was the right one.
        n_bins: Bins over (0, 1], each closed above; 0 belongs to the first.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If the shapes differ, are empty, a confidence lies outside [0, 1], or n_bins < 1.

    Source: Guo, Pleiss, Sun & Weinberger (2017), "On Calibration of Modern Neural Networks",
        https://arxiv.org/abs/1706.04599, section 2.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not confidence.size:
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must be one (N,), N > 0")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence lies outside [0, 1]")
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, not {n_bins}")
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=n_bins)  # n times (confidence - right)
    return float(np.abs(gaps).sum() / len(confidence))


def ranked(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int | None = None
) -> NDArray[np.bool_]:
    """Return whether the image at each rank is relevant, best first.

    Args:
        scores: (Q, N) float, higher is better.
        relevant: (Q, N) bool.
        k: Ranks wanted, 1 <= k <= N; None for all.

    Returns:
        (Q, k) bool.

    Raises:
        ValueError: As `average_precision`, or if k is out of range.
    """
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
