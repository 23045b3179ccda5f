"""Random crops and flips of batches of pictures."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.batches import AUGMENT_STREAM
from imret.images.preprocess import Preprocess


def augment(
    pixels: Tensor,
    *,
    size: tuple[int, int],
    seed: int,
    step: int,
    min_scale: float = 0.6,
    max_ratio: float = 4 / 3,
    flip: bool = True,
) -> Tensor:
    """Return a random crop of each picture, resized, and mirrored half of the time.

    The crop takes `min_scale` to all of the area and is up to `max_ratio` times as wide as high, or as high
    as wide, as far as the picture allows. Colour is not changed: in nature it is a label. Pictures are only a
    little larger than the result, so that plain bilinear sampling does not alias.

    Args:
        pixels: (B, H, W, 3) uint8, on any device.
        size: (h, w) of the result.
        seed: With `step`, decides every crop.
        step: Number of the step.
        min_scale: Least share of the area, in (0, 1].
        max_ratio: Longest side over shortest, relative to the picture's; 1 keeps its shape.
        flip: Whether to mirror.

    Returns:
        (B, 3, h, w) float32 in [0, 1], on the same device.
    """
    n = len(pixels)
    rng = np.random.default_rng((seed, AUGMENT_STREAM, step))
    area = rng.uniform(min_scale, 1.0, n)
    ratio = np.exp(rng.uniform(-np.log(max_ratio), np.log(max_ratio), n))
    # Shares of height and width, clipped to 1; what is clipped from one is not added to the other.
    height, width = np.minimum(np.sqrt(area / ratio), 1), np.minimum(np.sqrt(area * ratio), 1)
    # Centres in [-1, 1], where the crop still lies inside.
    y, x = rng.uniform(-1, 1, n) * (1 - height), rng.uniform(-1, 1, n) * (1 - width)
    mirrored = np.where(rng.random(n) < 0.5, -1.0, 1.0) if flip else np.ones(n)
    theta = np.zeros((n, 2, 3), dtype=np.float32)  # output coordinates to input coordinates
    theta[:, 0, 0], theta[:, 0, 2] = width * mirrored, x
    theta[:, 1, 1], theta[:, 1, 2] = height, y
    grid = F.affine_grid(torch.from_numpy(theta).to(pixels.device), [n, 3, *size], align_corners=False)
    images = pixels.permute(0, 3, 1, 2).float() / 255  # (B, H, W, 3) -> (B, 3, H, W)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def normalised(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Return (B, 3, H, W) pixels of [0, 1] shifted and scaled as the model expects."""
    mean = torch.tensor(preprocess.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std
