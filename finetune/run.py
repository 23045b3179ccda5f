"""A run from a folder of pictures to a model folder, resumable after any interruption.

Hides what comes before the stages of `finetune.stages`: where pictures, model and output are, whether there
is anything to do, and which processes take part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.callbacks import Callbacks
from finetune.checkpoint import (
    RunRecord,
    check_output,
    discard_state,
    note_concepts,
    read_training,
    resolve_resume,
    sole_owner,
)
from finetune.concepts import ConceptStage, HeldOut
from finetune.config import FinetuneConfig
from finetune.data.prepare import Data, prepare
from finetune.data.report import Report
from finetune.data.sources import Sources, find_sources
from finetune.distributed import World
from finetune.memory import keep_freed_memory
from finetune.model.base_model import Base, find_base
from finetune.model.text_files import refuse_lost_tokenizer
from finetune.reporting.plots import PLOT_NAME
from finetune.reporting.tensorboard import require_tensorboard
from finetune.stages import Run, draw_training
from imret.datasets.phrases import read_phrases
from imret.models.device import pick_device
from imret.models.known_models import note_model
from imret.models.resolve import resolve_model
from imret.output.written_files import check_output_folder


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
    exclude: Sequence[str] = (),
    device: str = "auto",
    overwrite: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    callbacks: Callbacks | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Train a model on labelled pictures and write it to a model folder.

    Run again after any interruption, it resumes from the last checkpoint; once finished, it does nothing.
    Under torchrun every process calls it with the same arguments and trains on its share of each batch.

    What is shipped is the blend of base and tuned weights that validation chooses by
    `finetune.weight_blending.choose`; where nothing beats the base, the base.

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
        against: Folder of test pictures, whose duplicates are not trained on.
        exclude: Patterns of what is left out of both folders: see `imret.datasets.exclusion.Exclusion`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        overwrite: Begin anew where the output holds another run, whose model stays until this one is done.
        tensorboard: Folder for TensorBoard's scalars; None for none. It is no part of the run and may be
            given, or changed, when a run is resumed.
        callbacks: Functions that the run reports to.
        sources: What `find_sources` gives for the other arguments, where that is known already.

    Returns:
        The content of training.json; in all but the first of several processes, an empty dict.

    Raises:
        DataError: If pictures, texts or output are not what they should be, or the output cannot be written;
            or if the package for `tensorboard` is missing.
        ModelError: If the model or its tokenizer cannot be found, loaded or kept with the tuned model, or
            training diverges or runs out of memory.
        KeyboardInterrupt: If interrupted; the state is saved first.
    """
    config = config or FinetuneConfig.of("scratch" if from_scratch else "light")
    callbacks = callbacks or Callbacks()
    train, output = Path(train), Path(output)
    where = training_device(device)
    check_output_folder("--output", output)
    check_output_folder("--tensorboard", tensorboard)
    if tensorboard is not None:
        require_tensorboard()
    world = World.join(where)
    if world.rank > 0:
        callbacks, tensorboard = Callbacks(), None
    say = callbacks.on_message
    try:
        sources = sources or find_sources(
            train,
            captions=captions,
            names=names,
            replay=replay,
            against=against,
            exclude=exclude,
            on_message=say,
        )
        base = find_trainable_base(model, from_scratch=from_scratch, arch=arch, notify=say)
        check_output(train, output, base, tensorboard=None if tensorboard is None else Path(tensorboard))
        record = RunRecord(base.fingerprint, sources.hash(), config.identity())
        with sole_owner(output) if world.rank == 0 else contextlib.nullcontext():
            finished = read_training(output)
            world.barrier()
            again = finished is not None and finished.get("run") == record.inputs() and not overwrite
            if finished is not None and again and ("concepts" in finished or not config.concepts):
                return leave_as_it_is(output, finished, say) if world.rank == 0 else {}
            state = None
            if world.rank == 0 and not again:
                state = resolve_resume(output, record, finished, overwrite=overwrite)
            state = world.broadcast(state)
            with contextlib.ExitStack() as opened:
                data = prepare(sources, base, config, opened=opened, on_image=callbacks.on_image)
                say(data.report.text())
                stages = Stages(train, base, data, config, record, callbacks, where, world)
                training = finished or {}
                if not again:
                    run = stages.begin(output, state)
                    state = None  # as large as model and optimizer together
                    training = stages.train(run, tensorboard)
                    del run
            if world.rank == 0:
                training, _ = stages.finish(output, training)
                note_as_chosen(base, output, say)
            world.barrier()
        return training
    finally:
        world.destroy()


