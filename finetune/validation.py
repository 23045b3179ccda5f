"""What a model is worth while it is trained: retrieval on held-out pictures, and what is left of the rest.

Retention is the hit rate of captioned pictures where there are some. Where there are none, it is how far the
model still agrees with its base about what the held-out pictures show, among a bank of phrases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finetune.data import Pictures
from imret.metrics import average_precision
from imret.wording import evaluation_queries

# Texts are encoded, and captions ranked, this many at a time.
_TEXTS = 256
# A caption has found its picture if it is in the best part of so many: 10 of 500, whatever their number.
_HIT_ONE_IN = 50
# With fewer, every caption finds its own, whatever the model: there is nothing to take it for.
_LEAST_CAPTIONED = 2
# Phrases nearest to a picture, of which base and model are to agree.
_NEAREST = 10


class Towers(Protocol):
    """What is scored: two functions into one space."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Return (B, D) unit features of (B, 3, H, W) images in [0, 1]."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return (U, D) unit features."""


class Validation:
    """Pictures that are kept out of training, and what to ask about them.

    Args:
        pictures: Held out of the training pictures; may be none.
        captioned: Pictures with captions that are not of the categories; may be none, and one is as good.
        phrases: What the agreement with the base is measured over where there are no captioned pictures.
        batch_size: Pictures encoded at once.
        names: What categories are called, where it is not what imret.wording says.
    """

    def __init__(
        self,
        pictures: Pictures,
        captioned: Pictures | None,
        *,
        phrases: Sequence[str],
        batch_size: int,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._pictures, self._phrases = pictures, phrases
        enough = captioned is not None and len(captioned.records) >= _LEAST_CAPTIONED
        self._captioned = captioned if enough else None
        self._batch_size, self._names = batch_size, names
        self._kept: dict[str, Tensor] = {}  # features of pictures, for models that share an image tower
        self._base_nearest: Tensor | None = None

    @property
    def retention_kind(self) -> str:
        """What retention means here: "agreement", or "hit_rate@k" with k a fiftieth of the pictures."""
        return "agreement" if self._captioned is None else f"hit_rate@{self._hit_rank(self._captioned)}"

    @torch.no_grad()
    def scores(self, towers: Towers, *, same_images: bool = False) -> dict[str, Any] | None:
        """Return text-to-image average precision of each category, and their mean.

        Each category is asked for in words, and all pictures are ranked, exactly. None where they are of
        fewer than two categories: every ranking of one is perfect, and no model would seem better than its
        base.

        Args:
            towers: The model.
            same_images: Whether its image tower is the one of the last call, so that its features stand, here
                and in `retention`.
        """
        if not same_images:
            self._kept.clear()
        records = self._pictures.records
        categories = sorted({record.category for record in records})
        if len(categories) < 2:
            return None
        asked = [evaluation_queries(category, self._names) for category in categories]
        queries = [towers.encode_texts(sentences).mean(dim=0) for sentences in asked]
        texts = F.normalize(torch.stack(queries), dim=-1)  # (Q, D)
        features = self._features("pictures", self._pictures, towers, same_images)
        similarity: NDArray[np.float32] = (texts @ features.T).cpu().numpy()  # (Q, N)
        relevant = np.array([[record.category == category for record in records] for category in categories])
        ap = average_precision(similarity, relevant)
        by_category = {
            category: round(float(value), 4) for category, value in zip(categories, ap, strict=True)
        }
        return {"text_to_image_map": round(float(ap.mean()), 4), "average_precision": by_category}

    @torch.no_grad()
    def retention(self, towers: Towers, *, is_base: bool = False, same_images: bool = False) -> float | None:
        """Return what is left of what the base knew, in [0, 1]; None where nothing can be asked.

        Of captioned pictures: how often a caption finds its own among the best fiftieth. Without any: of the
        ten phrases nearest to a held-out picture, how many were so for the base.

        Args:
            towers: The model.
            is_base: Whether it is the base, whose answers are those that agreement is measured against; it
                must come first.
            same_images: As in `scores`.
        """
        if self._captioned is not None:
            return self._hit_rate(self._captioned, towers, same_images)
        if not self._pictures.records:
            return None
        images = self._features("pictures", self._pictures, towers, same_images)
        phrases = self._encode(self._phrases, towers)
        nearest = (images @ phrases.T).topk(min(_NEAREST, len(phrases)), dim=1).indices  # (N, 10)
        if is_base:
            self._base_nearest = nearest
            return 1.0
        if self._base_nearest is None:
            raise ValueError("the base has to be scored first")
        return float((nearest[:, :, None] == self._base_nearest[:, None, :]).any(dim=2).float().mean())

    def _hit_rate(self, captioned: Pictures, towers: Towers, same_images: bool) -> float:
        images = self._features("captioned", captioned, towers, same_images)
        captions = [caption for record in captioned.records for caption in record.captions]
        own = torch.tensor([i for i, record in enumerate(captioned.records) for _ in record.captions])
        hits = 0
        for start in range(0, len(captions), _TEXTS):
            similarity = self._encode(captions[start : start + _TEXTS], towers) @ images.T
            of_own = similarity.gather(1, own[start : start + _TEXTS, None].to(similarity.device))
            hits += int(((similarity > of_own).sum(dim=1) < self._hit_rank(captioned)).sum())
        return hits / len(captions)

    @staticmethod
    def _hit_rank(captioned: Pictures) -> int:
        return max(1, round(len(captioned.records) / _HIT_ONE_IN))

    def _encode(self, texts: Sequence[str], towers: Towers) -> Tensor:
        return torch.cat(
            [towers.encode_texts(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
        )

    def _features(self, name: str, pictures: Pictures, towers: Towers, same_images: bool) -> Tensor:
        if not (same_images and name in self._kept):
            n = len(pictures.records)
            self._kept[name] = torch.cat(
                [
                    towers.encode_images(
                        pictures.batch(range(start, min(start + self._batch_size, n)))
                        .permute(0, 3, 1, 2)
                        .float()
                        / 255
                    )
                    for start in range(0, n, self._batch_size)
                ]
            )
        return self._kept[name]
