"""Unit features of pictures and texts from a model in training, whatever the device and its precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.augment import normalised
from finetune.model.base_model import Base
from imret.models.clip import encode_tokens


class FeatureEncoder:
    """The two towers of a model as functions into one space.

    Args:
        base: Says how pixels are normalised and texts are tokenized.
        model: One of open_clip's two-tower models, on the device.
        device: Where.

    Attributes:
        precision: "bf16" where the device computes in it, else "fp32".
        layout: Memory layout that the image tower takes pictures in; its weights should have it, too.
    """

    def __init__(self, base: Base, model: nn.Module, device: torch.device) -> None:
        self._base, self._model, self._device = base, model, device
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.precision = "bf16" if bf16 else "fp32"
        self.layout = best_layout(model, device)
        self.tokenize = base.tokenize

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 unit features of (B, 3, H, W) images in [0, 1], for a score."""
        self._model.eval()
        return self.image_features(images.to(self._device))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return (U, D) float32 unit features, for a score."""
        self._model.eval()
        return self.token_features(self.tokenize(list(texts)).to(self._device))

    def image_features(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 unit features of (B, 3, H, W) images in [0, 1], for a step."""
        return self.unit(self._model.encode_image, self.normalised(images))  # type: ignore[arg-type]

    def token_features(self, tokens: Tensor) -> Tensor:
        """Return (U, D) float32 unit features of (U, L) token ids, for a step."""
        return self.unit(lambda chunk: encode_tokens(self._model, chunk), tokens)

    def unit(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Return (N, D) float32 unit features of N inputs; N may be 0, which not every tower takes."""
        if not len(inputs):
            return torch.zeros(0, int(self._base.model_cfg["embed_dim"]), device=self._device)
        return F.normalize(self.in_precision(encode, inputs).float(), dim=-1)

    def in_precision(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Return what `encode` gives for N inputs under autocast; for N = 0 the inputs themselves."""
        if not len(inputs):
            return inputs
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return encode(inputs)

    def normalised(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) images of [0, 1] as the image tower takes them."""
        return normalised(images, self._base.preprocess).contiguous(memory_format=self.layout)


def best_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory layout to train an image tower in.

    Channels last saves a third of the time of convolutions on a CPU, and transformers do not care. But in it
    the backward pass of a strided 1 x 1 convolution, as MobileCLIP has them, writes past oneDNN's buffers
    (torch 2.15, November 2026): the process dies, or gradients are wrong.
    """
    if device.type == "cpu" and any(
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and max(module.stride) > 1
        for module in model.modules()
    ):
        return torch.contiguous_format
    return torch.channels_last if device.type in ("cpu", "cuda") else torch.contiguous_format
