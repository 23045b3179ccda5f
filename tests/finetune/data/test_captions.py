"""Category names become the sentences people would use, and captions that say the same are one."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.captions import caption_key, category_captions
from imret.datasets.names_csv import read_names
from imret.errors import DataError
from imret.retrieval.prompts import (
    COMMON_NAMES,
    SEARCH_TEMPLATES,
    TRAINING_TEMPLATES,
    common_names,
    evaluation_queries,
    fill,
)

INATURALIST = [
    "actinopterygii",
    "amphibia",
    "animalia",
    "arachnida",
    "aves",
    "chromista",
    "fungi",
    "insecta",
    "mammalia",
    "mollusca",
    "plantae",
    "protozoa",
    "reptilia",
]


def test_every_inaturalist_group_has_a_common_name() -> None:
    assert sorted(COMMON_NAMES) == INATURALIST
    assert common_names("aves") == ("bird",)
    assert common_names("Actinopterygii")[0] == "fish"


def test_an_unknown_category_is_used_as_words() -> None:
    assert common_names("golden_retriever") == ("golden retriever",)
    assert common_names("Wine__bottles ") == ("Wine bottles",)
    assert common_names("___") == ("___",)  # rather than nothing


def test_a_template_takes_the_name_with_its_article_or_bare() -> None:
    assert fill("a photo of {}", "bird") == "a photo of a bird"
    assert fill("a photo of {}", "insect") == "a photo of an insect"
    assert fill("an image of the {name}", "insect") == "an image of the insect"
    assert fill("an image of the {name}", "set {}") == "an image of the set {}"


def test_one_batch_speaks_in_one_style() -> None:
    for draw in range(3 * len(TRAINING_TEMPLATES)):
        captions = category_captions(["aves", "fungi", "insecta"], draw=draw)
        names = [
            next(name for name in common_names(category) if name in caption)
            for category, caption in zip(["aves", "fungi", "insecta"], captions, strict=True)
        ]
        frames = {
            caption.replace(name, "*").replace("an *", "a *")
            for caption, name in zip(captions, names, strict=True)
        }
        assert len(frames) == 1


def test_styles_and_common_names_take_turns() -> None:
    captions = [category_captions(["fungi"], draw=draw)[0] for draw in range(2 * len(TRAINING_TEMPLATES))]
    assert len(set(captions)) == 2 * len(TRAINING_TEMPLATES)
    assert {"mushroom", "fungus"} <= {word for caption in captions for word in caption.split()}


def test_evaluation_asks_in_words_that_training_did_not_use() -> None:
    assert not set(SEARCH_TEMPLATES) & set(TRAINING_TEMPLATES)
    for category in (*COMMON_NAMES, "golden_retriever"):
        trained = {
            fill(style, name).rstrip(".") for style in TRAINING_TEMPLATES for name in common_names(category)
        }
        assert not trained & {query.rstrip(".") for query in evaluation_queries(category)}


def test_captions_that_differ_in_case_spacing_or_a_final_stop_are_one() -> None:
    assert caption_key("A  red Mushroom.") == caption_key("a red mushroom")
    assert caption_key("a red mushroom") != caption_key("a mushroom")


@pytest.mark.parametrize(
    "frame", ["a photo of ", "A picture of ", "this is ", "one close-up photo of ", "an image showing "]
)
def test_captions_that_differ_only_in_their_frame_are_one(frame: str) -> None:
    assert caption_key(f"{frame}two red mushrooms.") == caption_key("two red mushrooms")


@pytest.mark.parametrize("caption", ["a photo of", "a photo album of birds", "this isle", "a drawing"])
def test_words_that_only_look_like_a_frame_stay(caption: str) -> None:
    assert caption_key(caption) == caption


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


# ---- What categories are called --------------------------------------------------------------------------


def test_a_file_of_names_comes_before_the_built_in_ones_and_leaves_the_rest(tmp_path: Path) -> None:
    text = "category,name,name\nAves,owl,  night   bird\nfungi,toadstool,\naves,owl,\naves,hooter,\n"
    names = read_names(write(tmp_path / "names.csv", text))
    assert names == {"aves": ("owl", "night bird", "hooter"), "fungi": ("toadstool",)}
    assert common_names("Aves", names) == ("owl", "night bird", "hooter")
    assert common_names("insecta", names) == common_names("insecta")
    assert category_captions(["aves", "insecta"], draw=0, names=names) == [
        "a photograph of an owl",
        "a photograph of an insect",
    ]
    assert evaluation_queries("aves", names)[0] == "a photo of a owl."


def test_names_are_found_however_an_umlaut_is_stored(tmp_path: Path) -> None:
    names = read_names(write(tmp_path / "n.csv", "category,name\nK\u00e4fer,beetle\nu\u0308ber,above\n"))
    assert common_names("ka\u0308fer", names) == ("beetle",)
    assert common_names("\u00dcber", names) == ("above",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aves,bird\n", "Begin it with: category,name"),
        ("category,name\naves,\n", "no name in line 2"),
        ("category,name\naves,bird\n,owl\n", "no category in line 3"),
        ("category,name\n", "names no category"),
        ("", "Begin it with: category,name"),
    ],
)
def test_a_names_file_with_a_gap_is_refused_naming_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_names(write(tmp_path / "names.csv", text))


def test_a_names_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_bytes(b"category,name\naves,caf\xe9\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_names(tmp_path / "names.csv")
    with pytest.raises(DataError, match="No such file"):
        read_names(tmp_path / "nothing.csv")
