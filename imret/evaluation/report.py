"""What an evaluation found, as dataclasses; `as_dict` gives the JSON.

    report.models[-1].text_to_image.macro.map            as_dict: models[-1].text_to_image.macro.map
    report.models[-1].text_to_image.macro.precision[10]  as_dict: models[-1].text_to_image.macro.p@10

A figure at k is in a mapping by k, where there are k pictures at least. Figures are in [0, 1] and have four
decimals, more than pictures by the thousand can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from imret.datasets.scan import Skipped
from imret.errors import counted

Interval: TypeAlias = tuple[float, float]  # 95 % bootstrap interval over pictures

# What JSON calls otherwise: figures by k, such as "p@10", and single keys. Left out where they are None.
_BY_K = {"precision": "p", "ndcg": "ndcg", "hit_rate": "hit_rate", "recall": "recall"}
_KEYS = {"map_at_100": "map@100", "duplicates_in_train": "copies_in_train", "provenance": "made"}
_OPTIONAL = ("prompts", "intervals")


@dataclass(frozen=True)
class MeanRanking:
    """Means over categories of what their rankings are worth.

    Attributes:
        map: Mean average precision.
        r_precision: Precision among as many as there are.
        precision: At 1, 5, 10 and 20: share of right pictures.
        ndcg: At 10 and 100: the same, earlier ranks counting more.
        hit_rate: At 10: share of categories with any right picture.
    """

    map: float
    r_precision: float
    precision: Mapping[int, float]
    ndcg: Mapping[int, float]
    hit_rate: Mapping[int, float]


@dataclass(frozen=True)
class CategoryRanking:
    """What the ranking of all pictures for one category is worth; see `MeanRanking`.

    Attributes:
        ap: Average precision.
        curve: Precision at each of the report's `recall_levels`.
        ap_interval: Of the average precision.
    """

    ap: float
    r_precision: float
    precision: Mapping[int, float]
    ndcg: Mapping[int, float]
    hit_rate: Mapping[int, float]
    curve: list[float]
    ap_interval: Interval


@dataclass(frozen=True)
class TextToImage:
    """Asking for each category in words: means, each category, and the mean precision-recall curve."""

    macro: MeanRanking
    per_category: dict[str, CategoryRanking]
    curve: list[float]


@dataclass(frozen=True)
class CategoryNeighbours:
    """Mean average precision of the pictures of one category that ask for their like."""

    ap: float


@dataclass(frozen=True)
class ImageToImage:
    """Every picture asks for its category among the others.

    Attributes:
        map: Over pictures; like the others, None where nothing could be asked.
        macro_map: Over categories.
        precision: At 1 and 10, over pictures.
        queries: Pictures that asked: those that are not alone in their category.
        per_category: Of the categories of more than one picture.
    """

    map: float | None
    macro_map: float | None
    precision: Mapping[int, float | None]
    queries: int
    per_category: dict[str, CategoryNeighbours]


@dataclass(frozen=True)
class ZeroShot:
    """Each picture taken for the category whose score of it is highest.

    Attributes:
        top1: Share of pictures taken for what they are.
        macro_top1: The same, mean over categories.
        per_category: The same, of each category.
        labels: Categories, in the order of the confusion.
        confusion: Pictures by what they are (row) and what they are taken for (column).
    """

    top1: float
    macro_top1: float
    per_category: dict[str, float]
    labels: list[str]
    confusion: list[list[int]]


@dataclass(frozen=True)
class HitRates:
    """Share of queries with what they ask for among the first k, by k: 1, 5 and 10."""

    hit_rate: Mapping[int, float]


@dataclass(frozen=True)
class Retention:
    """How well captions find pictures that have nothing to do with the categories.

    Attributes:
        queries: Captions.
        images: Pictures.
        cut: Captions that are longer than the model reads.
        hit_rate: At 1, 5 and 10: share of captions that find their picture.
        image_to_text: The other way round: pictures that find one of their captions.
    """

    queries: int
    images: int
    cut: int
    hit_rate: Mapping[int, float]
    image_to_text: HitRates


@dataclass(frozen=True)
class Failure:
    """A picture that ranks badly.

    Attributes:
        kind: "missed": far behind the others of its category; "intruder": among those of another.
        category: That was asked for.
        path: Below the folder.
        rank: From 1.
        score: Cosine with the query.
        true: Its category.
        predicted: What it is taken for.
    """

    kind: str
    category: str
    path: str
    rank: int
    score: float
    true: str
    predicted: str


@dataclass(frozen=True)
class ModelReport:
    """One model on all pictures.

    Attributes:
        name: Of its row: "baseline", "model", or what `also` calls it.
        retention: None where no captions were given.
        worst: Up to 24 failures.
        intervals: By metric, as in `Difference`.
        learnt: How many categories were asked by what was learnt of them.
    """

    name: str
    model_id: str
    fingerprint: str
    text_to_image: TextToImage
    image_to_image: ImageToImage
    zero_shot: ZeroShot
    retention: Retention | None
    worst: list[Failure]
    intervals: dict[str, Interval]
    learnt: int = 0


@dataclass(frozen=True)
class BaselineReport:
    """What can be had without tuning a model.

    Attributes:
        name: Of its row, such as "linear probe".
        on: Row of the model whose embeddings it is fitted on.
        text_to_image: None where it is absent, like `zero_shot`.
        prompts: The sentence chosen for each category; of tuned prompts only.
        why_absent: What it needs; None where it is there.
        intervals: By metric, as in `Difference`.
    """

    name: str
    on: str
    text_to_image: TextToImage | None = None
    zero_shot: ZeroShot | None = None
    prompts: dict[str, str] | None = None
    why_absent: str | None = None
    intervals: dict[str, Interval] | None = None


@dataclass(frozen=True)
class Difference:
    """How far one row is from the reference in one metric.

    Attributes:
        of: Name of the row.
        to: Name of the reference.
        metric: "text_to_image_map", "zero_shot_top1", "image_to_image_map" or "retention_hit_rate@10".
        value: Of the row.
        reference: Value of the reference.
        difference: The one less the other.
        interval: Of the difference, paired.
    """

    of: str
    to: str
    metric: str
    value: float
    reference: float
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Category:
    """One category: what it is called, how many pictures it has, and the sentences that ask for it."""

    called: str
    images: int
    queries: list[str]


@dataclass(frozen=True)
class Data:
    """The pictures of an evaluation.

    Attributes:
        source: The folder.
        images: Pictures that could be read.
        categories: By name of the folder.
        skipped: What could not be taken, and why.
        duplicates_in_train: Pictures that are among the training pictures too, byte for byte.
    """

    source: str
    images: int
    categories: dict[str, Category]
    skipped: list[Skipped]
    duplicates_in_train: list[str]


@dataclass(frozen=True)
class Provenance:
    """How a report was made: with which imret (its version), when, in what time, on what."""

    imret: str
    date: str
    seconds: float
    device: str
    precision: str
    resamples: int
    seed: int


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluate` found.

    Attributes:
        data: The pictures.
        reference: Name of the row that `differences` are from.
        models: The baseline first, if there is one, then the model, then the others.
        baselines: What needs no tuning.
        differences: From the reference.
        recall_levels: Recall at which precision-recall curves are read.
        provenance: How the report was made.
    """

    data: Data
    reference: str
    models: list[ModelReport]
    baselines: list[BaselineReport]
    differences: list[Difference]
    recall_levels: list[float]
    provenance: Provenance

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON's types."""
        return as_dict(self)


