"""What stands beside the code says what the code does: README, Makefile, compose file, packaging."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from imret.cli.main import cli
from imret.settings import __version__
from tests import ROOT
from tests.fakes.pictures import draw_picture

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def _typed_commands() -> list[str]:
    """Return every `imret ...` that the README shows to be typed."""
    blocks = re.findall(r"(?:^    .*\n)+", README, flags=re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith(("imret ", "$ imret "))]


def test_the_readme_shows_commands() -> None:
    assert len(_typed_commands()) >= 6


@pytest.mark.parametrize("typed", _typed_commands())
def test_every_command_in_the_readme_parses(typed: str) -> None:
    _, name, *arguments = shlex.split(typed)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name!r}"
    command.make_context(name, arguments)  # raises a usage error if an option does not exist


def test_the_tree_in_the_readme_exists() -> None:
    tree = re.findall(r"^    (\w+/) ", README, flags=re.MULTILINE)
    assert {"imret/", "ingest/", "finetune/", "tests/"} <= set(tree)
    for folder in tree:
        assert (ROOT / folder).is_dir()


def test_every_file_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target


def test_python_in_the_readme_runs_as_it_stands(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n)+", README, flags=re.MULTILINE)
    (example,) = [block for block in blocks if "import imret" in block]
    shutil.copytree(random_model, tmp_path / "models" / "nature")
    for seed in range(4):
        draw_picture(tmp_path / "data" / "test" / ("fungi", "aves")[seed % 2] / f"{seed // 2}.png", seed=seed)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(line[4:] for line in example.splitlines())
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["1", "2"]
    assert all(str(tmp_path / "data" / "test" / "fungi") in line for line in lines[:2])
    assert "Prediction(label=" in lines[2]


def test_the_server_is_pinned_within_one_minor_version_of_the_client() -> None:
    image = COMPOSE["services"]["qdrant"]["image"]
    server = re.fullmatch(r"qdrant/qdrant:v(\d+)\.(\d+)\.\d+", image)
    client = re.search(
        r"qdrant-client==(\d+)\.(\d+)\.", (ROOT / "constraints.txt").read_text(encoding="utf-8")
    )
    assert server is not None
    assert client is not None
    assert server[1] == client[1]
    assert abs(int(server[2]) - int(client[2])) <= 1


def test_the_server_is_reachable_from_this_machine_only_and_keeps_its_data() -> None:
    service: dict[str, Any] = COMPOSE["services"]["qdrant"]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (volume,) = service["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"]
    assert service["healthcheck"]["test"]


def test_no_key_is_set_where_the_environment_has_none() -> None:
    # An empty variable would be a key that nobody knows, so it may not exist at all.
    (entry,) = [one for one in COMPOSE["services"]["qdrant"]["environment"] if "API_KEY" in one]
    assert entry == "${QDRANT_API_KEY:+QDRANT__SERVICE__API_KEY=}${QDRANT_API_KEY:-IMRET_NO_API_KEY=1}"


def test_the_package_has_one_version() -> None:
    stated = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert stated is not None
    assert stated[1] == __version__


def test_nothing_in_the_repository_names_the_machine_it_was_made_on() -> None:
    for file in [*ROOT.glob("*.*"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py"), ROOT / "Makefile"]:
        if file.is_file() and file.suffix in {".py", ".md", ".toml", ".yml", ".txt", ""}:
            text = Path(file).read_text(encoding="utf-8")
            assert "/" + "work/" not in text, file


def test_every_feature_that_is_claimed_beside_the_peers_has_its_test() -> None:
    lines = (ROOT / "docs" / "features.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    claimed = [row for row in rows[1:] if row[1] == "Y"]
    assert len(claimed) > 30
    for row in claimed:
        file, _, name = row[2].strip("`").partition("::")
        assert (ROOT / file).is_file(), row[0]
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row[0]
    assert {len(row) for row in rows} == {9}
