"""README and docs say what is there: every command, name, link, option and variable in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

import imret
from imret.cli.main import cli
from imret.cli.reference import commands, reference
from imret.settings import Settings
from tests import ROOT
from tests.docs.pages import PAGES, REFERENCE, Command, blocks, commands_of, typed

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = [command for page in PAGES for command in typed(page)]

# Programs whose commands are looked at below, or run by tests/docs/test_commands.py; what follows | is not.
PROGRAMS = {"imret", "make", "docker", "pip", "curl", "pytest", "xargs"}
FOLDERS = {"imret/", "ingest/", "finetune/", "tests/", "benchmarks/", "docs/"}

# Options of programs other than imret, and variables that are not imret's own settings.
FOREIGN_OPTIONS = {
    "--nproc-per-node",
    "--large",
    "--other",
    "--model",
    "--scale-down",
    "--index-url",
    "--torch-backend",
    "--repo-type",
    "--local-dir",
    "--points",  # of benchmarks/cost.py
    "--dim",
    "--node-gb",
    "--measure",
    "--profile",  # of Compose
    "--uri",  # of Qdrant
    "--bootstrap",
}
FOREIGN_VARIABLES = {f"IMRET_TEST_QDRANT_{name}" for name in ("URL", "PEERS", "STOP", "START")}


def _of(*programs: str) -> list[Command]:
    return [one for one in COMMANDS if one.words[0].rpartition("/")[2] in programs]


def _code(text: str) -> Iterator[str]:
    """Yield what stands between backticks in a page."""
    yield from re.findall(r"`([^`\n]+)`", text)


def test_the_reference_of_the_command_line_is_what_the_commands_say_now() -> None:
    assert reference() == TEXTS[REFERENCE.name], "run: make docs"


# ---- Commands -------------------------------------------------------------------------------------------


def test_the_pages_show_commands_and_every_command_is_shown() -> None:
    shown = {one.words[1] for one in _of("imret") if one.page != REFERENCE.name}
    assert shown >= set(cli.list_commands(click.Context(cli))) - {"demo"}


@pytest.mark.parametrize("command", _of("imret"), ids=str)
def test_every_imret_command_parses(command: Command) -> None:
    at: click.Command = cli
    context = click.Context(cli, info_name="imret")
    words = list(command.words[1:])
    while isinstance(at, click.Group) and words and not words[0].startswith("-"):
        if at is cli and words[0].startswith("./"):  # a folder: imret FOLDER WORDS
            words.insert(0, "find")
        inner = at.get_command(context, words[0])
        assert inner is not None, f"no command {words[0]!r}"
        at = inner
        context = click.Context(at, info_name=words.pop(0), parent=context)
    at.make_context(context.info_name, words, parent=context.parent)  # a usage error if an option is unknown


@pytest.mark.parametrize("page", [page for page in PAGES if page != REFERENCE], ids=lambda page: page.name)
def test_every_block_is_python_commands_or_a_drawing(page: Path) -> None:
    for block in blocks(page):
        if block.is_python or block.not_run is not None or page.name == "architecture.md":
            continue
        for command in commands_of(block.text, page.name, block.line):
            known = command.words[0].rpartition("/")[2] in PROGRAMS
            assert known or command.words[0] in FOLDERS, f"{command}: not looked at by any test"


@pytest.mark.parametrize("command", _of("make"), ids=str)
def test_every_make_target_exists(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in command.words[1:]:
        assert "=" in target or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("command", _of("docker"), ids=str)
def test_every_service_that_is_started_exists(command: Command) -> None:
    assert command.words[-1] in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("command", _of("pip"), ids=str)
def test_every_extra_that_is_installed_exists(command: Command) -> None:
    assert command.words[1] == "install"
    _check_extras(" ".join(command.words[2:]))


@pytest.mark.parametrize(
    "command",
    [one for one in _of("curl") if one.page != "scale.md"],  # there it is Qdrant that is asked
    ids=str,
)
def test_every_address_of_the_api_is_one_of_its_routes(command: Command) -> None:
    routes = (ROOT / "imret" / "web" / "routes.py").read_text(encoding="utf-8")
    (address,) = (word for word in command.words if word.startswith("localhost:8750/api/"))
    path = address.removeprefix("localhost:8750/api").partition("?")[0]
    assert f'"{path}"' in routes


def test_every_script_and_test_that_the_pages_tell_to_run_exists() -> None:
    told = [code.split() for text in TEXTS.values() for code in _code(text)]
    told += [list(one.words) for one in _of("python", "pytest")]
    files = [
        word for words in told if words[0] in ("python", "pytest") for word in words if word.endswith(".py")
    ]
    assert len(files) > 10
    for file in files:
        assert (ROOT / file).is_file(), file


# ---- Names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\]\n", "] ", TEXTS[page])):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = folder / path if path else folder / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, target


def _slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_of_the_repository_that_is_named_exists(page: str) -> None:
    for code in _code(TEXTS[page]):
        file = code.partition("::")[0]
        if re.fullmatch(r"(imret|ingest|finetune|tests|benchmarks|docs)/[\w./-]*", file):
            assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", ["README.md", "architecture.md"])
def test_the_folders_of_a_tree_exist(page: str) -> None:
    (tree,) = (block for block in blocks(_page(page)) if block.text.startswith("imret/ "))
    inside: list[str] = []
    for line in tree.text.splitlines():
        depth, names = (len(line) - len(line.lstrip())) // 2, line.strip().split("   ")[0]
        for name in names.split("  "):
            assert (ROOT / "/".join(inside[:depth]) / name).exists(), line
            inside[depth:] = [name.rstrip("/")]


def _page(name: str) -> Path:
    return next(page for page in PAGES if page.name == name)


@pytest.mark.parametrize("page", TEXTS)
def test_every_option_that_is_named_exists(page: str) -> None:
    known = set(FOREIGN_OPTIONS)
    for _, command, context in commands():
        known.update(*(one.opts + one.secondary_opts for one in command.get_params(context)))
    for code in _code(TEXTS[page]):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
            assert option in known, f"{option} in `{code}`"


def test_the_page_of_the_library_lists_every_public_name() -> None:
    listed = re.findall(r"^\| (`[A-Z_a-z]+`.*?) \|", TEXTS["python.md"], re.MULTILINE)
    assert {name for cell in listed for name in _code(cell)} == set(imret.__all__)


def test_the_variables_of_the_environment_are_those_of_the_settings() -> None:
    known = set(re.findall(r"IMRET_[A-Z_]+", Settings.__doc__ or ""))
    described = set(re.findall(r"^\| `(IMRET_[A-Z_]+)`", TEXTS["settings.md"], re.MULTILINE))
    assert described == known
    named = {name for text in TEXTS.values() for name in re.findall(r"\bIMRET_[A-Z_]+", text)}
    assert named <= known | FOREIGN_VARIABLES


def test_every_extra_that_is_named_exists() -> None:
    for text in TEXTS.values():
        _check_extras(text)


def _check_extras(text: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n\n")[0]
    for name in re.findall(r"(?:imret|\.)\[([a-z]+)\]", text):
        assert re.search(rf"^{name} = \[", extras, re.MULTILINE), name


def test_every_feature_that_is_claimed_beside_the_peers_has_its_test() -> None:
    lines = TEXTS["features.md"].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    claimed = [row for row in rows[1:] if row[1] == "Y"]
    assert len(claimed) > 30
    for row in claimed:
        file, _, name = row[2].strip("`").partition("::")
        assert (ROOT / file).is_file(), row[0]
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row[0]
    assert {len(row) for row in rows} == {9}
