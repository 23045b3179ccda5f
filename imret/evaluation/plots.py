"""The drawn parts of the page: precision-recall curves and the confusion matrix, as SVG and a table.

Everything here is a function from a report to a section of HTML; the colours are classes of the page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from imret.evaluation.report import ModelReport, ZeroShot

_SIDE = 200.0
# Beyond these many categories a plot of each, and a matrix, show nothing any more.
_MAX_CURVES, _MAX_MATRIX, _MAX_PAIRS = 24, 40, 40


def curves(models: Sequence[ModelReport], levels: Sequence[float]) -> str:
    """Draw precision over recall: the mean of all categories large, each category small beside it."""
    mean = _plot([model.text_to_image.curve for model in models], levels, labelled=True)
    ours = next(model for model in models if model.name == "model").text_to_image.per_category
    shown, rest = list(ours), ""
    if len(ours) > _MAX_CURVES:
        shown = sorted(ours, key=lambda name: (ours[name].ap, name))[:_MAX_CURVES]
        rest = f", and the {_MAX_CURVES} categories that the model finds worst"
    small = "".join(
        f"<figure>{_plot([model.text_to_image.per_category[category].curve for model in models], levels, labelled=False)}"
        f"<figcaption>{html.escape(category)}</figcaption></figure>"
        for category in shown
    )
    return (
        "<section><h2>Precision over recall <small>asking in words; interpolated</small></h2>"
        f"{legend(models)}<div class=curves><figure>{mean}"
        f"<figcaption>mean over categories{rest}</figcaption></figure><div class=small>{small}</div></div></section>"
    )


def legend(models: Sequence[ModelReport]) -> str:
    """Return which colour is which model."""
    spans = "".join(
        f"<span><i class=c{number % 6}></i>{html.escape(model.name)}</span>"
        for number, model in enumerate(models)
    )
    return f"<p class=legend>{spans}</p>"


def _plot(lines: Sequence[Sequence[float]], levels: Sequence[float], *, labelled: bool) -> str:
    """Return an SVG of curves in [0, 1] x [0, 1]; those drawn later lie on top."""
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0) if labelled else (0.0, 0.5, 1.0)
    grid = "".join(
        f'<path class=grid d="M0 {_SIDE * t:.0f}H{_SIDE:.0f}M{_SIDE * t:.0f} 0V{_SIDE:.0f}"/>' for t in ticks
    )
    marks = ""
    if labelled:
        marks = "".join(
            f'<text x="{_SIDE * t:.0f}" y="{_SIDE + 14:.0f}" text-anchor="middle">{t:g}</text>'
            f'<text x="-5" y="{_SIDE * (1 - t) + 4:.0f}" text-anchor="end">{t:g}</text>'
            for t in ticks
        ) + (
            f'<text x="{_SIDE / 2:.0f}" y="{_SIDE + 28:.0f}" text-anchor="middle">recall</text>'
            f'<text transform="translate(-30 {_SIDE / 2:.0f}) rotate(-90)" text-anchor="middle">precision</text>'
        )
    drawn = "".join(
        f'<polyline class="line s{number % 6}" points="'
        + " ".join(
            f"{_SIDE * level:.1f},{_SIDE * (1 - value):.1f}"
            for level, value in zip(levels, line, strict=True)
        )
        + '"/>'
        for number, line in enumerate(lines)
    )
    box = (
        f"-40 -6 {_SIDE + 50:.0f} {_SIDE + 40:.0f}" if labelled else f"-2 -2 {_SIDE + 4:.0f} {_SIDE + 4:.0f}"
    )
    return f'<svg viewBox="{box}" role="img" aria-label="precision over recall">{grid}{marks}{drawn}</svg>'


def confusion(zero_shot: ZeroShot) -> str:
    """Draw what pictures are (rows) and are taken for (columns), shaded by their share of the row.

    Of many categories, list the pairs that are confused most.
    """
    if len(zero_shot.labels) > _MAX_MATRIX:
        return _pairs(zero_shot)
    labels = [html.escape(label) for label in zero_shot.labels]
    head = "".join(f"<th class=turn><span>{label}</span></th>" for label in labels)
    rows = []
    for i, (label, counts) in enumerate(zip(labels, zero_shot.confusion, strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="{"own" if i == j else "other"}" style="--share:{count / total:.3f}">{count or ""}</td>'
            for j, count in enumerate(counts)
        )
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    return (
        "<section><h2>Zero-shot confusion <small>row: what it is, column: what the model takes it for</small></h2>"
        f"<div class=wide><table class=matrix><tr><th></th>{head}</tr>{''.join(rows)}</table></div></section>"
    )


def _pairs(zero_shot: ZeroShot) -> str:
    labels, matrix = zero_shot.labels, zero_shot.confusion
    pairs = [
        (count, sum(counts), labels[i], labels[j])
        for i, counts in enumerate(matrix)
        for j, count in enumerate(counts)
        if i != j and count
    ]
    rows = "".join(
        f"<tr><th>{html.escape(is_what)}</th><td>{html.escape(taken_for)}</td><td>{count:,} of {total:,}</td></tr>"
        for count, total, is_what, taken_for in sorted(pairs, key=lambda p: (-p[0], p[2:]))[:_MAX_PAIRS]
    )
    return (
        f"<section><h2>Zero-shot confusion <small>the {_MAX_PAIRS} most frequent: what it is, what the model takes it for</small></h2>"
        f"<table>{rows}</table></section>"
    )
