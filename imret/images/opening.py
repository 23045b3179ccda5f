"""Files of pictures, opened: regular ones alone, and with a reason where they cannot be."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, BinaryIO

from imret.errors import ImageError


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read.

    Raises:
        ImageError: If it cannot be, or is none.
    """

    def opener(name: str, flags: int) -> int:
        # Without O_NONBLOCK, opening a named pipe called a.jpg waits for a writer for ever.
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115 - returned open; Path.open has no opener
    except (OSError, ValueError) as error:
        raise ImageError(file_reason(error)) from error
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise ImageError("not a regular file")
    return file


def file_reason(error: OSError | ValueError) -> str:
    """Return what is wrong with a file, for people."""
    if isinstance(error, ValueError):
        return f"not a usable path: {error}"
    known = {
        errno.ENOENT: "no such file",
        errno.EACCES: "no permission to read it",
        errno.EPERM: "no permission to read it",
        errno.EISDIR: "it is a folder, not a file",
        errno.ELOOP: "a symbolic link that leads back to itself",
        errno.ENAMETOOLONG: "the path is too long",
        errno.EIO: "the disk reports a read error",
        errno.ESTALE: "the network file system lost the file",
    }
    return known.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


_SUFFIXES = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*", ".tif"),
)


def suffix_of(file: IO[bytes]) -> str:
    """Return the suffix that a picture's file is usually called by, by its first bytes; "" for others.

    Args:
        file: Open; it is at its start afterwards.
    """
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if head[:4] == b"RIFF":
        return ".webp"
    if head[4:8] == b"ftyp":
        return ".avif" if head[8:11] == b"avi" else ".heic"
    return next((suffix for mark, suffix in _SUFFIXES if head.startswith(mark)), "")


def read_head(file: IO[bytes]) -> bytes:
    """Return the first bytes, by which formats are told apart.

    Raises:
        ImageError: If there are none, or they cannot be read.
    """
    try:
        file.seek(0)
        head = file.read(32)
    except OSError as error:
        raise ImageError(file_reason(error)) from error
    if not head:
        raise ImageError("the file is empty")
    return head
