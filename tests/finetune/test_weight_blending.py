"""Blends lie on the line between base and tuned, and the rule that picks one is kept."""

from __future__ import annotations

import pytest
import torch

from finetune.weight_blending import Point, blend_states, choose

BASE = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
TUNED = {"w": torch.tensor([3.0, -2.0]), "n": torch.tensor(3)}


def test_a_blend_is_the_weighted_mean() -> None:
    blended = blend_states(BASE, TUNED, 0.25)
    torch.testing.assert_close(blended["w"], torch.tensor([1.5, 1.0]))
    assert blended["n"] == 3


def test_the_ends_of_the_line_are_base_and_tuned_to_the_bit() -> None:
    assert torch.equal(blend_states(BASE, TUNED, 0.0)["w"], BASE["w"])
    assert torch.equal(blend_states(BASE, TUNED, 1.0)["w"], TUNED["w"])


def test_what_training_left_alone_stays_so_in_every_blend() -> None:
    weights = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    for tenth in range(11):
        assert torch.equal(blend_states(weights, dict(weights), tenth / 10)["w"], weights["w"])


@pytest.mark.parametrize(
    ("theta_1", "alpha"),
    [({"v": torch.zeros(2), "n": torch.tensor(3)}, 0.5), ({**TUNED, "w": torch.zeros(3)}, 0.5), (TUNED, 1.1)],
    ids=["other names", "other shapes", "alpha above 1"],
)
def test_what_cannot_be_blended_is_refused(theta_1: dict[str, torch.Tensor], alpha: float) -> None:
    with pytest.raises(ValueError, match=r"differ|is \(2,\)|alpha"):
        blend_states(BASE, theta_1, alpha)


def test_the_best_blend_within_the_budget_is_chosen() -> None:
    points = [Point(0.0, 0.3, 0.60), Point(0.5, 0.5, 0.595), Point(0.8, 0.7, 0.59), Point(1.0, 0.8, 0.57)]
    assert choose(points, budget=0.01).alpha == 0.8
    assert choose(points, budget=0.05).alpha == 1.0


def test_a_second_measure_has_a_budget_of_its_own() -> None:
    points = [
        Point(0.0, 0.3, 0.6, 0.0, 1.0),
        Point(0.2, 0.5, 0.6, 1.0, 0.85),
        Point(0.4, 0.7, 0.6, 1.0, 0.75),
        Point(0.4, 0.8, 0.5, 0.5, 0.95),
    ]
    assert choose(points, budget=0.01, agreement_budget=0.2) == points[1]
    assert choose(points, budget=0.01, agreement_budget=0.3) == points[2]
    assert choose(points, budget=0.2, agreement_budget=0.3) == points[3]


def test_of_blends_alike_the_nearest_to_the_base_over_both_towers_is_chosen() -> None:
    points = [Point(0.0, 0.3, 1.0, 0.0), Point(0.2, 0.5, 1.0, 1.0), Point(0.4, 0.5, 1.0, 0.1)]
    assert choose(points, budget=0.1) == points[2]


def test_the_base_with_the_tuned_words_is_not_the_base() -> None:
    assert not Point(0.0, 0.5, 1.0, 0.4).is_base
    with pytest.raises(ValueError, match="alpha 0"):
        choose([Point(0.0, 0.5, 1.0, 0.4)], budget=1)


def test_each_tower_has_its_own_alpha() -> None:
    base = {"visual.proj": torch.zeros(2), "positional_embedding": torch.zeros(2)}
    tuned = {"visual.proj": torch.ones(2), "positional_embedding": torch.ones(2)}
    blended = blend_states(base, tuned, 0.25, 1.0)
    torch.testing.assert_close(blended["visual.proj"], torch.full((2,), 0.25))
    assert torch.equal(blended["positional_embedding"], torch.ones(2))
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], not 1\.5"):
        blend_states(base, tuned, 0.25, 1.5)


def test_the_base_is_chosen_where_nothing_beats_it() -> None:
    assert choose([Point(0.0, 0.5, 0.6), Point(1.0, 0.5, 0.7)], budget=0.01).alpha == 0
    assert choose([Point(0.0, 0.5, 0.6), Point(1.0, 0.9, 0.1)], budget=0.01).alpha == 0


def test_without_a_measure_of_retention_map_alone_decides() -> None:
    assert (
        choose([Point(0.0, 0.5, None), Point(0.5, 0.7, None), Point(1.0, 0.6, None)], budget=0).alpha == 0.5
    )


def test_a_sweep_without_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha 0"):
        choose([Point(1.0, 0.5, None)], budget=0.1)
