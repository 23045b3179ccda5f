"""A picture file to the pixels that a model takes, fast: for ingest, training, evaluation and queries.

Large JPEGs are decoded at a half, a quarter or an eighth of their size where that is enough, and resized by
PyTorch's vectorised kernel for bytes. That kernel and Pillow's round alike but for a level or two in a
channel; IMRET_RESIZE=exact decodes whole and resizes with Pillow: to the pixel open_clip's own transform.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imret.images.decode import (
    MAX_PIXELS,
    Box,
    Extent,
    Picture,
    Reduced,
    Resample,
    Source,
    fit_image,
    load_image,
    load_to_cover,
    pillow_resize,
)
from imret.models.resolve import Preprocess
from imret.settings import wants

EXACT = ("IMRET_RESIZE", "exact")  # what open_clip's own transform gives, to the pixel


def load_pixels(
    source: Source, preprocess: Preprocess, *, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return what a model takes of a picture, and the picture's own size.

    Args:
        source: As for `load_image`.
        preprocess: Of the model.
        max_pixels: As for `load_image`.

    Returns:
        (H, W, 3) uint8, and the (width, height) of the whole picture, upright.

    Raises:
        ImageError: As `load_image`.
    """
    if wants(*EXACT):
        image = load_image(source, max_pixels=max_pixels)
        return fit(image, preprocess), image.size
    reduced = load_to_cover(source, max(preprocess.size), max_pixels=max_pixels)
    return fit(reduced.image, preprocess, reduced), reduced.size


def prepare() -> None:
    """Load now what the first `load_pixels` would; a second or two."""
    if not wants(*EXACT):
        import torch  # noqa: F401


def fit(image: Picture, preprocess: Preprocess, reduced: Reduced | None = None) -> NDArray[np.uint8]:
    """Return a picture at a model's size: see `fit_image`.

    Returns:
        (H, W, 3) uint8.
    """
    return fit_image(
        image,
        size=preprocess.size,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill_color,
        resize=pillow_resize if wants(*EXACT) else resize,
        reduced=reduced,
    )


def resize(
    image: Picture, size: tuple[int, int], resample: Resample, box: Box, extent: Extent
) -> NDArray[np.uint8]:
    """Resize an RGB picture and crop it, antialiased, as Pillow does but for a level or two.

    Args:
        image: Of mode RGB.
        size: (width, height).
        resample: Pillow's BICUBIC or BILINEAR.
        box: What to keep of it.
        extent: How much of the image to resize, from its upper left corner: all but parts of a pixel.

    Returns:
        (H, W, 3) uint8.

    Source: PyTorch's interpolate(antialias=True) has Pillow's filters (a = -0.5) and, for bytes, its
        fixed-point arithmetic: https://github.com/pytorch/vision/pull/7128
    """
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
        return pillow_resize(image, size, resample, box, extent)  # pads
    import torch  # not above: an ingest that finds nothing new does without

    # (1, 3, H, W), its channels last in memory, which is the kernel's fast path.
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    if size != extent:
        # By the factor, not to the size: the extent may end within a pixel. A pixel more than the size may
        # come of it, which is cut off, but never one less.
        factor = (size[1] / extent[1] * (1 + 1e-12), size[0] / extent[0] * (1 + 1e-12))
        pixels = torch.nn.functional.interpolate(
            pixels, scale_factor=factor, mode=resample.name.lower(), antialias=True, align_corners=False
        )
    kept: NDArray[np.uint8] = pixels[0, :, top:bottom, left:right].permute(1, 2, 0).contiguous().numpy()
    return kept
