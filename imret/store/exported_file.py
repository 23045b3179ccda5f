"""An exported file on its disk: room for it, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from imret.errors import DataError
from imret.escape import escape_undecodable
from imret.files import check_writable, write_atomically

_SPARE_BYTES = 50_000_000  # left free on the disk that is exported to
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_whole(
    file: str | os.PathLike[str],
    write: Callable[[Path], object],
    *,
    overwrite: bool,
    advice: str = "Name another file, or replace it with --overwrite.",
) -> None:
    """Write a file whole or not at all, as `write_atomically` does.

    Args:
        file: Where to.
        write: Writes it to the path that it is given.
        overwrite: Replace a file that exists.
        advice: What to do where it exists and is not to be replaced.

    Raises:
        DataError: If the file exists and is not to be overwritten, is a folder, or cannot be written; also
            for an OSError of `write`, which is what a full disk raises.
    """
    shown = repr(escape_undecodable(os.fspath(file)))
    try:
        check_writable(file, overwrite=overwrite)
    except FileExistsError:
        raise DataError(f"{shown} exists already. {advice}") from None
    except OSError as error:
        raise DataError(f"cannot write {shown}: {error.strerror}. Name another file.") from error
    try:
        write_atomically(file, write, durable=True, overwrite=overwrite, wait=False)
    except BlockingIOError:
        raise DataError(f"another export is writing {shown} this moment. Name another file.") from None
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.exists(file):
            raise DataError(f"{shown} was made by somebody else meanwhile; nothing was written.") from None
        free = " Free some space, or write to another disk." if error.errno in _FULL else ""
        raise DataError(f"cannot write {shown}: {error.strerror or error}.{free}") from error


def check_space(part: str | int, vectors_bytes: int) -> None:
    """Refuse what cannot fit: the vectors alone, which do not compress.

    Raises:
        OSError: If the disk has too little space.
    """
    needed, free = vectors_bytes / 1e9, shutil.disk_usage(part).free / 1e9
    if free < needed + _SPARE_BYTES / 1e9:
        raise OSError(errno.ENOSPC, f"No space left: about {needed:,.1f} GB are needed, {free:,.1f} are free")
