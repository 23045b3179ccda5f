"""LoRA: low-rank adapters on the weights themselves, in both towers.

The adapter is a parametrization of the weight, W + (alpha / rank) B A, and not a wrapper of the module, so
that whoever reads the weight gets the sum. That matters in `nn.MultiheadAttention`, which never calls its
`out_proj` but passes its weight on: a wrapped `out_proj` would learn nothing.

Source: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models",
    https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finetune.model.param_groups import tower_of

# The token table is a look-up: an adapter on it would be as large as the rows that occur.
_NOT_ADAPTED = (nn.Embedding, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_NOT_ADAPTED_NAMES = (
    "positional_embedding",
    "class_embedding",
    "pos_embed",
    "relative_position_bias_table",
    "cls_token",
    "cls_emb",
    "reg_token",
    "latent",
    "logit_scale",
    "logit_bias",
)


class LowRank(nn.Module):
    """The sum of a weight and `scale * B A`.

    Args:
        weight: (out, ...) weight to adapt; all dimensions but the first count as one.
        rank: Of the adapter, in each of its stacked parts.
        scale: What B A is multiplied with.
        parts: How many matrices of their own are stacked in `weight`: 3 where it holds those of query, key
            and value.
        generator: Draws A; B begins at zero, and with it the adapter.
    """

    def __init__(
        self, weight: Tensor, *, rank: int, scale: float, parts: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        n_out, n_in = weight.shape[0] // parts, weight[0].numel()
        rank = min(rank, n_out, n_in)
        drawn = torch.randn(parts, rank, n_in, generator=generator) / math.sqrt(n_in)
        self.A = nn.Parameter(drawn.to(weight.device))
        self.B = nn.Parameter(torch.zeros(parts, n_out, rank, device=weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, (out, ...) like the plain one."""
        return weight + self.scale * (self.B @ self.A).reshape(weight.shape).to(weight.dtype)


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    seed: int,
    towers: Sequence[str] = ("image", "text"),
) -> list[str]:
    """Freeze a model and put an adapter on every matrix and kernel of both towers.

    The model computes what it did before, to the bit, until the adapters are trained. Token and position
    tables, norms and the logit scale stay as they are.

    Args:
        model: One of open_clip's two-tower models.
        rank: Of every adapter, where the matrix has that many rows and columns.
        alpha: The adapters' weight is alpha / rank.
        seed: Draws the adapters.
        towers: Which get adapters.

    Returns:
        Names of the adapted weights.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    adapted = []
    for prefix, module in list(model.named_modules()):
        if isinstance(module, _NOT_ADAPTED):
            continue
        # A parameter of the model itself is the text tower's, but for the image tower's own module.
        if tower_of(f"{prefix}." if prefix else "") not in towers:
            continue
        for name, weight in list(module.named_parameters(recurse=False)):
            # (C, 1, 1) is a vector: the gains of a layer, as MobileCLIP has them.
            is_vector = weight.ndim < 2 or weight[0].numel() == 1
            if is_vector or name in _NOT_ADAPTED_NAMES or _is_depthwise(module):
                continue
            parts = 3 if name == "in_proj_weight" else 1
            adapter = LowRank(weight, rank=rank, scale=alpha / rank, parts=parts, generator=generator)
            parametrize.register_parametrization(module, name, adapter, unsafe=True)
            adapted.append(f"{prefix}.{name}" if prefix else name)
    return adapted


def _is_depthwise(module: nn.Module) -> bool:
    """Whether the kernel has one input channel per output, and so no rank to reduce."""
    return isinstance(module, nn.Conv2d) and module.groups > 1


def merge_lora(model: nn.Module) -> None:
    """Fold the adapters into plain weights; the model is again one that stock open_clip knows."""
    with torch.no_grad():
        for module in list(model.modules()):
            for name in list(getattr(module, "parametrizations", ())):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
