"""Decoded pictures in memory, ready to be drawn into batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.records import Record
from imret.datasets.scan import Skipped
from imret.errors import DataError, ImageError
from imret.images.phash import ImageHash, compute_hash
from imret.images.preprocess import Preprocess
from imret.images.resize import load_pixels


class ImageSet:
    """The pixels of records at one size: kept in memory where they fit, else decoded for every batch.

    Both give the same bytes.

    Args:
        folder: What the records' paths are relative to.
        records: The pictures.
        size: (H, W) of the pixels.
        preprocess: How a picture is fitted to that size: the model's own way, as for ingested pictures.
        budget_bytes: Most memory for decoded pictures; half of what is free, if that is less.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        records: Sequence[Record],
        *,
        size: tuple[int, int],
        preprocess: Preprocess,
        budget_bytes: int,
    ) -> None:
        self.folder = Path(folder)
        self.records = list(records)
        self.size = size
        self.preprocess = replace(preprocess, size=size)
        self.in_memory = len(records) * size[0] * size[1] * 3 <= min(budget_bytes, _free_bytes() // 2)
        self.hashes: list[ImageHash] = []  # of each record, if `load` computes them
        self._kept: NDArray[np.uint8] | None = None
        self._rows = np.arange(len(records))  # of _kept, by position
        # Two more threads than cores: a thread that waits for the disk leaves its core idle.
        self._pool = ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 2, thread_name_prefix="decode")

    def load(
        self, on_image: Callable[[], object] = lambda: None, *, with_hashes: bool = False
    ) -> list[Skipped]:
        """Decode every picture once, keep those that fit in memory, and drop the records of unreadable ones.

        Args:
            on_image: Called after each.
            with_hashes: Whether to fill `hashes`.

        Returns:
            The dropped records, and why.
        """
        height, width = self.size
        if self.in_memory:
            self._kept = np.empty((len(self.records), height, width, 3), dtype=np.uint8)
        good: list[Record] = []
        skipped: list[Skipped] = []

        def decode(record: Record) -> tuple[NDArray[np.uint8] | str, ImageHash | None]:
            result = self._try_decode(record)
            return result, compute_hash(result) if with_hashes and not isinstance(result, str) else None

        results = self._pool.map(decode, self.records)
        for record, (result, image_hash) in zip(self.records, results, strict=True):
            if isinstance(result, str):
                skipped.append(Skipped(record.path, result))
            else:
                if self._kept is not None:
                    self._kept[len(good)] = result
                if image_hash is not None:
                    self.hashes.append(image_hash)
                good.append(record)
            on_image()
        self.records = good
        self._rows = np.arange(len(good))
        return skipped

    def select(self, positions: Sequence[int]) -> ImageSet:
        """Keep only the records at these positions, in this order; return self."""
        self.records = [self.records[i] for i in positions]
        self.hashes = [self.hashes[i] for i in positions] if self.hashes else []
        if self._kept is not None:
            self._rows = self._rows[np.asarray(positions, dtype=np.int64)]
        return self

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Return (B, H, W, 3) uint8 pixels of the records at these positions.

        Raises:
            DataError: If a picture that could be read at the start cannot be read any more.
        """
        if self._kept is not None:
            return torch.from_numpy(self._kept[self._rows[np.asarray(positions, dtype=np.int64)]])
        wanted = [self.records[i] for i in positions]
        pixels = []
        for record, result in zip(wanted, self._pool.map(self._try_decode, wanted), strict=True):
            if isinstance(result, str):
                raise DataError(
                    f"picture {record.path!r} of {str(self.folder)!r} could be read at the start and now "
                    f"cannot: {result}. Put it back and run the same command to go on, or begin anew with "
                    "--overwrite."
                )
            pixels.append(result)
        return torch.from_numpy(np.stack(pixels))

    def close(self) -> None:
        """Stop the decoding threads and let the pixels go."""
        self._pool.shutdown(cancel_futures=True)
        self._kept = None

    def _try_decode(self, record: Record) -> NDArray[np.uint8] | str:
        """Return a picture's pixels, or why there are none."""
        try:
            return load_pixels(self.folder / record.path, self.preprocess)[0]
        except ImageError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)


def _free_bytes() -> int:
    """Return the memory that is free right now, or a lot where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def training_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (H, W) to keep training pictures at: an eighth above the model's, so crops stay sharp."""
    return math.ceil(size[0] * 1.125), math.ceil(size[1] * 1.125)
