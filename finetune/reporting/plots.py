"""The course of a run as one picture: training.png, drawn from metrics.jsonl and training.json.

Hides matplotlib, an optional package that is loaded where it is used. Loads no pyplot and chooses no backend.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from finetune.checkpoint import METRICS_NAME, write_whole
from imret.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_NAME = "training.png"
# Colours that colour-blind people can tell apart: https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#767676"
_OTHERS = ("#cc79a7", "#009e73", "#e69f00", "#56b4e9", "#000000")
# Standard deviation of the Gaussian that smooths curves, as a share of the run and at most in steps.
_SMOOTHING, _MAX_SMOOTHING = 0.02, 200.0
_MAX_BARS = 24
_NAMES = {
    "replay": "replay",
    "anchor_images": "anchor of pictures",
    "anchor_texts": "anchor of texts",
    "anchor_phrases": "anchor on phrases",
    "anchor_replay": "anchor of replay",
}


def _retention_label(kind: str) -> str:
    """Say what retention is of, by `Validation.retention_kind`."""
    if kind == "agreement":
        return "retention: agreement with the base"
    return f"retention: {kind.replace('_', ' ')} on captions of other pictures"


def save_plot(folder: Path, training: Mapping[str, Any]) -> None:
    """Draw a run into its model folder, as training.png.

    Args:
        folder: Holds metrics.jsonl, with at least one step.
        training: What training.json says.

    Raises:
        DataError: If the file cannot be written, or matplotlib is missing.
        OSError: If metrics.jsonl cannot be read.
    """
    lines = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    figure = draw([json.loads(line) for line in lines], training)
    write_whole(folder / PLOT_NAME, lambda path: figure.savefig(path, format="png"))


def draw(steps: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> Figure:
    """Return a figure of 1200 x 800 pixels: the loss, what drives it, and what validation says.

    Args:
        steps: Lines of metrics.jsonl, of one step each; at least one.
        training: What training.json says.

    Raises:
        DataError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(f"{PLOT_NAME} is drawn by matplotlib: pip install 'imret[plots]'.") from error
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    figure.suptitle(_title(training), fontsize=12)
    parts = sorted({name for step in steps for name in step["parts"]})
    halves = figure.add_gridspec(1, 2, wspace=0.06)
    heights = (5, 3, 4) if parts else (5, 4)
    rows = halves[0].subgridspec(len(heights), 1, height_ratios=heights)
    loss = figure.add_subplot(rows[0])
    _draw_loss(loss, steps)
    if parts:
        _draw_parts(figure.add_subplot(rows[1], sharex=loss), steps, parts)
    _draw_rate(figure.add_subplot(rows[len(heights) - 1], sharex=loss), steps, training["config"])
    validation = figure.add_subplot(halves[1])
    if "blends" in training["validation"]:
        _draw_blends(validation, training)
    elif training["validation"]["after"] is not None:
        _draw_categories(validation, training["validation"])
    else:
        validation.set_axis_off()
        validation.text(0.5, 0.5, "no pictures were kept for validation", ha="center", color=_GREY)
    return figure


def _title(training: Mapping[str, Any]) -> str:
    base, config, steps = training["base"], training["config"], training["steps"]
    name = base["model"] if len(base["model"]) <= 60 else "…" + base["model"][-59:]
    origin = ", from scratch" if base["from_scratch"] else ""
    return (
        f"{name}{origin}: {_tuned(config)}, {steps:,} step{'s' if steps > 1 else ''} of "
        f"{config['batch_size']}, {_duration(training['seconds'])} on {training['device']}"
    )


