"""Notes on a picture that is taken although something about it is odd: a part is missing, or was guessed.

A reader of pictures is given `on_note` and calls it with words for people, such as "the last 6 % are
missing"; what is refused is an ImageError instead. Ingest counts the notes of its pictures and lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

OnNote: TypeAlias = Callable[[str], object]


def ignore_note(note: str) -> None:
    """Do nothing with a note: for callers that show a picture to somebody who sees what is wrong with it."""
