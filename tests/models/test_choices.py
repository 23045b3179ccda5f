"""The models of the list: what it says of each is what open_clip's configuration gives."""

from __future__ import annotations

import csv
import io
from copy import deepcopy
from typing import Any

import pytest
import torch
from open_clip import factory, pretrained
from open_clip.model import CLIP, CustomTextCLIP

from imret.defaults import DEFAULT_MODEL
from imret.models.choices import CHOICES, Choice, choice_of, smaller_than

every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=list(CHOICES))


def model_cfg_of(choice: Choice) -> dict[str, Any]:
    registry: Any = factory
    cfg: dict[str, Any] = deepcopy(registry.get_model_config(choice.arch))
    return cfg


@every_choice
def test_open_clip_knows_the_model_and_its_repository(choice: Choice) -> None:
    if choice.model.startswith("hf-hub:"):
        assert choice.model == f"hf-hub:{choice.repo}"
        return
    arch, _, tag = choice.model.rpartition("/")
    assert arch == choice.arch
    assert (arch, tag) in pretrained.list_pretrained()
    assert pretrained.get_pretrained_cfg(arch, tag)["hf_hub"] == f"{choice.repo}/"


@every_choice
def test_parameters_and_dimensions_are_those_of_the_architecture(choice: Choice) -> None:
    cfg = model_cfg_of(choice)
    kind: Any = CustomTextCLIP if cfg.pop("custom_text", False) else CLIP
    with torch.device("meta"):
        model = kind(**cfg)
    assert sum(tensor.numel() for tensor in model.parameters()) == choice.parameters
    assert cfg["embed_dim"] == choice.dim


@every_choice
def test_an_extra_is_named_where_the_tokenizer_needs_one(choice: Choice) -> None:
    needs = "hf_tokenizer_name" in model_cfg_of(choice)["text_cfg"]
    assert choice.extra == ("transformers" if needs else None)


@every_choice
def test_every_figure_has_its_source_and_nothing_else_has(choice: Choice) -> None:
    stated = {name for name in ("imagenet", "flickr", "coco", "species") if getattr(choice, name) is not None}
    assert stated == set(choice.sources)
    assert all(source.startswith("https://") for source in choice.sources.values())


# As the rows stand in open_clip's docs/openclip_classification_results.csv and
# docs/openclip_retrieval_results.csv: ImageNet 1k, then Flickr and MSCOCO image retr. R@1.
PUBLISHED = """\
ViT-B-32-256,datacomp_s34b_b86k,0.7281,0.6492,0.3993
ViT-B-16,datacomp_xl_s13b_b90k,0.7349,0.6756,0.4016
ViT-L-14,datacomp_xl_s13b_b90k,0.7921,0.7338,0.4573
ViT-H-14,laion2b_s32b_b79k,0.7796,0.7764,0.4948
ViT-B-16-SigLIP-i18n-256,webli,0.7513,0.7216,0.4492
"""


def test_the_figures_are_those_that_are_published() -> None:
    for arch, tag, *figures in csv.reader(io.StringIO(PUBLISHED)):
        choice = choice_of(f"{arch}/{tag}")
        assert choice is not None
        assert (choice.imagenet, choice.flickr, choice.coco) == tuple(
            pytest.approx(100 * float(figure)) for figure in figures
        )


def test_the_default_is_one_of_them_and_what_is_smaller_is_smaller() -> None:
    default = choice_of(DEFAULT_MODEL)
    assert default is CHOICES["huge"]
    for choice in CHOICES.values():
        smaller = smaller_than(choice.name)
        assert smaller == smaller_than(choice.model)
        if smaller is not None:
            assert smaller.size_bytes <= 1.02 * choice.size_bytes  # base is slower than small, and no larger
    assert smaller_than("huge") is CHOICES["base"]
    assert smaller_than("small") is smaller_than("hf-hub:org/repo") is None
