"""What can be had without tuning a model: classifiers on frozen embeddings, and better-chosen prompts.

Every baseline is fitted on training pictures and gives scores of other pictures for each category, to be
ranked and compared like those of a text query. numpy only, and deterministic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError
from imret.evaluation.pictures import Embedded, embed, labelled
from imret.metrics import average_precision
from imret.wording import EVALUATION_TEMPLATES, common_names, fill

if TYPE_CHECKING:
    from imret.encoder import Encoder

# Sentences that tuned prompts are chosen from, beside those that every model is judged with.
_PROMPTS = (
    "{name}",
    "a photo of {}",
    "a photo of {} in the wild",
    "a close-up photo of {}",
    "a nature photo of {}",
    "a photo of {}, a kind of living thing",
    "wildlife photography of {}",
    "an observation of {}",
)
_STEPS, _PENALTY = 500, 1e-4
_NEIGHBOURS, _TEMPERATURE = 20, 0.07


def linear_probe(
    train: NDArray[np.float32], labels: NDArray[np.integer], images: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Return (n, N) log-probabilities of multinomial logistic regression, categories weighted equally.

    Embeddings are standardised by the training set. 500 steps of Nesterov's accelerated gradient, with the
    step that the largest eigenvalue allows.

    Args:
        train: (M, D) unit embeddings.
        labels: (M,) int in [0, n).
        images: (N, D) unit embeddings.
        n: Categories.
    """
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    x = np.concatenate([(train - mean) / std, np.ones((len(train), 1), np.float32)], axis=1)
    weight = (1 / np.bincount(labels, minlength=n).clip(1))[labels]
    weight = (weight / weight.sum()).astype(np.float32)
    target = np.eye(n, dtype=np.float32)[labels]
    steepest = np.linalg.eigvalsh((x * weight[:, None]).T @ x)[-1] / 2 + _PENALTY
    w = previous = np.zeros((x.shape[1], n), np.float32)
    for step in range(1, _STEPS + 1):
        ahead = w + (step - 1) / (step + 2) * (w - previous)
        slope = x.T @ (weight[:, None] * (np.exp(_log_softmax(x @ ahead)) - target)) + _PENALTY * ahead
        previous, w = w, ahead - slope / steepest
    scored = np.concatenate([(images - mean) / std, np.ones((len(images), 1), np.float32)], axis=1) @ w
    return np.asarray(_log_softmax(scored).T, dtype=np.float32)


def nearest_neighbours(
    train: NDArray[np.float32], labels: NDArray[np.integer], images: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Return (n, N) shares of each category among the 20 nearest training pictures, near ones weighing more.

    The weight of a neighbour is exp(cosine / 0.07). Args are those of `linear_probe`.

    Source: Wu et al. (2018), "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        https://arxiv.org/abs/1805.01978, section 3.4.
    """
    k = min(_NEIGHBOURS, len(train))
    scores: NDArray[np.float32] = np.zeros((n, len(images)), np.float32)
    for start in range(0, len(images), 1024):
        cosine = images[start : start + 1024] @ train.T
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / _TEMPERATURE)
        for category in range(n):
            scores[category, start : start + 1024] = (weight * (labels[nearest] == category)).sum(axis=1)
    scores /= np.maximum(scores.sum(axis=0, keepdims=True), 1e-30)
    return scores


def centroids(
    train: NDArray[np.float32], labels: NDArray[np.integer], images: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Return (n, N) cosines with the mean embedding of each category. Args are those of `linear_probe`."""
    means = np.stack([train[labels == category].mean(axis=0) for category in range(n)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means @ images.T, dtype=np.float32)


def tuned_prompts(
    encode_texts: Callable[[Sequence[str]], NDArray[np.float32]],
    train: NDArray[np.float32],
    labels: NDArray[np.integer],
    categories: Sequence[str],
) -> tuple[NDArray[np.float32], list[str]]:
    """Choose, for each category, the sentence with the best average precision on the training pictures.

    Args:
        encode_texts: Gives (U, D) unit embeddings.
        train: (M, D) unit embeddings.
        labels: (M,) int, index into `categories`.
        categories: Their names.

    Returns:
        (n, D) embeddings of the chosen sentences, and the sentences.
    """
    vectors, chosen = [], []
    for number, category in enumerate(categories):
        sentences = [
            fill(template, name)
            for name in common_names(category)
            for template in (*_PROMPTS, *EVALUATION_TEMPLATES)
        ]
        encoded = encode_texts(sentences)
        relevant = np.broadcast_to(labels == number, (len(sentences), len(labels)))
        best = int(average_precision(encoded @ train.T, relevant).argmax())
        vectors.append(encoded[best])
        chosen.append(sentences[best])
    return np.stack(vectors), chosen


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def fitted_baselines(
    train: str | os.PathLike[str] | None, encoder: Encoder, found: Embedded, on_picture: Callable[[], object]
) -> list[dict[str, Any]]:
    """Return what frozen embeddings of the first model give with training pictures, without tuning it."""
    names = ("zero-shot, tuned prompts", "linear probe", "kNN (k=20)", "class centroid")
    if train is None:
        why = "needs labelled training pictures: --train FOLDER"
        return [{"name": name, "map": None, "top1": None, "why_absent": why} for name in names]
    known = embed(Path(train), labelled(Path(train)), encoder, on_picture)
    if known.categories != found.categories:
        raise DataError(
            f"the training pictures {os.fspath(train)!r} are of {', '.join(known.categories)}, "
            f"and those evaluated of {', '.join(found.categories)}: they must be the same."
        )
    n = len(found.categories)
    chosen, _ = tuned_prompts(encoder.encode_texts, known.vectors, known.labels, found.categories)
    fitted = known.vectors, known.labels, found.vectors, n
    scored = (
        chosen @ found.vectors.T,
        linear_probe(*fitted),
        nearest_neighbours(*fitted),
        centroids(*fitted),
    )
    relevant = np.arange(n)[:, None] == found.labels[None, :]
    return [
        {
            "name": name,
            "map": round(float(average_precision(scores, relevant).mean()), 4),
            "top1": round(float((scores.argmax(axis=0) == found.labels).mean()), 4),
            "why_absent": None,
        }
        for name, scores in zip(names, scored, strict=True)
    ]
