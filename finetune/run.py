"""A run from its folder of pictures to its model folder, whatever interrupts it.

Hides when a checkpoint is due, what makes a second run go on where the first stopped, and what is refused.
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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.version import __version__ as open_clip_version

from finetune.captions import common_names, read_captions
from finetune.checkpoint import (
    METRICS_NAME,
    discard_state,
    load_state,
    read_training,
    save_model,
    save_state,
    sole_owner,
)
from finetune.data import (
    Pictures,
    Record,
    manifest_hash,
    read_records,
    refuse_one_category,
    split_records,
)
from finetune.models import Base, find_base
from finetune.train import FinetuneConfig, Step, Trainer, training_size
from imret import __version__
from imret.encoder import pick_device
from imret.errors import DataError
from imret.folders import Skipped

CAPTIONS_NAME = "captions.csv"

# Most of the time that checkpoints may take, so that those of a large model do not crowd out training.
_CHECKPOINT_SHARE = 0.05
_MIB = 1 << 20


@dataclass(frozen=True)
class Watch:
    """Who is told what a run does.

    Attributes:
        say: Called with sentences for a person.
        picture: Called for each picture that was decoded at the start, with how many there are.
        step: Called after each step with what it did and how many pictures it took.
    """

    say: Callable[[str], None] = lambda _: None
    picture: Callable[[int], object] = lambda _: None
    step: Callable[[Step, int], object] = lambda _step, _pictures: None


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
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str,
    from_scratch: bool = False,
    arch: str | None = None,
    config: FinetuneConfig | None = None,
    captions: str | os.PathLike[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train a model on a folder of labelled pictures and write it to a model folder.

    Run again after any interruption, it goes on from the last checkpoint; once finished, it does nothing.

    Args:
        folder: One sub-folder per category.
        output: Where the model goes, and until then the checkpoint.
        model: A pretrained model; from scratch, an architecture.
        from_scratch: Begin with random weights.
        arch: Architecture of a bare checkpoint file.
        config: How to train; if None, the defaults for `from_scratch` or not.
        captions: CSV file of captions; if None, captions.csv in the folder, if there is one.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        overwrite: Begin anew where the output holds another run, whose model stays until this one is done.
        watch: Who is told.

    Returns:
        What training.json says.

    Raises:
        DataError: If folder, captions or output are not what they should be, or the output cannot be written.
        ModelError: If the model cannot be found or loaded, or training diverges or runs out of memory.
        KeyboardInterrupt: If interrupted; the state is saved first.
    """
    config = config or (FinetuneConfig.for_scratch() if from_scratch else FinetuneConfig())
    watch = watch or Watch()
    folder, output = Path(folder), Path(output)
    where = pick_device(device)
    records = read_records(folder, _captions(folder, captions, watch))
    base = find_base(model, from_scratch=from_scratch, arch=arch, notify=watch.say)
    _refuse_places(folder, output, base)
    run = {"base": base.fingerprint, "data": manifest_hash(records), "config": config.identity()}
    with sole_owner(output):
        finished = read_training(output)
        if finished is not None and finished.get("run") == run and not overwrite:
            watch.say(f"{output} already holds the model that this command makes; nothing to do")
            return finished
        state = _claim(output, run, finished, overwrite=overwrite)
        with contextlib.ExitStack() as open_pictures:
            train, validation, skipped = _pictures(base, folder, records, config, watch, open_pictures)
            trainer = Trainer(base, train, validation, config=config, device=where)
            watch.say(
                f"{base.model_id}{', untrained,' if from_scratch else ''} on {where} in {trainer.precision}; "
                f"{len(train.records):,} pictures to train on, {len(validation.records):,} for validation; "
                f"{trainer.steps:,} steps of {trainer.batch_size}"
            )
            run["pictures"] = manifest_hash([*train.records, *validation.records])
            progress = _begin(trainer, state, run, output, watch)
            state = None  # as large as model and optimizer together
            _steps(trainer, progress, run, output, watch)
            after = trainer.scores()
            watch.say(f"{_shown(after)} after {progress.seconds:.0f} s of training")
            training = {
                "run": {key: run[key] for key in ("base", "data", "config")},
                "base": {
                    "model": base.model_id,
                    "fingerprint": base.fingerprint,
                    "from_scratch": from_scratch,
                },
                "config": dataclasses.asdict(config),
                "data": _describe(folder, train.records, validation.records, skipped),
                "validation": {"before": progress.before, "after": after},
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
        save_model(
            output, trainer.model, model_cfg=base.model_cfg, preprocess=base.preprocess, training=training
        )
        discard_state(output)
    return training


# ---- Before the steps ------------------------------------------------------------------------------------


def _captions(
    folder: Path, captions: str | os.PathLike[str] | None, watch: Watch
) -> dict[str, tuple[str, ...]] | None:
    if captions is None:
        captions = folder / CAPTIONS_NAME
        if not captions.is_file():
            return None
    known = read_captions(captions)
    watch.say(f"captions of {len(known):,} pictures from {os.fspath(captions)}")
    return known


def _refuse_places(folder: Path, output: Path, base: Base) -> None:
    """Refuse an output that would be trained on, or that would replace the model that is started from."""
    if output.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"the output {str(output)!r} lies in the training folder {str(folder)!r} and would become a "
            "category. Give an --output elsewhere."
        )
    if base.files is not None and base.files.weights.parent == output.resolve():
        raise DataError(f"the output {str(output)!r} is the model to start from. Give another --output.")
    if output.exists() and not output.is_dir():
        raise DataError(
            f"the output {str(output)!r} is a file. Give a folder, which need not exist, as --output."
        )


