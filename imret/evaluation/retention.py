"""What a model has kept: how well captions find pictures that have nothing to do with its categories."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.captions_csv import read_captioned
from imret.errors import DataError, counted
from imret.evaluation.dataset import encode, encode_captions
from imret.evaluation.report import HitRates, Retention, rounded
from imret.retrieval.concept_query import ask_with_concepts
from imret.retrieval.query_vector import query_vector

if TYPE_CHECKING:
    from imret.models.encoder import Encoder
    from imret.retrieval.concepts import Concepts

# A caption has found its picture if it is among so many; a person looks no further.
_DEPTH = 10
# Queries ranked together.
_QUERIES = 256


@dataclass(frozen=True)
class Captioned:
    """Captioned pictures: their folder, paths, and (caption, index of its picture)."""

    root: Path
    paths: list[str]
    captions: list[tuple[str, int]]


@dataclass(frozen=True)
class CaptionHits:
    """What captions found with one model.

    Attributes:
        report: Its figures.
        hits: (T,) bool, whether each caption has its picture among its first ten.
        own: (T,) int, the picture of each caption.
    """

    report: Retention
    hits: NDArray[np.bool_]
    own: NDArray[np.int64]


def captioned_in(file: str | os.PathLike[str]) -> Captioned:
    """Find the pictures and captions of a CSV file as `imret.datasets.captions_csv.read_captioned` takes it.

    Raises:
        DataError: If the file is not what it should be, names a picture that is not there, or names so few
            that a caption finds its own whatever the model.
    """
    root, captions = read_captioned(file)
    if len(captions) <= _DEPTH:
        raise DataError(
            f"captions file {os.fspath(file)!r} names {counted(len(captions))}: every caption finds its "
            f"own among the first {_DEPTH}, whatever the model. Name more of them, some hundreds if you can."
        )
    return Captioned(
        root, list(captions), [(text, i) for i, texts in enumerate(captions.values()) for text in texts]
    )


def retention_of(
    captioned: Captioned,
    encoder: Encoder,
    on_picture: Callable[[], object] = lambda: None,
    *,
    concepts: Concepts | None = None,
) -> CaptionHits:
    """Return how often a caption finds its picture, and a picture one of its captions.

    Equal scores rank by position, lowest first, as in `imret.evaluation.metrics`: a model that says the same
    of everything finds nothing.

    Args:
        captioned: The pictures.
        encoder: The model.
        on_picture: Called for each picture that was encoded.
        concepts: Captions that are or hold one ask with it, as a search does.

    Raises:
        DataError: If a picture cannot be read.
    """
    images, readable, skipped = encode(captioned.root, captioned.paths, encoder, on_picture)
    if skipped:
        raise DataError(
            f"picture {skipped[0].path!r} of the captions file cannot be used: {skipped[0].reason} "
            "Mend it, or take its lines out."
        )
    captions = [caption for caption, _ in captioned.captions]
    texts, cut = encode_captions(encoder, captions)
    if concepts is not None:
        texts = asked_captions(concepts, encoder, captions, texts)
    own = np.array([i for _, i in captioned.captions], dtype=np.int64)
    text_ranks, image_ranks = caption_ranks(texts, images, own)
    report = Retention(
        queries=len(texts),
        images=len(readable),
        cut=cut,
        hit_rate=_hit_rates(text_ranks),
        image_to_text=HitRates(_hit_rates(image_ranks)),
    )
    return CaptionHits(report, text_ranks < _DEPTH, own)


def asked_captions(
    concepts: Concepts, encoder: Encoder, captions: Sequence[str], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the (T, D) unit vectors that captions ask with; of those that hold no concept the very same.

    Args:
        concepts: That are known.
        encoder: That embedded the captions.
        captions: T texts.
        vectors: (T, D) unit embeddings of them.
    """
    asked: NDArray[np.float32] = vectors.copy()
    for number, caption in enumerate(captions):
        answer = ask_with_concepts(
            concepts, caption, vectors[number], encoder, lambda name: query_vector(encoder, name)
        )
        if answer.uses:
            asked[number] = answer.vector / np.linalg.norm(answer.vector)
    return asked


def caption_ranks(
    texts: NDArray[np.float32], images: NDArray[np.float32], own: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where captions find their picture, and pictures the best of their captions; ranks are from 0.

    Equal scores rank by position, lowest first. A picture without a caption finds none.

    Args:
        texts: (T, D) unit embeddings of captions.
        images: (N, D) unit embeddings of pictures.
        own: (T,) int, the picture of each caption.

    Returns:
        (T,) int64 ranks among the pictures; (N,) int64 ranks among the captions, the largest int64 for none.
    """
    text_ranks = [
        _ranks(texts[i : i + _QUERIES] @ images.T, own[i : i + _QUERIES])
        for i in range(0, len(texts), _QUERIES)
    ]
    image_ranks = [
        _best_ranks(images[i : i + _QUERIES] @ texts.T, own, range(i, len(images)))
        for i in range(0, len(images), _QUERIES)
    ]
    return np.concatenate(text_ranks), np.concatenate(image_ranks)


def _hit_rates(ranks: NDArray[np.int64]) -> dict[int, float]:
    return {k: rounded((ranks < k).mean()) for k in (1, 5, _DEPTH)}


def _ranks(scores: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (b,) the rank, from 0, of column `own` in each row of (b, N) scores."""
    mine = np.take_along_axis(scores, own[:, None], axis=1)
    before = np.arange(scores.shape[1])[None, :] < own[:, None]
    ranks: NDArray[np.int64] = ((scores > mine) | ((scores == mine) & before)).sum(axis=1)
    return ranks


def _best_ranks(scores: NDArray[np.float32], own: NDArray[np.int64], images: range) -> NDArray[np.int64]:
    """Return (b,) the rank, from 0, of the best caption of each picture in (b, T) scores."""
    of_it = np.stack([own == image for image, _ in zip(images, scores, strict=False)])  # (b, T)
    best = np.where(of_it, scores, -np.inf).argmax(axis=1)  # the first, where several are best
    return np.where(of_it.any(axis=1), _ranks(scores, best), np.iinfo(np.int64).max)
