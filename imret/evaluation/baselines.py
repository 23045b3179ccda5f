"""What can be had without tuning a model: classifiers on frozen embeddings, and better-chosen prompts.

Every baseline is fitted on training pictures and gives scores of other pictures for each category, to be
ranked and compared like those of a text query. numpy only, and deterministic. Those that are published are in
the form of their papers, but for what their docstrings name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from imret.evaluation.metrics import average_precision
from imret.retrieval.prompts import (
    CANDIDATE_TEMPLATES,
    CLIP_TEMPLATES,
    Names,
    Templates,
    common_names,
    fill,
)

# Sentences that tuned prompts are chosen from, beside those that every model is judged with.
_STEPS, _FLAT = 2000, 1e-6
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_CELLS = 1 << 22  # of a matrix of cosines: 16 MB
_HELD_OUT = 5  # every fifth training picture of a category
_NEIGHBOURS, _TEMPERATURE = 20, 0.07

# Of Tip-Adapter: the grids that its authors search on ImageNet and on FGVC-Aircraft, the narrowest and the
# widest of their configurations, together; and what is taken where nothing can be held out.
_BETAS, _ALPHAS = (
    np.union1d(*(0.1 + np.arange(steps) * (end - 0.1) / steps for end in ends)).astype(np.float32)
    for steps, ends in ((200, (7, 30)), (20, (3, 30)))
)
_BETA, _ALPHA = 5.5, 1.0
_MOST_SEARCHED = 2000

# Of TaskRes, as its authors train it.
_RESIDUAL_SHARE, _EPOCHS, _BATCH = 0.5, 200, 256
_RATE, _FIRST_RATE, _DECAY = 2e-3, 1e-5, 5e-4


def linear_probe(
    train: NDArray[np.float32],
    labels: NDArray[np.integer],
    images: NDArray[np.float32],
    n: int,
    *,
    penalty: float | None = None,
) -> NDArray[np.float64]:
    """Return (n, N) log-probabilities of multinomial logistic regression, categories weighted equally.

    Embeddings are standardised by the training set. At most 2,000 steps of Nesterov's accelerated gradient,
    each as long as the largest eigenvalue allows, with momentum dropped whenever it leads uphill.

    Args:
        train: (M, D) unit embeddings.
        labels: (M,) int in [0, n).
        images: (N, D) unit embeddings.
        n: Categories.
        penalty: Of the squared weights, halved; None for the one of 0.001, 0.01, 0.1 and 1 whose
            probabilities fit a held-out fifth of the training pictures best.

    Source: O'Donoghue & Candes (2015), "Adaptive Restart for Accelerated Gradient Schemes",
        https://arxiv.org/abs/1204.3982, section 3.2.
    """
    if penalty is None:
        penalty = _best_penalty(train, labels, n)
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    w = _fit_probe(_with_bias((train - mean) / std), labels, n, penalty)
    scored = _with_bias((images - mean) / std) @ w
    # In double precision: in single, every sure picture would have a logarithm of 0, and tie with the others.
    return np.ascontiguousarray(_log_softmax(scored.astype(np.float64)).T)


def _fit_probe(
    x: NDArray[np.float32], labels: NDArray[np.integer], n: int, penalty: float
) -> NDArray[np.float32]:
    """Return the (D + 1, n) weights that minimise the weighted cross-entropy and penalty."""
    weight = _equal_weights(labels, n)
    target = np.eye(n, dtype=np.float32)[labels]
    steepest = np.linalg.eigvalsh((x * weight[:, None]).T @ x)[-1] / 2 + penalty
    w = previous = np.zeros((x.shape[1], n), np.float32)
    since_restart = 0
    for _ in range(_STEPS):
        since_restart += 1
        ahead = w + (since_restart - 1) / (since_restart + 2) * (w - previous)
        slope = x.T @ (weight[:, None] * (np.exp(_log_softmax(x @ ahead)) - target)) + penalty * ahead
        if np.abs(slope).max() < _FLAT:
            break
        previous, w = w, ahead - slope / steepest
        if float((slope * (w - previous)).sum()) > 0:  # momentum leads uphill
            since_restart = 0
    return w


def _best_penalty(train: NDArray[np.float32], labels: NDArray[np.integer], n: int) -> float:
    """Return the penalty that fits held-out pictures best; a category of one picture holds none out."""
    held_out = _held_out(labels, n)
    if not held_out.any():
        return _PENALTIES[1]
    weight = _equal_weights(labels[held_out], n)
    losses = []
    for penalty in _PENALTIES:
        fitted = linear_probe(train[~held_out], labels[~held_out], train[held_out], n, penalty=penalty)
        losses.append(-float(fitted[labels[held_out], np.arange(held_out.sum())] @ weight))
    return _PENALTIES[int(np.argmin(losses))]


def _held_out(labels: NDArray[np.integer], n: int) -> NDArray[np.bool_]:
    """Return (M,) whether a training picture is left out of a fit that chooses a parameter: every fifth."""
    held_out = np.zeros(len(labels), dtype=bool)
    for category in range(n):
        members = np.flatnonzero(labels == category)
        # The second, the seventh, ...: the first stays, however small the category.
        held_out[members[1::_HELD_OUT]] = True
    return held_out


def _equal_weights(labels: NDArray[np.integer], n: int) -> NDArray[np.float32]:
    """Return (M,) weights that sum to 1, the same sum for each category that is there."""
    weight = (1 / np.bincount(labels, minlength=n).clip(1))[labels]
    return np.asarray(weight / weight.sum(), dtype=np.float32)


def _with_bias(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)


def nearest_neighbours(
    train: NDArray[np.float32], labels: NDArray[np.integer], images: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Return (n, N) shares of each category among the 20 nearest training pictures, near ones weighing more.

    The weight of a neighbour is exp(cosine / 0.07). Where a category has no share, the score is the cosine
    with its nearest training picture less 2, which is below every share: most shares are 0, and equal scores
    would rank by the order of the files. Args are those of `linear_probe`; each category has a picture.

    Source: Wu et al. (2018), "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        https://arxiv.org/abs/1805.01978, section 3.4.
    """
    k = min(_NEIGHBOURS, len(train))
    step = max(1, _CELLS // len(train))
    scores: NDArray[np.float32] = np.zeros((n, len(images)), np.float32)
    for start in range(0, len(images), step):
        cosine = images[start : start + step] @ train.T  # (b, M)
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / _TEMPERATURE)
        weight /= weight.sum(axis=1, keepdims=True)
        for category in range(n):
            share = (weight * (labels[nearest] == category)).sum(axis=1)
            closest = cosine[:, labels == category].max(axis=1)
            scores[category, start : start + step] = np.where(share > 0, share, closest - 2)
    return scores


