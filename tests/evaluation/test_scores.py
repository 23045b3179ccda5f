"""Figures of a report: against naive loops and hand-worked rankings; differences of paired draws."""

from __future__ import annotations

import numpy as np
import pytest

from imret.datasets.scan import Skipped
from imret.evaluation import scores as scores_module
from imret.evaluation.dataset import Embedded, in_common
from imret.evaluation.report import HitRates, Retention
from imret.evaluation.retention import CaptionHits
from imret.evaluation.scores import image_to_image, text_to_image, worst, zero_shot
from imret.evaluation.significance import IMAGES, MAP, RETENTION, TOP1, System, bounds, difference, resample

NO_FIGURES = Retention(0, 0, 0, {}, HitRates({}))


def _embedded(counts: tuple[int, ...], *, seed: int = 0, dim: int = 8) -> Embedded:
    """Random unit vectors that lean towards their category's direction."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = rng.normal(size=(len(labels), dim)) + 0.8 * rng.normal(size=(len(counts), dim))[labels]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    names = [f"c{i}" for i in range(len(counts))]
    return Embedded([f"c{label}/{i}.jpg" for i, label in enumerate(labels)], labels, names, vectors, [])


def _naive_ap(hits: list[bool]) -> float:
    found, total = 0, 0.0
    for rank, hit in enumerate(hits, start=1):
        found += hit
        total += hit * found / rank
    return total / found


def test_text_to_image_is_a_mean_over_categories_and_leaves_out_what_there_are_too_few_pictures_for() -> None:
    found = _embedded((4, 8))
    scores = np.random.default_rng(1).random((2, 12))
    figures = text_to_image(scores, found, [(0.1, 0.9), (0.2, 0.8)])
    aps = []
    for category in range(2):
        order = sorted(range(12), key=lambda i: (-scores[category, i], i))
        aps.append(_naive_ap([bool(found.labels[i] == category) for i in order]))
    assert figures.macro.map == pytest.approx(np.mean(aps), abs=1e-4)
    assert figures.per_category["c1"].ap == pytest.approx(aps[1], abs=1e-4)
    assert figures.per_category["c1"].ap_interval == (0.2, 0.8)
    assert list(figures.macro.precision) == [1, 5, 10]
    assert list(figures.macro.ndcg) == [10]
    assert figures.curve[0] >= figures.curve[-1]


@pytest.mark.parametrize("cells", [1, 70, 1 << 22])
def test_image_to_image_asks_without_itself_as_a_naive_loop_does(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "_CELLS", cells)
    found = _embedded((12, 7, 1, 3))
    figures, aps = image_to_image(found)
    expected: list[float] = []
    first: list[bool] = []
    for i in range(23):
        if found.labels[i] == 2:  # alone in its category
            assert np.isnan(aps[i])
            continue
        cosines = found.vectors @ found.vectors[i]
        others = sorted((j for j in range(23) if j != i), key=lambda j: (-cosines[j], j))
        hits = [bool(found.labels[j] == found.labels[i]) for j in others]
        expected.append(_naive_ap(hits))
        first.append(hits[0])
        assert aps[i] == pytest.approx(expected[-1])
    assert figures.map == pytest.approx(np.mean(expected), abs=1e-4)
    assert figures.precision[1] == pytest.approx(np.mean(first), abs=1e-4)
    assert figures.queries == 22
    assert "c2" not in figures.per_category
    of_category = [np.mean(expected[:12]), np.mean(expected[12:19]), np.mean(expected[19:])]
    assert figures.macro_map == pytest.approx(np.mean(of_category), abs=1e-4)


def test_where_every_picture_is_alone_image_to_image_has_no_figure() -> None:
    figures, aps = image_to_image(_embedded((1, 1)))
    assert figures.map is None
    assert figures.per_category == {}
    assert np.isnan(aps).all()


def test_zero_shot_counts_what_each_picture_is_taken_for() -> None:
    found = _embedded((3, 1))
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.9]])  # the third is taken for c1
    figures = zero_shot(scores, found)
    assert figures.confusion == [[2, 1], [0, 1]]
    assert figures.top1 == 0.75
    assert figures.macro_top1 == pytest.approx((2 / 3 + 1) / 2, abs=1e-4)
    assert figures.per_category == {"c0": 0.6667, "c1": 1.0}


def test_the_worst_are_own_pictures_behind_their_places_and_strangers_within_them() -> None:
    found = _embedded((2, 2))
    # For c0: 2, 0, 1, 3; for c1: 3, 2, 1, 0, which is right.
    scores = np.array([[0.8, 0.7, 0.9, 0.1], [0.0, 0.1, 0.8, 0.9]])
    entries = worst(scores, found)
    assert [(entry.kind, entry.path, entry.category, entry.rank) for entry in entries] == [
        ("missed", "c0/1.jpg", "c0", 3),
        ("intruder", "c1/2.jpg", "c0", 1),
    ]
    assert entries[1].true == "c1"
    assert entries[1].predicted == "c0"


def test_strangers_behind_the_places_of_a_small_category_do_not_crowd_out_those_within_a_large_one() -> None:
    found = _embedded((1, 1, 40))
    scores = np.random.default_rng(0).random((3, 42))
    scores[0, 0] = scores[1, 1] = (
        2  # both small ones rank right; all behind them are strangers, as they should
    )
    scores[2, :30] = 0
    scores[2, 0] = 0.0001  # behind 12 of the large one's own, and before its other 28
    kinds = [(entry.kind, entry.path, entry.category) for entry in worst(scores, found)]
    assert ("intruder", "c0/0.jpg", "c2") in kinds


def test_a_perfect_ranking_has_no_failures() -> None:
    found = _embedded((2, 2))
    assert worst(np.array([[4, 3, 2, 1], [1, 2, 3, 4]]) / 4, found) == []


def _system(name: str, found: Embedded, seed: int) -> System:
    rng = np.random.default_rng(seed)
    hits = CaptionHits(NO_FIGURES, rng.random(20) < 0.6, np.repeat(np.arange(4), 5))
    return System(
        name, rng.random((len(found.categories), len(found.labels))), image_to_image(found)[1], hits
    )


def test_identical_models_differ_by_exactly_nothing() -> None:
    found = _embedded((10, 4, 1))
    samples = resample([_system("a", found, 1), _system("b", found, 1)], found, 100, seed=0)
    figures = {name: dict.fromkeys((MAP, TOP1, IMAGES, RETENTION), 0.5) for name in "ab"}
    rows = difference("b", "a", samples, figures)
    assert [row.metric for row in rows] == [MAP, TOP1, IMAGES, RETENTION]
    assert all(row.interval == (0.0, 0.0) for row in rows)


def test_resampled_figures_lie_around_those_of_the_pictures_as_they_are() -> None:
    found = _embedded((20, 10, 5))
    one = _system("a", found, 1)
    drawn = resample([one], found, 400, seed=0)["a"].figures
    assert one.image_aps is not None
    assert one.caption_hits is not None
    assert drawn[TOP1].mean() == pytest.approx((one.scores.argmax(axis=0) == found.labels).mean(), abs=0.01)
    assert drawn[IMAGES].mean() == pytest.approx(one.image_aps.mean(), abs=0.01)
    assert drawn[RETENTION].mean() == pytest.approx(one.caption_hits.hits.mean(), abs=0.01)
    low, high = bounds(drawn[MAP])
    assert low < text_to_image(one.scores, found, [(0.0, 1.0)] * 3).macro.map < high


def test_captions_of_one_picture_are_drawn_together() -> None:
    """Two pictures of ten captions, one found by all, one by none: draws give 0, 0.5 or 1 and no other."""
    found = _embedded((2, 2))
    caption_hits = CaptionHits(NO_FIGURES, np.repeat([True, False], 10), np.repeat([0, 1], 10))
    system = System("a", np.random.default_rng(0).random((2, 4)), None, caption_hits)
    assert set(resample([system], found, 200, seed=0)["a"].figures[RETENTION]) == {0.0, 0.5, 1.0}


def test_models_that_could_take_different_pictures_are_compared_on_those_that_all_could() -> None:
    both = _embedded((3, 3))
    keep = [0, 1, 2, 3, 5]
    fewer = Embedded(
        [both.paths[i] for i in keep],
        both.labels[keep],
        both.categories,
        both.vectors[keep],
        [Skipped("c1/4.jpg", "too odd")],
    )
    first, second = in_common([both, fewer])
    assert first.paths == second.paths == fewer.paths
    assert first.labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(first.vectors, both.vectors[keep])
    assert first.skipped == second.skipped == fewer.skipped
