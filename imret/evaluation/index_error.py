"""An ingested collection judged through its index and without it: the difference is the index's error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError
from imret.evaluation.dataset import category_queries
from imret.evaluation.queries import Names
from imret.evaluation.scores import rounded
from imret.retrieval.collection_encoder import check_same_encoder
from imret.store import Collection, Point, Store

if TYPE_CHECKING:
    from imret.models.encoder import Encoder

# How deep a search goes that is to be like a person's; recall of the index is looked at no deeper.
_DEPTH = 100


def evaluate_collection(
    store: Store, collection: str, *, encoder: Encoder, names: Names | None = None
) -> dict[str, Any]:
    """Score the text queries of a collection's categories through its index and against every vector.

    A picture that the index does not return counts as not found. Figures at k come from a search for 100
    pictures, as people search: asked for all of them, an index walks everything and errs less.

    Args:
        store: An open store.
        collection: Its name; every picture of it in a category is an answer to that category's query.
        encoder: The collection's encoder.
        names: What categories are called, where it is not what `imret.retrieval.prompts` says.

    Returns:
        `name`, `engine`, `model_id`, `images`, `indexed`; `through_index`, `exact` and their `difference`,
        each with `map`, `map@100`, `r_precision`, `p@1`, `p@10`, `ndcg@10` and `hit_rate@10`, means over
        categories; `recall@10` and `recall@100` of the index; and `per_category` average precisions.

    Raises:
        DataError: If the collection does not exist or has no two categories.
        ModelMismatch: If the encoder is not the collection's.
    """
    with closing(store.open(collection)) as opened:
        check_same_encoder(opened, encoder)
        n_of = opened.facet("category")
        categories = sorted(n_of)
        if len(categories) < 2:
            raise DataError(
                f"collection {collection!r} has pictures in {len(categories)} categories, and two are needed "
                "to tell apart. Ingest a folder with one sub-folder per category."
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
    means = {
        key: {metric: float(np.mean([one[metric] for one in rows])) for metric in rows[0]}
        for key, rows in (("through_index", through), ("exact", exact))
    }
    means["difference"] = {m: means["through_index"][m] - means["exact"][m] for m in means["exact"]}
    at_10, at_100 = np.mean(recalls, axis=0)
    return {
        "name": collection,
        "engine": store.engine,
        "model_id": encoder.model_id,
        "images": n,
        "indexed": stats.indexed,
        **{key: {m: rounded(value) for m, value in figures.items()} for key, figures in means.items()},
        "recall@10": rounded(at_10),
        "recall@100": rounded(at_100),
        "per_category": {
            category: {
                "images": n_of[category],
                "through_index": rounded(through[i]["map"]),
                "exact": rounded(exact[i]["map"]),
            }
            for i, category in enumerate(categories)
        },
    }


def _search(
    opened: Collection, query: NDArray[np.float32], n: int, *, exact: bool
) -> tuple[list[Point], list[str | None]]:
    """Return the first pictures, and the categories of all, best first."""
    every = [point.payload.get("category") for point in opened.search(query, limit=n, exact=exact)]
    return opened.search(query, limit=min(_DEPTH, n), exact=exact), every


def _figures(
    first: Sequence[Point], every: Sequence[str | None], category: str, n_relevant: int
) -> dict[str, float]:
    """Return the figures of one ranking, which may lack pictures that are relevant."""
    shallow = np.array([point.payload.get("category") == category for point in first] or [False])
    hits = np.array([one == category for one in every] or [False])
    near = shallow[:10]
    discount = 1 / np.log2(np.arange(2, 12))
    return {
        "map": _precisions(hits) / n_relevant,
        "map@100": _precisions(shallow) / min(_DEPTH, n_relevant),
        "r_precision": float(hits[:n_relevant].sum() / n_relevant),
        "p@1": float(near[0]),
        "p@10": float(near.sum() / 10),
        "ndcg@10": float((near * discount[: len(near)]).sum() / discount[: min(10, n_relevant)].sum()),
        "hit_rate@10": float(near.any()),
    }


def _precisions(hits: NDArray[np.bool_]) -> float:
    """Return the sum of the precisions at the ranks of what is relevant."""
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1) * hits).sum())


def _overlap(found: Sequence[Point], true: Sequence[Point], k: int) -> float:
    """Return how many of the k nearest pictures are among the first k that were found."""
    return len({point.id for point in found[:k]} & {point.id for point in true[:k]}) / k
