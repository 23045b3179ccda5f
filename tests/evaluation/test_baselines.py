"""What needs no tuning: the probe against torch's optimum, kNN and centroids against naive loops,
adapters against torch and by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from imret.evaluation.baselines import (
    _ALPHAS,
    _BETAS,
    _best_alpha_and_beta,
    _best_penalty,
    _residual_slope,
    centroids,
    linear_probe,
    nearest_neighbours,
    task_residual,
    tip_adapter,
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


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Vectors of words for the three categories of `problem`, none of them good."""
    vectors = np.random.default_rng(1).normal(size=(3, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _zero_shot(text: np.ndarray, images: np.ndarray, scale: float) -> np.ndarray:
    """(n, N) log-probabilities of the words alone."""
    logits = torch.tensor(images, dtype=torch.float64) @ torch.tensor(text, dtype=torch.float64).T * scale
    return torch.log_softmax(logits, dim=1).T.numpy()


def test_tip_adapter_by_hand() -> None:
    """Two pictures of category 0 at cosines 1 and 0, one of category 1 at 0.6; words at 0.8 and 0.6."""
    image = np.array([[1, 0, 0]], dtype=np.float32)
    train = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0]], dtype=np.float32)
    words = np.array([[0.8, 0, 0.6], [0.6, 0, 0.8]], dtype=np.float32)
    scores = tip_adapter(words, train, np.array([0, 1, 0]), image, scale=10, alpha=2, beta=5)
    first = 10 * 0.8 + 2 * (1 + np.exp(-5))
    second = 10 * 0.6 + 2 * np.exp(-2)
    total = np.log(np.exp(first) + np.exp(second))
    assert scores[:, 0] == pytest.approx([first - total, second - total], abs=1e-5)


def test_adapters_that_add_nothing_are_the_words_alone(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], text: np.ndarray
) -> None:
    train, labels, images = problem
    for scores in (
        tip_adapter(text, train, labels, images, scale=20, alpha=0, beta=3),
        task_residual(text, train, labels, images, scale=20, alpha=0),
    ):
        np.testing.assert_allclose(scores, _zero_shot(text, images, 20), atol=1e-5)


def test_tip_adapter_takes_the_first_pair_that_names_most_held_out_pictures(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], text: np.ndarray
) -> None:
    train, labels, images = problem
    held = np.concatenate([np.flatnonzero(labels == i)[1::5] for i in range(3)])
    rest = np.setdiff1d(np.arange(86), held)
    best, chosen = -1, (0.0, 0.0)
    for beta in _BETAS[::40]:  # the whole grid is the same, and slow
        for alpha in _ALPHAS:
            scores = tip_adapter(
                text, train[rest], labels[rest], train[held], scale=20, alpha=alpha, beta=beta
            )
            right = int((scores.argmax(axis=0) == labels[held]).sum())
            if right > best:
                best, chosen = right, (float(alpha), float(beta))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imret.evaluation.baselines._BETAS", _BETAS[::40])
        assert _best_alpha_and_beta(text, train, labels, 20) == chosen
        searched = tip_adapter(text, train, labels, images, scale=20)
    given = tip_adapter(text, train, labels, images, scale=20, alpha=chosen[0], beta=chosen[1])
    np.testing.assert_array_equal(searched, given)


def test_the_grids_of_tip_adapter_are_those_that_its_authors_search() -> None:
    assert (len(_BETAS), len(_ALPHAS)) == (392, 39)  # some values are in both widths
    assert _BETAS[0] == _ALPHAS[0] == np.float32(0.1)
    for value in (0.1 + 199 * 6.9 / 200, 0.1 + 199 * 29.9 / 200):
        assert np.isclose(_BETAS, value).any()
    for value in (0.1 + 19 * 2.9 / 20, 0.1 + 19 * 29.9 / 20):
        assert np.isclose(_ALPHAS, value).any()


def test_the_slope_of_task_residuals_is_that_of_finite_differences(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], text: np.ndarray
) -> None:
    train, labels, _ = problem
    exact = train.astype(np.float64)
    x = np.random.default_rng(2).normal(size=text.shape)
    value, slope = _residual_slope(x, text, exact, labels, 20, 0.5)
    moved = text + 0.5 * x
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    expected = -_zero_shot(moved, exact, 20)[labels, np.arange(86)].mean()
    assert value == pytest.approx(expected, abs=1e-9)
    for at in ((0, 0), (1, 7), (2, 15)):
        step = np.zeros_like(x)
        step[at] = 1e-6
        above, below = (_residual_slope(x + s, text, exact, labels, 20, 0.5)[0] for s in (step, -step))
        assert slope[at] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_task_residuals_are_those_that_torch_learns(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], text: np.ndarray
) -> None:
    """All pictures fit into one batch, so that their order does not count."""
    train, labels, images = problem
    x = torch.zeros(3, 16, dtype=torch.float64, requires_grad=True)
    base, pictures = torch.tensor(text, dtype=torch.float64), torch.tensor(train, dtype=torch.float64)
    optimiser = torch.optim.Adam([x], lr=2e-3, weight_decay=5e-4)
    for epoch in range(200):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 + np.cos(np.pi * epoch / 200)) if epoch else 1e-5
        optimiser.zero_grad()
        moved = torch.nn.functional.normalize(base + 0.5 * x, dim=1)
        torch.nn.functional.cross_entropy(20 * pictures @ moved.T, torch.tensor(labels)).backward()
        optimiser.step()
    moved = torch.nn.functional.normalize(base + 0.5 * x, dim=1).detach().numpy()
    scores = task_residual(text, train, labels, images, scale=20)
    np.testing.assert_allclose(scores, _zero_shot(moved, images, 20), atol=1e-4)
    assert (scores.argmax(axis=0) != _zero_shot(text, images, 20).argmax(axis=0)).any()


def test_what_fills_no_batch_waits_for_another_epoch() -> None:
    """300 pictures: batches of 256, and the same result every time."""
    rng = np.random.default_rng(3)
    labels = np.arange(300) % 2
    train = rng.normal(size=(300, 4)) + np.array([[2, 0, 0, 0], [0, 2, 0, 0]])[labels]
    train = (train / np.linalg.norm(train, axis=1, keepdims=True)).astype(np.float32)
    words = np.array([[0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32)
    scores = task_residual(words, train, labels, train, scale=20)
    np.testing.assert_array_equal(scores, task_residual(words, train, labels, train, scale=20))
    alone = _zero_shot(words, train, 20)
    assert (scores.argmax(axis=0) == labels).mean() > (alone.argmax(axis=0) == labels).mean() + 0.1


def test_alike_categories_tie_and_alike_pictures_score_alike_with_adapters(text: np.ndarray) -> None:
    train = np.stack([text[2], text[2], text[1]])
    words = np.stack([text[0], text[0], text[1]])
    images = np.stack([text[1], text[1]])
    for fit in (tip_adapter, task_residual):
        scores = fit(words, train, np.array([0, 1, 2]), images, scale=20)
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-7)
        np.testing.assert_array_equal(scores[:, 0], scores[:, 1])


def test_one_picture_of_each_category_is_enough_for_the_adapters(text: np.ndarray) -> None:
    train = np.eye(3, 16, dtype=np.float32)
    assert _best_alpha_and_beta(text, train, np.arange(3), 20) == (1.0, 5.5)
    for fit in (tip_adapter, task_residual):
        own = fit(text, train, np.arange(3), train, scale=20).diagonal()
        assert (own > _zero_shot(text, train, 20).diagonal()).all()
