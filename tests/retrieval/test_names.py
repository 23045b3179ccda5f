"""Names found in texts, against a matcher that tries everything."""

from __future__ import annotations

import random
import re
import time
import unicodedata

import pytest

from imret.retrieval.names import MAX_WORD_CHARS, MAX_WORDS, NameIndex, NameSpan, name_words
from imret.retrieval.plurals import plurals_of, singulars_of

NATURE = {
    "aves": ("aves", "bird"),
    "fungi": ("fungi", "mushroom", "fungus"),
    "actinopterygii": ("actinopterygii", "fish", "ray-finned fish"),
    "butterflies": ("butterflies",),
    "owl": ("snowy owl",),
    "seal": ("seal",),
    "raptor": ("bird of prey",),
}


@pytest.fixture(scope="module")
def index() -> NameIndex[str]:
    return NameIndex(NATURE)


def found(index: NameIndex[str], text: str) -> list[tuple[str, str, bool]]:
    return [(span.key, text[span.start : span.end], span.plural) for span in index.within(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Snowy_Owl", ("snowy", "owl")),
        ("ray-finned  fish!", ("ray", "finned", "fish")),
        ("the owl's nest", ("the", "owl", "nest")),
        ("the owl\u2019s nest", ("the", "owl", "nest")),
        ("owls' nests", ("owls", "nests")),
        ("o\u2019reilly", ("o'reilly",)),
        ("K\u00c4FER", ("k\u00e4fer",)),
        ("ka\u0308fer", ("k\u00e4fer",)),
        ("\u0915\u093e \u0e01\u0e34", ("\u0915\u093e", "\u0e01\u0e34")),  # marks that are no letters
        ("bi\u00adrd \u200bfi\u200dsh\ufeff", ("bird", "fish")),  # soft hyphen, zero widths
        ("bi\x00rd\tand\nfish\x1b", ("bird", "and", "fish")),
        ("", ()),
        ("... !! \x00\u200b", ()),
        ("'bird'", ("bird",)),
        ("'s", ("s",)),
    ],
)
def test_words_are_compared_without_case_signs_and_what_is_not_seen(
    text: str, words: tuple[str, ...]
) -> None:
    assert name_words(text) == words


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("aves", "aves"),
        ("AVES", "aves"),
        ("Birds", "aves"),
        ("a bird", "aves"),
        ("the birds.", "aves"),
        ("mushrooms", "fungi"),
        ("fungus", "fungi"),
        ("funguses", "fungi"),
        ("fish", "actinopterygii"),
        ("fishes", "actinopterygii"),
        ("ray finned fish", "actinopterygii"),
        ("butterfly", "butterflies"),
        ("snowy-owls", "owl"),
        ("birds of prey", "raptor"),
        ("bird of preys", None),
        ("fishing", None),
        ("sealed", None),
        ("bird fish", None),
        ("ave", None),  # "5th ave": no bird
        ("", None),
        ("a", None),
        ("\x00", None),
    ],
)
def test_a_whole_text_is_a_name_in_either_number_and_with_an_article(
    index: NameIndex[str], text: str, key: str | None
) -> None:
    assert index.exact(text) == key


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("bird on a mushroom", [("aves", "bird", False), ("fungi", "mushroom", False)]),
        ("two BIRDS, one mushroom", [("aves", "BIRDS", True), ("fungi", "mushroom", False)]),
        ("a ray-finned fish", [("actinopterygii", "ray-finned fish", False)]),
        ("birds of prey and birds", [("raptor", "birds of prey", True), ("aves", "birds", True)]),
        ("fishing in a sealed box", []),
        ("a fish-eye photo of a bird-like robot", []),
        ("a bird's nest", [("aves", "bird", False)]),
        ("the snowy_owls' nest", [("owl", "snowy_owls", True)]),
        ("bi\u00adrd", [("aves", "bi\u00adrd", False)]),
        ("a butterfly", [("butterflies", "butterfly", False)]),
    ],
)
def test_names_in_a_text_are_whole_words_and_the_longest_wins(
    index: NameIndex[str], text: str, spans: list[tuple[str, str, bool]]
) -> None:
    assert found(index, text) == spans


def test_where_names_overlap_the_longest_wins_and_of_equal_ones_the_leftmost() -> None:
    names = NameIndex({1: ["red deer"], 2: ["deer park"], 3: ["park bench in rain"], 4: ["deer"]})
    assert [span.key for span in names.within("red deer park bench")] == [2]  # nine characters to eight
    assert [span.key for span in names.within("red deer park bench in rain")] == [1, 3]
    assert [span.key for span in NameIndex({1: ["ab cd"], 2: ["cd ef"]}).within("ab cd ef")] == [1]


def test_a_name_of_two_things_is_told_and_found_as_neither() -> None:
    names = NameIndex({"crane": ["Crane"], "machine": ["crane", "digger"], "bird": ["bird"]})
    assert names.ambiguous == {"Crane": ("crane", "machine")}
    assert names.exact("crane") is None
    assert names.exact("cranes") is None
    assert names.exact("diggers") == "machine"
    assert found(names, "a crane and a bird") == [("bird", "bird", False)]


def test_a_given_name_comes_before_the_plural_of_another() -> None:
    names = NameIndex({"one": ["glass"], "many": ["glasses"]})
    assert (names.exact("glass"), names.exact("glasses")) == ("one", "many")
    assert names.ambiguous == {}
    # Both are the same thing: then it is the plural.
    assert NameIndex({"aves": ["birds", "bird"]}).within("birds") == [NameSpan("aves", 0, 5, True)]


