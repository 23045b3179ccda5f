"""The stages of a run after decoding: begin or resume, train, choose the blend, ship the model.

Hides when checkpoints are written, what Ctrl-C does, and what training.json says. `finetune.run` calls the
stages in order.
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from open_clip.version import __version__ as open_clip_version

from finetune.callbacks import Callbacks
from finetune.checkpoint import METRICS_NAME, RunRecord, save_model, save_state
from finetune.config import FinetuneConfig
from finetune.data.prepare import Data
from finetune.distributed import World
from finetune.model.base_model import Base
from finetune.reporting.plots import PLOT_NAME, save_plot
from finetune.reporting.tensorboard import TensorBoardLogger
from finetune.trainer import Trainer
from finetune.validation import Validation, describe_scores
from finetune.weight_blending import choose_blend
from imret.datasets.phrases import read_phrases
from imret.errors import DataError, counted
from imret.escape import escape_control
from imret.images.preprocess import Preprocess
from imret.retrieval.prompts import templates_for
from imret.settings import __version__

# Largest share of the time that checkpoints may take, so that those of a large model do not hold up training.
_CHECKPOINT_SHARE = 0.05


@dataclass
class Progress:
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


class Run:
    """A run whose pictures are decoded; its methods are the stages, in order.

    Args:
        base: What to start from.
        data: The pictures.
        config: How to train.
        record: Of the run, before its pictures were decoded.
        output: The folder of the checkpoint and of the model.
        callbacks: Functions that the run reports to.
        device: Where.
        world: The processes that train together.

    Raises:
        ModelError: If the model cannot be built, or trained in the way that is asked.
    """

    def __init__(
        self,
        base: Base,
        data: Data,
        config: FinetuneConfig,
        record: RunRecord,
        output: Path,
        callbacks: Callbacks,
        *,
        device: torch.device,
        world: World,
    ) -> None:
        self._data, self._output, self._callbacks = data, output, callbacks
        self._record = dataclasses.replace(record, pictures=data.manifest_hash())
        self._say = callbacks.on_message
        self._trainer = Trainer(
            base,
            data.train,
            config=config,
            device=device,
            replay=data.replay,
            phrases=read_phrases(),
            world=world,
            names=data.names,
            species_kinds=data.report.lengths.species_kinds,
        )
        self._validation = Validation(
            data.validation,
            data.captioned,
            phrases=read_phrases(),
            batch_size=self._trainer.batch_size,
            names=data.names,
            templates=templates_for(base.model_cfg),
        )
        self._progress = Progress(None)
        self._logger: TensorBoardLogger | None = None
        self._announce()

    def _announce(self) -> None:
        """Say what is about to happen."""
        trainer, base = self._trainer, self._trainer.base
        size = trainer.world.size
        self._say(
            f"{base.model_id}{', untrained,' if base.files is None else ''} on {trainer.device}"
            f"{f' in each of {size} processes' if size > 1 else ''} in {trainer.encoder.precision}; "
            f"{len(self._data.train.records):,} pictures to train on, "
            f"{len(self._data.validation.records):,} for validation; "
            f"{trainer.steps:,} steps of {trainer.batch_size}"
        )
        if trainer.steps > (asked := trainer.config.epochs * trainer.steps_per_epoch):
            self._say(
                f"that is more than the {trainer.config.epochs:,} "
                f"{'pass' if trainer.config.epochs == 1 else 'passes'} over the pictures, which would be "
                f"{counted(asked, 'step')}: this recipe learns little in fewer than {trainer.steps:,}"
            )
        for images, what in ((self._data.validation, "validation"), (self._data.captioned, "captioned")):
            if images is not None and images.room < len(images.records):
                self._say(
                    f"of {len(images.records):,} {what} pictures {images.room:,} fit in memory; the others "
                    "are decoded anew whenever they are scored"
                )
        if trainer.loss_kind == "sigmoid":
            self._say(
                "the base judges each pair of picture and text by a sigmoid, and is trained with that loss: "
                "imret classify gives each label a probability of its own"
            )
        if base.preprocess != Preprocess():
            self._say(_describe_preprocess(base.preprocess))

    def resume_or_begin(self, state: dict[str, Any] | None) -> None:
        """Load the state of an interrupted run, or score the base and begin.

        Raises:
            DataError: If other pictures could be decoded when the run began.
        """
        trainer, metrics = self._trainer, self._output / METRICS_NAME
        if state is None:
            if trainer.world.rank == 0:
                images = self._validation.encode_images(trainer.encoder)
                texts = self._validation.encode_texts(trainer.encoder)
                self._progress = Progress(self._validation.scores(images, texts))
                self._say(f"{describe_scores(self._progress.before)} before training")
                metrics.unlink(missing_ok=True)
            return
        if state["run"] != dataclasses.asdict(self._record):
            raise DataError(
                f"some pictures could be read when the run in {str(self._output)!r} began and now cannot, or "
                "the reverse. Mend them to go on, or begin anew with --overwrite."
            )
        trainer.load_state_dict(state["trainer"])
        self._progress = Progress(**state["progress"])
        if trainer.world.rank == 0:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(metrics, self._progress.metrics_bytes)  # drop what came after the checkpoint
        self._say(f"going on after step {self._progress.step:,} of {trainer.steps:,}")

    def log_to(self, folder: str | os.PathLike[str]) -> TensorBoardLogger:
        """Open a TensorBoard logger, which the caller closes, for the stages that follow.

        Raises:
            DataError: If the folder cannot be written to.
        """
        self._logger = TensorBoardLogger(folder, done=self._progress.step, on_message=self._say)
        if self._progress.step == 0:
            self._logger.validation(self._progress.before, 0)
        return self._logger

    def train(self) -> None:
        """Take the steps that are left, with checkpoints in between.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed; the step in hand is finished and saved first.
        """
        trainer, progress, logger = self._trainer, self._progress, self._logger
        writes = trainer.world.rank == 0
        with (
            _deferred_interrupt() as interrupted,
            ThreadPoolExecutor(1, thread_name_prefix="next-batch") as ahead,
            open(self._output / METRICS_NAME if writes else os.devnull, "ab") as metrics,
        ):
            checkpoints = _Checkpoints(trainer, self._record, self._output, progress, metrics, self._say)
            prefetched = ahead.submit(trainer.prepare, progress.step)
            while progress.step < trainer.steps:
                began = time.monotonic()
                prepared = prefetched.result()
                if progress.step + 1 < trainer.steps:
                    prefetched = ahead.submit(trainer.prepare, progress.step + 1)
                step = trainer.step(progress.step, prepared)
                progress.step += 1
                progress.seconds += time.monotonic() - began
                line = {**dataclasses.asdict(step), "seconds": round(progress.seconds, 3)}
                metrics.write(json.dumps(line).encode() + b"\n")
                self._callbacks.on_step(step, len(prepared.pixels))
                if logger is not None:
                    logger.step(step, len(prepared.pixels))
                stop = trainer.world.any(interrupted.is_set())
                if stop or checkpoints.due():
                    if logger is not None:
                        logger.flush()
                    checkpoints.save()
                if stop:
                    raise KeyboardInterrupt
        trainer.finish()

    def choose(self, *, folder: Path) -> dict[str, Any]:
        """Load the blend to ship into the model; return the content of training.json, but for `images_of`.

        Args:
            folder: Where the training pictures are.
        """
        trainer, data, base = self._trainer, self._data, self._trainer.base
        shipped = choose_blend(trainer, self._validation, trainer.config, self._say)
        if self._logger is not None:
            self._logger.validation(shipped["after"], trainer.steps)
        return {
            **about_run(self._record, base, data, folder),
            "config": dataclasses.asdict(trainer.config),
            "validation": {"before": self._progress.before, **shipped},
            "steps": trainer.steps,
            "seconds": round(self._progress.seconds, 1),
            "loss": trainer.loss_kind,
            "device": str(trainer.device),
            "precision": trainer.encoder.precision,
        }

    def ship(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """Write the model folder and the plot; return the content of training.json."""
        trainer, base, output = self._trainer, self._trainer.base, self._output
        kept_images = not trainer.trains_images or training["validation"].get("alpha") == 0
        training = save_model(
            output,
            trainer.model,
            model_cfg=base.model_cfg,
            preprocess=base.preprocess,
            training=training,
            tokenizer=base.tokenizer,
            images_of=base.images_of if kept_images else None,
        )
        (output / PLOT_NAME).unlink(missing_ok=True)  # another run's, if there is one
        draw_training(output, training, self._say)
        return training


def about_run(record: RunRecord, base: Base, data: Data, folder: Path) -> dict[str, Any]:
    """Return what training.json says of what a run began with.

    Args:
        record: Of the run.
        base: What it starts from.
        data: The pictures.
        folder: Where they are.
    """
    return {
        "run": record.inputs(),
        "base": {
            "model": base.model_id,
            "fingerprint": base.fingerprint,
            "from_scratch": base.files is None,
        },
        "data": {
            "folder": str(folder.resolve()),
            **data.report.as_json(),
            "replayed": len(data.replay.records) if data.replay else 0,
        },
        "versions": {
            "imret": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip_version,
        },
    }


class _Checkpoints:
    """Writes checkpoints of a run, no more often than their share of the time allows."""

    def __init__(
        self,
        trainer: Trainer,
        record: RunRecord,
        output: Path,
        progress: Progress,
        metrics: BinaryIO,
        say: Callable[[str], None],
    ) -> None:
        self._trainer, self._record, self._output = trainer, record, output
        self._progress, self._metrics, self._say = progress, metrics, say
        self._saved_at, self._save_s = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for the next one."""
        config = self._trainer.config
        if config.checkpoint_s == 0:
            return True
        since_s = time.monotonic() - self._saved_at
        affordable = since_s * _CHECKPOINT_SHARE >= self._save_s
        ends_epoch = self._progress.step % self._trainer.steps_per_epoch == 0
        return affordable and (since_s >= config.checkpoint_s or ends_epoch)

    def save(self) -> None:
        """Write one, in the first of several processes; where that fails, say so and let training go on."""
        if self._trainer.world.rank > 0:
            return
        began = time.monotonic()
        self._metrics.flush()
        self._progress.metrics_bytes = self._metrics.tell()
        state = {
            "run": dataclasses.asdict(self._record),
            "trainer": self._trainer.state_dict(),
            "progress": dataclasses.asdict(self._progress),
        }
        try:
            save_state(self._output, state)
        except DataError as error:
            # Training is worth more than one checkpoint. The end of the run needs the room, and says so.
            self._say(f"Warning: {error} Training goes on; the last checkpoint that was written stands.")
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - began


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn a first Ctrl-C into an event, so that no step is cut short; a second one interrupts as usual.

    Outside the main thread, where Python delivers no signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(_signal: int, _frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, usual)

    usual = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)


# ---- Messages and the plot -------------------------------------------------------------------------------


def _describe_preprocess(preprocess: Preprocess) -> str:
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


def draw_training(output: Path, training: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Plot the run into its folder; where that fails, say so: the model is whole without."""

    def drawable(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Fonts lack control characters, and between dollar signs matplotlib reads a formula.
        return {escape_control(name).replace("$", r"\$"): value for name, value in pairs}

    try:
        save_plot(output, json.loads(json.dumps(training), object_pairs_hook=drawable))
    except Exception as error:  # whatever matplotlib finds wrong: a plot is not worth a run
        reason = str(error).partition("\n")[0]
        say(f"Warning: {reason} The model is whole; only the picture of its training is missing.")
