"""One step of training, over and over: the config, the trainer, and what it scores on validation.

Hides the optimizer, the schedule, precision, and how pictures and captions become a loss. A step is a
function of weights, optimizer state, seed and its number, so that a resumed run is the undisturbed one; on a
CPU, to the bit. What happens around the steps is in `finetune.run`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.captions import evaluation_queries
from finetune.data import Batch, Batches, Pictures, augment, normalised
from finetune.loss import contrastive_loss, loss_floor
from finetune.models import Base
from imret.encoder import encode_tokens
from imret.errors import ModelError
from imret.metrics import average_precision

# CLIP's ceiling of the logit scale: Radford et al. (2021), section 2.5, https://arxiv.org/abs/2103.00020
_MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class FinetuneConfig:
    """How to train. The defaults are for a pretrained model; `for_scratch` has those for an untrained one."""

    # Passes over the training pictures; small categories are drawn more often than once in each.
    epochs: int = 8
    # Pictures per step. With ten categories there are ten texts to tell apart however large it is.
    batch_size: int = 100
    # Peak learning rate. 1e-5 keeps a pretrained model in the basin it came from.
    lr: float = 1e-5
    # Decoupled weight decay of matrices and kernels; vectors, scalars and the logit scale have none.
    weight_decay: float = 0.1
    # AdamW's decay of the mean and of the square of the gradient; 0.98 suits runs of a few hundred steps.
    betas: tuple[float, float] = (0.9, 0.98)
    # Share of all steps in which the learning rate rises from 0; it then falls to 0 along a cosine.
    warmup: float = 0.1
    # Longest gradient, in L2 norm over all parameters.
    clip_norm: float = 1.0
    # Share of text sets that pair pictures with their category's name where they also have captions.
    category_share: float = 0.3
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
    # Seconds between checkpoints, at least; 0 makes one after every step.
    checkpoint_s: float = 60.0
    # Most memory for decoded pictures, in MiB; what does not fit is decoded anew for every batch.
    cache_mib: int = 4096

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "clip_norm", "captions_per_picture"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup", "category_share", "min_crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must lie in [0, 1), not {self.validation_share}")

    @classmethod
    def for_scratch(cls, **changes: Any) -> FinetuneConfig:
        """Return the defaults for an untrained model, with changes."""
        return cls(**{**_FOR_SCRATCH, **changes})

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result, in JSON's types; a resumed run may differ in the rest."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("checkpoint_s", "cache_mib")}
        identity: dict[str, Any] = json.loads(json.dumps(fields))
        return identity


_FOR_SCRATCH: dict[str, Any] = {
    "epochs": 16,
    "batch_size": 64,
    "lr": 3e-3,
    "min_crop": 0.8,
    "category_share": 0.1,
    "captions_per_picture": 3,
    "learn_logit_scale": True,
    "freeze_batch_norm": False,
}


@dataclass(frozen=True)
class Step:
    """What one step did; a line of metrics.jsonl.

    Attributes:
        step: Counted from 1.
        steps: In the whole run.
        epoch: How far, in passes over the training pictures.
        loss: On the step's batch.
        floor: The least that the loss could have been on it.
        lr: Learning rate.
        grad_norm: Before clipping.
        logit_scale: Inverse temperature.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    floor: float
    lr: float
    grad_norm: float
    logit_scale: float


