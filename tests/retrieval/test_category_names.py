"""Searching by the names of categories: whichever is typed, the first is asked for."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from imret.datasets.names_csv import name_key
from imret.errors import DataError
from imret.models.lazy_encoder import LazyEncoder
from imret.retrieval.category_names import CategoryNames, parse_names
from imret.retrieval.prompts import (
    COMMON_NAMES,
    SEARCH_TEMPLATES,
    TRAINING_TEMPLATES,
    common_names,
    evaluation_queries,
    fill,
    label_texts,
    search_prompts,
)
from imret.retrieval.query_vector import query_vector
from tests import SHARED_DATA

KNOWN = CategoryNames({})
NAMES = {
    "aves": ("owl", "night bird"),
    "orange": ("orange fruit",),
    "cranes": ("crane machine",),
    "birds": ("bird",),
    "7": ("frog",),
    "jaguar": ("car",),
    "panthera onca": ("jaguar",),
    "turdus_merula": ("blackbird",),
}
OWN = CategoryNames(NAMES)


def asked(query: str, names: CategoryNames = KNOWN) -> list[str]:
    return search_prompts(query, names=names)


@pytest.mark.parametrize("query", ["aves", "bird", "birds", "a bird", "the birds", " BIRDS ", "aves!"])
def test_a_category_is_asked_by_its_first_name_whichever_is_typed(query: str) -> None:
    assert asked(query) == [fill(frame, "bird") for frame in SEARCH_TEMPLATES]


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("aves on water", "bird on water"),
        ("two Aves", "two bird"),
        ("an aves in a tree", "a bird in a tree"),
        ("a actinopterygii swims by", "a fish swims by"),
        ("aves and fungi", "bird and mushroom"),
        ("aves' nest", "bird' nest"),
        ("mammalia, insecta or reptilia at night", "mammal, insect or reptile at night"),
        ("insecta next to aves in the rain", "insect next to bird in the rain"),
    ],
)
def test_a_folder_s_name_in_a_query_gives_way_to_what_people_say(query: str, same: str) -> None:
    assert asked(query) == search_prompts(same)


@pytest.mark.parametrize(
    "query",
    [
        "animal",
        "bird on water",
        "birds on water",
        "two birds",
        "a red mushroom",
        "fungus on a log",  # a name, and no folder's
        "fishing",
        "aves-like robot",
        "5th ave",
        "sunset",
        "a photo of a bird",
        "",
        "...",
        "\u9e1f",
    ],
)
def test_a_query_without_a_folder_s_name_is_asked_as_it_was(query: str) -> None:
    assert asked(query) == search_prompts(query)


def test_queries_of_any_words_but_names_are_asked_as_they_were() -> None:
    draw = random.Random(5)
    words = "red blue dog cat car birds insects in on a the of two house tree animal plant's mammals -"
    for _ in range(2000):
        query = " ".join(draw.choices(words.split(), k=draw.randint(2, 6)))
        if KNOWN.first_name(query) is None:
            assert asked(query) == search_prompts(query)
            assert asked(query) == search_prompts(query, names=OWN) or OWN.first_name(query)


def test_without_templates_the_very_words_are_asked() -> None:
    assert search_prompts("aves", template=False, names=KNOWN) == ["aves"]


@pytest.mark.parametrize("category", [*COMMON_NAMES, "golden_retriever", "a_long_name_of_a_folder", "7"])
def test_evaluation_judges_the_sentences_that_a_search_asks(category: str) -> None:
    words = " ".join(category.replace("_", " ").split())
    assert evaluation_queries(category) == asked(words)
    assert label_texts(category) == asked(words)


def test_evaluation_with_names_judges_the_sentences_that_a_search_with_them_asks() -> None:
    for category, called in NAMES.items():
        sentences = evaluation_queries(category, NAMES)
        assert sentences == [fill(frame, called[0]) for frame in SEARCH_TEMPLATES]
        for name in (category, *called):
            if name != "jaguar":
                assert asked(name, OWN) == sentences


def test_training_uses_none_of_the_sentences_that_are_judged() -> None:
    for category in (*COMMON_NAMES, "owl"):
        for name in common_names(category):
            trained = {fill(frame, name).lower().rstrip(".") for frame in TRAINING_TEMPLATES}
            trained |= {sentence.replace(" an ", " a ") for sentence in trained}
            assert not trained & {fill(frame, name).lower().rstrip(".") for frame in SEARCH_TEMPLATES}


def test_names_that_are_given_come_before_those_that_are_known() -> None:
    assert OWN.first_name("aves") == OWN.first_name("night birds") == OWN.first_name("owls") == "owl"
    assert OWN.first_name("bird") == "bird"  # of the folder birds
    assert OWN.first_name("fungus") == "mushroom"  # not given, but known
    assert OWN.replaced("aves on water") == "owl on water"


def test_a_name_of_two_categories_asks_for_what_was_typed() -> None:
    assert OWN.first_name("jaguar") is None
    assert asked("jaguar", OWN) == search_prompts("jaguar")


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("orange sky", "orange sky"),  # a word of the name itself: the colour may be meant
        ("cranes at dawn", "cranes at dawn"),
        ("birds at dawn", "birds at dawn"),
        ("7 dogs", "7 dogs"),
        ("turdus merula on a branch", "blackbird on a branch"),
        ("a panthera onca at rest", "a jaguar at rest"),
    ],
)
def test_within_a_query_only_a_name_that_says_something_else_gives_way(text: str, replaced: str) -> None:
    assert OWN.replaced(text) == replaced


def test_two_folders_of_one_name_are_asked_alike() -> None:
    names = CategoryNames({"aves": ("bird",), "birds_2020": ("bird",)})
    assert names.first_name("bird") == names.first_name("birds 2020") == "bird"


@pytest.mark.parametrize("name", ["a" * 10_000, "\x00\x1b", "\u200b", "x " * 5_000])
def test_a_name_that_nobody_can_type_hinders_no_other(name: str) -> None:
    names = CategoryNames({name_key(name) or "odd": (name,), "aves": ("owl",)})
    assert names.first_name("aves") == "owl"
    assert names.replaced(f"aves {name}").startswith("owl ")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"a": "b"}', b'{"a": []}', b'{"a": [1]}', b"\xff", b"[" * 100_000, b"null"]
)
def test_stored_names_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="imret ingest FOLDER --names FILE"):
        parse_names(content)


def test_stored_names_are_read_as_they_were_given() -> None:
    assert parse_names(json.dumps({"k\u00e4fer": ["beetle", "bug"]}).encode()) == {
        "k\u00e4fer": ("beetle", "bug")
    }
    assert parse_names(None) == {}


@pytest.mark.skipif(not (SHARED_DATA / "tiny-clip").is_dir(), reason="the small real model is not here")
def test_all_names_of_a_category_give_one_vector_and_other_words_the_vector_they_gave() -> None:
    encoder = LazyEncoder(SHARED_DATA / "tiny-clip", device="cpu")
    bird = query_vector(encoder, "bird")
    for query in ("aves", "birds", "a bird", "Aves"):
        assert query_vector(encoder, query).tobytes() == bird.tobytes()
    assert (
        query_vector(encoder, "aves on water").tobytes() == query_vector(encoder, "bird on water").tobytes()
    )
    for query in ("a dog on a beach", "birds on water", "sunset", "animal", "fungus on a log"):
        assert query_vector(encoder, query).tobytes() == encoder.encode_mean(search_prompts(query)).tobytes()
    owls = query_vector(encoder, "aves", names={"aves": ("owl",)})
    assert owls.tobytes() == query_vector(encoder, "owl").tobytes()
    assert not np.array_equal(query_vector(encoder, "aves", template=False), bird)
