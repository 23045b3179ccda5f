"""Compiling towers block by block: equal blocks are compiled once for all of them.

A whole tower of 32 blocks takes the compiler minutes, one block seconds; the gain, norms and activations in
one pass over memory each, lies within the blocks.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

# The same code is compiled for both towers and their frozen copies, in training and in scoring, for few and
# for many texts.
_VARIANTS = 32


def compile_towers(model: nn.Module) -> None:
    """Make a model's towers compile when they are first used.

    Of a transformer the blocks are compiled; of another image tower, what lies below its head; another text
    tower is left as it is. Names of weights stay, and so does the result of a forward pass but for its last
    bits.

    Args:
        model: One of open_clip's two-tower models.
    """
    import torch._dynamo.config as compiler  # takes a second

    compiler.recompile_limit = max(_VARIANTS, compiler.recompile_limit)
    visual = cast(nn.Module, model.visual)
    for part in _blocks(visual) or [cast(nn.Module, getattr(visual, "trunk", visual))]:
        part.compile()
    for block in _blocks(getattr(model, "text", model)):
        block.compile(dynamic=True)  # no two steps have the same number of texts


def _blocks(tower: Any) -> list[nn.Module]:
    """Return a transformer's blocks, open_clip's or timm's; none for other towers."""
    for holder, name in (("transformer", "resblocks"), ("trunk", "blocks")):
        blocks = list(getattr(getattr(tower, holder, None), name, ()))
        kinds = {type(block) for block in blocks}
        if len(kinds) == 1 and nn.Sequential not in kinds:  # not the stages of a convolutional network
            return blocks
    return []
