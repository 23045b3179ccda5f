"""Duplicates among training pictures, duplicates with conflicting labels, and leaks from test pictures.

Compares perceptual hashes; opens only the files of near duplicates, to see whether they are the same to the
byte. What is trained on is decided in `finetune.data.prepare`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.records import Record
from imret.files import sha256_of
from imret.images.phash import ImageHash, cluster, first_near, unique


@dataclass(frozen=True, slots=True)
class Leak:
    """A picture left out of training because it duplicates one that the model is scored on.

    Attributes:
        path: The picture left out.
        like: The picture that it duplicates.
    """

    path: str
    like: str


@dataclass(frozen=True)
class Duplicates:
    """Pictures that occur more than once, as lists of paths, each list one picture.

    Attributes:
        exact: Files that are the same to the byte.
        near: Pictures that look alike, not all of them the same to the byte.
        conflicts: Those of both kinds that lie in several categories.
    """

    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)


def find_leaks(
    records: Sequence[Record],
    hashes: Sequence[ImageHash],
    scored: Sequence[Record],
    scored_hashes: Sequence[ImageHash],
) -> dict[int, Leak]:
    """Return, by position, which of N pictures duplicate one of M that the model is scored on."""
    firsts, numbers = unique(hashes)
    scored_firsts, _ = unique(scored_hashes)
    like = first_near([hashes[i] for i in firsts], [scored_hashes[j] for j in scored_firsts])
    return {
        i: Leak(records[i].path, scored[scored_firsts[like[number]]].path)
        for i, number in enumerate(numbers)
        if like[number] >= 0
    }


def find_duplicates(
    folder: Path, records: Sequence[Record], hashes: Sequence[ImageHash]
) -> tuple[NDArray[np.int64], Duplicates]:
    """Return the cluster of each of N pictures, (N,), and the clusters of several pictures.

    Args:
        folder: What the records' paths are relative to.
        records: N pictures.
        hashes: Their perceptual hashes.
    """
    groups = cluster(hashes)
    members: dict[int, list[Record]] = defaultdict(list)
    for record, number in zip(records, groups, strict=True):
        members[int(number)].append(record)
    duplicates = Duplicates()
    for group in members.values():
        if len(group) < 2:
            continue
        by_digest: dict[str, list[str]] = defaultdict(list)
        for record in group:
            by_digest[_digest(folder / record.path)].append(record.path)
        duplicates.exact.extend(paths for paths in by_digest.values() if len(paths) > 1)
        if len(by_digest) > 1:
            duplicates.near.append([record.path for record in group])
        if len({record.category for record in group}) > 1:
            duplicates.conflicts.append([record.path for record in group])
    return groups, duplicates


def _digest(file: Path) -> str:
    """Return a file's sha256, or its own path where it cannot be read any more."""
    try:
        with file.open("rb") as opened:
            return sha256_of(opened)
    except OSError:
        return str(file)
