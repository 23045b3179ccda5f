"""Ctrl-C twice: the second stops at once, whatever is in hand, and what is on disk is enough to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.checkpoint import load_state
from tests import ROOT
from tests.fakes.pictures import draw_picture

RUN = """
import sys, time
import torch
from finetune import checkpoint
from finetune.config import FinetuneConfig
from finetune.run import Callbacks, finetune
photos, output, where = sys.argv[1:]
config = FinetuneConfig(
    epochs=2, batch_size=8, lr=1e-3, validation_share=0.2, blend=False, freeze_batch_norm=False,
    checkpoint_s=0,  # one after every step
)
def hang():
    print("hanging", flush=True)
    time.sleep(300)
def told(step, pictures):
    print(step.step, flush=True)
    if where == "step" and step.step == 2:
        hang()
write = torch.save
def save(state, file):
    if where == "checkpoint" and state["progress"]["step"] == 2:
        file.write(b"half of a checkpo")
        hang()
    write(state, file)
checkpoint.torch.save = save
say = lambda text: print(text, flush=True)
finetune(
    photos, output, model="imret-tiny", from_scratch=True, config=config, device="cpu",
    callbacks=Callbacks(on_message=say, on_step=told),
)
"""


def start(photos: Path, output: Path, where: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(photos), str(output), where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in another order are other sums
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of ten drawn pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(20):
        draw_picture(folder / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "undisturbed"
    with start(photos, output, "nowhere") as process:
        output_text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "hanging" not in output_text
    return output


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("where", ["step", "checkpoint"])
def test_a_second_ctrl_c_stops_at_once_and_the_next_run_ends_with_the_undisturbed_weights(
    undisturbed: Path, photos: Path, tmp_path: Path, where: str
) -> None:
    output = tmp_path / "model"
    with start(photos, output, where) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "hanging\n":
                break
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None  # the first waits for what is in hand
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - pressed < 20
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    state = load_state(output)
    assert state is not None
    assert state["progress"]["step"] == 1  # the last that was whole

    with start(photos, output, "nowhere") as process:
        output_text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "going on after step 1 of 4" in output_text
    assert sorted(path.name for path in output.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
    expected = weights(undisturbed)
    resumed = weights(output)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
