"""The steps of training.

Hides the optimizer, the schedule, precision, processes and memory, and how pictures and captions become a
loss. A step is a function of weights, optimizer state, seed and its number, so that a resumed run gives the
same weights as an undisturbed one; on a CPU, to the bit. What happens around the steps is in `finetune.run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.anchors import freeze_base
from finetune.callbacks import Step
from finetune.config import FinetuneConfig
from finetune.data.augment import augment
from finetune.data.batches import Batch, Batches, TextSet
from finetune.data.pixels import ImageSet
from finetune.data.replay import Replay
from finetune.data.species import TEXT_KINDS
from finetune.distributed import World
from finetune.grad_cache import CachedFeatures
from finetune.loss import contrastive_loss, feature_anchor, loss_floor, phrase_divergence, sigmoid_loss
from finetune.memory import peak_memory_mib
from finetune.model.base_model import Base
from finetune.model.compile import compile_towers
from finetune.model.ema import EMA
from finetune.model.features import FeatureEncoder
from finetune.model.lora import add_lora, merge_lora
from finetune.model.param_groups import choose_trainable, parameter_groups
from finetune.model.token_mask import name_tokens, train_names_only
from imret.errors import ModelError
from imret.retrieval.prompts import common_names

# CLIP's ceiling of the logit scale: Radford et al. (2021), section 2.5, https://arxiv.org/abs/2103.00020
_MAX_LOGIT_SCALE = 100.0
# Phrases that each step encodes to anchor the text tower.
_ANCHORED_PHRASES = 32
# Number of a random stream; finetune.data.batches and finetune.data.replay have the others.
_PHRASES = 200


@dataclass(frozen=True)
class Prepared:
    """The inputs of a step, decoded.

    Attributes:
        batch: Positions and texts.
        pixels: (B, H, W, 3) uint8.
        replayed: (R, H, W, 3) uint8, or None without replay.
        replayed_texts: Their captions.
    """

    batch: Batch
    pixels: Tensor
    replayed: Tensor | None = None
    replayed_texts: TextSet | None = None


class Trainer:
    """A model in training, with its optimizer and its batches.

    Args:
        base: What to start from.
        images: Pictures to train on, decoded at `training_size`.
        config: How to train.
        device: Where.
        replay: Captioned pictures to show again, decoded at `training_size`.
        phrases: For the anchors of texts and of phrases.
        world: The processes that train together.
        names: What categories are called, where it is not what imret.retrieval.prompts says.
        species_kinds: Kinds of text that name species; see finetune.data.species.

    Attributes:
        model: The model, on the device.
        encoder: Gives its features.
        trains_images: Whether any weight of the image tower is trained.

    Raises:
        ModelError: If the model cannot be built or loaded, or cannot be trained in the way that is asked.
    """

    def __init__(
        self,
        base: Base,
        images: ImageSet,
        *,
        config: FinetuneConfig,
        device: torch.device,
        replay: ImageSet | None = None,
        phrases: Sequence[str] = (),
        world: World | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        species_kinds: Sequence[str] = TEXT_KINDS,
    ) -> None:
        self.base, self.config, self.device = base, config, device
        self.world = world or World()
        self._images = images
        self.model = base.build(device, seed=config.seed)
        self.encoder = FeatureEncoder(base, self.model, device)
        self.model.to(memory_format=self.encoder.layout)
        self._batches = Batches(
            images.records,
            batch_size=config.batch_size,
            seed=config.seed,
            category_share=config.category_share,
            captions_per_picture=config.captions_per_picture,
            species_share=config.species_share,
            species_kinds=species_kinds,
            names=names,
        )
        self.batch_size = self._batches.batch_size
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.steps = max(config.epochs * self.steps_per_epoch, config.least_steps)
        self._replay = None
        if replay is not None and replay.records and (config.replay or config.anchor_replay):
            self._replay = Replay(replay, batch_size=config.replay_batch, seed=config.seed)

        self._logit_scale: nn.Parameter = self.model.logit_scale  # type: ignore[assignment]
        self._logit_bias: nn.Parameter | None = getattr(self.model, "logit_bias", None)
        self._logit_scale_range = _range_around(self._logit_scale.item())
        self._freeze_what_is_not_trained(names)
        self._refuse_batch_norm_in_parts()
        self._anchors = freeze_base(
            base,
            self.model,
            self.encoder,
            config,
            phrases,
            device=device,
            trains_images=self.trains_images,
        )
        if config.checkpointing:
            self.model.set_grad_checkpointing()  # type: ignore[operator]
        if config.compile:
            for model in filter(None, (self.model, self._anchors.frozen)):
                compile_towers(model)
        self._optimizer = _make_optimizer(self.model, config, device)
        self._parameters: list[nn.Parameter] = [
            parameter for group in self._optimizer.param_groups for parameter in group["params"]
        ]
        self._ema = EMA(self._parameters, config.ema) if config.ema else None

    @property
    def loss_kind(self) -> str:
        """What the model is trained with: a "sigmoid" if it judges each pair on its own, or a "softmax"."""
        return "softmax" if self._logit_bias is None else "sigmoid"

    def _freeze_what_is_not_trained(self, names: Mapping[str, Sequence[str]] | None) -> None:
        config = self.config
        if config.tune == "lora":
            towers = ("image",) if config.names_only else ("image", "text")
            add_lora(
                self.model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed, towers=towers
            )
        else:
            choose_trainable(self.model, config.tune, image_layers=config.image_layers)
        if config.names_only:
            called = [name for category in self._batches.categories for name in common_names(category, names)]
            taxa = {record.taxon for record in self._images.records if record.taxon is not None}
            train_names_only(self.model, name_tokens(self.encoder.tokenize, called, taxa))
        for scalar in self._scalars():
            scalar.requires_grad_(config.learn_logit_scale)
        self.trains_images = any(
            p.requires_grad for name, p in self.model.named_parameters() if name.startswith("visual.")
        )

    def _refuse_batch_norm_in_parts(self) -> None:
        config = self.config
        in_parts = self.world.size > 1 or 0 < config.micro_batch < self.batch_size
        if in_parts and self.trains_images and not config.freeze_batch_norm:
            names = [
                n for n, m in self.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ]
            if names:
                raise ModelError(
                    f"{self.base.model_id!r} learns batch norm ({names[0]!r} and {len(names) - 1} more), "
                    "whose statistics are those of a whole batch: it cannot be trained in parts or by "
                    "several processes. Leave out --micro-batch and torchrun, or start from a trained model."
                )

    # ---- Steps -------------------------------------------------------------------------------------------

    def prepare(self, number: int) -> Prepared:
        """Return the inputs of a step; may be called ahead, in a thread."""
        batch = self._batches.draw(number)
        pixels = self._images.batch(batch.positions.tolist())
        if self._replay is None:
            return Prepared(batch, pixels)
        positions, texts = self._replay.draw(number)
        return Prepared(batch, pixels, self._replay.pixels(positions), texts)

    def step(self, number: int, prepared: Prepared) -> Step:
        """Train on one batch.

        Args:
            number: Counted from 0; decides learning rate, crops and phrases.
            prepared: From `prepare`.

        Raises:
            ModelError: If the loss or its gradient is not finite, or memory runs out; the message says what
                to try. The parameters are as before the step.
        """
        config = self.config
        self._to_train_mode()
        lr = learning_rate(number, self.steps, peak=config.lr, warmup=config.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        try:
            self._optimizer.zero_grad(set_to_none=True)
            loss, floor, parts = self._backward(number, prepared)
            self.world.sum_gradients(self._parameters)
            grad_norm = nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
        except torch.OutOfMemoryError as error:
            raise ModelError(self._out_of_memory(number)) from error
        if not (math.isfinite(loss) and math.isfinite(grad_norm.item())):
            raise ModelError(
                f"the {'gradient' if math.isfinite(loss) else 'loss'} is not a finite number in step "
                f"{number + 1} of {self.steps}: training diverged at a learning rate of {lr:.1e}. "
                f"Begin anew with a lower one: --lr {config.lr / 3:.0e} --overwrite"
            )
        self._optimizer.step()
        if self._logit_scale.requires_grad:
            with torch.no_grad():
                self._logit_scale.clamp_(*self._logit_scale_range)
        if self._ema is not None:
            self._ema.update()
        return Step(
            step=number + 1,
            steps=self.steps,
            epoch=(number + 1) / self.steps_per_epoch,
            loss=loss,
            floor=floor,
            lr=lr,
            grad_norm=grad_norm.item(),
            logit_scale=self._logit_scale.exp().item(),
            parts=parts,
            memory_mib=peak_memory_mib(self.device),
        )

    def _backward(self, number: int, prepared: Prepared) -> tuple[float, float, dict[str, float]]:
        """Compute the gradients of the parameters; return loss, floor, and the other parts of the objective.

        The features of all processes are gathered, the objective is computed on them as leaves, and each
        process sends the gradient of its own features back through its towers.
        """
        images = self._augmented(number, prepared)  # batch, then replay
        n_own = len(prepared.pixels)
        sets = [*prepared.batch.text_sets]
        if prepared.replayed_texts is not None and self.config.replay:
            sets.append(prepared.replayed_texts)
        texts = [text for text_set in sets for text in text_set.captions]
        phrases = self._drawn_phrases(number)
        texts += [self._anchors.phrases[i] for i in phrases]

        image_shard, text_shard = self.world.shard(len(images)), self.world.shard(len(texts))
        image_side, frozen = self._image_side(number, images, n_own)
        tokens = (
            self.encoder.tokenize(texts[text_shard])
            if texts[text_shard]
            else torch.zeros(0, 1, dtype=torch.long)
        )
        text_side = self._features(number, self.encoder.token_features, tokens.to(self.device), trained=True)
        u = self.world.gather(image_side.values, len(images)).requires_grad_()
        v = self.world.gather(text_side.values, len(texts)).requires_grad_()

        total, loss, floor, parts = self._objective(sets, u, v, frozen, n_own, phrases)
        learnt = [scalar for scalar in self._scalars() if scalar.requires_grad]
        gradients = torch.autograd.grad(total, [u, v, *learnt], allow_unused=True)
        if self.world.rank == 0:  # the same in all, and added up
            for scalar, gradient in zip(learnt, gradients[2:], strict=True):
                scalar.grad = gradient
        for side, gradient, shard in (
            (image_side, gradients[0], image_shard),
            (text_side, gradients[1], text_shard),
        ):
            if gradient is not None:
                side.backward(gradient[shard])
        return loss, floor, parts

    def _image_side(self, number: int, images: Tensor, n_own: int) -> tuple[CachedFeatures, Tensor | None]:
        """Return the features of this process's shard of B + R pictures, and the base's features of all.

        The base's are (B, D), of the batch's own, which come first, or (B + R, D); None without an anchor.
        """
        n, encoder, anchors = len(images), self.encoder, self._anchors
        shard = images[self.world.shard(n)]
        if anchors.stages is None:
            side = self._features(number, encoder.image_features, shard, trained=self.trains_images)
            if anchors.frozen is None:
                return side, None
            anchored = n if self.config.anchor_replay else n_own
            frozen = self._frozen_features(anchors.frozen, images[self.world.shard(anchored)])
            return side, self.world.gather(frozen, anchored)
        trunk, top, base_top = anchors.stages
        with torch.no_grad():
            chunks = torch.split(shard, self.config.micro_batch or max(1, n))
            hidden = torch.cat([encoder.in_precision(trunk, encoder.normalised(chunk)) for chunk in chunks])
            frozen = self.world.gather(encoder.unit(base_top, hidden), n)
        return self._features(number, lambda chunk: encoder.unit(top, chunk), hidden, trained=True), frozen

    @torch.no_grad()
    def _frozen_features(self, frozen: nn.Module, images: Tensor) -> Tensor:
        dtype = next(frozen.parameters()).dtype
        inputs = self.encoder.normalised(images).to(dtype)
        chunks = torch.split(inputs, self.config.micro_batch or max(1, len(images)))
        encode: Callable[[Tensor], Tensor] = frozen.encode_image  # type: ignore[assignment]
        return torch.cat([self.encoder.unit(encode, chunk) for chunk in chunks])

    def _objective(
        self,
        sets: Sequence[TextSet],
        u: Tensor,
        v: Tensor,
        frozen: Tensor | None,
        n_own: int,
        phrases: Sequence[int],
    ) -> tuple[Tensor, float, float, dict[str, float]]:
        """Return the objective to minimise, and the loss, the floor and the other parts in it.

        Args:
            sets: Texts of the batch, and then of replay if it has a weight.
            u: (B + R, D) unit features of the pictures of the batch and of replay.
            v: (U, D) unit features of the texts of all sets, then of the phrases.
            frozen: (B, D) or (B + R, D) unit features of the same pictures from the base, or None.
            n_own: B.
            phrases: Numbers of the phrases in the last rows of v.
        """
        config, anchors = self.config, self._anchors
        losses, floors, start = [], [], 0
        parts: dict[str, tuple[float, Tensor]] = {}  # weight, value
        replayed = len(u) > n_own and config.replay > 0
        for number, text_set in enumerate(sets):
            is_replay = replayed and number == len(sets) - 1
            value, floor = self._contrast(
                u[n_own:] if is_replay else u[:n_own], v[start : start + len(text_set.captions)], text_set
            )
            start += len(text_set.captions)
            if is_replay:
                parts["replay"] = config.replay, value
            else:
                losses.append(value)
                floors.append(floor)
        if frozen is not None and config.anchor_images:
            parts["anchor_images"] = config.anchor_images, feature_anchor(u[:n_own], frozen[:n_own])
        if frozen is not None and config.anchor_replay and len(frozen) > n_own:
            parts["anchor_replay"] = config.anchor_replay, feature_anchor(u[n_own:], frozen[n_own:])
        if frozen is not None and config.anchor_phrases and anchors.phrase_features is not None:
            value = phrase_divergence(
                u[:n_own], frozen[:n_own], anchors.phrase_features, logit_scale=anchors.logit_scale
            )
            parts["anchor_phrases"] = config.anchor_phrases, value
        if len(phrases) and anchors.phrase_features is not None:
            of_base = anchors.phrase_features[torch.as_tensor(np.asarray(phrases), device=self.device)]
            parts["anchor_texts"] = config.anchor_texts, feature_anchor(v[start:], of_base)
        loss = torch.stack(losses).mean()
        total = loss
        for weight, value in parts.values():
            total = total + weight * value
        values = {name: value.item() for name, (_, value) in parts.items()}
        return total, loss.item(), torch.stack(floors).mean().item(), values

    def _contrast(self, images: Tensor, texts: Tensor, text_set: TextSet) -> tuple[Tensor, Tensor]:
        """Return the loss of pictures and texts by what the model was trained with, and its least value."""
        match, counts = text_set.match.to(self.device), text_set.counts.to(self.device)
        scale, bias = self._logit_scale.exp(), self._logit_bias
        if bias is None:
            loss = contrastive_loss(images, texts, match=match, counts=counts, logit_scale=scale)
            return loss, loss_floor(match, counts)
        loss = sigmoid_loss(images, texts, match=match, counts=counts, logit_scale=scale, logit_bias=bias)
        return loss, torch.zeros((), device=loss.device)

    def _scalars(self) -> list[nn.Parameter]:
        """Return the numbers that make logits of cosines: the scale and, if there is one, the bias."""
        return [scalar for scalar in (self._logit_scale, self._logit_bias) if scalar is not None]

    def _augmented(self, number: int, prepared: Prepared) -> Tensor:
        """Return (B + R, 3, h, w) crops in [0, 1] of a step's pictures."""
        config = self.config
        pixels = prepared.pixels
        if prepared.replayed is not None:
            pixels = torch.cat([pixels, prepared.replayed])
        return augment(
            pixels.to(self.device),
            size=self.base.preprocess.size,
            seed=config.seed,
            step=number,
            min_scale=config.min_crop,
            flip=config.flip,
        )

    def _drawn_phrases(self, number: int) -> list[int]:
        if not self.config.anchor_texts or self._anchors.phrase_features is None:
            return []
        n = len(self._anchors.phrases)
        rng = np.random.default_rng((self.config.seed, _PHRASES, number))
        return [int(i) for i in rng.choice(n, size=min(_ANCHORED_PHRASES, n), replace=False)]

    def _features(
        self, number: int, encode: Callable[[Tensor], Tensor], inputs: Tensor, *, trained: bool
    ) -> CachedFeatures:
        return CachedFeatures(
            encode,
            inputs,
            chunk_size=self.config.micro_batch,
            seed=(self.config.seed * 1_000_003 + number * 1_009 + self.world.rank) % (1 << 62),
            trained=trained and len(inputs) > 0,
        )

    def _to_train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    # ---- Weights -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End training: take over the averaged weights and fold adapters into the weights.

        Frees gradients and the optimizer's state, three times the size of the weights.
        """
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        if self._ema is not None:
            self._ema.copy_to_parameters()
            self._ema = None
        if self.config.tune == "lora":
            merge_lora(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a step depends on besides config, pictures and its number."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._ema.state_dict() if self._ema is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a trainer of the same base, pictures and config."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["average"])

    def _out_of_memory(self, number: int) -> str:
        config, at_once = self.config, self.config.micro_batch or self.batch_size
        if not config.checkpointing and self.trains_images:
            advice = "Compute activations twice instead of keeping them: --checkpointing --overwrite"
        elif at_once > 1 and config.freeze_batch_norm:
            advice = f"Train on the same batch in parts: --micro-batch {at_once // 2} --overwrite"
        elif self.batch_size > 2:
            advice = f"Try half as many at once: --batch-size {self.batch_size // 2} --overwrite"
        elif config.tune == "both":
            advice = "Train adapters only: --recipe lora --overwrite"
        else:
            advice = "Start from a smaller model, or use another --device"
        return (
            f"{self.device} ran out of memory in step {number + 1}, with {at_once} pictures at once. {advice}"
        )


def _range_around(logit_scale: float) -> tuple[float, float]:
    """Return between what a learnt logit scale is held: CLIP's bounds, and never short of where it began."""
    return min(0.0, logit_scale), max(math.log(_MAX_LOGIT_SCALE), logit_scale)


def _make_optimizer(model: nn.Module, config: FinetuneConfig, device: torch.device) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        image_decay=config.image_layer_decay,
        text_decay=config.text_layer_decay,
        text_factor=config.text_lr_factor,
    )
    fused = device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-6, fused=fused)


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
