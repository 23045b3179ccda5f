"""Points that are known by their number, and what the tests' own programs do with an embedded store.

Loads neither pytest nor anything else that takes time: a program of a test is started dozens of times.
"""

from __future__ import annotations

import uuid

import numpy as np
from numpy.typing import NDArray

from imret.store import Identity
from imret.store.embedded.store import EdgeStore

DIM = 16
MODEL = Identity("ViT-tiny", "a1" * 32, DIM)
OTHER_MODEL = Identity("ViT-tiny-tuned", "b2" * 32, DIM)


def point_of(i: int) -> tuple[str, NDArray[np.float32], dict[str, object]]:
    """Return the id, vector and payload that number i always has."""
    vector = np.random.default_rng(i).standard_normal(DIM).astype(np.float32)
    return str(uuid.UUID(int=i + 1)), vector / np.linalg.norm(vector), {"path": f"{i}.jpg", "width": i}


def store_points(store: EdgeStore, numbers: range, *, name: str = "photos") -> None:
    points = [point_of(i) for i in numbers]
    with_name = store.open_version(name, MODEL)
    with_name.upsert([p[0] for p in points], np.stack([p[1] for p in points]), [p[2] for p in points])
    store.promote(name, MODEL)
    with_name.close()


def worker_pid(store: EdgeStore) -> int:
    assert store._worker is not None
    return store._worker._process.pid
