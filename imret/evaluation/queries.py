"""What is asked of the models under judgement: sentences for each category, captions, and their embeddings.

Every model of a report is asked in the same words.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.models.encoder import TextTruncated
from imret.retrieval.prompts import common_names, evaluation_queries, name_key

if TYPE_CHECKING:
    from imret.models.encoder import Encoder
    from imret.models.lazy_encoder import CachedEncoder

Names = Mapping[str, Sequence[str]]


def category_queries(
    encoder: Encoder, categories: Sequence[str], names: Names | None = None
) -> NDArray[np.float32]:
    """Return (Q, D) unit embeddings that ask for categories: the mean over the evaluation templates.

    Args:
        encoder: The model.
        categories: Q names of folders.
        names: What they are called, where it is not what `imret.retrieval.prompts` says.
    """
    means = np.stack(
        [encoder.encode_texts(evaluation_queries(name, names)).mean(axis=0) for name in categories]
    )
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), dtype=np.float32)


def encode_captions(encoder: Encoder, captions: Sequence[str]) -> tuple[NDArray[np.float32], int]:
    """Return (T, D) unit embeddings, and how many of the captions were cut to what the model reads.

    Instead of a warning for each: among thousands of captions some are too long, which is no news.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = encoder.encode_texts(captions)
    cut = [warning for warning in caught if issubclass(warning.category, TextTruncated)]
    for other in caught:
        if not issubclass(other.category, TextTruncated):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return vectors, len(cut)


def recorded_names(encoder: Encoder | CachedEncoder) -> dict[str, tuple[str, ...]]:
    """Return what the categories were called when a model was tuned, where that is not the built-in name.

    A folder that `imret finetune` wrote keeps it in training.json; any other model says nothing of it.
    """
    try:
        training = json.loads((encoder.files.weights.parent / "training.json").read_text(encoding="utf-8"))
        categories = training["data"]["categories"]
        # "names" are all there are; older folders have only the first of them, "called".
        found = {
            name_key(str(category)): tuple(map(str, about.get("names") or [about["called"]]))
            for category, about in categories.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {category: names for category, names in found.items() if names[0] != common_names(category)[0]}
