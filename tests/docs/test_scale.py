"""The tables of docs/scale.md are what the formula says now."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests import ROOT


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imret_benchmarks_cost", ROOT / "benchmarks" / "cost.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("points", [1e6, 50e6, 1e9])
def test_what_a_collection_takes_is_as_calculated(cost: ModuleType, points: float) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert cost.table(points, 1_024, 128) in page, "put there what this prints: python benchmarks/cost.py"


def test_the_formula_is_the_sum_that_the_page_shows(cost: ModuleType) -> None:
    layout = cost.Layout("x", "bits4", originals_in_memory=True, indexes_bytes=10)
    by_hand = 1.2 * (4 * 100 + 0.5 * 100 + 16 * 2 * 4 * 1.2 + 52 + 10)
    assert layout.memory(100) == pytest.approx(by_hand)
    on_disk = 1.2 * (4 * 100 + 0.5 * 100 + 16 * 2 * 4 * 1.2 + 52 + 292 * 1.5 + 603)
    assert layout.disk(100) == pytest.approx(on_disk)
    node_gb = 2 * by_hand * 1e6 / 0.8 / 1e9  # of so much memory, one node holds two million
    assert [cost.nodes(layout, n, 100, 1, node_gb) for n in (1e6, 1.99e6, 2.1e6)] == [1, 1, 2]
    assert cost.nodes(layout, 1e6, 100, 2, node_gb) == 2  # a copy is on another node
    assert cost.nodes(layout, 1e9, 100, 1, 1e9) == 10  # 100 million a node, however large
