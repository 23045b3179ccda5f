"""Token ids without open_clip and torch: the same as open_clip's, whatever the text."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer, tokenize

from imret.errors import ModelError
from imret.models.fast import tokenizer
from imret.models.fast.tokenizer import (
    END,
    TextTruncated,
    is_clip_tokenizer,
    join_pairs,
    padded,
    token_ids,
    warn_truncated,
)
from imret.models.resolve import resolve_model
from imret.models.tokenizer import count_tokens, load_tokenizer

TEXTS = [
    "a red mushroom in the wet grass",
    "",
    "   ",
    "x",
    "A Photo of the\tFrench\nBulldog.",
    "Ein Pilz &amp; ein Baum — café naïve",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp;amp; &notanentity; AT&T &",
    "l’humanitÃ© schÃ¶n ï¬‚oor",  # mojibake and a ligature, which ftfy mends
    "it's we've I'm they'll he'd don't you're 'S 'ſ 'Tis rock'n'roll ''''",
    "猫が木に登る 고양이 кошка γάτα قطة חתול บ้าน",
    "🍄🍄 👩‍👩‍👧 🏳️‍🌈 ❤️ ☃",
    "1234567890 ½ ² Ⅷ ٣ 3.14 1,000,000 2024-05-17",
    "snake_case camelCase UPPER ÜBER İstanbul ﬁn ẞ ǅ",
    "<start_of_text> inner <end_of_text> <END_OF_TEXT> <ſtart_of_text> <|endoftext|>",
    "\x00 \x1b[31mred\x1b[0m \u200b \ufeff \u2028 \x85 \xa0 \xad \ud7ff",
    "e\u0301 vs \u00e9, a\u0300\u0316\u0317",
    '!!! ??? --- ... ,,, @#$%^*()[]{}|\\/~`"',
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
    "red " * 90,
    "red " * 75,
    "red " * 76,
    "🍄" * 60,
]


def _ids(texts: list[str], length: int = 77) -> np.ndarray:
    return padded([token_ids(text) for text in texts], length)


@pytest.mark.parametrize("length", [77, 24, 2])
def test_ids_are_those_of_open_clip(length: int) -> None:
    for text in TEXTS:
        np.testing.assert_array_equal(_ids([text], length), tokenize([text], length).numpy(), repr(text))
    np.testing.assert_array_equal(_ids(TEXTS, length), tokenize(TEXTS, length).numpy())


def test_ids_of_random_texts_are_those_of_open_clip() -> None:
    rng = np.random.default_rng(0)
    pieces = [piece for text in TEXTS for piece in text.split()] + [
        " ",
        "'",
        "&",
        ";",
        "\u3000",
        "#39;",
        "&#x",
    ]
    letters = [
        chr(point) for point in [*range(0x20, 0x250), *range(0x2000, 0x2100), *range(0x1F300, 0x1F700)]
    ]
    texts = []
    for _ in range(4000):
        kind = rng.integers(3)
        if kind == 0:  # words that exist, in parts
            parts = [
                pieces[i][: rng.integers(1, 9)] for i in rng.integers(len(pieces), size=rng.integers(1, 12))
            ]
            texts.append(("" if rng.integers(2) else " ").join(parts))
        elif kind == 1:  # letters of many scripts
            texts.append("".join(letters[i] for i in rng.integers(len(letters), size=rng.integers(1, 25))))
        else:  # plain letters, which make every kind of pair
            texts.append("".join(chr(i) for i in rng.integers(0x20, 0x7F, size=rng.integers(1, 40))))
    expected = tokenize(texts).numpy()
    for text, row, ours in zip(texts, expected, _ids(texts), strict=True):
        np.testing.assert_array_equal(ours, row, repr(text))


def test_a_text_that_does_not_fit_is_told_by_its_ids_and_ends_with_the_end() -> None:
    fits, too_long = token_ids("red " * 75), token_ids("red " * 76)
    assert (len(fits), len(too_long)) == (77, 78)
    rows = padded([fits, too_long], 77)
    assert rows.dtype == np.int64
    assert rows[:, -1].tolist() == [END, END]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_a_cut_is_warned_of_with_the_beginning_of_the_text() -> None:
    with pytest.warns(TextTruncated) as caught:
        warn_truncated(["red " * 90, "short"], 77, stacklevel=1)
    message = "A text is longer than the 77 tokens that the model reads, and was cut: "
    assert [str(warning.message) for warning in caught] == [
        message + "'" + ("red " * 90)[:57] + "...'",
        message + "'short'",
    ]
    assert {warning.filename for warning in caught} == {__file__}


def test_whose_tokens_these_are() -> None:
    assert is_clip_tokenizer("local-dir:/models/siglip-like", {})
    assert not is_clip_tokenizer("ViT-B-16-SigLIP", {})
    assert not is_clip_tokenizer("x", {"hf_tokenizer_name": "bert"})
    assert not is_clip_tokenizer("x", {"tokenizer_kwargs": {"clean": "canonicalize"}})


def test_plain_words_load_neither_torch_nor_open_clip_nor_ftfy() -> None:
    code = (
        "import sys, json; from imret.models.fast.tokenizer import token_ids\n"
        "print(json.dumps(token_ids('a red Mushroom')))\n"
        "print({'torch', 'open_clip', 'ftfy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ids, loaded = done.stdout.splitlines()
    assert json.loads(ids) == tokenize("a red Mushroom")[0, :5].tolist()
    assert loaded == "set()"


@pytest.mark.parametrize("fault", ["no package", "no file", "not gzip", "cut off", "short"])
def test_a_vocabulary_that_is_not_there_or_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    spec = ModuleSpec("open_clip", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    file = tmp_path / tokenizer.VOCABULARY
    if fault == "not gzip":
        file.write_bytes(b"i n\nt h\n")
    elif fault == "cut off":
        file.write_bytes(gzip.compress(b"version\ni n\n" * 100)[:-20])
    elif fault == "short":
        file.write_bytes(gzip.compress(b"version\ni n\n"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if fault == "no package" else spec)
    tokenizer.load_vocabulary.cache_clear()
    tokenizer._common_ids.cache_clear()
    message = "is not installed" if fault == "no package" else "Cannot read open_clip's vocabulary"
    with pytest.raises(ModelError, match=message):
        token_ids("mushroom")


_ALPHABETS = [
    "a",
    "ab",
    "abc",
    "etaoin",
    "abcdefghijklmnopqrstuvwxyz",
    ".!-",
    "äöüß",
    "蘑菇鸟",
    "кошка",
    "e\u0301",
    "😂",
]


def _random_words(n: int, longest: int, *, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(letters) for _ in range(rng.randint(1, longest)))
        for letters in (
            rng.choice(_ALPHABETS) if rng.random() < 0.8 else "".join(_ALPHABETS) for _ in range(n)
        )
    ]


def test_pairs_are_joined_in_the_order_of_the_reference() -> None:
    reference = SimpleTokenizer()
    for word in (*_random_words(4000, 48, seed=0), *_random_words(200, 400, seed=1)):
        ids = token_ids(word)[1:-1]
        assert ids == reference.encode(word), repr(word)


def test_a_pair_that_comes_of_joining_waits_until_all_of_a_rank_are_joined() -> None:
    ranks = {("a", "b"): 0, ("ab", "c"): 3, ("abc", "ab"): 2, ("abc", "abc"): 4}
    joined = join_pairs(list("abcabc"), lambda left, right: ranks.get((left, right)))
    assert joined == [("abcabc", 4)]  # and not "abcab", "c", which the earlier rank of 2 would make
    assert join_pairs(["x"], lambda left, right: 0) == [("x", None)]
    assert join_pairs([], lambda left, right: 0) == []


@pytest.mark.parametrize(
    "letters", ["a", ".", "蘑", "etaoin shrdlu", "e\u0301", "\u0301", " ", "&#", "“", "é"]
)
def test_a_text_without_end_takes_no_time_and_has_the_tokens_of_its_begin(letters: str) -> None:
    rng = random.Random(2)
    text = "".join(
        rng.choice(letters) if len(letters) > 2 else letters for _ in range(2_000_000 // len(letters))
    )
    began = time.process_time()
    ids = token_ids(text, enough=77)
    assert time.process_time() - began < 2.0  # 26 s for a word of 120 kB
    begin = text.lstrip()[:4000]
    np.testing.assert_array_equal(padded([ids], 77)[0, :-1], tokenize([begin], 77).numpy()[0, :-1])


def test_the_first_tokens_of_a_long_word_are_those_of_the_whole_word() -> None:
    for letters in _ALPHABETS:
        rng = random.Random(3)
        word = "".join(rng.choice(letters) for _ in range(20_000))
        assert token_ids(word, enough=77)[:77] == token_ids(word)[:77]


def test_as_many_words_are_read_as_a_model_has_places_for() -> None:
    for n in range(70, 82):
        text = "red " * n
        assert (len(token_ids(text, enough=77)) > 77) == (len(token_ids(text)) > 77)
    assert len(token_ids("red " * 1_000_000, enough=77)) < 80


def test_the_tokenizer_of_a_model_with_options_is_as_quick(random_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_model, tmp_path / "model")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    quick = load_tokenizer(f"local-dir:{folder}", config["model_cfg"]["text_cfg"], model_id="a model")
    reference = SimpleTokenizer(clean="whitespace")
    words = [*_random_words(500, 60, seed=4), *TEXTS]
    np.testing.assert_array_equal(quick(words).numpy(), reference(words).numpy())
    assert [count_tokens(quick, word) for word in words] == [
        len(reference.encode(word)) + 2 for word in words
    ]
    began = time.process_time()
    quick(["a" * 100_000])
    assert time.process_time() - began < 2.0


def test_the_tokenizer_of_a_torch_tower_is_that_of_open_clip(random_model: Path) -> None:
    files = resolve_model(random_model)
    ours = load_tokenizer(files.tokenizer, files.model_cfg["text_cfg"], model_id=files.model_id)
    words = [*_random_words(500, 60, seed=5), *TEXTS]
    assert ours(words).dtype == tokenize(words).dtype
    for length in (None, 12):
        np.testing.assert_array_equal(ours(words, length).numpy(), tokenize(words, length or 77).numpy())
