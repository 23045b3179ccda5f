"""What is wrong with a set of training pictures: copies, copies under two labels, copies of test pictures.

Works on what pictures look like; opens only the files that look like another, to see whether they are the
same to the byte. What is trained on is decided in `finetune.data.prepare`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.records import Record
from imret.images.phash import ImageHash, cluster, near_duplicates, unique


@dataclass(frozen=True, slots=True)
class Leak:
    """A picture that is left out of training because it is one that training is judged by.

    Attributes:
        path: The picture.
        like: The one that it is, or nearly is.
    """

    path: str
    like: str


@dataclass(frozen=True)
class Duplicates:
    """Pictures that are there more than once, as lists of paths, each list one picture.

    Attributes:
        exact: Files that are the same to the byte.
        near: Pictures that look alike, not all of them the same to the byte.
        conflicts: Of both, those that lie in several categories.
    """

    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    conflicts: list[list[str]] = field(default_factory=list)


def find_leaks(
    records: Sequence[Record],
    looks: Sequence[ImageHash],
    judged: Sequence[Record],
    judged_looks: Sequence[ImageHash],
) -> dict[int, Leak]:
    """Return which of N pictures equal, or nearly equal, one of M that training is judged by; by position."""
    firsts, numbers = unique(looks)
    judged_firsts, _ = unique(judged_looks)
    first_like: dict[int, int] = {}
    for one, other in near_duplicates([looks[i] for i in firsts], [judged_looks[j] for j in judged_firsts]):
        first_like.setdefault(one, judged_firsts[other])
    return {
        i: Leak(records[i].path, judged[first_like[number]].path)
        for i, number in enumerate(numbers)
        if number in first_like
    }


def find_groups(looks: Sequence[ImageHash]) -> NDArray[np.int64]:
    """Return for each of N pictures, (N,), the first of those that look alike, directly or through others."""
    firsts, numbers = unique(looks)
    groups = cluster(len(firsts), near_duplicates([looks[i] for i in firsts]))
    return np.array(firsts, dtype=np.int64)[groups[numbers]] if numbers else groups


def find_duplicates(
    folder: Path, records: Sequence[Record], looks: Sequence[ImageHash]
) -> tuple[NDArray[np.int64], Duplicates]:
    """Return the group of each of N pictures, (N,), and what groups of several there are.

    Args:
        folder: What the records' paths are below of.
        records: N pictures.
        looks: What each looks like.
    """
    groups = find_groups(looks)
    members: dict[int, list[Record]] = defaultdict(list)
    for record, number in zip(records, groups, strict=True):
        members[int(number)].append(record)
    found = Duplicates()
    for some in members.values():
        if len(some) < 2:
            continue
        same: dict[str, list[str]] = defaultdict(list)
        for record in some:
            same[_digest(folder / record.path)].append(record.path)
        found.exact.extend(paths for paths in same.values() if len(paths) > 1)
        if len(same) > 1:
            found.near.append([record.path for record in some])
        if len({record.category for record in some}) > 1:
            found.conflicts.append([record.path for record in some])
    return groups, found


def _digest(file: Path) -> str:
    """Return a file's sha256, or its own path where it cannot be read any more."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return str(file)
    return digest.hexdigest()
