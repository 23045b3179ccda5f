"""Training only the tokens that name categories and species, and no others.

A text without such a token keeps its embedding to the bit, so that a model cannot forget what it knows of the
rest of language, whatever it learns about names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from finetune.data.species import TEXT_KINDS, Taxon
from finetune.model.param_groups import token_tables, tower_of
from imret.retrieval.prompts import TRAINING_TEMPLATES, fill

# Words that occur in names without naming anything: "frog or salamander".
_FUNCTION_WORDS = "a an and by common for from in name of on or the to with"
# Takes the place of a name to get the tokens of the frame around it.
_ANYTHING = "thing"


def name_tokens(
    tokenize: Callable[[Sequence[str]], Tensor], names: Iterable[str], taxa: Iterable[Taxon] = ()
) -> Tensor:
    """Return the tokens of names that are not also tokens of the frames that names are put into.

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
    of_frames, of_names = ({int(token) for token in tokenize(texts).flatten()} for texts in (frames, named))
    return torch.tensor(sorted(of_names - of_frames), dtype=torch.int64)


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
