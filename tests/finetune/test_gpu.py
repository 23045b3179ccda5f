"""On a GPU a step is the CPU's but for bf16, memory that runs out says what to try, and runs go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.callbacks import Callbacks, Step
from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet
from finetune.data.records import read_records
from finetune.model.base_model import find_base
from finetune.run import finetune
from finetune.trainer import Trainer
from imret import Encoder
from imret.datasets.phrases import read_phrases
from imret.errors import ModelError
from tests.fakes.pictures import draw_picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # drivers and compilers have opinions of their own
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(24):
        draw_picture(tmp_path / "photos" / ("aves", "fungi")[i % 2] / f"{i}.png", seed=i)
    return tmp_path / "photos"


def trainer_on(device: str, model: Path, photos: Path, **changes: object) -> Trainer:
    base = find_base(str(model))
    pictures = ImageSet(
        photos,
        read_records(photos),
        size=base.preprocess.size,
        preprocess=base.preprocess,
        budget_bytes=1 << 24,
    )
    config = FinetuneConfig.of("full", batch_size=16, **changes)
    return Trainer(base, pictures, config=config, device=torch.device(device), phrases=read_phrases())


def gradient(trainer: Trainer) -> Tensor:
    """Return the gradient of the first step as one long vector."""
    trainer._backward(0, trainer.prepare(0))
    return torch.cat(
        [p.grad.flatten().cpu() for _, p in trainer.model.named_parameters() if p.grad is not None]
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"compile": True}, {"checkpointing": True, "micro_batch": 5}, {"tune": "lora"}],
    ids=str,
)
def test_the_gradient_is_that_of_the_cpu_to_the_precision_of_bf16(
    random_model: Path, photos: Path, changes: dict[str, object]
) -> None:
    on_cpu = trainer_on("cpu", random_model, photos, **{**changes, "compile": False})
    on_gpu = trainer_on("cuda", random_model, photos, **changes)
    assert (on_cpu.encoder.precision, on_gpu.encoder.precision) == ("fp32", "bf16")
    first, second = gradient(on_cpu), gradient(on_gpu)
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99
    assert second.norm() == pytest.approx(first.norm(), rel=0.05)


def test_memory_that_runs_out_names_the_step_and_what_to_try(random_model: Path, photos: Path) -> None:
    trainer = trainer_on("cuda", random_model, photos)
    prepared = trainer.prepare(0)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + (1 << 20)) / total, 0)
    try:
        with pytest.raises(ModelError, match=r"ran out of memory in step 1, with 16 .*--checkpointing"):
            trainer.step(0, prepared)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    trainer.step(0, prepared)


def test_an_interrupted_run_goes_on_to_the_model_of_the_undisturbed_one(
    random_model: Path, photos: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig.of("full", batch_size=8, epochs=3, checkpoint_s=0, blend=False)

    def run(output: Path, last: int = 0) -> None:
        def step(done: Step, _: int) -> None:
            if done.step == last:
                os.kill(os.getpid(), signal.SIGINT)  # saved, then stopped

        finetune(
            photos,
            output,
            model=str(random_model),
            config=config,
            device="cuda",
            callbacks=Callbacks(on_step=step),
        )

    run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", last=3)
    run(tmp_path / "resumed")
    texts = ["a photo of a bird", "a photo of a mushroom", "rain"]
    first, second = (
        Encoder(tmp_path / name, device="cpu", precision="fp32").encode_texts(texts)
        for name in ("straight", "resumed")
    )
    assert (first * second).sum(axis=1).min() > 0.9999
