"""Directions of categories in the joint space of words and pictures, in closed form: numpy, no gradient.

The direction of a category is what a linear discriminant finds: the inverse of the covariance within
categories, times the difference between the category's mean and that of all. The covariance is mixed with the
identity, since pictures are few beside dimensions. R. A. Fisher (1936), "The use of multiple measurements in
taxonomic problems"; J. H. Friedman (1989), "Regularized Discriminant Analysis", JASA 84.

Hides that sums over pictures are kept in parts, so that a direction learnt without some of them, to be judged
on those, costs no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of pictures that are of no category: they are what all categories are told from.
OTHER = -1

# Of the variance of all pictures; less is rounding.
_NONE = 1e-5


@dataclass(frozen=True)
class Sums:
    """Weighted sums over pictures: all that a direction depends on. They add up.

    Attributes:
        counts: (C + 1,) weight of the pictures of each category, those of none last.
        totals: (C + 1, D) their weighted sums.
        products: (D, D) the weighted sum of the outer product of each picture with itself.
    """

    counts: NDArray[np.float64]
    totals: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        vectors: NDArray[np.floating],
        labels: NDArray[np.integer],
        weights: NDArray[np.floating],
        n: int,
    ) -> Sums:
        """Return the sums over pictures.

        Args:
            vectors: (N, D).
            labels: (N,) int in [0, n), or OTHER.
            weights: (N,) >= 0.
            n: Categories, C.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        weighted = vectors * np.asarray(weights, dtype=np.float32)[:, None]
        membership = np.zeros((n + 1, len(vectors)), dtype=np.float32)
        membership[labels, np.arange(len(vectors))] = 1.0  # OTHER is the last row
        counts = np.bincount(np.asarray(labels) % (n + 1), weights, n + 1).astype(np.float64)
        products = weighted.T @ vectors  # what float32 loses is far below the shrinkage
        return cls(counts, (membership @ weighted).astype(np.float64), products.astype(np.float64))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.counts + other.counts, self.totals + other.totals, self.products + other.products)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.counts - other.counts, self.totals - other.totals, self.products - other.products)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(D,) mean of all pictures."""
        mean: NDArray[np.float64] = self.totals.sum(axis=0) / self.counts.sum()
        return mean

    @property
    def _means(self) -> NDArray[np.float64]:
        """(C + 1, D) mean of each category; of one without pictures, the mean of all."""
        there = self.counts > 1e-9
        means = np.tile(self.mean, (len(self.counts), 1))
        means[there] = self.totals[there] / self.counts[there, None]
        return means

    def _within(self) -> NDArray[np.float64]:
        """Return the (D, D) covariance within categories."""
        means = self._means
        scatter = self.products - (means * self.counts[:, None]).T @ means
        free = self.counts.sum() - (self.counts > 1e-9).sum()
        within: NDArray[np.float64] = scatter / max(free, 1.0)
        return within

    def spread(self, directions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the (C, 1) standard deviation, above 0, of the scores that directions give."""
        total = self.counts.sum()
        mean_square = ((directions @ self.products) * directions).sum(axis=1) / total
        variance = mean_square - (directions @ self.mean) ** 2
        return np.asarray(np.sqrt(np.maximum(variance, 1e-12)))[:, None]

    def directions(self, shrinkages: Sequence[float]) -> list[NDArray[np.float64]]:
        """Return (C, D) directions for each shrinkage, each scaled to spread the scores of the pictures by 1.

        Args:
            shrinkages: How much of the mean variance is added to the variance along each axis, > 0.
        """
        within, differences = self._within(), (self._means - self.mean)[:-1]
        mean_variance = float(np.trace(within)) / len(within)
        if mean_variance < _NONE * float(self.spread(np.eye(len(within))).mean() ** 2):
            within, mean_variance = (
                np.zeros_like(within),
                1.0,
            )  # of one picture each: only the means are known
        scaled = (within / mean_variance).astype(np.float32)
        right = np.asarray(differences.T, dtype=np.float32)
        solved = [
            np.linalg.solve(scaled + np.float32(shrinkage) * np.eye(len(scaled), dtype=np.float32), right).T
            for shrinkage in shrinkages
        ]
        together = np.concatenate(solved).astype(np.float64)
        together /= self.spread(together)
        return np.split(together, len(shrinkages))

    def in_place_of(
        self, texts: NDArray[np.floating], directions: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return directions that spread the scores of the pictures as texts do.

        Args:
            texts: (C, D) unit vectors.
            directions: (C, D) what is to take their place.

        Returns:
            (C, D) the directions, scaled; and (C,) what their scores lack to have the texts' mean.
        """
        scaled = directions * (self.spread(texts) / self.spread(directions))
        return scaled, (texts - scaled) @ self.mean
