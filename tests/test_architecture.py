"""The house keeps its shape: one direction of imports, one home for each heavy dependency."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import imret
from tests import ROOT

HOMES = {
    "torch": {"imret/models/", "imret/images/resize.py", "finetune/"},
    "open_clip": {"imret/models/", "finetune/"},
    "qdrant_client": {"imret/store/"},
    "qdrant_edge": {"imret/store/"},
    "fastapi": {"imret/web/", "imret/cli/serve.py"},
    "uvicorn": {"imret/web/", "imret/cli/serve.py"},
    "prometheus_client": {"imret/web/", "imret/cli/serve.py"},
    "PIL": {"imret/images/", "imret/output/terminal_images.py", "imret/demo/"},
}


def _imports(file: Path) -> set[str]:
    """Return every module a file imports, wherever in it, type-checking blocks included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("imret", {"ingest", "finetune"}), ("ingest", {"finetune"}), ("finetune", {"ingest"})],
)
def test_imports_point_in_one_direction(package: str, forbidden: set[str]) -> None:
    assert _sources(package)
    for file in _sources(package):
        met = {name.split(".")[0] for name in _imports(file)} & forbidden
        assert not met, f"{file.relative_to(ROOT)} imports {met}"


@pytest.mark.parametrize("dependency", HOMES)
def test_each_heavy_dependency_has_one_home(dependency: str) -> None:
    for package in ("imret", "ingest", "finetune"):
        for file in _sources(package):
            if dependency in {name.split(".")[0] for name in _imports(file)}:
                place = file.relative_to(ROOT).as_posix()
                assert any(place.startswith(home) for home in HOMES[dependency]), (
                    f"{place} imports {dependency}"
                )


def test_importing_imret_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'open_clip', 'qdrant_client', 'qdrant_edge', 'PIL', 'numpy'}"
    code = f"import sys, imret, imret.store; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_the_public_surface_is_what_the_stub_says() -> None:
    stub = ast.parse((ROOT / "imret" / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: (node.module, alias.asname)
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name, (module, public) in homes.items():
        assert public == name
        assert getattr(imret, name) is getattr(sys.modules[str(module)], name)
    assert set(imret.__all__) == homes.keys() - {"__version__"}
    assert homes.keys() <= set(dir(imret))
    assert {"ingest", "finetune", "FolderSource", "FinetuneConfig"} <= set(imret.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Enkoder'"):
        imret.Enkoder  # noqa: B018


def test_a_star_import_brings_the_public_surface() -> None:
    names: dict[str, object] = {}
    exec("from imret import *", names)
    assert names.keys() - {"__builtins__"} == set(imret.__all__)
