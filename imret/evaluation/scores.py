"""Embeddings and rankings to figures: by text, by picture, zero-shot, and the worst failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from imret.evaluation import metrics
from imret.evaluation.dataset import Embedded
from imret.evaluation.report import (
    CategoryNeighbours,
    CategoryRanking,
    Failure,
    ImageToImage,
    Interval,
    MeanRanking,
    TextToImage,
    ZeroShot,
    rounded,
)

_CUTOFFS = (1, 5, 10, 20)
# Recall at which the precision-recall curves are read.
LEVELS = np.linspace(0, 1, 21)
# Cells of the matrices that pictures are ranked in together: some 30 MB each.
_CELLS = 1 << 22
_WORST = 24


def text_to_image(
    scores: NDArray[np.floating], embedded: Embedded, ap_intervals: Sequence[Interval]
) -> TextToImage:
    """Return what the ranking of all pictures for each category is worth.

    Args:
        scores: (Q, N) float, higher is better; row = category.
        embedded: The pictures.
        ap_intervals: Q, of the average precision of each category.
    """
    n, relevant = scores.shape[1], embedded.relevant
    ap = metrics.average_precision(scores, relevant)
    r_precision = metrics.r_precision(scores, relevant)
    precision = {k: metrics.precision_at_k(scores, relevant, k) for k in _CUTOFFS if k <= n}
    ndcg = {k: metrics.ndcg_at_k(scores, relevant, k) for k in (10, 100) if k <= n}
    hit_rate = {k: metrics.hit_rate_at_k(scores, relevant, k) for k in (10,) if k <= n}
    curves = metrics.interpolated_precision(scores, relevant, LEVELS)

    def of(values: Mapping[int, NDArray[np.float64]], i: int) -> dict[int, float]:
        return {k: rounded(value[i]) for k, value in values.items()}

    def mean(values: Mapping[int, NDArray[np.float64]]) -> dict[int, float]:
        return {k: rounded(value.mean()) for k, value in values.items()}

    return TextToImage(
        macro=MeanRanking(
            map=rounded(ap.mean()),
            r_precision=rounded(r_precision.mean()),
            precision=mean(precision),
            ndcg=mean(ndcg),
            hit_rate=mean(hit_rate),
        ),
        per_category={
            category: CategoryRanking(
                ap=rounded(ap[i]),
                r_precision=rounded(r_precision[i]),
                precision=of(precision, i),
                ndcg=of(ndcg, i),
                hit_rate=of(hit_rate, i),
                curve=[rounded(value) for value in curves[i]],
                ap_interval=ap_intervals[i],
            )
            for i, category in enumerate(embedded.categories)
        },
        curve=[rounded(value) for value in curves.mean(axis=0)],
    )


def image_to_image(embedded: Embedded) -> tuple[ImageToImage, NDArray[np.float64]]:
    """Let every picture ask for its category among the others; alone in its category, it asks for nothing.

    Returns:
        The figures, and (N,) the average precision of each picture, NaN where it asked for nothing.
    """
    n, k = len(embedded.labels), 10
    asks = np.flatnonzero(np.bincount(embedded.labels)[embedded.labels] > 1)
    values = np.full((n, 3), np.nan)  # AP, P@1, P@10
    step = max(1, _CELLS // n)
    for start in range(0, len(asks), step):
        rows = asks[start : start + step]
        others = np.ones((len(rows), n), dtype=bool)
        others[np.arange(len(rows)), rows] = False  # without itself
        scores = (embedded.vectors[rows] @ embedded.vectors.T)[others].reshape(len(rows), n - 1)
        relevant = (embedded.labels[rows][:, None] == embedded.labels[None, :])[others].reshape(scores.shape)
        hits = metrics.ranked(scores, relevant)
        values[rows, 0] = metrics.ap_of_ranked(hits)
        values[rows, 1] = hits[:, 0]
        if n > k:
            values[rows, 2] = hits[:, :k].mean(axis=1)

    def mean(of: NDArray[np.float64]) -> float | None:
        return rounded(of.mean()) if len(of) else None

    aps = {name: values[asks[embedded.labels[asks] == i], 0] for i, name in enumerate(embedded.categories)}
    aps = {name: ap for name, ap in aps.items() if len(ap)}
    report = ImageToImage(
        map=mean(values[asks, 0]),
        macro_map=mean(np.array([ap.mean() for ap in aps.values()])),
        precision={1: mean(values[asks, 1]), k: mean(values[asks, 2]) if n > k else None},
        queries=len(asks),
        per_category={name: CategoryNeighbours(rounded(ap.mean())) for name, ap in aps.items()},
    )
    return report, values[:, 0]


def zero_shot(scores: NDArray[np.floating], embedded: Embedded) -> ZeroShot:
    """Take each picture for the category whose score of it is highest, and count what is right."""
    predicted = scores.argmax(axis=0)
    matrix = metrics.confusion(embedded.labels, predicted, len(embedded.categories))
    of_category = matrix.diagonal() / matrix.sum(axis=1)
    return ZeroShot(
        top1=rounded(matrix.diagonal().sum() / matrix.sum()),
        macro_top1=rounded(of_category.mean()),
        per_category={
            name: rounded(value) for name, value in zip(embedded.categories, of_category, strict=True)
        },
        labels=embedded.categories,
        confusion=matrix.tolist(),
    )


def worst(scores: NDArray[np.floating], embedded: Embedded) -> list[Failure]:
    """Return the pictures that rank worst for their own category, and the strangers that rank best.

    Args:
        scores: (Q, N) float, higher is better.
        embedded: The pictures.

    Returns:
        Up to 12 of kind "missed", those that rank furthest behind the last place of their category in a
        perfect ranking, measured in sizes of the category; and up to 12 "intruder", the strangers within
        those places, first ranks first. Each with its rank, from 1, for `category`.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None, :], axis=1)
    predicted = scores.argmax(axis=0)
    own = rank[embedded.labels, np.arange(len(embedded.labels))]
    # How far below the last place that a perfect ranking would give it.
    late = own / np.bincount(embedded.labels)[embedded.labels]
    missed = np.argsort(-late, kind="stable")[: _WORST // 2]
    entries = [("missed", int(i), int(embedded.labels[i])) for i in missed if late[i] >= 1]
    strange = rank.astype(np.float64)
    strange[embedded.labels, np.arange(len(embedded.labels))] = np.inf
    strange[rank >= np.bincount(embedded.labels)[:, None]] = (
        np.inf
    )  # behind the places, where strangers belong
    for flat in np.argsort(strange, axis=None, kind="stable")[: _WORST // 2]:
        category, i = divmod(int(flat), scores.shape[1])
        if np.isfinite(strange[category, i]):
            entries.append(("intruder", i, category))
    return [
        Failure(
            kind=kind,
            category=embedded.categories[category],
            path=embedded.paths[i],
            rank=int(rank[category, i]) + 1,
            score=rounded(scores[category, i]),
            true=embedded.categories[embedded.labels[i]],
            predicted=embedded.categories[predicted[i]],
        )
        for kind, i, category in entries
    ]
