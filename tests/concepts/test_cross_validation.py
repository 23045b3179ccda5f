"""What is chosen is chosen without the pictures that judge it; the text is kept where it is the better."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from imret.concepts.cross_validation import (
    UNKNOWN_SHARE,
    UNKNOWN_SHRINKAGE,
    Choice,
    Examples,
    choose,
    mix,
)
from imret.concepts.discriminant import OTHER
from imret.evaluation.metrics import average_precision
from tests import SHARED_DATA

D = 32


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _made(
    counts: list[int], *, noise: float = 0.6, text_noise: float = 1.0, seed: int = 0, views: int = 1
) -> Examples:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(len(counts), D))
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = _unit(means[labels] + noise * rng.normal(size=(len(labels), D)) * 2)
    seen = np.concatenate(
        [vectors, *(_unit(vectors + 0.05 * rng.normal(size=vectors.shape)) for _ in range(views - 1))]
    )
    texts = _unit(means + text_noise * 2 * rng.normal(size=means.shape))
    return Examples(seen, np.tile(np.arange(len(labels)), views), labels, np.ones(len(labels)), texts)


def _query(examples: Examples, choice: Choice) -> NDArray[np.float64]:
    sums = examples.sums()
    return mix(sums.directions([choice.shrinkage])[0], examples.texts, sums, choice.shares)


def test_what_is_learnt_beats_a_text_that_knows_little_on_pictures_never_seen() -> None:
    examples = _made([40, 40, 40], text_noise=5.0)
    fresh = _made([400, 400, 400], text_noise=5.0)  # the same means: the same seed
    choice = choose(examples)
    relevant = fresh.labels[None] == np.arange(3)[:, None]
    learnt = average_precision(_query(examples, choice) @ fresh.vectors.T, relevant)
    texts = average_precision(examples.texts @ fresh.vectors.T, relevant)
    assert learnt.mean() > texts.mean() + 0.1
    assert abs(learnt.mean() - choice.precisions[:, 1].mean()) < 0.1  # held out, so it promises no more


def test_labels_that_mean_nothing_are_not_taken_for_knowledge() -> None:
    examples = _made([50, 50])
    rng = np.random.default_rng(7)
    noise = Examples(
        _unit(rng.normal(size=(100, D))), examples.views, examples.labels, examples.weights, examples.texts
    )
    assert (choose(noise).precisions[:, 1] < 0.75).all()  # learnt by heart it would be 1


def test_a_good_text_is_kept_where_two_pictures_say_less_and_the_other_texts_say_nothing() -> None:
    rng = np.random.default_rng(19)
    examples = _made([2, 60, 60], text_noise=50.0)
    own = np.eye(D)[0]  # all that the two have in common; the text knows it
    vectors = examples.vectors.copy()
    vectors[:2] = _unit(0.6 * own + 0.3 * rng.normal(size=(2, D)))
    texts = np.concatenate([_unit(own[None] + 0.0), examples.texts[1:]])
    choice = choose(Examples(vectors, examples.views, examples.labels, examples.weights, texts))
    assert choice.shares[0] == 1
    assert (choice.shares[1:] < 0.5).all()
    assert np.array_equal(choice.learnt[0], choice.texts[0])
    assert choice.precisions[0, 0] == choice.precisions[0, 1] > 0.8


def test_of_one_picture_each_nothing_is_held_out_and_half_the_text_stays() -> None:
    choice = choose(_made([1, 1, 1]))
    assert choice.shrinkage == UNKNOWN_SHRINKAGE
    assert (choice.shares == UNKNOWN_SHARE).all()
    assert not choice.held_out.any()
    assert np.isnan(choice.precisions).all()


def test_a_category_of_one_picture_takes_the_share_of_the_others() -> None:
    choice = choose(_made([1, 30, 30], text_noise=5.0))
    assert np.isnan(choice.precisions[0]).all()
    assert not np.isnan(choice.precisions[1:]).any()
    assert choice.shares[0] < 0.7
    assert not choice.held_out[0]
    assert choice.held_out[1:].all()


def test_views_of_a_picture_are_held_out_with_it() -> None:
    alone, seen = _made([25, 25], noise=1.5, views=1), _made([25, 25], noise=1.5, views=3)
    # A near copy in the part that is learnt from would make every held-out picture known.
    assert choose(seen).precisions[:, 1].mean() < choose(alone).precisions[:, 1].mean() + 0.1
    assert choose(seen).learnt.shape == (2, 50)


def test_a_small_category_beside_a_large_one_is_learnt() -> None:
    examples = _made([500, 6], noise=0.4, text_noise=5.0)
    choice = choose(examples)
    assert choice.precisions[1, 1] > 0.9
    assert choice.precisions[1, 1] > choice.precisions[1, 0]


def test_one_category_is_told_from_pictures_of_none() -> None:
    examples = _made([20, 60], text_noise=5.0)
    labels = np.where(examples.labels == 0, 0, OTHER)
    single = Examples(examples.vectors, examples.views, labels, examples.weights, examples.texts[:1])
    choice = choose(single)
    assert choice.precisions.shape == (1, 2)
    assert choice.precisions[0, 1] > choice.precisions[0, 0]


def test_the_same_examples_and_seed_choose_the_same() -> None:
    examples = _made([20, 20, 5])
    first, second = choose(examples, seed=3), choose(examples, seed=3)
    assert first.shrinkage == second.shrinkage
    assert np.array_equal(first.shares, second.shares)
    assert np.array_equal(first.learnt, second.learnt)


def test_many_categories_need_no_more_memory_at_once_than_a_block() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(300), 4)
    means = rng.normal(size=(300, D))
    vectors = _unit(means[labels] + 0.5 * rng.normal(size=(1200, D)))
    examples = Examples(vectors, np.arange(1200), labels, np.ones(1200), _unit(rng.normal(size=(300, D))))
    began = time.monotonic()
    choice = choose(examples)
    assert np.nanmean(choice.precisions[:, 1]) > 0.3
    assert time.monotonic() - began < 120


@pytest.mark.skipif(not (SHARED_DATA / "tiny-clip-base").is_dir(), reason="no shared data")
def test_photos_of_ten_categories_are_learnt_far_better_than_their_names_say() -> None:
    from imret import Encoder
    from imret.datasets.labelled import read_labelled
    from imret.evaluation.dataset import embed
    from imret.retrieval.prompts import common_names
    from imret.retrieval.query_vector import query_vector

    encoder = Encoder(str(SHARED_DATA / "tiny-clip-base"), device="cpu", precision="fp32")
    train, test = (
        embed(read_labelled(SHARED_DATA / "nature10" / split), encoder) for split in ("train", "test")
    )
    texts = np.stack([query_vector(encoder, common_names(name)[0]) for name in train.categories])
    n = len(train.labels)
    examples = Examples(train.vectors, np.arange(n), train.labels, np.ones(n), texts)
    query = _query(examples, choose(examples))
    learnt = average_precision(query @ test.vectors.T, test.relevant).mean()
    assert learnt > 0.80  # 0.28 by the names
