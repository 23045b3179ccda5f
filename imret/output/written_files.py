"""Files and folders that a command is asked to write, looked at before the work.

What could not be written is told before hours of work, and so is what would take the place of something that
the work reads. How a file is written then is in `imret.files`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from imret.datasets.scan import looks_like_picture
from imret.errors import DataError
from imret.files import check_writable, own_descriptor

# Of what lies in a folder that is read, such as a model: what is read of it, beside pictures.
_READ = (".safetensors", ".bin", ".pt", ".pth", ".csv", ".parquet")
_READ_NAMES = ("open_clip_config.json", "training.json", "tokenizer.json", "tokenizer_config.json")


def check_outputs(
    outputs: Mapping[str, str | None],
    *,
    inputs: Mapping[str, str | os.PathLike[str] | None] | None = None,
) -> None:
    """Refuse files that could not be written, are two outputs in one, or are read by the same command.

    Args:
        outputs: Files to write, by the option that names them; None where it is not given.
        inputs: Files and folders that are read, by what names them. What does not exist is none.

    Raises:
        DataError: If there is such a file, or one that is a picture; the message says which, and why.
    """
    seen: dict[object, str] = {}
    for option, file in outputs.items():
        if file is None:
            continue
        if file == "-":
            raise DataError(
                f"{option} - would be standard output. Name a file: {option} ./- for one named so."
            )
        try:
            check_writable(file)
        except OSError as error:
            raise DataError(
                f"cannot write {file!r}, which {option} names: {error.strerror}. Name another file."
            ) from error
        identity = _identity(file)
        if identity is None:  # two reports may go to one terminal
            continue
        if identity in seen:
            raise DataError(f"{seen[identity]} and {option} name the same file, {file!r}. Name two.")
        seen[identity] = option
        for name, given in (inputs or {}).items():
            if given is not None and _reads(os.fspath(given), file, identity):
                raise DataError(
                    f"{option} would write {file!r} over what is read as {name}. Name another file."
                )
        if looks_like_picture(os.path.realpath(file)) and os.path.isfile(file) and os.path.getsize(file):
            raise DataError(f"{option} would write over the picture {file!r}. Name another file.")


def check_output_folder(option: str, folder: str | os.PathLike[str] | None) -> None:
    """Refuse a folder that is none, or that could not be made or written to.

    Raises:
        DataError: If it is such a folder.
    """
    if folder is None:
        return
    existing = os.path.realpath(folder)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    reason = None
    if not os.path.isdir(existing):
        reason = f"{existing!r} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing!r} is protected from writing"
    if reason is not None:
        raise DataError(
            f"cannot write to the folder {os.fspath(folder)!r}, which {option} names: {reason}. Name another."
        )


def _identity(file: str) -> object | None:
    """Return what two names of one file share, also where it is not there yet; None for a pipe or device."""
    if own_descriptor(file) is not None:
        return None
    try:
        info = os.stat(file)
    except OSError:
        return os.path.realpath(file)
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None


def _reads(given: str, file: str, identity: object) -> bool:
    """Whether what is given to be read is this file, or a folder in which this file is read."""
    if not os.path.isdir(given):
        return os.path.exists(given) and _identity(given) == identity
    target = os.path.realpath(file)
    if not Path(target).is_relative_to(os.path.realpath(given)):
        return False
    if looks_like_picture(target):
        return True
    return os.path.exists(target) and (target.endswith(_READ) or os.path.basename(target) in _READ_NAMES)
