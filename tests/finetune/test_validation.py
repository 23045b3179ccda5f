"""What a model is worth while it is trained, against naive loops over every picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.pixels import ImageSet
from finetune.data.records import Record
from finetune.validation import ImageFeatures, TextFeatures, Validation
from imret.retrieval.prompts import evaluation_queries

PHRASES = [f"phrase {i}" for i in range(40)]


class Numbered:
    """Pictures of one pixel, which holds the number of the picture."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def batch(self, positions: Sequence[int]) -> Tensor:
        return torch.tensor([[[[i, 0, 0]]] for i in positions], dtype=torch.uint8)


class Table:
    """Two towers that look features up; `turn` moves those of the pictures away from where they were."""

    def __init__(self, turn: float = 0.0) -> None:
        noise = np.random.default_rng(1)
        self.images = np.random.default_rng(0).normal(size=(200, 16)) + turn * noise.normal(size=(200, 16))

    def encode_images(self, images: Tensor) -> Tensor:
        rows = (images[:, 0, 0, 0] * 255).round().long().numpy()
        return F.normalize(torch.tensor(self.images[rows], dtype=torch.float32), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        rows = [np.random.default_rng(list(text.encode())).normal(size=16) for text in texts]
        return F.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


def labelled(n: int) -> ImageSet:
    records = [Record(f"{i}.jpg", ("aves", "fungi", "plantae")[i % 3], 1) for i in range(n)]
    return cast(Any, Numbered(records))


def captioned(n: int) -> ImageSet:
    records = [
        Record(f"{i}.jpg", "", 1, captions=tuple(f"caption {i} {j}" for j in range(1 + i % 3)))
        for i in range(n)
    ]
    return cast(Any, Numbered(records))


def both(validation: Validation, towers: Table) -> tuple[ImageFeatures, TextFeatures]:
    return validation.encode_images(towers), validation.encode_texts(towers)


def test_average_precision_is_that_of_a_walk_down_the_ranking() -> None:
    towers = Table()
    validation = Validation(labelled(30), None, phrases=PHRASES, batch_size=7)
    results = validation.scores(*both(validation, towers))
    assert results is not None
    images = towers.encode_images(cast(Any, labelled(30)).batch(range(30)).permute(0, 3, 1, 2).float() / 255)
    for k, category in enumerate(("aves", "fungi", "plantae")):
        query = F.normalize(towers.encode_texts(evaluation_queries(category)).mean(0), dim=0)
        order = (images @ query).argsort(descending=True).tolist()
        hits, precisions = 0, []
        for rank, i in enumerate(order, start=1):
            if i % 3 == k:
                hits += 1
                precisions.append(hits / rank)
        assert results["average_precision"][category] == pytest.approx(np.mean(precisions), abs=1e-4)


@pytest.mark.parametrize(("n", "rank"), [(100, 2), (150, 3), (10, 1)])
def test_a_caption_has_found_its_picture_in_the_best_fiftieth(n: int, rank: int) -> None:
    towers, pictures = Table(), captioned(n)
    validation = Validation(labelled(3), pictures, phrases=PHRASES, batch_size=64)
    assert validation.retention_kind == f"hit_rate@{rank}"
    images = towers.encode_images(cast(Any, pictures).batch(range(n)).permute(0, 3, 1, 2).float() / 255)
    hits = []
    for i, record in enumerate(pictures.records):
        for caption in record.captions:
            scores = (images @ towers.encode_texts([caption])[0]).tolist()
            hits.append(sum(score > scores[i] for score in scores) < rank)
    assert validation.hit_rate(*both(validation, towers)) == pytest.approx(np.mean(hits))


def test_agreement_is_the_share_of_the_bases_ten_nearest_phrases_that_stay() -> None:
    base, tuned = Table(), Table(turn=0.5)
    validation = Validation(labelled(30), None, phrases=PHRASES, batch_size=64)
    assert validation.retention_kind == "agreement"
    assert validation.agreement(*both(validation, base), both(validation, base)) == 1
    assert validation.hit_rate(*both(validation, base)) is None
    pixels = cast(Any, labelled(30)).batch(range(30)).permute(0, 3, 1, 2).float() / 255
    phrases = base.encode_texts(PHRASES)
    kept = []
    for before, after in zip(base.encode_images(pixels), tuned.encode_images(pixels), strict=True):
        nearest = [set((phrases @ one).argsort(descending=True)[:10].tolist()) for one in (before, after)]
        kept.append(len(nearest[0] & nearest[1]) / 10)
    assert validation.agreement(*both(validation, tuned), both(validation, base)) == pytest.approx(
        np.mean(kept)
    )
    assert 0.2 < np.mean(kept) < 0.95


def test_a_model_of_two_towers_is_what_each_makes_of_its_own() -> None:
    base, tuned, pictures = Table(), Table(turn=2.0), captioned(50)
    validation = Validation(labelled(9), pictures, phrases=PHRASES, batch_size=64)
    seen, read = validation.encode_images(tuned), validation.encode_texts(base)  # texts are the same in both
    assert validation.hit_rate(seen, read) == validation.hit_rate(*both(validation, tuned))
    assert validation.hit_rate(seen, read) != validation.hit_rate(*both(validation, base))


@pytest.mark.parametrize("n", [0, 1])
def test_with_no_captioned_picture_to_mistake_another_for_it_is_agreement(n: int) -> None:
    validation = Validation(labelled(9), captioned(n), phrases=PHRASES, batch_size=64)
    assert validation.retention_kind == "agreement"
    assert validation.hit_rate(*both(validation, Table())) is None


def test_pictures_of_one_category_rank_perfectly_and_so_say_nothing() -> None:
    one = cast(Any, Numbered([Record(f"{i}.jpg", "aves", 1) for i in range(5)]))
    validation = Validation(one, None, phrases=PHRASES, batch_size=8)
    assert validation.scores(*both(validation, Table())) is None


def test_without_pictures_there_is_nothing_to_say() -> None:
    nothing = Validation(cast(Any, Numbered([])), None, phrases=PHRASES, batch_size=8)
    base = both(nothing, Table())
    assert nothing.agreement(*base, base) is None
    assert nothing.scores(*base) is None
