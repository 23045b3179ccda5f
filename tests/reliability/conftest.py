"""One helper process and one library of pictures for all attacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.processes import Processes
from tests.reliability.scene import Library, make_library


@pytest.fixture(scope="package")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Runs commands."""
    with Processes(tmp_path_factory.mktemp("processes") / "runs") as running:
        yield running


@pytest.fixture(scope="package")
def library(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Library:
    """Pictures, and what two models make of each."""
    return make_library(tmp_path_factory.mktemp("library"), processes)
