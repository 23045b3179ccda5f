"""Weights of a checkpoint file, tensor by tensor; what is pickled runs no code."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imret.errors import ModelError, some_of, summary
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
# Under what keys training programs save the weights of a model, the first that is there taken; and averages
# of them over the training, which are taken where there are no others.
_TRAINED = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
_AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema"),
    *("module_ema", "params_ema"),
)

_DTYPE_NAMES = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}


class CheckpointWarning(UserWarning):
    """A checkpoint holds several sets of weights, or averaged ones alone."""


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
    """Return the tensors of a bare or training checkpoint by the model's own names for them.

    Raises:
        ModelError: If it holds none; the message names what it holds.
    """
    sets = _weight_sets(loaded)
    if not sets:
        what = f"It holds {_contents(loaded)}."
        raise ModelError(f"'{path}' holds no tensors by name: not a model checkpoint. {what}")
    taken, *others = sets
    if others or taken in _AVERAGED:
        beside = f", and not {some_of([repr(other) for other in others])}" if others else ", its only ones"
        warnings.warn(
            f"of '{path}' the weights under {taken!r} are taken{beside}", CheckpointWarning, stacklevel=3
        )
    tensors = sets[taken]
    return {name: tensors[stored] for stored, name in plain_names(tensors, path).items()}


def _weight_sets(loaded: object, depth: int = 2) -> dict[str, dict[str, torch.Tensor]]:
    """Return the sets of weights in what a training saved, by their keys, the one to take first.

    Args:
        loaded: As unpickled.
        depth: How many keys may lie one in the other, as {"model": {"state_dict": ...}}.
    """
    if not isinstance(loaded, Mapping):
        return {}
    sets = {}
    for key in (*_TRAINED, *_AVERAGED) if depth else ():
        inner = next(iter(_weight_sets(loaded.get(key), depth - 1).values()), None)
        if inner:
            sets[key] = inner
    bare = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return sets or ({"": bare} if bare else {})


def _contents(loaded: object) -> str:
    if not isinstance(loaded, Mapping):
        return f"one object ({type(loaded).__name__})"
    return some_of([f"{name} ({type(value).__name__})" for name, value in loaded.items()]) or "nothing"
