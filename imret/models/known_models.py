"""Which models this user has chosen: only those may a collection name without a question.

A collection can come from somebody else, and names the model that is downloaded and loaded for it. So a name
that this user has given once is noted, with the fingerprint that the model had: one small file for each, in a
folder that only this user can write to, made whole or not at all, so that several processes need no lock.
Removing the folder forgets all.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from imret import system
from imret.defaults import DEFAULT_MODEL
from imret.escape import quoted
from imret.files import write_atomically
from imret.models.fingerprint import ModelFiles
from imret.settings import state_dir

FOLDER = "known-models"

# Of this process, by folder, whether or not that could be written to.
_noted: set[tuple[Path, str]] = set()


def is_known_name(name: str) -> bool:
    """Whether this user has used a model of that name, or it is the default; its files are not looked at.

    Args:
        name: As a collection has it.
    """
    if name == DEFAULT_MODEL:
        return True
    prefix = _prefix(name)
    return any(entry.startswith(prefix) for entry in _entries())


def is_known_model(name: str, files: ModelFiles) -> bool:
    """Whether this user has used this very model by that name, or it is the default.

    Args:
        name: As a collection has it.
        files: What it gives now.

    Raises:
        ModelError: If the weights cannot be read.
    """
    if name == DEFAULT_MODEL:
        return files.model_id == name  # and no folder here that is called like it
    noted = _entries()
    # Weights that were read by default are the same weights.
    return any(_entry(name, read) in noted for read in (files, files.by_default) if read is not None)


def note_model(
    files: ModelFiles, *, name: str | None = None, notify: Callable[[str], None] | None = None
) -> None:
    """Note that this user has chosen a model.

    Args:
        files: The model's.
        name: How a collection calls it; None for its own name.
        notify: Called with a sentence where it cannot be noted for later commands.

    Raises:
        ModelError: If the weights cannot be read.
    """
    name = files.model_id if name is None else name
    if is_known_model(name, files):
        return
    entry, folder = _entry(name, files), _folder()
    _noted.add((folder, entry))
    try:
        # Not in one: parents that mkdir makes get the permissions of any folder.
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(folder):
            raise PermissionError("others can write to it")
        content = json.dumps({"model": name, "fingerprint": files.fingerprint}, indent=2)
        write_atomically(folder / entry, content.encode() + b"\n", mode=0o600)
    except OSError as error:
        if notify is not None:
            notify(
                f"cannot note in {str(folder)!r} that you use the model {name!r}: {error.strerror or error}; "
                "where only a collection names it, --model is needed again"
            )


def _folder() -> Path:
    return state_dir() / FOLDER


def _entries() -> list[str]:
    folder = _folder()
    noted = [entry for where, entry in _noted.copy() if where == folder]
    try:
        return [*noted, *os.listdir(folder)] if _is_private(folder) else noted
    except OSError:
        return noted


def _is_private(folder: Path) -> bool:
    info = os.stat(folder)
    return stat.S_ISDIR(info.st_mode) and system.is_mine(info) and system.is_closed_to_others(info, 0o022)


def doubt_of_notes() -> str:
    """Return why what was noted before is not believed, with what mends it; empty if it is."""
    folder = _folder()
    try:
        if _is_private(folder):
            return ""
    except OSError:
        return ""
    return f"{str(folder)!r} has that, and others can write to it: chmod 700 {quoted(str(folder))}"


def _entry(name: str, files: ModelFiles) -> str:
    return f"{_prefix(name)}{files.fingerprint}.json"


def _prefix(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest() + "-"
