"""What a model has kept: how well captions find pictures that have nothing to do with its categories."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imret.errors import DataError
from imret.evaluation.pictures import encode

if TYPE_CHECKING:
    from imret.encoder import Encoder

# Queries ranked together.
_QUERIES = 256


@dataclass(frozen=True)
class Captioned:
    """Captioned pictures: their folder, paths, and (caption, index of its picture)."""

    root: Path
    paths: list[str]
    captions: list[tuple[str, int]]


def read_captioned(file: str | os.PathLike[str]) -> Captioned:
    """Read a captions file.

    Raises:
        DataError: If it cannot be read, lacks a column, or names a picture that is not there.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = [(row["path"].strip(), row["caption"].strip()) for row in csv.DictReader(lines)]
    except OSError as error:
        raise DataError(f"cannot read the captions file {os.fspath(file)!r}: {error.strerror}.") from error
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"the captions file {os.fspath(file)!r} is not UTF-8 CSV with the columns path and "
            f"caption in every line: {error!r}."
        ) from error
    paths = list(dict.fromkeys(path for path, _ in rows))
    root = Path(file).parent
    if paths and not (root / paths[0]).exists() and (root / "images" / paths[0]).exists():
        root = root / "images"
    missing = [path for path in paths if not (root / path).is_file()]
    if missing or not paths:
        raise DataError(
            f"the captions file {os.fspath(file)!r} names {len(missing) or 'no'} pictures that are not in "
            f"{str(root)!r}{f', the first {missing[0]!r}' if missing else ''}."
        )
    position = {path: i for i, path in enumerate(paths)}
    return Captioned(root, paths, [(caption, position[path]) for path, caption in rows])


def retention_of(captioned: Captioned, encoder: Encoder, on_picture: Callable[[], object]) -> dict[str, Any]:
    """Return how often a caption finds its picture, and a picture one of its captions."""
    images, good, skipped = encode(captioned.root, captioned.paths, encoder, on_picture)
    if skipped:
        raise DataError(f"picture {skipped[0]['path']!r} of the captions file: {skipped[0]['reason']}")
    texts = encoder.encode_texts([caption for caption, _ in captioned.captions])
    own = np.array([i for _, i in captioned.captions])
    ranks = []
    best_caption = np.full(len(good), np.inf)
    for start in range(0, len(texts), _QUERIES):
        rows = slice(start, start + _QUERIES)
        scores = texts[rows] @ images.T
        ranks.append((scores > np.take_along_axis(scores, own[rows, None], axis=1)).sum(axis=1))
    for start in range(0, len(good), _QUERIES):
        scores = images[start : start + _QUERIES] @ texts.T  # (b, T)
        for row, image in enumerate(range(start, start + len(scores))):
            best_caption[image] = (scores[row] > scores[row, own == image].max()).sum()
    text_ranks = np.concatenate(ranks)
    return {
        "queries": len(texts),
        "images": len(good),
        **{f"hit_rate@{k}": round(float((text_ranks < k).mean()), 4) for k in (1, 5, 10)},
        "image_to_text": {f"hit_rate@{k}": round(float((best_caption < k).mean()), 4) for k in (1, 5, 10)},
    }
