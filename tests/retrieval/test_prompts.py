"""The sentences that families of models are asked in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from finetune.data.captions import caption_key
from imret.evaluation.dataset import category_queries
from imret.models.encoder import Encoder
from imret.models.lazy_encoder import LazyEncoder
from imret.retrieval.classify import classify
from imret.retrieval.prompts import (
    CLIP_TEMPLATES,
    SIGLIP_TEMPLATES,
    TRAINING_TEMPLATES,
    evaluation_queries,
    fill,
    label_texts,
    search_prompts,
    templates_for,
)
from imret.retrieval.query_vector import query_vector
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture


def _config(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    assert config is not None
    return config


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads texts as SigLIP does, and has a logit bias."""
    folder = write_random_model(tmp_path_factory.mktemp("models") / "siglip", seed=0)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["init_logit_bias"] = -10
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    file.write_text(json.dumps(config))
    return folder


def test_a_short_query_asks_clip_in_the_six_sentences_that_it_always_did() -> None:
    assert search_prompts("owl") == [
        "a photo of a owl.",
        "a picture of a owl.",
        "a close-up photo of a owl.",
        "a photo of the owl.",
        "a photo of one owl.",
        "a photo of many owl.",
    ]
    assert search_prompts("owl", templates=templates_for(_config("ViT-H-14"))) == search_prompts("owl")


def test_siglip_is_asked_in_its_own_sentence_too() -> None:
    asked = search_prompts("owl", templates=SIGLIP_TEMPLATES)
    assert asked == ["This is a photo of an owl.", *search_prompts("owl")]
    judged = evaluation_queries("aves", templates=SIGLIP_TEMPLATES)
    assert judged == ["This is a photo of a bird.", *evaluation_queries("aves")]
    assert label_texts("an owl", templates=SIGLIP_TEMPLATES)[0] == "This is a photo of an owl."


def test_a_caption_and_words_that_are_to_be_taken_as_they_are_ask_every_family_alike() -> None:
    caption = "a red mushroom with white spots"
    assert search_prompts(caption, templates=SIGLIP_TEMPLATES) == [caption]
    assert search_prompts("owl", template=False, templates=SIGLIP_TEMPLATES) == ["owl"]
    assert label_texts(caption, templates=SIGLIP_TEMPLATES) == [caption]


@pytest.mark.parametrize("name", open_clip.list_models())
def test_of_open_clip_s_architectures_those_of_siglip_are_asked_as_siglip(name: str) -> None:
    config = _config(name)
    assert (templates_for(config) is SIGLIP_TEMPLATES) == ("SigLIP" in name)
    if "SigLIP" in name:  # small letters, no punctuation, padded to what the model was trained with
        assert config["text_cfg"]["tokenizer_kwargs"] == {"clean": "canonicalize"}
        assert config["text_cfg"]["context_length"] == (16 if name == "ViT-SO400M-14-SigLIP" else 64)


def test_no_family_is_judged_in_words_of_the_training() -> None:
    trained = {caption.rstrip(".").lower() for t in TRAINING_TEMPLATES for caption in [fill(t, "owl")]}
    for templates in (CLIP_TEMPLATES, SIGLIP_TEMPLATES):
        judged = [fill(template, "owl").rstrip(".").lower() for template in templates]
        assert not trained & set(judged)
        assert len(set(judged)) == len(judged)


def test_every_way_to_ask_a_siglip_uses_its_sentences(siglip: Path, tmp_path: Path) -> None:
    encoder = Encoder(str(siglip), device="cpu", precision="fp32")

    def mean(texts: list[str]) -> np.ndarray:
        rows = encoder.encode_texts(texts).mean(axis=0)
        return np.asarray(rows / np.linalg.norm(rows))

    asked = mean(search_prompts("owl", templates=SIGLIP_TEMPLATES))
    assert not np.allclose(asked, mean(search_prompts("owl")), atol=1e-3)
    np.testing.assert_allclose(query_vector(encoder, "owl"), asked, atol=1e-6)
    lazy = LazyEncoder(str(siglip), device="cpu", precision="fp32")
    np.testing.assert_allclose(query_vector(lazy, "owl"), asked, atol=1e-6)
    np.testing.assert_array_equal(query_vector(lazy, "owl"), query_vector(lazy, "owl"))  # the second is kept
    judged = mean(evaluation_queries("aves", templates=SIGLIP_TEMPLATES))
    np.testing.assert_allclose(category_queries(encoder, ["aves"])[0], judged, atol=1e-6)
    photo = draw_picture(tmp_path / "1.png", seed=1)
    (found,) = classify([photo], ["owl"], encoder=encoder)
    owl = mean(evaluation_queries("owl", templates=SIGLIP_TEMPLATES))
    assert found.predictions[0].score == pytest.approx(
        float(encoder.encode_images([photo])[0] @ owl), abs=1e-5
    )


def test_siglip_reads_capitals_and_stops_as_if_they_were_not_there(siglip: Path) -> None:
    encoder = Encoder(str(siglip), device="cpu", precision="fp32")
    rows = encoder.encode_texts(["This is a photo of an Owl.", "this is a photo of an owl"])
    np.testing.assert_array_equal(rows[0], rows[1])


def test_the_sentence_of_siglip_and_that_of_training_say_the_same_of_a_picture() -> None:
    assert caption_key(fill("this is {}", "owl")) == caption_key("an owl")
