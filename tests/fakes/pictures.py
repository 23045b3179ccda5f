"""Pictures that are drawn, not kept: each seed makes one that no other seed makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw_picture(file: Path, *, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a picture that no other seed makes: a few random rectangles."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = int(rng.integers(0, size[0] - 8)), int(rng.integers(0, size[1] - 8))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.rectangle(
            (left, top, left + int(rng.integers(4, 40)), top + int(rng.integers(4, 30))), fill=colour
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file
