"""`imret ingest`, typed as people do: what it warns of, and the report that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from tests.fakes.pictures import draw_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures in two categories."""
    for seed, category in enumerate(("aves", "aves", "fungi")):
        draw_picture(tmp_path / "photos" / category / f"{seed}.png", seed=seed)
    return tmp_path / "photos"


def imret_ingest(photos: Path, model: Path, *arguments: str) -> Result:
    db = str(photos.parent / "db")
    command = ["ingest", str(photos), "--model", str(model), "--db", db, *arguments]
    return CliRunner().invoke(cli, command)


def test_folders_that_are_named_like_splits_are_told_where_they_become_categories(
    photos: Path, random_model: Path
) -> None:
    assert "Warning" not in imret_ingest(photos, random_model).stderr
    (photos / "aves").rename(photos / "train")
    (photos / "fungi").rename(photos / "test")
    done = imret_ingest(photos, random_model)
    assert done.exit_code == 0, done.output
    assert f"Warning: test, train in {photos} are named like the splits of a data set" in done.stderr
    assert f"imret ingest {photos}/test ..., or leave them out: --no-categories" in done.stderr
    assert "Warning" not in imret_ingest(photos, random_model, "--no-categories").stderr
