"""Where training pictures come from: a folder becomes records, and some are carved off for validation.

Hides what is left out and why. Opens no picture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imret.errors import DataError
from imret.folders import Found, Skipped, looks_like_picture, walk

# With the seed and a number it seeds a stream of random numbers of its own; finetune.data has the others.
_SPLIT = 2


@dataclass(frozen=True, slots=True)
class Record:
    """One training picture, before decoding.

    Attributes:
        path: Below the training folder, with forward slashes.
        category: First folder of the path.
        captions: Its own captions; empty where it has none.
        size_bytes: Size of the file.
    """

    path: str
    category: str
    captions: tuple[str, ...]
    size_bytes: int


def read_records(
    folder: str | os.PathLike[str], captions: Mapping[str, Sequence[str]] | None = None
) -> list[Record]:
    """List the pictures of a folder that has one sub-folder per category.

    Hidden files, files that are no pictures by their name, and pictures in no category are left out.

    Args:
        folder: The training folder; categories may hold folders of their own.
        captions: Captions by path below the folder, for some of the pictures or all.

    Returns:
        Records in the order of their paths.

    Raises:
        DataError: If the folder is missing or holds no pictures in categories, if there is only one
            category, or if captions were given and belong to no picture at all.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"training folder {str(root)!r} {what}. Give a folder with one sub-folder per category."
        )
    captions = captions or {}
    records: list[Record] = []
    loose = 0
    for path, size_bytes in sorted(_pictures(root)):
        if "/" not in path:
            loose += 1
            continue
        records.append(Record(path, path.split("/", 1)[0], tuple(captions.get(path, ())), size_bytes))
    if not records:
        found = f"{loose} pictures that lie in no category" if loose else "no pictures"
        raise DataError(
            f"training folder {str(root)!r} holds {found}. Put them in one sub-folder per category."
        )
    if captions and not any(record.captions for record in records):
        raise DataError(
            f"none of the {len(captions)} captioned paths is a picture of {str(root)!r}; the first is "
            f"{next(iter(captions))!r}, the first picture {records[0].path!r}. "
            "Write paths relative to that folder."
        )
    refuse_one_category(records, root)
    return records


def _pictures(root: Path) -> Iterator[tuple[str, int]]:
    """Give the path below `root` and the size of each file that is named like a picture."""
    for entry in walk(str(root)):
        if isinstance(entry, Found):
            yield entry.path, entry.info.st_size
        elif isinstance(entry, Skipped) and looks_like_picture(entry.path):
            yield entry.path, 0  # decoding will say what is wrong with it, and the report will


def refuse_one_category(records: Sequence[Record], root: Path) -> None:
    """Raise DataError if the records are all of one category, or none."""
    categories = {record.category for record in records}
    if len(categories) < 2:
        raise DataError(
            f"training folder {str(root)!r} has one category with pictures that can be read, "
            f"{next(iter(categories), '')!r}: there is nothing to tell apart. Add a second category."
        )


def manifest_hash(records: Sequence[Record]) -> str:
    """Return a sha256 over path, size and captions of every picture: the same data, the same hash."""
    digest = hashlib.sha256()
    for record in records:
        line = json.dumps([record.path, record.size_bytes, list(record.captions)])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def split_records(records: Sequence[Record], *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Carve validation off: the same share of every category, at least one picture of each that has two.

    Args:
        records: All usable records.
        share: Wanted share of validation, in [0, 1).
        seed: Which pictures; another seed, another validation.

    Returns:
        Positions of the training and of the validation records, each in order.
    """
    validation: set[int] = set()
    for number, positions in enumerate(by_category(records).values()):
        wanted = max(1, round(share * len(positions))) if share > 0 and len(positions) > 1 else 0
        chosen = np.random.default_rng((seed, _SPLIT, number)).permutation(len(positions))[:wanted]
        validation.update(positions[i] for i in chosen)
    return [i for i in range(len(records)) if i not in validation], sorted(validation)


def by_category(records: Sequence[Record]) -> dict[str, list[int]]:
    """Return the positions of each category's records, categories in order of name."""
    positions: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        positions[record.category].append(i)
    return dict(sorted(positions.items()))
