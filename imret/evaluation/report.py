"""What a model is worth on labelled pictures: retrieval by text and by picture, zero-shot, and retention.

One report compares a model with a baseline on the same pictures, with intervals, and with what can be had
without tuning. Hides decoding and encoding; the arithmetic is in `imret.metrics` and `imret.bootstrap`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret import __version__
from imret.errors import DataError
from imret.evaluation.baselines import fitted_baselines
from imret.evaluation.pictures import embed, labelled
from imret.evaluation.retention import read_captioned, retention_of
from imret.evaluation.scores import differences_of, image_to_image, text_to_image, worst, zero_shot
from imret.wording import common_names, evaluation_queries

if TYPE_CHECKING:
    from imret.encoder import Encoder
    from imret.store import Store


def evaluate(
    data: str | os.PathLike[str],
    *,
    encoder: Encoder,
    baseline: Encoder | None = None,
    retention: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    on_picture: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Score a model on a folder of labelled pictures, and compare it with a baseline.

    Text queries are the categories by their common names, in templates that training does not use. They are
    fixed; the intervals are over the pictures.

    Args:
        data: One sub-folder per category.
        encoder: The model.
        baseline: What to compare it with, such as the model it was tuned from.
        retention: CSV file (path, caption) of other pictures; how well captions find them is what a model
            has kept. Paths are relative to the file, or to `images` beside it.
        train: Labelled pictures of the same categories, for the baselines that need some.
        resamples: Bootstrap draws for the intervals.
        seed: Of the draws.
        on_picture: Called for each picture that was encoded.

    Returns:
        The report, in JSON's types: `data`, `models` (the baseline first), `baselines`, `differences` and
        `made`.

    Raises:
        DataError: If a folder holds no pictures in categories, or the captions file is not what it should be.
        ModelError: If a model cannot be loaded.
    """
    began = time.monotonic()
    folder = Path(data)
    records = labelled(folder)
    encoders = [*([("baseline", baseline)] if baseline else []), ("model", encoder)]
    captions = read_captioned(retention) if retention is not None else None
    models, sets, rankings = [], [], []
    for name, one in encoders:
        found = embed(folder, records, one, on_picture)
        queries = category_queries(one, found.categories)
        scores = queries @ found.vectors.T  # (Q, N)
        models.append(
            {
                "name": name,
                "model_id": one.model_id,
                "fingerprint": one.fingerprint,
                "text_to_image": text_to_image(scores, found),
                "image_to_image": image_to_image(found),
                "zero_shot": zero_shot(scores, found),
                "retention": retention_of(captions, one, on_picture) if captions else None,
                "worst": worst(scores, found),
            }
        )
        sets.append(found)
        rankings.append(scores)
    differences = differences_of(models, rankings, sets[-1], resamples, seed) if baseline else []
    ours = sets[-1]
    return {
        "data": {
            "source": os.fspath(folder),
            "images": len(ours.paths),
            "categories": {
                name: {"called": common_names(name)[0], "images": int((ours.labels == i).sum())}
                for i, name in enumerate(ours.categories)
            },
            "skipped": ours.skipped,
        },
        "models": models,
        "baselines": fitted_baselines(train, encoders[0][1], sets[0], on_picture),
        "differences": differences,
        "made": {
            "imret": __version__,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "seconds": round(time.monotonic() - began, 1),
            "device": str(encoder.device),
            "precision": encoder.precision,
        },
    }


def evaluate_collection(store: Store, collection: str, *, encoder: Encoder) -> dict[str, Any]:
    """Score the text queries of a collection's categories through its index and against every vector.

    The difference is the index's error. A picture that the index does not return counts as not found.

    Args:
        store: An open store.
        collection: Its name; every picture of it in a category is an answer to that category's query.
        encoder: The collection's encoder.

    Returns:
        `name`, `engine`, `images`, `text_to_image_map`, `exact_map` and `recall@10` of the index.

    Raises:
        DataError: If the collection does not exist or has no two categories.
        ModelMismatch: If the encoder is not the collection's.
    """
    from imret.retrieval import check_same_encoder

    with closing(store.open(collection)) as opened:
        check_same_encoder(opened, encoder)
        categories = sorted(opened.facet("category"))
        if len(categories) < 2:
            raise DataError(
                f"collection {collection!r} has pictures in {len(categories)} categories, and two are needed "
                "to tell apart. Ingest a folder with one sub-folder per category."
            )
        n = opened.count()
        n_of = opened.facet("category")
        queries = category_queries(encoder, categories)
        through: list[float] = []
        exact: list[float] = []
        recall: list[float] = []
        for category, query in zip(categories, queries, strict=True):
            found = opened.search(query, limit=n)
            true = opened.search(query, limit=n, exact=True)
            for points, aps in ((found, through), (true, exact)):
                hits = np.array([point.payload.get("category") == category for point in points])
                precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
                aps.append(float((precision * hits).sum() / n_of[category]))
            # Shallow, as people search: at the depth of all, an index walks everything.
            best = {point.id for point in opened.search(query, limit=10)}
            recall.append(len(best & {point.id for point in true[:10]}) / min(10, n))
        return {
            "name": collection,
            "engine": store.engine,
            "images": n,
            "text_to_image_map": round(float(np.mean(through)), 4),
            "exact_map": round(float(np.mean(exact)), 4),
            "recall@10": round(float(np.mean(recall)), 4),
        }


def category_queries(encoder: Encoder, categories: Sequence[str]) -> NDArray[np.float32]:
    """Return (Q, D) unit embeddings that ask for categories: the mean over the evaluation templates."""
    means = np.stack([encoder.encode_texts(evaluation_queries(name)).mean(axis=0) for name in categories])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), dtype=np.float32)
