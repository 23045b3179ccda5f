"""Average precision against hand-worked numbers and a naive loop."""

from __future__ import annotations

import numpy as np
import pytest

from imret.metrics import average_precision


def test_average_precision_equals_the_hand_worked_example() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.1]])
    relevant = np.array([[True, False, True, False]])
    assert average_precision(scores, relevant)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_average_precision_equals_a_naive_loop_on_random_rankings_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((20, 50)), 1)
    relevant = rng.random((20, 50)) < 0.2
    relevant[:, 0] = True
    for row, value in enumerate(average_precision(scores, relevant)):
        order = sorted(range(50), key=lambda i: (-scores[row, i], i))
        found, total = 0, 0.0
        for rank, i in enumerate(order, start=1):
            if relevant[row, i]:
                found += 1
                total += found / rank
        assert value == pytest.approx(total / found)


def test_equal_scores_rank_by_column() -> None:
    assert average_precision(np.zeros((1, 2)), np.array([[True, False]]))[0] == 1.0
    assert average_precision(np.zeros((1, 2)), np.array([[False, True]]))[0] == 0.5


def test_a_query_with_nothing_relevant_is_refused_by_its_row() -> None:
    with pytest.raises(ValueError, match="query 1 has no relevant image"):
        average_precision(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="query 0 hold NaN"):
        average_precision(np.array([[np.nan, 1.0]]), np.array([[True, False]]))
