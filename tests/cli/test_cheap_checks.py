"""What costs nothing to check is checked first: before torch is imported and a model is looked for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from imret.defaults import DEFAULT_MODEL
from imret.store import Identity, open_store
from tests import ROOT
from tests.fakes.pictures import draw_picture

RUN = """
import atexit, sys
atexit.register(lambda: print("torch imported:", "torch" in sys.modules, file=sys.stderr))
from imret.cli.main import main
sys.argv[0] = "imret"
main()
"""

# A command, and what its message says. The folder `photos` holds pictures in two categories.
WRONG = [
    ("ingest gone", "no such folder: 'gone'"),
    ("ingest photos/a/0.jpg", "is a file"),
    ("ingest empty", "no pictures"),
    ("ingest photos --report gone/report.json", "gone/report.json"),
    ("ingest photos --db words.txt", "words.txt"),
    ("ingest photos --db http://127.0.0.1:1", "http://127.0.0.1:1"),
    ("ingest photos --collection a/b", "a/b"),
    ("ingest photos --model ./gone", "'./gone' was not found"),
    ("ingest photos --model smal", "Did you mean --model small?"),
    ("ingest photos --moved-from gone", "gone"),
    ("ingest photos --exclude a --no-exclude", "contradict"),
    ("search dog --where 'width>'", "width>"),
    ("search dog --where 'nothing=1'", "nothing"),
    ("search ./gone.jpg", "gone.jpg"),
    ("search dog --html gone/page.html", "gone/page.html"),
    ("search dog --copy-to words.txt", "words.txt"),
    ("search dog --db gone", "gone"),
    ("search dog --db store --collection gone", "gone"),
    ("search dog --db store --model ./gone", "'./gone' was not found"),
    ("search dog --db http://127.0.0.1:1", "http://127.0.0.1:1"),
    ("similar ./gone.jpg", "gone.jpg"),
    ("similar photos/a/0.jpg --db store --collection gone", "gone"),
    ("similar words.txt --where 'width>'", "width>"),
    ("classify gone.jpg --labels a,b", "gone.jpg"),
    ("classify empty --labels a,b", "no pictures"),
    ("classify photos --labels @gone.txt", "gone.txt"),
    ("classify photos --labels ''", "no labels"),
    ("classify photos --labels a,b --names gone.csv", "gone.csv"),
    ("classify photos --labels a,b --model ./gone", "'./gone' was not found"),
    ("classify photos --db gone", "gone"),
    ("classify photos --db store --collection gone", "gone"),
    ("benchmark gone", "no such file or folder: 'gone'"),
    ("benchmark empty", "no benchmark in the folder"),
    ("benchmark photos", "imret evaluate photos"),
    ("benchmark words.txt", "is no benchmark"),
    ("benchmark photos/a/0.jpg", "is no benchmark"),
    ("evaluate gone", "gone"),
    ("evaluate empty", "empty"),
    ("evaluate photos --names gone.csv", "gone.csv"),
    ("evaluate photos --retention gone.csv", "gone.csv"),
    ("evaluate photos --train gone", "gone"),
    ("evaluate photos --html gone/page.html", "gone/page.html"),
    ("evaluate photos --json gone/page.json", "gone/page.json"),
    ("evaluate photos --model ./gone", "'./gone' was not found"),
    ("evaluate photos --baseline ./gone", "'./gone' was not found"),
    ("evaluate photos --also ./gone", "'./gone' was not found"),
    ("evaluate --collection gone --db store", "gone"),
    ("evaluate photos --collection --db gone", "gone"),
    ("finetune gone --output tuned", "gone"),
    ("finetune empty --output tuned", "empty"),
    ("finetune photos --output words.txt", "words.txt"),
    ("finetune photos --output tuned --captions gone.csv", "gone.csv"),
    ("finetune photos --output tuned --names gone.csv", "gone.csv"),
    ("finetune photos --output tuned --against gone", "gone"),
    ("finetune photos --output tuned --replay gone.csv", "gone.csv"),
    ("finetune photos --output tuned --tensorboard words.txt", "words.txt"),
    ("finetune photos --output tuned --model ./gone", "'./gone' was not found"),
    ("finetune photos", "--output"),
    ("serve --root gone", "gone"),
    ("serve --token-file gone", "gone"),
    ("serve --db gone", "gone"),
    ("serve --db store --model ./gone --port 0", "'./gone' was not found"),
    ("serve --public-url words", "words"),
    ("collections show gone --db store", "gone"),
    ("collections import gone.parquet", "gone.parquet"),
    ("collections optimize gone --db store", "gone"),
    ("sources --db gone", "gone"),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    for category in ("a", "b"):
        for i in range(3):
            draw_picture(folder / "photos" / category / f"{i}.jpg", seed=i)
    (folder / "empty").mkdir()
    (folder / "words.txt").write_text("no picture\n")
    identity = Identity(DEFAULT_MODEL, "0" * 64, 32)
    with open_store(folder / "store") as store:
        store.create_staging("photos", identity).close()
        store.promote("photos", identity, staged=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user with no model, no network and an empty store of their own."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "IMRET_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.parametrize(("typed", "says"), WRONG, ids=[typed for typed, _ in WRONG])
def test_a_wrong_input_is_told_before_torch_is_imported_or_a_model_is_looked_for(
    typed: str, says: str, scene: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *shlex.split(typed)],
        cwd=scene,
        env=environment(scene),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2), done.stderr
    assert says in done.stderr
    assert "Cannot get model" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith("torch imported: False"), done.stderr


@pytest.mark.parametrize(
    "typed",
    [
        "ingest photos",
        "ingest photos --model small",
        "ingest photos --model hf-hub:org/repo",
        "classify photos --labels a,b",
        "evaluate photos",
        "evaluate photos --baseline small --model hf-hub:org/repo",
        "finetune photos --output tuned",
        "finetune photos --output tuned --model biology",
        "search dog --db store",
        "serve --db store --model small --port 0",
    ],
)
def test_a_model_that_cannot_be_had_is_told_before_torch_is_imported(typed: str, scene: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *shlex.split(typed)],
        cwd=scene,
        env=environment(scene),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Cannot get model" in done.stderr
    assert "hf download" in done.stderr
    assert done.stderr.rstrip().endswith("torch imported: False"), done.stderr
