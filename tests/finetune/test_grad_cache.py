"""A batch in parts, or among several processes, has the gradients of the whole batch in one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet
from finetune.data.records import read_records
from finetune.distributed import World
from finetune.grad_cache import CachedFeatures
from finetune.model.base_model import find_base
from finetune.trainer import Trainer
from imret.datasets.phrases import read_phrases
from tests import ROOT
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

ANCHORED = {
    "batch_size": 11,
    "anchor_images": 2.0,
    "anchor_replay": 3.0,
    "anchor_texts": 1.0,
    "anchor_phrases": 0.5,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        draw_picture(folder / ("aves", "fungi", "plantae")[i % 3] / f"{i}.png", seed=i)
    return folder


@pytest.fixture(scope="module")
def sigmoid_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("models") / "sigmoid", seed=0, sigmoid=True)


def gradients(
    photos: Path, model: Path, config: FinetuneConfig, world: World | None = None
) -> dict[str, Tensor]:
    """Return every gradient of the first step, before clipping."""
    with trainer_of(photos, model, config, world) as trainer:
        trainer._backward(0, trainer.prepare(0))
        if world is not None:
            world.sum_gradients(trainer._parameters)
        return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def trainer_of(
    photos: Path, model: Path, config: FinetuneConfig, world: World | None = None
) -> Iterator[Trainer]:
    """Return a trainer of photos, a third of which are replayed with a caption too."""
    base = find_base(str(model))
    records = read_records(photos)
    size = (36, 36)
    pictures = ImageSet(photos, records, size=size, preprocess=base.preprocess, budget_bytes=1 << 20)
    replayed = pictures_with_captions(photos, base)
    yield Trainer(
        base,
        pictures,
        config=config,
        device=torch.device("cpu"),
        replay=replayed,
        phrases=read_phrases(),
        world=world,
    )
    pictures.close()
    replayed.close()


def pictures_with_captions(photos: Path, base: object) -> ImageSet:
    captions = {f"aves/{i}.png": (f"a drawing of number {i}",) for i in range(0, 24, 3)}
    records = [record for record in read_records(photos, captions) if record.captions]
    return ImageSet(photos, records, size=(36, 36), preprocess=base.preprocess, budget_bytes=1 << 20)  # type: ignore[attr-defined]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name] - other[name]).abs().max() <= 1e-5 * one[name].abs().max(), name


def test_features_in_parts_have_the_gradient_of_all_at_once() -> None:
    torch.manual_seed(0)
    encode = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Dropout(0.5), torch.nn.Tanh()).double()
    inputs = torch.randn(7, 5, dtype=torch.float64)
    gradient = torch.randn(7, 4, dtype=torch.float64)
    parts = CachedFeatures(encode, inputs, chunk_size=3, seed=5)
    parts.backward(gradient)
    mine = [p.grad.clone() for p in encode.parameters() if p.grad is not None]
    encode.zero_grad()
    values = []
    for number, chunk in enumerate(inputs.split(3)):  # dropout draws the same for every part
        torch.manual_seed(5 + number)
        values.append(encode(chunk))
    assert torch.equal(torch.cat(values), parts.values)
    torch.cat(values).backward(gradient)
    for ours, theirs in zip(mine, (p.grad for p in encode.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("change", [{"micro_batch": 4}, {"checkpointing": True}], ids=str)
def test_memory_is_saved_without_changing_a_gradient(
    photos: Path, random_model: Path, change: dict[str, object]
) -> None:
    config = FinetuneConfig(**ANCHORED)
    whole = gradients(photos, random_model, config)
    assert len(whole) > 40
    same(whole, gradients(photos, random_model, FinetuneConfig(**ANCHORED, **change)))


@pytest.mark.parametrize("change", [{"micro_batch": 4}, {"checkpointing": True}], ids=str)
def test_memory_is_saved_without_changing_a_gradient_of_the_sigmoid_loss(
    photos: Path, sigmoid_model: Path, change: dict[str, object]
) -> None:
    whole = gradients(photos, sigmoid_model, FinetuneConfig(**ANCHORED, learn_logit_scale=True))
    assert {"logit_scale", "logit_bias"} <= whole.keys()
    changed = FinetuneConfig(**ANCHORED, learn_logit_scale=True, **change)
    same(whole, gradients(photos, sigmoid_model, changed))


@pytest.mark.parametrize(
    ("weights", "parts"),
    [({"anchor_replay": 3.0}, {"anchor_replay"}), ({"replay": 1.0}, {"replay"}), ({}, set())],
)
def test_replayed_pictures_are_held_or_learned_or_both(
    photos: Path, random_model: Path, weights: dict[str, float], parts: set[str]
) -> None:
    config = FinetuneConfig(**{"batch_size": 11, "replay": 0, **weights})  # type: ignore[arg-type]
    with trainer_of(photos, random_model, config) as trainer:
        assert trainer._backward(0, trainer.prepare(0))[2].keys() == parts


@pytest.mark.parametrize("kind", ["random_model", "sigmoid_model"])
def test_two_processes_have_the_gradients_of_one(
    photos: Path, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue(kind)
    learnt = kind == "sigmoid_model"
    script = tmp_path / "process.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(ROOT)!r})
            import torch
            from pathlib import Path
            from finetune.config import FinetuneConfig
            from finetune.distributed import World
            from tests.finetune.test_grad_cache import ANCHORED, gradients
            torch.set_num_threads(1)
            world = World.join(torch.device("cpu"))
            assert world.size == 2
            photos, model = Path({str(photos)!r}), Path({str(model)!r})
            config = FinetuneConfig(**ANCHORED, learn_logit_scale={learnt})
            found = gradients(photos, model, config, world)
            torch.save(found, Path({str(tmp_path)!r}) / f"{{world.rank}}.pt")
            world.destroy()
            """
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "PYTHONPATH": str(ROOT),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    alone = gradients(photos, model, FinetuneConfig(**ANCHORED, learn_logit_scale=learnt))
    for rank in range(2):
        same(alone, torch.load(tmp_path / f"{rank}.pt", weights_only=True))


@pytest.mark.parametrize(("n", "size"), [(7, 2), (3, 5), (0, 2), (64, 8)])
def test_shares_cover_every_row_once(n: int, size: int) -> None:
    rows = [i for rank in range(size) for i in range(n)[World(rank, size).shard(n)]]
    assert rows == list(range(n))


def test_on_gpus_each_process_takes_its_own_and_flags_and_states_stay_off_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Stands in for two GPUs, which no test machine has.
    calls: dict[str, object] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.update(device=str(device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: calls.update(backend=backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert World.join(torch.device("cuda", 1)) == World(1, 2)
    # torch sends objects through the CPU where the group has a backend for it.
    assert calls == {"device": "cuda:1", "backend": "cpu:gloo,cuda:nccl"}
