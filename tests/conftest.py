"""Fixtures that more than one test file leans on."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_imret_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's own store, cache and settings."""
    monkeypatch.setenv("IMRET_HOME", str(tmp_path_factory.mktemp("imret-home")))
    for name in ("IMRET_DB", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and small real models beside the checkout; absent on most machines."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real photos and models of ../shared/data, which are not here")
    return SHARED_DATA
