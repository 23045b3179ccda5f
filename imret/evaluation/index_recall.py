"""An ingested collection judged through its index and without it: the difference is the index's error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError, counted
from imret.evaluation.dataset import category_queries
from imret.evaluation.report import CollectionCategory, CollectionRanking, CollectionReport, rounded
from imret.retrieval.collection_encoder import check_same_encoder
from imret.retrieval.prompts import Names
from imret.store import Collection, Point, Store

if TYPE_CHECKING:
    from imret.models.encoder import Encoder

# How deep a search goes that is to be like a person's; recall of the index is looked at no deeper.
_DEPTH = 100


def evaluate_collection(
    store: Store, collection: str, *, encoder: Encoder, names: Names | None = None
) -> CollectionReport:
    """Score the text queries of a collection's categories through its index and against every vector.

    A picture that the index does not return counts as not found. Figures at k come from a search for 100
    pictures, as people search: asked for all of them, an index walks everything and errs less.

    Args:
        store: An open store.
        collection: Its name; every picture of it in a category is an answer to that category's query.
        encoder: The collection's encoder.
        names: What categories are called, where it is not what `imret.retrieval.prompts` says.

    Raises:
        DataError: If the collection does not exist or has no two categories.
        ModelMismatch: If the encoder is not the collection's.
    """
    with closing(store.open(collection)) as opened:
        check_same_encoder(opened, encoder, store=store)
        n_of = opened.facet("category")
        categories = sorted(n_of)
        if len(categories) < 2:
            raise DataError(
                f"collection {collection!r} has pictures in "
                f"{counted(len(categories), 'category', 'categories')}, and two are needed to tell apart. "
                "Ingest a folder with one sub-folder per category."
            )
        n = opened.count()
        queries = category_queries(encoder, categories, names)
        through, exact, recalls = [], [], []
        for category, query in zip(categories, queries, strict=True):
            shallow, true = _search(opened, query, n, exact=False), _search(opened, query, n, exact=True)
            through.append(_figures(*shallow, category, n_of[category]))
            exact.append(_figures(*true, category, n_of[category]))
            recalls.append([_overlap(shallow[0], true[0], min(k, n)) for k in (10, _DEPTH)])
        stats = opened.stats()
    recall_10, recall_100 = np.mean(recalls, axis=0)
    return CollectionReport(
        name=collection,
        engine=store.engine,
        model_id=encoder.model_id,
        images=n,
        indexed=stats.indexed,
        through_index=_ranking(np.mean(through, axis=0)),
        exact=_ranking(np.mean(exact, axis=0)),
        difference=_ranking(np.mean(through, axis=0) - np.mean(exact, axis=0)),
        recall={10: rounded(recall_10), 100: rounded(recall_100)},
        per_category={
            category: CollectionCategory(n_of[category], rounded(through[i][0]), rounded(exact[i][0]))
            for i, category in enumerate(categories)
        },
    )


def _search(
    opened: Collection, query: NDArray[np.float32], n: int, *, exact: bool
) -> tuple[list[Point], list[str | None]]:
    """Return the first pictures, and the categories of all, best first."""
    every = [point.payload.get("category") for point in opened.search(query, limit=n, exact=exact)]
    return opened.search(query, limit=min(_DEPTH, n), exact=exact), every


def _figures(
    first: Sequence[Point], categories: Sequence[str | None], category: str, n_relevant: int
) -> list[float]:
    """Return the figures of one ranking in the order of `_ranking`; it may lack pictures that are relevant.

    Args:
        first: The first 100 pictures.
        categories: Of all pictures, best first.
        category: The relevant one.
        n_relevant: How many pictures it has.
    """
    shallow = np.array([point.payload.get("category") == category for point in first] or [False])
    hits = np.array([other == category for other in categories] or [False])
    near = shallow[:10]
    discount = 1 / np.log2(np.arange(2, 12))
    return [
        _precisions(hits) / n_relevant,
        _precisions(shallow) / min(_DEPTH, n_relevant),
        float(hits[:n_relevant].sum() / n_relevant),
        float(near[0]),
        float(near.sum() / 10),
        float((near * discount[: len(near)]).sum() / discount[: min(10, n_relevant)].sum()),
        float(near.any()),
    ]


def _ranking(figures: NDArray[np.float64]) -> CollectionRanking:
    """Return the figures of `_figures`, or their means or differences, by name."""
    ap, ap_100, r_precision, p_1, p_10, ndcg_10, hit_10 = map(rounded, figures)
    return CollectionRanking(ap, ap_100, r_precision, {1: p_1, 10: p_10}, {10: ndcg_10}, {10: hit_10})


def _precisions(hits: NDArray[np.bool_]) -> float:
    """Return the sum of the precisions at the ranks of what is relevant."""
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1) * hits).sum())


def _overlap(results: Sequence[Point], nearest: Sequence[Point], k: int) -> float:
    """Return the share of the k nearest pictures that is among the first k results."""
    return len({point.id for point in results[:k]} & {point.id for point in nearest[:k]}) / k
