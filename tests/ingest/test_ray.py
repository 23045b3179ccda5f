"""The work spread over a real Ray cluster of two nodes on this machine, into a Qdrant over a real socket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from imret import Encoder
from imret.cli.main import cli
from imret.errors import DataError, ModelMismatch
from imret.store import Point, Store, open_store
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.shards import ShardSource
from ingest.units import ByUnits
from tests import ROOT
from tests.fakes.deadly import DEADLY_PICTURE, DEADLY_UNIT, write_hook
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_http import QdrantOverHTTP
from tests.fakes.tar_shards import make_unreadable, write_shard, write_shards

pytest.importorskip("ray", reason="Ray is not installed: pip install 'imret[ray]'")

pytestmark = [
    pytest.mark.ray,
    # Of Ray's own, as it ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    *(pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS),
]

RUNNING: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "check_content": False,
    "batch_size": 8,
    "workers": 1,
    "max_pixels": None,
}
OBJECTS_BYTES = 80_000_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of two CPUs each, which notice within seconds that one of them is gone."""
    hook = write_hook(tmp_path_factory.mktemp("hook"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(hook), str(ROOT)]))
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_health_check_initial_delay_ms", "1000")
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "2")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        from ray.cluster_utils import Cluster

        made = Cluster()
        for _ in range(2):
            made.add_node(num_cpus=2, object_store_memory=OBJECTS_BYTES, include_dashboard=False)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as server:
        yield server


def spread(store: Store, shards: Path, encoder: Encoder, address: str, **options: Any) -> Report:
    from ingest.spread import Spreading

    with Spreading(store, address, **RUNNING) as spreading:
        return ingest(
            store,
            [ShardSource(str(shards))],
            encoder=encoder,
            by_units=ByUnits(store, hands=spreading),
            **options,
        )


def points_of(store: Store, collection: str) -> dict[str, Point]:
    with closing(store.open(collection)) as opened:
        return {point.id: point for points in opened.scan(vectors=True) for point in points}


def assert_same(some: dict[str, Point], others: dict[str, Point]) -> None:
    assert some.keys() == others.keys()
    for id_, point in some.items():
        assert point.payload == others[id_].payload
        assert point.vector is not None
        assert others[id_].vector is not None
        np.testing.assert_allclose(point.vector, others[id_].vector, atol=1e-5)


def test_what_there_is_no_room_for_is_an_error_before_the_run(cluster: Any, qdrant: QdrantOverHTTP) -> None:
    from ingest.spread import Spreading

    with open_store(qdrant.url) as store:
        for asked, message in (({"actors": 5}, "2 nodes with 4 CPUs"), ({"gpus_per_actor": 1.0}, "0 GPUs")):
            with (
                pytest.raises(DataError, match=message),
                Spreading(store, cluster.address, **asked, **RUNNING),
            ):
                pass


def test_a_cluster_that_others_fill_is_an_error_and_not_a_wait(cluster: Any, qdrant: QdrantOverHTTP) -> None:
    import ray

    from ingest.spread import Spreading

    ray.init(address=cluster.address, log_to_driver=False)
    try:

        class Holder:
            def ready(self) -> None:
                pass

        holders = [ray.remote(num_cpus=2)(Holder).remote() for _ in range(2)]
        ray.get([holder.ready.remote() for holder in holders])
        with open_store(qdrant.url) as store:
            # What is free is told by the nodes now and then.
            deadline = time.monotonic() + 20
            while ray.available_resources().get("CPU", 0.0) >= 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            with (
                pytest.raises(DataError, match="others hold all but 0"),
                Spreading(store, cluster.address, **RUNNING),
            ):
                pass
    finally:
        ray.shutdown()


def test_nodes_with_other_weights_are_refused_before_the_first_picture(
    cluster: Any, qdrant: QdrantOverHTTP, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "shards", 1, each=2)
    model = write_random_model(tmp_path / "model", seed=1)
    encoder = Encoder(str(model), device="cpu", precision="fp32")
    assert encoder.images_fingerprint
    # What the nodes find by that name is another now.
    other = write_random_model(tmp_path / "other", seed=2)
    (other / "open_clip_model.safetensors").replace(model / "open_clip_model.safetensors")
    with open_store(qdrant.url) as store:
        with pytest.raises(ModelMismatch, match="has other weights there"):
            spread(store, shards, encoder, cluster.address)
        assert store.live("photos") is None


