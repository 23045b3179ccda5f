"""What a model is anchored to against forgetting: the base's features of phrases and of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.config import FinetuneConfig
from finetune.model.base_model import Base
from finetune.model.features import FeatureEncoder
from finetune.model.frozen_trunk import Stage, split_at_top_layer
from imret.errors import ModelError


@dataclass(frozen=True)
class Anchors:
    """The base, as far as the anchors need it.

    Attributes:
        phrases: P texts that anchors of texts and of phrases use; empty without either.
        phrase_features: (P, D) unit features that the base gives them; None without phrases.
        logit_scale: The base's inverse temperature.
        stages: Trunk, topmost layer and the base's topmost layer, if that is all that is trained; or None.
        frozen: The base itself, where pictures are anchored and no common trunk serves both; or None.
    """

    phrases: list[str] = field(default_factory=list)
    phrase_features: Tensor | None = None
    logit_scale: float = 1.0
    stages: tuple[Stage, Stage, Stage] | None = None
    frozen: nn.Module | None = None


def freeze_base(
    base: Base,
    model: nn.Module,
    encoder: FeatureEncoder,
    config: FinetuneConfig,
    phrases: Sequence[str],
    *,
    device: torch.device,
    trains_images: bool,
) -> Anchors:
    """Return the anchors of a model that has not been trained yet, and so is the base.

    Raises:
        ModelError: If anchors are on and there is no base.
    """
    # Below the topmost layer, where that is all that is trained, model and base are one.
    only_top = config.tune == "both" and config.image_layers == 1 and config.freeze_batch_norm
    visual: nn.Module = model.visual  # type: ignore[assignment]
    stages = split_at_top_layer(visual) if only_top else None
    # Pictures cannot change their meaning where the text tower alone is trained.
    weights = (config.anchor_images, config.anchor_phrases, config.anchor_replay)
    anchors_images = trains_images and max(weights) > 0
    if not (anchors_images or config.anchor_texts):
        return Anchors(stages=stages)
    if base.files is None:
        raise ModelError("a model from scratch has no base to be anchored to. Leave the anchors out.")
    phrase_features = None
    if phrases:
        batches = [phrases[start : start + 256] for start in range(0, len(phrases), 256)]
        phrase_features = torch.cat([encoder.encode_texts(batch) for batch in batches])  # (P, D)
    frozen = None
    if anchors_images and stages is None:
        # The base only gives features, which needs no fp32 where training has none either.
        dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
        frozen = base.build(device, seed=config.seed).to(dtype).eval().requires_grad_(False)
        frozen.to(memory_format=encoder.layout)
    logit_scale: Tensor = model.logit_scale  # type: ignore[assignment]
    return Anchors(list(phrases), phrase_features, float(logit_scale.detach().exp()), stages, frozen)
