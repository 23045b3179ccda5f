"""WiSE-FT: the lines between base and tuned weights, one for each tower, and the rule that picks a point.

Fine-tuning trades what a model knew for what it learns, and weights between the two keep more of both than
the trade would suggest. The same line is the scale of low-rank adapters.

Source: Wortsman et al. (2021), "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.model.param_groups import tower_of

ALPHAS = tuple(i / 10 for i in range(11))


def blend_states(
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor],
    alpha: float,
    alpha_text: float | None = None,
) -> dict[str, Tensor]:
    """Return (1 - alpha) * theta_0 + alpha * theta_1, of every floating-point tensor.

    Args:
        theta_0: The base's weights.
        theta_1: The tuned model's, of the same names and shapes.
        alpha: In [0, 1]; 0 gives theta_0 and 1 theta_1, to the bit.
        alpha_text: The same of the text tower, and alpha of the image tower alone; if None, alpha for both.

    Returns:
        New tensors, except for those that are not floating-point: theta_1's, as they are.

    Raises:
        ValueError: If names or shapes differ, or alpha is out of range.
    """
    of_tower = {"image": alpha, "text": alpha if alpha_text is None else alpha_text}
    for one in of_tower.values():
        if not 0 <= one <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {one}")
    if theta_0.keys() != theta_1.keys():
        raise ValueError(f"weights differ in {sorted(theta_0.keys() ^ theta_1.keys())[:5]}")
    blended = {}
    for name, tuned in theta_1.items():
        base, alpha = theta_0[name], of_tower[tower_of(name)]
        if base.shape != tuned.shape:
            raise ValueError(
                f"{name} is {tuple(base.shape)} in one model and {tuple(tuned.shape)} in the other"
            )
        if not tuned.is_floating_point():
            blended[name] = tuned
        elif alpha in (0, 1):
            blended[name] = (base if alpha == 0 else tuned).to(tuned, copy=True)
        else:
            blended[name] = torch.lerp(base.to(tuned), tuned, alpha)  # equal weights stay equal to the bit
    return blended


@dataclass(frozen=True)
class Point:
    """What validation says of one blend.

    Attributes:
        alpha: Of the image tower, or, where that was not trained, of the text tower; 0 is the base, 1 the
            tuned model.
        map: Text-to-image mAP over the categories.
        retention: What is left of what the base knew; comparable only within one sweep. None if unknown.
        alpha_text: Of the text tower, where that is another; None if it is the same.
        agreement: What is left of it by a second measure, where there are two.
    """

    alpha: float
    map: float
    retention: float | None
    alpha_text: float | None = None
    agreement: float | None = None

    @property
    def is_base(self) -> bool:
        """Whether nothing of the tuned weights is in it."""
        return self.alpha == 0 and not self.alpha_text

    @property
    def distance(self) -> float:
        """How far from the base, over both towers."""
        return self.alpha + (self.alpha if self.alpha_text is None else self.alpha_text)


def choose(points: Sequence[Point], *, budget: float, agreement_budget: float = 1.0) -> Point:
    """Return the blend to ship, by a rule that is fixed before anything is measured.

    Of the points whose retention lies at most `budget`, and whose agreement at most `agreement_budget`, below
    that of the base: the one of the highest mAP, and of equal ones the nearest to the base. The base itself
    is always among them, so where nothing beats it, it is what is shipped.

    Args:
        points: The sweep; must hold the base.
        budget: Most that retention may fall, >= 0.
        agreement_budget: Most that agreement may fall, >= 0.

    Raises:
        ValueError: If the base is not among the points.
    """
    base = next((point for point in points if point.is_base), None)
    if base is None:
        raise ValueError("the sweep must hold alpha 0, the base")
    return best_of([one for one in points if affordable(one, base, budget, agreement_budget)])


def affordable(point: Point, base: Point, budget: float, agreement_budget: float = 1.0) -> bool:
    """Whether a blend keeps within both budgets, as in `choose`."""
    return all(
        now is None or before is None or now >= before - most - 1e-9
        for now, before, most in (
            (point.retention, base.retention, budget),
            (point.agreement, base.agreement, agreement_budget),
        )
    )


def best_of(points: Sequence[Point]) -> Point:
    """Return the point of the highest mAP; of equal ones the nearest to the base."""
    return max(points, key=lambda point: (point.map, -point.distance))
