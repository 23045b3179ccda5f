"""A version that cannot be written to, made so that Qdrant Edge can open it: it opens no file to read only.

What the engine writes to, be it only to open it, is copied to a temporary folder: its log, its
configuration, payloads, flags, and the vectors that have no index yet. What it never writes again, vectors
with an index and the index itself, which is most of a large collection, is linked. The copy lives as long as
the version is open.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from imret.errors import StoreError
from imret.store.embedded import full_disk, inventory
from imret.store.embedded.permissions import obstacle

LARGE_BYTES = 100_000_000  # what takes a while to copy, and is told
_SPARE_BYTES = 50_000_000
_CHUNK_BYTES = 1 << 20
_NEVER_WRITTEN = frozenset(
    {"matrix.dat", "quantized.data", "id_tracker.e2i", "id_tracker.i2e", "id_tracker.is_uuid"}
)


class Copy:
    """A version in a temporary folder, to be opened and thrown away.

    Attributes:
        version: Its folder, which is called as the original.
        note: What whoever opened it should know; empty where it was quick.
    """

    def __init__(self, temporary: tempfile.TemporaryDirectory[str], name: str, note: str) -> None:
        self._temporary = temporary
        self.version = Path(temporary.name, name)
        self.note = note

    def cleanup(self) -> None:
        """Remove it."""
        self._temporary.cleanup()


def copy_of(version: Path) -> Copy:
    """Return a version as the engine can open it.

    Args:
        version: Its folder, which nobody may write to meanwhile.

    Raises:
        StoreError: If its files cannot be read, or there is no room for the copy; the message says where it
            would have been, and how to name another place.
    """
    files = [(file, size) for file, size in _files_of(version)]
    needed = sum(size for file, size in files if not is_never_written(file.name))
    temporary = _temporary_folder(version, needed)
    note = ""
    if needed >= LARGE_BYTES:
        note = (
            f"collection {version.parent.name!r} cannot be written to, and Qdrant Edge opens no other: "
            f"{needed / 1e6:,.0f} MB of it are copied to {temporary.name!r} while it is open"
        )
    copy = Copy(temporary, version.name, note)
    try:
        for file, _ in files:
            target = copy.version / file.relative_to(version)
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_never_written(file.name):
                target.symlink_to(file)
            else:
                copy_sparse(file, target)
    except OSError as error:
        copy.cleanup()
        raise _unreadable(version, error) from error
    except BaseException:
        copy.cleanup()
        raise
    return copy


def is_writable(version: Path) -> bool:
    """Whether this user may write to all that the engine writes to; True where there is nothing."""
    for parent, _, names in os.walk(version):
        paths = [parent, *(os.path.join(parent, name) for name in names if not is_never_written(name))]
        if not all(os.access(path, os.W_OK) for path in paths):
            return False
    return True


def is_never_written(name: str) -> bool:
    """Whether a file belongs to what an index has been built for, and is replaced but never changed."""
    return name in _NEVER_WRITTEN or name.endswith(".bin")


def _files_of(version: Path) -> list[tuple[Path, int]]:
    """Return the files of a version, and the bytes that a copy of each takes."""
    files = []

    def fail(error: OSError) -> None:
        raise _unreadable(version, error) from error

    for parent, _, names in os.walk(version, onerror=fail):
        for name in names:
            file = Path(parent, name)
            if file.name == inventory.OPTIMIZING:
                continue
            try:
                info = file.stat()
            except OSError as error:
                raise _unreadable(version, error) from error
            # The engine's files are longer than what is in them; a medium without holes fills those up.
            files.append((file, min(info.st_size, info.st_blocks * 512)))
    return files


def _temporary_folder(version: Path, needed: int) -> tempfile.TemporaryDirectory[str]:
    """Make a folder where so many bytes fit: that for temporary files, else in memory.

    Raises:
        StoreError: If there is none.
    """
    places = [tempfile.gettempdir()] if _has_temporary_folder() else []
    places += [place for place in (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm") if os.path.isabs(place)]
    for place in places:
        full_disk.remove_left(Path(place))
        with suppress(OSError):
            if shutil.disk_usage(place).free >= needed + _SPARE_BYTES:
                return tempfile.TemporaryDirectory(prefix=f"{full_disk.PREFIX}{os.getpid()}-", dir=place)
    raise StoreError(
        f"the collection {version.parent.name!r} in {str(version.parent.parent)!r} cannot be written to, and "
        f"Qdrant Edge opens no other: {(needed + _SPARE_BYTES) / 1e6:,.0f} MB are needed to copy a part of "
        f"it, and none of {', '.join(map(repr, places)) or 'the folders for temporary files'} has them.\n"
        "Name a folder that has: TMPDIR=FOLDER imret ..., or make the store writable."
    )


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except OSError:  # none that can be written to
        return False
    return True


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file without the blocks that hold nothing: the engine's are mostly such."""
    zeros = bytes(_CHUNK_BYTES)
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        size, at = os.fstat(read.fileno()).st_size, 0
        write.truncate(size)
        while at < size:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing more; or a file system that does not know, where all is read
                if _knows_holes(read.fileno()):
                    return
                os.lseek(read.fileno(), at, os.SEEK_SET)
            data = read.read(_CHUNK_BYTES)
            if not data:
                return
            if data != zeros[: len(data)]:
                write.seek(at)
                _write_all(write.fileno(), data)
            at += len(data)


def _knows_holes(descriptor: int) -> bool:
    try:
        os.lseek(descriptor, 0, os.SEEK_HOLE)
    except OSError:
        return False
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _unreadable(version: Path, error: OSError) -> StoreError:
    where = Path(error.filename) if error.filename else version
    why = obstacle(where, store=version.parent.parent, write=False, error=error)
    return StoreError(
        f"cannot read the collection {version.parent.name!r} in {str(version.parent.parent)!r}: "
        + (why or f"{error.strerror or error}: {str(where)!r}")
        + ".",
        public=f"the collection {version.parent.name!r} cannot be read.",
    )
