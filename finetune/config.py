"""How to train: every setting, its default and its reason, in one place."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

TUNE = ("both", "text", "lora")


@dataclass(frozen=True)
class FinetuneConfig:
    """How to train. The defaults here are those of plain tuning; `of` has the recipes that imret offers."""

    # Passes over the training pictures; small categories are drawn more often than once in each.
    epochs: int = 8
    # Steps that a run takes at least, in more passes where the pictures are few.
    least_steps: int = 0
    # Pictures per step. With ten categories there are ten texts to tell apart however large it is.
    batch_size: int = 100
    # What is trained: both towers; the text tower alone, after which pictures that are in a collection need
    # no new embeddings; or low-rank adapters in both towers, folded into the weights at the end.
    tune: str = "both"
    # Whether of the text tower only the words learn that name categories and species. A text without such a
    # word then keeps its embedding to the bit.
    names_only: bool = False
    # How many of the image tower's topmost layers are trained; 0 for all. Those below need no gradient.
    image_layers: int = 0
    # Rank of the adapters, and their scale alpha / rank.
    lora_rank: int = 16
    lora_alpha: float = 16.0
    # Peak learning rate. 1e-5 keeps a pretrained model in the basin it came from.
    lr: float = 1e-5
    # How much faster the text tower learns. A tower that never met the names of the categories needs it.
    text_lr_factor: float = 1.0
    # Learning rate of a layer relative to the one above: what lies near the pixels and the words is general.
    image_layer_decay: float = 1.0
    text_layer_decay: float = 1.0
    # Decoupled weight decay of matrices and kernels; vectors, scalars and the logit scale have none.
    weight_decay: float = 0.1
    # AdamW's decay of the mean and of the square of the gradient; 0.98 suits runs of a few hundred steps.
    betas: tuple[float, float] = (0.9, 0.98)
    # Share of all steps in which the learning rate rises from 0; it then falls to 0 along a cosine.
    warmup: float = 0.1
    # Decay of the running average of the weights, which is what is kept; 0 keeps the last step's.
    ema: float = 0.0
    # Weight of 1 - cosine between the features of each picture and those that the base gives it.
    anchor_images: float = 0.0
    # The same for the pictures that are replayed.
    anchor_replay: float = 0.0
    # Weight of 1 - cosine between the features of 32 phrases a step and those that the base gives them.
    anchor_texts: float = 0.0
    # Weight of the divergence between what base and model make of a picture among 500 phrases.
    anchor_phrases: float = 0.0
    # Weight of the contrastive loss of the captioned pictures that are replayed, and pictures a step.
    replay: float = 1.0
    replay_batch: int = 32
    # Whether base and tuned weights are blended, and the blend chosen on validation.
    blend: bool = True
    # Most that may be lost for a blend to be chosen: of the hit rate of captioned pictures, where some are at
    # hand, and of the agreement with the base about the held-out pictures, always. Those are of the
    # categories, which are meant to change: over all recipes, an agreement 0.2 lower went along with one
    # point of hit rate on other pictures; see benchmarks/results.
    hit_rate_budget: float = 0.01
    agreement_budget: float = 0.2
    # Whether concepts of the categories are learnt from the pictures in the end, and kept in the model
    # folder. They change no weight. What other recipes are compared with does without, and so does an
    # untrained model, whose text tower learns the names of these very pictures.
    concepts: bool = False
    # Longest gradient, in L2 norm over all parameters.
    clip_norm: float = 1.0
    # Share of text sets that pair pictures with their category's name where they also have captions.
    category_share: float = 0.3
    # Share of text sets that pair pictures with their species, where some have one.
    species_share: float = 0.5
    # Captions of each picture per step, as far as it has them; each more costs its share of the text tower.
    captions_per_picture: int = 1
    # Least share of a picture's area in a random crop; 1 for none.
    min_crop: float = 0.6
    # Whether half of the pictures are mirrored; off where left and right differ, as in writing.
    flip: bool = True
    # Share of the pictures of each category that is kept for validation.
    validation_share: float = 0.1
    # Whether the logit scale is learned, up to 100. A pretrained one is right, and easy data drive it up.
    learn_logit_scale: bool = False
    # Whether batch norm keeps the statistics of pretraining, which a few small batches would spoil.
    freeze_batch_norm: bool = True
    # Decides order, crops, captions and validation, and the weights that a run from scratch begins with.
    seed: int = 0
    # Most pictures, and most texts, on the device at once; 0 for all. What does not fit goes through twice.
    micro_batch: int = 0
    # Whether activations are computed again on the way back instead of kept: a third slower, far smaller.
    checkpointing: bool = False
    # Whether the towers are compiled, block by block; pays off on a GPU in a run of some minutes.
    compile: bool = False
    # Seconds between checkpoints, at least; 0 makes one after every step.
    checkpoint_s: float = 60.0
    # Most memory for decoded pictures to train on, in MiB; half as much again for those that are replayed,
    # and a quarter for those that are scored. What does not fit is decoded anew for every batch.
    cache_mib: int = 4096

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "lr", "text_lr_factor", "clip_norm", "captions_per_picture")
        for name in (*positive, "lora_rank", "lora_alpha", "replay_batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.tune not in TUNE:
            raise ValueError(f"tune must be one of {', '.join(TUNE)}, not {self.tune!r}")
        for name in (
            "least_steps",
            "anchor_images",
            "anchor_replay",
            "anchor_texts",
            "anchor_phrases",
            "replay",
            "micro_batch",
            "image_layers",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("image_layer_decay", "text_layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], not {getattr(self, name)}")
        shares = ("warmup", "category_share", "species_share", "min_crop", "ema")
        for name in (*shares, "hit_rate_budget", "agreement_budget"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must lie in [0, 1), not {self.validation_share}")
        if self.image_layers and self.tune != "both":
            raise ValueError(
                f"image_layers {self.image_layers} says how much of the image tower is trained where tune is "
                f"both, not {self.tune}: set it to 0"
            )
        if self.compile and self.tune == "lora":
            raise ValueError(
                "compile does not go with tune lora: adapters make each layer one of a kind, and the "
                "compiler gives up after some of them"
            )

    @classmethod
    def of(cls, recipe: str, **changes: Any) -> FinetuneConfig:
        """Return one of RECIPES, with changes.

        Raises:
            ValueError: If there is no such recipe, or a change is out of range.
        """
        if recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, not {recipe!r}")
        return cls(**{**RECIPES[recipe], **changes})

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result, in JSON's types; a resumed run may differ in the rest."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in _FREE}
        identity: dict[str, Any] = json.loads(json.dumps(fields))
        return identity


# What does not change the result. Parts of a batch and recomputed activations change its last bits.
_FREE = ("checkpoint_s", "cache_mib")

# Only the words that name categories learn: no other text changes, and nothing can be forgotten in words.
_NAMES: dict[str, Any] = {
    "names_only": True,
    "lr": 1e-3,
    "text_lr_factor": 10.0,
    "batch_size": 64,
    "least_steps": 160,
    "concepts": True,
}

RECIPES: dict[str, dict[str, Any]] = {
    # Names and the projection of the image tower: no gradient goes through the tower, which takes a third of
    # the time and little memory. The anchor holds pictures to what the base makes of them.
    "light": {**_NAMES, "image_layers": 1, "anchor_images": 1.0},
    # Names alone: a collection that the base made can be searched as it is.
    "names": {**_NAMES, "tune": "text"},
    # Adapters in both towers, at the rate that they need, and every anchor.
    "lora": {
        "tune": "lora",
        "lr": 2e-4,
        "anchor_images": 1.0,
        "anchor_phrases": 0.5,
        "anchor_texts": 0.5,
        "concepts": True,
    },
    # All weights of both towers, the lower ones slower, and every anchor.
    "full": {
        "lr": 1e-5,
        "image_layer_decay": 0.75,
        "text_layer_decay": 0.75,
        "anchor_images": 1.0,
        "anchor_phrases": 0.5,
        "anchor_texts": 0.5,
        "concepts": True,
    },
    # All weights, with nothing against forgetting: what the others are compared with.
    "plain": {},
    # An untrained model.
    "scratch": {
        "epochs": 16,
        "batch_size": 64,
        "lr": 3e-3,
        "min_crop": 0.8,
        "category_share": 0.1,
        "captions_per_picture": 3,
        "blend": False,
        "learn_logit_scale": True,
        "freeze_batch_norm": False,
    },
}
