"""Probabilities mean what they say: fitted against a brute search, judged on made-up truth."""

from __future__ import annotations

import numpy as np
import pytest

from imret.concepts.calibration import calibrate, error_of, fit, softmax


def _sample(n: int, scale: float, biases: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, len(biases))) * 0.05 + 0.2
    shares = softmax(scale * scores + np.array(biases))
    labels = np.array([rng.choice(len(biases), p=row) for row in shares])
    return scores, labels


def test_the_scale_and_the_biases_that_made_the_labels_are_found_again() -> None:
    scores, labels = _sample(20_000, 40.0, [0.0, 1.0, -1.0])
    scale, biases = fit(scores, labels)
    assert scale == pytest.approx(40, rel=0.08)
    assert biases - biases[0] == pytest.approx([0, 1, -1], abs=0.12)


def test_no_other_scale_makes_the_labels_more_likely() -> None:
    scores, labels = _sample(400, 30.0, [0.5, -0.5, 0.0])
    scale, biases = fit(scores, labels)

    def likelihood(scale: float) -> float:
        shares = softmax(scale * scores + biases)
        return float(np.log(shares[np.arange(len(labels)), labels]).mean())

    assert likelihood(scale) >= max(likelihood(scale * factor) for factor in (0.5, 0.8, 1.25, 2)) - 1e-3


def test_labels_told_apart_without_a_fault_give_a_finite_scale() -> None:
    labels = np.arange(60) % 3
    scores = np.eye(3)[labels] * 0.1
    scale, biases = fit(scores, labels)
    assert 0 < scale < 1e6
    assert np.isfinite(biases).all()


def test_scores_that_say_nothing_give_the_frequencies() -> None:
    labels = np.r_[np.zeros(90, dtype=int), np.ones(10, dtype=int)]
    scale, biases = fit(np.zeros((100, 2)), labels)
    assert softmax(scale * np.zeros((1, 2)) + biases)[0] == pytest.approx([0.9, 0.1], abs=0.01)


def test_the_error_is_told_of_pictures_that_were_not_fitted_on() -> None:
    scores, labels = _sample(4_000, 40.0, [0.0, 0.0, 0.0])
    found = calibrate(["a", "b", "c"], scores.T, scores.T, labels, logit_scale=400.0)
    assert found.error_before > 0.15  # far too sure
    assert found.error < 0.05
    assert list(found.biases) == ["a", "b", "c"]
    fresh_scores, fresh = _sample(4_000, 40.0, [0.0, 0.0, 0.0], seed=1)
    biases = np.array(list(found.biases.values()))
    assert error_of(softmax(found.scale * fresh_scores + biases), fresh) < 0.05
