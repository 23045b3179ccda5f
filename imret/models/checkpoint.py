"""Weights of a checkpoint file, tensor by tensor; what is pickled runs no code."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imret.errors import ModelError, summary
from imret.models.safetensors_map import is_safetensors, map_safetensors, plain_names, shards_of

# Elements converted at once: 16 MB of float32.
_PIECE = 1 << 22

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}


def name_dtype(tensor: torch.Tensor) -> str:
    """Return what safetensors calls the dtype of a tensor, "BF16" say; for others torch's own name."""
    return _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))


def stored_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a CPU tensor's values as safetensors stores them: row by row, little-endian.

    Raises:
        RuntimeError: If it has no such form, as sparse and quantized ones.
    """
    rows: NDArray[np.uint8] = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return rows


class Checkpoint:
    """The tensors of one checkpoint by name, none of them read until it is used.

    Attributes:
        path: The file, or the index of several.
        tensors: Name to a CPU tensor in the dtype as stored.
    """

    def __init__(self, path: Path) -> None:
        """Open files of safetensors, or of torch.save with torch's restricted unpickler, by their content.

        Raises:
            ModelError: If a file cannot be read, is no checkpoint, or would have to run code to load.
        """
        self.path = path
        self._maps: list[mmap.mmap] = []
        self.tensors: dict[str, torch.Tensor] = {}
        try:
            for shard in shards_of(path):
                found = (
                    dict(self._map_safetensors(shard))
                    if is_safetensors(shard)
                    else _unwrapped(_unpickle(shard), shard)
                )
                if twice := sorted(found.keys() & self.tensors.keys()):
                    raise ModelError(
                        f"'{shard}' holds '{twice[0]}', which another file of '{path}' holds, too."
                    )
                self.tensors |= found
        except OSError as error:
            raise ModelError(f"Cannot read the weights '{path}': {error.strerror or error}.") from error
        if not self.tensors:
            raise ModelError(f"'{path}' holds no tensors by name: not a model checkpoint.")

    def _map_safetensors(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        mapped, entries = map_safetensors(path, mmap.ACCESS_COPY)
        self._maps.append(mapped)
        for name, entry in entries.items():
            if entry.dtype not in _SAFETENSORS_DTYPES:
                raise ModelError(f"'{path}' stores '{name}' as {entry.dtype}, which is not supported.")
            dtype = _SAFETENSORS_DTYPES[entry.dtype]
            count = entry.size_bytes // dtype.itemsize
            if count == 0:
                yield name, torch.empty(entry.shape, dtype=dtype)
                continue
            tensor = torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry.start)
            yield name, tensor.reshape(entry.shape)

    def place(self, tensor: torch.Tensor, *, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return one of the tensors on a device in a dtype: a private view of the file, or a copy."""
        if tensor.dtype == dtype and device.type == "cpu" and tensor.data_ptr() % dtype.itemsize == 0:
            return tensor
        return self._copy(tensor, device=device, dtype=dtype)

    def _copy(self, tensor: torch.Tensor, *, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor converted and moved, piece by piece, holding little more than the result."""
        copy = torch.empty(tensor.shape, device=device, dtype=dtype)
        source, target = tensor.reshape(-1), copy.view(-1)
        for start in range(0, source.numel(), _PIECE):
            piece = source[start : start + _PIECE]
            target[start : start + _PIECE].copy_(piece)
            self._release(piece)
        return copy

    def _release(self, tensor: torch.Tensor) -> None:
        """Hand back the memory pages of what has been copied elsewhere; they are read again if used.

        Without this, a checkpoint that is converted counts twice: as converted, and as mapped.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        length = tensor.numel() * tensor.element_size()
        for mapped in self._maps:
            start = tensor.data_ptr() - torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()
            if not 0 <= start <= len(mapped) - length:
                continue  # of another file, or made from the files' tensors and not one of them
            # Only pages that hold nothing else: a neighbour's page may be in use.
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _unpickle(path: Path) -> object:
    """Load with torch's unpickler of plain data, mapped where the format allows it."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # saved before torch 1.6
    except OSError:
        raise
    except Exception as error:
        # UnpicklingError for what would run code, and whatever a damaged archive provokes.
        raise ModelError(
            f"Cannot read the weights '{path}': not a plain checkpoint of tensors, and imret runs no code "
            f"from one. Where you trust it, convert it to .safetensors. Reported: {summary(error)}"
        ) from error


def _unwrapped(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a bare or training checkpoint by the model's own names for them."""
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, torch.Tensor)} if inner else {}
    return {name: tensors[stored] for stored, name in plain_names(tensors, path).items()}
