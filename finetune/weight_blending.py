"""WiSE-FT: which blend of base and tuned weights is shipped, and how the blends are made and scored.

A blend is (1 - alpha) * theta_0 + alpha * theta_1, with an alpha of its own for each tower. Fine-tuning
trades what a model knew for what it learns; weights between the two keep more of both than that suggests.

The rule, fixed before anything is measured: of all blends whose retention on validation lies no more than a
budget below the base's, ship the one of the highest mAP; of equals, the one nearest to the base. Alpha 0 is
among them, so where nothing beats the base, the base is shipped. `choose` is that rule.

Source: Wortsman et al. (2021), "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.model.param_groups import tower_of
from finetune.trainer import Trainer
from finetune.validation import ImageFeatures, TextFeatures, Validation, describe_scores

ALPHAS = tuple(i / 10 for i in range(11))


# ---- The rule --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One blend and its scores on validation.

    Attributes:
        alpha: The image tower's or, where that was not trained, the text tower's; 0 is the base, 1 the tuned
            model.
        map: Text-to-image mAP over the categories.
        retention: How much of the base is left, in [0, 1]; comparable only within one sweep. None if unknown.
        alpha_text: The text tower's, where both towers were trained; else None.
        agreement: A second measure of retention, where there are two.
    """

    alpha: float
    map: float
    retention: float | None
    alpha_text: float | None = None
    agreement: float | None = None

    @property
    def is_base(self) -> bool:
        """Whether it holds nothing of the tuned weights."""
        return self.alpha == 0 and not self.alpha_text

    @property
    def distance(self) -> float:
        """Distance from the base, summed over both towers."""
        return self.alpha + (self.alpha if self.alpha_text is None else self.alpha_text)


def choose(points: Sequence[Point], *, budget: float, agreement_budget: float = 1.0) -> Point:
    """Return the blend to ship: the best one within the budgets.

    Of the points whose retention lies at most `budget`, and whose agreement at most `agreement_budget`, below
    the base's: the one of the highest mAP, and of equals the nearest to the base. The base itself is always
    among them, so where nothing beats it, it is shipped.

    Args:
        points: The sweep; must hold the base.
        budget: Largest loss of retention, >= 0.
        agreement_budget: Largest loss of agreement, >= 0.

    Raises:
        ValueError: If the base is not among the points.
    """
    base = next((point for point in points if point.is_base), None)
    if base is None:
        raise ValueError("the sweep must hold alpha 0, the base")
    return best_of([point for point in points if affordable(point, base, budget, agreement_budget)])


def affordable(point: Point, base: Point, budget: float, agreement_budget: float = 1.0) -> bool:
    """Whether a blend keeps within both budgets, as in `choose`."""
    return all(
        now is None or before is None or now >= before - allowed - 1e-9
        for now, before, allowed in (
            (point.retention, base.retention, budget),
            (point.agreement, base.agreement, agreement_budget),
        )
    )


def best_of(points: Sequence[Point]) -> Point:
    """Return the point of the highest mAP; of equals the nearest to the base."""
    return max(points, key=lambda point: (point.map, -point.distance))


