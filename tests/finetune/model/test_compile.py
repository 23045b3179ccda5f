"""A compiled tower computes what it did, in fewer and larger kernels, and is compiled block by block."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet
from finetune.data.records import read_records
from finetune.model.base_model import find_base
from finetune.model.compile import compile_towers
from finetune.model.param_groups import tower_of
from finetune.trainer import Trainer
from tests.fakes.pictures import draw_picture

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)


def compiled(module: nn.Module) -> list[str]:
    """Return the names of the modules that will be compiled when they are first called."""
    return [name for name, one in module.named_modules() if one._compiled_call_impl is not None]


def test_the_blocks_of_both_transformers_are_compiled_and_nothing_around_them(random_model: Path) -> None:
    model = find_base(str(random_model)).build(torch.device("cpu"), seed=0)
    names = set(model.state_dict())
    compile_towers(model)
    blocks = [name for name, _ in model.named_modules() if re.search(r"resblocks\.\d+$", name)]
    assert compiled(model) == blocks
    assert {tower_of(name) for name in blocks} == {"image", "text"}
    assert set(model.state_dict()) == names


def test_of_a_convolutional_network_what_lies_below_the_head_is_compiled() -> None:
    model = find_base("imret-tiny", from_scratch=True).build(torch.device("cpu"), seed=0)
    compile_towers(model)
    assert [name for name in compiled(model) if tower_of(name) == "image"] == ["visual.trunk"]


@needs_compiler
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(
    "changes",
    [{"anchor_images": 1.0}, {"anchor_images": 1.0, "checkpointing": True}, {"image_layers": 1}],
    ids=["whole", "checkpointing", "cut"],
)
def test_a_compiled_step_has_the_gradients_of_a_plain_one(
    random_model: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    for i in range(8):
        draw_picture(tmp_path / ("aves", "fungi")[i % 2] / f"{i}.png", seed=i)
    base = find_base(str(random_model))
    size = base.preprocess.size[0]
    results = []
    for wanted in (False, True):
        pictures = ImageSet(
            tmp_path,
            read_records(tmp_path),
            size=(size, size),
            preprocess=base.preprocess,
            budget_bytes=1 << 24,
        )
        config = FinetuneConfig.of("plain", batch_size=8, compile=wanted, **changes)
        trainer = Trainer(base, pictures, config=config, device=torch.device("cpu"))
        trainer._backward(0, trainer.prepare(0))
        results.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    plain, fast = results
    assert plain.keys() == fast.keys()
    for name, gradient in plain.items():
        assert (fast[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-7, name
