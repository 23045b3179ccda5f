"""One name in two normal forms of Unicode: decomposed on a Mac's disks (NFD), composed as it is typed (NFC).

A stored path stays as it is on disk, for it opens the file. Categories are stored composed, and whatever is
typed, or comes from a CSV file, is looked for in both forms.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from itertools import islice, product

# Of a path each folder may be in either form; a path with more than six such names is looked for in these.
_MOST_SPELLINGS = 64


def composed(name: str) -> str:
    """Return a name or a path in NFC: equal for two that look the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spellings(path: str) -> list[str]:
    """Return the ways a name or a path may be stored, as it was given first."""
    if path.isascii():
        return [path]
    forms = [
        dict.fromkeys((part, composed(part), unicodedata.normalize("NFD", part))) for part in path.split("/")
    ]
    ways = map("/".join, product(*forms))
    # The two that are one form throughout are never among those that are too many.
    whole = (path, composed(path), unicodedata.normalize("NFD", path))
    return list(dict.fromkeys((*whole, *islice(ways, _MOST_SPELLINGS))))


def on_disk(root: str | os.PathLike[str], paths: Iterable[str]) -> dict[str, str]:
    """Return for each path below a folder how it is spelled there; paths that nothing is at are left out.

    Args:
        root: The folder.
        paths: With forward slashes, in either form.
    """
    root = os.fspath(root)
    names: dict[str, dict[str, str]] = {}  # by folder, what is in it by its composed name
    found = {}
    for path in paths:
        if os.path.lexists(os.path.join(root, path)):
            found[path] = path
        elif not path.isascii() and (spelled := _spelled(root, path, names)) is not None:
            found[path] = spelled
    return found


def path_on_disk(path: str | os.PathLike[str]) -> str:
    """Return a path as it is spelled on disk; as it was given where nothing is there."""
    path = os.fspath(path)
    return on_disk("", [path]).get(path, path)


def _spelled(root: str, path: str, names: dict[str, dict[str, str]]) -> str | None:
    above = ""  # with its slash
    for number, part in enumerate(path.split("/")):
        if number:
            above += "/"
        if part and not os.path.lexists(os.path.join(root, above + part)):
            if above not in names:
                names[above] = _names_in(os.path.join(root, above) or ".")
            if (spelled := names[above].get(composed(part))) is None:
                return None
            part = spelled
        above += part
    return above


def _names_in(folder: str) -> dict[str, str]:
    try:
        return {composed(name): name for name in sorted(os.listdir(folder), reverse=True)}
    except (OSError, ValueError):
        return {}
