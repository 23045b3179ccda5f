"""Directions of categories against the formula written out, and against what is known of made-up clouds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from imret.concepts.discriminant import OTHER, Sums
from imret.evaluation.metrics import average_precision

N, D, C = 300, 24, 3


def _clouds(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, C, N)
    stretched = rng.normal(size=(D, D)) * np.linspace(0.1, 2, D)
    means = rng.normal(size=(C + 1, D)) * 0.5
    vectors = rng.normal(size=(N, D)) @ stretched * 0.3 + means[labels] + 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def _written_out(
    vectors: NDArray[np.floating], labels: NDArray[np.int64], shrinkage: float
) -> NDArray[np.float64]:
    x = vectors.astype(np.float64)
    groups = [x[labels == label] for label in np.unique(labels)]
    scatter = sum((group - group.mean(axis=0)).T @ (group - group.mean(axis=0)) for group in groups)
    within = scatter / (len(x) - len(groups))
    mixed = within + shrinkage * np.trace(within) / D * np.eye(D)
    found = [np.linalg.inv(mixed) @ (x[labels == c].mean(axis=0) - x.mean(axis=0)) for c in range(C)]
    return np.stack([w / (x @ w).std() for w in found])


@pytest.mark.parametrize("shrinkage", [0.03, 0.3, 10.0])
def test_a_direction_is_the_formula_of_the_regularised_discriminant(shrinkage: float) -> None:
    vectors, labels = _clouds()
    (found,) = Sums.of(vectors, labels, np.ones(N), C).directions([shrinkage])
    assert np.allclose(found, _written_out(vectors, labels, shrinkage), rtol=2e-3, atol=2e-3)


def test_sums_without_some_pictures_are_the_sums_of_the_others() -> None:
    vectors, labels = _clouds()
    some = np.arange(N) % 5 == 0
    weights = np.random.default_rng(1).uniform(0.5, 2, N)
    whole = Sums.of(vectors, labels, weights, C)
    left = whole - Sums.of(vectors[some], labels[some], weights[some], C)
    alone = Sums.of(vectors[~some], labels[~some], weights[~some], C)
    assert np.allclose(left.counts, alone.counts)
    assert np.allclose(left.directions([0.3])[0], alone.directions([0.3])[0], rtol=1e-2, atol=1e-3)


def test_a_weight_of_two_is_the_picture_twice() -> None:
    vectors, labels = _clouds()
    twice = Sums.of(np.concatenate([vectors, vectors[:50]]), np.r_[labels, labels[:50]], np.ones(N + 50), C)
    weighted = Sums.of(vectors, labels, 1.0 + (np.arange(N) < 50), C)
    assert np.allclose(weighted.products, twice.products, rtol=1e-5)
    assert np.allclose(weighted.directions([1.0])[0], twice.directions([1.0])[0], rtol=1e-3, atol=1e-4)


def test_spread_is_the_standard_deviation_of_the_scores() -> None:
    vectors, labels = _clouds()
    directions = np.random.default_rng(2).normal(size=(4, D))
    spread = Sums.of(vectors, labels, np.ones(N), C).spread(directions)
    assert np.allclose(spread[:, 0], (vectors @ directions.T).std(axis=0), rtol=1e-4)


def test_what_takes_the_place_of_a_text_scores_with_its_mean_and_spread() -> None:
    vectors, labels = _clouds()
    sums = Sums.of(vectors, labels, np.ones(N), C)
    texts = np.random.default_rng(3).normal(size=(C, D))
    scaled, offsets = sums.in_place_of(texts, sums.directions([0.1])[0])
    scores, of_texts = vectors @ scaled.T + offsets, vectors @ texts.T
    assert np.allclose(scores.mean(axis=0), of_texts.mean(axis=0), atol=1e-4)
    assert np.allclose(scores.std(axis=0), of_texts.std(axis=0), rtol=1e-3)


def test_one_picture_of_each_category_gives_the_difference_of_the_means() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(C, D)).astype(np.float32)
    (found,) = Sums.of(vectors, np.arange(C), np.ones(C), C).directions([0.3])
    difference = vectors - vectors.mean(axis=0)
    cosines = (found * difference).sum(axis=1) / np.linalg.norm(found, axis=1)
    assert np.allclose(cosines, np.linalg.norm(difference, axis=1), rtol=1e-4)


def test_a_category_of_two_kinds_is_found_by_what_they_share() -> None:
    rng = np.random.default_rng(5)
    kinds = rng.integers(0, 2, 200)
    axis = np.eye(D)
    own = 0.6 * axis[0] + np.where(kinds[:, None] == 0, 3.0, -3.0) * axis[1] + 0.1 * rng.normal(size=(200, D))
    other = -0.6 * axis[0] + 0.1 * rng.normal(size=(200, D)) + 3.0 * rng.normal(size=(200, 1)) * axis[1]
    vectors = np.concatenate([own, other]).astype(np.float32)
    labels = np.r_[np.zeros(200, dtype=int), np.full(200, OTHER)]
    (found,) = Sums.of(vectors, labels, np.ones(400), 1).directions([0.1])
    assert average_precision(found @ vectors.T, (labels == 0)[None])[0] > 0.99
    mean = own.mean(axis=0)  # what a centroid would ask with
    assert abs(found[0, 1] / found[0, 0]) < 0.1
    assert abs(mean[0]) > 0.5
