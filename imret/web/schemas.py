"""What the API takes and gives, as the OpenAPI document describes it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from imret.retrieval.limits import (
    MAX_CATEGORIES,
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_LIMIT,
    MAX_NAME,
    MAX_PER_GROUP,
    MAX_TERMS,
    MAX_TEXT,
    MAX_WEIGHT,
)
from imret.web.filling import Stage, State

MAX_LABELS = 1_000
MAX_CLASSIFIED = 32

Name = Annotated[str | None, Query(max_length=100, description="Default: the one the server was given.")]

Kind = Literal["text", "id", "stored", "url", "upload", "picture"]


class TermIn(BaseModel):
    """One part of a query."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind = Field(
        "text",
        description="text: words. id: a stored picture by its id. stored: one by its path. url: a picture on "
        "the web. upload: a picture that was sent before, by its SHA-256. picture: a file of this request, "
        "by its number from 0.",
    )
    value: str = Field(min_length=1, max_length=MAX_TEXT)
    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT, description="Not 0; below 0 it is subtracted.")


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Texts = Annotated[list[Text], Field(max_length=MAX_CATEGORIES)]


class Which(BaseModel):
    """Which pictures."""

    model_config = ConfigDict(extra="forbid")

    collection: str | None = Field(
        None, max_length=MAX_NAME, description="Default: the one the server was given."
    )
    category: Texts = Field(default_factory=list, description="Any of these.")
    not_category: Texts = Field(default_factory=list, description="None of these.")
    where: Annotated[list[Text], Field(max_length=MAX_CONDITIONS)] = Field(
        default_factory=list, description="Conditions such as width>=1000; all of them hold."
    )


class BrowseQuery(Which):
    """Which pictures to list, and from where on."""

    limit: int = Field(60, ge=1, le=MAX_LIMIT)
    after: str | None = Field(None, max_length=100, description="`next` of the answer before.")


class Conditions(Which):
    """Which pictures, how many, in what order."""

    limit: int = Field(10, ge=1, le=MAX_LIMIT, description="Hits at most; with group_by, groups.")
    offset: int = Field(0, ge=0, le=MAX_DEPTH, description="Best hits (groups) to leave out.")
    min_score: float | None = Field(None, ge=-1, le=1)
    relevant: bool = Field(
        False, description="Only good matches: end where the answers end, which may be at once."
    )
    unique: bool = Field(False, description="Hide duplicates: of pictures that look alike, give the best.")
    group_by: Literal["category"] | None = Field(None, description="The best few of each.")
    per_group: int = Field(3, ge=1, le=MAX_PER_GROUP)
    sort: Literal["score", "date", "path"] = Field("score", description="Order of the hits that were found.")
    template: bool = Field(True, description="Put short texts into prompt templates, averaged.")
    concepts: bool = Field(
        True,
        description="Words that are or hold the name of a concept ask with what was learnt of it.",
    )
    include_self: bool = Field(
        False, description="Keep pictures of the same bytes as one that is asked for among the hits."
    )
    counts: bool = Field(
        False,
        description="Also say how many pictures are found, in all and of each category.",
    )


class SearchIn(Conditions):
    """A query, its terms one by one."""

    terms: list[TermIn] = Field(default_factory=list, max_length=MAX_TERMS)


class SearchQuery(Conditions):
    """A query as it stands in an address."""

    q: Texts = Field(
        default_factory=list,
        description="Terms that are added: words, id:UUID, stored:PATH, upload:SHA256 or a URL; 2:fruit "
        "counts double.",
    )
    not_: Texts = Field(default_factory=list, alias="not", description="Terms that are subtracted.")


class TermOut(BaseModel):
    """A term as it was understood."""

    kind: Literal["text", "id", "stored", "url", "upload"]
    value: str
    weight: float
    label: str = Field(description="What to call it.")


class HitOut(BaseModel):
    """One ranked picture."""

    rank: int = Field(description="1 for the best.")
    score: float = Field(description="Cosine of query and picture, in [-1, 1].")
    id: str
    category: str | None
    path: str
    folded: int = Field(description="Hidden duplicates that it stands for.")
    payload: dict[str, Any]


class CategoryCount(BaseModel):
    """A category, and how many pictures are in it."""

    category: str
    hits: int = Field(
        description="That this query finds when it asks for this category alone, whatever it asks for now."
    )
    images: int = Field(description="In the whole collection, under the conditions of `where`.")


class Counts(BaseModel):
    """How many pictures a query finds, however many are given; with `unique`, duplicates included."""

    hits: int = Field(description="Of the categories that are asked for: as many as there are page by page.")
    complete: bool = Field(
        description=f"False where there are more: the numbers are of the best {MAX_DEPTH:,}."
    )
    uncategorised: int = Field(description="Of no category, whatever categories are asked for.")
    categories: list[CategoryCount]


