"""Fine-tuning at full size, ViT-H/14 with 986 M random weights, on a CPU: memory, time, and interruption.

Needs 17 GB of memory and 35 GB below pytest's temporary folder. Measured in November 2026, with
batches of two, on one thread of two busy cores: both towers, two steps, 125 to 150 s in all and at most
16,900 MiB, also where it goes on from a checkpoint; adapters, 110 to 185 s and 9,140 MiB.
Run: pytest -m slow tests/finetune/test_full_size.py -s
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests import ROOT
from tests.fakes.pictures import draw_picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs to be told of its memory by /proc/self/status"),
]

WEIGHTS = "open_clip_model.safetensors"
WEIGHTS_MIB = 986_109_441 * 4 / (1 << 20)

RUN = """
import json, os, signal, sys, time
import torch
from finetune.config import FinetuneConfig
from finetune.memory import peak_memory_mib
from finetune.run import Callbacks, finetune
photos, output, model, tune, last = sys.argv[1:]
config = FinetuneConfig(
    tune=tune, epochs=1, batch_size=2, checkpointing=True, validation_share=0, blend=False, min_crop=1.0
)
begun = time.monotonic()
at = [begun]
steps = []
def step(done, pictures):
    at.append(time.monotonic())
    steps.append(done.step)
    if done.step == int(last):
        os.kill(os.getpid(), signal.SIGINT)  # saved, then stopped
said = []
stopped = False
try:
    finetune(
        photos, output, model=model, config=config, device="cpu",
        callbacks=Callbacks(on_message=said.append, on_step=step),
    )
except KeyboardInterrupt:
    stopped = True
print(json.dumps({
    "steps": steps,
    "stopped": stopped,
    "said": said,
    "first_s": round(at[1] - begun, 1),
    "total_s": round(time.monotonic() - begun, 1),
    "peak_mib": peak_memory_mib(torch.device("cpu")),
}))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of two pictures: two steps of two."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        draw_picture(folder / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed, size=(300, 240))
    return folder


def run(photos: Path, output: Path, model: Path, *, tune: str = "both", last: int = 0) -> dict[str, Any]:
    """Fine-tune in a process of its own, up to step `last` if it is not 0; return what the process says."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(photos), str(output), str(model), tune, str(last)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in another order are other sums
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    seen = {key: told[key] for key in ("steps", "stopped", "first_s", "total_s", "peak_mib")}
    print(f"\n{tune}: {seen}")
    return told


def test_both_towers_are_tuned_and_an_interrupted_run_ends_with_the_undisturbed_weights(
    full_size: Path, photos: Path, tmp_path: Path
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    try:
        told = run(photos, straight, full_size)
        assert told["steps"] == [1, 2]
        # Weights, their gradients and two moments of Adam, and nothing else of that size.
        assert told["peak_mib"] < 4.5 * WEIGHTS_MIB + 1500

        assert run(photos, resumed, full_size, last=1)["stopped"]
        told = run(photos, resumed, full_size)
        assert told["steps"] == [2]
        assert any(text.startswith("going on after step 1 of 2") for text in told["said"])

        moved = 0
        with (
            safe_open(full_size / WEIGHTS, "pt") as base,
            safe_open(straight / WEIGHTS, "pt") as one,
            safe_open(resumed / WEIGHTS, "pt") as other,
        ):
            names = set(base.keys())
            assert names == set(one.keys()) == set(other.keys())
            for name in names:
                assert torch.equal(one.get_tensor(name), other.get_tensor(name)), name
                moved += not torch.equal(one.get_tensor(name), base.get_tensor(name))
        assert moved > 0.9 * len(names)
    finally:  # pytest keeps the folders of three runs
        for path in [*tmp_path.glob(f"*/{WEIGHTS}*"), *tmp_path.glob("*/checkpoint/*")]:
            path.unlink()


def test_adapters_need_little_more_than_the_weights(full_size: Path, photos: Path, tmp_path: Path) -> None:
    try:
        told = run(photos, tmp_path / "model", full_size, tune="lora")
        assert told["steps"] == [1, 2]
        assert told["peak_mib"] < 2.2 * WEIGHTS_MIB + 1500
    finally:
        for path in [*tmp_path.glob(f"*/{WEIGHTS}*"), *tmp_path.glob("*/checkpoint/*")]:
            path.unlink()
