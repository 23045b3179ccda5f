"""`imret ingest` with what a new collection shall be like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.store import open_store
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(3):
        draw_picture(tmp_path / "photos" / "aves" / f"{seed}.png", seed=seed)
    return tmp_path / "photos"


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as running:
        yield running


def ingest(photos: Path, model: Path | str, db: str, *options: str) -> Result:
    return CliRunner().invoke(cli, ["ingest", str(photos), "--model", str(model), "--db", db, *options])


def told(done: Result) -> str:
    """Return what stands on stderr, with the error that the command ended with."""
    return f"{done.stderr}{done.exception}"


def test_a_new_collection_is_as_asked(photos: Path, random_model: Path, qdrant: QdrantOverHTTP) -> None:
    asked = ["--shards", "6", "--replicas", "2", "--write-consistency", "2", "--quantize", "bits4"]
    done = ingest(photos, random_model, qdrant.url, *asked, "--segment-mb", "1000", "--originals", "cached")
    assert done.exit_code == 0, done.output
    with open_store(qdrant.url) as store, closing(store.open("photos")) as opened:
        assert opened.count() == 3
        assert str(opened.creation()) == (
            "6 shards, 2 replicas, write consistency 2, segments of 1,000 MB, bits4, originals cached, "
            "quantized pinned"
        )
    assert ingest(photos, random_model, qdrant.url, *asked).exit_code == 0  # it is so
    assert ingest(photos, random_model, qdrant.url).exit_code == 0  # nothing is asked


def test_a_collection_that_is_otherwise_is_refused_before_a_model_is_looked_for(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    db = str(tmp_path / "db")
    assert ingest(photos, random_model, db).exit_code == 0
    done = ingest(photos, "no/such/model", db, "--quantize", "bits4")
    assert done.exit_code == 1
    assert "collection 'photos' exists with int8, not bits4" in told(done)
    assert f"imret collections optimize photos --to-current --quantize bits4 --db {db}" in told(done)
    done = ingest(photos, random_model, db, "--quantize", "bits4", "--dry-run")
    assert "exists with int8, not bits4" in told(done)


def test_an_embedded_store_says_what_it_has_not(photos: Path, random_model: Path, tmp_path: Path) -> None:
    done = ingest(photos, random_model, str(tmp_path / "db"), "--shards", "3")
    assert done.exit_code == 1
    assert "--shards cannot apply to the embedded store" in told(done)
    assert not (tmp_path / "db").exists()
    done = ingest(photos, random_model, str(tmp_path / "db"), "--replicas", "1", "--write-consistency", "2")
    assert done.exit_code == 2
    assert "write_consistency (2) is at most replicas (1)" in told(done)
