"""The memory layout that an image tower is trained in."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet
from finetune.data.records import read_records
from finetune.model.base_model import find_base
from finetune.model.features import best_layout
from finetune.trainer import Trainer
from tests.fakes.model_families import FAMILIES, build_model, write_family
from tests.fakes.pictures import draw_picture

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["MobileCLIP-S1", "MobileCLIP2-S0"])
def test_a_tower_with_strided_convolutions_of_one_pixel_is_trained_contiguous_on_a_cpu(name: str) -> None:
    config = open_clip.get_model_config(name)
    config["text_cfg"] |= {"layers": 1, "vocab_size": 8}
    with torch.device("meta"):
        model = build_model(config)
    assert best_layout(model, CPU) == torch.contiguous_format
    assert best_layout(model, torch.device("cuda")) == torch.channels_last


def test_other_towers_are_trained_channels_last(random_model: Path) -> None:
    model = find_base(str(random_model)).build(CPU, seed=0)
    assert best_layout(model, CPU) == torch.channels_last
    with torch.device("meta"):
        resnet, convnext = (build_model(FAMILIES[family]) for family in ("resnet", "convnext"))
    assert {best_layout(model, CPU) for model in (resnet, convnext)} == {torch.channels_last}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(8):
        draw_picture(tmp_path / "photos" / ("aves", "fungi")[i % 2] / f"{i}.png", seed=i)
    return tmp_path / "photos"


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_pictures_weights_and_the_anchor_come_in_the_layout_of_the_tower(
    anchor: float, photos: Path, tmp_path: Path
) -> None:
    base = find_base(str(write_family(tmp_path / "base", "mobileclip")))
    pictures = ImageSet(
        photos, read_records(photos), size=(288, 288), preprocess=base.preprocess, budget_bytes=1 << 30
    )
    config = FinetuneConfig.of("plain", epochs=1, batch_size=4, anchor_images=anchor)
    trainer = Trainer(base, pictures, config=config, device=CPU)
    seen: list[bool] = []
    for tower in filter(None, (trainer.model, trainer._anchors.frozen)):
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.is_contiguous()
        first = next(m for m in tower.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    trainer.step(0, trainer.prepare(0))  # in the other layout, the process died here
    assert seen
    assert all(seen)
    pictures.close()
