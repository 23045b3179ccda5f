"""Small files kept on disk by key and bounded in bytes, for all processes that name the same folder.

Whatever is wrong with the disk, nothing is raised: what cannot be kept has to be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from pathlib import Path

from imret import system
from imret.files import write_atomically

_BLOCK_BYTES = 4096
_SHARD_BYTES = 8 << 20
_DIGEST_BYTES = 32
_ABANDONED_S = 3600.0
_SHARD_NAME = re.compile(r"[0-9a-f]{5,}")
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.part")


class DiskCache:
    """Bytes by key, whole or absent, those used longest ago let go. Thread-safe.

    The folder is divided into shards of 8 to 16 MiB, each with an equal share of the bytes; a key belongs to
    one of them by its hash. Before a write, the files of that one shard are looked at (some five hundred,
    however many there are in all), and those used longest ago make room. So there is no index to lock, to
    rebuild or to get wrong, and the bound holds across processes and kills; what is given up is that the
    order of use holds within a shard, not over all. Processes that write to one shard at the same moment may
    exceed its share by what each of them writes, until the next write.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Remember the folder; it is made, for this user only, when something is first kept.

        Args:
            folder: For these files alone.
            max_bytes: Counted in blocks of 4 KiB, as file systems give them out. 0 keeps nothing.
        """
        self._folder = folder
        self._n_shards = max(1, max_bytes // _SHARD_BYTES)
        self._share = max_bytes // self._n_shards
        self._is_tidy = False

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, and note the use; None if it is not there or damaged.

        Args:
            key: 64 hex digits that look random, such as a SHA-256.
        """
        path = self._path(key)
        try:
            handle = os.open(path, os.O_RDONLY | system.NOFOLLOW | system.NONBLOCK | system.BINARY)
            with os.fdopen(handle, "rb") as file:
                whole = file.read()
        except OSError:
            return None
        data = whole[_DIGEST_BYTES:]
        if whole[:_DIGEST_BYTES] != _digest(key, data):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # a disk that may only be read still answers
            os.utime(path)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes: all of them or, where the disk refuses or they are more than a shard takes, none."""
        needed = _on_disk(_DIGEST_BYTES + len(data))
        if needed > self._share:
            return
        path = self._path(key)
        with contextlib.suppress(OSError):
            # Not in one: parents that mkdir makes get the permissions of any folder.
            self._folder.mkdir(mode=0o700, exist_ok=True, parents=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._tidy()
            _make_room(path.parent, self._share - needed)
            write_atomically(path, _digest(key, data) + data, mode=0o600)

    def _path(self, key: str) -> Path:
        return self._folder / f"{int(key[:12], 16) % self._n_shards:05x}" / key

    def _tidy(self) -> None:
        """Once a process, remove what is not looked at: shards of a larger bound, entries beside the shards.

        An older imret kept its entries in the folder itself.
        """
        if self._is_tidy:
            return
        self._is_tidy = True
        _make_room(self._folder, 0)
        for name in os.listdir(self._folder):
            if _SHARD_NAME.fullmatch(name) and int(name, 16) >= self._n_shards:
                shard = self._folder / name
                with contextlib.suppress(OSError):
                    _make_room(shard, 0)
                    shard.rmdir()


def _make_room(shard: Path, limit: int) -> None:
    """Remove files of a shard, used longest ago first, until the others take no more than `limit` bytes."""
    files: list[tuple[int, int, str]] = []
    total = 0
    long_ago = time.time_ns() - int(_ABANDONED_S * 1e9)
    with os.scandir(shard) as entries:
        for entry in entries:
            # Two processes remove the same files; and what is not ours stays.
            with contextlib.suppress(FileNotFoundError):
                info = entry.stat(follow_symlinks=False)
                if not _ENTRY_NAME.fullmatch(entry.name) or not stat.S_ISREG(info.st_mode):
                    continue
                if entry.name.startswith("."):
                    if info.st_mtime_ns < long_ago:  # of a process that was killed
                        os.unlink(entry.path)
                    continue
                files.append((info.st_mtime_ns, _on_disk(info.st_size), entry.path))
                total += files[-1][1]
    if total <= limit:
        return
    for _, n_bytes, path in sorted(files):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= n_bytes
        if total <= limit:
            return


def _on_disk(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _digest(key: str, data: bytes) -> bytes:
    # The key too: an entry under another's name, as a file system check may leave it, is damage.
    return hashlib.sha256(key.encode() + data).digest()
