"""Pictures and texts to unit vectors, with the towers loaded when they are first used.

An encoder is named before it is loaded: its dimension and fingerprint come from the files alone. It hides
device, precision, tokenizer and batching. Model names are resolved in `imret.models.resolve`, weights are
read in `imret.models.clip`, pictures are opened in `imret.images.decode`.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from imret.defaults import DEFAULT_MODEL
from imret.errors import ImageError, ModelError
from imret.images.decode import Source
from imret.images.preprocess import Preprocess
from imret.images.resize import load_pixels
from imret.models.checkpoint import Checkpoint
from imret.models.clip import encode_tokens, has_batch_norm, load_clip
from imret.models.device import compute_alone, computes_in_bf16, pick_device
from imret.models.download import advice_for
from imret.models.embedding import unit_mean
from imret.models.fast.fuse_batch_norm import fuse_batch_norms
from imret.models.fast.tokenizer import TextTruncated, shortened, warn_truncated
from imret.models.fast.vit import load_vision_transformer
from imret.models.fingerprint import ModelFiles, ModelInfo
from imret.models.resolve import resolve_model
from imret.models.tokenizer import count_tokens, load_tokenizer
from imret.settings import read_settings

__all__ = ["Encoder", "QueryEncoder", "TextTruncated", "encode_tokens", "load_clip", "pick_device"]

# Pictures at a time through convolutions on a CPU, per core. Measured with MobileNetV2 at 224 pixels: 2 to 4
# take the least time, 32 take twice as long.
_IN_CACHE = 4


class QueryEncoder(Protocol):
    """What a search, a classification and an ingest need of a model.

    `Encoder` is one; so is `imret.models.lazy_encoder.LazyEncoder`, and what batches queries in a server.
    """

    @property
    def files(self) -> ModelFiles:
        """The model's files."""

    @property
    def model_id(self) -> str:
        """See `ModelInfo`, and so for the next five."""

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def images_fingerprint(self) -> str: ...

    def embeds_as(self, fingerprint: str) -> bool: ...

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def device(self) -> torch.device:
        """See `Encoder`, and so for all that follow."""

    @property
    def precision(self) -> str: ...

    @property
    def calls_at_once(self) -> int: ...

    @property
    def logit_scale(self) -> float: ...

    @property
    def logit_bias(self) -> float | None: ...

    def encode_mean(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def encode_bank(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def encode_images(self, images: Iterable[Source], *, batch_size: int = 32) -> NDArray[np.float32]: ...

    def encode_pixels(self, pixels: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]: ...

    def load_image_tower(self) -> None: ...


class Encoder(ModelInfo):
    """One model, ready to encode.

    Constructing it resolves files, device and precision, and loads no weights; each tower is loaded by the
    first call that needs it. Calls from several threads are safe.

    Attributes:
        files: The model's files.
        device: Where the towers run.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelFiles = DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        arch: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Find the model; download it if this is its first use.

        Args:
            model: A name that `imret.models.resolve.resolve_model` takes, or its result.
            device: "auto" (cuda, else mps, else cpu) or a torch device.
            precision: "fp32", "bf16", or "auto": bf16 on CUDA devices and CPUs that compute in it, except
                for image towers with batch normalisation, which lose too much in it.
            arch: Architecture, for a checkpoint file only.
            notify: Called with a sentence before a download starts.

        Raises:
            ModelError: If the model cannot be found, or the device is not there.
            ValueError: If precision is none of the three.
        """
        if precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
        self.device = pick_device(device)
        self.files = (
            model
            if isinstance(model, ModelFiles)
            else resolve_model(
                model,
                arch=arch,
                notify=notify,
                advice=advice_for(device=device, precision=precision),
            )
        )
        self._precision = precision
        self._loading = threading.Lock()
        self._towers: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Encoder({self.model_id!r}, device={str(self.device)!r}, precision={self.precision!r})"

    @cached_property
    def precision(self) -> str:
        """The precision in use: "fp32" or "bf16"."""
        if self._precision != "auto":
            return self._precision
        return "bf16" if computes_in_bf16(self.device) and not self._has_batch_norm else "fp32"

    @cached_property
    def _has_batch_norm(self) -> bool:
        return has_batch_norm(self.files)

    @cached_property
    def logit_scale(self) -> float:
        """The factor the model was trained to put on a cosine before a softmax; 100 for most CLIPs.

        Raises:
            ModelError: If the weights cannot be read, hold none, or one that is not finite.
        """
        stored = self._stored_number("logit_scale")
        if stored is None:
            raise ModelError(f"The weights of '{self.model_id}' hold no 'logit_scale'.")
        if stored > 700:  # e^700 is near the end of what a float holds
            raise ModelError(
                f"The weights of '{self.model_id}' hold an impossible 'logit_scale': e^{stored}."
            )
        return math.exp(stored)

    @cached_property
    def logit_bias(self) -> float | None:
        """What the model was trained to add to the scaled cosine before a sigmoid; None if it has none.

        A model that has one was trained to judge each pair of picture and text on its own: Zhai et al.
        (2023), "Sigmoid Loss for Language Image Pre-Training", https://arxiv.org/abs/2303.15343

        Raises:
            ModelError: If the weights cannot be read, or hold one that is not finite.
        """
        stored = self._stored_number("logit_bias")
        if stored is None and self.files.model_cfg.get("init_logit_bias") is not None:
            return 0.0  # as open_clip fills it in
        return stored

    def _stored_number(self, name: str) -> float | None:
        tensor = Checkpoint(self.files.weights).tensors.get(name)
        if tensor is None:
            return None
        number = float(tensor.reshape(-1)[0])
        if not math.isfinite(number):
            raise ModelError(f"The weights of '{self.model_id}' are damaged: '{name}' is {number}.")
        return number

    def encode_images(
        self, images: Iterable[Source], *, batch_size: int = 32, max_pixels: int | None = None
    ) -> NDArray[np.float32]:
        """Encode pictures: paths, PIL images, or what else `load_image` takes. One batch is in memory.

        Args:
            images: The pictures.
            batch_size: How many go through the tower at once.
            max_pixels: A picture of more is refused; see `load_image`.

        Returns:
            (N, D) float32, each row of unit length, in the order given.

        Raises:
            ImageError: If a picture cannot be used; nothing is skipped silently.
            ModelError: If the model cannot be loaded or gives no direction for a picture.
        """
        if isinstance(images, (str, os.PathLike)):
            raise TypeError("encode_images takes a list of pictures; put the one path in a list")
        remaining = iter(images)
        rows: list[NDArray[np.float32]] = []
        while batch := list(islice(remaining, batch_size)):
            pixels = np.stack([self._pixels(image, max_pixels) for image in batch])
            rows.append(self.encode_pixels(pixels, batch_size=batch_size))
        return np.concatenate(rows) if rows else self._empty()

    def _pixels(self, image: Source, max_pixels: int | None) -> NDArray[np.uint8]:
        try:
            return load_pixels(image, self.preprocess, max_pixels=max_pixels)[0]
        except ImageError as error:
            if isinstance(image, (str, os.PathLike)):
                raise ImageError(f"Cannot encode '{os.fspath(image)}': {error}") from error
            raise

    def encode_pixels(self, pixels: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode pictures that already have the model's size; normalisation happens on the device.

        Args:
            pixels: (N, H, W, 3) uint8 RGB with (H, W) = `preprocess.size`.
            batch_size: How many go through the tower at once.

        Returns:
            (N, D) float32, each row of unit length.

        Raises:
            ValueError: If shape or dtype differ.
            ModelError: If the model cannot be loaded or gives no direction for a picture.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (*self.preprocess.size, 3):
            raise ValueError(
                f"expected uint8 pixels of shape (N, {', '.join(map(str, self.preprocess.size))}, 3), "
                f"got {pixels.dtype} {pixels.shape}"
            )
        if len(pixels) == 0:
            return self._empty()
        self._tower("image")  # once, before threads ask for it
        size = min(batch_size, _IN_CACHE) if self._small_steps else batch_size
        starts = range(0, len(pixels), size)
        steps = [pixels[start : start + size] for start in starts]
        spread = map if self._step_threads is None or len(steps) == 1 else self._step_threads.map
        return np.concatenate(list(spread(self._encode_step, starts, steps)))

    @torch.inference_mode()
    def _encode_step(self, start: int, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (B, D) unit rows for (B, H, W, 3) pixels, of which the first is number `start`."""
        tower = self._tower("image")
        shape = (1, 3, 1, 1)
        # Of bytes rather than of [0, 1]: (x / 255 - mean) / std == (x - 255 * mean) / (255 * std)
        mean = 255 * torch.tensor(self.preprocess.mean, device=self.device).view(shape)
        std = 255 * torch.tensor(self.preprocess.std, device=self.device).view(shape)
        batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        # (B, H, W, 3) uint8 -> (B, 3, H, W), still uint8 on its way to the device
        batch = batch.to(self.device).permute(0, 3, 1, 2)
        inputs = ((batch.float() - mean) / std).to(self._dtype)
        return self._unit_rows(tower.encode_image(inputs), "picture", start)

    def load_image_tower(self) -> None:
        """Load what encodes pictures, if that is still to be done: so that it is not counted as encoding.

        Raises:
            ModelError: If the model cannot be loaded.
        """
        self._tower("image")

    @property
    def calls_at_once(self) -> int:
        """How many calls of `encode_pixels` at a time keep the device busy."""
        # What one does on the CPU before and after its turn on a GPU, another's turn hides.
        return 2 if self._step_threads is not None or self.device.type == "cuda" else 1

    @cached_property
    def _small_steps(self) -> bool:
        # What a convolution writes is to be in the cache still when the next layer reads it. The layers of a
        # transformer read more weights than pictures.
        return self.device.type == "cpu" and not read_settings().plain_towers and self._has_batch_norm

    @cached_property
    def _step_threads(self) -> ThreadPoolExecutor | None:
        """A thread a core for steps too small to be shared among cores: they would wait for one another."""
        n = torch.get_num_threads()
        if n == 1 or not self._small_steps:
            return None
        return ThreadPoolExecutor(n, "imret-step", initializer=compute_alone)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
        """Encode texts.

        Returns:
            (N, D) float32, each row of unit length, in the order given.

        Warns:
            TextTruncated: If a text does not fit the model's context; the message shows it.

        Raises:
            ModelError: If the model or its tokenizer cannot be loaded, or gives no direction for a text.
        """
        if isinstance(texts, str):
            raise TypeError("encode_texts takes a list of texts; put the one text in a list")
        if not texts:
            return self._empty()
        tower = self._tower("text")
        rows = []
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenize(list(texts[start : start + batch_size])).to(self.device)
            rows.append(self._unit_rows(encode_tokens(tower, tokens), "text", start))
        return np.concatenate(rows)

    def encode_bank(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what `encode_texts` does; a `LazyEncoder` keeps it on disk."""
        return self.encode_texts(texts)

    def encode_mean(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode several wordings of one query as one: the mean of their embeddings, made unit again.

        Returns:
            (D,) float32 of unit length.

        Raises:
            ValueError: If there are no texts.
            ModelError: As `encode_texts`, or if the embeddings cancel out.
        """
        if not texts:
            raise ValueError("the mean of no texts has no direction")
        return self.unit_mean(self.encode_texts(texts), texts)

    def unit_mean(self, rows: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the mean of the (N, D) embeddings of texts, made unit again.

        Raises:
            ModelError: If they cancel out.
        """
        return unit_mean(rows, texts, self.model_id)

    def truncated(self, texts: Sequence[str]) -> list[str]:
        """Return which texts do not fit the model's context, and would be cut with a warning.

        Raises:
            ModelError: If the tokenizer cannot be loaded.
        """
        length, tokenizer = self._context_length, self._tokenizer
        return [text for text in texts if count_tokens(tokenizer, text, enough=length) > length]

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def _empty(self) -> NDArray[np.float32]:
        return np.zeros((0, self.dim), dtype=np.float32)

    def _tower(self, name: str) -> Any:
        with self._loading:
            if name not in self._towers:
                self._towers[name] = self._load(name)
            return self._towers[name]

    def _load(self, name: str) -> Any:
        if name == "image" and not read_settings().plain_towers:
            vision = load_vision_transformer(self.files, device=self.device, dtype=self._dtype)
            if vision is not None:
                return vision
        tower: Any = load_clip(self.files, towers=(name,), device=self.device, dtype=self._dtype)
        # In bfloat16 a fused scale is rounded together with the weights.
        if (
            name == "image"
            and self.precision == "fp32"
            and not read_settings().plain_towers
            and self._has_batch_norm
        ):
            example = torch.rand(1, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0))
            fuse_batch_norms(tower, tower.encode_image, (2 * example - 1).to(self.device))
        return tower

    def _unit_rows(self, features: torch.Tensor, what: str, start: int) -> NDArray[np.float32]:
        """Scale (B, D) features to unit length in float32, and refuse those that have no direction."""
        features = features.float()
        norms = features.norm(dim=-1, keepdim=True)
        usable = torch.isfinite(norms) & (norms > 0)
        if not bool(usable.all()):
            row = start + int((~usable).squeeze(1).nonzero()[0])
            raise ModelError(
                f"Model '{self.model_id}' gave no direction for {what} number {row + 1} "
                f"(zero or not a number) in {self.precision} on {self.device}. Its weights may be damaged."
            )
        unit: NDArray[np.float32] = (features / norms).cpu().numpy()
        return unit

    # ---- Tokens ---------------------------------------------------------------------------------

    @cached_property
    def _context_length(self) -> int:
        return int(self.files.model_cfg["text_cfg"].get("context_length", 77))

    @cached_property
    def _tokenizer(self) -> Any:
        text_cfg = self.files.model_cfg["text_cfg"]
        return load_tokenizer(self.files.tokenizer, text_cfg, model_id=self.model_id)

    def _tokenize(self, texts: list[str]) -> torch.Tensor:
        """Return (B, context length) token ids; warn of each text that did not fit."""
        length = self._context_length
        tokens: torch.Tensor = self._tokenizer(list(map(shortened, texts)), context_length=length)
        # Over encode_texts and its inference_mode, to who called it.
        warn_truncated(self.truncated(texts), length, stacklevel=4)
        return tokens
