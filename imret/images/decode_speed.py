"""How long one core takes to read, decode and resize a photo here."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image

from imret.images.preprocess import Preprocess
from imret.images.resize import load_pixels

_PHOTO = (4000, 3000)  # 12 megapixels, as phones take them


def decode_seconds(preprocess: Preprocess) -> float:
    """Return the seconds for a photo of a phone, as an ingest decodes it for a model."""
    rng = np.random.default_rng(0)
    # Coarse noise, made larger: a flat picture would be decoded in no time.
    coarse = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    data = io.BytesIO()
    coarse.resize(_PHOTO, Image.Resampling.BILINEAR).save(data, "JPEG", quality=85)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        load_pixels(data.getvalue(), preprocess)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
