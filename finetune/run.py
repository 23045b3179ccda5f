"""A run from its folder of pictures to its model folder, whatever interrupts it.

Hides the order of things: pictures, steps and checkpoints, the blend with the base, and what is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.version import __version__ as open_clip_version

from finetune.callbacks import Callbacks
from finetune.checkpoint import (
    METRICS_NAME,
    discard_state,
    read_training,
    save_model,
    save_state,
    sole_owner,
)
from finetune.claim import check_output, resolve_resume
from finetune.config import FinetuneConfig
from finetune.data.prepare import Data, find_sources, prepare
from finetune.data.report import Report
from finetune.distributed import World
from finetune.memory import keep_freed_memory
from finetune.model.base_model import Base, find_base
from finetune.reporting.plots import PLOT_NAME, save_plot
from finetune.reporting.tensorboard import TensorBoardLogger, require_tensorboard
from finetune.trainer import Trainer
from finetune.validation import Validation
from finetune.wise_ft import _shown, choose_blend
from imret.datasets.phrases import read_phrases
from imret.errors import DataError
from imret.escape import escape_control
from imret.images.preprocess import Preprocess
from imret.models.device import pick_device
from imret.settings import __version__

# Most of the time that checkpoints may take, so that those of a large model do not crowd out training.
_CHECKPOINT_SHARE = 0.05


@dataclass
class _Progress:
    """How far a run has come; part of its checkpoint.

    Attributes:
        before: Scores of the base on validation.
        step: Steps done.
        seconds: Spent on them, over all interruptions.
        metrics_bytes: Length of metrics.jsonl at this point.
    """

    before: dict[str, Any] | None
    step: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0


def finetune(
    train: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str,
    from_scratch: bool = False,
    arch: str | None = None,
    config: FinetuneConfig | None = None,
    captions: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    watch: Callbacks | None = None,
) -> dict[str, Any]:
    """Train a model on labelled pictures and write it to a model folder.

    Run again after any interruption, it goes on from the last checkpoint; once finished, it does nothing.
    Under torchrun every process calls it with the same arguments and trains on its share of each batch.

    What is shipped is the blend of base and tuned weights that validation chooses by
    `finetune.wise_ft.choose`; where nothing beats the base, the base.

    Args:
        train: A folder with one sub-folder per category, or a manifest; see `finetune.data.manifest`.
        output: Where the model goes, and until then the checkpoint.
        model: A pretrained model; from scratch, an architecture.
        from_scratch: Begin with random weights.
        arch: Architecture of a bare checkpoint file.
        config: How to train; if None, the defaults for `from_scratch` or not.
        captions: CSV file of captions; if None, captions.csv in the folder, if there is one.
        names: CSV file of what categories are called, where it is not what imret.retrieval.prompts says.
        replay: CSV file of captioned pictures of other things, shown again against forgetting; a fifth of
            them is kept out to measure it.
        against: Folder of test pictures; pictures that are like one of them are not trained on.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        overwrite: Begin anew where the output holds another run, whose model stays until this one is done.
        tensorboard: Folder for TensorBoard's scalars; None for none. It is no part of the run: one can be
            given, or another, to a run that goes on.
        watch: Who is told.

    Returns:
        What training.json says; nothing in any but the first of several processes.

    Raises:
        DataError: If pictures, texts or output are not what they should be, or the output cannot be written;
            or if the package for `tensorboard` is missing.
        ModelError: If the model cannot be found or loaded, or training diverges or runs out of memory.
        KeyboardInterrupt: If interrupted; the state is saved first.
    """
    config = config or (FinetuneConfig.of("scratch" if from_scratch else "light"))
    watch = watch or Callbacks()
    train, output = Path(train), Path(output)
    where = pick_device(device)
    if str(where) == "cuda" and "LOCAL_RANK" in os.environ:
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if where.type == "cpu":
        keep_freed_memory()
    if tensorboard is not None:
        require_tensorboard()
    world = World.join(where)
    if world.rank > 0:
        watch, tensorboard = Callbacks(), None
    try:
        sources = find_sources(
            train, captions=captions, names=names, replay=replay, against=against, say=watch.say
        )
        base = find_base(model, from_scratch=from_scratch, arch=arch, notify=watch.say)
        check_output(train, output, base, tensorboard=None if tensorboard is None else Path(tensorboard))
        run = {
            "base": base.fingerprint,
            "data": sources.hash(),
            "config": config.identity(),
        }
        with sole_owner(output) if world.rank == 0 else contextlib.nullcontext():
            finished = read_training(output)
            world.wait()
            if finished is not None and finished.get("run") == run and not overwrite:
                watch.say(f"{output} already holds the model that this command makes; nothing to do")
                if world.rank == 0 and not (output / PLOT_NAME).exists():
                    _draw(output, finished, watch)
                return finished if world.rank == 0 else {}
            state = resolve_resume(output, run, finished, overwrite=overwrite) if world.rank == 0 else None
            state = world.tell(state)
            with contextlib.ExitStack() as opened:
                data = prepare(sources, base, config, opened=opened, on_picture=watch.picture)
                watch.say(data.report.text())
                trainer = Trainer(
                    base,
                    data.train,
                    config=config,
                    device=where,
                    replay=data.replay,
                    phrases=read_phrases(),
                    world=world,
                    names=data.names,
                    species_kinds=data.report.lengths.species_kinds,
                )
                watch.say(_plan(base, trainer, data, where, world))
                if base.preprocess != Preprocess():
                    watch.say(_fitting(base.preprocess))
                run["pictures"] = data.manifest_hash()
                validation = Validation(
                    data.validation,
                    data.captioned,
                    phrases=read_phrases(),
                    batch_size=trainer.batch_size,
                    names=data.names,
                )
                progress = _begin(trainer, validation, state, run, output, watch)
                state = None  # as large as model and optimizer together
                board = None
                if tensorboard is not None:
                    board = opened.enter_context(
                        TensorBoardLogger(tensorboard, done=progress.step, say=watch.say)
                    )
                    if progress.step == 0:
                        board.validation(progress.before, 0)
                _steps(trainer, progress, run, output, watch, board)
                trainer.finish()
                if world.rank > 0:
                    world.wait()
                    return {}
                shipped = choose_blend(trainer, validation, config, watch)
                if board is not None:
                    board.validation(shipped["after"], trainer.steps)
                training = {
                    "run": {key: run[key] for key in ("base", "data", "config")},
                    "base": {
                        "model": base.model_id,
                        "fingerprint": base.fingerprint,
                        "from_scratch": from_scratch,
                    },
                    "config": dataclasses.asdict(config),
                    "data": {
                        "folder": str(train.resolve()),
                        **data.report.as_json(),
                        "replayed": len(data.replay.records) if data.replay else 0,
                    },
                    "validation": {"before": progress.before, **shipped},
                    "steps": trainer.steps,
                    "seconds": round(progress.seconds, 1),
                    "device": str(where),
                    "precision": trainer.precision,
                    "versions": {
                        "imret": __version__,
                        "python": platform.python_version(),
                        "torch": torch.__version__,
                        "open_clip": open_clip_version,
                    },
                }
                kept_images = not trainer.trains_images or shipped.get("alpha") == 0
            training = save_model(
                output,
                trainer.model,
                model_cfg=base.model_cfg,
                preprocess=base.preprocess,
                training=training,
                images_of=base.images_fingerprint if kept_images else None,
            )
            (output / PLOT_NAME).unlink(missing_ok=True)  # another run's, if there is one
            _draw(output, training, watch)
            discard_state(output)
            world.wait()
        return training
    finally:
        world.leave()


def _draw(output: Path, training: Mapping[str, Any], watch: Callbacks) -> None:
    """Draw the run into its folder; where that fails, say so and leave the model as it is, whole."""

    def drawable(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # No font has what is no text, and between dollar signs matplotlib reads a formula.
        return {escape_control(name).replace("$", r"\$"): value for name, value in pairs}

    try:
        save_plot(output, json.loads(json.dumps(training), object_pairs_hook=drawable))
    except Exception as error:  # whatever matplotlib finds wrong: a drawing is not worth a run
        reason = str(error).partition("\n")[0]
        watch.say(f"Warning: {reason} The model is whole; only the picture of its training is missing.")


def check(
    train: str | os.PathLike[str],
    *,
    model: str,
    from_scratch: bool = False,
    arch: str | None = None,
    config: FinetuneConfig | None = None,
    captions: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    watch: Callbacks | None = None,
) -> Report:
    """Return what `finetune` would train on, validate with and leave out; no model is built.

    Args and errors are those of `finetune`.
    """
    config = config or (FinetuneConfig.of("scratch" if from_scratch else "light"))
    watch = watch or Callbacks()
    sources = find_sources(
        train, captions=captions, names=names, replay=replay, against=against, say=watch.say
    )
    base = find_base(model, from_scratch=from_scratch, arch=arch, notify=watch.say)
    config = dataclasses.replace(config, cache_mib=0)  # nothing is looked at twice
    with contextlib.ExitStack() as opened:
        return prepare(sources, base, config, opened=opened, on_picture=watch.picture).report


def _fitting(preprocess: Preprocess) -> str:
    """Say how pictures are fitted, where it is not the usual way."""
    mean, std = (
        " ".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))
        for values in (preprocess.mean, preprocess.std)
    )
    height, width = preprocess.size
    return (
        f"pictures are fitted the base's way: {height}x{width}, {preprocess.resize_mode}, "
        f"{preprocess.interpolation}, mean {mean}, std {std}"
    )


def _plan(base: Base, trainer: Trainer, data: Data, where: torch.device, world: World) -> str:
    """Say what is about to happen."""
    many = f" in each of {world.size} processes" if world.size > 1 else ""
    return (
        f"{base.model_id}{', untrained,' if base.files is None else ''} on {where}{many} in "
        f"{trainer.precision}; {len(data.train.records):,} pictures to train on, "
        f"{len(data.validation.records):,} for validation; {trainer.steps:,} steps of {trainer.batch_size}"
    )


# ---- Before the steps ------------------------------------------------------------------------------------


def _begin(
    trainer: Trainer,
    validation: Validation,
    state: dict[str, Any] | None,
    run: Mapping[str, Any],
    output: Path,
    watch: Callbacks,
) -> _Progress:
    """Take up the state of an interrupted run, or score the base and begin."""
    if state is None:
        if trainer.world.rank > 0:
            return _Progress(None)
        before = validation.scores(validation.look(trainer), validation.read(trainer))
        watch.say(f"{_shown(before)} before training")
        (output / METRICS_NAME).unlink(missing_ok=True)
        return _Progress(before)
    if state["run"] != run:
        raise DataError(
            f"some pictures could be read when the run in {str(output)!r} began and now cannot, or the "
            "reverse. Mend them to go on, or begin anew with --overwrite."
        )
    trainer.load_state_dict(state["trainer"])
    progress = _Progress(**state["progress"])
    if trainer.world.rank == 0:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(output / METRICS_NAME, progress.metrics_bytes)  # drop what came after the checkpoint
    watch.say(f"going on after step {progress.step:,} of {trainer.steps:,}")
    return progress


# ---- The steps -------------------------------------------------------------------------------------------


def _steps(
    trainer: Trainer,
    progress: _Progress,
    run: Mapping[str, Any],
    output: Path,
    watch: Callbacks,
    board: TensorBoardLogger | None,
) -> None:
    """Take the steps that are left, with a checkpoint now and then; `progress` is kept up to date.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed; the step in hand is finished and saved first.
    """
    saved_at, save_s = time.monotonic(), 0.0
    writes = trainer.world.rank == 0

    def save() -> None:
        nonlocal saved_at, save_s
        if not writes:
            return
        began = time.monotonic()
        log.flush()
        if board is not None:
            board.flush()
        progress.metrics_bytes = log.tell()
        try:
            save_state(
                output,
                {"run": dict(run), "trainer": trainer.state_dict(), "progress": dataclasses.asdict(progress)},
            )
        except DataError as error:
            # Training is worth more than one checkpoint. The end of the run needs the room, and says so.
            watch.say(f"Warning: {error} Training goes on; the last checkpoint that was written stands.")
        saved_at = time.monotonic()
        save_s = saved_at - began

    def due() -> bool:
        if trainer.config.checkpoint_s == 0:
            return True
        since_s = time.monotonic() - saved_at
        affordable = since_s * _CHECKPOINT_SHARE >= save_s
        return affordable and (
            since_s >= trainer.config.checkpoint_s or progress.step % trainer.steps_per_epoch == 0
        )

    with (
        _deferred_interrupt() as interrupted,
        ThreadPoolExecutor(1, thread_name_prefix="next-batch") as ahead,
        open(output / METRICS_NAME if writes else os.devnull, "ab") as log,
    ):
        prepared = ahead.submit(trainer.prepare, progress.step)
        while progress.step < trainer.steps:
            began = time.monotonic()
            ready = prepared.result()
            if progress.step + 1 < trainer.steps:
                prepared = ahead.submit(trainer.prepare, progress.step + 1)
            done = trainer.step(progress.step, ready)
            progress.step += 1
            progress.seconds += time.monotonic() - began
            line = {**dataclasses.asdict(done), "seconds": round(progress.seconds, 3)}
            log.write(json.dumps(line).encode() + b"\n")
            watch.step(done, len(ready.pixels))
            if board is not None:
                board.step(done, len(ready.pixels))
            stop = trainer.world.agree(interrupted.is_set())
            if stop or due():
                save()
            if stop:
                raise KeyboardInterrupt


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn a first Ctrl-C into an event, so that no step is torn; a second one stops at once, as usual.

    Outside the main thread, where Python delivers no signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(_signal: int, _frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, usual)

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)
