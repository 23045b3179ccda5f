"""What it does to mix wordings within a batch: `imret finetune`, with a template drawn for every picture.

    python benchmarks/finetune_templates.py unicl|infonce ARGUMENTS OF imret finetune

imret draws one template for a whole batch, in which UniCL and InfoNCE are one loss (a test holds that).
Here captions of one category differ within a batch. With unicl all captions of a picture's category are its
matches; with infonce its own alone is, and the others of its category count as wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
import torch

import finetune.data.batches
from finetune.data.batches import Batches, TextSet
from finetune.data.captions import category_captions
from imret.cli.main import main


def mixed(loss: str) -> Any:
    """Return a way to draw the texts of a batch that mixes templates."""

    def draw(self: Batches, step: int) -> finetune.data.batches.Batch:
        positions = self._draw_positions(step)
        rng = np.random.default_rng((self.seed, 1_000, step))
        categories = [self.records[i].category for i in positions]
        drawn = [
            category_captions([category], draw=int(rng.integers(1 << 30)), names=self._names)[0]
            for category in categories
        ]
        texts = list(dict.fromkeys(drawn))
        of_category = dict(zip(drawn, categories, strict=True))
        own = [
            {text for text in texts if of_category[text] == category} if loss == "unicl" else {caption}
            for caption, category in zip(drawn, categories, strict=True)
        ]
        counts = Counter(drawn)
        match = torch.tensor([[text in matching for text in texts] for matching in own])
        return finetune.data.batches.Batch(
            positions,
            (TextSet(texts, match, torch.tensor([counts[text] for text in texts], dtype=torch.float32)),),
        )

    return draw


if __name__ == "__main__":
    Batches.draw = mixed(sys.argv.pop(1))  # type: ignore[method-assign]
    sys.argv.insert(1, "finetune")
    main()
