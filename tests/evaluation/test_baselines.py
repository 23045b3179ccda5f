"""What needs no tuning: the probe against torch's optimum, kNN and centroids against naive loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from imret.evaluation.baselines import (
    _best_penalty,
    centroids,
    linear_probe,
    nearest_neighbours,
    tuned_prompts,
)
from imret.evaluation.metrics import average_precision
from imret.retrieval.prompts import evaluation_queries


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training vectors and labels of 3 categories, 60, 20 and 6 of each, and 25 vectors to score."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 20, 6])
    centres = rng.normal(size=(3, 16))

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    train = unit(rng.normal(size=(86, 16)) * 1.5 + centres[labels])
    return train, labels, unit(rng.normal(size=(25, 16)) + centres[rng.integers(0, 3, 25)])


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_the_linear_probe_is_the_optimum_that_lbfgs_finds(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], penalty: float
) -> None:
    train, labels, images = problem
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    x = torch.tensor((train - mean) / std, dtype=torch.float64)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    share = torch.tensor([1 / (3 * n) for n in (60, 20, 6)], dtype=torch.float64)
    y = torch.tensor(labels)
    w = torch.zeros(17, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=1000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        losses = torch.nn.functional.cross_entropy(x @ w, y, reduction="none")
        value = (losses * share[y]).sum() + penalty / 2 * (w**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    tested = torch.tensor((images - mean) / std, dtype=torch.float64)
    tested = torch.cat([tested, torch.ones(len(tested), 1, dtype=torch.float64)], dim=1)
    expected = torch.log_softmax(tested @ w.detach(), dim=1).T.numpy()
    np.testing.assert_allclose(linear_probe(train, labels, images, 3, penalty=penalty), expected, atol=0.005)


def test_the_penalty_is_chosen_by_pictures_held_out(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    train, labels, images = problem
    chosen = _best_penalty(train, labels, 3)
    held = np.concatenate([np.flatnonzero(labels == i)[1::5] for i in range(3)])
    rest = np.setdiff1d(np.arange(86), held)
    losses = {}
    for penalty in (1e-3, 1e-2, 1e-1, 1.0):
        fitted = linear_probe(train[rest], labels[rest], train[held], 3, penalty=penalty)
        each = [np.mean([-fitted[i, j] for j, h in enumerate(held) if labels[h] == i]) for i in range(3)]
        losses[penalty] = np.mean(each)
    assert chosen == min(losses, key=lambda p: losses[p])
    np.testing.assert_array_equal(
        linear_probe(train, labels, images, 3), linear_probe(train, labels, images, 3, penalty=chosen)
    )


def test_sure_pictures_do_not_tie_in_the_linear_probe() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    vectors = (rng.normal(size=(100, 4)) * 0.05 + np.array([[1, 0, 0, 0], [0, 1, 0, 0]])[labels]).astype(
        np.float32
    )
    scores = linear_probe(vectors, labels, vectors, 2, penalty=1e-6)
    assert len(np.unique(scores[0, :50])) == 50


def test_one_picture_of_each_category_is_enough_for_every_baseline() -> None:
    train = np.eye(3, 8, dtype=np.float32)
    for fit in (linear_probe, nearest_neighbours, centroids):
        assert fit(train, np.arange(3), train, 3).argmax(axis=0).tolist() == [0, 1, 2]


def test_neighbours_vote_by_their_nearness_as_in_a_naive_loop(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    train, labels, images = problem
    scores = nearest_neighbours(train, labels, images, 3)
    for i, image in enumerate(images):
        cosines = train @ image
        nearest = sorted(range(86), key=lambda j: -cosines[j])[:20]
        votes = np.zeros(3)
        for j in nearest:
            votes[labels[j]] += np.exp(cosines[j] / 0.07)
        votes /= votes.sum()
        for category in range(3):
            expected = votes[category] or cosines[labels == category].max() - 2
            assert scores[category, i] == pytest.approx(expected, abs=1e-4)


def test_pictures_without_a_neighbour_of_a_category_do_not_rank_by_the_order_of_files() -> None:
    """25 near pictures of category 0 take all votes: category 1 must still be ranked by nearness."""
    train = np.zeros((26, 3), np.float32)
    train[:25, 0] = 1
    train[25, 1] = 1
    labels = np.array([0] * 25 + [1])
    angle = np.linspace(0, 0.5, 5)
    images = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1).astype(np.float32)
    order = nearest_neighbours(train, labels, images, 2)[1].argsort()[::-1]
    assert order.tolist() == [4, 3, 2, 1, 0]


def test_centroids_are_cosines_with_the_mean_of_each_category(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    train, labels, images = problem
    scores = centroids(train, labels, images, 3)
    for category in range(3):
        mean = sum(v for v, label in zip(train, labels, strict=True) if label == category)
        np.testing.assert_allclose(scores[category], images @ (mean / np.linalg.norm(mean)), atol=1e-5)


def test_the_prompt_of_each_category_is_the_one_that_ranks_training_pictures_best() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(30, 6)).astype(np.float32)
    labels = np.repeat([0, 1], 15)
    seen: dict[str, np.ndarray] = {}

    def encode(sentences: Sequence[str]) -> np.ndarray:
        for sentence in sentences:
            seen[sentence] = rng.normal(size=6).astype(np.float32)
        return np.stack([seen[sentence] for sentence in sentences])

    vectors, chosen = tuned_prompts(encode, train, labels, ["aves", "fungi"], {"aves": ("owl", "night bird")})
    assert any("night bird" in sentence for sentence in seen)
    assert not any("bird" in sentence.replace("night bird", "") for sentence in seen)
    assert set(evaluation_queries("fungi")) <= set(seen)
    for number, words in enumerate((("owl", "night bird"), ("mushroom", "fungus"))):
        of = {s: v for s, v in seen.items() if any(word in s for word in words)}
        values = {
            s: average_precision((v @ train.T)[None], (labels == number)[None])[0] for s, v in of.items()
        }
        assert values[chosen[number]] == max(values.values())
        np.testing.assert_array_equal(vectors[number], seen[chosen[number]])
