"""Recipes are settings, and what cannot change the result is no part of a run's identity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from finetune.config import RECIPES, FinetuneConfig
from imret.cli.main import cli
from tests.fakes.pictures import draw_picture


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_config_and_changes_go_on_top(name: str) -> None:
    config = FinetuneConfig.of(name, seed=7)
    assert config.seed == 7
    for field, value in RECIPES[name].items():
        assert getattr(config, field) == value


def test_the_recipes_differ_in_what_they_train() -> None:
    light, names, lora, full = (FinetuneConfig.of(name) for name in ("light", "names", "lora", "full"))
    assert (light.names_only, light.image_layers, light.tune) == (True, 1, "both")
    assert (names.names_only, names.tune) == (True, "text")
    assert lora.tune == "lora"
    assert (full.names_only, full.image_layers, full.tune) == (False, 0, "both")
    assert min(config.anchor_images for config in (light, lora, full)) > 0


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"light, names, lora, full, plain, scratch, not 'ligth'"):
        FinetuneConfig.of("ligth")


def test_settings_that_do_not_change_the_result_are_no_part_of_the_identity() -> None:
    plain = FinetuneConfig()
    assert dataclasses.replace(plain, cache_mib=1, checkpoint_s=0).identity() == plain.identity()
    assert dataclasses.replace(plain, anchor_replay=1.0).identity() != plain.identity()


def test_a_recipe_is_for_pretrained_models(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--from-scratch", "--recipe", "light", "--output", str(tmp_path / "model")]
    result = CliRunner().invoke(cli, ["finetune", *arguments])
    assert result.exit_code == 2
    assert "--recipe is for pretrained models" in result.output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tune": "text", "image_layers": 1}, "image_layers 1 says how much of the image tower"),
        ({"tune": "lora", "image_layers": 2}, "where tune is both, not lora: set it to 0"),
        ({"tune": "lora", "compile": True}, "compile does not go with tune lora"),
    ],
)
def test_settings_that_would_do_nothing_together_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FinetuneConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--recipe", "lora", "--compile"], "compile does not go with tune lora"),
        (["--recipe", "light", "--tune", "lora"], "image_layers 1 says"),
        (["--anchor-replay", "1"], "--anchor-replay is about the pictures of --replay FILE"),
        (["--replay-weight", "2"], "--replay-weight is about the pictures of --replay FILE"),
        (["--tune", "text", "--anchor-images", "1"], "--anchor-images is about the image tower"),
        (["--recipe", "names", "--image-layer-decay", "0.5"], "--image-layer-decay is about the image tower"),
        (["--image-layer-decay", "0.5"], "--image-layer-decay is about several layers"),
        (["--lora-rank", "4"], "--lora-rank is about adapters"),
        (["--species-share", "0.5"], "--species-share is about species"),
        (["--from-scratch", "--blend"], "--blend is between base and tuned"),
        (["--from-scratch", "--arch", "RN50"], "--arch is of a checkpoint file"),
    ],
)
def test_options_that_would_do_nothing_together_are_wrong_usage(
    tmp_path: Path, options: list[str], says: str
) -> None:
    result = CliRunner().invoke(
        cli, ["finetune", str(tmp_path), "--output", str(tmp_path / "model"), *options]
    )
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


@pytest.mark.parametrize(("tune", "recipe"), [("lora", "lora"), ("text", "plain"), ("both", "full")])
def test_what_is_tuned_decides_the_recipe_where_none_is_named(
    tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch, tune: str, recipe: str
) -> None:
    train = tmp_path / "train"
    for seed in range(2):
        draw_picture(train / ("aves", "fungi")[seed] / "1.png", seed=seed)
    configs: list[FinetuneConfig] = []

    def finetune(*_: object, config: FinetuneConfig, **__: object) -> dict[str, object]:
        configs.append(config)
        return {}

    monkeypatch.setattr("finetune.run.finetune", finetune)
    model, output = str(random_model), str(tmp_path / "model")
    result = CliRunner().invoke(
        cli, ["finetune", str(train), "--model", model, "--output", output, "--tune", tune]
    )
    assert result.exit_code == 0, result.output
    assert configs == [FinetuneConfig.of(recipe, tune=tune)]
