"""What is learnt of categories, judged on pictures that it was learnt without, and mixed with their texts.

The rule, fixed before anything is measured. The pictures of each category are dealt into five parts; each
part is scored by directions that were learnt from the others. Of the shrinkages the one is taken that gives
the best mean average precision, each category with its best share of the text. Then each category gets a
share of its own: what its curve says, and with few pictures what the curves of all say (`OWN` pictures of its
own count as much as all others together). Shares within `TIE` of the best are taken for equal, and their mean
for the best. Where what is learnt is worse than the text, by more than a tie, the text is kept.

Choosing on pictures that the text tower has seen favours the text; the width of a tie is against that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imret.concepts.discriminant import OTHER, Sums
from imret.evaluation.metrics import average_precision

SHRINKAGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = tuple(i / 10 for i in range(11))
PARTS = 5
# So many pictures of a category say as much of its share as all the other categories do.
OWN = 5
TIE = 0.01
# Where each category has one picture, nothing can be held out.
UNKNOWN_SHRINKAGE, UNKNOWN_SHARE = 1.0, 0.5
# The shrinkage is chosen on so many categories at most: it is one for all, and each costs a sort a try.
_JUDGES = 64
_CELLS = 1 << 23  # of a matrix of scores: 64 MB


@dataclass(frozen=True, eq=False)
class Examples:
    """Embedded pictures of categories and of none. A picture may come in several views, which stay together.

    Attributes:
        vectors: (V, D) unit embeddings; of each picture the first view is the picture as it is.
        views: (V,) int, which picture each is a view of, in [0, N).
        labels: (N,) int, category of each picture in [0, C), or OTHER.
        weights: (N,) how much each picture counts, > 0.
        texts: (C, D) unit embeddings of the categories' names.
    """

    vectors: NDArray[np.float32]
    views: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    texts: NDArray[np.float32]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) pictures of each category."""
        return np.bincount(self.labels[self.labels != OTHER], minlength=len(self.texts))

    @property
    def pictures(self) -> NDArray[np.float32]:
        """(N, D) the pictures as they are."""
        _, first = np.unique(self.views, return_index=True)
        return self.vectors[first]

    def sums(self, chosen: NDArray[np.bool_] | None = None) -> Sums:
        """Return the sums over pictures, or over those that are chosen ((N,) bool)."""
        of_picture = self.weights / np.bincount(self.views, minlength=len(self.labels))
        keep = slice(None) if chosen is None else chosen[self.views]
        views = self.views[keep]
        return Sums.of(self.vectors[keep], self.labels[views], of_picture[views], len(self.texts))


@dataclass(frozen=True, eq=False)
class Choice:
    """What cross-validation chose, and what it saw.

    Attributes:
        shrinkage: Of the covariance.
        shares: (C,) of the text, in [0, 1]; 1 where the text is kept.
        held_out: (N,) bool, which pictures were scored without having been learnt from.
        learnt: (C, N) scores of the held-out pictures by what is learnt, of the size that the texts' have.
        texts: (C, N) by the texts.
        precisions: (C, 2) average precision over the held-out pictures, of text and of what is learnt; NaN
            for a category of which none was held out.
    """

    shrinkage: float
    shares: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    learnt: NDArray[np.float64]
    texts: NDArray[np.float64]
    precisions: NDArray[np.float64]


def choose(examples: Examples, *, seed: int = 0) -> Choice:
    """Choose the shrinkage and the shares of the texts by the rule.

    Args:
        examples: At least two categories, or one and pictures of none.
        seed: Of the parts.
    """
    parts = _deal(examples, np.random.default_rng(seed))
    judged = np.flatnonzero(examples.counts > 1)
    if not len(judged):
        return _nothing_held_out(examples)
    folds = _Folds(examples, parts)
    few = np.random.default_rng(seed).permutation(judged)[:_JUDGES]
    curves = [folds.curves(number, few) for number in range(len(SHRINKAGES))]  # (few, shares) each
    number = int(np.argmax([curve.max(axis=1).mean() for curve in curves]))
    own = folds.curves(number, judged)
    shares = np.full(len(examples.texts), np.nan)
    common = own.mean(axis=0)
    for at, category in enumerate(judged):
        weight = examples.counts[category] / (examples.counts[category] + OWN)
        shares[category] = _share(weight * own[at] + (1 - weight) * common)
    shares[np.isnan(shares)] = _share(common)
    return _kept_where_better(folds, number, shares)


def _share(curve: NDArray[np.float64]) -> float:
    """Return the share that a curve over SHARES is for: the middle of those that are as good as the best."""
    return float(np.mean(np.array(SHARES)[curve >= curve.max() - TIE]))


