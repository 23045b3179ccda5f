"""Searches with known answers: what the tour asks, and what becomes scores and a contact sheet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imret.datasets.csv_rows import read_rows
from imret.demo.dataset import AttributeQuery, attribute_queries, category_queries
from imret.evaluation.metrics import average_precision
from imret.output.contact_sheet import Strip, write_sheet
from imret.retrieval.collection_encoder import collection_encoder
from imret.retrieval.results import Hit
from imret.retrieval.search import search
from imret.store import open_store
from imret.store.payload import path_of

SHOWN = 8  # hits of a query on the sheet


@dataclass(frozen=True)
class Scored:
    """One query, the ranking it got, and which of it is right.

    Attributes:
        text: The query.
        hits: Every picture of the collection, best first.
        right: For each hit, whether it answers the query.
        average_precision: In (0, 1].
        chance: Share of right pictures: about the average precision of a random order.
    """

    text: str
    hits: Sequence[Hit]
    right: Sequence[bool]
    average_precision: float
    chance: float


def examples(folder: Path) -> list[tuple[str, int]]:
    """Return a query about a colour, one about a number and one about a place, and how many pictures show it.

    Of each kind it is the one that most test pictures answer, whether or not the model finds them.

    Args:
        folder: A data set that `write_dataset` made.
    """
    attributes = _attributes(folder)

    def shown(query: AttributeQuery) -> int:
        return sum(query.matches(row) for row in attributes.values())

    kinds = ({"color", "category"}, {"count", "category"}, {"category", "background"})
    most = [max((q for q in attribute_queries() if q.needs.keys() == kind), key=shown) for kind in kinds]
    return [(query.text, shown(query)) for query in most if shown(query)]


def _attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Return what each test picture shows, by its path in the collection."""
    rows = read_rows(folder / "test" / "attributes.csv", ("path", "category"), kind="table of attributes")
    return {row["path"]: row for _, row in rows}


def measure(folder: Path, db: Path, collection: str, *, sheet: Path) -> str:
    """Score category and attribute queries over the whole drawn test set; write the contact sheet.

    Args:
        folder: A data set that `write_dataset` made; its test pictures are in the collection.
        db: The embedded store.
        collection: Its collection.
        sheet: HTML file to write.

    Returns:
        A table for the terminal, ending with where the sheet is.
    """
    attributes = _attributes(folder)
    with open_store(str(db), create=False) as store:
        encoder = collection_encoder(store, collection).encoder

        def score(text: str, answers: Collection[str]) -> Scored:
            hits = search(store, text, collection=collection, encoder=encoder, limit=len(attributes))
            right = np.array([[path_of(hit.payload) in answers for hit in hits]])
            ranks = -np.arange(len(hits), dtype=np.float64)[None]
            return Scored(
                text, hits, right[0].tolist(), float(average_precision(ranks, right)[0]), float(right.mean())
            )

        by_category = {
            name: score(text, {path for path, row in attributes.items() if row["category"] == name})
            for name, text in category_queries().items()
        }
        by_attribute = []
        for query in attribute_queries():
            answers = {path for path, row in attributes.items() if query.matches(row)}
            if answers:  # a small test set need not hold a picture for every question
                by_attribute.append(score(query.text, answers))

    table, summary = _summary(len(attributes), list(by_category.values()), by_attribute)
    strips = _chapters(by_attribute)
    strips += [
        _strip(query, f"category {name}, ", chapter="" if at else "By category")
        for at, (name, query) in enumerate(by_category.items())
    ]
    written = write_sheet(sheet, "imret demo", summary, strips)
    return f"{table}\n\nContact sheet: open {written.as_uri()} in a browser"


def _summary(n_images: int, by_category: Sequence[Scored], by_attribute: Sequence[Scored]) -> tuple[str, str]:
    """Return the scores as a table for the terminal and as a line for the sheet."""
    category_map, category_chance = _means(by_category)
    attribute_map, attribute_chance = _means(by_attribute)
    first = float(np.mean([query.right[0] for query in by_attribute]))
    width = max(len(query.text) for query in by_category)
    table = [f"{'query':<{width}}  average precision"]
    table += [f"{query.text:<{width}}  {query.average_precision:.3f}" for query in by_category]
    table += [
        "",
        f"category mAP   {category_map:.3f}  ({len(by_category)} queries; chance {category_chance:.3f})",
        f"attribute mAP  {attribute_map:.3f}  ({len(by_attribute)} queries such as {by_attribute[0].text!r}; "
        f"chance {attribute_chance:.3f}; first hit right {first:.0%})",
    ]
    line = (
        f"{n_images:,} drawn test pictures, none of them trained on. Category mAP {category_map:.3f} "
        f"(chance {category_chance:.3f}). {len(by_attribute)} attribute queries: mAP {attribute_map:.3f} "
        f"(chance {attribute_chance:.3f}), first hit right {first:.0%}. Pale: all right ones stand before it."
    )
    return "\n".join(table), line


def _means(queries: Sequence[Scored]) -> tuple[float, float]:
    """Return the mean average precision and the mean chance level."""
    precision = float(np.mean([query.average_precision for query in queries]))
    return precision, float(np.mean([query.chance for query in queries]))


def _chapters(queries: Sequence[Scored]) -> list[Strip]:
    """Return the queries as strips: those that begin with a right picture, then those that do not."""
    found, missed = ([query for query in queries if query.right[0] is first] for first in (True, False))
    titles = (
        f"A right picture comes first: {len(found)} of {len(queries)} queries",
        f"Another picture comes first: {len(missed)} of {len(queries)} queries, which this small model, "
        "trained for minutes, gets wrong",
    )
    return [
        _strip(query, "", chapter="" if at else title)
        for title, part in zip(titles, (found, missed), strict=True)
        for at, query in enumerate(part)
    ]


def _strip(query: Scored, before: str, *, chapter: str) -> Strip:
    """Return a query as a strip, its hits marked up to the last right one.

    What comes after that is no mistake: nothing was left to find.
    """
    n_right = sum(query.right)
    plural = "s" if n_right > 1 else ""
    note = f"{before}average precision {query.average_precision:.2f}, {n_right} right picture{plural}"
    last = max(rank for rank, right in enumerate(query.right) if right)
    marks = [right if rank <= last else None for rank, right in enumerate(query.right[:SHOWN])]
    return Strip(query.text, note, query.hits[:SHOWN], marks, chapter)
