"""What stands beside the code says what the code does: compose file, packaging. Pages are in tests/docs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
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


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_the_server_is_reachable_from_this_machine_only_and_keeps_its_data(name: str) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    (volume,) = service["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"]
    assert service["healthcheck"]["test"]


def test_three_nodes_make_a_cluster_that_nobody_starts_unasked() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    nodes = {name: service for name, service in services.items() if service.get("profiles") == ["cluster"]}
    assert sorted(nodes) == ["node-1", "node-2", "node-3"]
    assert set(services) - set(nodes) == {"qdrant"}
    published = [port for service in services.values() for port in service["ports"]]
    assert len({port.rpartition(":")[0] for port in published}) == len(published) == 8
    assert not any(port.endswith(":6335") for port in published)  # by which the nodes speak to each other
    assert len({service["volumes"][0] for service in services.values()}) == 4
    for name, node in nodes.items():
        assert node["image"] == services["qdrant"]["image"]
        assert node["healthcheck"] == services["qdrant"]["healthcheck"]
        assert "QDRANT__CLUSTER__ENABLED=true" in node["environment"]
        assert set(services["qdrant"]["environment"]) < set(node["environment"])
        joins = [] if name == "node-1" else ["--bootstrap", "http://node-1:6335"]
        assert node["command"] == ["--uri", f"http://{name}:6335", *joins]


@pytest.mark.parametrize("compose", [["docker-compose"], ["docker", "compose"]], ids=" ".join)
@pytest.mark.parametrize("key", [None, "", "s3cr3t $ key"])
def test_every_compose_reads_the_file_with_a_key_and_without(
    compose: list[str], key: str | None, tmp_path: Path
) -> None:
    # 1.29, which Debian 12 has, knows less than 2. Neither needs an engine for this.
    environment = {name: value for name, value in os.environ.items() if name != "QDRANT_API_KEY"}
    environment |= {} if key is None else {"QDRANT_API_KEY": key}
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)  # away from anybody's .env
    try:
        subprocess.run([*compose, "version"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip(f"there is no {' '.join(compose)} here")
    config = [*compose, "--profile", "cluster", "config"]
    done = subprocess.run(config, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == set(COMPOSE["services"])
    for service in services.values():
        # What is printed can be read again, so a dollar is doubled.
        assert service["environment"]["QDRANT__SERVICE__API_KEY"].replace("$$", "$") == (key or "")
        assert "ulimits" not in service  # above the engine's own the container would not start


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_the_server_is_started_with_as_many_open_files_as_it_may_have(name: str, tmp_path: Path) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    program, option, script, *rest = service["entrypoint"]
    starts = tmp_path / "entrypoint.sh"  # where the image has the server's, which its command is
    starts.write_text('#!/bin/bash\nulimit -Sn\nulimit -Hn\necho "$@"\n')
    starts.chmod(0o755)
    few = f"ulimit -Sn 64; ulimit -Hn 512; {script.replace('$$', '$')}"
    command = [program, option, few, *rest, *service.get("command", [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (["512", "512", *service.get("command", [])], "")


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