def centroids(
    train: NDArray[np.float32], labels: NDArray[np.integer], images: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Return (n, N) cosines with the mean embedding of each category. Args are those of `linear_probe`."""
    means = np.stack([train[labels == category].mean(axis=0) for category in range(n)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means @ images.T, dtype=np.float32)


def tip_adapter(
    text: NDArray[np.float32],
    train: NDArray[np.float32],
    labels: NDArray[np.integer],
    images: NDArray[np.float32],
    *,
    scale: float,
    alpha: float | None = None,
    beta: float | None = None,
) -> NDArray[np.float64]:
    """Return (n, N) log-probabilities of Tip-Adapter, the training-free one: zero-shot plus votes of a cache.

    The training pictures are its keys and their categories its values; the softmax is of

        scale f.t_c + alpha * (sum of exp(-beta (1 - f.k)) over the keys k of category c)

    for picture f and category c. Each key has one vote, as in the paper, where every category has as many:
    here a category of more pictures has more votes. Unlike the paper's, keys are not means over augmented
    copies: pictures are embedded once.

    Args:
        text: (n, D) unit embeddings that ask for the categories.
        train: (M, D) unit embeddings; each category has one.
        labels: (M,) int in [0, n).
        images: (N, D) unit embeddings.
        scale: Of a cosine; see `Encoder.logit_scale`.
        alpha: The residual ratio, >= 0; None to search it and `beta`, as the authors do on validation
            pictures, for the highest accuracy on a held-out fifth of the training pictures.
        beta: The sharpness, > 0.

    Source: Zhang et al. (2022), "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
        ECCV, https://arxiv.org/abs/2207.09519, section 3.1; grids from https://github.com/gaopengcuhk/Tip-Adapter
    """
    if alpha is None or beta is None:
        alpha, beta = _best_alpha_and_beta(text, train, labels, scale)
    order, starts = _by_category(labels, len(text))
    keys = train[order]
    scores = np.asarray(scale * (text @ images.T).astype(np.float64))
    step = max(1, _CELLS // len(keys))
    for start in range(0, len(images), step):
        distance = 1 - (images[start : start + step] @ keys.T).astype(np.float64)  # (b, M)
        votes = np.add.reduceat(np.exp(-beta * distance), starts, axis=1)
        scores[:, start : start + step] += alpha * votes.T
    return np.ascontiguousarray(_log_softmax(scores.T).T)


def _best_alpha_and_beta(
    text: NDArray[np.float32], train: NDArray[np.float32], labels: NDArray[np.integer], scale: float
) -> tuple[float, float]:
    """Return the pair that names most held-out pictures rightly; of equal ones the first."""
    n = len(text)
    held_out = _held_out(labels, n)
    if not held_out.any():
        return _ALPHA, _BETA
    order, starts = _by_category(labels[~held_out], n)
    keys = train[~held_out][order]
    asked = np.flatnonzero(held_out)
    asked = asked[:: -(-len(asked) // _MOST_SEARCHED)]  # the search takes as long as they are many
    right = np.zeros((len(_BETAS), len(_ALPHAS)), dtype=np.int64)
    step = max(1, _CELLS // max(len(keys), len(_ALPHAS) * n))
    for start in range(0, len(asked), step):
        rows = asked[start : start + step]
        distance = 1 - train[rows] @ keys.T  # (b, M)
        zero_shot = np.float32(scale) * (train[rows] @ text.T)  # (b, n)
        for i, beta in enumerate(_BETAS):
            votes = np.add.reduceat(np.exp(-beta * distance), starts, axis=1)
            logits = zero_shot + _ALPHAS[:, None, None] * votes  # (alphas, b, n)
            right[i] += (logits.argmax(axis=2) == labels[rows]).sum(axis=1)
    best_beta, best_alpha = np.unravel_index(int(right.argmax()), right.shape)
    return float(_ALPHAS[best_alpha]), float(_BETAS[best_beta])


def _by_category(labels: NDArray[np.integer], n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return (M,) the order that puts pictures of one category together, and (n,) where each begins."""
    order = np.argsort(labels, kind="stable")
    return order, np.searchsorted(labels[order], np.arange(n))


def task_residual(
    text: NDArray[np.float32],
    train: NDArray[np.float32],
    labels: NDArray[np.integer],
    images: NDArray[np.float32],
    *,
    scale: float,
    alpha: float = _RESIDUAL_SHARE,
) -> NDArray[np.float64]:
    """Return (n, N) log-probabilities of TaskRes: texts moved by residuals, which are all that is learnt.

    The classifier of a category is t + alpha x, made unit; x starts at 0 and minimises the cross-entropy of
    the training pictures. Each counts once, as in the paper, where every category has as many. As the authors
    do: alpha 0.5, Adam with a rate of 0.002 that falls along a cosine over 200 epochs (what they use
    from 8 pictures a category), the first at 0.00001, batches of 256, weight decay 0.0005. Not as they do:
    pictures are not augmented, and t is of unit length, where theirs is as long as the model makes it.

    Args are those of `tip_adapter`; the order of the pictures is drawn with a fixed seed.

    Source: Yu et al. (2023), "Task Residual for Tuning Vision-Language Models", CVPR,
        https://arxiv.org/abs/2211.10277, sections 3.3 and 4.1; https://github.com/geekyutao/TaskRes
    """
    rng = np.random.default_rng(0)
    x = np.zeros(text.shape, dtype=np.float64)
    mean, square, step = np.zeros_like(x), np.zeros_like(x), 0
    # What is left over from whole batches waits for another epoch, as with the authors' loader.
    used = max(len(train) // _BATCH, 1) * _BATCH
    for epoch in range(_EPOCHS):
        rate = _RATE * (1 + np.cos(np.pi * epoch / _EPOCHS)) / 2 if epoch else _FIRST_RATE
        order = rng.permutation(len(train))[:used]
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            slope = _residual_slope(x, text, train[rows], labels[rows], scale, alpha)[1] + _DECAY * x
            # Kingma & Ba (2015), "Adam: A Method for Stochastic Optimization", algorithm 1.
            step += 1
            mean = 0.9 * mean + 0.1 * slope
            square = 0.999 * square + 0.001 * slope**2
            x -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    moved = text + alpha * x
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return np.ascontiguousarray(_log_softmax(scale * (images @ moved.T)).T)


def _residual_slope(
    x: NDArray[np.float64],
    text: NDArray[np.float32],
    images: NDArray[np.float32],
    labels: NDArray[np.integer],
    scale: float,
    alpha: float,
) -> tuple[float, NDArray[np.float64]]:
    """Return the mean cross-entropy of pictures with residuals x, and its (n, D) gradient by x."""
    moved = text + alpha * x
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    unit = moved / length
    # The pictures stay in single precision: they are by far the most numbers.
    logits = scale * (images @ unit.astype(images.dtype).T).astype(np.float64)  # (B, n)
    log_shares = _log_softmax(logits)
    picked = np.arange(len(labels)), labels
    error = np.exp(log_shares)
    error[picked] -= 1
    by_unit = scale / len(labels) * (error.T.astype(images.dtype) @ images).astype(np.float64)  # (n, D)
    along = (by_unit * unit).sum(axis=1, keepdims=True)
    return -float(log_shares[picked].mean()), alpha * (by_unit - along * unit) / length


def tuned_prompts(
    encode_texts: Callable[[Sequence[str]], NDArray[np.float32]],
    train: NDArray[np.float32],
    labels: NDArray[np.integer],
    categories: Sequence[str],
    names: Names | None = None,
    *,
    templates: Templates = CLIP_TEMPLATES,
) -> tuple[NDArray[np.float32], list[str]]:
    """Choose, for each category, the sentence with the best average precision on the training pictures.

    Args:
        encode_texts: Gives (U, D) unit embeddings.
        train: (M, D) unit embeddings.
        labels: (M,) int, index into `categories`.
        categories: Names of their folders.
        names: What they are called, where it is not what `imret.retrieval.prompts` says.
        templates: Of the model.

    Returns:
        (n, D) embeddings of the chosen sentences, and the sentences.
    """
    vectors, chosen = [], []
    for number, category in enumerate(categories):
        sentences = [
            fill(template, name)
            for name in common_names(category, names)
            for template in (*CANDIDATE_TEMPLATES, *templates)
        ]
        encoded = encode_texts(sentences)
        relevant = np.broadcast_to(labels == number, (len(sentences), len(labels)))
        best = int(average_precision(encoded @ train.T, relevant).argmax())
        vectors.append(encoded[best])
        chosen.append(sentences[best])
    return np.stack(vectors), chosen


_Float = TypeVar("_Float", np.float32, np.float64)


def _log_softmax(logits: NDArray[_Float]) -> NDArray[_Float]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[_Float] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
