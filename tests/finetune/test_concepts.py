"""The last stage of a run: concepts in the model folder, found by searches, ignored by stock open_clip."""

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

from finetune.callbacks import Callbacks
from finetune.config import FinetuneConfig
from finetune.run import finetune
from imret import Encoder
from imret.retrieval.concept_query import FILE_NAME, known_concepts, read_model_concepts
from imret.store import open_store
from tests import ROOT
from tests.fakes.pictures import draw_picture

QUICK = FinetuneConfig.of("names", least_steps=2, epochs=1, batch_size=6, validation_share=0.25)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of eight pictures."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(16):
        draw_picture(root / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return root


@pytest.fixture(scope="module")
def tuned(photos: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "names"
    finetune(photos, output, model=str(random_model), config=QUICK, device="cpu")
    return output


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return content


def test_a_run_learns_its_categories_by_all_their_names(tuned: Path) -> None:
    concepts = read_model_concepts(tuned)
    assert concepts is not None
    assert {name: one.names for name, one in concepts.concepts.items()} == {
        "bird": ("bird", "aves"),
        "mushroom": ("mushroom", "fungus", "fungi"),
    }
    assert [one.images for one in concepts.concepts.values()] == [6, 6]  # two of eight are validation's
    encoder = Encoder(tuned, device="cpu")
    assert (concepts.fingerprint, concepts.images_fingerprint) == (
        encoder.fingerprint,
        encoder.images_fingerprint,
    )


def test_the_record_says_what_they_are_worth(tuned: Path) -> None:
    about = record(tuned)["concepts"]
    assert [row["name"] for row in about["names"]] == ["bird", "mushroom"]
    assert about["shrinkage"] > 0
    assert 0 < about["text"] <= 1
    assert 0 < about["learnt"] <= 1
    assert 0 < about["validation_map"] <= 1


def test_stock_open_clip_loads_the_folder(tuned: Path) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tuned}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tuned}")
    stock = model.eval().encode_text(tokenizer(["a bird"]), normalize=True).detach().numpy()
    encoder = Encoder(tuned, device="cpu", precision="fp32")
    np.testing.assert_allclose(encoder.encode_texts(["a bird"]), stock, atol=1e-5)


def test_a_search_finds_them_with_the_model(tuned: Path, tmp_path: Path) -> None:
    encoder = Encoder(tuned, device="cpu")
    with open_store(str(tmp_path / "db")) as store:
        known = known_concepts(store, "photos", encoder)
    assert known.remarks == ()
    assert known.concepts is not None
    assert known.concepts.index.exact("aves") == "bird"


def test_a_recipe_may_do_without(photos: Path, random_model: Path, tmp_path: Path) -> None:
    config = FinetuneConfig.of("names", least_steps=1, epochs=1, concepts=False)
    training = finetune(photos, tmp_path / "m", model=str(random_model), config=config, device="cpu")
    assert "concepts" not in training
    assert not (tmp_path / "m" / FILE_NAME).exists()


def test_concepts_of_the_model_that_was_there_go_with_it(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m"
    finetune(photos, output, model=str(random_model), config=QUICK, device="cpu")
    assert (output / FILE_NAME).exists()
    config = FinetuneConfig.of("names", least_steps=1, epochs=1, concepts=False)
    finetune(photos, output, model=str(random_model), config=config, device="cpu", overwrite=True)
    assert not (output / FILE_NAME).exists()


def test_what_keeps_concepts_from_being_learnt_costs_no_model(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.csv"
    names.write_text("category,name\naves,thing\nfungi,thing\n", encoding="utf-8")
    said: list[str] = []
    training = finetune(
        photos,
        tmp_path / "m",
        model=str(random_model),
        config=QUICK,
        names=names,
        device="cpu",
        callbacks=Callbacks(on_message=said.append),
    )
    assert "are one name" in training["concepts"]["none"]
    assert any(line.startswith("Warning: no concepts are learnt: ") for line in said)
    assert not (tmp_path / "m" / FILE_NAME).exists()
    assert Encoder(tmp_path / "m", device="cpu").encode_texts(["a bird"]).shape == (1, 32)


KILLED = """
import os, signal, sys
from finetune import concepts
from finetune.config import FinetuneConfig
from finetune.run import finetune
photos, output, model = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
concepts.keep_in_folder = die
config = FinetuneConfig.of("names", least_steps=2, epochs=1, batch_size=6, validation_share=0.25)
finetune(photos, output, model=model, config=config, device="cpu")
"""


def test_killed_before_concepts_are_written_the_next_run_learns_them_and_trains_nothing(
    tuned: Path, photos: Path, random_model: Path, tmp_path: Path
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
    assert not (output / FILE_NAME).exists()
    steps: list[int] = []
    training = finetune(
        photos,
        output,
        model=str(random_model),
        config=QUICK,
        device="cpu",
        callbacks=Callbacks(on_step=lambda step, _: steps.append(step.step)),
    )
    assert steps == []
    assert training["concepts"]["names"] == record(tuned)["concepts"]["names"]
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in tuned.iterdir())
    assert finetune(photos, output, model=str(random_model), config=QUICK, device="cpu") == record(output)
