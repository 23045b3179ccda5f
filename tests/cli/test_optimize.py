"""`imret collections optimize`: its progress, its limit, and collections that are brought up to date."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from imret.cli import optimize
from imret.cli.main import cli
from imret.store import Identity, Store, open_store
from imret.store.server import building
from imret.store.server.connection import ServerWarning
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as running:
        with open_store(running.url) as store:
            fill(store)
        yield running


def fill(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, MODEL.dim)).astype(np.float32)
    with closing(store.open_version("photos", MODEL)) as made:
        made.upsert([str(uuid.UUID(int=i)) for i in range(40)], vectors, [{"width": i} for i in range(40)])
        made.optimize()
    store.promote("photos", MODEL)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["collections", *arguments])


def told(done: Result) -> str:
    """Return what stands on stderr, with the error that the command ended with."""
    return f"{done.stderr}{done.exception}"


def make_stuck(qdrant: QdrantOverHTTP) -> None:
    qdrant.engine.stuck.add(qdrant.engine.get_aliases().aliases[0].collection_name)


def test_it_ends_with_1_at_its_limit_and_says_what_goes_on(qdrant: QdrantOverHTTP) -> None:
    make_stuck(qdrant)
    done = run("optimize", "photos", "--db", qdrant.url, "--timeout", "0.3")
    assert done.exit_code == 1
    assert "photos: yellow, 40 vectors" in told(done)
    assert "the index of 'photos' is not built after 0 s, which was the limit" in told(done)
    assert "20 of 40 vectors are in segments that are done (50 %)" in told(done)


def test_where_no_terminal_is_progress_is_a_line_now_and_then(
    qdrant: QdrantOverHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "SAY_EVERY_S", 0.0)
    make_stuck(qdrant)
    done = run("optimize", "photos", "--db", qdrant.url, "--timeout", "0.3")
    assert "\n  20 of 40 vectors are in segments that are done (50 %)\n" in told(done)


def test_a_collection_that_stays_yellow_ends_with_1_and_why(
    qdrant: QdrantOverHTTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "STALL_S", 0.1)
    make_stuck(qdrant)
    with pytest.warns(ServerWarning, match="'photos' stays yellow: 20 of 40 vectors"):
        done = run("optimize", "photos", "--db", qdrant.url)
    assert done.exit_code == 1


def test_to_current_says_what_it_has_changed(qdrant: QdrantOverHTTP) -> None:
    done = run("optimize", "photos", "--db", qdrant.url, "--to-current")
    assert done.exit_code == 0
    assert "photos: laid out as collections are now" in told(done)
    done = run("optimize", "photos", "--db", qdrant.url, "--to-current", "--quantize", "bits4")
    assert done.exit_code == 0
    assert "photos: now bits4" in told(done)
    assert "laid out     1 shard, 1 replica, write consistency 1, segments of 5,000 MB, bits4" in (
        run("show", "photos", "--db", qdrant.url).stdout
    )


def test_to_current_brings_an_embedded_collection_over_too(tmp_path: Path) -> None:
    with open_store(tmp_path / "db") as store:
        fill(store)
    db = str(tmp_path / "db")
    done = run("optimize", "photos", "--db", db, "--to-current", "--quantize", "binary")
    assert done.exit_code == 0
    assert "photos: now binary" in told(done)
    done = run("optimize", "photos", "--db", db, "--to-current", "--segment-mb", "10")
    assert done.exit_code == 1
    assert "--segment-mb cannot apply to the embedded store" in told(done)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--quantize", "bits4"], "what a collection is like is changed with --to-current"),
        (["--timeout", "0"], "0.0 is not in the range x>0"),
        (["--to-current", "--quantize", "bits3"], "'bits3' is not one of"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], says: str) -> None:
    done = run("optimize", "photos", *arguments)
    assert done.exit_code == 2
    assert says in told(done)
