"""`imret finetune`: the command around `finetune.run`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import examples
from imret.cli.numbers import MAX_SEED, Real, Whole
from imret.cli.options import arch_option, device_option, exclude_option, max_pixels_option
from imret.defaults import DEFAULT_MODEL
from imret.errors import counted
from imret.escape import quoted
from imret.output.console import announce

if TYPE_CHECKING:
    from finetune.callbacks import Step
    from finetune.config import FinetuneConfig
    from finetune.data.sources import Sources

# Options that mean the same to every recipe that is chosen among.
_OF_EVERY_RECIPE = frozenset(
    (
        "epochs",
        "batch_size",
        "lr",
        "seed",
        "species_share",
        "replay",
        "micro_batch",
        "checkpointing",
        "compile",
    )
)
# The recipe where none is named, by --tune.
_RECIPE_OF = {None: "light", "both": "full", "text": "plain", "lora": "lora"}


@click.command(
    "finetune",
    short_help="Adapt a model to labelled pictures.",
    epilog=examples(
        "imret finetune data/train --output models/nature",
        "imret finetune data/train --check --against data/test",
        "imret finetune data/train --output models/nature --names names.csv",
        "imret finetune data/train --output models/nature --recipe lora --epochs 4",
        "imret ingest data/test --model models/nature --collection nature",
    ),
)
@click.argument("train", metavar="TRAIN", type=click.Path(path_type=str))
@click.option("--output", metavar="DIR", help="Where the model goes; also the checkpoint.")
@click.option(
    "--model",
    metavar="MODEL",
    help=f"Model to start from, as in imret ingest.  [default: {DEFAULT_MODEL}]  With --from-scratch: "
    "imret-tiny, or an architecture of open_clip.  [default: imret-tiny]",
)
@click.option("--from-scratch", is_flag=True, help="Begin with random weights.")
@arch_option
@click.option(
    "--captions",
    metavar="FILE",
    help="CSV file with the columns path (below TRAIN) and caption.  "
    "[default: TRAIN/captions.csv, if there is one]",
)
@click.option(
    "--names",
    metavar="FILE",
    help="CSV file with the columns category and name: what categories are called, here and in queries.",
)
@click.option(
    "--against",
    metavar="DIR",
    help="Test pictures: what is like one of them is not trained on.",
)
@exclude_option
@click.option("--check", is_flag=True, help="Say what would be trained on and left out, and stop.")
@click.option(
    "--species-share",
    type=Real(0, 1),
    help="Share of texts that name species, where TRAIN is a manifest that has some.  [default: 0.5]",
)
@click.option(
    "--recipe",
    type=click.Choice(("auto", "light", "names", "lora", "full", "plain")),
    help="auto: the base as it is, names and light are made, each with concepts, and what is best by more "
    "than chance on pictures kept aside is shipped, with the reason. light: the words for categories, and "
    "the last layer that looks at pictures; fast, and other things keep their meaning. names: those words "
    "alone, after which no picture needs a new embedding. lora: small adapters in both towers. full: all "
    "weights, held by anchors. plain: all weights, held by nothing. All but plain learn concepts in the end. "
    "Options below change the recipe.  [default: auto; light where an option changes it; with --tune that of "
    "what is tuned]",
)
@click.option(
    "--epochs",
    type=Whole(1),
    help="Passes over the pictures; light and names take 160 steps at least.  [default: 8; from scratch 16]",
)
@click.option(
    "--batch-size",
    type=Whole(2),
    help="Pictures per step.  [default: light, names 64; lora, full, plain 100; from scratch 64]",
)
@click.option(
    "--lr",
    type=Real(0, min_open=True),
    help="Peak learning rate.  [default: light, names 1e-3; lora 2e-4; full, plain 1e-5; from scratch 3e-3]",
)
@click.option(
    "--seed",
    type=Whole(0, MAX_SEED),
    help="Same seed, same model, on the same kind of machine.  [default: 0]",
)
@click.option(
    "--tune",
    type=click.Choice(("both", "text", "lora")),
    help="Train both towers; the text tower alone, after which no picture needs a new embedding; or small "
    "adapters in both, which need far less memory.",
)
@click.option(
    "--names-only/--all-words",
    default=None,
    help="Of the text tower train only the words that name categories and species, so that other texts "
    "keep their meaning; or all of it.",
)
@click.option(
    "--image-layers",
    type=Whole(0),
    help="Train only so many topmost layers of the image tower; 0: all.",
)
@click.option("--lora-rank", type=Whole(1), help="Rank of the adapters.  [default: 16]")
@click.option(
    "--text-lr-factor",
    type=Real(0, min_open=True),
    help="Learning rate of the text tower, as a multiple of --lr.",
)
@click.option(
    "--image-layer-decay",
    type=Real(0, 1, min_open=True),
    help="Learning rate of each layer relative to the one above.",
)
@click.option("--text-layer-decay", type=Real(0, 1, min_open=True), help="The same in the text tower.")
@click.option("--ema", type=Real(0, 1, max_open=True), help="Decay of averaged weights; 0 is off.")
@click.option(
    "--anchor-images",
    type=Real(0),
    help="How strongly pictures are held to what the base makes of them; 0 is off.",
)
@click.option("--anchor-replay", type=Real(0), help="The same for the pictures of --replay; 0 is off.")
@click.option("--anchor-texts", type=Real(0), help="How strongly everyday phrases are held.")
@click.option(
    "--anchor-phrases",
    type=Real(0),
    help="How strongly the likeness of pictures to everyday phrases is held.",
)
@click.option(
    "--replay",
    "replay_file",
    metavar="FILE",
    help="CSV file (path, caption) of captioned pictures of other things, shown again so that they are not "
    "forgotten.",
)
@click.option("--replay-weight", "replay", type=Real(0), help="Weight of --replay.  [default: 1]")
@click.option("--blend/--no-blend", default=None, help="Choose between base and tuned on validation, or not.")
@click.option(
    "--concepts/--no-concepts",
    default=None,
    help="In the end, learn concepts of the categories from the pictures, as imret learn does, and keep them "
    "in DIR; no weight changes.  [default: all recipes but plain; not from scratch]",
)
@click.option(
    "--micro-batch", type=Whole(0), help="Most pictures on the device at once; 0 is the whole batch."
)
@click.option("--checkpointing", is_flag=True, help="Save memory: compute activations twice.")
@click.option("--compile", is_flag=True, help="Compile the towers; for runs of some minutes on a GPU.")
@click.option("--tensorboard", metavar="DIR", help="Write every step's figures to a folder for TensorBoard.")
@max_pixels_option
@device_option
@click.option(
    "--overwrite", is_flag=True, help="Begin anew where DIR holds the model or state of another run."
)
def command(
    train: str,
    output: str | None,
    model: str | None,
    from_scratch: bool,
    arch: str | None,
    captions: str | None,
    names: str | None,
    against: str | None,
    exclude: tuple[str, ...],
    check: bool,
    recipe: str | None,
    replay_file: str | None,
    tensorboard: str | None,
    device: str,
    overwrite: bool,
    **changes: Any,
) -> None:
    """Adapt a model to the pictures in TRAIN.

    TRAIN is a folder with one sub-folder per category, or a CSV or Parquet file with the columns path and
    category and, if wanted, caption, split (train, val, test), species, common_name and taxonomic ranks.

    Writes a model folder for `imret ingest --model DIR`, which stock open_clip also loads. A tenth of the
    pictures is kept aside to measure what was gained. Interrupted, run the same command again to go on.
    """
    if output is None and not check:
        raise click.UsageError("Missing option '--output'. It is where the model goes; --check needs none.")
    changes = {name: value for name, value in changes.items() if value is not None}
    from finetune.data.manifest import is_manifest

    chooses = _chooses(changes, recipe, from_scratch=from_scratch)
    config = _config(changes, None if recipe == "auto" else recipe, arch, from_scratch=from_scratch)
    if exclude and against is None and is_manifest(train):
        raise click.UsageError("--exclude is about folders, and a manifest names its pictures.")
    _refuse_idle(changes, config, train, from_scratch=from_scratch, replays=replay_file is not None)
    from finetune.callbacks import Callbacks

    with _Bar() as bar:
        inputs: dict[str, Any] = {
            "captions": captions,
            "names": names,
            "replay": replay_file,
            "against": against,
            "exclude": exclude,
        }
        pretrained = None if from_scratch else model or DEFAULT_MODEL
        sources = _check_inputs(train, None if check else output, tensorboard, pretrained, arch, inputs, bar)
        from finetune.run import check as check_data
        from finetune.run import finetune

        arguments: dict[str, Any] = {
            **inputs,
            "sources": sources,
            "model": model or ("imret-tiny" if from_scratch else DEFAULT_MODEL),
            "arch": arch,
            "callbacks": Callbacks(bar.on_message, bar.on_image, bar.on_step, bar.on_embedded),
        }
        where: dict[str, Any] = {"device": device, "overwrite": overwrite, "tensorboard": tensorboard}
        if output is None or check:
            report = check_data(train, from_scratch=from_scratch, config=config, **arguments)
        elif chooses:
            from finetune.choice import finetune_by_choice

            configs = {name: _config(changes, name, arch, from_scratch=False) for name in ("names", "light")}
            training = finetune_by_choice(train, output, configs=configs, **where, **arguments)
        else:
            training = finetune(train, output, from_scratch=from_scratch, config=config, **where, **arguments)
    if output is None or check:
        click.echo(report.text())
    elif training:  # empty in all but the first of several processes
        _announce_model(output, training)


def _check_inputs(
    train: str,
    output: str | None,
    tensorboard: str | None,
    model: str | None,
    arch: str | None,
    inputs: Mapping[str, Any],
    bar: _Bar,
) -> Sources:
    """Check what costs little, then have the model, before torch is imported; return pictures and texts.

    Raises:
        DataError: If a file or folder is not what it should be.
        ModelError: If the model is a folder or file that is none, or cannot be downloaded.
    """
    from finetune.data.sources import find_sources
    from imret.models.resolve import check_name, fetch_weights
    from imret.output.written_files import check_output_folder

    check_output_folder("--output", output)
    check_output_folder("--tensorboard", tensorboard)
    if model is not None:
        check_name(model, arch=arch)
    sources = find_sources(train, **inputs, on_message=bar.on_message)
    if model is not None:
        fetch_weights(model, notify=bar.on_message)
    return sources


def _config(
    changes: Mapping[str, Any], recipe: str | None, arch: str | None, *, from_scratch: bool
) -> FinetuneConfig:
    """Return the recipe that the options ask for, with their changes."""
    from finetune.config import FinetuneConfig

    if from_scratch and recipe is not None:
        raise click.UsageError("--recipe is for pretrained models; --from-scratch has one of its own.")
    if from_scratch and arch is not None:
        raise click.UsageError("--arch is of a checkpoint file; with --from-scratch name it as --model.")
    try:
        return FinetuneConfig.of(
            "scratch" if from_scratch else recipe or _RECIPE_OF[changes.get("tune")], **changes
        )
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def _chooses(changes: Mapping[str, Any], recipe: str | None, *, from_scratch: bool) -> bool:
    """Whether the run chooses among recipes: none is named, and no option changes what one of them trains."""
    strangers = [name for name in changes if name not in _OF_EVERY_RECIPE]
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if recipe == "auto" and strangers:
        option = "--" + strangers[0].replace("_", "-")
        raise click.UsageError(
            f"{option} changes one recipe, and auto makes several. Name one: --recipe light"
        )
    if recipe == "auto" and several:
        raise click.UsageError("auto is for one process. Under torchrun name a recipe: --recipe light")
    return recipe in (None, "auto") and not from_scratch and not strangers and not several


def _announce_model(output: str, training: Mapping[str, Any]) -> None:
    """Say where the model is, and what to do next."""
    skipped = len(training["data"]["skipped"])
    announce(f"Model in {output}" + (f"; {counted(skipped)} skipped" if skipped else ""))
    if "images_of" in training:
        announce(
            "Its image tower is the base's: collections that the base made can be searched as they are, "
            f"with --model {output}"
        )
    # In a collection of its own: one that another model made refuses it.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(output).resolve().name).lstrip("._-")[:100] or "tuned"
    announce(f"Next: imret ingest PICTURES --model {quoted(output)} --collection {name}")


def _refuse_idle(
    changes: Mapping[str, Any], config: FinetuneConfig, train: str, *, from_scratch: bool, replays: bool
) -> None:
    """Refuse options that would do nothing beside the others; 0 is off and always allowed."""
    from finetune.data.manifest import is_manifest

    idle: dict[str, str] = {}
    if config.tune == "text":
        images = ("anchor_images", "anchor_phrases", "anchor_replay", "image_layer_decay")
        idle |= dict.fromkeys(images, "is about the image tower, which --tune text leaves as it is")
    elif config.image_layers == 1:
        idle["image_layer_decay"] = "is about several layers, and one is trained: see --image-layers"
    if not replays:
        replaying = ("replay", "anchor_replay")
        idle |= dict.fromkeys(replaying, "is about the pictures of --replay FILE, which is not given")
    if config.tune != "lora":
        idle["lora_rank"] = "is about adapters, which are not trained: add --tune lora"
    if from_scratch:
        idle["blend"] = "is between base and tuned, and --from-scratch has no base"
    if not is_manifest(train):
        idle["species_share"] = "is about species, which only a manifest names"
    for name, why in idle.items():
        if changes.get(name):
            option = "--replay-weight" if name == "replay" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} {why}.")


class _Bar:
    """A progress bar on stderr: first over pictures that are decoded, then over pictures trained on.

    Where stderr is no terminal but a file, a line for every tenth of the steps instead.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._step = 0  # the last
        self._live = sys.stderr.isatty()
        self._last_line: tuple[int, float] | None = None  # its step, and when it was printed

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_message(self, message: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        announce(message)

    def on_image(self, total: int) -> None:
        self._begin_stage("decode", total)
        self._bar.update()

    def on_embedded(self, total: int) -> None:
        if not self._stage.startswith("embed") or self._bar.n >= self._bar.total:
            self._stage = ""
        self._begin_stage("embed", total)
        self._bar.update()

    def on_step(self, step: Step, pictures: int) -> None:
        figures = f"loss {step.loss:.3f} (floor {step.floor:.3f}), lr {step.lr:.1e}"
        if step.memory_mib:
            figures += f", {step.memory_mib:,} MiB"
        if step.step <= self._step:  # of the next run
            self._stage, self._last_line = "", None
        self._step = step.step
        if not self._live:
            self._print_line(step, pictures, figures)
            return
        self._begin_stage("train", step.steps * pictures, done=(step.step - 1) * pictures)
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(pictures)

    def _print_line(self, step: Step, pictures: int, figures: str) -> None:
        """Print a line if this step completes another tenth of the run."""
        now = time.monotonic()
        if self._last_line is None:
            self._last_line = step.step, now  # when the first step began is not known
        if 10 * step.step // step.steps > 10 * (step.step - 1) // step.steps:
            steps, seconds = step.step - self._last_line[0], now - self._last_line[1]
            if steps:
                from tqdm import tqdm

                left = tqdm.format_interval((step.steps - step.step) * seconds / steps)
                figures += f", {steps * pictures / max(seconds, 1e-9):,.1f} images/s, {left} left"
            announce(f"step {step.step:,} of {step.steps:,}: {figures}")
            self._last_line = step.step, now

    def _begin_stage(self, stage: str, total: int, *, done: int = 0) -> None:
        """Replace the bar if this is another stage."""
        if stage == self._stage:
            return
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._stage = stage
        self._bar = tqdm(
            desc=stage,
            total=total,
            initial=done,
            unit=" images",
            unit_scale=False,
            smoothing=0.1,
            disable=not self._live,
        )