@dataclass(frozen=True)
class CollectionRanking:
    """Means over categories of what the rankings of a collection are worth, or differences of such.

    Attributes:
        map: Mean average precision, over every picture.
        map_at_100: The same over the first 100.
        r_precision: Precision among as many as there are.
        precision: At 1 and 10.
        ndcg: At 10.
        hit_rate: At 10.
    """

    map: float
    map_at_100: float
    r_precision: float
    precision: Mapping[int, float]
    ndcg: Mapping[int, float]
    hit_rate: Mapping[int, float]


@dataclass(frozen=True)
class CollectionCategory:
    """One category of a collection: pictures, and average precision through the index and exact."""

    images: int
    through_index: float
    exact: float


@dataclass(frozen=True)
class CollectionReport:
    """What `evaluate_collection` found.

    Attributes:
        name: Of the collection.
        engine: Of the store.
        images: Pictures in the collection.
        indexed: Those in its index; the others are scanned. None where the engine's count proves nothing.
        through_index: As people search.
        exact: Against every vector.
        difference: The first less the second: the error of the index.
        recall: At 10 and 100: share of the nearest pictures that the index finds.
        per_category: By category.
    """

    name: str
    engine: str
    model_id: str
    images: int
    indexed: int | None
    through_index: CollectionRanking
    exact: CollectionRanking
    difference: CollectionRanking
    recall: Mapping[int, float]
    per_category: dict[str, CollectionCategory]

    @property
    def size(self) -> str:
        """Its pictures, and those in the index where that is known."""
        if self.indexed is None:
            return counted(self.images)
        rest = ", the others scanned" if self.indexed < self.images else ""
        return f"{counted(self.images)}, {self.indexed:,} in the index{rest}"

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON's types."""
        return as_dict(self)


def as_dict(part: object) -> dict[str, Any]:
    """Return a part of a report in JSON's types."""
    result: dict[str, Any] = {}
    for name in (member.name for member in fields(part)):  # type: ignore[arg-type]
        value = getattr(part, name)
        if name in _BY_K and isinstance(value, Mapping):
            result.update({f"{_BY_K[name]}@{k}": figure for k, figure in value.items()})
        elif value is not None or name not in _OPTIONAL:
            result[_KEYS.get(name, name)] = _plain(value)
    return result


def _plain(value: object) -> Any:
    if is_dataclass(value):
        return as_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def rounded(value: float) -> float:
    """Return a figure as the report holds it."""
    return round(float(value), 4)
