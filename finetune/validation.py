"""Scores of a model during training: retrieval on held-out pictures, and how much it has forgotten.

What is retained of the base is measured by how far the model still agrees with it about which phrases of a
bank fit the held-out pictures; and by the hit rate of captioned pictures, where there are some. The hit rate
alone would be too kind: the base may have been trained with those pictures.
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
from imret.retrieval.prompts import CLIP_TEMPLATES, Templates, evaluation_queries

# Texts are encoded, and captions ranked, this many at a time.
_TEXT_BATCH = 256
# A caption hits if its picture is among the best 1/50 of all: 10 of 500.
_HIT_ONE_IN = 50
# With fewer, every caption hits, whatever the model: there is no other picture.
_MIN_CAPTIONED = 2
# Agreement compares the phrases nearest to a picture, this many.
_NEAREST = 10


class Towers(Protocol):
    """A model to score: two functions into one space."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Return (B, D) unit features of (B, 3, H, W) images in [0, 1]."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return (U, D) unit features."""


@dataclass(frozen=True)
class ImageFeatures:
    """Features of the pictures from one image tower.

    Attributes:
        held_out: (N, D) unit features of the held-out pictures.
        captioned: (M, D) unit features of the captioned pictures, or None without any.
    """

    held_out: Tensor
    captioned: Tensor | None


@dataclass(frozen=True)
class TextFeatures:
    """Features of the texts from one text tower.

    Attributes:
        queries: (Q, D) unit vectors of the queries, one for each category.
        phrases: (P, D) unit features of the bank.
        captions: (C, D) unit features, or None without captioned pictures.
    """

    queries: Tensor
    phrases: Tensor
    captions: Tensor | None


class Validation:
    """Pictures that are kept out of training, and the queries, phrases and captions they are scored with.

    Args:
        pictures: Held out of the training pictures; may be none.
        captioned: Captioned pictures of other things; fewer than two are ignored.
        phrases: What the agreement with the base is measured over.
        batch_size: Pictures encoded at once.
        names: What categories are called, where it is not what imret.retrieval.prompts says.
        templates: Of the model.
    """

    def __init__(
        self,
        pictures: ImageSet,
        captioned: ImageSet | None,
        *,
        phrases: Sequence[str],
        batch_size: int,
        names: Mapping[str, Sequence[str]] | None = None,
        templates: Templates = CLIP_TEMPLATES,
    ) -> None:
        self._pictures, self._phrases = pictures, phrases
        enough = captioned is not None and len(captioned.records) >= _MIN_CAPTIONED
        self._captioned = captioned if enough else None
        self._batch_size, self._names, self._templates = batch_size, names, templates
        records = pictures.records
        self._categories = sorted({record.category for record in records})

    @property
    def retention_kind(self) -> str:
        """What retention means here: "agreement", or "hit_rate@k" with k a fiftieth of the pictures."""
        return "agreement" if self._captioned is None else f"hit_rate@{self._hit_rank(self._captioned)}"

    @torch.no_grad()
    def encode_images(self, towers: Towers) -> ImageFeatures:
        """Return the features of the pictures; the text tower is not used."""
        captioned = self._captioned
        return ImageFeatures(
            self._features(self._pictures, towers),
            self._features(captioned, towers) if captioned is not None else None,
        )

    @torch.no_grad()
    def encode_texts(self, towers: Towers) -> TextFeatures:
        """Return the features of the texts; the image tower is not used."""
        sentences = [
            evaluation_queries(category, self._names, templates=self._templates)
            for category in self._categories
        ]
        queries = [towers.encode_texts(texts).mean(dim=0) for texts in sentences]
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

    def scores(self, images: ImageFeatures, texts: TextFeatures) -> dict[str, Any] | None:
        """Return text-to-image average precision of each category, and their mean.

        The text query of each category ranks all pictures, exactly. None where they are of fewer than two
        categories: every ranking of one category is perfect, and no model would seem better than its base.
        """
        if len(self._categories) < 2:
            return None
        similarity: NDArray[np.float32] = (texts.queries @ images.held_out.T).cpu().numpy()  # (Q, N)
        relevant = np.array(
            [[record.category == name for record in self._pictures.records] for name in self._categories]
        )
        ap = average_precision(similarity, relevant)
        by_category = {
            category: round(float(value), 4) for category, value in zip(self._categories, ap, strict=True)
        }
        return {"text_to_image_map": round(float(ap.mean()), 4), "average_precision": by_category}

    def agreement(
        self, images: ImageFeatures, texts: TextFeatures, base: tuple[ImageFeatures, TextFeatures]
    ) -> float | None:
        """Return the mean share of a picture's ten nearest phrases that are the same for the base, in [0, 1].

        None without held-out pictures.
        """
        if not self._pictures.records:
            return None
        now, before = (
            (features.held_out @ texts.phrases.T).topk(min(_NEAREST, len(texts.phrases)), dim=1).indices
            for features, texts in ((images, texts), base)
        )  # (N, 10)
        return float((now[:, :, None] == before[:, None, :]).any(dim=2).float().mean())

    def hit_rate(self, images: ImageFeatures, texts: TextFeatures) -> float | None:
        """Return the share of captions whose picture is among the best fiftieth; None without captions."""
        if self._captioned is None or images.captioned is None or texts.captions is None:
            return None
        own = torch.tensor(
            [i for i, record in enumerate(self._captioned.records) for _ in record.captions],
            device=images.captioned.device,
        )
        hits = 0
        for start in range(0, len(texts.captions), _TEXT_BATCH):
            similarity = texts.captions[start : start + _TEXT_BATCH] @ images.captioned.T
            of_own = similarity.gather(1, own[start : start + _TEXT_BATCH, None])
            hits += int(((similarity > of_own).sum(dim=1) < self._hit_rank(self._captioned)).sum())
        return hits / len(texts.captions)

    @staticmethod
    def _hit_rank(captioned: ImageSet) -> int:
        return max(1, round(len(captioned.records) / _HIT_ONE_IN))

    def _encode(self, texts: Sequence[str], towers: Towers) -> Tensor:
        return torch.cat(
            [
                towers.encode_texts(texts[start : start + _TEXT_BATCH])
                for start in range(0, len(texts), _TEXT_BATCH)
            ]
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


def describe_scores(scores: Mapping[str, Any] | None) -> str:
    """Say what `Validation.scores` found, in a few words."""
    if scores is None:
        return "no validation"
    return f"validation text-to-image mAP {scores['text_to_image_map']:.3f}"
