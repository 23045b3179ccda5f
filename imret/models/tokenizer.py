"""What text towers need of Hugging Face's `transformers`: tokenizers, beside open_clip's own.

Hides which of them a model has, that no code that comes with a model is run, and what is missing where one
cannot be loaded. CLIP's tokenizer without open_clip is in `imret.models.fast.tokenizer`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imret.errors import ModelError, summary
from imret.models.text_files import LOCAL_PREFIX, VOCABULARIES


def require_transformers(text_cfg: Mapping[str, Any], model_id: str) -> None:
    """Refuse a model whose text tower or tokenizer is one of `transformers`, where that is not installed.

    Args:
        text_cfg: The text tower's part of open_clip's configuration.
        model_id: Name of the model, for the message.

    Raises:
        ModelError: If it is missing; the message names the extra.
    """
    parts = [
        what
        for what, key in (("text tower", "hf_model_name"), ("tokenizer", "hf_tokenizer_name"))
        if text_cfg.get(key)
    ]
    if parts and importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"the {' and the '.join(parts)} of model {model_id!r} {'is' if len(parts) == 1 else 'are'} of "
            "Hugging Face's transformers, which is not installed: pip install 'imret[transformers]'"
        )


def refuse_foreign_code(text_tower: str) -> None:
    """Refuse a text tower of `transformers` that comes with code of its own, before open_clip builds it.

    Without a word, transformers would ask whoever sits at the terminal whether to run it.

    Args:
        text_tower: Name or folder of its configuration.

    Raises:
        ValueError: If it does; anything else that transformers raises for what it cannot read.
    """
    transformers: Any = importlib.import_module("transformers")  # optional, so not for the type checker
    transformers.AutoConfig.from_pretrained(text_tower, trust_remote_code=False)


def load_tokenizer(source: str, text_cfg: Mapping[str, Any], *, model_id: str) -> Any:
    """Return open_clip's tokenizer of a model; called with texts, it gives (B, context length) token ids.

    Args:
        source: What `open_clip.get_tokenizer` takes for the model.
        text_cfg: The text tower's part of open_clip's configuration.
        model_id: Name of the model, for messages.

    Raises:
        ModelError: If it cannot be loaded, or only by running code that came with the model.
    """
    require_transformers(text_cfg, model_id)
    from open_clip.factory import get_tokenizer

    named = text_cfg.get("hf_tokenizer_name")
    # A configuration may ask for it; and without a word, transformers asks whoever sits at the terminal.
    never: dict[str, Any] = {"trust_remote_code": False} if named else {}
    try:
        return get_tokenizer(source, **never)
    except Exception as error:  # from a damaged vocabulary to an unreachable hub
        folder = Path(source.removeprefix(LOCAL_PREFIX))
        if named and source.startswith(LOCAL_PREFIX) and not _has_vocabulary(folder):
            raise ModelError(
                f"cannot load the tokenizer of model {model_id!r}: the folder has none of its files, such as "
                f'tokenizer.json. Fetch them: python -c "from transformers import AutoTokenizer as T; '
                f'T.from_pretrained({named!r}).save_pretrained({str(folder)!r})"'
            ) from error
        raise ModelError(
            f"cannot load the tokenizer of model {model_id!r}: {summary(error)}."
            + (" imret runs no code that comes with a model." if "trust_remote_code" in str(error) else "")
        ) from error


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return how many tokens a whole text has for a model, those that begin and end it included.

    A text of more than the model's context is cut.

    Args:
        tokenizer: From `load_tokenizer`.
        text: As it is typed; it is cleaned as the model's texts are.
    """
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2  # type: ignore[no-untyped-call]
    # open_clip's SigLipTokenizer has no clean_fn: it always cleans in this way.
    clean = getattr(tokenizer, "clean_fn", None) or get_clean_fn("canonicalize")
    # verbose: it would tell of a text that is too long, which is what is found out here.
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        # open_clip adds the first and the last token itself in this mode, and one for the class.
        return len(tokenizer.tokenizer(clean(text), add_special_tokens=False, verbose=False).input_ids) + 3
    return len(tokenizer.tokenizer(clean(text), verbose=False).input_ids)
