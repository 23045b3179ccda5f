"""A damaged collection of an embedded store: the error that says so, and what ends it."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from pathlib import Path

from imret.errors import StoreDamaged, StoreError
from imret.escape import escape_control, quoted
from imret.store.embedded import inventory

# Of the system's errors, those that say something of this moment, and nothing of the files.
_PASSING = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EAGAIN,
)
# What the engine says of files that it cannot read; other refusals say something of what it was asked.
_OF_FILES = re.compile(
    r"os error|i/?o error|no such file|corrupt|mmap|deseriali|end of file|unexpected end|invalid data|"
    r"checksum|(?:fail\w*|unable|cannot|could not|can't) (?:to )?(?:open|read|load|map|decode|parse)",
    re.IGNORECASE,
)
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
_LACKING = re.compile(r"no space left|not enough|out of memory|cannot allocate|cancell?ed|timed? ?out", re.I)


def damaged(collection: Path, reason: str, *, version: Path | None = None) -> StoreDamaged:
    """Return the error for a collection that has lost something, with the commands that end it.

    Args:
        collection: Its folder.
        reason: What it has lost, without a full stop.
        version: The version that has, if it is known; what is noted of it names the model and the folders.
            One that was being made beside the live one is begun again, and nothing else is touched.
    """
    name, store, reason = collection.name, str(collection.parent), escape_control(reason)
    noted = None if version is None else inventory.read(version)
    model, sources = (noted.model, noted.sources) if noted else (None, ())
    at = f" --db {shlex.quote(store)}"
    ingest = f"imret ingest {' '.join(map(quoted, sources)) or 'FOLDER'} --collection {name}"
    ingest += (f" --model {quoted(model)}" if model else "") + at
    if version is not None and _is_beside(version):
        text = (
            f"a new version of collection {name!r} in {store!r}, not complete yet, is damaged: {reason}.\n"
            f"Begin it again; meanwhile the old one is searched:\n  {ingest} --rebuild"
        )
        public = f"a new version of collection {name!r} is damaged."
    else:
        text = (
            f"collection {name!r} in {store!r} is damaged: {reason}.\n"
            f"Put the folder {str(collection)!r} back from a backup; or delete the collection, and ingest "
            "the pictures or import an export again:\n"
            f"  imret collections delete {name} --yes{at}\n"
            f"  {ingest}\n"
            f"  imret collections import FILE --collection {name}{at}"
        )
        public = (
            f"collection {name!r} is damaged. Where it is served, imret collections show {name} says how to "
            "mend it."
        )
    return StoreDamaged(text, public=public, model=model, sources=sources)


def _is_beside(version: Path) -> bool:
    """Whether another version than this one is live."""
    try:
        live = json.loads((version.parent / "live.json").read_bytes())["live"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(live, str) and live != version.name


def is_engine_failure(error: BaseException) -> bool:
    """Whether an error comes from Qdrant Edge: its errors have no class, and its panics are no Exception."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def of_engine(version: Path, operation: str, error: BaseException, *, hint: str = "") -> StoreError:
    """Return the error for what the engine said of a version.

    Args:
        version: Its folder.
        operation: What it was to do.
        error: What it raised.
        hint: What else may be the cause, a sentence.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    found = _SYSTEM_ERROR.search(text)
    number = int(found[1]) if found else 0
    doing = operation.replace("_", " ")
    if number in _PASSING or _LACKING.search(text):
        lacking = os.strerror(number) if number in _PASSING else escape_control(text.rstrip("."))
        free = "Free some space and run" if "space" in lacking.lower() else "Mend that and run"
        return StoreError(
            f"the embedded store failed to {doing} collection {version.parent.name!r} in "
            f"{str(version.parent.parent)!r}: {lacking}. {free} the command again."
        )
    is_panic = type(error) is not Exception
    if operation != "open" and not is_panic and not _OF_FILES.search(text):
        return StoreError(
            f"the embedded store failed to {doing} collection {version.parent.name!r} in "
            f"{str(version.parent.parent)!r}: {text.rstrip('.')}."
        )
    reason = f"Qdrant Edge failed to {doing} its files: {text.rstrip('.')}"
    reason += f". {hint.rstrip('.')}" if hint else ""
    return damaged(version.parent, reason, version=version)
