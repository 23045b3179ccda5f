"""Where only the topmost layer is trained, one pass through the rest gives what two whole passes give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import finetune.anchors
from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet
from finetune.data.records import read_records
from finetune.model.base_model import Base, find_base
from finetune.model.frozen_trunk import split_at_top_layer
from finetune.trainer import Trainer
from tests.fakes.pictures import draw_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(12):
        draw_picture(tmp_path / ("aves", "fungi")[i % 2] / f"{i}.png", seed=i)
    return tmp_path


def gradients(base: Base, photos: Path, **changes: object) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the gradients of the second step of the recipe light, and the parts of its objective."""
    size = base.preprocess.size[0] + 4
    pictures = ImageSet(
        photos, read_records(photos), size=(size, size), preprocess=base.preprocess, budget_bytes=1 << 24
    )
    config = FinetuneConfig.of("light", batch_size=8, lr=1e-2, **changes)
    trainer = Trainer(base, pictures, config=config, device=torch.device("cpu"))
    trainer.step(0, trainer.prepare(0))
    trainer._optimizer.zero_grad(set_to_none=True)
    trainer._to_train_mode()
    _, _, parts = trainer._backward(1, trainer.prepare(1))
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}, parts


@pytest.fixture(scope="session")
def timm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose image tower is timm's: imret-tiny with the weights that it begins with."""
    from finetune.checkpoint import save_model

    folder = tmp_path_factory.mktemp("models") / "timm"
    folder.mkdir()
    base = find_base("imret-tiny", from_scratch=True)
    model = base.build(torch.device("cpu"), seed=0)
    save_model(folder, model, model_cfg=base.model_cfg, preprocess=base.preprocess, training={})
    return folder


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose image tower is all timm's, without a projection of open_clip's, as SigLIP's is."""
    from finetune.checkpoint import save_model

    folder = tmp_path_factory.mktemp("models") / "siglip"
    folder.mkdir()
    tiny = find_base("imret-tiny", from_scratch=True)
    vision = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    cfg = {**tiny.model_cfg, "embed_dim": 64, "vision_cfg": vision}
    base = replace(tiny, model_cfg=cfg, preprocess=replace(tiny.preprocess, size=(160, 160)))
    model = base.build(torch.device("cpu"), seed=0)
    save_model(folder, model, model_cfg=cfg, preprocess=base.preprocess, training={})
    return folder


def test_a_tower_without_a_projection_of_open_clips_trains_its_topmost_layer_whole(
    siglip: Path, photos: Path
) -> None:
    base = find_base(str(siglip))
    assert split_at_top_layer(base.build(torch.device("cpu"), seed=0).visual) is None  # type: ignore[arg-type]
    grads, parts = gradients(base, photos)
    assert grads["visual.trunk.attn_pool.proj.weight"].abs().max() > 0
    assert parts["anchor_images"] > 1e-6


@pytest.mark.parametrize("change", [{}, {"micro_batch": 3}], ids=str)
@pytest.mark.parametrize("which", ["random_model", "timm_model"])
def test_the_cut_tower_has_the_gradients_of_the_whole_one(
    which: str,
    change: dict[str, object],
    photos: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = find_base(str(request.getfixturevalue(which)))
    assert split_at_top_layer(base.build(torch.device("cpu"), seed=0).visual) is not None  # type: ignore[arg-type]
    of_split, parts = gradients(base, photos, **change)
    monkeypatch.setattr(finetune.anchors, "split_at_top_layer", lambda _: None)
    whole, other_parts = gradients(base, photos)
    assert of_split.keys() == whole.keys()
    assert parts == pytest.approx(other_parts, rel=1e-4, abs=1e-6)
    assert parts["anchor_images"] > 1e-6  # the model has left its base
    for name in of_split:
        assert (of_split[name] - whole[name]).abs().max() <= 1e-4 * whole[name].abs().max(), name


def test_the_frozen_top_does_not_move_with_the_model(random_model: Path) -> None:
    visual = find_base(str(random_model)).build(torch.device("cpu"), seed=0).visual
    parts = split_at_top_layer(visual)  # type: ignore[arg-type]
    assert parts is not None
    below, above, frozen = parts
    hidden = below(torch.randn(2, 3, 32, 32))
    assert torch.equal(above(hidden), frozen(hidden))
    before = frozen(hidden)
    with torch.no_grad():
        visual.proj.mul_(2)  # type: ignore[union-attr, operator]
    assert torch.equal(frozen(hidden), before)
    assert not torch.equal(above(hidden), before)


def test_a_tower_of_an_unknown_kind_is_not_cut() -> None:
    assert split_at_top_layer(nn.Linear(2, 2)) is None
