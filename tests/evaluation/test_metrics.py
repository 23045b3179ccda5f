"""Every metric against hand-worked numbers and a naive loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from imret.evaluation.metrics import (
    average_precision,
    confusion,
    hit_rate_at_k,
    interpolated_precision,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    ranked,
    recall_at_k,
)

# Relevant at ranks 1, 3 and 4 of 5.
SCORES = np.array([[0.9, 0.8, 0.7, 0.6, 0.1]])
RELEVANT = np.array([[True, False, True, True, False]])


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """20 random rankings of 50 images, full of ties."""
    rng = np.random.default_rng(0)
    relevant = rng.random((20, 50)) < 0.2
    relevant[:, 0] = True
    return np.round(rng.random((20, 50)), 1), relevant


def _hits(scores: np.ndarray, relevant: np.ndarray) -> list[bool]:
    """Whether the image at each rank is relevant, by sorting in Python."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [bool(relevant[i]) for i in order]


def test_every_metric_equals_the_hand_worked_example() -> None:
    assert average_precision(SCORES, RELEVANT)[0] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert r_precision(SCORES, RELEVANT)[0] == pytest.approx(2 / 3)
    assert precision_at_k(SCORES, RELEVANT, 2)[0] == 0.5
    assert recall_at_k(SCORES, RELEVANT, 2)[0] == pytest.approx(1 / 3)
    assert hit_rate_at_k(SCORES, RELEVANT, 1)[0] == 1
    assert hit_rate_at_k(-SCORES, RELEVANT, 1)[0] == 0
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at_k(SCORES, RELEVANT, 3)[0] == pytest.approx((1 + 1 / math.log2(4)) / ideal)


def test_the_ideal_of_ndcg_is_no_longer_than_what_is_relevant() -> None:
    assert ndcg_at_k(SCORES, np.array([[True, True, False, False, False]]), 5)[0] == 1.0


@pytest.mark.parametrize(
    ("metric", "naive"),
    [
        (
            average_precision,
            lambda h: sum(sum(h[: i + 1]) / (i + 1) for i in range(len(h)) if h[i]) / sum(h),
        ),
        (r_precision, lambda h: sum(h[: sum(h)]) / sum(h)),
        (lambda s, r: precision_at_k(s, r, 10), lambda h: sum(h[:10]) / 10),
        (lambda s, r: recall_at_k(s, r, 10), lambda h: sum(h[:10]) / sum(h)),
        (lambda s, r: hit_rate_at_k(s, r, 3), lambda h: float(any(h[:3]))),
        (
            lambda s, r: ndcg_at_k(s, r, 10),
            lambda h: (
                sum(1 / math.log2(i + 2) for i in range(10) if h[i])
                / sum(1 / math.log2(i + 2) for i in range(min(10, sum(h))))
            ),
        ),
    ],
    ids=["average precision", "R-precision", "precision", "recall", "hit rate", "nDCG"],
)
def test_a_metric_equals_a_naive_loop_on_random_rankings_with_ties(
    metric: Callable[..., np.ndarray],
    naive: Callable[[list[bool]], float],
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    for row, value in enumerate(metric(*drawn)):
        assert value == pytest.approx(naive(_hits(drawn[0][row], drawn[1][row])))


def test_a_precision_recall_curve_is_the_best_precision_from_each_recall_on(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    levels = np.linspace(0, 1, 11)
    for row, curve in enumerate(interpolated_precision(*drawn, levels)):
        hits = _hits(drawn[0][row], drawn[1][row])
        points = [(sum(hits[:i]) / sum(hits), sum(hits[:i]) / i) for i in range(1, 51)]
        assert curve == pytest.approx([max(p for r, p in points if r >= level - 1e-9) for level in levels])


def test_confusion_counts_what_is_taken_for_what() -> None:
    counts = confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]


def test_equal_scores_rank_by_column() -> None:
    assert average_precision(np.zeros((1, 2)), np.array([[True, False]]))[0] == 1.0
    assert average_precision(np.zeros((1, 2)), np.array([[False, True]]))[0] == 0.5


def test_a_query_with_nothing_relevant_is_refused_by_its_row() -> None:
    with pytest.raises(ValueError, match="query 1 has no relevant image"):
        average_precision(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="query 0 hold NaN"):
        average_precision(np.array([[np.nan, 1.0]]), np.array([[True, False]]))


@pytest.mark.parametrize("k", [0, 6, -1])
def test_a_cut_off_beyond_the_images_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in \[1, 5\], not {k}"):
        precision_at_k(SCORES, RELEVANT, k)


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 5\) and relevant \(1, 4\)"):
        ranked(SCORES, RELEVANT[:, :4])
