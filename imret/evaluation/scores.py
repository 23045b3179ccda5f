"""Embeddings and rankings to figures: by text, by picture, zero-shot, and the worst failures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.evaluation import metrics
from imret.evaluation.dataset import Embedded

_CUTOFFS = (1, 5, 10, 20)
# Recall at which the precision-recall curves are read.
LEVELS = np.linspace(0, 1, 21)
# Cells of the matrices that pictures are ranked in together: some 30 MB each.
_CELLS = 1 << 22
_WORST = 24


def text_to_image(scores: NDArray[np.floating], found: Embedded) -> dict[str, Any]:
    """Return what the ranking of all pictures for each category is worth.

    Args:
        scores: (Q, N) float, higher is better; row = category.
        found: The pictures.

    Returns:
        `macro`, the means over categories; `per_category`; and `curve`, the mean precision at each of
        `LEVELS` of recall. A figure at k is left out where there are fewer than k pictures.
    """
    n, relevant = scores.shape[1], found.relevant
    values = {
        "ap": metrics.average_precision(scores, relevant),
        "r_precision": metrics.r_precision(scores, relevant),
        **{f"p@{k}": metrics.precision_at_k(scores, relevant, k) for k in _CUTOFFS if k <= n},
        **{f"ndcg@{k}": metrics.ndcg_at_k(scores, relevant, k) for k in (10, 100) if k <= n},
        **{f"hit_rate@{k}": metrics.hit_rate_at_k(scores, relevant, k) for k in (10,) if k <= n},
    }
    curves = metrics.interpolated_precision(scores, relevant, LEVELS)
    return {
        "macro": {("map" if name == "ap" else name): rounded(v.mean()) for name, v in values.items()},
        "per_category": {
            category: {
                **{name: rounded(v[i]) for name, v in values.items()},
                "curve": [rounded(v) for v in curves[i]],
            }
            for i, category in enumerate(found.categories)
        },
        "curve": [rounded(v) for v in curves.mean(axis=0)],
    }


def image_to_image(found: Embedded) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Let every picture ask for its category among the others; alone in its category, it asks for nothing.

    Returns:
        The figures: `map`, `p@1` and `p@10` over pictures, `macro_map` over categories, `per_category`;
        None where nothing was asked. And (N,) the average precision of each picture, NaN where it asked
        for nothing.
    """
    n, k = len(found.labels), 10
    asks = np.flatnonzero(np.bincount(found.labels)[found.labels] > 1)
    values = np.full((n, 3), np.nan)  # AP, P@1, P@10
    step = max(1, _CELLS // n)
    for start in range(0, len(asks), step):
        rows = asks[start : start + step]
        others = np.ones((len(rows), n), dtype=bool)
        others[np.arange(len(rows)), rows] = False  # without itself
        scores = (found.vectors[rows] @ found.vectors.T)[others].reshape(len(rows), n - 1)
        relevant = (found.labels[rows][:, None] == found.labels[None, :])[others].reshape(scores.shape)
        hits = metrics.ranked(scores, relevant)
        values[rows, 0] = metrics.ap_of_ranked(hits)
        values[rows, 1] = hits[:, 0]
        if n > k:
            values[rows, 2] = hits[:, :k].mean(axis=1)
    of_category = {name: values[asks[found.labels[asks] == i], 0] for i, name in enumerate(found.categories)}
    per_category = {name: {"ap": rounded(v.mean())} for name, v in of_category.items() if len(v)}
    return {
        "map": rounded(values[asks, 0].mean()) if len(asks) else None,
        "macro_map": rounded(np.mean([v.mean() for v in of_category.values() if len(v)]))
        if len(asks)
        else None,
        "p@1": rounded(values[asks, 1].mean()) if len(asks) else None,
        "p@10": rounded(values[asks, 2].mean()) if len(asks) and n > k else None,
        "queries": len(asks),
        "per_category": per_category,
    }, values[:, 0]


def zero_shot(scores: NDArray[np.floating], found: Embedded) -> dict[str, Any]:
    """Take each picture for the category whose score of it is highest, and count what is right.

    Returns:
        `top1` over pictures, `macro_top1` over categories, `per_category`, and `confusion`: rows are what
        pictures are, columns what they are taken for, both in the order of `labels`.
    """
    predicted = scores.argmax(axis=0)
    matrix = metrics.confusion(found.labels, predicted, len(found.categories))
    of_category = matrix.diagonal() / matrix.sum(axis=1)
    return {
        "top1": rounded(matrix.diagonal().sum() / matrix.sum()),
        "macro_top1": rounded(of_category.mean()),
        "per_category": {
            name: rounded(value) for name, value in zip(found.categories, of_category, strict=True)
        },
        "labels": found.categories,
        "confusion": matrix.tolist(),
    }


def worst(scores: NDArray[np.floating], found: Embedded) -> list[dict[str, Any]]:
    """Return the pictures that rank worst for their own category, and the strangers that rank best.

    Args:
        scores: (Q, N) float, higher is better.
        found: The pictures.

    Returns:
        Up to 12 of kind "missed", those that rank furthest behind the last place of their category in a
        perfect ranking, measured in sizes of the category; and up to 12 "intruder", the strangers within
        those places, first ranks first. Each with its rank, from 1, for `category`.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None, :], axis=1)
    predicted = scores.argmax(axis=0)
    own = rank[found.labels, np.arange(len(found.labels))]
    # How far below the last place that a perfect ranking would give it.
    late = own / np.bincount(found.labels)[found.labels]
    missed = np.argsort(-late, kind="stable")[: _WORST // 2]
    entries = [("missed", int(i), int(found.labels[i])) for i in missed if late[i] >= 1]
    strange = rank.astype(np.float64)
    strange[found.labels, np.arange(len(found.labels))] = np.inf
    strange[rank >= np.bincount(found.labels)[:, None]] = np.inf  # behind the places, where strangers belong
    for flat in np.argsort(strange, axis=None, kind="stable")[: _WORST // 2]:
        category, i = divmod(int(flat), scores.shape[1])
        if np.isfinite(strange[category, i]):
            entries.append(("intruder", i, category))
    return [
        {
            "kind": kind,
            "category": found.categories[category],
            "path": found.paths[i],
            "rank": int(rank[category, i]) + 1,
            "score": rounded(scores[category, i]),
            "true": found.categories[found.labels[i]],
            "predicted": found.categories[predicted[i]],
        }
        for kind, i, category in entries
    ]


def rounded(value: float | np.floating[Any]) -> float:
    """Return a figure as the report holds it: four decimals, more than pictures by the thousand can tell."""
    return round(float(value), 4)
