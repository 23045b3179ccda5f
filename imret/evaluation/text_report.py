"""A report for a terminal: one table of every system and figure, then the differences, then the categories.

Knows which figures a report shows, in which order and under which heading; the page shows the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from imret.errors import counted
from imret.escape import escape_control
from imret.evaluation.report import BaselineReport, CollectionReport, EvaluationReport, ModelReport, as_dict
from imret.evaluation.significance import IMAGES, MAP, RETENTION, TOP1

Row: TypeAlias = ModelReport | BaselineReport


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes:
        path: Names of attributes that lead to it from a row, and last, of figures at k, the k.
        short: Its heading in a terminal, 7 characters at most.
        title: Its heading on a page.
        meaning: What it is, in words.
    """

    path: tuple[str | int, ...]
    short: str
    title: str
    meaning: str


_TEXT = ("text_to_image", "macro")
COLUMNS = (
    Column((*_TEXT, "map"), "mAP", "mAP", "average precision of asking for a category, mean over categories"),
    Column((*_TEXT, "r_precision"), "R-prec", "R-precision", "right ones among as many as there are"),
    Column((*_TEXT, "precision", 1), "P@1", "P@1", "how often the first picture is right"),
    Column((*_TEXT, "precision", 10), "P@10", "P@10", "share of right ones among the first ten"),
    Column((*_TEXT, "ndcg", 10), "nDCG@10", "nDCG@10", "the same, earlier ranks counting more"),
    Column((*_TEXT, "hit_rate", 10), "hit@10", "hit rate@10", "how often any of the first ten is right"),
    Column(("image_to_image", "map"), "img-img", "image-image mAP", "each picture asks for its like"),
    Column(("zero_shot", "top1"), "top-1", "top-1", "share of pictures taken for what they are"),
    Column(("zero_shot", "macro_top1"), "macro-1", "macro top-1", "the same, mean over categories"),
    Column(
        ("retention", "hit_rate", 10),
        "kept@10",
        "kept@10",
        "captions of other things that find their picture",
    ),
)
# What an ingested collection is measured by, whose rankings may be cut short: by key of JSON.
IN_COLLECTION = {
    "map": "mAP",
    "map@100": "mAP@100",
    "r_precision": "R-prec",
    "p@1": "P@1",
    "p@10": "P@10",
    "ndcg@10": "nDCG@10",
    "hit_rate@10": "hit@10",
}
COMPARED = (
    (MAP, "text to image mAP"),
    (TOP1, "zero-shot top-1"),
    (IMAGES, "image to image mAP"),
    (RETENTION, "retention hit rate@10"),
)


def value_of(row: Row, path: Sequence[str | int]) -> float | None:
    """Return a figure of a row, or None where it has none."""
    at: Any = row
    for key in path:
        at = at.get(key) if isinstance(at, Mapping) else getattr(at, str(key), None)
    return None if at is None else float(at)


def rows_of(report: EvaluationReport) -> list[Row]:
    """Return every row that has figures: the models, then what needs no tuning."""
    return [*report.models, *fitted_of(report)]


def fitted_of(report: EvaluationReport) -> list[BaselineReport]:
    """Return the rows that were fitted on training pictures."""
    return [baseline for baseline in report.baselines if baseline.text_to_image]


def absent_of(report: EvaluationReport) -> dict[str, str]:
    """Return why there is no row of what would be fitted on training pictures, by name."""
    return {row.name: row.why_absent for row in report.baselines if row.why_absent}


def columns_of(report: EvaluationReport) -> list[Column]:
    """Return the figures that any row of the report has."""
    rows = rows_of(report)
    return [column for column in COLUMNS if any(value_of(row, column.path) is not None for row in rows)]


def format_report(report: EvaluationReport | None, collection: CollectionReport | None = None) -> str:
    """Return reports for a terminal: of a folder, of a collection, or both."""
    parts = []
    if report:
        parts += [_rows(report), _differences(report), _categories(report)]
        if duplicates := report.data.duplicates_in_train:
            are = "is" if len(duplicates) == 1 else "are"
            parts.append(
                f"{counted(len(duplicates))} {are} in --train, too: the rows fitted on it flatter "
                "themselves; --json lists them"
            )
        if fitted_of(report):
            parts += [f"no row of {name}: {why}" for name, why in absent_of(report).items()]
        for model in report.models:
            if model.learnt:
                parts.append(
                    f"{_short(model.name)} asks {model.learnt} of {len(report.data.categories)} categories "
                    "by what was learnt (imret learn, imret finetune); --no-concepts asks their words alone"
                )
        if report.data.skipped:
            parts.append(f"{counted(len(report.data.skipped))} left out; --json and --html list them")
    if collection:
        parts.append(_collection(collection))
    return "\n\n".join(part for part in parts if part)


def _rows(report: EvaluationReport) -> str:
    rows, columns = rows_of(report), columns_of(report)
    width = max(len(_short(row.name)) for row in rows)
    lines = [" " * width + "".join(f"{column.short:>8}" for column in columns)]
    for row in rows:
        cells = (_figure(value_of(row, column.path)) for column in columns)
        lines.append(f"{_short(row.name):<{width}}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)


def _differences(report: EvaluationReport) -> str:
    if not report.differences:
        return ""
    lines = [f"difference to the {report.reference}, with 95 % paired bootstrap interval over pictures"]
    width = max(len(_short(difference.of)) for difference in report.differences)
    for metric, title in COMPARED:
        in_metric = [difference for difference in report.differences if difference.metric == metric]
        lines += [f"  {title}"] * bool(in_metric)
        for difference in in_metric:
            low, high = difference.interval
            name = _short(difference.of)
            lines.append(f"    {name:<{width}}  {difference.difference:+.3f}  [{low:+.3f}, {high:+.3f}]")
    return "\n".join(lines)


def _categories(report: EvaluationReport) -> str:
    heads = "".join(f"  {_short(model.name, 12):>12}" for model in report.models)
    lines = [f"{'average precision by text':<26}images{heads}"]
    for name, category in report.data.categories.items():
        aps = (model.text_to_image.per_category[name].ap for model in report.models)
        lines.append(f"  {_short(name):<24}{category.images:>6,}" + "".join(f"  {ap:>12.3f}" for ap in aps))
    return "\n".join(lines)


def _collection(collection: CollectionReport) -> str:
    recall = collection.recall
    lines = [
        f"collection {collection.name}: {collection.size}; recall of the index @10 {recall[10]:.3f}, "
        f"@100 {recall[100]:.3f}",
        " " * 24 + "".join(f"{IN_COLLECTION[metric]:>8}" for metric in as_dict(collection.exact)),
    ]
    for ranking, name, form in (
        (collection.through_index, "through the index", ">8.3f"),
        (collection.exact, "exact", ">8.3f"),
        (collection.difference, "difference", ">+8.3f"),
    ):
        lines.append(f"{name:<24}" + "".join(f"{value:{form}}" for value in as_dict(ranking).values()))
    return "\n".join(lines)


def _short(name: str, width: int = 24) -> str:
    """Return a name that fits its column and holds nothing that a terminal would obey."""
    plain = escape_control(name)
    return plain if len(plain) <= width else f"{plain[: width - 1]}…"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
