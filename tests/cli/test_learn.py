"""`imret learn` and `imret concepts`: names taught at the terminal, asked for, listed and forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret import Encoder
from imret.cli.main import cli
from imret.retrieval.concept_query import FILE_NAME
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

CATEGORIES = ("aves", "fungi")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_model: Path) -> Path:
    """Return a folder with pictures to learn from, and a store with a collection of others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMRET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMRET_DB", str(tmp_path / "db"))
    seed = 0
    for folder, n in (("train", 5), ("photos", 3)):
        for category in CATEGORIES:
            for i in range(n):
                draw_picture(tmp_path / folder / category / f"{i}.png", seed=(seed := seed + 1))
    draw_picture(tmp_path / "rex" / "0.png", seed=98)
    draw_picture(tmp_path / "rex" / "1.png", seed=99)
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    with open_store(tmp_path / "db") as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder, collection="photos")
    return tmp_path


def _imret(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def _said(result: Result) -> str:
    """Return what is printed; an error becomes a sentence on stderr only in `main`."""
    return f"{result.output}{result.exception}"


def _model(random_model: Path) -> list[str]:
    return ["--model", str(random_model)]


def test_a_folder_of_categories_is_learnt_asked_for_listed_and_forgotten(random_model: Path) -> None:
    learnt = _imret("learn", "train", *_model(random_model))
    assert learnt.exit_code == 0, learnt.output
    rows = learnt.stdout.splitlines()
    assert rows[0].split() == ["name", "images", "text", "learnt", "difference,", "95", "%"]
    assert [row.split()[:2] for row in rows[1:3]] == [["bird", "5"], ["mushroom", "5"]]
    assert "learnt 2 names from 10 pictures (10 embedded)" in learnt.stderr
    assert "ask: imret search bird" in learnt.stderr
    found = _imret("search", "aves", *_model(random_model))
    assert found.exit_code == 0
    said = '"bird" was asked as learnt from 5 pictures'
    kept = "text kept" in rows[1]
    assert (said in found.stderr) is not kept
    listed = _imret("concepts", "--format", "json")
    entries = {one["name"]: one for one in map(json.loads, listed.stdout.splitlines())}
    assert set(entries["bird"]["names"]) == {"bird", "aves"}
    assert entries["mushroom"]["images"] == 5
    forgotten = _imret("concepts", "forget", "birds", "mushroom")
    assert forgotten.exit_code == 0
    assert "forgot 2 names" in forgotten.stderr
    assert "has learnt no names" in _imret("concepts").stderr


def test_one_name_is_learnt_from_a_few_pictures_and_told_from_the_collections(random_model: Path) -> None:
    learnt = _imret(
        "learn", "--name", "my dog", "--synonym", "Rex", "rex", *_model(random_model), "--format", "json"
    )
    assert learnt.exit_code == 0, learnt.output
    answer = json.loads(learnt.stdout)
    assert [(row["name"], row["images"]) for row in answer["names"]] == [("my dog", 2)]
    assert answer["embedded"] == 2
    assert "told from 6 other pictures of the collection, too" in learnt.stderr
    (line,) = _imret("concepts", "--format", "json").stdout.splitlines()
    assert json.loads(line)["names"] == ["my dog", "Rex"]


def test_a_collections_own_categories_are_learnt_without_embedding_anything(random_model: Path) -> None:
    learnt = _imret("learn", *_model(random_model), "--format", "json")
    assert learnt.exit_code == 0, learnt.output
    answer = json.loads(learnt.stdout)
    assert [row["name"] for row in answer["names"]] == ["bird", "mushroom"]
    assert answer["embedded"] == 0


def test_a_model_folder_is_taught_and_its_weights_stay(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=4)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    learnt = _imret("learn", "train", "--output", str(folder), "--others", "rex")
    assert learnt.exit_code == 0, learnt.output
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop(FILE_NAME)
    assert after == before


def test_names_of_a_file_are_what_is_learnt(tmp_path: Path, random_model: Path) -> None:
    (tmp_path / "names.csv").write_text("category,name\naves,birdie\naves,fowl\nno such,thing\n")
    learnt = _imret("learn", "train", "--names", "names.csv", *_model(random_model))
    assert learnt.exit_code == 0, learnt.output
    assert "names 1 category without pictures" in learnt.stderr
    entries = [json.loads(line) for line in _imret("concepts", "--format", "json").stdout.splitlines()]
    assert {"birdie", "fowl", "aves"} == set(entries[0]["names"])


def test_a_picture_that_cannot_be_read_is_told_and_the_others_are_learnt(
    tmp_path: Path, random_model: Path
) -> None:
    (tmp_path / "train" / "aves" / "broken.png").write_bytes(b"no picture")
    learnt = _imret("learn", "train", *_model(random_model))
    assert learnt.exit_code == 0
    assert "broken.png: " in learnt.stderr
    assert "from 10 pictures" in learnt.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 1, "does not exist"),
        (["train", "rex"], 2, "say which with --name"),
        (["--name", "rex"], 2, "Missing pictures of 'rex'"),
        (["train", "--synonym", "x"], 2, "--synonym is what --name also goes by"),
        (["train", "--collection", "photos", "--output", "model"], 2, "two places"),
        (["--output", "model"], 2, "Missing argument 'SOURCE'"),
        (["train", "--output", "nowhere"], 1, "is no model folder"),
        (["train", "--collection", "nowhere"], 1, "nowhere"),
        (["--name", "x" * 10_000, "rex"], 1, "10,000 characters"),
        (["--name", "r\x1bex", "rex"], 1, "control characters"),
        (["--name", "!?", "rex"], 1, "no word to ask for"),
        (["train", "--others", "nowhere"], 1, "does not exist"),
        (["train", "--views", "4"], 2, "4 is not in the range"),
    ],
)
def test_what_cannot_be_learnt_is_refused_and_nothing_is_kept(
    arguments: list[str], code: int, said: str
) -> None:
    refused = _imret("learn", *arguments)
    assert (refused.exit_code, said in _said(refused)) == (code, True), _said(refused)
    with open_store(create=False) as store:
        assert store.document("photos", "concepts") is None


def test_to_forget_what_is_not_known_names_what_is(random_model: Path) -> None:
    assert "has no concepts of its own" in _said(_imret("concepts", "forget", "bird"))
    _imret("learn", "train", *_model(random_model))
    refused = _imret("concepts", "forget", "cat")
    assert refused.exit_code == 1
    assert "no concept 'cat'. There are: bird, mushroom" in _said(refused)
