"""The shards of a fake Qdrant, and their snapshots: real files of the engine, in the tar that a server makes.

Written by what Qdrant 1.19 does: a tar of `segments/ID.tar`, each with `snapshot/files/...`, and `wal/`; no
configuration of Edge's. The segments are made by Qdrant Edge, which shares them with the server, of the
points that the fake holds. Holes are left out, which the server does not do, as they are 200 MB a shard.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qe
from qdrant_client import models

from imret.store.embedded.engine_config import payload_index
from imret.store.filter import INDEXED_FIELDS

NUMBER_OF_SHARDS = 1


class Shards:
    """Which shards a node has, and the snapshots that were made of them.

    Args:
        points: Returns the points of a Qdrant collection, with vectors.

    Attributes:
        count: How many shards each collection has.
        here: Those that this node has; the rest is on another. None for all.
        state: Of those that are here.
        damage: Called with a snapshot that was just made, to change it.
        left: Names of the snapshots that were made and not removed.
    """

    def __init__(self, points: Callable[[str], list[models.Record]]) -> None:
        self._points = points
        self.count = NUMBER_OF_SHARDS
        self.here: set[int] | None = None
        self.state = "Active"
        self.damage: Callable[[Path], None] = lambda file: None
        self.left: dict[str, Path] = {}
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # it waits for no disk
        self._folder = tempfile.TemporaryDirectory(prefix="imret-shards-", dir=memory)

    def close(self) -> None:
        self._folder.cleanup()

    def where(self, name: str) -> dict[str, Any]:
        """Return what `GET /collections/NAME/cluster` does."""
        here = set(range(self.count)) if self.here is None else self.here
        sizes = [len(self._of(name, shard)) for shard in range(self.count)]
        return {
            "peer_id": 1,
            "shard_count": self.count,
            "local_shards": [
                {"shard_id": shard, "points_count": sizes[shard], "state": self.state}
                for shard in sorted(here)
            ],
            "remote_shards": [
                {"shard_id": shard, "peer_id": 2, "state": "Active"}
                for shard in range(self.count)
                if shard not in here
            ],
            "shard_transfers": [],
        }

    def make(self, name: str, shard: int) -> dict[str, Any]:
        """Make a snapshot."""
        if self.here is not None and shard not in self.here:
            raise LookupError(f"Not found: Shard {shard} doesn't exist on this peer")
        file = Path(self._folder.name, f"{name}-shard-{shard}-{uuid.uuid4().hex}.snapshot")
        points = self._of(name, shard)
        with tempfile.TemporaryDirectory(dir=self._folder.name) as work:
            _write_shard(Path(work, "shard"), points, steps=1 + 2 * shard)
            _pack(Path(work, "shard"), Path(work, "packed"), file)
        self.left[file.name] = file
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        about = {"name": file.name, "creation_time": None, "size": file.stat().st_size, "checksum": digest}
        self.damage(file)
        return about

    def file(self, snapshot: str) -> Path:
        return self.left[snapshot]

    def remove(self, snapshot: str) -> bool:
        self.left.pop(snapshot).unlink()
        return True

    def _of(self, name: str, shard: int) -> list[models.Record]:
        return [one for one in self._points(name) if uuid.UUID(str(one.id)).int % self.count == shard]


def _write_shard(folder: Path, points: list[models.Record], *, steps: int) -> None:
    """Write the files of a shard, whose last change has a number that grows with the steps."""
    folder.mkdir()
    size = len(points[0].vector) if points and isinstance(points[0].vector, list) else 8
    shard = qe.EdgeShard.create(
        str(folder),
        qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(size=size, distance=qe.Distance.Cosine, on_disk=True),
            hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=200, full_scan_threshold=10_000),
            quantization_config=qe.ScalarQuantizationConfig(
                type=qe.ScalarType.Int8, quantile=0.99, always_ram=True
            ),
            optimizers=qe.EdgeOptimizersConfig(indexing_threshold=1),
        ),
    )
    for field in INDEXED_FIELDS:
        shard.update(qe.UpdateOperation.create_field_index(field, payload_index(field)))
    for _ in range(steps):
        stored = [
            qe.Point(id=str(one.id), vector=np.asarray(one.vector, np.float32), payload=one.payload or {})
            for one in points
        ]
        shard.update(qe.UpdateOperation.upsert_points(stored))
    shard.flush()
    shard.optimize()
    shard.flush()
    shard.close()


def _pack(shard: Path, packed: Path, file: Path) -> None:
    (packed / "segments").mkdir(parents=True)
    tar = ["tar", "--sparse", "--format=gnu", "--create", "--file"]
    for segment in (shard / "segments").iterdir():
        name = ["--transform", "s,^[.],snapshot/files,", "--directory", str(segment), "."]
        subprocess.run([*tar, str(packed / "segments" / f"{segment.name}.tar"), *name], check=True)
    shutil.copytree(shard / "wal", packed / "wal", ignore=shutil.ignore_patterns(".wal"))
    subprocess.run([*tar, str(file), "--directory", str(packed), "segments", "wal"], check=True)
