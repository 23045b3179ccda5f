"""Scores of concepts to probabilities that mean what they say, fitted on pictures held out.

A temperature for all and a bias for each category, by maximum likelihood: "vector scaling" with one scale.
Guo et al. (2017), "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 4.2.
The biases hold how frequent the categories are among the pictures that were learnt from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imret.evaluation.metrics import calibration_error
from imret.retrieval.concepts import Calibration

BINS = 15
_STEPS = 100
# Keeps a scale finite where held-out pictures are told apart without a fault.
_RIDGE = 1e-3


def fit(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> tuple[float, NDArray[np.float64]]:
    """Return the scale, > 0, and the (C,) biases that make the labels most likely.

    Args:
        scores: (N, C).
        labels: (N,) int in [0, C).
    """
    size = float(scores.std()) or 1.0
    x = np.asarray(scores, dtype=np.float64) / size
    n_labels = x.shape[1]
    target = np.eye(n_labels)[labels]
    theta = np.zeros(1 + n_labels)
    theta[0] = 1.0
    loss = _loss(theta, x, target)
    for _ in range(_STEPS):
        slope, curvature = _slope(theta, x, target)
        step = np.linalg.solve(curvature, slope)
        length = 1.0
        while length > 1e-4:
            ahead = theta - length * step
            if ahead[0] > 0 and (next_loss := _loss(ahead, x, target)) < loss:
                break
            length /= 2
        else:
            break
        if loss - next_loss < 1e-9:
            break
        theta, loss = ahead, next_loss
    return float(theta[0] / size), theta[1:] - theta[1:].mean()


def _loss(theta: NDArray[np.float64], x: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    logits = theta[0] * x + theta[1:]
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    likelihood = (logits * target).sum(axis=1) - total
    return float(-likelihood.mean() + _RIDGE / 2 * theta @ theta)


def _slope(
    theta: NDArray[np.float64], x: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the gradient of the loss and its matrix of second derivatives."""
    p = softmax(theta[0] * x + theta[1:])
    n = len(x)
    off = p - target
    slope = np.concatenate([[(off * x).sum() / n], off.mean(axis=0)]) + _RIDGE * theta
    mean = (p * x).sum(axis=1, keepdims=True)
    curvature = np.empty((len(theta), len(theta)))
    curvature[0, 0] = (p * (x - mean) ** 2).sum() / n
    curvature[0, 1:] = curvature[1:, 0] = (p * (x - mean)).mean(axis=0)
    curvature[1:, 1:] = np.diag(p.mean(axis=0)) - p.T @ p / n
    return slope, curvature + _RIDGE * np.eye(len(theta))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each row's shares, which sum to 1."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def calibrate(
    names: list[str],
    learnt: NDArray[np.floating],
    texts: NDArray[np.floating],
    labels: NDArray[np.integer],
    logit_scale: float,
    *,
    seed: int = 0,
) -> Calibration:
    """Fit probabilities on held-out pictures, and say how far off they are, on halves that were not fitted.

    Args:
        names: Of the C concepts.
        learnt: (C, N) scores by what was learnt.
        texts: (C, N) by the texts alone.
        labels: (N,) int in [0, C).
        logit_scale: What the model puts on the scores of texts.
        seed: Of the halves.
    """
    before = error_of(softmax(logit_scale * texts.T), labels)
    half = np.random.default_rng(seed).permutation(len(labels)) % 2
    crossed = np.empty((len(labels), len(names)))
    for part in (0, 1):
        scale, biases = fit(learnt.T[half != part], labels[half != part])
        crossed[half == part] = softmax(scale * learnt.T[half == part] + biases)
    scale, biases = fit(learnt.T, labels)
    return Calibration(
        dict(zip(names, map(float, biases), strict=True)), scale, before, error_of(crossed, labels)
    )


def error_of(shares: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the expected calibration error of (N, C) probabilities, in BINS equal bins; in [0, 1]."""
    best = shares.argmax(axis=1)
    return calibration_error(shares.max(axis=1), best == labels, BINS)