@pytest.mark.parametrize("name", ["", "...", "\x00\x01", "a" * 10_000, "a " * 5_000, "\u0308" * 10_000])
def test_a_name_that_nobody_can_ask_by_is_told_and_never_found(name: str) -> None:
    names = NameIndex({"odd": [name], "bird": ["bird"]})
    assert names.unusable == (name,)
    assert names.exact(name) is None
    assert names.within(name) == []
    assert names.exact("bird") == "bird"


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("bird", "birds"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("fox", "foxes"),
        ("branch", "branches"),
        ("bus", "buses"),
        ("tomato", "tomatoes"),
        ("photo", "photos"),
        ("mouse", "mice"),
        ("dormouse", "dormice"),
        ("mongoose", "mongooses"),
        ("leaf", "leaves"),
        ("woman", "women"),
        ("human", "humans"),
        ("child", "children"),
        ("fungus", "fungi"),
        ("octopus", "octopuses"),
        ("jellyfish", "jellyfishes"),
        ("rose", "roses"),
        ("ox", "oxen"),
    ],
)
def test_plurals_are_formed_and_undone(one: str, many: str) -> None:
    assert many in plurals_of(one)
    assert one in singulars_of(many)
    assert one not in singulars_of(one)


@pytest.mark.parametrize("word", ["sheep", "species", "lens", "news", "grass", "iris", "virus", "us", "aves"])
def test_words_that_only_look_like_plurals_are_none(word: str) -> None:
    assert singulars_of(word) == ()


# ---- Against a matcher that tries everything -----------------------------------------------------------


def naive(names: dict[int, list[str]], text: str) -> list[tuple[int, int, int]]:
    """Every pair of characters of the text, compared with every form of every name."""
    forms: dict[tuple[str, ...], set[int]] = {}
    given: dict[tuple[str, ...], set[int]] = {}
    for key, own in names.items():
        for name in own:
            words = tuple(name.lower().split("_"))
            given.setdefault(words, set()).add(key)
            others = set(plurals_of(words[-1]))
            for one in singulars_of(words[-1]):
                others |= {one, *plurals_of(one)}
            for other in others:
                forms.setdefault((*words[:-1], other), set()).add(key)
    forms.update(given)
    matches = []
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            before, after = text[:start], text[end:]
            if before[-1:].isalnum() or after[:1].isalnum() or not (text[start] + text[end - 1]).isalnum():
                continue
            if re.search("[a-z]-$", before, re.I) or re.match("-[a-z]", after, re.I):
                continue
            words = tuple(text[start:end].lower().replace("-", " ").replace(",", " ").split())
            if len(forms.get(words, ())) == 1:
                matches.append((min(forms[words]), start, end))
    kept: list[tuple[int, int, int]] = []
    for match in sorted(matches, key=lambda match: (match[1] - match[2], match[1])):
        if all(match[2] <= other[1] or match[1] >= other[2] for other in kept):
            kept.append(match)
    return sorted(kept, key=lambda match: match[1])


WORDS = "bird birds fish fishes fox foxes rose roses red blue leaf leaves mouse mice glass glasses of"


def test_names_are_found_as_by_trying_everything() -> None:
    draw = random.Random(7)
    matched = 0
    for _ in range(400):
        names = {
            key: [
                "_".join(draw.choices(WORDS.split()[:-1], k=draw.randint(1, 3)))
                for _ in range(draw.randint(1, 2))
            ]
            for key in range(draw.randint(1, 6))
        }
        pieces = [
            draw.choice([w, w.upper()]) + draw.choice(" ,-_"[:3]) for w in draw.choices(WORDS.split(), k=9)
        ]
        text = "".join(pieces).rstrip(" ,-")
        index = NameIndex(names)
        spans = [(span.key, span.start, span.end) for span in index.within(text)]
        assert spans == naive(names, text), (names, text)
        matched += len(spans)
        for key, start, end in spans:
            assert index.exact(text[start:end]) == key
    assert matched > 250


def test_any_text_is_looked_through_without_an_error() -> None:
    draw = random.Random(11)
    alphabet = "ab'\u2019 -_\t\x00\u00ad\u200d\u0308\u0327\u00df\u0130\u4e2d\U0001f426\ud800.,\u0915\u093e"
    for _ in range(2000):
        text = "".join(draw.choices(alphabet, k=draw.randint(0, 12)))
        other = "".join(draw.choices(alphabet, k=draw.randint(1, 4)))
        index = NameIndex({"x": [other]})
        for span in index.within(text):
            assert 0 <= span.start < span.end <= len(text)
            assert index.exact(text[span.start : span.end]) == "x"
        assert name_words(text) == name_words(unicodedata.normalize("NFD", text))
        assert (index.exact(other) == "x") != bool(index.unusable)


def test_a_hundred_thousand_names_and_a_long_text_take_a_moment() -> None:
    draw = random.Random(3)
    names = {key: [f"genus{key % 997} species{key}", f"bird {key}"] for key in range(100_000)}
    started = time.process_time()
    index = NameIndex(names)
    assert time.process_time() - started < 20
    text = " ".join(f"bird {draw.randrange(200_000)}" for _ in range(20_000))
    started = time.process_time()
    assert len(index.within(text)) > 8_000
    assert time.process_time() - started < 5


def test_a_text_that_begins_a_long_name_at_every_word_takes_time_that_goes_with_its_length() -> None:
    index = NameIndex({"long": ["a " * (MAX_WORDS - 2) + "b"], "dots": ["\u0308" * MAX_WORD_CHARS]})
    started = time.process_time()
    assert index.within("a " * 50_000) == []
    assert index.within("x" + "\u0327\u0308" * 50_000) == []
    assert time.process_time() - started < 5
