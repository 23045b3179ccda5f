"""One limit of pixels, for every command that reads pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from finetune.data.pixels import ImageSet
from finetune.data.records import Record
from imret import Encoder
from imret.cli.main import cli
from imret.errors import DataError
from imret.images.decode import load_image
from imret.images.preprocess import Preprocess
from imret.settings import MAX_PIXELS, pixel_limit
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture

SIZE = (120, 90)  # 10,800 pixels


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(4):
        draw_picture(tmp_path / "photos" / ("a", "b")[seed % 2] / f"{seed}.png", seed=seed)
    draw_picture(tmp_path / "photos" / "a" / "large.png", seed=9, size=SIZE)
    return tmp_path / "photos"


@pytest.mark.parametrize("by_option", [True, False])
def test_ingest_similar_and_classify_know_the_same_limit(
    by_option: bool, photos: Path, tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, db = photos / "a" / "large.png", tmp_path / "db"
    limit: list[object] = ["--max-pixels", 10_000]
    if not by_option:
        monkeypatch.setenv("IMRET_MAX_PIXELS", "10_000")
        limit = []
    filled = run("ingest", photos, "--model", random_model, "--db", db, *limit)
    assert filled.exit_code == 0
    assert "4 added, 1 skipped" in filled.stderr
    assert "120 x 90 pixels are more than the limit of 10,000 pixels" in filled.stderr
    found = run("similar", large, "--db", db, *limit)
    assert found.exit_code == 1
    assert "limit of 10,000" in str(found.exception)
    told = run("classify", large, "--model", random_model, "--labels", "a,b", *limit)
    assert told.exit_code == 1
    assert "limit of 10,000" in told.output
    if by_option:
        assert "IMRET_MAX_PIXELS" not in os.environ, "it was for one run"
        assert run("similar", large, "--db", db).exit_code == 0


def test_evaluate_and_training_know_it_too(
    photos: Path, tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("evaluate", photos, "--model", random_model, "--json", "-", "--max-pixels", 10_000)
    assert done.exit_code == 0, done.output
    (skip,) = json.loads(done.stdout)["data"]["skipped"]
    assert "limit of 10,000" in skip["reason"]
    monkeypatch.setenv("IMRET_MAX_PIXELS", "10000")
    images = ImageSet(
        photos, [Record("a/large.png", "a", 1)], size=(32, 32), preprocess=Preprocess(), budget_bytes=1 << 20
    )
    (skipped,) = images.load()
    images.close()
    assert "limit of 10,000" in skipped.reason
    refused = run("finetune", photos, "--max-pixels", 0)
    assert refused.exit_code == 2
    assert "--max-pixels" in refused.output


def test_what_is_given_to_a_function_counts_before_the_environment(
    photos: Path, tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_MAX_PIXELS", "10000")
    assert load_image(photos / "a" / "large.png", max_pixels=20_000).size == SIZE
    with open_store(tmp_path / "db") as store:
        encoder = Encoder(str(random_model), device="cpu")
        report = ingest(store, [FolderSource(photos)], encoder=encoder, max_pixels=20_000)
    assert (report.added, report.skipped) == (5, [])


@pytest.mark.parametrize(
    "command", ["ingest", "search", "similar", "classify", "evaluate", "finetune", "serve"]
)
def test_every_command_that_reads_pictures_has_the_option(command: str) -> None:
    assert "--max-pixels" in run(command, "--help").output


def test_a_limit_that_is_no_number_is_refused_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMRET_MAX_PIXELS", raising=False)
    assert pixel_limit() == MAX_PIXELS
    for text, limit in (("250_000_000", 250_000_000), (" 5,000 ", 5000), ("", MAX_PIXELS)):
        monkeypatch.setenv("IMRET_MAX_PIXELS", text)
        assert pixel_limit() == limit
    for text in ("many", "-5", "0", "1e9", "\u0663"):
        monkeypatch.setenv("IMRET_MAX_PIXELS", text)
        assert pixel_limit() is None
        with pytest.raises(DataError, match=r"IMRET_MAX_PIXELS is .* no number of pixels"):
            load_image(Image.new("RGB", (4, 4)))
