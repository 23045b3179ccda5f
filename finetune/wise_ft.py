"""WiSE-FT: the lines between base and tuned weights, one for each tower, and the rule that picks a point.

Fine-tuning trades what a model knew for what it learns, and weights between the two keep more of both than
the trade would suggest. The same line is the scale of low-rank adapters.

Source: Wortsman et al. (2021), "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.callbacks import Callbacks
from finetune.config import FinetuneConfig
from finetune.model.param_groups import tower_of
from finetune.trainer import Trainer
from finetune.validation import ImageFeatures, TextFeatures, Validation

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


def choose_blend(
    trainer: Trainer, validation: Validation, config: FinetuneConfig, watch: Callbacks
) -> dict[str, Any]:
    """Put the weights to ship into the trainer's model; return what validation says of them and the others.

    The rule is in `finetune.wise_ft.choose` and was there before the first score.
    """
    base = trainer.base
    after = validation.scores(validation.look(trainer), validation.read(trainer))
    if after is None or base.files is None or not config.blend:
        watch.say(f"{_shown(after)} after training")
        return {"after": after}
    theta_0 = base.build(torch.device("cpu"), seed=config.seed).state_dict()
    theta_1 = {name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
    # Each tower has a line of its own: words that name categories may come whole to an image tower that
    # moves a little.
    seen, read = {}, {}
    for alpha in ALPHAS:
        trainer.model.load_state_dict(blend_states(theta_0, theta_1, alpha))
        if trainer.trains_images or alpha == 0:
            seen[alpha] = validation.look(trainer)
        read[alpha] = validation.read(trainer)
    kind, points = validation.retention_kind, {}
    for image in seen:
        for text in ALPHAS:
            points[image, text] = _point(validation, seen, read, image, text)
    budgets = {"budget": config.hit_rate_budget, "agreement_budget": config.agreement_budget}
    if kind == "agreement":
        budgets = {"budget": config.agreement_budget}
    first = points[0.0, 0.0]
    best = choose([*points.values()], **budgets)
    # What is kept for people to see is a line, too: of each image tower the text tower that suits it best.
    line = [first]
    for image in seen:
        beside = [point for place, point in points.items() if place[0] == image and point != first]
        if trainer.trains_images:
            beside = [best_of([one for one in beside if affordable(one, first, **budgets)] or beside)]
        line += beside
    place = (best.alpha, best.alpha_text or 0.0) if trainer.trains_images else (0.0, best.alpha)
    trainer.model.load_state_dict(blend_states(theta_0, theta_1, *place))
    if best.is_base:
        watch.say(
            "Nothing between base and tuned beats the base on validation at this price: the base is what is "
            "shipped."
        )
    else:
        lost = (
            ""
            if best.retention is None or first.retention is None
            else (f", {kind} {first.retention:.3f} -> {best.retention:.3f}")
        )
        both = f", {best.alpha_text:.1f} of the text tower" if best.alpha_text is not None else ""
        watch.say(
            f"shipping the blend alpha {best.alpha:.1f}{both}: validation text-to-image mAP "
            f"{first.map:.3f} -> {best.map:.3f}{lost}"
        )
    rule = f"highest mAP of the blends whose {kind} lies at most {budgets['budget']:g} below the base's"
    if "agreement_budget" in budgets:
        rule += f", and whose agreement at most {config.agreement_budget:g}"
    return {
        "after": validation.scores(seen[place[0]], read[place[1]]),
        "alpha": best.alpha,
        "alpha_text": best.alpha_text,
        "rule": rule,
        "retention": kind,
        "blends": [dataclasses.asdict(point) for point in line],
    }


def _point(
    validation: Validation,
    seen: Mapping[float, ImageFeatures],
    read: Mapping[float, TextFeatures],
    image: float,
    text: float,
) -> Point:
    """Return what validation says of the blend of an image tower and a text tower."""
    found = validation.scores(seen[image], read[text])
    if found is None:
        raise RuntimeError("validation was there a moment ago")
    agreement = validation.agreement(seen[image], read[text], (seen[0.0], read[0.0]))
    hits = validation.hit_rate(seen[image], read[text])
    kept = agreement if hits is None else hits
    both = len(seen) > 1
    return Point(
        alpha=image if both else text,
        map=found["text_to_image_map"],
        retention=None if kept is None else round(kept, 4),
        alpha_text=text if both else None,
        agreement=None if hits is None or agreement is None else round(agreement, 4),
    )


def _shown(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "no validation"
    return f"validation text-to-image mAP {scores['text_to_image_map']:.3f}"
