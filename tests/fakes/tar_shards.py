"""Shards of drawn pictures, as WebDataset has them: tar files of JPEGs."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.fakes.pictures import draw_picture


def write_shard(file: Path, seeds: Iterable[int], *, extra: dict[str, bytes] | None = None) -> Path:
    """Write a tar file with a picture for each seed, named by it, and members of other bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for seed in seeds:
            picture = draw_picture(file.parent / "drawn.png", seed=seed)
            _add(tar, f"{seed:06}.png", picture.read_bytes())
            picture.unlink()
        for name, data in (extra or {}).items():
            _add(tar, name, data)
    return file


def write_shards(folder: Path, n: int, *, each: int, first_seed: int = 0) -> Path:
    """Write n tar files of so many pictures each."""
    for i in range(n):
        write_shard(folder / f"{i:05}.tar", range(first_seed + i * each, first_seed + (i + 1) * each))
    return folder


def make_unreadable(file: Path) -> None:
    """Put zeros in the place of a file's bytes; who looks at size and time only sees no change."""
    before = file.stat()
    file.write_bytes(b"\0" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
