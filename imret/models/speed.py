"""How many pictures a second a model will encode here, found out without its weights.

One block of a vision transformer with random weights is timed on the device in the precision, and so is the
decoding of a photo; what a model's image tower computes follows from its configuration. The result is an
estimate: what else the machine does later is not foreseen.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imret.images.decode_speed import decode_seconds
from imret.images.preprocess import Preprocess
from imret.models.choices import choice_of, gigabytes, smaller_than
from imret.models.device import computes_in_bf16, pick_device
from imret.models.fast.vit import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder

_TIMED_S = 0.5
_BATCH, _BATCH_ON_GPU = 4, 128

# What is timed: a block of a ViT-B/16, and little else.
_TIMED = ViTConfig(
    layers=1,
    width=768,
    heads=12,
    mlp_width=3072,
    patch=(16, 16),
    grid=(14, 14),
    dim=512,
    layer_scale=False,
    norm_pre=True,
    pool="tok",
    norm_after_pool=False,
    eps=1e-5,
    quick_gelu=False,
)

# Towers of timm's that are a plain vision transformer but for their pooling, by timm's names, as `vision_cfg`
# would have them.
_LIKE_PLAIN: dict[str, dict[str, Any]] = {
    "vit_base_patch16_siglip_256": {"width": 768, "layers": 12, "patch_size": 16, "image_size": 256},
}


@dataclass(frozen=True)
class Speed:
    """An estimate of how fast pictures are embedded.

    Attributes:
        pictures_per_s: Decoded and encoded.
        device: That they are encoded on.
        precision: That they are encoded in.
    """

    pictures_per_s: float
    device: str
    precision: str


def estimate_speed(
    model_cfg: Mapping[str, Any], *, device: str | torch.device = "auto", precision: str = "auto"
) -> Speed | None:
    """Return how fast pictures are embedded here by a model of an architecture; a second, the first time.

    Args:
        model_cfg: open_clip's configuration.
        device: As for `imret.Encoder`.
        precision: As for `imret.Encoder`.

    Returns:
        The estimate; None of a tower that is no vision transformer.

    Raises:
        ModelError: If the device is not there.
    """
    config = _plain(model_cfg)
    if config is None:
        return None
    where = pick_device(device)
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(where) else "fp32"
    rate = _rate(where, torch.bfloat16 if precision == "bf16" else torch.float32)
    encoding = operations(config) / rate
    decoding = _decoding() / (os.cpu_count() or 1)
    # On a CPU one waits for the other; a GPU encodes while the cores decode.
    seconds = encoding + decoding if where.type == "cpu" else max(encoding, decoding)
    return Speed(1 / seconds, str(where), precision)


def measure_speed(encoder: QueryEncoder) -> Speed:
    """Return how fast a model embeds pictures here, whatever its tower is; loads it, and encodes a few.

    Args:
        encoder: The model.

    Raises:
        ModelError: If it cannot be loaded.
    """
    device = str(encoder.device)
    n = 2 if device == "cpu" else 64
    pixels = np.random.default_rng(0).integers(0, 256, (n, *encoder.preprocess.size, 3), dtype=np.uint8)
    encoder.encode_pixels(pixels)  # loads the tower
    started = time.perf_counter()
    encoder.encode_pixels(pixels)
    encoding = (time.perf_counter() - started) / n
    decoding = _decoding() / (os.cpu_count() or 1)
    seconds = encoding + decoding if device == "cpu" else max(encoding, decoding)
    return Speed(1 / seconds, device, encoder.precision)


def operations(config: ViTConfig) -> float:
    """Return the multiplications and additions that a tower makes of one picture."""
    tokens, width = 1 + config.grid[0] * config.grid[1], config.width
    weights = 4 * width**2 + 2 * width * config.mlp_width  # of the linear layers of a block
    block = 2 * tokens * weights + 4 * tokens**2 * width
    patches = 2 * (tokens - 1) * 3 * config.patch[0] * config.patch[1] * width
    return config.layers * block + patches + 2 * width * config.dim


def _plain(model_cfg: Mapping[str, Any]) -> ViTConfig | None:
    like = _LIKE_PLAIN.get(str(model_cfg["vision_cfg"].get("timm_model_name", "")))
    return ViTConfig.from_model_cfg({**model_cfg, "vision_cfg": like} if like else model_cfg)


@lru_cache(maxsize=8)
@torch.inference_mode()
def _rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a transformer's block."""
    n = _BATCH if device.type == "cpu" else _BATCH_ON_GPU
    norms = torch.float32 if device.type == "cpu" else dtype
    weights = {
        name: (torch.randn(shape, device=device) / 50).to(norms if "ln_" in name else dtype)
        for name, shape in _TIMED.tensor_shapes().items()
    }
    tower, pixels = VisionTransformer(_TIMED, weights), torch.rand((n, 3, 224, 224), device=device).to(dtype)
    tower.encode_image(pixels)  # chooses kernels, and allocates
    _wait_for(device)
    started, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - started < _TIMED_S:
        tower.encode_image(pixels)
        _wait_for(device)
        runs += 1
    return runs * n * operations(_TIMED) / (time.perf_counter() - started)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@lru_cache(maxsize=1)
