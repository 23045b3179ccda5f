"""Which parameters are trained, and how fast each layer learns.

Hides where open_clip's towers keep their layers: a layer counts from 0, what is nearest the pixels or the
words, up to the tower's projection.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# What a tower and what is in it are called before their parts: `visual.trunk.`, `text.transformer.encoder.`.
_PREFIX = re.compile(r"^(visual\.|text\.)?(trunk\.|transformer\.)?(encoder\.)?")
# Parts below the numbered blocks, which a patch embedding may have of its own. Parts that match neither
# pattern (a final norm or convolution, pooling, a head) are on top.
_STEM = re.compile(
    r"(conv\d|bn\d|stem|conv_stem|patch_embed|class_embedding|positional_embedding|cls_token|cls_emb"
    r"|reg_token|pos_embed|pos_conv|rel_pos\w*|shared_rel_pos|token_embedding|ln_pre|norm_pre"
    r"|embeddings|embed_tokens|embed_positions|layernorm_embedding|shared)(\.|$)"
)
# Numbered blocks: of transformers (T5 has numbered layers in each), and of stages of convolutional networks.
_BLOCK = re.compile(r"(?:resblocks|blocks?|stages|layers?)\.?(\d+)(?:\.(?:blocks\.)?(\d+))?")


def choose_trainable(model: nn.Module, what: str, *, image_layers: int = 0) -> None:
    """Freeze everything but what is to be trained; the logit scale is left as it is.

    Args:
        model: One of open_clip's two-tower models.
        what: "both", "text" or "image".
        image_layers: How many of the image tower's topmost layers are trained; 0 for all.

    Raises:
        ValueError: If `what` is none of these.
    """
    if what not in ("both", "text", "image"):
        raise ValueError(f"what is trained must be both, text or image, not {what!r}")
    place = layers(model)
    top = max((layer for tower, layer in place.values() if tower == "image"), default=0)
    for name, parameter in model.named_parameters():
        if name in place:
            tower, layer = place[name]
            low = tower == "image" and image_layers > 0 and layer <= top - image_layers
            parameter.requires_grad_(what in ("both", tower) and not low)


def token_tables(model: nn.Module) -> set[str]:
    """Return the names of the text tower's token embeddings; those of positions are others."""
    text: Any = getattr(model, "text", model)
    inner = getattr(text, "transformer", None)
    find = getattr(inner, "get_input_embeddings", None)  # of a tower of Hugging Face's
    table = text.token_embedding.weight if find is None else find().weight
    return {name for name, parameter in model.named_parameters() if parameter is table}


def tower_of(name: str) -> str:
    """Return the tower of a parameter by its name: "image" or "text"."""
    return "image" if name.startswith("visual.") else "text"


def layers(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Return tower and layer of every parameter by name, but for the logit scale.

    Layer 0 is the stem or the embeddings, the last one norm and projection (of a timm tower the projection
    alone), and between them the blocks.
    """
    places_of: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, _ in model.named_parameters():
        if name in ("logit_scale", "logit_bias"):
            continue
        if _STEM.match(_PREFIX.sub("", name)):
            place = (-1, 0)
        elif block := _BLOCK.search(name):
            place = (int(block[1]), int(block[2] or 0) if "transformer" not in name else 0)
        else:
            # open_clip puts a projection of its own on a tower that comes from timm.
            place = (1 << 30, int(name.startswith("visual.head.")))
        places_of[name] = tower_of(name), place
    ranks = {}
    for tower in ("image", "text"):
        places = sorted({place for one, place in places_of.values() if one == tower})
        ranks.update({(tower, place): i for i, place in enumerate(places)})
    return {name: (tower, ranks[tower, place]) for name, (tower, place) in places_of.items()}


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    image_decay: float = 1.0,
    text_decay: float = 1.0,
    text_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Return AdamW's groups of the trainable parameters.

    Matrices and kernels decay. Gains, biases and scalars do not, nor does the token table: decay would move
    the rows of words that never occur.

    Args:
        model: One of open_clip's two-tower models.
        lr: Peak learning rate of the image tower's top layer.
        weight_decay: Of what decays.
        image_decay: Learning rate of a layer relative to the one above it, in (0, 1].
        text_decay: The same in the text tower.
        text_factor: Learning rate of the text tower's top layer relative to `lr`.

    Returns:
        Groups with the keys of AdamW, and `scale`: the group's learning rate relative to `lr`.
    """
    place = layers(model)
    top = {tower: max((n for t, n in place.values() if t == tower), default=0) for tower in ("image", "text")}
    decay, factor = {"image": image_decay, "text": text_decay}, {"image": 1.0, "text": text_factor}
    tables = token_tables(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if name in place:
            tower, layer = place[name]
            scale = factor[tower] * decay[tower] ** (top[tower] - layer)
        decays = parameter.ndim >= 2 and name not in tables
        group = groups.setdefault(
            (scale, decays),
            {"params": [], "weight_decay": weight_decay if decays else 0.0, "scale": scale, "lr": lr * scale},
        )
        group["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: (-group["scale"], -group["weight_decay"]))
