"""Text from outside made fit to print: undecodable bytes and control characters written out."""

from __future__ import annotations

import shlex
import unicodedata


def escape_undecodable(text: str) -> str:
    r"""Return text with undecodable bytes (surrogate escapes) written out, as in "caf\xe9.jpg"."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def escape_control(text: str) -> str:
    r"""Return text, decodable, and without what a terminal would obey or hide: a line feed becomes "\x0a"."""
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else _escaped(char)
        for char in escape_undecodable(text)
    )


def quoted(path: str) -> str:
    """Return a path as it is typed as a word of a command, fit to print."""
    return shlex.quote(escape_control(path))


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else ascii(char)[1:-1]
