"""What a model folder or repository states of itself in JSON, read with care: anyone may have written it.

Only files are read, no pipe or device that never ends; numbers are in the range that a model can have, and
options of a tokenizer are known ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imret.errors import ModelError
from imret.files import read_regular
from imret.models.published import CONFIG_NAME

_MAX_CONFIG_BYTES = 16 << 20
_MAX_DEPTH = 32

# The largest value of what decides how much is built; lists are per stage, or height and width.
_MAX_SIZES = {
    "context_length": 1 << 16,
    "vocab_size": 1 << 24,
    "width": 1 << 16,
    "heads": 1 << 12,
    "layers": 1 << 10,
    "head_width": 1 << 16,
    "patch_size": 1 << 12,
    "image_size": 1 << 14,
}
_MAX_DIM = 1 << 16  # Qdrant's

# What a configuration may tell a tokenizer: how a text is cleaned, which signs and marks are added to it, and
# where its vocabulary lies. Not what chooses code or other files; nor what draws at random which tokens are
# kept (`reduction_mask`), with which no query would have the same vector twice.
_TOKENIZER_OPTIONS: dict[str, type | tuple[str, ...]] = {
    "clean": ("lower", "whitespace", "canonicalize"),
    "padding_side": ("left", "right"),
    "truncation_side": ("left", "right"),
    "strip_sep_token": bool,
    "use_fast": bool,
    "add_prefix_space": bool,
    "add_bos_token": bool,
    "add_eos_token": bool,
    "clean_up_tokenization_spaces": bool,
    "do_lower_case": bool,
    "legacy": bool,
    "split_special_tokens": bool,
    "language": str,
    "src_lang": str,
    "tgt_lang": str,
    "bos_token": str,
    "eos_token": str,
    "unk_token": str,
    "sep_token": str,
    "pad_token": str,
    "cls_token": str,
    "mask_token": str,
    "revision": str,
    "subfolder": str,
    "model_max_length": int,
    "additional_special_tokens": list,
}


def read_config(path: Path) -> dict[str, Any]:
    """Return open_clip's configuration of a folder.

    Raises:
        ModelError: If it is not there, is no file, or is no JSON object.
    """
    try:
        config = json.loads(read_regular(path, max_bytes=_MAX_CONFIG_BYTES), parse_constant=_refuse_constant)
        is_too_deep = _is_deeper(config, _MAX_DEPTH)
    except FileNotFoundError:
        raise ModelError(
            f"'{path.parent}' is not a model folder: it has no {CONFIG_NAME}. "
            "Pass the folder that `imret finetune --output` wrote, or one saved by open_clip."
        ) from None
    except RecursionError:
        is_too_deep = True
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"Cannot read '{path}': {reason}.") from error
    if is_too_deep:
        raise ModelError(f"Cannot read '{path}': it is nested deeper than {_MAX_DEPTH} levels.")
    if not isinstance(config, dict):
        raise ModelError(f"Cannot use '{path}': expected a JSON object.")
    return config


def checked_model_cfg(value: object, where: str) -> dict[str, Any]:
    """Return an architecture that states what it must, in values that it can have.

    Args:
        value: open_clip's `model_cfg`.
        where: What states it, for messages.

    Raises:
        ModelError: If it does not; the message names the entry and its value.
    """
    if not isinstance(value, dict):
        raise ModelError(f"Cannot use {where}: it has no 'model_cfg'.")
    for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)):
        if key not in value:
            raise ModelError(f"Cannot use {where}: '{key}' is missing from the architecture.")
        if not isinstance(value[key], kind) or isinstance(value[key], bool):
            wanted = "a whole number" if kind is int else "an object"
            raise ModelError(f"Cannot use {where}: its '{key}' is {value[key]!r:.80}, not {wanted}.")
    _check_size(value["embed_dim"], "embed_dim", _MAX_DIM, where)
    for tower in ("vision_cfg", "text_cfg"):
        for key, largest in _MAX_SIZES.items():
            entry = value[tower].get(key)
            for size in entry if isinstance(entry, (list, tuple)) else [entry]:
                if size is not None:
                    _check_size(size, f"{tower}.{key}", largest, where)
    check_tokenizer_options(value["text_cfg"], where)
    return value


def check_tokenizer_options(text_cfg: Mapping[str, Any], where: str) -> None:
    """Refuse options of a tokenizer that are not known to be harmless.

    open_clip hands them on as they are, and with some of them transformers imports Python from the folder.

    Args:
        text_cfg: The text tower's part of open_clip's configuration.
        where: What states them, for the message.

    Raises:
        ModelError: If there is such an option, or one has a value that it does not take.
    """
    options = text_cfg.get("tokenizer_kwargs")
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ModelError(f"Cannot use {where}: its 'tokenizer_kwargs' is {options!r:.80}, not an object.")
    for name, value in options.items():
        if name == "trust_remote_code" and value is False:
            continue
        kind = _TOKENIZER_OPTIONS.get(name)
        if kind is None:
            raise ModelError(
                f"Cannot use {where}: its tokenizer is given {name!r:.80} ({value!r:.80}), which is not "
                "known to be harmless, and imret runs no code that comes with a model.\nIf the model does "
                f"without it, take it out of 'tokenizer_kwargs'. Known are: {', '.join(_TOKENIZER_OPTIONS)}"
            )
        fits = value in kind if isinstance(kind, tuple) else type(value) is kind
        if not fits or (kind is list and not all(isinstance(entry, str) for entry in value)):
            wanted = " or ".join(map(repr, kind)) if isinstance(kind, tuple) else f"a {kind.__name__}"
            raise ModelError(
                f"Cannot use {where}: the option {name!r} of its tokenizer is {value!r:.80}, not {wanted}."
            )


def _is_deeper(value: object, levels: int) -> bool:
    """Whether JSON is nested deeper; what copies or hashes it would run out of stack."""
    inner: list[dict[str, Any] | list[Any]] = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels + 1):
        members = [entry.values() if isinstance(entry, dict) else entry for entry in inner]
        inner = [entry for some in members for entry in some if isinstance(entry, (dict, list))]
        if not inner:
            return False
    return True


def _check_size(size: object, name: str, largest: int, where: str) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= largest:
        raise ModelError(
            f"Cannot use {where}: its '{name}' is {size!r:.80}, not a whole number from 1 to {largest}."
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has {name}, which is no number of JSON")