# ---- Weights between base and tuned ----------------------------------------------------------------------


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
        alpha_text: The text tower's alpha, if it has its own; `alpha` is then the image tower's alone.

    Returns:
        New floating-point tensors; the others are theta_1's, as they are.

    Raises:
        ValueError: If names or shapes differ, or alpha is out of range.
    """
    alphas = {"image": alpha, "text": alpha if alpha_text is None else alpha_text}
    for value in alphas.values():
        if not 0 <= value <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {value}")
    if theta_0.keys() != theta_1.keys():
        raise ValueError(f"weights differ in {sorted(theta_0.keys() ^ theta_1.keys())[:5]}")
    blended = {}
    for name, tuned in theta_1.items():
        base, alpha = theta_0[name], alphas[tower_of(name)]
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


# ---- The sweep -------------------------------------------------------------------------------------------


def choose_blend(
    trainer: Trainer,
    validation: Validation,
    config: FinetuneConfig,
    on_message: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Score the blends, load the one that `choose` picks into the trainer's model, and report on all.

    Returns:
        What training.json says under `validation`, but for the base's scores.
    """
    base = trainer.base
    after = validation.scores(
        validation.encode_images(trainer.encoder), validation.encode_texts(trainer.encoder)
    )
    if after is None or base.files is None or not config.blend:
        on_message(f"{describe_scores(after)} after training")
        return {"after": after}
    theta_0 = base.build(torch.device("cpu"), seed=config.seed).state_dict()
    theta_1 = {name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
    images, texts = _encode_blends(trainer, validation, theta_0, theta_1)
    points = {
        (alpha, alpha_text): _score(validation, images, texts, alpha, alpha_text)
        for alpha in images
        for alpha_text in ALPHAS
    }
    kind = validation.retention_kind
    budgets = {"budget": config.hit_rate_budget, "agreement_budget": config.agreement_budget}
    if kind == "agreement":
        budgets = {"budget": config.agreement_budget}
    best = choose([*points.values()], **budgets)
    alphas = (best.alpha, best.alpha_text or 0.0) if trainer.trains_images else (0.0, best.alpha)
    trainer.model.load_state_dict(blend_states(theta_0, theta_1, *alphas))
    on_message(_decision(points[0.0, 0.0], best, kind))
    rule = f"highest mAP of the blends whose {kind} lies at most {budgets['budget']:g} below the base's"
    if "agreement_budget" in budgets:
        rule += f", and whose agreement at most {config.agreement_budget:g}"
    return {
        "after": validation.scores(images[alphas[0]], texts[alphas[1]]),
        "alpha": best.alpha,
        "alpha_text": best.alpha_text,
        "rule": rule,
        "retention": kind,
        "blends": [dataclasses.asdict(point) for point in _curve(points, budgets)],
    }


def _encode_blends(
    trainer: Trainer, validation: Validation, theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor]
) -> tuple[dict[float, ImageFeatures], dict[float, TextFeatures]]:
    """Return the features of every image tower and every text tower, by alpha.

    Each tower is swept by itself: the words for categories may be taken over whole beside an image tower that
    hardly moves.
    """
    images, texts = {}, {}
    for alpha in ALPHAS:
        trainer.model.load_state_dict(blend_states(theta_0, theta_1, alpha))
        if trainer.trains_images or alpha == 0:
            images[alpha] = validation.encode_images(trainer.encoder)
        texts[alpha] = validation.encode_texts(trainer.encoder)
    return images, texts


def _score(
    validation: Validation,
    images: Mapping[float, ImageFeatures],
    texts: Mapping[float, TextFeatures],
    alpha: float,
    alpha_text: float,
) -> Point:
    """Return the scores of the blend of an image tower and a text tower."""
    scores = validation.scores(images[alpha], texts[alpha_text])
    if scores is None:
        raise RuntimeError("pictures that could be scored after training cannot be scored now")
    agreement = validation.agreement(images[alpha], texts[alpha_text], (images[0.0], texts[0.0]))
    hit_rate = validation.hit_rate(images[alpha], texts[alpha_text])
    retention = agreement if hit_rate is None else hit_rate
    both = len(images) > 1
    return Point(
        alpha=alpha if both else alpha_text,
        map=scores["text_to_image_map"],
        retention=None if retention is None else round(retention, 4),
        alpha_text=alpha_text if both else None,
        agreement=None if hit_rate is None or agreement is None else round(agreement, 4),
    )


def _curve(points: Mapping[tuple[float, float], Point], budgets: Mapping[str, float]) -> list[Point]:
    """Return the points to show to people: the base, and for each image tower its best text tower.

    Where one image tower is all there is, every text tower.
    """
    base = points[0.0, 0.0]
    curve, alphas = [base], sorted({alpha for alpha, _ in points})
    for alpha in alphas:
        row = [point for (image, _), point in points.items() if image == alpha and point != base]
        if len(alphas) > 1:
            row = [best_of([point for point in row if affordable(point, base, **budgets)] or row)]
        curve += row
    return curve


def _decision(base: Point, best: Point, kind: str) -> str:
    """Say which blend is shipped, and what it gains and costs."""
    if best.is_base:
        return (
            "Nothing between base and tuned beats the base on validation at this price: the base is what is "
            "shipped."
        )
    of_text = f", {best.alpha_text:.1f} of the text tower" if best.alpha_text is not None else ""
    cost = ""
    if best.retention is not None and base.retention is not None:
        cost = f", {kind} {base.retention:.3f} -> {best.retention:.3f}"
    return (
        f"shipping the blend alpha {best.alpha:.1f}{of_text}: validation text-to-image mAP "
        f"{base.map:.3f} -> {best.map:.3f}{cost}"
    )
