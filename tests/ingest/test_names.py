"""`imret ingest --names`: what categories are called stays with the collection, and whoever asks it knows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.errors import DataError
from imret.retrieval.search import search
from imret.store import open_store
from imret.web.pool.collections import CollectionPool
from tests.fakes.pictures import draw_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photos of two categories and a file of their names."""
    for seed, category in enumerate(("aves", "aves", "fungi")):
        draw_picture(tmp_path / "photos" / category / f"{seed}.png", seed=seed)
    (tmp_path / "names.csv").write_text("category,name\naves,owl\naves,night bird\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--db", str(folder / "db")])


def ingest(folder: Path, model: Path, *arguments: str) -> Result:
    return run(folder, "ingest", str(folder / "photos"), "--model", str(model), *arguments)


def scores(folder: Path, model: Path, query: str, *arguments: str, collection: str = "photos") -> list[float]:
    found = run(
        folder,
        "search",
        query,
        "--model",
        str(model),
        "--format",
        "json",
        "--collection",
        collection,
        *arguments,
    )
    assert found.exit_code == 0, found.output
    return [json.loads(line)["score"] for line in found.stdout.splitlines()]


def shown(folder: Path, collection: str = "photos") -> dict[str, list[str]]:
    done = run(folder, "collections", "show", collection, "--format", "json")
    names: dict[str, list[str]] = json.loads(done.stdout)["names"]
    return names


def test_searches_ask_by_the_names_that_are_kept_with_the_collection(
    folder: Path, random_model: Path
) -> None:
    assert ingest(folder, random_model).exit_code == 0
    birds, owls = (scores(folder, random_model, query) for query in ("bird", "owl"))
    assert birds != owls
    assert scores(folder, random_model, "aves") == birds
    done = ingest(folder, random_model, "--names", str(folder / "names.csv"))
    assert "searches ask by the names aves = owl\n" in done.stderr
    for query in ("aves", "owls", "a night bird"):
        assert scores(folder, random_model, query) == owls
    assert scores(folder, random_model, "bird") == birds  # no name of any of them
    assert scores(folder, random_model, "aves", "--no-template") != owls
    with open_store(folder / "db", create=False) as store:
        assert [round(hit.score, 6) for hit in search(store, "aves")] == owls
    assert "names        aves = owl, night bird\n" in run(folder, "collections", "show", "photos").stdout


def test_names_stay_until_others_come_or_they_are_forgotten(folder: Path, random_model: Path) -> None:
    ingest(folder, random_model, "--names", str(folder / "names.csv"))
    ingest(folder, random_model)
    assert shown(folder) == {"aves": ["owl", "night bird"]}
    (folder / "names.csv").write_text("category,name\nfungi,toadstool\n")
    ingest(folder, random_model, "--names", str(folder / "names.csv"))
    assert shown(folder) == {"fungi": ["toadstool"]}
    done = ingest(folder, random_model, "--no-names")
    assert "the names of categories are forgotten" in done.stderr
    assert shown(folder) == {}


def test_names_go_with_the_collection(folder: Path, random_model: Path) -> None:
    ingest(folder, random_model, "--names", str(folder / "names.csv"))
    names = shown(folder)
    assert run(folder, "collections", "rename", "photos", "owls").exit_code == 0
    assert shown(folder, "owls") == names
    assert run(folder, "collections", "export", "owls", str(folder / "owls.parquet")).exit_code == 0
    done = run(folder, "collections", "import", str(folder / "owls.parquet"), "--collection", "other")
    assert done.exit_code == 0, done.output
    assert shown(folder, "other") == names


def test_names_of_no_category_are_told_and_a_wrong_file_is_refused_before_the_work(
    folder: Path, random_model: Path
) -> None:
    (folder / "names.csv").write_text("category,name\navis,owl\n")
    done = ingest(folder, random_model, "--names", str(folder / "names.csv"))
    assert done.exit_code == 0
    assert "--names names 1 category without pictures, the first 'avis'; there are aves, fungi" in done.stderr
    (folder / "names.csv").write_text("category\naves\n")
    done = ingest(folder, folder / "no-model", "--names", str(folder / "names.csv"))
    assert isinstance(done.exception, DataError)
    assert "names file" in str(done.exception)
    assert shown(folder) == {"avis": ["owl"]}
    assert ingest(folder, random_model, "--names", "x", "--no-names").exit_code == 2


def test_a_dry_run_keeps_no_names(folder: Path, random_model: Path) -> None:
    ingest(folder, random_model)
    assert ingest(folder, random_model, "--dry-run", "--names", str(folder / "names.csv")).exit_code == 0
    assert shown(folder) == {}


@pytest.mark.parametrize("content", [b"nonsense", b'{"aves": 1}'])
def test_names_that_cannot_be_read_are_told_and_the_search_goes_on(
    folder: Path, random_model: Path, content: bytes
) -> None:
    ingest(folder, random_model)
    with open_store(folder / "db") as store:
        store.change_document("photos", "names", lambda old: content)
    with pytest.warns(
        UserWarning, match="asking without the names of its categories: the names that are stored"
    ):
        assert len(scores(folder, random_model, "aves")) == 3
    ingest(folder, random_model, "--names", str(folder / "names.csv"))
    assert shown(folder) == {"aves": ["owl", "night bird"]}


def test_classify_asks_by_the_names_of_the_collection(folder: Path, random_model: Path) -> None:
    ingest(folder, random_model, "--names", str(folder / "names.csv"))
    picture = str(folder / "photos" / "aves" / "0.png")
    asked = ["classify", picture, "--model", str(random_model), "--format", "tsv"]
    done = run(folder, *asked)
    assert "asking by the names stored with the collection: aves = owl (--names overrides)" in done.stderr
    named = run(folder, *asked, "--labels", "owl,mushroom").stdout
    assert done.stdout.replace("\taves\t", "\towl\t").replace("\tfungi\t", "\tmushroom\t") == named


def test_a_server_takes_up_names_that_change_while_it_runs(folder: Path, random_model: Path) -> None:
    ingest(folder, random_model)
    pool = CollectionPool(
        lambda: open_store(folder / "db", create=False, share=True), device="cpu", precision="fp32"
    )
    try:
        with pool.use("photos") as pooled:
            assert pooled.names == {}
            done = ingest(folder, random_model, "--names", str(folder / "names.csv"))
            assert done.exit_code == 0, done.output
            until = time.monotonic() + 30
            while not pooled.names and time.monotonic() < until:
                time.sleep(0.05)
            assert pooled.names == {"aves": ("owl", "night bird")}
    finally:
        pool.close()
