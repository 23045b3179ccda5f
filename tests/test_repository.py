"""What stands beside the code says what the code does: compose file, packaging. Pages are in tests/docs."""

from __future__ import annotations

import re
from typing import Any

import yaml

from imret.settings import __version__
from tests import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


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
    folders = ("imret", "ingest", "finetune", "tests", "benchmarks", "docs")
    files = [
        *ROOT.glob("*.*"),
        ROOT / "Makefile",
        *(file for name in folders for file in (ROOT / name).rglob("*")),
    ]
    for file in files:
        if file.is_file() and file.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".js", ""}:
            assert "/" + "work/" not in file.read_text(encoding="utf-8"), file
