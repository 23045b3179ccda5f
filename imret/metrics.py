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
    scores = np.asarray(scores)
    relevant = np.asarray(relevant, dtype=bool)
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(f"scores {scores.shape} and relevant {relevant.shape} must be one (Q, N) shape")
    if np.isnan(scores).any():
        raise ValueError(f"scores of query {int(np.isnan(scores).any(axis=1).argmax())} hold NaN")
    n_relevant = relevant.sum(axis=1)
    if (n_relevant == 0).any():
        raise ValueError(f"query {int((n_relevant == 0).argmax())} has no relevant image")
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(relevant, order, axis=1)  # (Q, N), best first
    precision = np.cumsum(ranked, axis=1) / np.arange(1, scores.shape[1] + 1)
    result: NDArray[np.float64] = (precision * ranked).sum(axis=1) / n_relevant
    return result
