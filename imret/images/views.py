"""A picture seen in more than one way, so that a few pictures say more of what they show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Left out on each side where a picture is seen without its edges.
_EDGE = 0.1
MOST = 3


def views_of(pixels: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Return pictures in several views: as they are, mirrored, and without their edges.

    Args:
        pixels: (N, H, W, 3) RGB.
        n: Views of each, in [1, MOST].

    Returns:
        (n * N, H, W, 3): all pictures in the first view, then all in the second, and so on.
    """
    if not 1 <= n <= MOST:
        raise ValueError(f"a picture is seen in 1 to {MOST} views, not {n}")
    views = [pixels]
    if n > 1:
        views.append(pixels[:, :, ::-1])
    if n > 2:
        views.append(np.stack([_without_edges(one) for one in pixels]) if len(pixels) else pixels)
    return np.ascontiguousarray(np.concatenate(views))


def _without_edges(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = pixels.shape[:2]
    box = (width * _EDGE, height * _EDGE, width * (1 - _EDGE), height * (1 - _EDGE))
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=box))
