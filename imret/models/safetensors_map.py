"""What a checkpoint file holds, without torch: its format, where each tensor is, and open_clip's layout."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imret.errors import ModelError, summary
from imret.files import read_regular

# Left in old checkpoints by torch.jit, transformers and early open_clip; nothing reads them.
LEFTOVERS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
# Counters and positions that a model computes with no more, and that a checkpoint may hold or lack.
LEFTOVER_ENDINGS = (".num_batches_tracked", "embeddings.position_ids")


# Parts of a name that stand for a wrapper of torch's and for no module of a model: torch.compile, FSDP, and
# activation checkpointing. Any module may be wrapped, a tower or a single block, so they stand anywhere.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What programs call the model that they train, where that is an attribute of something larger.
_OWNERS = frozenset({"model", "clip", "clip_model", "net", "network", "backbone", "student"})
_PARALLEL = "module."  # of torch's parallel training, which wraps a whole model or a whole tower


# What the index of a checkpoint in several files is called, after the name that it would have in one.
INDEX_ENDING = ".index.json"
_MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor is.

    Attributes:
        dtype: As safetensors calls it, "BF16" say.
        shape: Of the tensor.
        start: Byte of the file that it begins at.
        size_bytes: How long it is.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def shards_of(path: Path) -> list[Path]:
    """Return the files that a checkpoint is in: itself, or those that an index of the hub's kind names.

    Raises:
        ModelError: If the index cannot be read, or names what is not beside it.
        OSError: If it is not there.
    """
    if not path.name.endswith(INDEX_ENDING):
        return [path]
    try:
        index = json.loads(read_regular(path, max_bytes=_MAX_INDEX_BYTES))
        names = sorted({str(name) for name in index["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{path}' is not an index of weights: it has no 'weight_map' of files.") from error
    for name in names:
        if Path(name).name != name or not path.with_name(name).is_file():
            raise ModelError(f"'{path}' names {name!r}, which is not beside it. Put all its files there.")
    return [path.with_name(name) for name in names]


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do; the hub's cache stores files without their endings.

    An index of several files does not.

    Raises:
        OSError: If it cannot be read.
    """
    if path.name.endswith(INDEX_ENDING):
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix.lower() == ".safetensors"


def map_safetensors(path: Path, access: int) -> tuple[mmap.mmap, dict[str, Entry]]:
    """Map a safetensors file; return the map, and where each tensor is by its plain name.

    Args:
        path: The file.
        access: mmap.ACCESS_READ, or ACCESS_COPY for memory that can be written to and is not the file's.

    Raises:
        ModelError: If it is not whole, or holds a tensor twice.
        OSError: If it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks the header against the file: offsets, shapes, sizes, overlaps.
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ModelError(f"'{path}' is not a whole safetensors file: {summary(error)}.") from error
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=access)
    return mapped, read_entries(path)


def read_entries(path: Path) -> dict[str, Entry]:
    """Return where each tensor of a safetensors file is, by its plain name; loads no library.

    Raises:
        ModelError: If the header cannot be read, or names a tensor twice.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        header = file.read(size) if 8 + size <= path.stat().st_size else b""
    entries: dict[str, Entry] = {}
    try:
        stated = json.loads(header)
        stated.pop("__metadata__", None)
        for stored, name in plain_names(stated, path).items():
            begin, end = stated[stored]["data_offsets"]  # counted from the end of the header
            entries[name] = Entry(
                str(stated[stored]["dtype"]),
                tuple(map(int, stated[stored]["shape"])),
                8 + size + int(begin),
                int(end) - int(begin),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"'{path}' is not a whole safetensors file: its header cannot be read ({summary(error)})."
        ) from error
    return entries


def plain_names(names: Iterable[str], path: Path) -> dict[str, str]:
    """Return what a model calls its tensors, by the names that a checkpoint stores them under.

    Training leaves its wrappers in the names: "_orig_mod." of a model, a tower or a block that was compiled,
    "module." of parallel training, or both, in any order. Where all names begin with one attribute that held
    the model, as "model." in Lightning's checkpoints, that is left off, too.

    Args:
        names: As stored.
        path: Of the checkpoint, for the message.

    Raises:
        ModelError: If two tensors are then called the same.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    _strip_parallel(plain, "")
    _strip_owner(plain)
    for tower in {f"{name.partition('.')[0]}." for name in plain.values() if "." in name}:
        _strip_parallel(plain, tower)
    stored_as: dict[str, str] = {}
    for stored, name in plain.items():
        if name in stored_as:
            raise ModelError(
                f"'{path}' holds '{name}' twice, as '{stored_as[name]}' and as '{stored}'. "
                "Leave one of them out."
            )
        stored_as[name] = stored
    return plain


def _strip_owner(plain: dict[str, str]) -> None:
    """Take off, in place, the attribute that all names begin with and that held a whole model."""
    roots = {name.partition(".")[0] for name in plain.values()}
    root = next(iter(roots), "")
    is_owner = root in _OWNERS or any(name.startswith(f"{root}.visual.") for name in plain.values())
    if len(roots) != 1 or not is_owner or root in plain.values():
        return
    for stored, name in plain.items():
        plain[stored] = name.removeprefix(f"{root}.")


def _strip_parallel(plain: dict[str, str], root: str) -> None:
    """Take "module." off, in place, where all names below a root have it."""
    below = [stored for stored, name in plain.items() if name.startswith(root)]
    while below and all(plain[stored].startswith(root + _PARALLEL) for stored in below):
        for stored in below:
            plain[stored] = root + plain[stored].removeprefix(root + _PARALLEL)


def block_shapes(block: str, width: int, mlp_width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of one attention block of open_clip's transformers, by name.

    Args:
        block: What the names begin with, "transformer.resblocks.0." say.
        width: Of the transformer.
        mlp_width: Of the hidden layer of the block's MLP.
    """
    return {
        **norm_shapes(f"{block}ln_1", width),
        f"{block}attn.in_proj_weight": (3 * width, width),
        f"{block}attn.in_proj_bias": (3 * width,),
        f"{block}attn.out_proj.weight": (width, width),
        f"{block}attn.out_proj.bias": (width,),
        **norm_shapes(f"{block}ln_2", width),
        f"{block}mlp.c_fc.weight": (mlp_width, width),
        f"{block}mlp.c_fc.bias": (mlp_width,),
        f"{block}mlp.c_proj.weight": (width, mlp_width),
        f"{block}mlp.c_proj.bias": (width,),
    }


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a layer norm, by name."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
