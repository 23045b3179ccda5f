"""Collections of an embedded store that an older imret made, and what becomes of them with `to_current`."""

from __future__ import annotations

import os
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as qe
from numpy.typing import NDArray

from imret.errors import StoreError
from imret.store import INDEXED_FIELDS, Creation, Filter, Identity, Match, Range
from imret.store.embedded import engine_config, locks
from imret.store.embedded.engine_config import index_changes, stored_creation
from imret.store.embedded.shard import Shard
from imret.store.embedded.store import EdgeStore
from imret.store.filter import INTEGER_FIELDS

MODEL = Identity("ViT-tiny", "a1" * 32, 64)
N = 3_000


def unit_vectors(n: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((n, MODEL.dim)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def fill(store: EdgeStore, name: str, n: int = N) -> None:
    with closing(store.open_version(name, MODEL)) as made:
        payloads = [{"category": f"c{i % 3}", "path": f"{i}.jpg", "width": i} for i in range(n)]
        made.upsert([str(uuid.UUID(int=i)) for i in range(n)], unit_vectors(n), payloads)
        made.optimize()
    store.promote(name, MODEL)


def make_as_an_older_imret(db: Path) -> None:
    """Make a collection whose paths and hashes have an index with links."""

    def older(field: str) -> object:
        if field in ("path", "sha256"):
            return qe.KeywordIndexParams(memory=qe.Memory.Cached)
        return engine_config.payload_index(field)

    with EdgeStore(db, index_from_kb=100) as store:
        fill(store, "photos")
    (folder,) = db.glob("photos/*/shard")
    shard = qe.EdgeShard.load(str(folder))
    for field in ("path", "sha256"):
        shard.update(qe.UpdateOperation.create_field_index(field, older(field)))
    shard.flush()
    assert set(index_changes(shard, all_alike=True)) == {"path", "sha256"}
    assert index_changes(shard, all_alike=False) == {}
    shard.close()
    for note in folder.parent.glob("flushed*.json"):  # of what lies there now
        note.unlink()


def recall(found: list[str], query: NDArray[np.float32]) -> float:
    best = np.argsort(-(unit_vectors(N) @ query))[:10]
    return len(set(found) & {str(uuid.UUID(int=int(i))) for i in best}) / 10


@pytest.mark.parametrize("how", ["bits4", "bits1", "binary"])
def test_an_older_collection_works_and_is_brought_up_to_date(tmp_path: Path, how: str) -> None:
    make_as_an_older_imret(tmp_path / "db")
    asked = Creation(quantize=how)  # type: ignore[arg-type]
    with EdgeStore(tmp_path / "db") as store, closing(store.open("photos")) as opened:
        assert opened.creation() == Creation(quantize="int8", originals="cold", quantized="cached")
        assert opened.to_current() == ["index of path", "index of sha256"]
        assert opened.to_current() == []
        assert opened.to_current(asked) == [how]
        opened.optimize()
        assert opened.creation() == asked.over(Creation(originals="cold", quantized="cached"))
        assert opened.count() == N
        assert opened.stats().indexed == N
        only = Filter(must=(Match("path", ("7.jpg",)),))
        assert [hit.payload["width"] for hit in opened.search(unit_vectors(1)[0], limit=5, filter=only)] == [
            7
        ]
        few = Filter(must=(Range("width", gte=10, lt=20),))
        assert opened.count(few) == 10
        least = {"bits4": 0.99, "bits1": 0.6, "binary": 0.3}[how]
        queries = unit_vectors(N)[:40] + 0.5 * np.roll(unit_vectors(N)[:40], 1, axis=0)
        shares = [recall([hit.id for hit in opened.search(row, limit=10)], row) for row in queries]
        assert np.mean(shares) >= least
    with EdgeStore(tmp_path / "db") as store, closing(store.open("photos")) as again:  # and it stays so
        assert again.creation().quantize == how
        assert again.to_current() == []
        assert again.count() == N
    (folder,) = tmp_path.glob("db/photos/*/shard")
    assert stored_creation(folder).quantize == how


def test_a_limit_ends_the_making_of_an_index_and_the_store_goes_on(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db", index_from_kb=100) as store:
        with closing(store.open_version("photos", MODEL)) as made:
            made.upsert(
                [str(uuid.UUID(int=i)) for i in range(N)], unit_vectors(N), [{"width": i} for i in range(N)]
            )
        store.promote("photos", MODEL)
        with closing(store.open("photos")) as opened:
            with pytest.raises(StoreError, match="is not built after 0 s, which was the limit") as caught:
                opened.optimize(timeout_s=0.001)
            assert f"Build it: imret collections optimize photos --db {tmp_path}/db" in str(caught.value)
            assert opened.count() == N  # through a process that took its place
            looks: list[object] = []
            opened.optimize(timeout_s=600, on_progress=looks.append)
            assert opened.stats().indexed == N


def test_what_a_killed_index_left_is_removed_by_the_next_and_is_no_loss(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db", index_from_kb=100) as store:
        fill(store, "photos")
    (folder,) = tmp_path.glob("db/photos/*/shard")
    left_over = folder / "temp_segments" / "segment_builder_x"
    left_over.mkdir(parents=True)
    (left_over / "matrix.dat").write_bytes(bytes(1_000))
    for name in ("once", "again"):  # found, and noted as what lies there; then gone
        with EdgeStore(tmp_path / "db") as store, closing(store.open_version("photos", MODEL)) as opened:
            assert left_over.exists() == (name == "once")
            opened.flush()
            if name == "once":
                opened.optimize()
            assert opened.count() == N


def test_numbers_paths_and_hashes_have_no_links_in_the_graph(tmp_path: Path) -> None:
    owner = locks.LockOwner(os.getpid(), "test", "")
    (tmp_path / "photos").mkdir()
    shard = Shard(tmp_path / "photos" / "v", MODEL, owner=owner, index_from_kb=100)
    try:
        known = shard.engine.info().payload_schema
        unlinked = {
            field for field in INDEXED_FIELDS if getattr(known[field].params, "enable_hnsw", None) is False
        }
    finally:
        shard.close()
    assert unlinked == {"path", "sha256", "unit", "modified", *INTEGER_FIELDS}


def test_a_shard_that_notes_nothing_is_taken_as_it_comes(tmp_path: Path) -> None:
    assert stored_creation(tmp_path) == Creation()
    (tmp_path / "edge_config.json").write_text('{"quantization_config": {"product": {}}, "vectors": []}')
    assert stored_creation(tmp_path) == Creation()
