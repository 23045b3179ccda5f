"""What a model is worth while it is trained: retrieval on held-out pictures, and what is left of the rest.

What is left is measured by how far the model still agrees with its base about what the held-out pictures
show, among a bank of phrases; and by the hit rate of captioned pictures, where there are some. That alone
would not do: of pictures that the base was trained with it says too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.pixels import ImageSet
from imret.evaluation.metrics import average_precision
from imret.retrieval.prompts import evaluation_queries

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


@dataclass(frozen=True)
class ImageFeatures:
    """What an image tower makes of the pictures: (N, D) unit features of the held-out and the captioned."""

    pictures: Tensor
    captioned: Tensor | None


@dataclass(frozen=True)
class TextFeatures:
    """What a text tower makes of the texts.

    Attributes:
        queries: (Q, D) unit vectors that ask for the categories.
        phrases: (P, D) unit features of the bank.
        captions: (C, D) unit features, or None without captioned pictures.
    """

    queries: Tensor
    phrases: Tensor
    captions: Tensor | None


class Validation:
    """Pictures that are kept out of training, and what to ask about them.

    Args:
        pictures: Held out of the training pictures; may be none.
        captioned: Pictures with captions that are not of the categories; may be none, and one is as good.
        phrases: What the agreement with the base is measured over.
        batch_size: Pictures encoded at once.
        names: What categories are called, where it is not what imret.retrieval.prompts says.
    """

    def __init__(
        self,
        pictures: ImageSet,
        captioned: ImageSet | None,
        *,
        phrases: Sequence[str],
        batch_size: int,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._pictures, self._phrases = pictures, phrases
        enough = captioned is not None and len(captioned.records) >= _LEAST_CAPTIONED
        self._captioned = captioned if enough else None
        self._batch_size, self._names = batch_size, names
        records = pictures.records
        self._categories = sorted({record.category for record in records})

    @property
    def retention_kind(self) -> str:
        """What retention means here: "agreement", or "hit_rate@k" with k a fiftieth of the pictures."""
        return "agreement" if self._captioned is None else f"hit_rate@{self._hit_rank(self._captioned)}"

    @torch.no_grad()
    def look(self, towers: Towers) -> ImageFeatures:
        """Return what a model makes of the pictures; its text tower is not asked."""
        captioned = self._captioned
        return ImageFeatures(
            self._features(self._pictures, towers),
            self._features(captioned, towers) if captioned is not None else None,
        )

    @torch.no_grad()
    def read(self, towers: Towers) -> TextFeatures:
        """Return what a model makes of the texts; its image tower is not asked."""
        asked = [evaluation_queries(category, self._names) for category in self._categories]
        queries = [towers.encode_texts(sentences).mean(dim=0) for sentences in asked]
        captions = None
        if self._captioned is not None:
            captions = self._encode(
                [caption for record in self._captioned.records for caption in record.captions], towers
            )
        return TextFeatures(
            F.normalize(torch.stack(queries), dim=-1) if queries else torch.zeros(0, 1),
            self._encode(self._phrases, towers),
            captions,
        )

    def scores(self, seen: ImageFeatures, read: TextFeatures) -> dict[str, Any] | None:
        """Return text-to-image average precision of each category, and their mean.

        Each category is asked for in words, and all pictures are ranked, exactly. None where they are of
        fewer than two categories: every ranking of one is perfect, and no model would seem better than its
        base.
        """
        if len(self._categories) < 2:
            return None
        similarity: NDArray[np.float32] = (read.queries @ seen.pictures.T).cpu().numpy()  # (Q, N)
        relevant = np.array(
            [[record.category == one for record in self._pictures.records] for one in self._categories]
        )
        ap = average_precision(similarity, relevant)
        by_category = {
            category: round(float(value), 4) for category, value in zip(self._categories, ap, strict=True)
        }
        return {"text_to_image_map": round(float(ap.mean()), 4), "average_precision": by_category}

    def agreement(
        self, seen: ImageFeatures, read: TextFeatures, base: tuple[ImageFeatures, TextFeatures]
    ) -> float | None:
        """Return, of the ten phrases nearest to a held-out picture, how many were so for the base, in [0, 1].

        None without held-out pictures.
        """
        if not self._pictures.records:
            return None
        now, before = (
            (images.pictures @ texts.phrases.T).topk(min(_NEAREST, len(texts.phrases)), dim=1).indices
            for images, texts in ((seen, read), base)
        )  # (N, 10)
        return float((now[:, :, None] == before[:, None, :]).any(dim=2).float().mean())

    def hit_rate(self, seen: ImageFeatures, read: TextFeatures) -> float | None:
        """Return how often a caption finds its picture among the best fiftieth; None without captions."""
        if self._captioned is None or seen.captioned is None or read.captions is None:
            return None
        own = torch.tensor(
            [i for i, record in enumerate(self._captioned.records) for _ in record.captions],
            device=seen.captioned.device,
        )
        hits = 0
        for start in range(0, len(read.captions), _TEXTS):
            similarity = read.captions[start : start + _TEXTS] @ seen.captioned.T
            of_own = similarity.gather(1, own[start : start + _TEXTS, None])
            hits += int(((similarity > of_own).sum(dim=1) < self._hit_rank(self._captioned)).sum())
        return hits / len(read.captions)

    @staticmethod
    def _hit_rank(captioned: ImageSet) -> int:
        return max(1, round(len(captioned.records) / _HIT_ONE_IN))

    def _encode(self, texts: Sequence[str], towers: Towers) -> Tensor:
        return torch.cat(
            [towers.encode_texts(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
        )

    def _features(self, pictures: ImageSet, towers: Towers) -> Tensor:
        n = len(pictures.records)
        if not n:
            return torch.zeros(0, 1)
        return torch.cat(
            [
                towers.encode_images(
                    pictures.batch(range(start, min(start + self._batch_size, n))).permute(0, 3, 1, 2).float()
                    / 255
                )
                for start in range(0, n, self._batch_size)
            ]
        )
