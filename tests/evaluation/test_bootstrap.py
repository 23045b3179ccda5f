"""Resampling: against images that are really duplicated, counts by category, and the interval."""

from __future__ import annotations

import numpy as np
import pytest

from imret.evaluation import bootstrap
from imret.evaluation.bootstrap import draw_counts, interval, resampled_ap
from imret.evaluation.metrics import average_precision

LABELS = np.array([0] * 12 + [1] * 5 + [2] * 3)
RELEVANT = np.arange(3)[:, None] == LABELS[None, :]


def _counts(resamples: int = 50, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(draw_counts(LABELS, resamples, seed=seed)))


def test_resampled_ap_is_the_ap_of_really_duplicated_images_ties_and_all() -> None:
    scores = np.round(np.random.default_rng(1).random((3, 20)), 1)
    counts = _counts()
    assert counts.max() > 2
    values = resampled_ap(scores, RELEVANT, counts)
    assert values.shape == (50, 3)
    for row, drawn in zip(values, counts, strict=True):
        expected = average_precision(np.repeat(scores, drawn, axis=1), np.repeat(RELEVANT, drawn, axis=1))
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_each_image_once_is_the_figure_itself() -> None:
    scores = np.random.default_rng(2).random((3, 20))
    once = np.ones((1, 20), dtype=np.int64)
    np.testing.assert_allclose(
        resampled_ap(scores, RELEVANT, once)[0], average_precision(scores, RELEVANT), atol=1e-12
    )


def test_every_draw_has_as_many_images_of_each_category_as_there_are() -> None:
    counts = _counts()
    for label, n in ((0, 12), (1, 5), (2, 3)):
        assert set(counts[:, label == LABELS].sum(axis=1)) == {n}


def test_images_are_drawn_evenly() -> None:
    assert np.abs(_counts(4000).mean(axis=0) - 1).max() < 0.1


def test_the_same_seed_gives_the_same_draws_and_another_others() -> None:
    assert (_counts(seed=3) == _counts(seed=3)).all()
    assert (_counts(seed=3) != _counts(seed=4)).any()


def test_draws_come_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CELLS", 70)  # 3 rows of 20 images
    assert [len(part) for part in draw_counts(LABELS, 8, seed=0)] == [3, 3, 2]
    monkeypatch.setattr(bootstrap, "_CELLS", 1)
    assert [len(part) for part in draw_counts(LABELS, 2, seed=0)] == [1, 1]


def test_an_interval_holds_the_middle_of_the_values() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
    assert interval(np.arange(1001.0), level=0.5) == pytest.approx((250.0, 750.0))


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % intervals of a share of 0.3, from 60 images each, over 300 worlds."""
    rng = np.random.default_rng(0)
    counts = np.concatenate(list(draw_counts(np.zeros(60, dtype=int), 400, seed=1)))
    covered = 0
    for _ in range(300):
        low, high = interval(counts @ (rng.random(60) < 0.3) / 60)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.985
