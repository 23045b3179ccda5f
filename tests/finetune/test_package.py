"""The package says what is in it, and loads nothing before it is used."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import finetune
from tests import ROOT


def test_the_tree_in_the_docstring_is_that_of_the_files() -> None:
    tree = re.findall(r"^    ([\w/]+\.py) +\S", finetune.__doc__ or "", flags=re.MULTILINE)
    folder = ROOT / "finetune"
    files = [
        path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if path.name != "__init__.py"
    ]
    assert sorted(tree) == sorted(files)


def test_the_public_names_are_lazy() -> None:
    code = (
        "import sys, finetune\n"
        "assert finetune.FinetuneConfig.of('light').image_layers == 1\n"
        "assert not {'torch', 'numpy', 'open_clip'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_public_surface_is_what_all_says() -> None:
    for name in finetune.__all__:
        assert getattr(finetune, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        finetune.finetun  # noqa: B018
