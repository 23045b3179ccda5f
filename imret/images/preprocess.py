"""How a model wants its pixels: size, resize mode, interpolation, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imret.errors import ModelError

# OpenAI CLIP's channel statistics: open_clip's defaults wherever a configuration names none.
_DEFAULT_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEFAULT_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the input of the image tower (open_clip's `preprocess_cfg`).

    Attributes:
        size: Height and width of the input in pixels.
        mean: Per RGB channel, subtracted from values in [0, 1].
        std: Per RGB channel, divided by afterwards.
        interpolation: "bicubic" or "bilinear" ("random" means bicubic, as in open_clip).
        resize_mode: "shortest" (then centre crop), "longest" (then pad) or "squash".
        fill_color: Grey value in [0, 255] of the padding of "longest".
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = _DEFAULT_MEAN
    std: tuple[float, float, float] = _DEFAULT_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0


def parse_preprocess(value: Mapping[str, Any], model_cfg: Mapping[str, Any], where: str) -> Preprocess:
    """Merge a stated preprocessing over open_clip's defaults; the image tower states the size."""
    if not isinstance(value, Mapping):
        raise ModelError(f"Cannot use the preprocessing of {where}: it is {value!r:.80}, not an object.")
    stated = {key: entry for key, entry in value.items() if entry is not None}
    size = model_cfg["vision_cfg"].get("image_size", 224)
    try:
        height, width = (size, size) if isinstance(size, int) else size
        preprocess = Preprocess(
            size=(int(height), int(width)),
            mean=_three(stated.get("mean", _DEFAULT_MEAN)),
            std=_three(stated.get("std", _DEFAULT_STD)),
            interpolation=str(stated.get("interpolation", "bicubic")),
            resize_mode=str(stated.get("resize_mode", "shortest")),
            fill_color=int(stated.get("fill_color", 0)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"Cannot use the preprocessing of {where}: {error}.") from error
    if (
        min(preprocess.size) < 1
        or preprocess.interpolation not in ("bicubic", "bilinear", "random")
        or preprocess.resize_mode not in ("shortest", "longest", "squash")
        or stated.get("mode", "RGB") != "RGB"
        or 0.0 in preprocess.std
        or not all(map(math.isfinite, (*preprocess.mean, *preprocess.std)))
    ):
        raise ModelError(
            f"Cannot use the preprocessing of {where}: {dict(stated)} is not one of open_clip's."
        )
    return preprocess


def _three(value: float | list[float] | tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (value, value, value) if isinstance(value, (int, float)) else value
    return float(red), float(green), float(blue)
