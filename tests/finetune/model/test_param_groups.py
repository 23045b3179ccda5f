"""Layers are found in every kind of tower, and learn at their own pace."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from finetune.model.base_model import find_base
from finetune.model.param_groups import choose_trainable, layers, parameter_groups, token_tables, tower_of
from finetune.model.token_mask import train_names_only
from tests.fakes.model_families import write_family


def build(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    with torch.device("meta"):  # no weights, no time
        model: nn.Module = kind(**config)
    return model


@pytest.mark.parametrize(
    ("name", "n_image", "n_text"),
    [
        ("ViT-H-14", 34, 26),
        ("RN50", 18, 14),
        ("convnext_base_w", 39, 14),
        ("EVA02-B-16", 14, 14),
        ("PE-Core-T-16-384", 14, 14),
        ("ViT-B-16-SigLIP", 14, 14),
        ("MobileCLIP-S1", 42, 14),
        ("ViTamin-S", 17, 14),
        ("swin_base_patch4_window7_224", 27, 14),
    ],
)
def test_a_tower_has_a_stem_its_blocks_and_a_top(name: str, n_image: int, n_text: int) -> None:
    places = layers(build(name))
    counts = {tower: len({n for t, n in places.values() if t == tower}) for tower in ("image", "text")}
    assert counts == {"image": n_image, "text": n_text}


def test_each_layer_of_a_vit_learns_slower_than_the_one_above() -> None:
    model = build("ViT-H-14")
    place = layers(model)
    assert place["visual.conv1.weight"] == place["visual.positional_embedding"] == ("image", 0)
    assert place["visual.transformer.resblocks.0.attn.in_proj_weight"] == ("image", 1)
    assert place["visual.transformer.resblocks.31.mlp.c_fc.weight"] == ("image", 32)
    assert place["visual.proj"] == place["visual.ln_post.weight"] == ("image", 33)
    assert place["token_embedding.weight"] == place["positional_embedding"] == ("text", 0)
    assert place["text_projection"] == place["ln_final.bias"] == ("text", 25)
    groups = parameter_groups(model, lr=2.0, weight_decay=0.1, image_decay=0.5, text_decay=0.75)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert scale[id(named["visual.proj"])] == 1.0
    assert scale[id(named["visual.transformer.resblocks.30.mlp.c_fc.weight"])] == 0.25
    assert scale[id(named["visual.conv1.weight"])] == pytest.approx(0.5**33)
    assert scale[id(named["transformer.resblocks.23.mlp.c_fc.weight"])] == 0.75
    assert all(group["lr"] == 2.0 * group["scale"] for group in groups)


@pytest.mark.parametrize(
    ("name", "below", "on_top"),
    [
        ("RN50", ["conv1.weight", "bn3.bias"], ["attnpool.positional_embedding", "attnpool.q_proj.weight"]),
        (
            "MobileCLIP-S1",
            ["trunk.stem.0.conv_scale.conv.weight"],
            [
                "trunk.final_conv.conv_scale.conv.weight",
                "trunk.final_conv.se.fc1.bias",
                "trunk.head.fc.weight",
            ],
        ),
        (
            "ViTamin-S",
            [
                "trunk.patch_embed.backbone.stem.conv1.weight",
                "trunk.patch_embed.backbone.stages.1.0.pre_norm.bias",
            ],
            ["head.proj.weight"],
        ),
        ("PE-Core-T-16-384", ["trunk.norm_pre.weight"], ["trunk.attn_pool.latent", "trunk.head.weight"]),
    ],
)
def test_what_lies_near_the_pixels_and_what_lies_on_top_is_known_by_its_place(
    name: str, below: list[str], on_top: list[str]
) -> None:
    place = layers(build(name))
    last = max(layer for tower, layer in place.values() if tower == "image")
    assert {place[f"visual.{parameter}"] for parameter in below} == {("image", 0)}
    assert {place[f"visual.{parameter}"] for parameter in on_top} == {("image", last)}


@pytest.mark.parametrize(
    ("family", "table", "stem", "blocks", "top"),
    [
        (
            "roberta",
            "embeddings.word_embeddings.weight",
            "embeddings.",
            "encoder.layer.{}.",
            ["text.proj.0.weight"],
        ),
        (
            "xlm-roberta",
            "embeddings.word_embeddings.weight",
            "embeddings.",
            "encoder.layer.{}.",
            ["text.proj.weight"],
        ),
        ("mt5", "embed_tokens.weight", "embed_tokens.", "block.{}.", ["text.proj.weight"]),
        ("nllb", "embed_tokens.weight", "embed_tokens.", "layers.{}.", ["text.proj.weight"]),
    ],
)
def test_layers_and_the_token_table_of_a_text_tower_of_transformers(
    family: str, table: str, stem: str, blocks: str, top: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    model = find_base(str(write_family(tmp_path / "base", family))).build(torch.device("cpu"), seed=0)
    assert token_tables(model) == {f"text.transformer.{table}"}
    by_layer: dict[int, set[str]] = {}
    for name, (tower, layer) in layers(model).items():
        if tower == "text":
            by_layer.setdefault(layer, set()).add(name.removeprefix("text.transformer."))
    assert sorted(by_layer) == [0, 1, 2, 3]
    assert all(name.startswith(stem) for name in by_layer[0])
    for number in (0, 1):
        assert all(name.startswith(blocks.format(number)) for name in by_layer[number + 1])
    assert set(top) <= by_layer[3]
    train_names_only(model, torch.tensor([5, 7]))
    trained = [name for name, p in model.named_parameters() if p.requires_grad and tower_of(name) == "text"]
    assert trained[-1:] == [f"text.transformer.{table}"]
    assert len(trained) == 2  # and the logit scale, of which the trainer decides


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "convnext_base_w"])
def test_every_trainable_parameter_is_in_one_group_and_only_matrices_decay(name: str) -> None:
    model = build(name)
    model.logit_scale.requires_grad_(False)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, image_decay=0.9, text_factor=10)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert all(
            (p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"] if p.shape[0] != 49408
        )


def test_the_token_table_does_not_decay(random_model: Path) -> None:
    model = find_base(str(random_model)).build(torch.device("cpu"), seed=0)
    table = model.token_embedding.weight
    (group,) = [
        g for g in parameter_groups(model, lr=1.0, weight_decay=0.1) if any(p is table for p in g["params"])
    ]
    assert group["weight_decay"] == 0


def test_the_text_tower_alone_can_be_chosen(random_model: Path) -> None:
    model = find_base(str(random_model)).build(torch.device("cpu"), seed=0)
    choose_trainable(model, "text")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {tower_of(name) for name in trained} == {"text"}


def test_the_topmost_layers_of_the_image_tower_can_be_chosen() -> None:
    model = build("ViT-H-14")
    choose_trainable(model, "both", image_layers=3)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and tower_of(name) == "image"}
    below = {name for name in trained if "resblocks" in name}
    assert {name.split(".")[3] for name in below} == {"30", "31"}
    assert trained - below == {"visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"}
    choose_trainable(model, "both")
    assert all(p.requires_grad for p in model.parameters())
