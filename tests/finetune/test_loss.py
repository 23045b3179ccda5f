"""The label-aware losses against those they extend and naive double loops, values and gradients."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from finetune.loss import contrastive_loss, loss_floor, sigmoid_loss

SCALE = 20.0


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).float()


def naive_loss(images: Tensor, texts: Tensor, match: list[list[bool]]) -> Tensor:
    """The formula of the docstring over B images and B texts, term by term, in float64."""
    n = len(images)
    s = [[SCALE * images[i].double() @ texts[j].double() for j in range(n)] for i in range(n)]
    i2t, t2i = [], []
    for i in range(n):
        below = sum(s[i][j].exp() for j in range(n))
        matches = [j for j in range(n) if match[i][j]]
        i2t.append(sum(-(s[i][j].exp() / below).log() for j in matches) / len(matches))
    for j in range(n):
        below = sum(s[i][j].exp() for i in range(n))
        matches = [i for i in range(n) if match[i][j]]
        t2i.append(sum(-(s[i][j].exp() / below).log() for i in matches) / len(matches))
    loss = (sum(i2t) / n + sum(t2i) / n) / 2
    assert isinstance(loss, Tensor)
    return loss


def test_it_is_infonce_when_every_caption_differs() -> None:
    images, texts = unit(7, 16, seed=1).requires_grad_(), unit(7, 16, seed=2).requires_grad_()
    logits, target = SCALE * images @ texts.T, torch.arange(7)
    infonce = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    ours = contrastive_loss(
        images, texts, match=torch.eye(7, dtype=torch.bool), counts=torch.ones(7), logit_scale=SCALE
    )
    torch.testing.assert_close(ours, infonce)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [images, texts]), torch.autograd.grad(infonce, [images, texts]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("labels", [[0, 0, 1, 2, 1, 0, 2, 0], [0] * 4 + [1] * 4, [3, 2, 1, 0, 1, 1, 1, 1]])
def test_repeated_captions_give_the_naive_loop_and_its_gradients(labels: list[int]) -> None:
    images = unit(8, 16, seed=3).requires_grad_()
    unique = unit(4, 16, seed=4).requires_grad_()
    used = sorted(set(labels))
    texts = unique[labels]  # B texts, of which some are the same
    naive = naive_loss(images, texts, [[a == b for b in labels] for a in labels])
    ours = contrastive_loss(
        images,
        unique[used],
        match=torch.tensor([[label == u for u in used] for label in labels]),
        counts=torch.tensor([float(Counter(labels)[u]) for u in used]),
        logit_scale=SCALE,
    )
    torch.testing.assert_close(ours.double(), naive, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [images, unique]), torch.autograd.grad(naive, [images, unique]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_different_captions_of_one_label_and_partly_true_ones_give_the_naive_loop() -> None:
    # Texts 0 and 1 tell image 0 and 1 in two wordings; text 2 ("a mushroom") is true of images 1, 2 and 3.
    drawn = [0, 1, 2, 2, 3, 4]
    true_of = [{0, 1}, {0, 1, 2}, {2}, {2}, {3}, {3, 4}]
    images, unique = unit(6, 8, seed=5).requires_grad_(), unit(5, 8, seed=6).requires_grad_()
    naive = naive_loss(images, unique[drawn], [[drawn[j] in true_of[i] for j in range(6)] for i in range(6)])
    match = torch.tensor([[u in texts for u in range(5)] for texts in true_of])
    ours = contrastive_loss(
        images, unique, match=match, counts=torch.tensor([1.0, 1, 2, 1, 1]), logit_scale=SCALE
    )
    torch.testing.assert_close(ours.double(), naive, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [images, unique]), torch.autograd.grad(naive, [images, unique]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts = unit(4, 16, seed=7).bfloat16(), unit(4, 16, seed=8).bfloat16()
    eye = torch.eye(4, dtype=torch.bool)
    low = contrastive_loss(images, texts, match=eye, counts=torch.ones(4), logit_scale=SCALE)
    high = contrastive_loss(images.float(), texts.float(), match=eye, counts=torch.ones(4), logit_scale=SCALE)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high)


def test_a_perfect_model_reaches_the_floor_and_none_falls_below() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    match = labels[:, None] == torch.arange(3)[None]
    counts = torch.tensor([3.0, 2.0, 1.0])
    directions = torch.eye(3)
    floor = loss_floor(match, counts)
    perfect = contrastive_loss(directions[labels], directions, match=match, counts=counts, logit_scale=100.0)
    torch.testing.assert_close(perfect, floor)
    for seed in range(20):
        worse = contrastive_loss(
            unit(6, 3, seed=seed), unit(3, 3, seed=seed + 99), match=match, counts=counts, logit_scale=SCALE
        )
        assert worse > floor


def test_the_floor_of_a_balanced_batch_is_the_log_of_its_share() -> None:
    labels = torch.arange(260) % 10
    floor = loss_floor(labels[:, None] == torch.arange(10)[None], torch.full((10,), 26.0))
    assert floor.item() == pytest.approx(math.log(26), abs=1e-6)
    assert loss_floor(torch.eye(5, dtype=torch.bool), torch.ones(5)).item() == 0.0


# ---- Of a sigmoid ----------------------------------------------------------------------------------------


def test_the_sigmoid_loss_is_that_of_open_clip_when_every_caption_differs() -> None:
    images, texts = unit(7, 16, seed=1).requires_grad_(), unit(7, 16, seed=2).requires_grad_()
    scale, bias = torch.tensor(SCALE), torch.tensor(-3.0)
    stock = SigLipLoss()(images, texts, scale, bias)
    ours = sigmoid_loss(
        images,
        texts,
        match=torch.eye(7, dtype=torch.bool),
        counts=torch.ones(7),
        logit_scale=scale,
        logit_bias=bias,
    )
    torch.testing.assert_close(ours, stock)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [images, texts]), torch.autograd.grad(stock, [images, texts]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("labels", [[0, 0, 1, 2, 1, 0, 2, 0], [0] * 4 + [1] * 4, [3, 2, 1, 0, 1, 1, 1, 1]])
def test_the_sigmoid_loss_of_repeated_captions_is_the_naive_loop_over_all_pairs(labels: list[int]) -> None:
    images, unique = unit(8, 16, seed=3).requires_grad_(), unit(4, 16, seed=4).requires_grad_()
    used = sorted(set(labels))
    naive, pairs = torch.zeros((), dtype=torch.float64), 0
    for i in range(8):
        for j in range(8):
            z = 1 if labels[i] == labels[j] else -1
            logit = SCALE * images[i].double() @ unique[labels[j]].double() - 3
            naive = naive - torch.sigmoid(z * logit).log()
            pairs += z == 1
    ours = sigmoid_loss(
        images,
        unique[used],
        match=torch.tensor([[label == u for u in used] for label in labels]),
        counts=torch.tensor([float(Counter(labels)[u]) for u in used]),
        logit_scale=SCALE,
        logit_bias=-3.0,
    )
    torch.testing.assert_close(ours.double(), naive / pairs, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [images, unique]),
        torch.autograd.grad(naive / pairs, [images, unique]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_sigmoid_loss_is_finite_and_its_least_value_0_where_logits_are_extreme() -> None:
    images = torch.eye(4)
    match, counts = torch.eye(4, dtype=torch.bool), torch.ones(4)
    right, wrong = (
        sigmoid_loss(images, texts, match=match, counts=counts, logit_scale=400.0, logit_bias=-200.0)
        for texts in (torch.eye(4), torch.eye(4).roll(1, 0))
    )
    assert right == 0
    assert wrong == pytest.approx(400)
