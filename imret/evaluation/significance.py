"""What a comparison rests on: every system of a report on the same resampled pictures, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.evaluation.bootstrap import draw_counts, interval, resampled_ap
from imret.evaluation.dataset import Embedded
from imret.evaluation.retention import Kept
from imret.evaluation.scores import rounded

MAP, TOP1, IMAGES, KEPT = "text_to_image_map", "zero_shot_top1", "image_to_image_map", "retention_hit_rate@10"


@dataclass(frozen=True)
class System:
    """One row of the comparison: a model, or a classifier on the embeddings of one.

    Attributes:
        name: Of the row.
        scores: (Q, N) float of each picture for each category, higher is better.
        image_aps: (N,) float64 average precision of each picture asking for its like, NaN where it does
            not; None where the system has no embeddings of its own.
        kept: What captions found; None where they were not asked.
    """

    name: str
    scores: NDArray[np.floating]
    image_aps: NDArray[np.float64] | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Resampled:
    """The figures of one system in each of B resamples; the same row is the same draw for every system.

    Attributes:
        aps: (B, Q) average precision of each category.
        figures: (B,) by metric: MAP, TOP1, and where the system has them IMAGES and KEPT.
    """

    aps: NDArray[np.float64]
    figures: dict[str, NDArray[np.float64]]


def resample(systems: Sequence[System], found: Embedded, resamples: int, seed: int) -> dict[str, Resampled]:
    """Score every system on the same draws of pictures, as many of each category as there are.

    By text, pictures are drawn anew in every ranking. From picture to picture it is those that ask: the
    others stay, for a copy beside itself would be found at rank 1. Of captioned pictures, all captions go
    along with their picture.

    Args:
        systems: At least one; their names differ.
        found: The pictures that their scores are of.
        resamples: How many draws, B.
        seed: Of the draws.
    """
    relevant = found.relevant
    parts: dict[str, dict[str, list[NDArray[np.float64]]]] = {one.name: {} for one in systems}
    right = {one.name: one.scores.argmax(axis=0) == found.labels for one in systems}
    for counts in draw_counts(found.labels, resamples, seed=seed):
        for one in systems:
            into = parts[one.name]
            into.setdefault("aps", []).append(resampled_ap(one.scores, relevant, counts))
            into.setdefault(TOP1, []).append(counts @ right[one.name] / len(found.labels))
            if one.image_aps is not None and not np.isnan(one.image_aps).all():
                into.setdefault(IMAGES, []).append(_weighted(counts, one.image_aps))
    kept = [one for one in systems if one.kept is not None]
    if kept and kept[0].kept is not None:
        everything = np.zeros(len(np.unique(kept[0].kept.own)), dtype=np.int64)  # one category
        for counts in draw_counts(everything, resamples, seed=seed):
            for one in kept:
                if one.kept is not None:
                    found_of = np.bincount(one.kept.own, weights=one.kept.found)
                    share = counts @ found_of / (counts @ np.bincount(one.kept.own))
                    parts[one.name].setdefault(KEPT, []).append(share)
    result = {}
    for name, collected in parts.items():
        joined = {metric: np.concatenate(values) for metric, values in collected.items()}
        aps = joined.pop("aps")
        result[name] = Resampled(aps, {MAP: aps.mean(axis=1), **joined})
    return result


def bounds(values: NDArray[np.float64]) -> list[float]:
    """Return the 95 % interval of resampled values, as the report holds it."""
    return [rounded(bound) for bound in interval(values)]


def difference(
    of: str, to: str, samples: dict[str, Resampled], figures: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Return how far one system is from another, metric by metric, with paired intervals.

    Args:
        of: Name of a system.
        to: Name of the system to compare it with.
        samples: From `resample`.
        figures: By system and metric, on the pictures as they are.
    """
    return [
        {
            "of": of,
            "to": to,
            "metric": metric,
            "value": figures[of][metric],
            "reference": figures[to][metric],
            "difference": rounded(figures[of][metric] - figures[to][metric]),
            "interval": bounds(drawn - samples[to].figures[metric]),
        }
        for metric, drawn in samples[of].figures.items()
        if metric in samples[to].figures
    ]


def _weighted(counts: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (b,) the mean of (N,) values that are not NaN, weighted by each row of (b, N) counts."""
    there = ~np.isnan(values)
    drawn = counts[:, there]
    means: NDArray[np.float64] = drawn @ values[there] / drawn.sum(axis=1)
    return means
