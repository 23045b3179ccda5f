"""CLIP's tokenizer without open_clip, whose import takes longer than a query: texts to the same token ids.

A text is mended (ftfy), unescaped, put into lower case and cut into words, and each word into the byte pairs
of the vocabulary that open_clip brings. Source: Radford et al. (2021), "Learning Transferable Visual Models
From Natural Language Supervision", section 2.4; Sennrich et al. (2016), "Neural Machine Translation of Rare
Words with Subword Units", https://arxiv.org/abs/1508.07909, algorithm 1.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import warnings
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import ModelError

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
# 256 bytes within a word, 256 at its end, a token for each merge, and the two that begin and end a text.
_MERGES = 49408 - 2 * 256 - 2
BEGIN, END = 49406, 49407
VOCAB_SIZE = 49408
_SPECIAL = {"<start_of_text>": BEGIN, "<end_of_text>": END}
_WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class TextTruncated(UserWarning):
    """A text was longer than the model's context, and what did not fit was cut off."""


def warn_truncated(texts: Sequence[str], length: int, *, stacklevel: int) -> None:
    """Warn of each text that was cut to `length` tokens; the stack level counts from the caller."""
    for text in texts:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        warnings.warn(
            f"A text is longer than the {length} tokens that the model reads, and was cut: {shown!r}",
            TextTruncated,
            stacklevel=stacklevel + 1,
        )


def is_clip_tokenizer(tokenizer: str, text_cfg: Mapping[str, Any]) -> bool:
    """Whether a model reads the tokens of this module.

    Args:
        tokenizer: `imret.models.fingerprint.ModelFiles.tokenizer`.
        text_cfg: The text tower's part of open_clip's configuration.
    """
    # open_clip knows SigLIP's tokenizers by the name of a built-in architecture.
    siglip = "siglip" in tokenizer.lower() and ":" not in tokenizer
    return not (siglip or text_cfg.get("hf_tokenizer_name") or text_cfg.get("tokenizer_kwargs"))


def token_ids(text: str) -> list[int]:
    """Return the ids of all tokens of a text, with those that begin and end it: at least 2.

    Raises:
        ModelError: If open_clip's vocabulary is not there.
    """
    return [BEGIN, *(token for word in _words(_cleaned(text)) for token in _word_ids(word)), END]


def padded(ids: Sequence[Sequence[int]], length: int) -> NDArray[np.int64]:
    """Return token ids as a tower takes them: cut to `length`, the last then being the end, or filled with 0.

    Returns:
        (N, length) int64.
    """
    rows = np.zeros((len(ids), length), dtype=np.int64)
    for row, tokens in zip(rows, ids, strict=True):
        row[: len(tokens)] = tokens[:length]
        if len(tokens) > length:
            row[-1] = END
    return rows


# ---- Words --------------------------------------------------------------------------------------------


def _cleaned(text: str) -> str:
    # Nothing there to mend, and ftfy takes longer to import than a short text to encode.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        # Twice: what was escaped on its way to the web, and again on its way into a caption.
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _words(text: str) -> list[str]:
    regex: Any = importlib.import_module("regex")  # which has no types, and keeps what it compiled
    words: list[str] = regex.findall(_WORDS, text, regex.IGNORECASE)
    return words


@lru_cache(maxsize=4096)
def _word_ids(word: str) -> tuple[int, ...]:
    """Return the ids of one word's byte pairs: of all pairs side by side, the one learnt first is joined."""
    if word in _SPECIAL:
        return (_SPECIAL[word],)
    ranks, letters = load_vocabulary(), _letters()
    # (symbol, id) of each part; a symbol at the end of a word is another than the same within one.
    parts = [letters[byte] for byte in word.encode()]
    last, number = parts[-1]
    parts[-1] = (f"{last}</w>", number + 256)
    while len(parts) > 1:
        rank = min(ranks.get(f"{left} {right}", _MERGES) for (left, _), (right, _) in pairwise(parts))
        if rank == _MERGES:
            break
        joined = parts[:1]
        for part in parts[1:]:  # from left to right: of three in a row that are alike, the first two
            left = joined[-1][0]
            if ranks.get(f"{left} {part[0]}") == rank:
                joined[-1] = (left + part[0], 512 + rank)
            else:
                joined.append(part)
        parts = joined
    return tuple(number for _, number in parts)


# ---- The vocabulary -----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def load_vocabulary() -> dict[str, int]:
    """Return the rank of each pair of symbols that is joined, "left right", in the order they were learnt.

    Raises:
        ModelError: If open_clip's vocabulary is not there.
    """
    import gzip

    package = importlib.util.find_spec("open_clip")
    places = list(package.submodule_search_locations or ()) if package is not None else []
    if not places:
        raise ModelError(
            "open_clip, whose vocabulary is needed, is not installed: pip install open_clip_torch"
        )
    path = Path(places[0]) / VOCABULARY
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n", _MERGES + 1)
        if len(lines) <= _MERGES:
            raise EOFError(f"it has {len(lines)} lines")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ModelError(
            f"Cannot read open_clip's vocabulary '{path}': {error}. Install it again: "
            "pip install --force-reinstall --no-deps open_clip_torch"
        ) from error
    return {pair: rank for rank, pair in enumerate(lines[1 : _MERGES + 1])}  # the first is a version


@lru_cache(maxsize=1)
def _letters() -> list[tuple[str, int]]:
    """Return the symbol and the id of each byte.

    Those of Latin-1 that can be seen stand for themselves and come first; the others, spaces and control
    characters, stand after the last of Latin-1 in the same order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    letters = {byte: (chr(byte), number) for number, byte in enumerate(visible)}
    letters |= {byte: (chr(256 + i), len(visible) + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]
