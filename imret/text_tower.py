"""CLIP's text tower and tokenizer without the rest of open_clip, whose import takes longer than a query.

`import open_clip` brings torchvision, timm and every architecture: on 2 cores 2 of the 5 s of a first search
with ViT-H/14. A text tower of CLIP's plain kind needs torch, its tensors and 60 lines; every other kind stays
open_clip's (`imret.towers`). IMRET_LEAN_TEXT=off leaves all of them to it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from imret.models import ModelFiles
from imret.towers import LEFTOVERS, Checkpoint

# What a plain text tower is described by; any other key is a feature that is not in `TextTower`.
_PLAIN_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
_PLAIN_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"}


class TextTower(nn.Module):
    """The text tower of CLIP as open_clip computes it, read-only.

    Source: Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision",
    section 2.4: a causal transformer with layer norms before attention and MLP, read at the end token.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        *,
        layers: int,
        heads: int,
        quick_gelu: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        held = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
        self._tensors = held
        self._dtype = dtype
        self.transformer = _Transformer(held, layers=layers, heads=heads, quick_gelu=quick_gelu)
        for name, parameter in held.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = cast(nn.Module, module._modules[part])
            module.register_parameter(last, parameter)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the (B, D) features, not of unit length, of (B, L) token ids padded behind the end token.

        Only as many positions are computed as the longest text has: no position sees one after it.
        """
        ends = tokens.argmax(dim=-1)  # (B,) the end token has the highest id
        length = int(ends.max()) + 1
        tokens = tokens[:, :length]  # (B, L) -> (B, l)
        x = F.embedding(tokens, self._tensors["token_embedding.weight"]).to(self._dtype)
        x = x + self._tensors["positional_embedding"][:length].to(self._dtype)  # (B, l, W)
        # (l, l): 0 on and below the diagonal, -inf above. A mask rather than is_causal, as in open_clip.
        mask = torch.full((length, length), float("-inf"), device=x.device, dtype=self._dtype).triu_(1)
        x = self.transformer(x, mask)
        x = _norm(x, self._tensors, "ln_final")[torch.arange(len(x), device=x.device), ends]  # (B, W)
        return x @ self._tensors["text_projection"]


class _Transformer(nn.Module):
    """The blocks of a text tower, over the tower's own tensors."""

    def __init__(
        self, tensors: dict[str, nn.Parameter], *, layers: int, heads: int, quick_gelu: bool
    ) -> None:
        super().__init__()
        self._tensors, self._layers, self._heads, self._quick_gelu = tensors, layers, heads, quick_gelu

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, l, W), (l, l) -> (B, l, W)."""
        for layer in range(self._layers):
            name = f"transformer.resblocks.{layer}."
            x = x + self._attention(_norm(x, self._tensors, f"{name}ln_1"), name, mask)
            inner = self._linear(_norm(x, self._tensors, f"{name}ln_2"), f"{name}mlp.c_fc.")
            inner = inner * torch.sigmoid(1.702 * inner) if self._quick_gelu else F.gelu(inner)
            x = x + self._linear(inner, f"{name}mlp.c_proj.")
        return x

    def _attention(self, x: torch.Tensor, name: str, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self._linear(x, f"{name}attn.in_proj_").view(batch, length, 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, l, W / H)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self._linear(seen.transpose(1, 2).reshape(batch, length, width), f"{name}attn.out_proj.")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._tensors[f"{name}weight"], self._tensors[f"{name}bias"])


def _norm(x: torch.Tensor, tensors: dict[str, nn.Parameter], name: str) -> torch.Tensor:
    # In float32, also of bfloat16: open_clip's LayerNormFp32.
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return F.layer_norm(x.float(), weight.shape, weight, bias).to(x.dtype)


def load_text_tower(files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> TextTower | None:
    """Load a plain text tower; None where it is of another kind, or the weights are not as expected.

    `imret.towers.load_clip` then loads it, or says what is wrong with it.

    Raises:
        ModelError: If the weights cannot be read.
    """
    shapes = _plain_shapes(files)
    if shapes is None or is_off():
        return None
    checkpoint = Checkpoint(files.weights)
    known = {*shapes, "logit_scale", *LEFTOVERS}
    if any(name not in known and not name.startswith("visual.") for name in checkpoint.tensors):
        return None
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        stored = checkpoint.tensors.get(name)
        if stored is None or stored.shape != shape or not stored.dtype.is_floating_point:
            return None
        target = torch.float32 if ".ln_" in name or name.startswith("ln_") else dtype
        usable = device.type == "cpu" and stored.data_ptr() % stored.element_size() == 0
        # Of the table of tokens a text reads a few rows: they are converted when they are read.
        if usable and (stored.dtype == target or name == "token_embedding.weight"):
            tensors[name] = stored
        else:
            tensors[name] = checkpoint.copied(stored, device=device, dtype=target)
    cfg = files.model_cfg
    return TextTower(
        tensors,
        layers=cfg["text_cfg"]["layers"],
        heads=cfg["text_cfg"]["heads"],
        quick_gelu=bool(cfg.get("quick_gelu", False)),
        dtype=dtype,
    ).eval()


def load_tokenize() -> Callable[..., torch.Tensor]:
    """Return open_clip's `tokenize` from its file alone; from the package where that is there already."""
    if "open_clip" not in sys.modules and not is_off():
        try:
            package = importlib.util.find_spec("open_clip")
            assert package is not None
            assert package.submodule_search_locations is not None
            file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
            spec = importlib.util.spec_from_file_location("_imret_open_clip_tokenizer", file)
            assert spec is not None
            assert spec.loader is not None
            module: Any = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return cast(Callable[..., torch.Tensor], module.tokenize)
        except (ImportError, OSError, AttributeError, AssertionError):
            pass  # another layout of open_clip: the whole package knows
    from open_clip.tokenizer import tokenize

    return cast(Callable[..., torch.Tensor], tokenize)


def is_off() -> bool:
    """Whether the user wants all of open_clip: IMRET_LEAN_TEXT=off."""
    return os.environ.get("IMRET_LEAN_TEXT", "").lower() in ("off", "0", "no", "false")


def _plain_shapes(files: ModelFiles) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of every tensor of a plain text tower by its name; None for another kind."""
    cfg = files.model_cfg
    text = cfg["text_cfg"]
    if not set(text) <= _PLAIN_KEYS or not set(cfg) <= _PLAIN_MODEL_KEYS or cfg.get("custom_text"):
        return None
    if not all(isinstance(text.get(name), int) for name in ("width", "heads", "layers")):
        return None
    width, length, words = text["width"], text.get("context_length", 77), text.get("vocab_size", 49408)
    if text["heads"] < 1 or width % text["heads"]:
        return None
    norm = {"weight": (width,), "bias": (width,)}
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (words, width),
        "positional_embedding": (length, width),
        "text_projection": (width, cfg["embed_dim"]),
        **{f"ln_final.{key}": shape for key, shape in norm.items()},
    }
    for layer in range(text["layers"]):
        name = f"transformer.resblocks.{layer}."
        shapes |= {f"{name}{which}.{key}": shape for which in ("ln_1", "ln_2") for key, shape in norm.items()}
        for which, rows, columns in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):
            shapes |= {f"{name}{which}weight": (rows, columns), f"{name}{which}bias": (rows,)}
    return shapes
