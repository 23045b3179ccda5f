"""The picture of a run shows what its two files say, whatever was on or off."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from finetune.config import FinetuneConfig
from finetune.reporting.plots import draw, smoothed
from imret.errors import DataError
from tests import ROOT

CATEGORIES = ("aves", "fungi", "plantae")
ALPHAS = [i / 10 for i in range(11)]
PARTS = {"replay": 0.8, "anchor_images": 0.0, "anchor_phrases": 0.1, "anchor_texts": 0.02}


def steps(n: int, parts: dict[str, float] | None = None) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "step": i + 1,
            "loss": 3.2 + rng.random(),
            "floor": 3.1,
            "lr": 1e-5 * (n - i) / n,
            "grad_norm": 2 * rng.random(),
            "parts": parts or {},
        }
        for i in range(n)
    ]


def scores(mean: float, categories: tuple[str, ...] = CATEGORIES) -> dict[str, Any]:
    return {"text_to_image_map": mean, "average_precision": dict.fromkeys(categories, mean)}


def training(**validation: Any) -> dict[str, Any]:
    return {
        "base": {"model": "ViT-H-14/laion2b_s32b_b79k", "from_scratch": False},
        "config": {
            "tune": "both",
            "names_only": False,
            "image_layers": 0,
            "batch_size": 100,
            "clip_norm": 1.0,
            "hit_rate_budget": 0.01,
            "agreement_budget": 0.1,
        },
        "steps": 480,
        "seconds": 2412.3,
        "device": "cuda",
        "validation": {"before": scores(0.7), "after": scores(0.8), **validation},
    }


def blends(gain: float, loss: float, kind: str = "hit_rate@10", alpha: float = 0.4) -> dict[str, Any]:
    points = [
        {"alpha": a, "map": 0.7 + gain * (1 - (1 - a) ** 2), "retention": 0.9 - loss * a**2} for a in ALPHAS
    ]
    return {"alpha": alpha, "retention": kind, "blends": points}


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("L"))


def axes_with(figure: Figure, word: str) -> Axes:
    (panel,) = [axes for axes in figure.axes if word in axes.get_title(loc="left")]
    return panel


@pytest.mark.parametrize(
    ("n", "parts", "validation"),
    [
        (480, PARTS, blends(0.1, 0.05)),
        (3, {}, blends(0.0, 0.0, kind="agreement", alpha=0.0)),
        (480, {}, {}),
        (1, PARTS, {"before": None, "after": None}),
    ],
    ids=["a curve", "three steps, all blends alike", "bars", "one step, no validation"],
)
def test_every_kind_of_run_is_drawn_1200_pixels_wide(
    n: int, parts: dict[str, float], validation: dict[str, Any]
) -> None:
    image = pixels(draw(steps(n, parts), training(**validation)))
    assert image.shape == (800, 1200)
    assert image.min() < 64 < 192 < image.max()


def test_the_curve_marks_base_and_shipped_and_what_the_rule_refuses() -> None:
    figure = draw(steps(20), training(**blends(0.1, 0.05)))
    axes = axes_with(figure, "From base")
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0.9 - 0.05 * a**2 for a in ALPHAS])
    np.testing.assert_allclose(line.get_ydata(), [0.7 + 0.1 * (1 - (1 - a) ** 2) for a in ALPHAS])
    assert axes.get_xlabel() == "retention: hit rate@10 on captions of other pictures"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "base: mAP 0.700, retention 0.900",
        "shipped, alpha 0.4: mAP 0.764, retention 0.892",
        "more than 0.01 lost",
    ]


def test_every_alpha_is_written_once_and_those_that_lie_on_one_another_as_a_range() -> None:
    apart = axes_with(draw(steps(20), training(**blends(0.1, 0.05))), "From base")
    assert [text.get_text() for text in apart.texts] == [f"{a:g}" for a in ALPHAS]
    together = axes_with(draw(steps(20), training(**blends(0.0, 0.0))), "From base")
    assert [text.get_text() for text in together.texts] == ["0–1"]


def test_labels_lie_neither_on_one_another_nor_off_the_plot() -> None:
    for gain, loss in ((0.1, 0.05), (0.1, 0.0001), (0.001, 0.05), (-0.1, 0.02), (0.3, 0.9)):
        figure = draw(steps(20), training(**blends(gain, loss)))
        axes = axes_with(figure, "From base")
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i]), (gain, loss, i)
            assert figure.bbox.containsx(box.x0)
            assert figure.bbox.containsx(box.x1)


def test_without_retention_the_curve_is_drawn_over_alpha() -> None:
    validation = blends(0.1, 0.05)
    for point in validation["blends"]:
        point["retention"] = None
    axes = axes_with(draw(steps(20), training(**validation)), "From base")
    assert axes.get_xlabel() == "alpha"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), ALPHAS)


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ("full", "both towers"),
        ("light", "top layer of the image tower, names"),
        ("names", "names"),
        ("lora", "adapters"),
    ],
)
def test_the_title_says_what_was_trained(recipe: str, trained: str) -> None:
    content = training(**blends(0.1, 0.1))
    content["config"] = dataclasses.asdict(FinetuneConfig.of(recipe))
    title = draw(steps(480), content).get_suptitle()
    assert f"laion2b_s32b_b79k: {trained}, 480 steps of" in title


def test_of_many_categories_the_worst_are_drawn_and_the_title_says_so() -> None:
    many = tuple(f"category-{i}-with-a-rather-long-name-of-its-own" for i in range(300))
    after = scores(0.8, many)
    after["average_precision"][many[7]] = 0.1
    axes = axes_with(
        draw(steps(20), training(before=scores(0.7, many), after=after)), "lowest 24 of 300 categories"
    )
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 25
    assert labels[0].startswith("category-7-")
    assert labels[-1] == "mean"


def test_smoothing_is_the_naive_weighted_mean_and_keeps_a_constant() -> None:
    values = np.random.default_rng(1).random(120)
    deviation = 0.02 * 120
    reach = int(3 * deviation)
    for i, value in enumerate(smoothed(values)):
        near = [j for j in range(120) if abs(j - i) <= reach]
        weights = [np.exp(-0.5 * ((j - i) / deviation) ** 2) for j in near]
        assert value == pytest.approx(np.average(values[near], weights=weights))
    np.testing.assert_allclose(smoothed(np.full(5000, 3.3)), 3.3)
    assert (smoothed(values[:20]) == values[:20]).all()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DataError, match=r"pip install 'imret\[plots\]'"):
        draw(steps(3), training())


def test_matplotlib_is_loaded_when_something_is_drawn_and_pyplot_never() -> None:
    code = (
        "import sys, finetune.reporting.plots\n"
        "assert 'matplotlib' not in sys.modules, 'not lazy'\n"
        "from tests.finetune.reporting.test_plots import *\n"
        "pixels(draw(steps(9, PARTS), training(**blends(0.1, 0.05))))\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'"
    )
    folder = ROOT
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
