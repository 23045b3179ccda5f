"""`import imret` is light and its surface is what it says; what may import what is in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest

import imret


def test_importing_imret_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'open_clip', 'qdrant_client', 'qdrant_edge', 'PIL', 'numpy'}"
    code = f"import sys, imret, imret.store; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_the_public_surface_is_what_all_says() -> None:
    for name in imret.__all__:
        assert getattr(imret, name).__name__ == name
    assert set(imret.__all__) == set(imret._HOME)
    assert set(imret.__all__) <= set(dir(imret))
    with pytest.raises(AttributeError, match="no attribute 'Enkoder'"):
        imret.Enkoder  # noqa: B018
