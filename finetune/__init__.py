"""ADAPT: labelled pictures and a base model become a better encoder, as a model folder.

    from finetune import FinetuneConfig, check, finetune

    print(check("data/train", model="ViT-B-32/openai").text())
    finetune("data/train", "models/nature", model="ViT-B-32/openai", config=FinetuneConfig.of("light"))

Everything loads on first use: `import finetune` itself loads no torch.

    run.py                   finetune() and check(): find everything, run the stages
    stages.py                begin or resume, train, choose the blend, ship the model
    trainer.py               one step of training
    config.py                FinetuneConfig: every setting, its default and its reason; the recipes
    callbacks.py             what a run reports, and to whom
    loss.py                  the label-aware losses, the floor of one, and the anchors' losses
    anchors.py               the base's features that a model is anchored to
    grad_cache.py            a batch that does not fit in memory, in chunks
    distributed.py           several processes that train one model
    validation.py            retrieval on held-out pictures, and how much of the base is left
    weight_blending.py       which blend of base and tuned weights is shipped: the rule, and the sweep
    concepts.py              the last stage: concepts of the categories, in the model folder
    choice.py                which of base, names and light is shipped where no recipe is named
    checkpoint.py            which output a run may write to, its state, and the model folder
    memory.py                peak memory, and memory kept between steps
    cli.py                   `imret finetune`
    data/records.py          a folder to records; the split of training and validation
    data/manifest.py         a CSV or Parquet file to records
    data/sources.py          pictures and texts of a run, found and checked before torch is imported
    data/species.py          species, and the texts that name them
    data/captions.py         category names to training captions
    data/duplicates.py       duplicates, conflicting labels, leaks from test pictures
    data/token_lengths.py    texts against the context of the text tower
    data/prepare.py          all of the above put together: image sets, and a report
    data/report.py           that report, as a table and as JSON
    data/pixels.py           decoded pictures, in memory where they fit
    data/augment.py          random crops and flips
    data/batches.py          class-balanced batches of positions and texts
    data/replay.py           captioned pictures of other things, shown again
    model/base_model.py      what training starts from: a pretrained model, or an architecture
    model/features.py        features of pictures and texts from a model in training
    model/text_files.py      the tokenizer of a tuned model, and what else its texts need
    model/param_groups.py    which parameters are trained, and how fast
    model/token_mask.py      training only the words that name categories
    model/frozen_trunk.py    an image tower split below its topmost layer
    model/lora.py            low-rank adapters
    model/ema.py             a moving average of the weights
    model/compile.py         towers compiled block by block
    reporting/plots.py       training.png: the course of a run as one picture
    reporting/tensorboard.py scalars for TensorBoard
    architectures/           imret-tiny, for runs from scratch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.callbacks import Callbacks
    from finetune.config import FinetuneConfig
    from finetune.run import check, finetune

__all__ = ["Callbacks", "FinetuneConfig", "check", "finetune"]

_HOME = {
    "Callbacks": "finetune.callbacks",
    "FinetuneConfig": "finetune.config",
    "check": "finetune.run",
    "finetune": "finetune.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
