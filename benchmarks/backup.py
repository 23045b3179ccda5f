"""How long it takes to have a collection again: from a backup, and from an export, which is indexed anew.

    python benchmarks/backup.py [--points 30000] [--dim 256] [--runs 3]

On an embedded store, in turns; ratios are of each turn. A pull from a server is the same work as a restore,
and the way over the network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from machine import cores

from imret.store import Identity
from imret.store.backup import backup_collection, restore_collection
from imret.store.embedded.store import EdgeStore
from imret.store.parquet import export_collection, import_collection


def _fill(store: EdgeStore, n: int, dim: int) -> None:
    rng, identity = np.random.default_rng(0), Identity("drawn", "a1" * 32, dim)
    with closing(store.open_version("photos", identity)) as opened:
        for start in range(0, n, 1_000):
            rows = range(start, min(n, start + 1_000))
            vectors = rng.standard_normal((len(rows), dim)).astype(np.float32)
            payloads = [{"source": "/photos", "path": f"{i}.jpg", "category": f"c{i % 50}"} for i in rows]
            opened.upsert([str(uuid.UUID(int=i + 1)) for i in rows], vectors, payloads)
        opened.optimize()
    store.promote("photos", identity)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _line(name: str, values: list[float]) -> str:
    return f"| {name} | {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=30_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imret-backup-") as name, EdgeStore(Path(name, "db")) as store:
        _fill(store, options.points, options.dim)
        files = Path(name)
        making, having, sizes = [], [], []
        for run in range(options.runs):
            backup, export = files / f"{run}.backup", files / f"{run}.parquet"
            backed = _timed(lambda backup=backup: backup_collection(store, "photos", backup))
            exported = _timed(lambda export=export: export_collection(store, "photos", export))
            restored = _timed(lambda backup=backup: restore_collection(backup, store, "restored"))
            imported = _timed(lambda export=export: import_collection(export, store, "imported"))
            making.append(backed / exported)
            having.append(restored / imported)
            sizes.append(os.path.getsize(backup) / os.path.getsize(export))
            for one in ("restored", "imported"):
                store.drop(one)
    print(f"{options.points:,} points of {options.dim} numbers, {cores()}; {options.runs} turns\n")
    print("| backup over export | median (least to most) |\n|---|---|")
    print(_line("to make the file", making))
    print(_line("to have the collection again, ready to be searched", having))
    print(_line("bytes of the file", sizes))


if __name__ == "__main__":
    main()
