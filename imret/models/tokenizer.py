"""The tokenizers of models: CLIP's own, and those of open_clip and of Hugging Face's `transformers`.

Hides which of them a model has, that no code that comes with a model is run, and what is missing where one
cannot be loaded. CLIP's own is `imret.models.fast.tokenizer`, whose pairs open_clip's are joined by, too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imret.errors import ModelError, summary
from imret.models.configuration import check_tokenizer_options
from imret.models.download import TOKENIZER_FILES, Wanted, cached_folder, fetch
from imret.models.fast.tokenizer import is_clip_tokenizer, join_pairs, padded, shortened, token_ids
from imret.models.published import CONFIG_NAME
from imret.models.text_files import LOCAL_PREFIX, VOCABULARIES, refuse_irregular_files

if TYPE_CHECKING:
    import torch


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
        ValueError: If it does, or is of a kind that open_clip makes no tower of; anything else that
            transformers raises for what it cannot read.
    """
    refuse_irregular_files(Path(text_tower))
    transformers: Any = importlib.import_module("transformers")  # optional, so not for the type checker
    config = transformers.AutoConfig.from_pretrained(text_tower, trust_remote_code=False)
    kinds = importlib.import_module("open_clip.hf_configs").arch_dict
    if config.model_type not in kinds:  # transformers may have the configuration and not the tower
        raise ValueError(
            f"its text tower is of the kind {config.model_type!r}, and open_clip knows {', '.join(kinds)}"
        )


def load_tokenizer(source: str, text_cfg: Mapping[str, Any], *, model_id: str) -> Any:
    """Return the tokenizer of a model; called with texts, it gives (B, context length) token ids.

    Longer texts are cut; of one without end the caller cuts off what nobody reads (`shortened`).

    Args:
        source: What `open_clip.get_tokenizer` takes for the model.
        text_cfg: The text tower's part of open_clip's configuration.
        model_id: Name of the model, for messages.

    Raises:
        ModelError: If it cannot be loaded, or only by running code that came with the model, or is given
            options that are not known.
    """
    folder = Path(source.removeprefix(LOCAL_PREFIX))
    where = f"'{folder / CONFIG_NAME}'" if source.startswith(LOCAL_PREFIX) else f"{CONFIG_NAME} of {model_id}"
    check_tokenizer_options(text_cfg, where)
    require_transformers(text_cfg, model_id)
    if is_clip_tokenizer(source, text_cfg):
        return ClipTokenizer(int(text_cfg.get("context_length", 77)))
    from open_clip.factory import get_tokenizer
    from open_clip.tokenizer import SimpleTokenizer

    named = text_cfg.get("hf_tokenizer_name")
    if named:
        refuse_irregular_files(folder if source.startswith(LOCAL_PREFIX) else Path(named))
    # A configuration may ask for it; and without a word, transformers asks whoever sits at the terminal.
    never: dict[str, Any] = {"trust_remote_code": False} if named else {}
    if named and not source.startswith(LOCAL_PREFIX) and not os.path.exists(named):
        cached = _from_cache(named, text_cfg, model_id)
        if cached is not None:
            return cached
    try:
        tokenizer = get_tokenizer(source, **never)
    except Exception as error:  # from a damaged vocabulary to an unreachable hub
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
    if isinstance(tokenizer, SimpleTokenizer):
        _make_quick(tokenizer)
    return tokenizer


def _from_cache(repo: str, text_cfg: Mapping[str, Any], model_id: str) -> Any:
    """Return a tokenizer of the hub as `open_clip.get_tokenizer` makes it, of its files in the cache.

    By the name of its repository, transformers asks the hub each time, and tries for a minute where there is
    no network.

    Returns:
        The tokenizer; None where its files are not all there, and can be had.

    Raises:
        ModelError: If they are not there, and the hub cannot be reached.
    """
    folder = cached_folder(repo, TOKENIZER_FILES[:2])
    if folder is None:
        # Some repositories have neither of the first two; all have the last.
        probed = (*TOKENIZER_FILES[:2], "config.json")
        fetch(Wanted(model_id, repo, probed, TOKENIZER_FILES[1:], is_weights=False))
        return None
    from open_clip.tokenizer import HFTokenizer

    options = {**text_cfg.get("tokenizer_kwargs", {}), "trust_remote_code": False}
    with contextlib.suppress(Exception):  # whatever they lack, the hub may have
        return HFTokenizer(
            str(folder),
            context_length=int(text_cfg.get("context_length", 77)),
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            **options,
        )
    return None


class ClipTokenizer:
    """CLIP's tokenizer as a torch tower takes it, equal to open_clip's `SimpleTokenizer` without options.

    Args:
        context_length: Tokens that a model reads, where a call does not say it.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        import torch

        length = context_length or self.context_length
        return torch.from_numpy(padded([token_ids(text, enough=length) for text in texts], length))


def _make_quick(tokenizer: Any) -> None:
    """Let open_clip's tokenizer join pairs by a heap: on its own it goes over a word for each rank."""
    ranks, known = tokenizer.bpe_ranks, dict(tokenizer.cache)  # so far the special tokens, which stay whole

    @lru_cache(maxsize=4096)
    def bpe(word: str) -> str:
        if word in known:
            return str(known[word])
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        return " ".join(part for part, _ in join_pairs(symbols, lambda left, right: ranks.get((left, right))))

    tokenizer.bpe = bpe


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def count_tokens(tokenizer: Any, text: str, *, enough: int | None = None) -> int:
    """Return how many tokens a whole text has for a model, those that begin and end it included.

    A text of more than the model's context is cut.

    Args:
        tokenizer: From `load_tokenizer`.
        text: As it is typed; it is cleaned as the model's texts are.
        enough: If there are more than so many, how many may be left open.
    """
    text = shortened(text)
    if isinstance(tokenizer, ClipTokenizer):
        return len(token_ids(text, enough=enough))
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
