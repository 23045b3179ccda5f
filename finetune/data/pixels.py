"""Decoded pictures in memory, ready to be drawn into batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.records import Record
from imret.datasets.scan import Skipped
from imret.errors import DataError, ImageError
from imret.images.notes import OnNote, ignore_note
from imret.images.phash import ImageHash, compute_hash
from imret.images.preprocess import Preprocess
from imret.images.resize import load_pixels


@dataclass(frozen=True, slots=True)
class Noted:
    """What is to be known of a picture that is taken.

    Attributes:
        path: Below the folder.
        note: For people; see `imret.images.notes`.
    """

    path: str
    note: str


class ImageSet:
    """The pixels of records at one size: kept in memory where they fit, the others decoded for every batch.

    What is kept is decoded once, by `load` or by the first batch that it is in. Both give the same bytes.

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
        # How many pictures are kept.
        self.room = min(len(records), min(budget_bytes, _free_bytes() // 2) // (size[0] * size[1] * 3))
        self.hashes: list[ImageHash] = []  # of each record, if `load` computes them
        self.noted: list[Noted] = []  # of all that `load` has decoded
        # Memory is taken row by row, as rows are written.
        self._kept: NDArray[np.uint8] = np.empty((self.room, *size, 3), dtype=np.uint8)
        self._n_kept = 0
        self._rows = np.full(len(records), -1)  # of _kept, by position; -1 if it is not there
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
        good: list[Record] = []
        rows: list[int] = []
        skipped: list[Skipped] = []

        def decode(record: Record) -> tuple[NDArray[np.uint8] | str, ImageHash | None, list[str]]:
            notes: list[str] = []
            result = self._try_decode(record, notes.append)
            if isinstance(result, str) or not with_hashes:
                return result, None, notes
            return result, compute_hash(result), notes

        results = self._pool.map(decode, self.records)
        for record, (result, image_hash, notes) in zip(self.records, results, strict=True):
            if isinstance(result, str):
                skipped.append(Skipped(record.path, result))
            else:
                rows.append(self._keep(result))
                self.noted += [Noted(record.path, note) for note in notes]
                if image_hash is not None:
                    self.hashes.append(image_hash)
                good.append(record)
            on_image()
        self.records = good
        self._rows = np.array(rows, dtype=np.int64)
        return skipped

    def _keep(self, pixels: NDArray[np.uint8]) -> int:
        """Keep a picture's pixels, if there is room; return their row, or -1."""
        if self._n_kept == self.room:
            return -1
        self._kept[self._n_kept] = pixels
        self._n_kept += 1
        return self._n_kept - 1

    def select(self, positions: Sequence[int]) -> ImageSet:
        """Keep only the records at these positions, in this order; return self."""
        self.records = [self.records[i] for i in positions]
        self.hashes = [self.hashes[i] for i in positions] if self.hashes else []
        self._rows = self._rows[np.asarray(positions, dtype=np.int64)]
        return self

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Return (B, H, W, 3) uint8 pixels of the records at these positions.

        Raises:
            DataError: If a picture that could be read at the start cannot be read any more.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        pixels = np.empty((len(wanted), *self.size, 3), dtype=np.uint8)
        kept = self._rows[wanted] >= 0
        pixels[kept] = self._kept[self._rows[wanted[kept]]]
        places = np.flatnonzero(~kept).tolist()
        records = [self.records[wanted[place]] for place in places]
        for place, record, result in zip(
            places, records, self._pool.map(self._try_decode, records), strict=True
        ):
            if isinstance(result, str):
                raise DataError(
                    f"picture {record.path!r} of {str(self.folder)!r} could be read at the start and now "
                    f"cannot: {result}. Put it back and run the same command to go on, or begin anew with "
                    "--overwrite."
                )
            pixels[place] = result
            if self._rows[wanted[place]] < 0:  # a batch may hold a picture twice
                self._rows[wanted[place]] = self._keep(result)
        return torch.from_numpy(pixels)

    def close(self) -> None:
        """Stop the decoding threads and let the pixels go."""
        self._pool.shutdown(cancel_futures=True)
        self._kept = np.empty((0, *self.size, 3), dtype=np.uint8)
        self._rows[:], self.room, self._n_kept = -1, 0, 0

    def _try_decode(self, record: Record, on_note: OnNote = ignore_note) -> NDArray[np.uint8] | str:
        """Return a picture's pixels, or why there are none."""
        try:
            return load_pixels(self.folder / record.path, self.preprocess, on_note=on_note)[0]
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
