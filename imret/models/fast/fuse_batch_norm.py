"""Batch norms fused into the convolutions before them: the same tower with half the passes over memory.

At inference a batch norm scales and shifts each channel by constants, which the weights of the convolution
before it can hold. Source: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3.2. `imret.models.encoder` leaves it out where
IMRET_TOWERS=plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.hooks import RemovableHandle

# Of features that differ by more than this share of the largest, the tower was not what it seemed to be.
_TOLERANCE = 1e-3


@torch.inference_mode()
def fuse_batch_norms(
    tower: nn.Module, encode: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor
) -> int:
    """Fuse, in place, every batch norm that one convolution alone feeds; return how many.

    Which one feeds which is seen by running the tower, not guessed from names. Afterwards it runs again, and
    where the features differ by more than rounding, everything is put back.

    Args:
        tower: In eval mode.
        encode: What runs it: its `encode_image`.
        example: (1, 3, H, W) pixels, normalised.
    """
    pairs, before = _feeding_pairs(tower, encode, example)
    places = {child: (parent, name) for parent in tower.modules() for name, child in parent._modules.items()}
    undo: list[tuple[nn.Conv2d, Any, Any, nn.BatchNorm2d]] = []
    for conv, norm in pairs:
        undo.append((conv, conv.weight, conv.bias, norm))
        mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        parent, name = places[norm]
        parent._modules[name] = _activation_of(norm)
    after = encode(example)
    if float((after - before).abs().max()) <= _TOLERANCE * float(before.abs().max()):
        return len(pairs)
    for conv, weight, bias, norm in undo:
        conv.weight, conv.bias = weight, bias
        parent, name = places[norm]
        parent._modules[name] = norm
    return 0


def _feeding_pairs(
    tower: nn.Module, encode: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], torch.Tensor]:
    """Run the tower; return the pairs of which one feeds the other and nothing else, and the features."""
    conv_outputs: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # by id; kept alive, so that ids stay theirs
    inputs: list[tuple[nn.Module, torch.Tensor]] = []
    runs: Counter[nn.Module] = Counter()

    def record(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        runs[module] += 1
        inputs.extend((module, value) for value in given if isinstance(value, torch.Tensor))
        if type(module) is nn.Conv2d:
            conv_outputs[id(result)] = module, result

    leaves = [module for module in tower.modules() if _is_leaf(module)]
    handles: list[RemovableHandle] = [module.register_forward_hook(record) for module in leaves]
    try:
        features = encode(example)
    finally:
        for handle in handles:
            handle.remove()
    consumers = Counter(id(value) for _, value in inputs)
    places = Counter(child for parent in tower.modules() for child in parent._modules.values() if child)
    pairs = [
        (conv_outputs[id(value)][0], module)
        for module, value in inputs
        if id(value) in conv_outputs and consumers[id(value)] == 1 and _is_fusible(module)
    ]
    return [
        (conv, cast(nn.BatchNorm2d, norm))
        for conv, norm in pairs
        if runs[conv] == runs[norm] == places[conv] == places[norm] == 1
    ], features


def _is_leaf(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) or not any(True for _ in module.children())


def _is_fusible(module: nn.Module) -> bool:
    plain = type(module) is nn.BatchNorm2d or _is_batch_norm_act(module)
    return plain and isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _is_batch_norm_act(module: nn.Module) -> bool:
    # timm's: a batch norm, then drop, then act. By its name, because importing timm takes a second.
    return type(module).__name__ == "BatchNormAct2d" and {"drop", "act"} <= set(module._modules)


def _activation_of(norm: nn.BatchNorm2d) -> nn.Module:
    if not _is_batch_norm_act(norm):
        return nn.Identity()
    return nn.Sequential(cast(nn.Module, norm._modules["drop"]), cast(nn.Module, norm._modules["act"]))