class ConceptUseOut(BaseModel):
    """The part that a concept had in the query."""

    name: str
    whole: bool = Field(description="Whether the words of a term are its name; else they hold it.")
    strength: float = Field(description="How far it moved the words, in [0, 1]; 1 where it is the whole.")
    images: int = Field(description="How many pictures it was learnt from.")


class Timings(BaseModel):
    """Milliseconds, by stage; those that were not needed are absent."""

    encode: float | None = None
    store: float | None = None
    total: float


class ConditionOut(BaseModel):
    """A condition that was asked for."""

    field: str = Field(description="categories, not_categories, where, relevant, min_score, offset ...")
    value: Any = Field(description="What was asked of it: names, one condition, a number or true.")


class WithoutOut(BaseModel):
    """What would have been found without a condition."""

    conditions: list[ConditionOut] = Field(
        description="One that, left out alone, gives hits; several where only all together do."
    )
    kept: int = Field(description="How many pictures meet the others.")
    of: Literal["relevant", "min_score", ""] = Field(description="By what those are good enough.")
    score: float = Field(description="Of the best of them.")
    path: str


class SearchOut(BaseModel):
    """What was found."""

    collection: str
    model: str
    terms: list[TermOut]
    hits: list[HitOut]
    more: bool = Field(description="Whether there are hits after these.")
    emptied_by: list[WithoutOut] = Field(
        description="Of no hits: which conditions, each left out alone, would give some."
    )
    notes: list[str] = Field(description="What the search left undone, in sentences; mostly empty.")
    left_out: int = Field(
        description="Pictures that are left out because they are, by their bytes, what is asked with; "
        "`include_self` keeps them."
    )
    concepts: list[ConceptUseOut] = Field(description="Those that had a part in the query; mostly none.")
    counts: Counts | None
    timings_ms: Timings


class PictureOut(BaseModel):
    """A picture of a collection."""

    id: str
    category: str | None
    path: str
    payload: dict[str, Any]


class PicturesOut(BaseModel):
    """Pictures of a collection, without a query."""

    collection: str
    images: int = Field(description="How many pass the conditions.")
    pictures: list[PictureOut]
    next: str | None = Field(description="What `after` has to be to go on.")


class CategoryOut(BaseModel):
    """A category of a collection."""

    category: str
    images: int


class CategoriesOut(BaseModel):
    """The categories of a collection."""

    collection: str
    images: int
    uncategorised: int
    categories: list[CategoryOut]


class CollectionOut(BaseModel):
    """A collection of the store."""

    name: str
    model: str
    images: int | None = Field(description="None where it cannot be opened now.")
    status: str = Field(description="Of the index; or why it cannot be opened now.")
    m: int | None = Field(
        description="Links of a vector in the graph that is configured; 0: none, so that every search "
        "compares all. None where it cannot be opened now."
    )


class CollectionsOut(BaseModel):
    """The collections of the store."""

    default: str
    collections: list[CollectionOut]


class IngestOut(BaseModel):
    """How far an ingest is that runs in the server: see `imret.web.filling.FillingProgress`."""

    state: State = Field(description="none: there is and was none; stopped: the server is about to end.")
    stage: Stage = Field(description="What a running one is at; while the index is built, searches may wait.")
    collection: str
    folders: list[str]
    done: int = Field(description="Pictures that are dealt with: stored now or before, or not taken.")
    total: int | None = Field(description="How many there seem to be; None while that is not known.")
    images_per_s: float | None
    seconds_left: float | None
    error: str = Field(description="Why it has failed.")
    counts: dict[str, int] = Field(description="Of one that has ended: added, unchanged, skipped, ...")
    not_taken: list[dict[str, str]] = Field(description="Up to 100 that were skipped: path and reason.")
    left_out: str = Field(description="What was left out on purpose, in words.")
    notes: list[str]


class PredictionOut(BaseModel):
    """One label for one picture."""

    label: str
    probability: float
    score: float = Field(description="Cosine of picture and label.")
    learnt: bool = Field(description="Whether what was learnt from pictures asks for the label, not words.")


class ClassifiedOut(BaseModel):
    """One picture, and what it was taken for."""

    name: str
    predictions: list[PredictionOut]
    reason: str | None = Field(description="Why it cannot be read.")


class ClassifyOut(BaseModel):
    """Pictures, and what they were taken for."""

    pictures: list[ClassifiedOut]
    expected_error: float | None = Field(
        description="Expected calibration error of the probabilities, on pictures held out; null where they "
        "are not calibrated, but what the model says."
    )
    notes: list[str] = Field(description="Why what was learnt could not be used.")


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="The message that the command would print.")
    kind: str | None = None


class JSONAnswer(Response):
    """JSON in ASCII: a file name may hold lone surrogates, which no UTF-8 does."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")
