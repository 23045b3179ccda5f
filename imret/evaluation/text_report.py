"""A report for a terminal: one table of every system and figure, then the differences, then the categories.

Knows which figures a report shows, in which order and under which heading; the page shows the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imret.escape import escape_control
from imret.evaluation.significance import IMAGES, KEPT, MAP, TOP1


@dataclass(frozen=True)
class Column:
    """One figure of every system.

    Attributes:
        path: Where it is in a system's part of the report.
        short: Its heading in a terminal, 7 characters at most.
        title: Its heading on a page.
        meaning: What it is, in words.
    """

    path: tuple[str, ...]
    short: str
    title: str
    meaning: str


_TEXT = ("text_to_image", "macro")
COLUMNS = (
    Column((*_TEXT, "map"), "mAP", "mAP", "average precision of asking for a category, mean over categories"),
    Column((*_TEXT, "r_precision"), "R-prec", "R-precision", "right ones among as many as there are"),
    Column((*_TEXT, "p@1"), "P@1", "P@1", "how often the first picture is right"),
    Column((*_TEXT, "p@10"), "P@10", "P@10", "share of right ones among the first ten"),
    Column((*_TEXT, "ndcg@10"), "nDCG@10", "nDCG@10", "the same, earlier ranks counting more"),
    Column((*_TEXT, "hit_rate@10"), "hit@10", "hit rate@10", "how often any of the first ten is right"),
    Column(("image_to_image", "map"), "img-img", "image-image mAP", "each picture asks for its like"),
    Column(("zero_shot", "top1"), "top-1", "top-1", "share of pictures taken for what they are"),
    Column(("zero_shot", "macro_top1"), "macro-1", "macro top-1", "the same, mean over categories"),
    Column(
        ("retention", "hit_rate@10"), "kept@10", "kept@10", "captions of other things that find their picture"
    ),
)
# What an ingested collection is measured by, whose rankings may be cut short.
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
    (KEPT, "retention hit rate@10"),
)


def value_of(system: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """Return a figure of a system, or None where it has none."""
    at: Any = system
    for key in path:
        if not isinstance(at, Mapping) or at.get(key) is None:
            return None
        at = at[key]
    return float(at)


def systems_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every system that has figures: the models, then what needs no tuning."""
    return [one for one in (*report["models"], *report["baselines"]) if one["text_to_image"] is not None]


def columns_of(report: Mapping[str, Any]) -> list[Column]:
    """Return the figures that any system of the report has."""
    systems = systems_of(report)
    return [one for one in COLUMNS if any(value_of(system, one.path) is not None for system in systems)]


def format_report(report: Mapping[str, Any]) -> str:
    """Return a report for a terminal; either of its parts, folder and collection, may be missing."""
    parts = []
    if report.get("models"):
        parts += [_systems(report), _differences(report), _categories(report)]
        if copies := report["data"]["copies_in_train"]:
            parts.append(
                f"{len(copies):,} pictures are among those of --train too: the rows fitted on them flatter "
                "themselves; --json lists them"
            )
        if report["data"]["skipped"]:
            parts.append(f"{len(report['data']['skipped']):,} pictures left out; --json and --html list them")
    if report.get("collection"):
        parts.append(_collection(report["collection"]))
    return "\n\n".join(part for part in parts if part)


def _systems(report: Mapping[str, Any]) -> str:
    systems, columns = systems_of(report), columns_of(report)
    width = max(len(_short(one["name"])) for one in systems)
    lines = [" " * width + "".join(f"{one.short:>8}" for one in columns)]
    for system in systems:
        cells = (_figure(value_of(system, one.path)) for one in columns)
        lines.append(f"{_short(system['name']):<{width}}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)


def _differences(report: Mapping[str, Any]) -> str:
    rows = report["differences"]
    if not rows:
        return ""
    lines = [f"difference to the {report['reference']}, with 95 % paired bootstrap interval over pictures"]
    width = max(len(_short(row["of"])) for row in rows)
    for metric, title in COMPARED:
        those = [row for row in rows if row["metric"] == metric]
        lines += [f"  {title}"] * bool(those)
        for row in those:
            low, high = row["interval"]
            lines.append(
                f"    {_short(row['of']):<{width}}  {row['difference']:+.3f}  [{low:+.3f}, {high:+.3f}]"
            )
    return "\n".join(lines)


def _categories(report: Mapping[str, Any]) -> str:
    models = report["models"]
    lines = [
        f"{'average precision by text':<26}images" + "".join(f"  {_short(m['name'], 12):>12}" for m in models)
    ]
    for category, about in report["data"]["categories"].items():
        values = (m["text_to_image"]["per_category"][category]["ap"] for m in models)
        lines.append(
            f"  {_short(category):<24}{about['images']:>6,}" + "".join(f"  {v:>12.3f}" for v in values)
        )
    return "\n".join(lines)


def _collection(one: Mapping[str, Any]) -> str:
    rest = ", the others scanned" if one["indexed"] < one["images"] else ""
    lines = [
        f"collection {one['name']}: {one['images']:,} pictures, {one['indexed']:,} in the index{rest}; "
        f"recall of the index @10 {one['recall@10']:.3f}, @100 {one['recall@100']:.3f}",
        " " * 24 + "".join(f"{IN_COLLECTION[metric]:>8}" for metric in one["exact"]),
    ]
    for key, name in (("through_index", "through the index"), ("exact", "exact")):
        lines.append(f"{name:<24}" + "".join(f"{value:>8.3f}" for value in one[key].values()))
    lines.append(f"{'difference':<24}" + "".join(f"{value:>+8.3f}" for value in one["difference"].values()))
    return "\n".join(lines)


def _short(name: str, width: int = 24) -> str:
    """Return a name that fits its column and holds nothing that a terminal would obey."""
    plain = escape_control(name)
    return plain if len(plain) <= width else f"{plain[: width - 1]}…"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
