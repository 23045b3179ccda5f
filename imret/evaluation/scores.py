"""Embeddings and rankings to figures: by text, by picture, zero-shot, the worst failures, and differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret import metrics
from imret.bootstrap import draw_counts, interval, resampled_map
from imret.evaluation.pictures import Embedded

_CUTOFFS = (1, 5, 10, 20)
# Queries ranked together.
_QUERIES = 256
_WORST = 24


def text_to_image(scores: NDArray[np.float32], found: Embedded) -> dict[str, Any]:
    n = scores.shape[1]
    relevant = np.arange(len(found.categories))[:, None] == found.labels[None, :]
    values = {
        "ap": metrics.average_precision(scores, relevant),
        "r_precision": metrics.r_precision(scores, relevant),
        **{f"p@{k}": metrics.precision_at_k(scores, relevant, min(k, n)) for k in _CUTOFFS},
        **{f"ndcg@{k}": metrics.ndcg_at_k(scores, relevant, min(k, n)) for k in (10, 100)},
        "hit_rate@10": metrics.hit_rate_at_k(scores, relevant, min(10, n)),
    }
    macro = {("map" if name == "ap" else name): round(float(v.mean()), 4) for name, v in values.items()}
    return {
        "macro": macro,
        "per_category": {
            category: {name: round(float(v[i]), 4) for name, v in values.items()}
            for i, category in enumerate(found.categories)
        },
    }


def image_to_image(found: Embedded) -> dict[str, Any]:
    """Let every picture ask for its category among the others; alone in its category, it asks for nothing."""
    n = len(found.labels)
    of: dict[int, list[tuple[float, float, float]]] = {i: [] for i in range(len(found.categories))}
    counts = np.bincount(found.labels)
    for start in range(0, n, _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, n))
        rows = rows[counts[found.labels[rows]] > 1]
        if not len(rows):
            continue
        scores = found.vectors[rows] @ found.vectors.T
        relevant = found.labels[rows][:, None] == found.labels[None, :]
        others = np.ones_like(relevant)
        others[np.arange(len(rows)), rows] = False  # without itself
        scores, relevant = (a[others].reshape(len(rows), n - 1) for a in (scores, relevant))
        results = zip(
            metrics.average_precision(scores, relevant),
            metrics.precision_at_k(scores, relevant, 1),
            metrics.precision_at_k(scores, relevant, min(10, n - 1)),
            strict=True,
        )
        for row, result in zip(rows, results, strict=True):
            of[int(found.labels[row])].append(tuple(float(v) for v in result))  # type: ignore[arg-type]
    every = np.array([result for results in of.values() for result in results])
    mean = every.mean(axis=0) if len(every) else np.zeros(3)
    return {
        "map": round(float(mean[0]), 4),
        "p@1": round(float(mean[1]), 4),
        "p@10": round(float(mean[2]), 4),
        "per_category": {
            found.categories[i]: {"ap": round(float(np.mean([r[0] for r in results])), 4)}
            for i, results in of.items()
            if results
        },
    }


def zero_shot(scores: NDArray[np.float32], found: Embedded) -> dict[str, Any]:
    predicted = scores.argmax(axis=0)
    matrix = metrics.confusion(found.labels, predicted, len(found.categories))
    of_category = matrix.diagonal() / matrix.sum(axis=1)
    return {
        "top1": round(float(matrix.diagonal().sum() / matrix.sum()), 4),
        "macro_top1": round(float(of_category.mean()), 4),
        "per_category": {
            name: round(float(value), 4) for name, value in zip(found.categories, of_category, strict=True)
        },
        "labels": found.categories,
        "confusion": matrix.tolist(),
    }


def worst(scores: NDArray[np.float32], found: Embedded) -> list[dict[str, Any]]:
    """Return the pictures that rank worst for their own category, and the strangers that rank best."""
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
    for flat in np.argsort(strange, axis=None, kind="stable")[: _WORST // 2]:
        category, i = divmod(int(flat), scores.shape[1])
        if strange[category, i] < (found.labels == category).sum():
            entries.append(("intruder", i, category))
    return [
        {
            "kind": kind,
            "category": found.categories[category],
            "path": found.paths[i],
            "rank": int(rank[category, i]) + 1,
            "score": round(float(scores[category, i]), 4),
            "true": found.categories[found.labels[i]],
            "predicted": found.categories[predicted[i]],
        }
        for kind, i, category in entries
    ]


def differences_of(
    models: Sequence[dict[str, Any]],
    rankings: Sequence[NDArray[np.float32]],
    found: Embedded,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    relevant = np.arange(len(found.categories))[:, None] == found.labels[None, :]
    counts = draw_counts(found.labels, resamples, seed=seed)
    right = [scores.argmax(axis=0) == found.labels for scores in rankings]
    rows = []
    for metric, values, draws in (
        (
            "text_to_image_map",
            [one["text_to_image"]["macro"]["map"] for one in models],
            [resampled_map(scores, relevant, counts) for scores in rankings],
        ),
        (
            "zero_shot_top1",
            [one["zero_shot"]["top1"] for one in models],
            [(counts * one).sum(axis=1) / counts.sum(axis=1) for one in right],
        ),
    ):
        low, high = interval(draws[1] - draws[0])
        rows.append(
            {
                "metric": metric,
                "baseline": values[0],
                "model": values[1],
                "difference": round(values[1] - values[0], 4),
                "interval": [round(low, 4), round(high, 4)],
                "resamples": resamples,
            }
        )
    return rows
