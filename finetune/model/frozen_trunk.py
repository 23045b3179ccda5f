"""An image tower split below its topmost layer, so that the frozen trunk is computed once.

Where only the topmost layer is trained, the trunk is the same for the model and for its base: one pass serves
both, and no gradient goes through it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

Stage = Callable[[Tensor], Tensor]


def split_at_top_layer(visual: nn.Module) -> tuple[Stage, Stage, Stage] | None:
    """Return the trunk of an image tower, its topmost layer, and a frozen copy of that layer.

    Args:
        visual: The image tower of one of open_clip's models, as the base has it.

    Returns:
        Three functions: (B, 3, H, W) normalised pixels to hidden states, and twice hidden states to (B, D)
        features. None for a tower of a kind not known here, or whose topmost layer is timm's own, as in
        SigLIP.
    """
    tower: Any = visual
    if isinstance(visual, TimmModel):
        if not any(True for _ in tower.head.parameters()):
            return None
        frozen: Any = copy.deepcopy(tower.head).requires_grad_(False)
        return tower.trunk, tower.head, frozen
    if (
        isinstance(visual, VisionTransformer)
        and all(hasattr(visual, name) for name in ("_embeds", "_pool"))
        and not tower.output_tokens
    ):
        top = copy.copy(tower)
        top._modules = {name: module for name, module in tower._modules.items() if name != "transformer"}
        top = copy.deepcopy(top).requires_grad_(False)
        return lambda x: cast(Tensor, tower.transformer(tower._embeds(x))), _top_of(tower), _top_of(top)
    return None


def _top_of(tower: Any) -> Stage:
    def features(hidden: Tensor) -> Tensor:
        pooled = tower._pool(hidden)[0]
        return cast(Tensor, pooled if tower.proj is None else pooled @ tower.proj)

    return features
