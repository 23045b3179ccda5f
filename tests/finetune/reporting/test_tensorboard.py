"""What TensorBoard is shown of a run: every step once, also after an interruption."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.callbacks import Callbacks, Step
from finetune.config import FinetuneConfig
from finetune.reporting.tensorboard import TensorBoardLogger, require_tensorboard
from finetune.run import finetune
from imret.errors import DataError
from tests import ROOT
from tests.fakes.pictures import draw_picture

CONFIG = FinetuneConfig.of("scratch", epochs=2, batch_size=8, validation_share=0.2)
STEP = Step(1, 4, 0.5, loss=2.0, floor=1.5, lr=1e-3, grad_norm=0.7, logit_scale=14.0, memory_mib=900)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of ten drawn pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(20):
        draw_picture(folder / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


def tune(photos: Path, output: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": "imret-tiny", "from_scratch": True, "config": CONFIG, **changes}
    return finetune(photos, output, tensorboard=folder, device="cpu", **arguments)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every scalar, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_every_step_and_both_validations_are_there(photos: Path, tmp_path: Path) -> None:
    training = tune(photos, tmp_path / "model", tmp_path / "board")
    logged = scalars(tmp_path / "board")
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    for tag, name in (("train/loss", "loss"), ("train/lr", "lr"), ("machine/memory_mib", "memory_mib")):
        assert logged[tag] == [(line["step"], pytest.approx(line[name])) for line in lines]
    assert logged["train/excess_over_floor"] == [
        (line["step"], pytest.approx(line["loss"] - line["floor"], abs=1e-5)) for line in lines
    ]
    assert {"train/floor", "train/grad_norm", "train/logit_scale", "machine/images_per_s"} <= logged.keys()
    assert all(value > 0 for _, value in logged["machine/images_per_s"])
    before, after = (training["validation"][moment]["text_to_image_map"] for moment in ("before", "after"))
    assert logged["validation/text_to_image_map"] == [
        (0, pytest.approx(before)),
        (training["steps"], pytest.approx(after)),
    ]
    assert {"validation_by_category/aves", "validation_by_category/fungi"} <= logged.keys()


def test_a_run_that_goes_on_repeats_no_step_and_may_be_given_a_board_later(
    photos: Path, tmp_path: Path
) -> None:
    output, board = tmp_path / "model", tmp_path / "board"
    # One checkpoint, at the end of the first epoch; what is done after it is lost and done again.
    config = dataclasses.replace(CONFIG, checkpoint_s=1e9)
    stop_at = 0

    def stop(step: Step, _pictures: int) -> None:
        if step.step == stop_at:
            raise RuntimeError("stopped by the test")

    arguments: dict[str, Any] = {"config": config, "callbacks": Callbacks(on_step=stop)}
    stop_at = 4
    with pytest.raises(RuntimeError):
        tune(photos, output, board, **arguments)
    assert [step for step, _ in scalars(board)["train/loss"]] == [1, 2, 3]
    stop_at = 0
    messages: list[str] = []
    training = tune(photos, output, board, config=config, callbacks=Callbacks(on_message=messages.append))
    assert "going on after step 2 of 4" in messages
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert scalars(board)["train/loss"] == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert [step for step, _ in scalars(board)["validation/text_to_image_map"]] == [0, 4]
    assert "tensorboard" not in json.dumps(training)  # no part of what the run is

    tune(photos, output, board, config=dataclasses.replace(config, epochs=1), overwrite=True)
    assert [step for step, _ in scalars(board)["train/loss"]] == [1, 2]  # begun anew


TOGETHER = """
import sys
from finetune.config import FinetuneConfig
from finetune.run import finetune
photos, model, output, board = sys.argv[1:]
config = FinetuneConfig(epochs=1, batch_size=8, validation_share=0.2, blend=False)
finetune(photos, output, model=model, config=config, device="cpu", tensorboard=board)
"""


def test_a_category_whose_name_is_no_unicode_has_its_scalar_too(photos: Path, tmp_path: Path) -> None:
    train = tmp_path / "photos"
    shutil.copytree(photos, train)
    (train / "aves").rename(os.fsdecode(os.fsencode(train) + b"/caf\xe9"))
    tune(train, tmp_path / "model", tmp_path / "board")
    assert r"validation_by_category/caf\xe9" in scalars(tmp_path / "board")


def test_of_several_processes_the_first_alone_writes(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [photos, random_model, tmp_path / "model", tmp_path / "board"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, *map(str, places)],
            env={**os.environ, **together, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    assert len(list((tmp_path / "board").iterdir())) == 1
    assert [step for step, _ in scalars(tmp_path / "board")["train/loss"]] == [1, 2]
    assert (tmp_path / "model" / "training.png").exists()


def test_without_the_package_nothing_is_decoded_and_the_way_out_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what a missing module is to `import`
    decoded: list[int] = []
    with pytest.raises(DataError, match=r"pip install 'imret\[tensorboard\]'"):
        tune(photos, tmp_path / "model", tmp_path / "board", callbacks=Callbacks(on_image=decoded.append))
    assert not decoded
    assert not (tmp_path / "model").exists()
    with pytest.raises(DataError):
        require_tensorboard()


def test_folders_of_pictures_and_of_models_are_no_place_for_it(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing but pictures may be"):
        tune(photos, tmp_path / "model", photos / "board")
    with pytest.raises(DataError, match="nothing but the model may be"):
        tune(photos, tmp_path / "model", tmp_path / "model" / "board")
    assert not (photos / "board").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to the --tensorboard folder .*file"):
        TensorBoardLogger(tmp_path / "file" / "board", done=0, on_message=print)


def test_a_disk_that_is_full_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    with TensorBoardLogger(tmp_path / "board", done=0, on_message=messages.append) as board:
        board.step(STEP, 8)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        # The package writes in a thread of its own and hands the error to the next call.
        monkeypatch.setattr(board._writer, "add_scalar", full)
        board.step(STEP, 8)
        board.step(STEP, 8)
        board.flush()
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    assert "Training goes on" in messages[0]