def _decoding() -> float:
    return decode_seconds(Preprocess())  # which size the model wants matters little


# ---- In words ------------------------------------------------------------------------------------------


def speed_of(model: str, *, device: str | torch.device = "auto", precision: str = "auto") -> Speed | None:
    """Return the estimate for one of `imret.models.choices`, downloaded or not; None for any other name.

    Args:
        model: Its short or its whole name.
        device: As for `imret.Encoder`.
        precision: As for `imret.Encoder`.

    Raises:
        ModelError: If the device is not there.
    """
    choice, package = choice_of(model), importlib.util.find_spec("open_clip")
    if choice is None or package is None or package.origin is None:
        return None
    # Its file, not its function: importing open_clip takes seconds.
    config = Path(package.origin).with_name("model_configs") / f"{choice.arch}.json"
    return estimate_speed(json.loads(config.read_text(encoding="utf-8")), device=device, precision=precision)


def advice_before_download(
    model: str, *, device: str | torch.device = "auto", precision: str = "auto"
) -> str:
    """Return what to know before a model is downloaded for pictures: how long it will take, what is smaller.

    Args:
        model: Its whole name.
        device: As for `imret.Encoder`.
        precision: As for `imret.Encoder`.

    Raises:
        ModelError: If the device is not there.
    """
    speed = speed_of(model, device=device, precision=precision)
    if speed is None:
        return ""
    told = (
        f"on this machine about {rate_in_words(speed)}: 1,000 take "
        f"{duration_in_words(1000 / speed.pictures_per_s)}"
    )
    smaller = smaller_than(model)
    other = None if smaller is None else speed_of(smaller.name, device=device, precision=precision)
    if smaller is None or other is None:
        return told
    return (
        f"{told}. Smaller: --model {smaller.name} ({gigabytes(smaller.size_bytes)}, "
        f"about {rate_in_words(other)})"
    )


def rate_in_words(speed: Speed) -> str:
    """Return an estimate as "0.6 pictures/s", without more digits than it is worth."""
    rate = speed.pictures_per_s
    if rate < 10:
        return f"{rate:.1g} pictures/s" if rate < 1 else f"{rate:.1f} pictures/s"
    return f"{float(f'{rate:.2g}'):,.0f} pictures/s"


def duration_in_words(seconds: float) -> str:
    """Return an estimated time as "about 28 minutes"."""
    for limit, unit, name in ((90, 1, "second"), (90 * 60, 60, "minute"), (36 * 3600, 3600, "hour")):
        if seconds < limit:
            n = max(1, round(seconds / unit))
            return f"about {n} {name}{'' if n == 1 else 's'}"
    return f"about {round(seconds / 86400)} days"
