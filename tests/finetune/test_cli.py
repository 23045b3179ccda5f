"""`imret finetune`, typed as people do: what it says before the work, and what comes next."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of four pictures."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(8):
        draw_picture(root / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return root


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--device", "cpu"])


def test_more_steps_than_passes_were_asked_for_are_told_and_what_comes_next_works(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    assert typed("ingest", photos, "--model", random_model).exit_code == 0  # into the default collection
    tuned = tmp_path / "my birds"
    done = typed("finetune", photos, "--model", random_model, "--output", tuned, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert "160 steps of 6" in done.stderr
    assert (
        "that is more than the 1 pass over the pictures, which would be 1 step: this recipe learns little in "
        "fewer than 160"
    ) in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("Next: imret ")]
    assert said == f"Next: imret ingest PICTURES --model '{tuned}' --collection my-birds"
    following = typed("ingest", photos, "--model", tuned, "--collection", "my-birds")
    assert following.exit_code == 0, following.output


def test_as_many_passes_as_were_asked_for_need_no_word(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    options = ("--model", random_model, "--recipe", "plain", "--epochs", 1)
    done = typed("finetune", photos, "--output", tmp_path / "tuned", *options)
    assert done.exit_code == 0, done.output
    assert "that is more than" not in done.stderr


def test_what_changes_one_recipe_does_not_choose_among_several(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    options = ("--model", random_model, "--output", tmp_path / "tuned", "--epochs", 1)
    refused = typed("finetune", photos, *options, "--recipe", "auto", "--image-layers", 2)
    assert refused.exit_code == 2
    assert (
        "--image-layers changes one recipe, and auto makes several. Name one: --recipe light"
        in refused.stderr
    )
    done = typed("finetune", photos, *options, "--no-concepts", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "no recipe is named" not in done.stderr
    assert not (tmp_path / "tuned" / "concepts.safetensors").exists()
