"""What a comparison rests on: every system of a report on the same resampled pictures, with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imret.evaluation.bootstrap import draw_counts, interval, resampled_ap
from imret.evaluation.dataset import Embedded
from imret.evaluation.report import Difference, ImageToImage, Interval, rounded
from imret.evaluation.retention import CaptionHits

MAP, TOP1, IMAGES, RETENTION = (
    "text_to_image_map",
    "zero_shot_top1",
    "image_to_image_map",
    "retention_hit_rate@10",
)
_APS = "aps"


@dataclass(frozen=True)
class System:
    """One row of the comparison: a model, or a classifier on the embeddings of one.

    Attributes:
        name: Of the row.
        scores: (Q, N) float of each picture for each category, higher is better.
        image_aps: (N,) float64 average precision of each picture asking for its like, NaN where it does
            not; None where the system has no embeddings of its own.
        caption_hits: What captions found; None where they were not asked.
        image_to_image: What `image_aps` come to; None where they are.
    """

    name: str
    scores: NDArray[np.floating]
    image_aps: NDArray[np.float64] | None = None
    caption_hits: CaptionHits | None = None
    image_to_image: ImageToImage | None = None


@dataclass(frozen=True)
class Resampled:
    """The figures of one system in each of B resamples; the same row is the same draw for every system.

    Attributes:
        aps: (B, Q) average precision of each category.
        figures: (B,) by metric: MAP, TOP1, and where the system has them IMAGES and RETENTION.
    """

    aps: NDArray[np.float64]
    figures: dict[str, NDArray[np.float64]]

    @property
    def intervals(self) -> dict[str, Interval]:
        """Of each figure, by metric."""
        return {metric: bounds(values) for metric, values in self.figures.items()}

    @property
    def ap_intervals(self) -> list[Interval]:
        """Of the average precision of each category."""
        return [bounds(values) for values in self.aps.T]


def resample(
    systems: Sequence[System], embedded: Embedded, resamples: int, seed: int
) -> dict[str, Resampled]:
    """Score every system on the same draws of pictures, as many of each category as there are.

    By text, pictures are drawn anew in every ranking. From picture to picture it is those that ask: the
    others stay, for a copy beside itself would be found at rank 1. Of captioned pictures, all captions go
    along with their picture.

    Args:
        systems: At least one; their names differ. Those with `caption_hits` were asked the same captions.
        embedded: The pictures that their scores are of.
        resamples: How many draws, B.
        seed: Of the draws.
    """
    relevant, labels = embedded.relevant, embedded.labels
    parts: dict[str, dict[str, list[NDArray[np.float64]]]] = {
        system.name: defaultdict(list) for system in systems
    }
    right = {system.name: system.scores.argmax(axis=0) == labels for system in systems}
    for counts in draw_counts(labels, resamples, seed=seed):
        for system in systems:
            part = parts[system.name]
            part[_APS].append(resampled_ap(system.scores, relevant, counts))
            part[TOP1].append(counts @ right[system.name] / len(labels))
            if system.image_aps is not None and not np.isnan(system.image_aps).all():
                part[IMAGES].append(_weighted(counts, system.image_aps))
    with_captions = {
        system.name: system.caption_hits for system in systems if system.caption_hits is not None
    }
    if with_captions:
        n_images = len(np.unique(next(iter(with_captions.values())).own))
        one_category = np.zeros(n_images, dtype=np.int64)
        for counts in draw_counts(one_category, resamples, seed=seed):
            for name, caption_hits in with_captions.items():
                hits = counts @ np.bincount(caption_hits.own, weights=caption_hits.hits)
                parts[name][RETENTION].append(hits / (counts @ np.bincount(caption_hits.own)))
    result = {}
    for name, part in parts.items():
        joined = {metric: np.concatenate(values) for metric, values in part.items()}
        aps = joined.pop(_APS)
        result[name] = Resampled(aps, {MAP: aps.mean(axis=1), **joined})
    return result


def bounds(values: NDArray[np.float64]) -> Interval:
    """Return the 95 % interval of resampled values, as the report holds it."""
    low, high = interval(values)
    return rounded(low), rounded(high)


def difference(
    of: str, to: str, samples: Mapping[str, Resampled], figures: Mapping[str, Mapping[str, float]]
) -> list[Difference]:
    """Return how far one system is from another, metric by metric, with paired intervals.

    Args:
        of: Name of a system.
        to: Name of the system to compare it with.
        samples: From `resample`.
        figures: By system and metric, on the pictures as they are.
    """
    return [
        Difference(
            of=of,
            to=to,
            metric=metric,
            value=figures[of][metric],
            reference=figures[to][metric],
            difference=rounded(figures[of][metric] - figures[to][metric]),
            interval=bounds(drawn - samples[to].figures[metric]),
        )
        for metric, drawn in samples[of].figures.items()
        if metric in samples[to].figures
    ]


def _weighted(counts: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (b,) the mean of (N,) values that are not NaN, weighted by each row of (b, N) counts."""
    known = ~np.isnan(values)
    drawn = counts[:, known]
    means: NDArray[np.float64] = drawn @ values[known] / drawn.sum(axis=1)
    return means