def _tuned(config: Mapping[str, Any]) -> str:
    """Say which weights were trained."""
    words = "names" if config["names_only"] else "text tower"
    if config["tune"] == "text":
        return words
    if config["tune"] == "lora":
        return f"adapters in the image tower, {words}" if config["names_only"] else "adapters"
    layers = config["image_layers"]
    if not layers:
        return f"image tower, {words}" if config["names_only"] else "both towers"
    return f"top {'layer' if layers == 1 else f'{layers} layers'} of the image tower, {words}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values smoothed by a centred Gaussian, which does not lag.

    Args:
        values: (S,) one for each step. A short series stays as it is.
    """
    deviation = min(_SMOOTHING * len(values), _MAX_SMOOTHING)
    if deviation < 0.5:
        return values
    reach = int(3 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    total, weight = (np.convolve(series, weights, mode="full") for series in (values, np.ones(len(values))))
    middle: NDArray[np.float64] = (total / weight)[reach : reach + len(values)]
    return middle


def _column(steps: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([step[name] for step in steps], dtype=np.float64)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


# ---- The steps -------------------------------------------------------------------------------------------


def _draw_loss(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    number, loss, floor = (_column(steps, name) for name in ("step", "loss", "floor"))
    _plain(axes, "Contrastive loss, and the least that it could be")
    mark = "o" if len(steps) == 1 else None
    axes.plot(number, loss, color=_BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(number, smoothed(loss), color=_BLUE, linewidth=1.8, label="loss", marker=mark)
    axes.plot(number, smoothed(floor), color=_GREY, linewidth=1.5, linestyle="--", label="floor", marker=mark)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = float(floor.min()), float(np.quantile(loss, 0.995))
    margin = max(0.05 * (high - low), 1e-3)
    axes.set_ylim(low - margin, high + margin)
    axes.legend(frameon=False, loc="upper right")


def _draw_parts(axes: Axes, steps: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> None:
    """Draw the other parts of the objective on a log scale, for anchors are far smaller than replay."""
    _plain(axes, "The other parts, before their weights")
    highest = 0.0
    for number, name in enumerate(parts):
        having = [step for step in steps if name in step["parts"]]
        values = np.array([step["parts"][name] for step in having], dtype=np.float64)
        values = smoothed(values)
        highest = max(highest, float(values.max()))
        values = np.where(values > 1e-6, values, np.nan)  # anchors begin at 0, which has no logarithm
        mark = "o" if len(steps) == 1 else None
        axes.plot(
            _column(having, "step"),
            values,
            color=_OTHERS[number % len(_OTHERS)],
            linewidth=1.8,
            label=_NAMES.get(name, name),
            marker=mark,
        )
    axes.set_yscale("log")
    low = max(axes.get_ylim()[0], highest / 1e4)
    axes.set_ylim(bottom=low * (low / axes.get_ylim()[1]) ** 0.6)  # room for the legend
    axes.legend(frameon=False, fontsize=9, loc="lower center", ncols=2)


def _draw_rate(axes: Axes, steps: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    number, rate, norm = (_column(steps, name) for name in ("step", "lr", "grad_norm"))
    _plain(axes, "Learning rate, and gradient norm (clipped above the dots)")
    mark = "o" if len(steps) == 1 else None
    axes.plot(number, rate, color=_GREEN, linewidth=1.8, marker=mark)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate", color=_GREEN)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_xlabel("step")
    other = axes.twinx()
    other.spines["top"].set_visible(False)
    norm = np.maximum(norm, 1e-12)
    other.plot(number, norm, color=_ORANGE, alpha=0.25, linewidth=0.8)
    other.plot(number, smoothed(norm), color=_ORANGE, linewidth=1.8, marker=mark)
    other.axhline(config["clip_norm"], color=_ORANGE, linewidth=1, linestyle=":")
    other.set_yscale("log")
    other.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    other.yaxis.set_major_formatter("{x:g}")
    other.yaxis.set_minor_formatter(NullFormatter())
    other.set_ylabel("gradient norm", color=_ORANGE)


# ---- Validation ------------------------------------------------------------------------------------------


def _draw_blends(axes: Axes, training: Mapping[str, Any]) -> None:
    """Draw the line from base to tuned: what was gained over what was kept."""
    validation, config = training["validation"], training["config"]
    points, kind = validation["blends"], validation["retention"]
    known = all(point["retention"] is not None for point in points)
    alpha = np.array([point["alpha"] for point in points])
    x = np.array([point["retention"] for point in points]) if known else alpha
    y = np.array([point["map"] for point in points])
    better = ": better is up and to the right" if known else ""
    _plain(axes, f"From base (0) to tuned (1), on validation{better}")
    axes.set_xlabel(_retention_label(kind) if known else "alpha")
    axes.set_ylabel("text-to-image mAP")
    axes.plot(x, y, color=_BLUE, linewidth=1.5, marker="o", markersize=5, zorder=2)
    base = int(np.argmin(alpha))
    shipped = (validation["alpha"], validation.get("alpha_text"))
    chosen = [(point["alpha"], point.get("alpha_text")) for point in points].index(shipped)
    text = "" if shipped[1] is None else f", text tower {shipped[1]:g}"
    axes.plot(
        x[base], y[base], "s", color="white", markeredgecolor=_GREY, markeredgewidth=2, markersize=11,
        zorder=3, label=f"base: mAP {y[base]:.3f}" + (f", retention {x[base]:.3f}" if known else ""),
    )  # fmt: skip
    axes.plot(
        x[chosen], y[chosen], "*", color=_ORANGE, markeredgecolor="black", markersize=17, zorder=4,
        label=f"shipped, alpha {alpha[chosen]:g}{text}: mAP {y[chosen]:.3f}"
        + (f", retention {x[chosen]:.3f}" if known else ""),
    )  # fmt: skip
    axes.margins(0.1)
    if known:
        budget = config["agreement_budget" if kind == "agreement" else "hit_rate_budget"]
        low, high = axes.get_xlim()
        lowest = x[base] - budget
        if lowest > low:
            axes.axvspan(
                low, lowest, color=_GREY, alpha=0.12, linewidth=0, label=f"more than {budget:g} lost"
            )
        axes.set_xlim(low, high)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.2), fontsize=10)
    _label(axes, x, y, alpha, marked={base, chosen})


def _label(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    alpha: NDArray[np.float64],
    *,
    marked: set[int],
) -> None:
    """Label every point with its alpha; neighbours that overlap share a label, as a range."""
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # computes the layout
    at = axes.transData.transform(np.column_stack([x, y]))  # (P, 2) in pixels
    groups: list[list[int]] = []
    for i in range(len(at)):
        if groups and np.hypot(*(at[i] - at[groups[-1][0]])) < 16:
            groups[-1].append(i)
        else:
            groups.append([i])
    box = axes.get_window_extent()
    middle = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
    reach_of_plot = np.array([box.width, box.height]) / 2
    along = np.linspace(0, len(at) - 1, 12 * len(at))
    line = np.column_stack([np.interp(along, np.arange(len(at)), at[:, axis]) for axis in (0, 1)])
    taken: list[NDArray[np.float64]] = []
    for group in groups:
        center = at[group].mean(axis=0)
        text = f"{alpha[group[0]]:g}" + (f"–{alpha[group[-1]]:g}" if len(group) > 1 else "")

        half = np.array([4.0 * len(text), 7.0])  # of the label's box, in pixels

        def crowding(
            offset: NDArray[np.float64],
            center: NDArray[np.float64] = center,
            half: NDArray[np.float64] = half,
        ) -> float:
            """Return how much the line, other labels and the edge of the plot crowd a place for a label."""
            place = center + offset
            gaps = np.maximum(np.abs(np.vstack([line, *taken]) - place) - half, 0)  # to the label's box
            outside = (np.abs(place - middle) + half > reach_of_plot).any()
            return float((1 / np.maximum(np.hypot(*gaps.T), 1.0) ** 2).sum()) + 10.0 * outside

        angles = np.arange(16) * np.pi / 8
        gap = 14 if marked & set(group) else 8
        best = min(((half + gap) * np.array([np.cos(a), np.sin(a)]) for a in angles), key=crowding)
        ends = np.array([[-half[0], 0], [0, 0], [half[0], 0]])
        taken.append(center + best + ends)
        axes.annotate(
            text,
            tuple(axes.transData.inverted().transform(center)),
            xytext=tuple(best * 72 / figure.dpi),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
        )


def _draw_categories(axes: Axes, validation: Mapping[str, Any]) -> None:
    """Draw average precision before and after, the mean on top; of many categories the lowest."""
    after = validation["after"]
    before = validation["before"] or after
    names = sorted(after["average_precision"], key=lambda name: (after["average_precision"][name], name))
    shown = names[:_MAX_BARS]
    rows = [*((name, before["average_precision"][name], after["average_precision"][name]) for name in shown)]
    rows.append(("mean", before["text_to_image_map"], after["text_to_image_map"]))
    place = np.arange(len(rows))
    few = f" (the lowest {len(shown)} of {len(names):,} categories)" if len(shown) < len(names) else ""
    _plain(axes, f"Average precision on validation{few}")
    axes.barh(place + 0.2, [row[1] for row in rows], height=0.38, color=_GREY, alpha=0.6, label="before")
    bars = axes.barh(place - 0.2, [row[2] for row in rows], height=0.38, color=_BLUE, label="after")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    labels = [name if len(name) <= 28 else name[:27] + "…" for name, _, _ in rows]
    axes.set_yticks(place, labels)
    axes.set_xlim(0, 1.08)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.11), ncols=2)
