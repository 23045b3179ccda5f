"""open_clip's vision transformer, run from its weights: for pictures, without open_clip and its modules.

Importing open_clip takes seconds, and more where what it can use is installed, too; the tower itself is forty
lines. It computes what open_clip's does, with fewer passes over memory: a layer norm does not write out its
input in float32, a sum goes where a term was. What is not the plain architecture is left to open_clip, and so
is every tower where IMRET_TOWERS=plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

from imret.models.checkpoint import Checkpoint, placed
from imret.models.fingerprint import ModelFiles

_PREFIX = "visual."
_EPS = 1e-5  # torch's

# Keys of open_clip's `vision_cfg` that this module reads, and what else may be there without effect.
_READ = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("ls_init_value", "no_ln_pre", "pool_type", "final_ln_after_pool", "norm_kwargs"),
}
_WITHOUT_EFFECT = {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads"}  # and what is off


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a configuration says of a tower."""

    layers: int
    width: int
    heads: int
    inner: int  # width of an MLP's hidden layer
    patch: tuple[int, int]
    grid: tuple[int, int]
    dim: int
    scaled: bool  # whether each block scales its terms
    normed_before: bool
    pool: str
    pooled_first: bool  # before the last norm
    eps: float
    quick: bool  # the GELU of OpenAI's models

    @classmethod
    def of(cls, model_cfg: Mapping[str, Any]) -> _Shape | None:
        """Return the shape of a plain vision transformer, or None of anything else."""
        cfg = dict(model_cfg["vision_cfg"])
        others = {key: value for key, value in cfg.items() if key not in _READ | _WITHOUT_EFFECT}
        others.pop("pos_embed_type", None)  # what is not learned is among the weights, too
        layers, norm = cfg.get("layers", 12), cfg.get("norm_kwargs") or {}
        pool = cfg.get("pool_type", "tok")
        if any(others.values()) or not isinstance(layers, int) or set(norm) - {"eps"}:
            return None
        if pool not in ("tok", "avg"):
            return None
        width = cfg.get("width", 768)
        patch, image = _two(cfg.get("patch_size", 16)), _two(cfg.get("image_size", 224))
        return cls(
            layers=layers,
            width=width,
            heads=width // cfg.get("head_width", 64),
            inner=int(width * cfg.get("mlp_ratio", 4.0)),
            patch=patch,
            grid=(image[0] // patch[0], image[1] // patch[1]),
            dim=model_cfg["embed_dim"],
            scaled=cfg.get("ls_init_value") is not None,
            normed_before=not cfg.get("no_ln_pre", False),
            pool=pool,
            pooled_first=bool(cfg.get("final_ln_after_pool", False)),
            eps=norm.get("eps", _EPS),
            quick=bool(model_cfg.get("quick_gelu", False)),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all weights by their names in a checkpoint, without the prefix."""
        width, inner = self.width, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "conv1.weight": (width, 3, *self.patch),
            "class_embedding": (width,),
            "positional_embedding": (1 + self.grid[0] * self.grid[1], width),
            **_norm("ln_post", width),
            "proj": (width, self.dim),
        }
        if self.normed_before:
            shapes |= _norm("ln_pre", width)
        for number in range(self.layers):
            block = f"transformer.resblocks.{number}."
            shapes |= {
                **_norm(f"{block}ln_1", width),
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                **_norm(f"{block}ln_2", width),
                f"{block}mlp.c_fc.weight": (inner, width),
                f"{block}mlp.c_fc.bias": (inner,),
                f"{block}mlp.c_proj.weight": (width, inner),
                f"{block}mlp.c_proj.bias": (width,),
            }
            if self.scaled:
                shapes |= {f"{block}ls_1.gamma": (width,), f"{block}ls_2.gamma": (width,)}
        return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _two(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def load_vision(files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> Vision | None:
    """Read the image tower of a model whose architecture and weights are plain.

    Args:
        files: What `resolve_model` found.
        device: Where the weights go. On a CPU, those used as stored are private views of the file.
        dtype: torch.float32 or torch.bfloat16. Scales of norms stay float32 where the device's kernels take
            them beside bfloat16.

    Returns:
        The tower, or None where only `load_clip` knows what to do: also where weights are missing, unknown,
        or of other shapes.

    Raises:
        ModelError: If the checkpoint cannot be read.
    """
    shape = _Shape.of(files.model_cfg)
    if shape is None or shape.heads == 0 or shape.width % shape.heads != 0:
        return None
    checkpoint = Checkpoint(files.weights)
    found = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(_PREFIX)
    }
    if {name: tuple(tensor.shape) for name, tensor in found.items()} != shape.tensors():
        return None
    norms = torch.float32 if device.type == "cpu" else dtype
    return Vision(
        shape,
        {
            name: placed(checkpoint, tensor, device=device, dtype=norms if "ln_" in name else dtype)
            for name, tensor in found.items()
        },
    )


class Vision:
    """The tower.

    Args:
        shape: Of the architecture.
        weights: By name, as `_Shape.tensors` lists them.
    """

    def __init__(self, shape: _Shape, weights: Mapping[str, torch.Tensor]) -> None:
        self._shape, self._weights = shape, weights

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, D) features of (B, 3, H, W) normalised pixels in the tower's precision."""
        shape, weights = self._shape, self._weights
        x = conv2d(pixels, weights["conv1.weight"], stride=shape.patch)  # (B, W, h, w)
        x = x.flatten(2).transpose(1, 2)  # (B, T - 1, W)
        begin = weights["class_embedding"].expand(len(x), 1, -1)
        x = torch.cat([begin, x], dim=1) + weights["positional_embedding"]  # (B, T, W)
        if shape.normed_before:
            x = self._normed("ln_pre", x)
        for number in range(shape.layers):
            x = self._block(f"transformer.resblocks.{number}.", x)
        if shape.pool == "tok":
            x = self._normed("ln_post", x[:, 0])  # the same before and after: each place has its own norm
        elif shape.pooled_first:
            x = self._normed("ln_post", x[:, 1:].mean(dim=1))
        else:
            x = self._normed("ln_post", x)[:, 1:].mean(dim=1)
        return x @ weights["proj"]

    def _block(self, block: str, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, W), in the memory of x."""
        shape, weights = self._shape, self._weights
        mixed = linear(
            self._normed(f"{block}ln_1", x),
            weights[f"{block}attn.in_proj_weight"],
            weights[f"{block}attn.in_proj_bias"],
        )
        # (B, T, 3 W) -> three of (B, heads, T, W / heads)
        parts = mixed.view(*x.shape[:2], 3, shape.heads, x.shape[2] // shape.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, T, W)
        self._add(x, seen, f"{block}attn.out_proj", f"{block}ls_1.gamma")
        inner = linear(
            self._normed(f"{block}ln_2", x),
            weights[f"{block}mlp.c_fc.weight"],
            weights[f"{block}mlp.c_fc.bias"],
        )
        inner = inner * torch.sigmoid(1.702 * inner) if shape.quick else gelu(inner)
        self._add(x, inner, f"{block}mlp.c_proj", f"{block}ls_2.gamma")
        return x

    def _add(self, x: torch.Tensor, term: torch.Tensor, name: str, scale: str) -> None:
        made = linear(term, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])
        if self._shape.scaled:
            made *= self._weights[scale]
        x += made

    def _normed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(x, (self._shape.width,), weight, bias, self._shape.eps)