@dataclasses.dataclass(frozen=True, eq=False)
class Stages:
    """All stages of a run whose pictures are decoded.

    Attributes:
        folder: Where the training pictures are.
        base: What to start from.
        data: The pictures.
        config: How to train.
        record: Of the run.
        callbacks: Functions that it reports to.
        device: Where.
        world: The processes that train together.
    """

    folder: Path
    base: Base
    data: Data
    config: FinetuneConfig
    record: RunRecord
    callbacks: Callbacks
    device: torch.device
    world: World

    def begin(self, output: Path, state: dict[str, Any] | None) -> Run:
        """Return the run, begun or resumed.

        Args:
            output: Where the model goes.
            state: To resume from.
        """
        run = Run(
            self.base,
            self.data,
            self.config,
            self.record,
            output,
            self.callbacks,
            device=self.device,
            world=self.world,
        )
        run.resume_or_begin(state)
        return run

    def train(self, run: Run, tensorboard: str | os.PathLike[str] | None) -> dict[str, Any]:
        """Train, choose the blend and ship it; return the content of training.json.

        Args:
            run: From `begin`.
            tensorboard: Folder for TensorBoard's scalars; None for none.
        """
        with contextlib.ExitStack() as opened:
            if tensorboard is not None:
                opened.enter_context(run.log_to(tensorboard))
            run.train()
            if self.world.rank > 0:
                return {}
            return run.ship(run.choose(folder=self.folder))

    def finish(
        self, output: Path, training: dict[str, Any], concepts: ConceptStage | None = None
    ) -> tuple[dict[str, Any], HeldOut | None]:
        """Learn concepts of the shipped model, where they are asked for, and remove the checkpoint.

        Args:
            output: Where the model is.
            training: What `train` returned.
            concepts: What learns them; None to make it.

        Returns:
            The content of training.json; and how names rank validation, where concepts were learnt.
        """
        held_out = None
        if self.config.concepts:
            concepts = concepts or self.concept_stage()
            about, held_out = concepts.learn_into(output, source=str(self.folder.resolve()))
            training = note_concepts(output, training, about)
        discard_state(output)
        return training, held_out

    def concept_stage(self) -> ConceptStage:
        """Return what learns concepts from the pictures of this run."""
        callbacks = self.callbacks
        return ConceptStage(self.data, self.device, callbacks.on_message, callbacks.on_embedded)


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
    exclude: Sequence[str] = (),
    callbacks: Callbacks | None = None,
    sources: Sources | None = None,
) -> Report:
    """Return what `finetune` would train on, validate with and leave out; no model is built.

    Args and errors are those of `finetune`.
    """
    config = config or FinetuneConfig.of("scratch" if from_scratch else "light")
    callbacks = callbacks or Callbacks()
    say = callbacks.on_message
    sources = sources or find_sources(
        train,
        captions=captions,
        names=names,
        replay=replay,
        against=against,
        exclude=exclude,
        on_message=say,
    )
    base = find_trainable_base(model, from_scratch=from_scratch, arch=arch, notify=say)
    config = dataclasses.replace(config, cache_mib=0)  # every picture is used once
    with contextlib.ExitStack() as opened:
        return prepare(sources, base, config, opened=opened, on_image=callbacks.on_image).report


def note_as_chosen(base: Base, output: Path, say: Callable[[str], None]) -> None:
    """Let collections name the base, and the model that was made of it, without a question."""
    for files in (base.files, resolve_model(output.absolute())):
        if files is not None:
            note_model(files, notify=say)


def leave_as_it_is(output: Path, finished: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Return the training.json of a run that is done, and draw its plot if that has gone."""
    say(f"{output} already holds the model that this command makes; nothing to do")
    if finished["steps"] and not (output / PLOT_NAME).exists():
        draw_training(output, finished, say)
    return finished


def find_trainable_base(
    model: str, *, from_scratch: bool = False, arch: str | None, notify: Callable[[str], None]
) -> Base:
    """Find what to start from, and make sure that the tuned model can be searched with."""
    base = find_base(model, from_scratch=from_scratch, arch=arch, notify=notify)
    refuse_lost_tokenizer(base, read_phrases())
    return base


def training_device(name: str) -> torch.device:
    """Return the device of this process, and prepare the process for it."""
    device = pick_device(name)
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu":
        keep_freed_memory()
    return device
