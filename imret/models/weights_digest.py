"""Digests of a checkpoint file: of its tensors, however it lays them out, and of its bytes; kept in a cache.

A file is read once, as fast as it comes (safetensors without torch), and then known by its path, size and
modification time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from imret.errors import ModelError
from imret.files import write_atomically
from imret.models.safetensors_map import LEFTOVER_ENDINGS, LEFTOVERS, is_safetensors, read_entries, shards_of
from imret.settings import cache_dir

# A file changed less than this ago could change again within one tick of its clock, unseen by its mtime.
_UNSETTLED_S = 2.0
_CHUNK_BYTES = 1 << 22
_IMAGE_TOWER = "visual."
_NONE = "0" * 64  # kept where there is no digest

_Tensor: TypeAlias = tuple[str, str, list[int], str]  # name, dtype, shape, SHA-256 of its bytes


@dataclass(frozen=True)
class WeightsDigest:
    """What tells the tensors of a checkpoint from all others: names, dtypes, shapes and bytes.

    The same for whatever file they are saved in and in whatever order; tensors of another precision are
    others.

    Attributes:
        tensors: Of all that a model computes with, 64 hex digits.
        image_tower: Of those of the image tower; of all in a layout that does not say which they are.
    """

    tensors: str
    image_tower: str


def digest_tensors(path: Path) -> WeightsDigest:
    """Return the digest of a checkpoint's tensors; imports torch where the file is one of torch's.

    Raises:
        ModelError: If it cannot be read, or is no checkpoint.
    """
    tensors, image_tower = _kept(
        path, {"fingerprints": "tensors", "image_towers": "image tower"}, _of_tensors
    )
    return WeightsDigest(tensors, image_tower)


def digest_bytes(path: Path) -> str:
    """Return the SHA-256 of a file, by which imret told models apart until it hashed tensors.

    Of the index of several it is that of their bytes, one after the other.

    Raises:
        ModelError: If it cannot be read.
    """
    (digest,) = _kept(path, {"fingerprints": ""}, _of_bytes)
    return digest


def digest_image_tower_as(path: Path, dtypes: Mapping[str, str]) -> str | None:
    """Return the digest that the image tower would have with its tensors in another precision.

    Args:
        path: The checkpoint file, or the index of several; safetensors.
        dtypes: Of tensors in float32 that are to be "F16" or "BF16", by name; under "" of those not named.

    Returns:
        None if values would be lost by it, or the file is one of torch's.

    Raises:
        ModelError: If it cannot be read, or is no checkpoint.
    """
    spec = json.dumps(dict(dtypes), sort_keys=True)
    (digest,) = _kept(path, {"image_towers": f"as {spec}"}, lambda path: [_image_tower_as(path, dtypes)])
    return digest if digest != _NONE else None


# ---- Reading ------------------------------------------------------------------------------------------


def _of_bytes(path: Path) -> list[str]:
    digest = hashlib.sha256()
    for shard in shards_of(path):  # and not the index: that is the same for other tensors of those names
        with shard.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return [digest.hexdigest()]


def _of_tensors(path: Path) -> list[str]:
    shards = shards_of(path)
    all_light = all(map(is_safetensors, shards))
    stored = chain.from_iterable(map(_safetensors, shards)) if all_light else _of_torch(path)
    tensors = sorted(
        tensor for tensor in stored if tensor[0] not in LEFTOVERS and not tensor[0].endswith(LEFTOVER_ENDINGS)
    )
    image_tower = [tensor for tensor in tensors if tensor[0].startswith(_IMAGE_TOWER)]
    return [_combined(tensors), _combined(image_tower or tensors)]


def _combined(tensors: list[_Tensor]) -> str:
    return hashlib.sha256(json.dumps(tensors, separators=(",", ":")).encode()).hexdigest()


def _safetensors(path: Path) -> Iterator[_Tensor]:
    # Read, not mapped: a file that is cut short meanwhile is an error then, and no crash.
    with path.open("rb") as file:
        for name, entry in sorted(read_entries(path).items(), key=lambda item: item[1].start):
            file.seek(entry.start)
            digest, left = hashlib.sha256(), entry.size_bytes
            while left > 0:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ModelError(f"'{path}' is not a whole safetensors file: it ends within '{name}'.")
                digest.update(chunk)
                left -= len(chunk)
            yield name, entry.dtype, list(entry.shape), digest.hexdigest()


def _image_tower_as(path: Path, dtypes: Mapping[str, str]) -> str:
    shards = shards_of(path)
    if not all(map(is_safetensors, shards)):
        return _NONE
    tensors = []
    for shard in shards:
        with shard.open("rb") as file:
            for name, entry in read_entries(shard).items():
                if not name.startswith(_IMAGE_TOWER) or name in LEFTOVERS or name.endswith(LEFTOVER_ENDINGS):
                    continue
                dtype = entry.dtype
                if dtype == "F32":
                    dtype = str(dtypes.get(name, dtypes.get("", dtype)))
                file.seek(entry.start)
                digest, left = hashlib.sha256(), entry.size_bytes
                while left > 0:
                    chunk = file.read(min(left, _CHUNK_BYTES))
                    shorter = chunk if dtype == entry.dtype else _shortened(chunk, dtype)
                    if not chunk or shorter is None:
                        return _NONE
                    digest.update(shorter)
                    left -= len(chunk)
                tensors.append((name, dtype, list(entry.shape), digest.hexdigest()))
    return _combined(sorted(tensors)) if tensors else _NONE


def _shortened(values: bytes, dtype: str) -> bytes | None:
    """Return float32 values in a shorter type, as they were before they were widened; None if never."""
    import numpy as np

    bits = np.frombuffer(values, dtype="<u4")
    if dtype == "BF16":
        return None if (bits & np.uint32(0xFFFF)).any() else (bits >> np.uint32(16)).astype("<u2").tobytes()
    if dtype != "F16":
        return None
    with np.errstate(over="ignore"):
        halves = bits.view("<f4").astype("<f2")
    return halves.tobytes() if np.array_equal(halves.astype("<f4").view("<u4"), bits) else None


def _of_torch(path: Path) -> Iterator[_Tensor]:
    from imret.models.checkpoint import Checkpoint, name_dtype, stored_bytes

    for name, tensor in Checkpoint(path).tensors.items():
        try:
            stored = stored_bytes(tensor).data
        except (RuntimeError, TypeError) as error:  # sparse, quantized
            raise ModelError(
                f"'{path}' stores '{name}' as {tensor.layout} {tensor.dtype}, which is not supported."
            ) from error
        yield name, name_dtype(tensor), list(tensor.shape), hashlib.sha256(stored).hexdigest()


# ---- The cache ----------------------------------------------------------------------------------------


def _kept(path: Path, kinds: dict[str, str], compute: Callable[[Path], list[str]]) -> list[str]:
    """Return digests of a checkpoint, from the cache where path, size and mtime of its files are unchanged.

    Args:
        path: Of the file, or of the index of several.
        kinds: Of each digest the folder that it is kept in, and what it is of.
        compute: Gives all of them.
    """
    try:
        states = _states(path)
        entries = [_entry(folder, kind, states) for folder, kind in kinds.items()]
        with contextlib.suppress(OSError, ValueError):
            cached = [entry.read_text(encoding="ascii").strip() for entry in entries]
            if all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in cached):
                return cached
        digests = compute(path)
        latest = max(mtime_ns for _, _, mtime_ns in states) / 1e9
        settled = _states(path) == states and time.time() - latest > _UNSETTLED_S
    except OSError as error:
        raise ModelError(f"Cannot read the weights '{path}': {error.strerror or error}.") from error
    if settled:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
            for entry, digest in zip(entries, digests, strict=True):
                entry.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(entry, digest)
    return digests


def _states(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size and mtime of each file that a checkpoint is in."""
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file in shards_of(path) for stat in [file.stat()]]


def _entry(folder: str, kind: str, states: list[tuple[str, int, int]]) -> Path:
    parts = [*([kind] if kind else []), *(str(part) for state in states for part in state)]
    return cache_dir() / folder / f"{hashlib.sha256(os.fsencode(chr(0).join(parts))).hexdigest()}.txt"
