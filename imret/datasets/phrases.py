"""A bank of everyday phrases: what a tuned model is held to, and asked about where there are no captions."""

from __future__ import annotations

import os
from pathlib import Path

from imret.errors import DataError

_BUILT_IN = Path(__file__).parent / "phrases.txt"
# Fewer would hold the model in too few directions.
_LEAST = 10


def read_phrases(file: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Return phrases, one a line of a UTF-8 file; empty lines and lines that begin with # are left out.

    Args:
        file: If None, the bank that comes with imret: people, things, places and what goes on among them.

    Raises:
        DataError: If the file cannot be read or holds fewer than ten different phrases.
    """
    path = Path(file) if file is not None else _BUILT_IN
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the phrases {str(path)!r}: {error}. Give a UTF-8 text file.") from error
    phrases = dict.fromkeys(
        " ".join(line.split()) for line in lines if line.strip() and line.strip()[0] != "#"
    )
    if len(phrases) < _LEAST:
        raise DataError(
            f"the phrases {str(path)!r} are {len(phrases)}, and at least {_LEAST} are needed, one a line."
        )
    return tuple(phrases)