def test_a_picture_that_ends_its_process_is_a_skip_and_the_others_are_there(
    cluster: Any, qdrant: QdrantOverHTTP, encoder: Encoder, tmp_path: Path
) -> None:
    deadly = draw_picture(tmp_path / "deadly.png", seed=99).read_bytes() + DEADLY_PICTURE
    shards = tmp_path / "shards"
    write_shard(shards / "0.tar", range(6), extra={"deadly.png": deadly})
    write_shard(shards / "1.tar", range(6, 12))
    with open_store(qdrant.url) as store:
        report = spread(store, shards, encoder, cluster.address)
    assert (report.added, report.units) == (12, {"ingested": 2})
    (skip,) = report.skipped
    assert skip["path"].endswith("0.tar/deadly.png")
    assert "brought down the process" in skip["reason"]


def run_command(*words: str) -> Result:
    return CliRunner().invoke(cli, ["ingest", *words])


def test_a_unit_that_ends_its_actor_is_tried_three_times_and_the_command_ends_with_3(
    cluster: Any, qdrant: QdrantOverHTTP, random_model: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    write_shard(shards / f"{DEADLY_UNIT}.tar", range(3))
    write_shard(shards / "1.tar", range(3, 9))
    words = (str(shards), "--db", qdrant.url, "--model", str(random_model), "--device", "cpu")
    done = run_command(*words, "--ray", cluster.address, "--actors", "2", "--strict")
    assert done.exit_code == 3, done.output
    assert "Ray: 2 actors, each with 2 CPUs" in done.stderr
    assert "photos: 6 added" in done.stderr
    assert f"failed {shards}/{DEADLY_UNIT}.tar: failed 3 times" in done.stderr
    with open_store(qdrant.url) as store:
        version = store.version("photos")
        assert version is not None
        (line,) = store.ledger("photos", version).get(str(shards), [f"{DEADLY_UNIT}.tar"]).values()
        assert (line.attempts, line.digest) == (3, "")
    # It is left out from now on, and no actor is lost over it.
    again = run_command(*words, "--ray", cluster.address, "--actors", "2", "--strict")
    assert again.exit_code == 3, again.output
    assert "units: 1 done before, 1 failed" in again.stderr


def test_a_node_that_is_lost_in_the_middle_costs_nothing_and_the_second_run_opens_no_shard(
    cluster: Any, qdrant: QdrantOverHTTP, encoder: Encoder, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "shards", 6, each=40)
    with open_store(qdrant.url) as store:
        ingest(store, [ShardSource(str(shards))], encoder=encoder, collection="alone")
        both_have_begun = threading.Event()
        begun: list[str] = []

        def slowly(method: str, path: str) -> None:
            if method == "PUT" and path.endswith(".units/points"):
                begun.append(path)
                if len(begun) >= 2:
                    both_have_begun.set()
            elif method == "PUT" and path.endswith("/points"):
                time.sleep(0.2)

        qdrant.fail = slowly  # type: ignore[assignment]
        killer = threading.Thread(target=_lose_a_node, args=(cluster, both_have_begun))
        killer.start()
        report = spread(store, shards, encoder, cluster.address)
        killer.join()
        qdrant.fail = lambda method, path: None
        assert len(cluster.list_all_nodes()) == 1
        assert (report.units, report.failed_units, report.skipped) == ({"ingested": 6}, [], [])
        assert_same(points_of(store, "photos"), points_of(store, "alone"))
        for file in shards.iterdir():
            make_unreadable(file)
        again = spread(store, shards, encoder, cluster.address)
        assert (again.unchanged, again.encoded, again.units) == (240, 0, {"done before": 6})
        assert (again.skipped, again.failed_units) == ([], [])


def _lose_a_node(cluster: Any, when: threading.Event) -> None:
    when.wait(60)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
