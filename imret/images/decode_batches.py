"""Pictures to batches of a model's pixels, decoded by threads ahead of the encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.errors import ImageError
from imret.images.decode import Source
from imret.images.decode_memory import DECODE_MEMORY

if TYPE_CHECKING:
    from imret.images.preprocess import Preprocess

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)

# Pictures decoded before they are encoded together.
BATCH_IMAGES = 64

# More threads than this help little.
_THREADS = 16


def decode_batches(
    sources: Iterable[Source],
    preprocess: Preprocess,
    *,
    exact: bool = False,
    on_note: Callable[[Source, str], object] = lambda source, note: None,
) -> Generator[list[tuple[Source, Pixels | str]]]:
    """Yield batches of pictures with their pixels of the model's size, or with why they have none.

    While one batch is used, the next is decoded in threads. Whoever may not take all closes the generator:
    then only those that are being decoded are waited for.

    Args:
        sources: What `load_image` takes, in any number.
        preprocess: Of the model.
        exact: As for `load_pixels`.
        on_note: Told of a picture, in a thread that decodes, what `load_image` notes of it.
    """
    from imret.images.resize import load_pixels

    def decode(source: Source) -> Pixels | str:
        try:
            with DECODE_MEMORY.reserving() as reserve:
                return load_pixels(
                    source,
                    preprocess,
                    exact=exact,
                    reserve=reserve,
                    on_note=lambda note: on_note(source, note),
                )[0]
        except (ImageError, OSError) as error:
            return str(error)

    remaining = iter(sources)
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        batch = list(islice(remaining, BATCH_IMAGES))
        ahead = pool.map(decode, batch)
        while batch:
            ready = list(ahead)
            following = list(islice(remaining, BATCH_IMAGES))
            ahead = pool.map(decode, following)
            yield list(zip(batch, ready, strict=True))
            batch = following
    finally:
        pool.shutdown(cancel_futures=True)
