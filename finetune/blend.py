"""WiSE-FT: the line between base and tuned weights, and the rule that picks a point on it.

Fine-tuning trades what a model knew for what it learns, and weights between the two keep more of both than
the trade would suggest. The same line is the scale of low-rank adapters.

Source: Wortsman et al. (2021), "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHAS = tuple(i / 10 for i in range(11))


def blend_states(
    theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Return (1 - alpha) * theta_0 + alpha * theta_1, of every floating-point tensor.

    Args:
        theta_0: The base's weights.
        theta_1: The tuned model's, of the same names and shapes.
        alpha: In [0, 1]; 0 gives theta_0 and 1 theta_1, to the bit.

    Returns:
        New tensors, except for those that are not floating-point: theta_1's, as they are.

    Raises:
        ValueError: If names or shapes differ, or alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    if theta_0.keys() != theta_1.keys():
        raise ValueError(f"weights differ in {sorted(theta_0.keys() ^ theta_1.keys())[:5]}")
    blended = {}
    for name, tuned in theta_1.items():
        base = theta_0[name]
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
        alpha: 0 is the base, 1 the tuned model.
        map: Text-to-image mAP over the categories.
        retention: What is left of what the base knew; comparable only within one sweep. None if unknown.
    """

    alpha: float
    map: float
    retention: float | None


def choose(points: Sequence[Point], *, budget: float) -> Point:
    """Return the blend to ship, by a rule that is fixed before anything is measured.

    Of the points whose retention lies at most `budget` below that of the base: the one of the highest mAP,
    and of equal ones the nearest to the base. The base itself is always among them, so where nothing beats
    it, it is what is shipped.

    Args:
        points: The sweep; must hold alpha 0.
        budget: Most that retention may fall, >= 0.

    Raises:
        ValueError: If the base is not among the points.
    """
    base = next((point for point in points if point.alpha == 0), None)
    if base is None:
        raise ValueError("the sweep must hold alpha 0, the base")
    allowed = [
        point
        for point in points
        if base.retention is None
        or point.retention is None
        or point.retention >= base.retention - budget - 1e-9
    ]
    return max(allowed, key=lambda point: (point.map, -point.alpha))
