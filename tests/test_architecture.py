"""`import imret` is light and its surface is what it says; what may import what is in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import imret
from tests import ROOT


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
