"""`imret finetune`: the command around `finetune.run`."""

from __future__ import annotations

import sys
from typing import Any

import click

from imret import DEFAULT_MODEL
from imret.options import announce, arch_option, device_option


@click.command(
    "finetune",
    short_help="Adapt a model to labelled pictures.",
    epilog="Example:  imret finetune data/train --output models/nature  &&  "
    "imret ingest data/test --model models/nature",
)
@click.argument("train", metavar="TRAIN", type=click.Path(path_type=str))
@click.option("--output", required=True, metavar="DIR", help="Where the model goes; also the checkpoint.")
@click.option(
    "--model",
    metavar="MODEL",
    help=f"Model to start from.  [default: {DEFAULT_MODEL}]  With --from-scratch: imret-tiny, or an "
    "architecture of open_clip.  [default: imret-tiny]",
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
    "--epochs", type=click.IntRange(1), help="Passes over the pictures.  [default: 8; from scratch 16]"
)
@click.option(
    "--batch-size", type=click.IntRange(2), help="Pictures per step.  [default: 100; from scratch 64]"
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    help="Peak learning rate.  [default: 1e-5; from scratch 3e-3]",
)
@click.option(
    "--seed", type=click.IntRange(0), help="Same seed, same model, on the same kind of machine.  [default: 0]"
)
@device_option
@click.option(
    "--overwrite", is_flag=True, help="Begin anew where DIR holds the model or state of another run."
)
def command(
    train: str,
    output: str,
    model: str | None,
    from_scratch: bool,
    arch: str | None,
    captions: str | None,
    device: str,
    overwrite: bool,
    **changes: Any,
) -> None:
    """Adapt a model to the pictures in TRAIN, one sub-folder per category.

    Writes a model folder for `imret ingest --model DIR`, which stock open_clip also loads. A tenth of the
    pictures is kept aside to measure what was gained. Interrupted, run the same command again to go on.
    """
    from finetune.config import FinetuneConfig
    from finetune.run import Watch, finetune

    changes = {name: value for name, value in changes.items() if value is not None}
    with _Bar() as bar:
        training = finetune(
            train,
            output,
            model=model or ("imret-tiny" if from_scratch else DEFAULT_MODEL),
            from_scratch=from_scratch,
            arch=arch,
            config=FinetuneConfig.for_scratch(**changes) if from_scratch else FinetuneConfig(**changes),
            captions=captions,
            device=device,
            overwrite=overwrite,
            watch=Watch(say=bar.say, picture=bar.picture, step=bar.step),
        )
    skipped = len(training["data"]["skipped"])
    announce(f"Model in {output}" + (f"; {skipped:,} pictures skipped" if skipped else ""))
    announce(f"Next: imret ingest PICTURES --model {output}")


class _Bar:
    """A progress bar on stderr: first over pictures that are decoded, then over pictures trained on."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        announce(message)

    def picture(self, total: int) -> None:
        self._at("decode", total)
        self._bar.update()

    def step(self, step: Any, pictures: int) -> None:
        self._at("train", step.steps * pictures, done=(step.step - 1) * pictures)
        self._bar.set_postfix_str(
            f"loss {step.loss:.3f} (floor {step.floor:.3f}), lr {step.lr:.1e}", refresh=False
        )
        self._bar.update(pictures)

    def _at(self, stage: str, total: int, *, done: int = 0) -> None:
        """Begin a bar where a new stage begins."""
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
            disable=not sys.stderr.isatty(),
        )
