"""From a stored place to the open file, trusting neither the one nor the file system between.

A payload is data that somebody else may have written, and folders may change between a look and an open.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from imret import system
from imret.errors import ImageError
from imret.escape import escape_undecodable
from imret.places.names import is_url
from imret.sources.named_roots import is_bucket
from imret.store.payload import file_of, path_of, place_of_file

_MAX_PATH_BYTES = 4096  # Linux opens none that is longer (PATH_MAX), so none was ingested
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """Where a payload says that its picture lies.

    Names may hold surrogate escapes, and joined have no NUL.

    Attributes:
        source: Exact: an absolute folder, or the URL of a bucket as ingest stores it.
        path: Exact, below it, with forward slashes; no part of it leads upwards.
        unit: Of a picture within a container (a tar, a Parquet file), that file's path below the source;
            None for a picture that is a file of its own.
        at: Of a member of a tar, the offset of its first byte.
        size_bytes: Of the picture's bytes, as ingest has read them.
        sha256: The same.
    """

    source: str
    path: str
    unit: str | None = None
    at: int | None = None
    size_bytes: int = 0
    sha256: str = ""

    @property
    def is_far(self) -> bool:
        """Whether it lies behind a URL."""
        return is_url(self.file)

    @property
    def file(self) -> str:
        """The file that holds it: an absolute path, or a URL."""
        return place_of_file(self.source, self.path if self.unit is None else self.unit)


def stored_place(payload: Mapping[str, Any]) -> StoredPlace:
    """Return the place that a payload like those of ingest names. Nothing is looked at.

    Raises:
        ImageError: If ingest would not have written it.
    """
    strange = ImageError("the stored place of this picture is not one that imret ingest writes")
    try:
        shown_source, shown_path = payload["source"], payload["path"]
        if not isinstance(shown_source, str) or not isinstance(shown_path, str):
            raise strange
        if len(shown_source) + len(shown_path) > 4 * _MAX_PATH_BYTES:  # before any work on it; \xff is four
            raise strange
        file, path = file_of(payload), path_of(payload)
        source = file[: -len(path) - 1] if "file_base64" in payload else shown_source
        if len(os.fsencode(file)) > _MAX_PATH_BYTES or "\0" in file:
            raise strange
        if (escape_undecodable(source), escape_undecodable(path)) != (shown_source, shown_path):
            raise strange
    except (KeyError, TypeError, ValueError, AttributeError):  # binascii.Error, UnicodeError: ValueErrors
        raise strange from None
    is_address = is_url(path)  # of a list
    # What ingest does not walk cannot come from it: no "..", no "a//b", no "/etc", whose first part is "".
    if _has_odd_parts(path.partition("://")[2] if is_address else path):
        raise strange
    if not (os.path.isabs(source) or (is_bucket(source) and not is_address)):
        raise strange
    place = _with_content(StoredPlace(source, path), payload)
    if place is None:
        raise strange
    return place


def _with_content(place: StoredPlace, payload: Mapping[str, Any]) -> StoredPlace | None:
    """Add what tells the picture's bytes, without which none is read of a container or a bucket."""
    unit, at = payload.get("unit"), payload.get("at")
    if unit is None and not place.is_far:
        return place
    size, sha256 = _count(payload.get("size_bytes")), payload.get("sha256")
    if size is None or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return None
    if at is not None and _count(at) is None:
        return None
    if unit is not None:
        if not isinstance(unit, str) or not unit or is_url(place.path):
            return None
        if not str(payload["path"]).startswith(f"{unit}/"):
            return None
        unit = "/".join(place.path.split("/")[: len(unit.split("/"))])  # exact, as the path is
    return replace(place, unit=unit, at=at, size_bytes=size, sha256=sha256)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _has_odd_parts(path: str) -> bool:
    return any(part in ("", ".", "..") for part in path.split("/"))


def is_below(real: str, folder: str) -> bool:
    """Whether a real path lies below a folder's real path."""
    return real.startswith(folder.rstrip(os.sep) + os.sep)


# For search alone where the system can: a folder may be passed through that may not be listed.
_FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | system.DIRECTORY | system.NOFOLLOW
_OPENS_BELOW = os.open in os.supports_dir_fd  # a folder that is open
_FILE_FLAGS = os.O_RDONLY | system.NOFOLLOW | system.NONBLOCK | system.NOCTTY | system.BINARY


def open_beneath(real: str) -> tuple[BinaryIO, os.stat_result]:
    """Open the regular file at an absolute path that holds no symlink; where it holds one, fail.

    Raises:
        ImageError: If it is no regular file. Pipes and devices are not opened: that alone may do things.
        OSError: From any step; ELOOP or ENOTDIR at a symlink.
    """
    if not _OPENS_BELOW:
        return _open_whole(real)
    *above, name = real.split(os.sep)[1:]
    folder = os.open(os.sep, _FOLDER_FLAGS)
    try:
        for part in above:
            below = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = below
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise ImageError("not a regular file")
        handle = os.open(name, _FILE_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)
    return _checked(handle)


def _open_whole(real: str) -> tuple[BinaryIO, os.stat_result]:
    """Open a file by its whole path, where a system opens none below a folder: Windows.

    There a link that takes a folder's place between the look and the opening would be followed; to make one
    takes a right that users do not have.
    """
    if os.path.realpath(real) != real:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), real)
    if not stat.S_ISREG(os.stat(real, follow_symlinks=False).st_mode):
        raise ImageError("not a regular file")
    return _checked(os.open(real, _FILE_FLAGS))


def _checked(handle: int) -> tuple[BinaryIO, os.stat_result]:
    """Return an open file, if it is a regular one."""
    file = os.fdopen(handle, "rb")
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        file.close()
        raise ImageError("not a regular file")
    return file, info