def _kept_where_better(folds: _Folds, number: int, shares: NDArray[np.float64]) -> Choice:
    """Return the choice, in which categories whose text is not beaten keep it."""
    learnt, texts = folds.scores(number, shares)
    held_out = folds.parts >= 0
    precisions = np.full((len(shares), 2), np.nan)
    for category in np.flatnonzero(folds.examples.counts > 1):
        relevant = (folds.examples.labels[held_out] == category)[None]
        for column, scores in enumerate((texts, learnt)):
            precisions[category, column] = average_precision(scores[category][None, held_out], relevant)[0]
        if shares[category] == 1 or precisions[category, 1] < precisions[category, 0] - TIE:
            shares[category] = 1.0
            precisions[category, 1] = precisions[category, 0]
            learnt[category] = texts[category]
    return Choice(SHRINKAGES[number], shares, held_out, learnt, texts, precisions)


def _nothing_held_out(examples: Examples) -> Choice:
    n, shape = len(examples.texts), (len(examples.texts), len(examples.labels))
    nowhere = np.zeros(len(examples.labels), dtype=bool)
    unknown = np.full((n, 2), np.nan)
    shares = np.full(n, UNKNOWN_SHARE)
    return Choice(UNKNOWN_SHRINKAGE, shares, nowhere, np.zeros(shape), np.zeros(shape), unknown)


def _deal(examples: Examples, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the part of each picture, in [0, PARTS); -1 for one that is the only one of its category."""
    parts = np.full(len(examples.labels), -1, dtype=np.int64)
    for label in np.unique(examples.labels):
        members = rng.permutation(np.flatnonzero(examples.labels == label))
        if len(members) > 1:
            parts[members] = (np.arange(len(members)) + rng.integers(PARTS)) % PARTS
    return parts


class _Folds:
    """Directions that were learnt without each part, for every shrinkage."""

    def __init__(self, examples: Examples, parts: NDArray[np.int64]) -> None:
        self.examples, self.parts = examples, parts
        pieces = {part: examples.sums(parts == part) for part in np.unique(parts)}
        whole = pieces[next(iter(pieces))]
        for part in list(pieces)[1:]:
            whole = whole + pieces[part]
        self._without = {part: whole - pieces[part] for part in pieces if part >= 0}
        self._directions = {part: sums.directions(SHRINKAGES) for part, sums in self._without.items()}
        self._texts = {
            part: examples.texts / sums.spread(examples.texts) for part, sums in self._without.items()
        }
        self._vectors = examples.pictures

    def scores(
        self, number: int, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (C, N) scores of held-out pictures, by a mixture and by the texts, of one size."""
        learnt = np.zeros((len(shares), len(self._vectors)))
        texts = np.zeros_like(learnt)
        for part, sums in self._without.items():
            mixed = mix(self._directions[part][number], self.examples.texts, sums, shares)
            at = self.parts == part
            scaled, offsets = sums.in_place_of(self.examples.texts, mixed)
            learnt[:, at] = scaled.astype(np.float32) @ self._vectors[at].T + offsets[:, None]
            texts[:, at] = self.examples.texts @ self._vectors[at].T
        return learnt, texts

    def curves(self, number: int, categories: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return (K, shares) average precision of categories by the share of the text."""
        step = max(1, _CELLS // len(self._vectors))
        blocks = [categories[start : start + step] for start in range(0, len(categories), step)]
        return np.concatenate([self._curves(number, block) for block in blocks])

    def _curves(self, number: int, categories: NDArray[np.integer]) -> NDArray[np.float64]:
        learnt = np.zeros((len(categories), len(self._vectors)))
        texts = np.zeros_like(learnt)
        for part, sums in self._without.items():
            at = self.parts == part
            own = self._directions[part][number][categories]
            for scores, asked in ((learnt, own), (texts, self._texts[part][categories])):
                means = asked @ sums.mean
                scores[:, at] = asked.astype(np.float32) @ self._vectors[at].T - means[:, None]
        held_out = self.parts >= 0
        relevant = self.examples.labels[held_out][None] == categories[:, None]
        learnt, texts = learnt[:, held_out], texts[:, held_out]
        curves = [average_precision((1 - share) * learnt + share * texts, relevant) for share in SHARES]
        return np.stack(curves, axis=1)


def mix(
    directions: NDArray[np.floating],
    texts: NDArray[np.floating],
    sums: Sums,
    shares: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return (C, D) directions with a share of the texts, both counted by how far they spread the scores.

    Args:
        directions: (C, D) that spread the scores of the pictures by 1, as `Sums.directions` gives them.
        texts: (C, D).
        sums: Of the pictures.
        shares: (C,) of the texts, in [0, 1].
    """
    of_text = shares[:, None]
    mixed: NDArray[np.float64] = (1 - of_text) * directions + of_text * texts / sums.spread(texts)
    return mixed
