"""CLIP's tokenizer without open_clip, whose import takes longer than a query: texts to the same token ids.

A text is mended (ftfy), unescaped, put into lower case and cut into words, and each word into the byte pairs
of the vocabulary that open_clip brings. However long a word is, the time grows with its length and little
more: pairs wait in a heap. Source: Radford et al. (2021), "Learning Transferable Visual Models
From Natural Language Supervision", section 2.4; Sennrich et al. (2016), "Neural Machine Translation of Rare
Words with Subword Units", https://arxiv.org/abs/1508.07909, algorithm 1.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
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
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_SPECIAL = {"<start_of_text>": BEGIN, "<end_of_text>": END}
_WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


# What is read of a text. A model reads some dozens of tokens, of 32 bytes at most; what comes later is cut
# off there anyway, unless hundreds of signs make one, as in a text that is all spaces.
MAX_CHARACTERS = 100_000
# What is read of a word where only the first tokens count: many times what these can take, since a pair is
# joined or not by those beside it, and so on back to the begin.
_MAX_WORD_BYTES = 8192
_BYTES_A_TOKEN = 64
# Longer words hardly recur, but within the templates of one text.
_COMMON_CHARACTERS = 64


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


def shortened(text: str) -> str:
    """Return what is read of a text: its first `MAX_CHARACTERS`, spaces before it left out."""
    return text if len(text) <= MAX_CHARACTERS else text.lstrip()[:MAX_CHARACTERS]


def token_ids(text: str, *, enough: int | None = None) -> list[int]:
    """Return the ids of the tokens of a text, with those that begin and end it: at least 2.

    Args:
        text: Of which the first `MAX_CHARACTERS` are read.
        enough: How many ids are looked at. Of a text that has more the first are right, and so is that there
            are more; how many is not.

    Raises:
        ModelError: If open_clip's vocabulary is not there.
    """
    ids = [BEGIN]
    max_bytes = None if enough is None else max(_MAX_WORD_BYTES, _BYTES_A_TOKEN * enough)
    for word in _words(_cleaned(shortened(text))):
        ids += _ids_of(word, max_bytes)
        if enough is not None and len(ids) >= enough:
            break
    return [*ids, END]


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


def _words(text: str) -> Iterator[str]:
    regex: Any = importlib.import_module("regex")  # which has no types, and keeps what it compiled
    return (found[0] for found in regex.finditer(_WORDS, text, regex.IGNORECASE))


def _ids_of(word: str, max_bytes: int | None) -> tuple[int, ...]:
    return (_common_ids if len(word) <= _COMMON_CHARACTERS else _rare_ids)(word, max_bytes)


def _word_ids(word: str, max_bytes: int | None) -> tuple[int, ...]:
    """Return the ids of one word's byte pairs; where it is longer than `max_bytes`, of so many."""
    if word in _SPECIAL:
        return (_SPECIAL[word],)
    ranks, letters, numbers = load_vocabulary(), _letters(), _numbers()
    whole = word.encode()
    symbols = [letters[byte] for byte in whole[:max_bytes]]
    if len(symbols) == len(whole):
        symbols[-1] += "</w>"  # a symbol at the end of a word is another than the same within one
    return tuple(
        numbers[symbol] if rank is None else 512 + rank
        for symbol, rank in join_pairs(symbols, lambda left, right: ranks.get(f"{left} {right}"))
    )


_common_ids = lru_cache(maxsize=4096)(_word_ids)
_rare_ids = lru_cache(maxsize=64)(_word_ids)


def join_pairs(
    symbols: Sequence[str], rank_of: Callable[[str, str], int | None]
) -> list[tuple[str, int | None]]:
    """Join the symbols of a word pair by pair: of all pairs side by side always those learnt first.

    As algorithm 1 of Sennrich et al. (2016) does, which goes over the whole word for each rank; here a heap
    holds the pairs, n log n for n symbols.

    Args:
        symbols: Of the word, one a byte.
        rank_of: Gives the place of a pair in the order that pairs were learnt in; None of one that was not.

    Returns:
        The symbols that are left, each with the rank of the pair that it was joined of last, if it was.
    """
    n = len(symbols)
    parts: list[str | None] = list(symbols)  # None: joined to the one before
    joined_by: list[int | None] = [None] * n
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))

    def rank_at(left: int) -> int | None:
        """Return the rank of a part with the one after it; None where either is gone."""
        right = after[left]
        if left < 0 or right >= n:
            return None
        first, second = parts[left], parts[right]
        return None if first is None or second is None else rank_of(first, second)

    pairs = [(rank, i) for i in range(n - 1) if (rank := rank_at(i)) is not None]
    heapify(pairs)
    while pairs:
        first_rank, joined = pairs[0][0], []
        # All of one rank, from left to right (of three in a row that are alike, the first two), before any
        # pair that comes of them: it may have been learnt earlier, from other parts.
        while pairs and pairs[0][0] == first_rank:
            _, left = heappop(pairs)
            if rank_at(left) != first_rank:
                continue  # one of the two has been joined to another meanwhile
            right = after[left]
            parts[left], parts[right] = f"{parts[left]}{parts[right]}", None
            joined_by[left], after[left] = first_rank, after[right]
            if after[left] < n:
                before[after[left]] = left
            joined.append(left)
        for left in {place for part in joined for place in (before[part], part)}:
            if left >= 0 and (rank := rank_at(left)) is not None:
                heappush(pairs, (rank, left))
    return [(part, rank) for part, rank in zip(parts, joined_by, strict=True) if part is not None]


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
def _letters() -> list[str]:
    """Return the symbol of each byte.

    Those of Latin-1 that can be seen stand for themselves; the others, spaces and control characters, stand
    after the last of Latin-1 in the same order.
    """
    hidden = [byte for byte in range(256) if byte not in set(_VISIBLE)]
    letters = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    """Return the id of each symbol of one byte, within a word and at its end."""
    in_order = sorted(_letters(), key=lambda letter: (ord(letter) > 255, letter))  # those that are seen first
    return {
        symbol: number + 256 * at_end
        for number, letter in enumerate(in_order)
        for at_end, symbol in enumerate((letter, f"{letter}</w>"))
    }
