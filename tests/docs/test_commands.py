"""The commands and the Python of every page do what the page says: they are run, over small pictures.

Each page has a folder of its own with what the pages name: data/train, data/test, photos, models/nature. The
names of the large models lead to small ones with random weights: what lies on disk wins over a name of
open_clip's. What is not run is marked in its page, or named in `NOT_RUN` with the reason; all is parsed.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from finetune.config import RECIPES
from imret.cli.main import cli
from imret.defaults import DEFAULT_MODEL
from imret.models.choices import CHOICES
from tests.docs.pages import PAGES, REFERENCE, Command, blocks, typed
from tests.fakes.benchmark_files import drawn_inquire, drawn_webdataset
from tests.fakes.pictures import draw_picture

CATEGORIES = ("aves", "fungi", "mammalia", "plantae")
# These begin with no collection; the others with one of `photos` that models/nature made.
WITHOUT_COLLECTION = {"README.md", "ingest.md", "finetuning.md"}
# What stands in a command, and why that is not run.
NOT_RUN = {
    "serve": "runs until it is stopped",
    "http://": "needs a server",
    "https://": "needs the network",
    "s3://": "needs an object store",
    "--open": "needs a display",
    "--tour": "takes minutes: make demo runs it",
}
# Of the help, what is not run where it stands by itself, by how the example begins.
NOT_RUN_ALONE = {
    "imret collections delete photos": "asks at a terminal",
    "imret collections import": "needs the file that an export writes",
    "imret concepts forget": "needs names that were learnt",
    "imret sources forget photos": "asks at a terminal",
    "imret sources rename photos /mnt/nas/photos": "needs that folder",
    "holidays": "needs that collection",
}


def _imret(page: Path) -> list[Command]:
    """Return the commands of a page that are run."""
    return [
        command
        for command in typed(page)
        if command.words[0] == "imret"
        and command.not_run is None
        and not any(reason in word for reason in NOT_RUN for word in command.words)
    ]


def _python(page: Path) -> list[str]:
    return [block.text for block in blocks(page) if block.is_python and block.not_run is None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """For models this small, threads that wait for each other take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lay_out(
    tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], CliRunner]:
    """Return what makes the folder that a page works in, goes there, and gives what runs commands."""

    def lay(page: Path) -> CliRunner:
        choices = [CHOICES[name].model for name in ("small", "base")]
        for model in (DEFAULT_MODEL, *choices, "ViT-B-32/openai", "models/nature"):
            shutil.copytree(random_model, tmp_path / model)
        seed = 0
        for folder, n in (("data/train", 6), ("data/test", 3), ("photos", 13), ("holiday", 1)):
            for name in [f"{category}/{i}.jpg" for category in CATEGORIES for i in range(n)]:
                draw_picture(tmp_path / folder / name, seed=(seed := seed + 1))
        drawn_inquire(tmp_path / "INQUIRE-Rerank")
        drawn_inquire(tmp_path / "INQUIRE-Rerank", split="validation")
        drawn_webdataset(tmp_path / "wds_mscoco_captions")
        judged = [f"a thing,aves/{i}.jpg,{i % 2}" for i in range(4)]
        (tmp_path / "judged.csv").write_text("\n".join(["query,path,relevant", *judged]))
        draw_picture(tmp_path / "pool.jpg")
        (tmp_path / "names.csv").write_text("category,name\nfungi,toadstool\n")
        # Steps enough to show that the chain holds, not that it learns.
        for recipe in ("light", "names"):
            monkeypatch.setitem(RECIPES[recipe], "least_steps", 1)
        monkeypatch.chdir(tmp_path)
        runner = CliRunner()
        monkeypatch.setenv("IMRET_HOME", str(tmp_path / "home"))
        # Not a Qdrant of this machine, which commands would use where they are given no store.
        monkeypatch.setenv("IMRET_DB", str(tmp_path / "home" / "store"))
        if page.name not in WITHOUT_COLLECTION:
            _run(runner, ("ingest", "photos", "--model", "models/nature"))
        return runner

    return lay


def _run(runner: CliRunner, arguments: tuple[str, ...], env: dict[str, str] | None = None) -> str:
    result = runner.invoke(cli, arguments, env=env)
    error = "" if result.exception is None else f"{type(result.exception).__name__}: {result.exception}"
    assert result.exit_code == 0, f"imret {' '.join(arguments)}\n{error}\n{result.output}"
    return result.stdout


def _run_all(runner: CliRunner, commands: list[Command]) -> None:
    """Run commands one after the other; what they write appears."""
    for command in commands:
        written = [
            Path(file)
            for option, file in zip(command.words, command.words[1:], strict=False)
            if option in ("--html", "--copy-to", "--report", "--output")
            and command.words[1] != "learn"  # which teaches a folder that is there
        ]
        if "export" in command.words:
            written.append(Path(command.words[-1]))
        for file in written:  # an earlier example made it, or it was laid out for pages that do not
            if file.is_dir():
                shutil.rmtree(file)
            file.unlink(missing_ok=True)
        stdout = _run(runner, command.words[1:], dict(command.env))
        if command.output is not None:
            Path(command.output).write_text(stdout)
        for file in written:
            assert file.exists(), command


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _imret(page) and page != REFERENCE], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run_one_after_the_other(
    page: Path, lay_out: Callable[[Path], CliRunner]
) -> None:
    _run_all(lay_out(page), _imret(page))


def test_the_examples_of_the_help_run_each_by_itself(
    lay_out: Callable[[Path], CliRunner], tmp_path: Path
) -> None:
    runner = lay_out(REFERENCE)
    shutil.copytree(tmp_path / "home" / "store", tmp_path / "as-ingested")
    examples = [
        list(group) for _, group in itertools.groupby(_imret(REFERENCE), key=lambda command: command.line)
    ]
    for example in examples:
        typed = " ".join(example[0].words)
        if any(what in typed for what in NOT_RUN_ALONE) and not typed.endswith(("--yes", "--no-check")):
            continue
        shutil.rmtree(tmp_path / "home" / "store", ignore_errors=True)
        if example[0].words[1] not in ("ingest", "finetune"):  # those begin with no collection
            shutil.copytree(tmp_path / "as-ingested", tmp_path / "home" / "store")
        _run_all(runner, example)


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if _python(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(
    page: Path, lay_out: Callable[[Path], CliRunner], capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(page)
    for code in _python(page):
        capsys.readouterr()
        exec(compile(code, page.name, "exec"), {})
        assert capsys.readouterr().out


def test_python_in_the_readme_prints_hits_of_the_category_and_predictions(
    lay_out: Callable[[Path], CliRunner], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lay_out(PAGES[0])
    (code,) = _python(PAGES[0])
    exec(compile(code, "README.md", "exec"), {})
    *hits, predictions = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in hits] == ["1", "2", "3"]
    assert all(str(tmp_path / "data" / "test" / "fungi") in line for line in hits)
    assert "Prediction(label=" in predictions
