"""Which words of the text tower may learn: those that name categories and species, and no other.

A text without such a word keeps its embedding to the bit, so what a model knows of the rest of language
cannot be forgotten, whatever it learns about names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from finetune.data.species import TEXT_KINDS, Taxon
from finetune.model.param_groups import token_tables, tower_of
from imret.retrieval.prompts import TRAINING_TEMPLATES, fill

# Words that stand in names and mean nothing of their own: "frog or salamander".
_FUNCTION_WORDS = "a an and by common for from in name of on or the to with"
# Takes the place of a name where only the frame around it is asked about.
_ANYTHING = "thing"


def name_tokens(
    tokenize: Callable[[Sequence[str]], Tensor], names: Iterable[str], taxa: Iterable[Taxon] = ()
) -> Tensor:
    """Return the tokens that stand for names, and not also for the frames that names are put into.

    Args:
        tokenize: Gives (B, L) token ids of B texts.
        names: What categories are called.
        taxa: Species that texts name.

    Returns:
        (T,) int64 token ids, in order.
    """
    named = [fill(style, name) for name in names for style in TRAINING_TEMPLATES]
    named += [taxon.text(kind) for taxon in taxa for kind in TEXT_KINDS if taxon.has(kind)]
    frames = [fill(style, _ANYTHING) for style in TRAINING_TEMPLATES] + [_FUNCTION_WORDS]
    known, met = ({int(token) for token in tokenize(texts).flatten()} for texts in (frames, named))
    return torch.tensor(sorted(met - known), dtype=torch.int64)


def train_names_only(model: nn.Module, tokens: Tensor) -> None:
    """Of the text tower, train the rows of some tokens in its token table, and nothing else.

    Args:
        model: One of open_clip's two-tower models.
        tokens: (T,) from `name_tokens`.
    """
    tables = token_tables(model)
    for name, parameter in model.named_parameters():
        if name in tables:
            mask = torch.zeros(len(parameter), 1, device=parameter.device)
            mask[tokens.to(parameter.device)] = 1
            parameter.requires_grad_(True)
            # AdamW without decay leaves a row alone whose gradient was always zero.
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)  # type: ignore[no-untyped-call]
        elif tower_of(name) == "text" and name not in ("logit_scale", "logit_bias"):
            parameter.requires_grad_(False)