def _claim(
    output: Path, run: Mapping[str, Any], finished: Mapping[str, Any] | None, *, overwrite: bool
) -> dict[str, Any] | None:
    """Return the state to go on from, or None to begin; refuse an output that holds something else.

    A run that was begun with `overwrite` is found again without it, although another run's model is there.
    """
    if overwrite:
        discard_state(output)
        return None
    state = load_state(output)
    if state is not None:
        theirs = state["run"]
        if all(theirs[key] == run[key] for key in ("base", "data", "config")):
            return state
        what = "an unfinished run"
    elif finished is not None:
        theirs, what = finished.get("run", {}), "a finished model"
    elif any(entry.name not in ("checkpoint", METRICS_NAME) for entry in output.iterdir()):
        raise DataError(
            f"the output {str(output)!r} holds files that no run made. Give another --output, "
            "or write among them with --overwrite."
        )
    else:
        return None
    raise DataError(
        f"the output {str(output)!r} holds {what} that differs in {_differences(theirs, run)}. "
        "Give another --output, repeat that command to go on with it, or begin anew with --overwrite."
    )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say what two runs differ in."""
    parts = []
    if theirs.get("base") != ours["base"]:
        parts.append("the model it started from")
    if theirs.get("data") != ours["data"]:
        parts.append("its pictures or captions")
    options = theirs.get("config", {})
    for name, value in ours["config"].items():
        if options.get(name) != value:
            parts.append(f"{name} ({options.get(name)}, now {value})")
    return ", ".join(parts)


def _pictures(
    base: Base,
    folder: Path,
    records: Sequence[Record],
    config: FinetuneConfig,
    watch: Watch,
    opened: contextlib.ExitStack,
) -> tuple[Pictures, Pictures, list[Skipped]]:
    """Decode every picture once; return those for training and for validation, and what cannot be read."""
    size = training_size(base.preprocess.size)
    budget_bytes = config.cache_mib * _MIB
    every = Pictures(folder, records, size=size, preprocess=base.preprocess, budget_bytes=budget_bytes)
    opened.callback(every.close)
    skipped = every.load(lambda: watch.picture(len(records)))
    for skip in skipped[:10]:
        watch.say(f"skipped {skip.path}: {skip.reason}")
    if len(skipped) > 10:
        watch.say(f"and skipped {len(skipped) - 10:,} more, which training.json will list")
    refuse_one_category(every.records, folder)
    train, validation = split_records(every.records, share=config.validation_share, seed=config.seed)
    held_out = Pictures(
        folder,
        [every.records[i] for i in validation],
        size=base.preprocess.size,
        preprocess=base.preprocess,
        budget_bytes=0,  # looked at twice
    )
    opened.callback(held_out.close)
    return every.select(train), held_out, skipped


def _begin(
    trainer: Trainer, state: dict[str, Any] | None, run: Mapping[str, Any], output: Path, watch: Watch
) -> _Progress:
    """Take up the state of an interrupted run, or score the base and begin."""
    if state is None:
        before = trainer.scores()
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
    with contextlib.suppress(FileNotFoundError):
        os.truncate(output / METRICS_NAME, progress.metrics_bytes)  # drop what came after the checkpoint
    watch.say(f"going on after step {progress.step:,} of {trainer.steps:,}")
    return progress


def _shown(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "no validation"
    return f"validation text-to-image mAP {scores['text_to_image_map']:.3f}"


def _describe(
    folder: Path, train: Sequence[Record], validation: Sequence[Record], skipped: Sequence[Skipped]
) -> dict[str, Any]:
    """Return what training.json says of the pictures."""
    counts = Counter(record.category for record in train)
    held_out = Counter(record.category for record in validation)
    return {
        "folder": str(folder.resolve()),
        "train": len(train),
        "validation": len(validation),
        "captioned": sum(bool(record.captions) for record in (*train, *validation)),
        "categories": {
            category: {
                "called": common_names(category)[0],
                "train": counts[category],
                "validation": held_out[category],
            }
            for category in sorted(counts)
        },
        "skipped": [dataclasses.asdict(skip) for skip in skipped],
    }


# ---- The steps -------------------------------------------------------------------------------------------


def _steps(trainer: Trainer, progress: _Progress, run: Mapping[str, Any], output: Path, watch: Watch) -> None:
    """Take the steps that are left, with a checkpoint now and then; `progress` is kept up to date.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed; the step in hand is finished and saved first.
    """
    saved_at, save_s = time.monotonic(), 0.0

    def save() -> None:
        nonlocal saved_at, save_s
        began = time.monotonic()
        log.flush()
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
        open(output / METRICS_NAME, "ab") as log,
    ):
        prepared = ahead.submit(trainer.prepare, progress.step)
        while progress.step < trainer.steps:
            began = time.monotonic()
            batch, pixels = prepared.result()
            if progress.step + 1 < trainer.steps:
                prepared = ahead.submit(trainer.prepare, progress.step + 1)
            done = trainer.step(progress.step, batch, pixels)
            progress.step += 1
            progress.seconds += time.monotonic() - began
            log.write(json.dumps(dataclasses.asdict(done)).encode() + b"\n")
            watch.step(done, len(pixels))
            if interrupted.is_set() or due():
                save()
            if interrupted.is_set():
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
