"""The members of a tar file: their names and where they begin. Nothing is unpacked, and a name is no path.

What a tar file says of its own sizes is not believed, and only a block of it is in memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from imret.errors import counted

_MAX_HEADER_BYTES = 1_000_000  # of what a tar file says of a member
_BLOCK = 512
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

# What reading a tar file raises that is damaged, or made to do harm.
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError)


class DamagedTar(Exception):
    """A tar file is damaged or cut off; the message says after how many files."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar file.

    Attributes:
        name: As it is written there.
        at: Where its bytes begin.
        size_bytes: How many they are.
    """

    name: str
    at: int
    size_bytes: int


def members(file: IO[bytes]) -> Iterator[TarMember]:
    """Yield the regular files of a tar file in its order; whoever asks may move in the file in between.

    Raises:
        DamagedTar: When all that can be found has been, if the rest is damaged or not there.
    """
    n_files, at = 0, -1
    try:
        file.seek(0)
        if not file.read(1):
            raise tarfile.ReadError("the file is empty")
        file.seek(0)
        archive = tarfile.open(fileobj=_Bounded(file), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        while (member := archive.next()) is not None:
            if archive.offset <= at:
                raise tarfile.ReadError("a size below nothing")
            at = archive.offset
            archive.members = []  # which it would keep, all of them
            if member.isreg() and not member.issparse():
                n_files += 1
                yield TarMember(member.name, member.offset_data, member.size)
        file.seek(archive.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):  # at which tarfile ends without a word
            raise tarfile.ReadError("neither a file nor the mark of the end follows")
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DamagedTar(f"damaged or cut off after {counted(n_files, 'file')}: {reason}") from error


def compression(name: str, head: bytes = b"") -> str | None:
    """Return how a tar file is compressed, told by its name or first bytes; None if it is not."""
    lower = name.lower()
    by_content = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if by_content is not None:
        return by_content
    by_name = {
        "gz": "gzip",
        "tgz": "gzip",
        "bz2": "bzip2",
        "tbz2": "bzip2",
        "xz": "xz",
        "txz": "xz",
        "zst": "zstd",
    }
    return by_name.get(lower.rpartition(".")[2], "lz4") if lower.endswith(COMPRESSED) else None


def how_to_unpack(name: str, kind: str) -> str:
    """Return what to do about a tar file that is compressed, as the reason why it is not read."""
    command = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd", "lz4": "unlz4"}[kind]
    return (
        f"a tar file in {kind}, in which no picture can be found without reading all before it, and which "
        f"makes pictures no smaller. Unpack it once, to a .tar: {command} {name}"
    )


class _Bounded:
    """A file that is read a little at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header that asks for {size:,} bytes")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()
