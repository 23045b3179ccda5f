"""`imret collections backup`, `restore` and `pull`: what they print, and what they refuse."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.settings import store_dir
from imret.store import Identity, Store
from imret.store.embedded.store import EdgeStore
from imret.store.server.store import ServerStore
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("models/nature tuned", "a1" * 32, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory where that can be, with a store `db` in it; it is the working folder."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as name:
        with EdgeStore(Path(name) / "db") as store:
            fill(store)
        monkeypatch.chdir(name)
        monkeypatch.setenv("IMRET_HOME", str(Path(name) / "home"))
        yield Path(name)


def fill(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    with closing(store.open_version("photos", MODEL)) as opened:
        opened.upsert(
            [str(uuid.UUID(int=i + 1)) for i in range(30)], vectors, [{"category": "a"} for _ in range(30)]
        )
    store.promote("photos", MODEL)


def collections(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["collections", *arguments])


def test_a_backup_says_what_is_in_it_and_a_restore_what_came_of_it(folder: Path) -> None:
    done = collections("backup", "photos", "photos.backup", "--db", "db")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "backed up 30 images of photos to photos.backup in " in done.stderr
    again = collections("backup", "photos", "photos.backup", "--db", "db")
    assert again.exit_code == 1
    assert "'photos.backup' exists already" in str(again.exception)
    done = collections("restore", "photos.backup", "--db", "db")
    assert done.exit_code == 1
    assert "collection 'photos' exists already, in db. Replace it (--replace)" in str(done.exception)
    done = collections("restore", "photos.backup", "--db", "other", "--collection", "there")
    assert done.exit_code == 0, done.output
    assert "restored 30 images into there at other in " in done.stderr
    assert "its model is models/nature tuned" in done.stderr
    assert "there" in collections("list", "--db", "other").stdout


def test_a_pull_says_where_it_went_and_how_it_is_searched(folder: Path) -> None:
    with QdrantOverHTTP(api_key="s3cr3t", prefix="/qdrant") as qdrant, pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDRANT_API_KEY", "s3cr3t")
        with ServerStore(qdrant.url) as server:
            fill(server)
        done = collections("pull", "photos", "--db", qdrant.url, "--to", "home.db")
        assert done.exit_code == 0, done.output
        assert "pulled 30 images of photos (1 shard) to home.db in " in done.stderr
        assert "imret search TEXT --collection photos --db home.db" in done.stderr
        done = collections("pull", "photos", "--db", qdrant.url)  # to the store of this user
        assert done.exit_code == 0, done.output
        assert str(store_dir()) in done.stderr
        done = collections("pull", "photos", "--db", qdrant.url, "--to", qdrant.url)
        assert "is a server, and a collection is pulled to a folder" in str(done.exception)
        assert "s3cr3t" not in done.output
    done = collections("pull", "photos", "--db", "db", "--to", "home.db", "--replace")
    assert "a collection is pulled from a server (--db http://...)" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backup", "photos"], "Missing argument 'FILE'"),
        (["backup", "photos", "x", "--collection", "photos"], "--collection is what NAME is"),
        (["pull"], "Missing argument 'NAME'"),
        (["restore"], "Missing argument 'FILE'"),
    ],
)
def test_what_is_missing_or_named_twice_is_wrong_usage(folder: Path, arguments: list[str], said: str) -> None:
    done = collections(*arguments, "--db", "db")
    assert done.exit_code == 2
    assert said in done.stderr