class Trainer:
    """A model on its way from base to tuned.

    Args:
        base: What to start from.
        train: Pictures to train on, kept at `training_size`.
        validation: Pictures to score on, kept at the model's own size; may be none.
        config: How to train.
        device: Where.

    Raises:
        ModelError: If the model cannot be built or loaded.
    """

    def __init__(
        self,
        base: Base,
        train: Pictures,
        validation: Pictures,
        *,
        config: FinetuneConfig,
        device: torch.device,
    ) -> None:
        self.base, self.config, self.device = base, config, device
        self._train, self._validation = train, validation
        self.model = base.build(device, seed=config.seed)
        if device.type in ("cpu", "cuda"):
            # Saves a third of the time of convolutions on a CPU; transformers do not care.
            self.model.to(memory_format=torch.channels_last)
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.precision = "bf16" if bf16 else "fp32"
        self._tokenize = base.make_tokenizer()
        self._batches = Batches(
            train.records,
            batch_size=config.batch_size,
            seed=config.seed,
            category_share=config.category_share,
            captions_per_picture=config.captions_per_picture,
        )
        self.batch_size = self._batches.batch_size
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.steps = config.epochs * self.steps_per_epoch
        self._logit_scale: nn.Parameter = self.model.logit_scale  # type: ignore[assignment]
        self._logit_scale.requires_grad_(config.learn_logit_scale)
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self.model, weight_decay=config.weight_decay),
            lr=config.lr,
            betas=config.betas,
            eps=1e-6,
            fused=device.type in ("cpu", "cuda", "mps"),
        )

    # ---- Steps -------------------------------------------------------------------------------------------

    def prepare(self, number: int) -> tuple[Batch, Tensor]:
        """Return the batch of a step and its (B, H, W, 3) uint8 pixels; may be called ahead, in a thread."""
        batch = self._batches.draw(number)
        return batch, self._train.batch(batch.positions.tolist())

    def step(self, number: int, batch: Batch, pixels: Tensor) -> Step:
        """Train on one batch.

        Args:
            number: Counted from 0; decides learning rate and crops.
            batch: From `prepare`.
            pixels: From `prepare`.

        Raises:
            ModelError: If the loss or its gradient is not finite, or memory runs out; the message says what
                to try. The parameters are as before the step.
        """
        config = self.config
        torch.manual_seed(config.seed + number)  # for dropout, where a model has it
        self._to_train_mode()
        lr = learning_rate(number, self.steps, peak=config.lr, warmup=config.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        try:
            loss, floor = self._loss(number, batch, pixels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        except torch.OutOfMemoryError as error:
            raise ModelError(_out_of_memory(self.device, self.batch_size, number)) from error
        if not (math.isfinite(loss.item()) and math.isfinite(grad_norm.item())):
            raise ModelError(
                f"the {'gradient' if math.isfinite(loss.item()) else 'loss'} is not a finite number in step "
                f"{number + 1} of {self.steps}: training diverged at a learning rate of {lr:.1e}. "
                f"Begin anew with a lower one: --lr {config.lr / 3:.0e} --overwrite"
            )
        self._optimizer.step()
        with torch.no_grad():
            self._logit_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
        return Step(
            step=number + 1,
            steps=self.steps,
            epoch=(number + 1) / self.steps_per_epoch,
            loss=loss.item(),
            floor=floor.item(),
            lr=lr,
            grad_norm=grad_norm.item(),
            logit_scale=self._logit_scale.exp().item(),
        )

    def _loss(self, number: int, batch: Batch, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and its floor."""
        images = augment(
            pixels.to(self.device),
            size=self.base.preprocess.size,
            seed=self.config.seed,
            step=number,
            min_scale=self.config.min_crop,
            flip=self.config.flip,
        )
        image_features = self._encode_images(images)
        text_features = self._encode_texts([text for one in batch.text_sets for text in one.captions])
        losses, floors, start = [], [], 0
        for one in batch.text_sets:
            match, counts = one.match.to(self.device), one.counts.to(self.device)
            losses.append(
                contrastive_loss(
                    image_features,
                    text_features[start : start + len(one.captions)],
                    match=match,
                    counts=counts,
                    logit_scale=self._logit_scale.exp(),
                )
            )
            floors.append(loss_floor(match, counts))
            start += len(one.captions)
        return torch.stack(losses).mean(), torch.stack(floors).mean()

    def _to_train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _encode_images(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 unit features of (B, 3, H, W) images in [0, 1]."""
        images = normalised(images, self.base.preprocess).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            features: Tensor = self.model.encode_image(images)  # type: ignore[operator]
        return F.normalize(features.float(), dim=-1)

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return (U, D) float32 unit features."""
        tokens = self._tokenize(list(texts)).to(self.device)
        with self._autocast():
            features = encode_tokens(self.model, tokens)
        return F.normalize(features.float(), dim=-1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    # ---- Validation --------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self) -> dict[str, Any] | None:
        """Return text-to-image average precision on validation: of each category, and their mean.

        Each category is asked for in words, and all validation pictures are ranked, exactly. None if there
        is no validation.
        """
        records = self._validation.records
        if not records:
            return None
        self.model.eval()
        categories = sorted({record.category for record in records})
        queries = [self._encode_texts(evaluation_queries(category)).mean(dim=0) for category in categories]
        texts = F.normalize(torch.stack(queries), dim=-1)  # (Q, D)
        features = []
        for start in range(0, len(records), self.batch_size):
            pixels = self._validation.batch(range(start, min(start + self.batch_size, len(records))))
            features.append(self._encode_images(pixels.to(self.device).permute(0, 3, 1, 2).float() / 255))
        similarity: NDArray[np.float32] = (texts @ torch.cat(features).T).cpu().numpy()  # (Q, N)
        relevant = np.array([[record.category == category for record in records] for category in categories])
        ap = average_precision(similarity, relevant)
        by_category = {
            category: round(float(value), 4) for category, value in zip(categories, ap, strict=True)
        }
        return {"text_to_image_map": round(float(ap.mean()), 4), "average_precision": by_category}

    # ---- State -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step depends on besides config, pictures and its number."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a trainer of the same base, pictures and config."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not (gains, biases, scalars)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Return the learning rate of a step: up along a line, then down to 0 along half a cosine.

    Args:
        step: Counted from 0, below `steps`.
        steps: In the whole run.
        peak: Where line and cosine meet.
        warmup: Share of the steps on the line, in [0, 1].
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def training_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (H, W) to keep training pictures at: an eighth above the model's, so crops stay sharp."""
    return math.ceil(size[0] * 1.125), math.ceil(size[1] * 1.125)


def _out_of_memory(device: torch.device, batch_size: int, step: int) -> str:
    if batch_size > 2:
        advice = f"Try half as many at once: --batch-size {batch_size // 2} --overwrite"
    else:
        advice = "Start from a smaller model, or use another --device"
    return f"{device} ran out of memory in step {step + 1}, with {batch_size} pictures at once. {advice}"
