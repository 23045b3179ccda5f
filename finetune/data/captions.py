"""Training captions of category names, and which captions say the same.

Knows nothing of pictures or tensors; what categories are called, and the templates, are in
`imret.retrieval.prompts`, captions of a file in `imret.datasets.captions_csv`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from imret.retrieval.prompts import TRAINING_TEMPLATES, common_names, fill


def category_captions(
    categories: Sequence[str], *, draw: int, names: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return one caption per category, all of one template, for one batch.

    Args:
        categories: Folder names.
        draw: Any number >= 0, a new one for each batch; picks the style and the common name.
        names: What categories are called, where it is not what `imret.retrieval.prompts` says.
    """
    template = TRAINING_TEMPLATES[draw % len(TRAINING_TEMPLATES)]
    turn = draw // len(TRAINING_TEMPLATES)
    called = [common_names(category, names) for category in categories]
    return [fill(template, options[turn % len(options)]) for options in called]


# What may stand before the thing itself. Two captions that differ only in it say the same of a picture, and
# a loss that took them for different would push equal pictures apart.
_FRAME = re.compile(
    r"(this is|(a|an|the|one) ([\w-]+ )?"
    r"(photo|photograph|picture|snapshot|close-up|image|drawing) (of|showing)) (?=\S)"
)


def caption_key(caption: str) -> str:
    """Return what two captions share if they say the same.

    Case, spacing, a final stop and a frame such as "a photo of" do not matter.
    """
    words = " ".join(caption.lower().split()).rstrip(".")
    frame = _FRAME.match(words)
    return words[frame.end() :] if frame else words
