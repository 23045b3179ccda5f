"""open_clip's vision transformer, run from its weights: for the first picture of a process.

Importing open_clip takes seconds, and more where what it can use is installed, too; the tower itself is forty
lines. Measured with a ViT-B/32 in fp32: the first picture takes 1.8 seconds of processor time instead of 4.3.
It is for that start alone: once loaded, it computes what open_clip's does and is no faster. What is not the
plain architecture is left to open_clip, and so is every tower where IMRET_TOWERS=plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

from imret.models.checkpoint import Checkpoint
from imret.models.fingerprint import ModelFiles
from imret.models.safetensors_map import block_shapes, norm_shapes

_PREFIX = "visual."
_EPS = 1e-5  # torch's

# Keys of open_clip's `vision_cfg` that this module reads, and what else may be there without effect.
_READ = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("ls_init_value", "no_ln_pre", "pool_type", "final_ln_after_pool", "norm_kwargs"),
}
_WITHOUT_EFFECT = {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads"}  # and what is off


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """The architecture of a plain vision transformer.

    Attributes:
        layers: Number of blocks.
        width: Of the residual stream.
        heads: Of attention.
        mlp_width: Of the hidden layer of each MLP.
        patch: Pixels of one patch, (height, width).
        grid: Patches of a picture, (rows, columns).
        dim: Length of an embedding.
        layer_scale: Whether each block scales what it adds.
        norm_pre: Whether there is a norm before the first block.
        pool: "tok" (the class token) or "avg" (the mean of the patches).
        norm_after_pool: Whether the last norm comes after the mean.
        eps: Of the norms.
        quick_gelu: Whether the activation is that of OpenAI's models.
    """

    layers: int
    width: int
    heads: int
    mlp_width: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    dim: int
    layer_scale: bool
    norm_pre: bool
    pool: str
    norm_after_pool: bool
    eps: float
    quick_gelu: bool

    @classmethod
    def from_model_cfg(cls, model_cfg: Mapping[str, Any]) -> ViTConfig | None:
        """Return the configuration of a plain vision transformer, or None of anything else."""
        cfg = dict(model_cfg["vision_cfg"])
        others = {key: value for key, value in cfg.items() if key not in _READ | _WITHOUT_EFFECT}
        others.pop("pos_embed_type", None)  # what is not learned is among the weights, too
        layers, norm = cfg.get("layers", 12), cfg.get("norm_kwargs") or {}
        pool = cfg.get("pool_type", "tok")
        if any(others.values()) or not isinstance(layers, int) or set(norm) - {"eps"}:
            return None
        width, head_width = cfg.get("width", 768), cfg.get("head_width", 64)
        if pool not in ("tok", "avg") or width < head_width or width % (width // head_width):
            return None
        patch, image = _pair(cfg.get("patch_size", 16)), _pair(cfg.get("image_size", 224))
        return cls(
            layers=layers,
            width=width,
            heads=width // head_width,
            mlp_width=int(width * cfg.get("mlp_ratio", 4.0)),
            patch=patch,
            grid=(image[0] // patch[0], image[1] // patch[1]),
            dim=model_cfg["embed_dim"],
            layer_scale=cfg.get("ls_init_value") is not None,
            norm_pre=not cfg.get("no_ln_pre", False),
            pool=pool,
            norm_after_pool=bool(cfg.get("final_ln_after_pool", False)),
            eps=norm.get("eps", _EPS),
            quick_gelu=bool(model_cfg.get("quick_gelu", False)),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all weights by their names in a checkpoint, without the prefix."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "conv1.weight": (width, 3, *self.patch),
            "class_embedding": (width,),
            "positional_embedding": (1 + self.grid[0] * self.grid[1], width),
            **norm_shapes("ln_post", width),
            "proj": (width, self.dim),
        }
        if self.norm_pre:
            shapes |= norm_shapes("ln_pre", width)
        for number in range(self.layers):
            block = f"transformer.resblocks.{number}."
            shapes |= block_shapes(block, width, self.mlp_width)
            if self.layer_scale:
                shapes |= {f"{block}ls_1.gamma": (width,), f"{block}ls_2.gamma": (width,)}
        return shapes


def _pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def load_vision_transformer(
    files: ModelFiles, *, device: torch.device, dtype: torch.dtype
) -> VisionTransformer | None:
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
    config = ViTConfig.from_model_cfg(files.model_cfg)
    if config is None:
        return None
    checkpoint = Checkpoint(files.weights)
    tensors = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(_PREFIX)
    }
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != config.tensor_shapes():
        return None
    norm_dtype = torch.float32 if device.type == "cpu" else dtype
    return VisionTransformer(
        config,
        {
            name: checkpoint.place(tensor, device=device, dtype=norm_dtype if "ln_" in name else dtype)
            for name, tensor in tensors.items()
        },
    )


class VisionTransformer:
    """The image tower.

    Args:
        config: Its architecture.
        weights: By name, as `ViTConfig.tensor_shapes` lists them.
    """

    def __init__(self, config: ViTConfig, weights: Mapping[str, torch.Tensor]) -> None:
        self._config, self._weights = config, weights

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, D) features of (B, 3, H, W) normalised pixels in the tower's precision."""
        config, weights = self._config, self._weights
        x = conv2d(pixels, weights["conv1.weight"], stride=config.patch)  # (B, W, h, w)
        x = x.flatten(2).transpose(1, 2)  # (B, T - 1, W)
        class_token = weights["class_embedding"].expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + weights["positional_embedding"]  # (B, T, W)
        if config.norm_pre:
            x = self._norm("ln_pre", x)
        for number in range(config.layers):
            x = self._block(f"transformer.resblocks.{number}.", x)
        if config.pool == "tok":
            x = self._norm("ln_post", x[:, 0])  # the same before and after: each place has its own norm
        elif config.norm_after_pool:
            x = self._norm("ln_post", x[:, 1:].mean(dim=1))
        else:
            x = self._norm("ln_post", x)[:, 1:].mean(dim=1)
        return x @ weights["proj"]

    def _block(self, block: str, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, W), in the memory of x."""
        config, weights = self._config, self._weights
        qkv = linear(
            self._norm(f"{block}ln_1", x),
            weights[f"{block}attn.in_proj_weight"],
            weights[f"{block}attn.in_proj_bias"],
        )
        # (B, T, 3 W) -> three of (B, heads, T, W / heads)
        heads = qkv.view(*x.shape[:2], 3, config.heads, x.shape[2] // config.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, T, W)
        self._add(x, attended, f"{block}attn.out_proj", f"{block}ls_1.gamma")
        hidden = linear(
            self._norm(f"{block}ln_2", x),
            weights[f"{block}mlp.c_fc.weight"],
            weights[f"{block}mlp.c_fc.bias"],
        )
        hidden = hidden * torch.sigmoid(1.702 * hidden) if config.quick_gelu else gelu(hidden)
        self._add(x, hidden, f"{block}mlp.c_proj", f"{block}ls_2.gamma")
        return x

    def _add(self, x: torch.Tensor, inputs: torch.Tensor, layer: str, scale: str) -> None:
        """Add to x, in place, what a linear layer makes of its inputs."""
        term = linear(inputs, self._weights[f"{layer}.weight"], self._weights[f"{layer}.bias"])
        if self._config.layer_scale:
            term *= self._weights[scale]
        x += term

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(x, (self._config.width,), weight, bias, self._config.eps)
