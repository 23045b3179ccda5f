"""The command line: help, formats, exit codes, and errors as sentences."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from imret import Encoder
from imret.cli.help import examples_of
from imret.cli.main import cli
from imret.cli.reference import commands
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture


def _imret(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "imret", *arguments],
        capture_output=True,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["search", "--help"], ["similar", "--help"], ["ingest", "--help"], ["finetune", "--help"]],
)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom imret.cli.main import cli\n"
        f"try:\n    cli.main({arguments!r}, prog_name='imret')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'open_clip', 'qdrant_client', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: imret" in done.stdout


def test_every_command_has_help_that_ends_with_examples() -> None:
    for typed, command, _ in commands():
        assert command.help, typed
        examples = examples_of(command)
        own = [example for example in examples if f"{example} ".startswith(f"{typed} ")]
        assert len(own) >= 3, typed  # whose options are shown; and of a group, its commands
        assert len(set(examples)) == len(examples), typed
        shown = CliRunner().invoke(cli, [*typed.split()[1:], "--help"]).output
        assert [line.strip() for line in shown.splitlines()[-len(examples) :]] == examples, typed
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{typed} {parameter.name} has no help"


@pytest.mark.parametrize("name", ["search", "similar", "evaluate", "benchmark", "classify"])
def test_the_options_of_a_long_help_stand_once_each_under_a_heading(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"]).output
    shown = shown[shown.index("\nOptions:\n") :]
    listed = [line for line in shown.splitlines() if re.match(r"  -", line)]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    flags = [parameter.opts[-1] for parameter in command.params if isinstance(parameter, click.Option)]
    for flag in [*flags, "--help"]:
        assert sum(bool(re.search(rf"{flag}(?![\w-])", line[:34])) for line in listed) == 1, flag
    assert len(listed) == len(flags) + 1
    headings = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
    assert headings[0] == "Options"
    assert len(headings) >= 3
    first = shown.partition("\nOptions:\n")[2].partition("\n\n")[0]
    assert sum(line[:3] == "  -" for line in first.splitlines()) <= 9  # what is used most, at one glance


def test_one_thing_has_one_spelling_in_all_commands() -> None:
    spelled = {
        "--db": "ADDRESS",
        "--collection": "NAME",
        "--model": "MODEL",
        "--device": "NAME",
        "--arch": "ARCH",
    }
    seen: dict[str, set[str]] = {name: set() for name in spelled}
    for typed, command, _ in commands():
        options = {
            name: parameter
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for name in parameter.opts
        }
        for name, metavar in spelled.items():
            if name in options:
                seen[name].add(typed)
                assert options[name].opts == [name], typed
                assert options[name].metavar == metavar, typed
                assert options[name].help, typed
        assert ("--db" in options) == ("--collection" in options), typed
        if "--db" in options:
            assert options["--db"].envvar == "IMRET_DB", typed
    subcommands = ("list", "show", "rename", "delete", "export", "import", "optimize")
    of_store = {"ingest", "evaluate", "search", "similar", "serve", "classify", "info"}
    of_store |= {f"collections {name}" for name in subcommands}
    assert seen["--collection"] >= {f"imret {name}" for name in of_store}


def test_info_tells_of_one_collection_where_one_is_named(tmp_path: Path, random_model: Path) -> None:
    draw_picture(tmp_path / "photos" / "fungi" / "a.png")
    db = str(tmp_path / "db")
    with open_store(db) as store:
        for name in ("one", "two"):
            ingest(store, [FolderSource(tmp_path / "photos")], encoder=Encoder(random_model), collection=name)
    for arguments, names in (((), ["one", "two"]), (("--collection", "two"), ["two"])):
        done = CliRunner().invoke(cli, ["info", "--db", db, "--format", "json", *arguments])
        assert [collection["name"] for collection in json.loads(done.stdout)["collections"]] == names
        done = CliRunner().invoke(cli, ["collections", "list", "--db", db, "--format", "json", *arguments])
        assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == names
    done = CliRunner().invoke(cli, ["info", "--db", db, "--collection", "three"])
    assert "no collection 'three'" in str(done.exception)


def test_wrong_usage_exits_with_2() -> None:
    done = _imret("search", "mushroom", "--limit", "0")
    assert done.returncode == 2
    assert b"Usage: imret search" in done.stderr


def _wrong_usages() -> Iterator[tuple[str, ...]]:
    """Give for every command an option, a value and a command that are none, and a value too few."""
    for typed, command, _ in commands():
        words = tuple(typed.split()[1:])
        yield (*words, "--no-such-option")
        if isinstance(command, click.Group):
            yield (*words, "nosuchcommand")
            continue
        required = [one for one in command.params if isinstance(one, click.Argument) and one.required]
        if required:
            yield words
        arguments = ["x"] * len(required)
        for option in command.params:
            if not isinstance(option, click.Option) or option.is_flag:
                continue
            given = (*words, *arguments, option.opts[0])
            if (typed, option.name) != ("imret evaluate", "collection"):  # whose value may be left out
                yield given
            if isinstance(option.type, (click.Choice, click.IntRange, click.FloatRange)):
                yield (*given, "no such value")
            elif option.name == "device":
                yield (*given, "foo")


@pytest.mark.parametrize("typed", list(_wrong_usages()), ids=" ".join)
def test_wrong_usage_of_any_command_exits_with_2_before_anything_is_made(
    typed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMRET_DB", str(tmp_path / "db"))
    done = CliRunner().invoke(cli, typed, prog_name="imret")
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert "Error: " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "cuda:", "cuda:x", "gpu", "", "cuda:-1"])
def test_a_device_that_is_none_is_wrong_usage_that_names_those_there_are(device: str) -> None:
    done = CliRunner().invoke(cli, ["search", "wing", "--device", device])
    assert done.exit_code == 2
    assert "There are cpu, cuda, cuda:0 (the first of several), mps and auto." in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["collections", "show"], ["collections", "rename", "{}", "new"], ["collections", "delete", "--yes"]],
    ids=" ".join,
)
def test_a_collection_that_is_not_there_is_told_with_those_that_are_nearest_first(
    arguments: list[str], tmp_path: Path, random_model: Path
) -> None:
    draw_picture(tmp_path / "photos" / "fungi" / "a.png")
    db = str(tmp_path / "db")
    with open_store(db) as store:
        for name in ("alps", "Holidays"):
            ingest(store, [FolderSource(tmp_path / "photos")], encoder=Encoder(random_model), collection=name)
    typed = [word.format("holiday") for word in arguments]
    typed += [] if "holiday" in typed else ["holiday"]
    done = CliRunner().invoke(cli, [*typed, "--db", db])
    assert str(done.exception) == (
        f"no collection 'holiday' in {db!r}. Did you mean 'Holidays'? There are: Holidays, alps."
    )
    done = CliRunner().invoke(cli, [*typed, "--db", str(tmp_path / "other")])
    assert "imret ingest FOLDER" in str(done.exception)  # there is none that could be meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("serch", "Did you mean 'search'?"),
        ("Ingest", "Did you mean 'ingest'?"),
        ("simlar", "'similar'"),
        ("mushrooms", "no command 'mushrooms'.\n"),
    ],
)
def test_a_command_that_does_not_exist_is_wrong_usage_and_the_nearest_is_named(
    typed: str, meant: str
) -> None:
    done = CliRunner().invoke(cli, [typed, "x"])
    assert done.exit_code == 2
    assert meant in done.output


def test_the_help_lists_every_command_once_under_a_heading() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    _, _, below = shown.partition("\nEvery day:\n")
    listed = [line.split()[0] for line in below.splitlines() if line[:2] == "  " and line[2:3].isalpha()]
    context = click.Context(cli)
    assert [name for name in listed if name != "Examples:"] == cli.list_commands(context)
    assert set(cli.commands) <= set(cli.list_commands(context))


def test_an_error_is_a_sentence_on_stderr_with_exit_code_1_and_a_traceback_only_on_request(
    tmp_path: Path,
) -> None:
    missing = str(tmp_path / "nothing")
    done = _imret("search", "mushroom", "--db", missing)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"Error: ")
    assert missing.encode() in done.stderr
    assert b"imret ingest" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Traceback" in _imret("--debug", "search", "mushroom", "--db", missing).stderr


def test_an_unreachable_server_is_named_and_nothing_hangs() -> None:
    done = _imret("search", "mushroom", "--db", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert b"http://127.0.0.1:9" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_chain_from_a_folder_to_hits(tmp_path: Path, random_model: Path) -> None:
    for seed in range(6):
        draw_picture(tmp_path / "photos" / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    (tmp_path / "photos" / "fungi" / "bad.jpg").write_bytes(b"no picture")
    db = str(tmp_path / "db")
    report = tmp_path / "report.json"

    done = _imret(
        "ingest",
        str(tmp_path / "photos"),
        "--model",
        str(random_model),
        "--db",
        db,
        "--report",
        str(report),
        "--strict",
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == b""
    assert b"6 added, 1 skipped" in done.stderr
    assert b"bad.jpg: not a picture" in done.stderr
    assert json.loads(report.read_text())["added"] == 6

    done = _imret("search", "mushroom", "--category", "fungi", "--format", "json", env={"IMRET_DB": db})
    assert done.returncode == 0, done.stderr
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert {hit["category"] for hit in hits} == {"fungi"}
    assert all(Path(hit["path"]).is_file() for hit in hits)

    done = _imret("info", "--db", db, "--format", "json")
    (collection,) = json.loads(done.stdout)["collections"]
    assert collection["images"] == 6
    assert collection["categories"] == {"aves": 3, "fungi": 3}
    assert collection["model"] == str(random_model)

    table = _imret("info", "--db", db).stdout.decode()
    assert "images       6" in table


def test_a_query_longer_than_the_context_is_cut_with_a_warning(tmp_path: Path, random_model: Path) -> None:
    draw_picture(tmp_path / "photos" / "fungi" / "a.png")
    db = str(tmp_path / "db")
    assert (
        _imret("ingest", str(tmp_path / "photos"), "--model", str(random_model), "--db", db).returncode == 0
    )
    done = _imret("search", "mushroom " * 200, "--db", db)
    assert done.returncode == 0
    assert done.stderr.count(b"Warning: ") == 1
    assert b"was cut" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["search", "--help"], ["info"]])
@pytest.mark.parametrize("streams", [">&-", ">&- 2>&- <&-", "2>&-", "2>/dev/full", "| true"])
def test_a_stream_that_is_closed_is_no_error(arguments: list[str], streams: str, store: Path) -> None:
    command = " ".join(map(shlex.quote, (sys.executable, "-m", "imret", *arguments)))
    line = f"set -o pipefail; {command} {streams}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "IMRET_DB": str(store)}
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["info", "--format", "json"], ["sources"]])
def test_where_stdout_is_full_is_told_in_a_sentence(arguments: list[str], store: Path) -> None:
    command = [sys.executable, "-m", "imret", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "IMRET_DB": str(store)},
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "Error: the results cannot be written to stdout: No space left on device.",
        "       Make room there or send them elsewhere, and run the command again.",
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Path:
    """A store with a picture."""
    folder = tmp_path_factory.mktemp("streams")
    draw_picture(folder / "photos" / "owl" / "a.png", seed=1)
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    with open_store(str(folder / "db")) as filled:
        ingest(filled, [FolderSource(folder / "photos")], encoder=encoder)
    return folder / "db"


def test_advice_on_an_empty_store_names_the_store_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "my store"
    open_store(str(db)).close()
    for command in (["info"], ["collections"]):
        done = CliRunner().invoke(cli, [*command, "--db", str(db)])
        assert f"imret ingest FOLDER --db '{db}'\n" in done.output, done.output
