"""What a benchmark found: dataclasses, their JSON (`as_dict`), and their text (`format_benchmark`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imret.datasets.scan import Skipped
from imret.errors import counted, some_of
from imret.escape import escape_control
from imret.evaluation.report import Interval, Provenance, as_dict

# How figures are published that are published under another name than their key.
_TITLES = {"map": "mAP", "ndcg": "nDCG", "mrr": "MRR"}


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % bootstrap interval, both in [0, 1]."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class QueryFigures:
    """One query of judged lists: what it ranked, and what that was worth.

    Attributes:
        query: As it is asked.
        images: Pictures in its list.
        relevant: Those that answer it.
        figures: By key, as in `BenchmarkReport.figures`; empty where nothing is relevant.
    """

    query: str
    images: int
    relevant: int
    figures: dict[str, float]


@dataclass(frozen=True)
class BenchmarkData:
    """What was ranked.

    Attributes:
        files: That the set was read from.
        queries: That were asked.
        images: Pictures that were ranked.
        cut: Queries longer than the model reads.
        left_out: Pictures that could not be taken, and why.
        notes: What else a person should know.
    """

    files: list[str]
    queries: int
    images: int
    cut: int
    left_out: list[Skipped]
    notes: list[str]


@dataclass(frozen=True)
class BenchmarkReport:
    """What a benchmark found.

    Attributes:
        kind: "judged lists" or "captions".
        data: What was ranked.
        model_id: The model.
        fingerprint: Of its weights, architecture and preprocessing.
        figures: By the key of JSON, such as "map", "map@50", "image_retrieval_recall@5".
        drawn: What the intervals are over: "queries" or "pictures".
        per_query: Of judged lists; else None.
        provenance: How it was made.
    """

    kind: str
    data: BenchmarkData
    model_id: str
    fingerprint: str
    figures: dict[str, Figure]
    drawn: str
    per_query: list[QueryFigures] | None
    provenance: Provenance

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON's types."""
        return as_dict(self)


def format_benchmark(report: BenchmarkReport) -> str:
    """Return a report for a terminal: what was ranked, by what, and the figures."""
    data, made = report.data, report.provenance
    of_captions = report.per_query is None
    asked = counted(data.queries, "caption") if of_captions else counted(data.queries, "query", "queries")
    titles = {key: _title(key) for key in report.figures}
    width = max(map(len, titles.values()))
    lines = [
        f"{asked}, {counted(data.images)} of {some_of(map(escape_control, data.files), 3)}",
        f"{escape_control(report.model_id)} ({report.fingerprint[:8]}), {made.precision} on {made.device}, "
        f"imret {made.imret}, {made.date}",
        "",
        f"{'':<{width}}   value  95 % interval over {report.drawn}",
    ]
    for key, figure in report.figures.items():
        low, high = figure.interval
        lines.append(f"{titles[key]:<{width}}  {figure.value:.4f}  [{low:.4f}, {high:.4f}]")
    return "\n".join(lines)


def _title(key: str) -> str:
    name, at, k = key.partition("@")
    return f"{_TITLES.get(name, name)}{at}{k}"
