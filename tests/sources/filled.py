"""Collections of drawn pictures with vectors that no model made: where a vector goes is seen at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imret.store import Identity, Point, Store
from imret.store.payload import make_payload, modified_time, point_id

DIM = 8
MODEL = Identity("models/nature", "a1" * 32, DIM)


def write(root: Path | str, paths: Sequence[str]) -> None:
    """Write files, each with a content of its own."""
    for path in paths:
        file = os.fsencode(os.path.join(root, path))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as out:
            out.write(b"content of " + os.fsencode(path))


def vector_of(path: str) -> NDArray[np.float32]:
    """Return the vector that stands for a file's content."""
    seed = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:4], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def fill(store: Store, root: Path | str, paths: Sequence[str], *, name: str = "photos") -> None:
    """Store files, which need not exist, as pictures of a source."""
    payloads = []
    for path in paths:
        content = b"content of " + os.fsencode(path)
        category, _, below = path.partition("/")
        payloads.append(
            make_payload(
                source=str(root),
                path=path,
                category=category if below else None,
                sha256=hashlib.sha256(content).hexdigest(),
                width=4,
                height=3,
                size_bytes=len(content),
                modified=modified_time(0),
            )
        )
    with closing(store.open_version(name, MODEL)) as opened:
        opened.upsert(
            [point_id(str(root), path) for path in paths],
            np.stack([vector_of(path) for path in paths]),
            payloads,
        )
    if store.live(name) is None:
        store.promote(name, MODEL)


def contents(store: Store, name: str = "photos") -> dict[tuple[str, str], Point]:
    """Return all points by source and path."""
    with closing(store.open(name)) as opened:
        points = [point for batch in opened.scan(vectors=True) for point in batch]
    found = {(point.payload["source"], point.payload["path"]): point for point in points}
    assert len(found) == len(points), "a place is stored twice"
    return found
