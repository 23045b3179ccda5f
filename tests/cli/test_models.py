"""`imret models`: what is listed, what is downloaded, and which collections use what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from imret.cli.main import cli
from imret.defaults import DEFAULT_MODEL
from imret.models.choices import CHOICES
from imret.models.known_models import note_model
from imret.models.resolve import resolve_model
from imret.store import Identity, open_store
from tests.fakes.hub import put_into_cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def listed(*arguments: str) -> dict[str, dict[str, object]]:
    done = CliRunner().invoke(cli, ["models", "--device", "cpu", "--format", "json", *arguments])
    assert done.exit_code == 0, done.output
    return {model["name"]: model for model in json.loads(done.stdout)["models"]}


def test_the_list_has_each_choice_with_its_figures_and_a_rate() -> None:
    models = listed()
    assert list(models) == list(CHOICES)
    for name, model in models.items():
        choice = CHOICES[name]
        assert (model["model"], model["parameters"], model["dim"]) == (
            choice.model,
            choice.parameters,
            choice.dim,
        )
        assert (model["imagenet"], model["coco"], model["licence"]) == (
            choice.imagenet,
            choice.coco,
            choice.licence,
        )
        assert isinstance(model["pictures_per_s"], float)
        assert model["downloaded"] is False
        assert model["collections"] == []


def test_what_is_downloaded_and_what_collections_use_is_said(random_model: Path, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "hub", CHOICES["small"].repo, random_model)
    with open_store(tmp_path / "store") as store:
        for name, model in (("walks", DEFAULT_MODEL), ("mine", "/models/mine")):
            identity = Identity(model, "0" * 64, 32)
            store.create_staging(name, identity).close()
            store.promote(name, identity, staged=True)
    models = listed("--db", str(tmp_path / "store"))
    assert {name for name, model in models.items() if model["downloaded"]} == {"small"}
    assert models["huge"]["collections"] == ["walks"]
    shown = CliRunner().invoke(cli, ["models", "--device", "cpu", "--db", str(tmp_path / "store")])
    assert "ViT-B-32-256/datacomp_s34b_b86k; the fastest; for a laptop; downloaded" in shown.stdout
    assert "the default; used by walks" in shown.stdout
    assert "/models/mine; used by mine" in shown.stdout


def test_a_store_that_is_named_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["models", "--db", str(tmp_path / "gone")])
    assert done.exit_code == 1


@pytest.mark.parametrize("name", ["small", "huge"])
def test_a_short_name_is_the_model_that_a_collection_keeps(
    name: str, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_cache(tmp_path / "hub", CHOICES[name].repo, random_model)
    monkeypatch.chdir(tmp_path)
    files = resolve_model(name)
    assert files.model_id == CHOICES[name].model
    note_model(files)
    assert resolve_model(CHOICES[name].model) == files


def test_a_folder_that_is_called_like_a_short_name_is_named_by_its_path(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_cache(tmp_path / "hub", CHOICES["small"].repo, random_model)
    (tmp_path / "small").symlink_to(random_model)
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    assert resolve_model("small", notify=told.append).model_id == CHOICES["small"].model
    assert told == [
        f"model small is {CHOICES['small'].model}; the folder of that name here is --model ./small"
    ]
    assert resolve_model("./small").model_id == str(tmp_path / "small")
