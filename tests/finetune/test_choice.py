"""Without a recipe a run chooses among base, names and light, each with concepts, and says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from finetune.callbacks import Callbacks, Step
from finetune.choice import Candidate, choose_candidate, finetune_by_choice
from finetune.concepts import HeldOut
from finetune.config import FinetuneConfig
from finetune.run import finetune
from finetune.weight_blending import Point
from imret import Encoder
from imret.errors import DataError
from imret.retrieval.concept_query import read_model_concepts
from tests import ROOT
from tests.fakes.pictures import draw_picture

LABELS = np.repeat([0, 1], 20)


def held_out(wrong: int) -> HeldOut:
    """Return a ranking of forty pictures in which so many of each category are taken for the other."""
    own = (LABELS[None] == np.arange(2)[:, None]).astype(np.float32)
    for at in range(wrong):
        own[:, at] = own[::-1, at].copy()
        own[:, 20 + at] = own[::-1, 20 + at].copy()
    own += np.linspace(0, 0.01, 40, dtype=np.float32)
    return HeldOut(own, LABELS)


def candidate(name: str, wrong: int, retention: float = 0.9) -> Candidate:
    return Candidate(name, Point(0.0, 0.0, retention), held_out(wrong))


# ---- The rule ------------------------------------------------------------------------------------------


def test_the_base_is_shipped_where_nothing_beats_it_by_more_than_chance() -> None:
    verdict = choose_candidate(
        [candidate("base", 3), candidate("names", 3), candidate("light", 2)], budget=0.2
    )
    assert verdict.name == "base"
    assert "may be chance, and base costs less elsewhere" in verdict.why


def test_what_is_better_by_more_than_chance_is_shipped_and_the_figures_of_all_are_said() -> None:
    candidates = [candidate("base", 12), candidate("names", 12), candidate("light", 0, 0.8)]
    verdict = choose_candidate(candidates, budget=0.2)
    assert verdict.name == "light"
    assert verdict.why.startswith("shipping light + concepts. Validation mAP: base + concepts 0.")
    assert "light + concepts 1.000 (retention -0.100)" in verdict.why


def test_what_loses_more_than_the_budget_is_not_shipped_however_good() -> None:
    candidates = [candidate("base", 12), candidate("names", 5), candidate("light", 0, 0.6)]
    verdict = choose_candidate(candidates, budget=0.2)
    assert verdict.name == "names"
    assert "light loses more than the budget" in verdict.why


def test_light_is_compared_with_the_best_that_costs_less() -> None:
    candidates = [candidate("base", 12), candidate("names", 1), candidate("light", 0)]
    assert choose_candidate(candidates, budget=0.2).name == "names"


# ---- The run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of eight pictures."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(16):
        draw_picture(root / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return root


CONFIGS = {
    name: FinetuneConfig.of(name, least_steps=2, epochs=1, batch_size=6, validation_share=0.25)
    for name in ("names", "light")
}


def choose(photos: Path, output: Path, model: Path, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []

    def on_step(step: Step, _: int) -> None:
        said.append(f"step {step.step}")

    arguments = {"configs": CONFIGS, "device": "cpu", **changes}
    training = finetune_by_choice(
        photos, output, model=str(model), callbacks=Callbacks(said.append, on_step=on_step), **arguments
    )
    return training, said


@pytest.fixture(scope="module")
def chosen(
    photos: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str]]:
    output = tmp_path_factory.mktemp("models") / "chosen"
    return output, *choose(photos, output, random_model)


def test_what_two_steps_do_not_improve_is_shipped_as_it_was_and_needs_no_new_ingest(
    chosen: tuple[Path, dict[str, Any], list[str]], random_model: Path
) -> None:
    output, training, said = chosen
    assert training["choice"]["chosen"] == "base"
    assert training["choice"]["why"] in said
    assert [*training["choice"]["candidates"]] == ["base", "names", "light"]
    assert said.count("step 1") == 2  # names and light
    before, now = Encoder(random_model, device="cpu"), Encoder(output, device="cpu")
    assert now.images_fingerprint == before.images_fingerprint
    np.testing.assert_array_equal(now.encode_texts(["a bird"]), before.encode_texts(["a bird"]))
    concepts = read_model_concepts(output)
    assert concepts is not None
    assert [*concepts.concepts] == ["bird", "mushroom"]
    assert concepts.images_fingerprint == now.images_fingerprint
    assert concepts.model == str(output)  # not the candidate's place, which is gone
    open_clip.create_model_and_transforms(f"local-dir:{output}")
    assert not (output / "candidates").exists()
    assert json.loads((output / "training.json").read_text(encoding="utf-8")) == training


def test_it_says_before_it_begins_what_it_will_make_and_the_short_way(
    chosen: tuple[Path, dict[str, Any], list[str]],
) -> None:
    _, _, said = chosen
    (told,) = [line for line in said if "--recipe light makes that alone" in line]
    assert said.index(told) < said.index("step 1")


def test_a_finished_choice_is_left_alone(
    chosen: tuple[Path, dict[str, Any], list[str]], photos: Path, random_model: Path
) -> None:
    output, training, _ = chosen
    again, said = choose(photos, output, random_model)
    assert again == training
    assert said == [f"{output} already holds the model that this command makes; nothing to do"]


def test_a_finished_choice_is_not_replaced_by_another_unasked(
    chosen: tuple[Path, dict[str, Any], list[str]], photos: Path, random_model: Path
) -> None:
    other = {name: FinetuneConfig.of(name, seed=1, least_steps=2, epochs=1) for name in CONFIGS}
    with pytest.raises(DataError, match="holds a finished model that differs"):
        choose(photos, chosen[0], random_model, configs=other)


def test_without_validation_the_base_is_shipped_and_nothing_trained(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    configs = {name: FinetuneConfig.of(name, validation_share=0.0) for name in CONFIGS}
    training, said = choose(photos, tmp_path / "m", random_model, configs=configs)
    assert training["choice"]["chosen"] == "base"
    assert "no pictures of two categories are kept for validation" in training["choice"]["why"]
    assert "step 1" not in said


KILLED = """
import os, signal, sys
from finetune.callbacks import Callbacks
from finetune.choice import finetune_by_choice
from finetune.config import FinetuneConfig
photos, output, model = sys.argv[1:]
configs = {
    name: FinetuneConfig.of(name, least_steps=2, epochs=1, batch_size=6, validation_share=0.25)
    for name in ("names", "light")
}
seen = []
def on_step(step, _):
    seen.append(step.step)
    if seen == [1, 2, 1]:
        os.kill(os.getpid(), signal.SIGKILL)
finetune_by_choice(
    photos, output, model=model, configs=configs, device="cpu", callbacks=Callbacks(on_step=on_step)
)
"""


def test_killed_in_the_second_run_it_goes_on_there_and_ends_alike(
    chosen: tuple[Path, dict[str, Any], list[str]], photos: Path, random_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(photos), str(output), str(random_model)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    config = FinetuneConfig.of("light", least_steps=2, epochs=1)
    with pytest.raises(DataError, match="holds an unfinished choice among recipes"):
        finetune(photos, output, model=str(random_model), config=config, device="cpu")
    training, said = choose(photos, output, random_model)
    assert said.count("step 1") == 1  # of light alone
    assert training["choice"]["candidates"].keys() == chosen[1]["choice"]["candidates"].keys()
    assert training["choice"]["chosen"] == chosen[1]["choice"]["chosen"]
    assert not (output / "candidates").exists()
