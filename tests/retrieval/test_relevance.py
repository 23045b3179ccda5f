"""Where the answers end: by hand on a few numbers, by a naive loop and on real photos."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from imret import Encoder
from imret.datasets.phrases import read_phrases
from imret.retrieval import relevance
from imret.retrieval.query import Term
from imret.retrieval.query_vector import query_vector
from imret.retrieval.results import Hits
from imret.retrieval.search import search
from imret.store import Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource

PHOTOS = 250


# ---- By hand --------------------------------------------------------------------------------------------


def about(
    scores: list[float],
    phrases: list[list[float]],
    *,
    likeness: tuple[float, ...] = (0.9, 0.2, 0.1, 0.0, -0.1),
    usual: float = 0.0,
    images: int = 697,
    logit_scale: float = 25.0,
    is_caption: bool = True,
) -> bool:
    """Ask for hits with five phrases, of which the first says what the text says."""
    return relevance.about_words(
        np.array(scores, dtype=np.float32), np.array(phrases, dtype=np.float32), likeness=np.array(likeness),
        usual=usual, images=images, logit_scale=logit_scale, is_caption=is_caption,
    )  # fmt: skip


def hits_of(nearest: float, other: float = 0.1, hits: int = 1) -> list[list[float]]:
    return [[nearest, other, 0.1, 0.0, 0.0]] * hits


def test_the_cut_lies_between_a_picture_in_general_and_the_mean_of_the_best_three() -> None:
    scores = np.array([0.0, 0.1, 0.1, 0.1, 0.9], dtype=np.float32)
    best = np.array([0.9, 0.6, 0.3, 0.2], dtype=np.float32)
    assert relevance.cut(scores, best) == pytest.approx(0.1 + 0.6 * 0.5)
    assert relevance.cut(scores, best, fall=0.45) == pytest.approx(0.1 + 0.45 * 0.5)
    # All of a collection is about the query: a picture in general scores what nine in ten phrases do not.
    alike, phrases = np.full(5, 0.5, dtype=np.float32), np.linspace(0, 0.2, 11, dtype=np.float32)
    assert relevance.cut(alike, best, phrases[None, :]) == pytest.approx(0.18 + 0.6 * (0.6 - 0.18))


def test_a_name_is_answered_where_it_is_nearer_than_every_phrase_and_a_caption_where_it_is_clearly() -> None:
    # Scores are too low to be far above chance; a logit is 0.04, two are 0.08.
    for score, name, caption in (
        (0.19, False, False),
        (0.21, True, False),
        (0.27, True, False),
        (0.29, True, True),
    ):
        assert about([score], hits_of(0.2), is_caption=False) is name
        assert about([score], hits_of(0.2)) is caption


def test_a_phrase_that_says_the_same_is_no_reason_against_a_hit_that_is_far_above_chance() -> None:
    chance = 2.7 * math.sqrt(2 * math.log(697)) / 25
    assert chance == pytest.approx(0.391, abs=5e-4)
    for is_caption in (False, True):
        assert about([chance + 0.001], hits_of(0.6), is_caption=is_caption)
        assert not about([chance - 0.001], hits_of(0.6), is_caption=is_caption)
        # Above what phrases score in general, whatever that is in this model.
        assert not about([chance + 0.001], hits_of(0.6), usual=0.1, is_caption=is_caption)
        assert about([chance + 0.101], hits_of(0.6), usual=0.1, is_caption=is_caption)


def test_a_phrase_that_says_something_else_is_one() -> None:
    assert about([0.7], hits_of(0.9, other=0.1))
    assert not about([0.7], hits_of(0.9, other=0.1), likeness=(-0.1, 0.2, 0.1, 0.0, 0.9))
    # The second of five is among the two that are most like the text, too.
    assert about([0.7], hits_of(0.9, other=0.8))
    assert not about([0.7], hits_of(0.9, other=0.8), likeness=(0.9, 0.0, 0.1, 0.2, 0.3))


def test_among_more_pictures_chance_finds_better_ones() -> None:
    needed = [
        next(s for s in np.linspace(0, 1, 1001) if about([s], hits_of(1.0), images=images))
        for images in (1, 2, 10, 1_000, 1_000_000)
    ]
    assert needed[0] == needed[1]
    assert needed[1:] == sorted(set(needed[1:]))
    expected = [2.7 * math.sqrt(2 * math.log(n)) / 25 for n in (2, 10, 1_000, 1_000_000)]
    assert needed[1:] == pytest.approx(expected, abs=1e-3)


def test_most_of_the_hits_decide() -> None:
    for phrases, answer in (([0.1, 0.9, 0.9], False), ([0.1, 0.1, 0.9], True), ([0.1, 0.9], True)):
        hits = [hits_of(p)[0] for p in phrases]
        assert about([0.3] * len(hits), hits, is_caption=False) is answer


@pytest.mark.parametrize("logit_scale", [0.0, 1e-300, 1e-3, 1.0, 1e4, 1e300])
def test_no_logit_scale_is_too_odd(logit_scale: float) -> None:
    is_answered = about([0.9], hits_of(0.95), logit_scale=logit_scale)
    assert is_answered is (logit_scale > 10)


# ---- On real photos -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(shared_data: Path) -> Encoder:
    return Encoder(shared_data / "tiny-clip", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def captions(shared_data: Path) -> dict[str, str]:
    """The first caption of each of some photos."""
    with open(shared_data / "captions800" / "captions.csv", encoding="utf-8", newline="") as lines:
        first = {row["path"]: row["caption"] for row in reversed(list(csv.DictReader(lines)))}
    return dict(sorted(first.items())[:PHOTOS])


@pytest.fixture(scope="module")
def photos(
    shared_data: Path, captions: dict[str, str], tiny_clip: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """A store with those photos, and nature10/test."""
    folder = tmp_path_factory.mktemp("some-photos")
    for path in captions:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(shared_data / "captions800" / path)
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(folder)], encoder=tiny_clip, collection="some")
        ingest(
            store, [FolderSource(shared_data / "nature10" / "test")], encoder=tiny_clip, collection="nature"
        )
        yield store


def test_captions_keep_their_photo_and_find_nothing_where_it_cannot_be(
    photos: Store, tiny_clip: Encoder, captions: dict[str, str]
) -> None:
    some = {path: caption for path, caption in list(captions.items())[::3] if len(caption.split()) > 9}
    assert len(some) > 40
    kept = [
        any(hit.path.endswith(path) for hit in _relevant(photos, caption, "some", tiny_clip))
        for path, caption in some.items()
    ]
    assert np.mean(kept) > 0.9
    answered = [bool(_relevant(photos, caption, "nature", tiny_clip)) for caption in some.values()]
    assert np.mean(answered) < 0.15


def test_a_word_that_is_itself_an_everyday_phrase_is_found(photos: Store, tiny_clip: Encoder) -> None:
    bank = read_phrases()
    for word in ("bicycle", "skateboard", "football"):
        assert any(word in phrase.split() for phrase in bank)
        assert _relevant(photos, word, "some", tiny_clip), word
        assert not _relevant(photos, word, "nature", tiny_clip), word


def test_a_search_ends_where_a_naive_loop_says(
    photos: Store, tiny_clip: Encoder, captions: dict[str, str]
) -> None:
    bank = tiny_clip.encode_texts(read_phrases())
    with closing(photos.open("some")) as collection:
        points = [point for batch in collection.scan(vectors=True) for point in batch]
    vectors = np.stack([point.vector for point in points if point.vector is not None])
    assert len(vectors) == PHOTOS  # the sample is the whole collection
    of_phrases = vectors @ bank.T
    outcomes = set()
    for text in ("dog", "a red car", "mushroom", "a spider in its web", *list(captions.values())[:12]):
        vector = query_vector(tiny_clip, text)
        scores = vectors @ vector
        best = sorted(range(PHOTOS), key=lambda i: -scores[i])[:3]
        is_caption = len(text.split()) > 3
        general = min(np.median(scores), np.quantile(of_phrases, 0.9))
        end = general + (0.45 if is_caption else 0.6) * (np.mean([scores[i] for i in best]) - general)
        best = [i for i in best if scores[i] >= end]
        logit = 1 / tiny_clip.logit_scale
        else_than = sorted(range(len(bank)), key=lambda p: bank[p] @ vector)[: int(0.6 * (len(bank) - 1)) + 1]
        nearer = sum(scores[i] > max(of_phrases[i]) + (2 * logit if is_caption else 0) for i in best)
        about = sum(scores[i] > max(of_phrases[i][p] for p in else_than) for i in best)
        lift = np.mean([scores[i] for i in best]) - np.median(of_phrases)
        is_answered = 2 * nearer >= len(best) or (
            2 * about >= len(best) and lift >= 2.7 * math.sqrt(2 * math.log(PHOTOS)) * logit
        )
        expected = {points[i].id for i in range(PHOTOS) if scores[i] >= end} if is_answered else set()
        assert {hit.id for hit in _relevant(photos, text, "some", tiny_clip)} == expected, text
        outcomes.add((is_caption, bool(expected)))
    assert outcomes >= {(True, True), (False, True), (False, False)}


def test_a_caption_beside_a_name_or_a_picture_is_cut_as_these_are(
    photos: Store, tiny_clip: Encoder, captions: dict[str, str]
) -> None:
    """A deeper cut is for what is asked in a caption alone."""
    path, caption = next(iter(captions.items()))
    (picture,) = [
        hit.path for hit in search(photos, caption, collection="some", encoder=tiny_clip, limit=300)
        if hit.path.endswith(path)
    ]  # fmt: skip
    for query in ([Term(caption), Term("dog")], [Term(caption), Term(picture, "image")]):
        ranked = search(photos, query, collection="some", encoder=tiny_clip, limit=300)
        kept = search(photos, query, collection="some", encoder=tiny_clip, limit=300, relevant=True)
        assert [hit.id for hit in kept] == [hit.id for hit in ranked[: len(kept)]]
        if kept:
            top = np.mean([hit.score for hit in ranked[:3]])
            median = np.median([hit.score for hit in ranked])
            assert kept[-1].score >= min(median, top) + 0.55 * (top - median)


def _relevant(store: Store, text: str, collection: str, encoder: Encoder) -> Hits:
    return search(store, text, collection=collection, encoder=encoder, limit=PHOTOS, relevant=True)
