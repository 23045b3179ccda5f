"""What a model is worth on labelled pictures: retrieval by text and by picture, zero-shot, and retention.

One report compares a model with a baseline, with other models and with what can be had without tuning, on the
same pictures, with intervals. Hides decoding and encoding; the arithmetic is in `imret.evaluation.metrics`
and `imret.evaluation.bootstrap`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from imret.datasets.labelled import Labelled, copies_in, labelled
from imret.evaluation.baselines import (
    CENTROID,
    KNN,
    LINEAR_PROBE,
    TUNED_PROMPTS,
    fitted_baselines,
    training_pictures,
)
from imret.evaluation.dataset import Embedded, category_queries, embed, in_common
from imret.evaluation.queries import Names
from imret.evaluation.retention import Captioned, captioned_in, retention_of
from imret.evaluation.scores import LEVELS, image_to_image, text_to_image, worst, zero_shot
from imret.evaluation.significance import IMAGES, KEPT, MAP, TOP1, System, bounds, difference, resample
from imret.models.encoder import TextTruncated
from imret.retrieval.prompts import common_names, evaluation_queries
from imret.settings import __version__

if TYPE_CHECKING:
    from imret.models.encoder import Encoder

_FITTED = (TUNED_PROMPTS, LINEAR_PROBE, KNN, CENTROID)
# Names of rows that no further model can have.
OTHER_ROWS = frozenset({"baseline", "model", *_FITTED})


def evaluate(
    data: str | os.PathLike[str],
    *,
    encoder: Encoder,
    baseline: Encoder | None = None,
    also: Mapping[str, Encoder] | None = None,
    names: Names | None = None,
    retention: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    on_picture: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Score a model on a folder of labelled pictures, and compare it with others.

    Text queries are the categories by their common names, in templates that training does not use, the same
    for every model. They are fixed; the intervals are over the pictures.

    Args:
        data: One sub-folder per category.
        encoder: The model.
        baseline: What everything is compared with, such as the model it was tuned from. Without one, what
            needs no tuning is compared with the model.
        also: More models, by the name that their row is to have.
        names: What categories are called, by `name_key` of the folder, where it is not what
            `imret.retrieval.prompts` says; the first name of each is asked for.
        retention: CSV file (path, caption) of other pictures; how well captions find them is what a model
            has kept. Paths are relative to the file, or to `images` beside it.
        train: Labelled pictures of the same categories, which the probe, kNN, centroid and tuned prompts
            are fitted on, as the baseline (else the model) embeds them.
        resamples: Bootstrap draws for the intervals, >= 1.
        seed: Of the draws.
        on_picture: Called for each picture that was encoded.

    Returns:
        The report, in JSON's types: `data`, `models` (the baseline first, then the model), `baselines`,
        `differences`, `reference` (the row that they are from), and `made`.

    Warns:
        TextTruncated: Once, if captions do not fit a model's context; the message counts them.

    Raises:
        DataError: If a folder holds no pictures in categories, or the captions file is not what it should be.
        ModelError: If a model cannot be loaded.
        ValueError: If two rows would have one name.
    """
    began = time.monotonic()
    encoders = _rows(encoder, baseline, also or {})
    pictures = labelled(data)
    training = training_pictures(train, pictures) if train is not None else None
    captions = captioned_in(retention) if retention is not None else None

    sets = in_common(_embedded(pictures, list(encoders.values()), on_picture))
    models, systems = [], []
    for (name, one), found in zip(encoders.items(), sets, strict=True):
        entry, system = _judged(name, one, found, names, captions, on_picture)
        models.append(entry)
        systems.append(system)
    first, found = next(iter(encoders.values())), sets[0]
    fitted, prompts = fitted_baselines(training, first, found, names, on_picture) if training else ([], {})
    fits = _fits(fitted, prompts, found, systems[0].name)
    reference = systems[0].name
    differences = _compare([*models, *fits], [*systems, *fitted], found, reference, resamples, seed)
    _warn_of_cut(models)
    return {
        "data": {
            "source": os.fspath(data),
            "images": len(found.paths),
            "categories": {
                name: {
                    "called": common_names(name, names)[0],
                    "images": int((found.labels == i).sum()),
                    "queries": evaluation_queries(name, names),
                }
                for i, name in enumerate(found.categories)
            },
            "skipped": found.skipped,
            "copies_in_train": copies_in(training, pictures) if training else [],
        },
        "reference": reference,
        "models": models,
        "baselines": fits,
        "differences": differences,
        "recall_levels": [round(float(level), 4) for level in LEVELS],
        "made": {
            "imret": __version__,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "seconds": round(time.monotonic() - began, 1),
            "device": str(encoder.device),
            "precision": encoder.precision,
            "resamples": resamples,
            "seed": seed,
        },
    }


def _rows(encoder: Encoder, baseline: Encoder | None, also: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """Return the models by the name of their row, the baseline first."""
    taken = OTHER_ROWS & set(also)
    if taken:
        raise ValueError(f"{sorted(taken)[0]!r} is the name of another row; give the model a name of its own")
    return {**({"baseline": baseline} if baseline else {}), "model": encoder, **also}


def _embedded(
    pictures: Labelled, encoders: list[Encoder], on_picture: Callable[[], object]
) -> list[Embedded]:
    """Return the pictures embedded by each model; models that share an image tower share the work."""
    done: dict[tuple[str, str, str], Embedded] = {}
    sets = []
    for one in encoders:
        tower = (one.images_fingerprint, str(one.device), one.precision)
        if tower not in done:
            done[tower] = embed(pictures, one, on_picture)
        sets.append(done[tower])
    return sets


def _judged(
    name: str,
    encoder: Encoder,
    found: Embedded,
    names: Names | None,
    captions: Captioned | None,
    on_picture: Callable[[], object],
) -> tuple[dict[str, Any], System]:
    """Return a model's part of the report, and what its intervals come from."""
    scores = category_queries(encoder, found.categories, names) @ found.vectors.T  # (Q, N)
    by_picture, image_aps = image_to_image(found)
    kept = retention_of(captions, encoder, on_picture) if captions else None
    entry = {
        "name": name,
        "model_id": encoder.model_id,
        "fingerprint": encoder.fingerprint,
        "text_to_image": text_to_image(scores, found),
        "image_to_image": by_picture,
        "zero_shot": zero_shot(scores, found),
        "retention": kept.figures if kept else None,
        "worst": worst(scores, found),
    }
    return entry, System(name, scores, image_aps, kept)


def _fits(fitted: list[System], prompts: Mapping[str, str], found: Embedded, on: str) -> list[dict[str, Any]]:
    """Return what needs no tuning, in the shape of a model's part, as far as it goes."""
    if not fitted:
        why = "needs labelled training pictures: --train FOLDER"
        empty = {"text_to_image": None, "zero_shot": None}
        return [{"name": name, "on": on, **empty, "why_absent": why} for name in _FITTED]
    return [
        {
            "name": one.name,
            "on": on,
            "text_to_image": text_to_image(one.scores, found),
            "zero_shot": zero_shot(one.scores, found),
            **({"prompts": dict(prompts)} if one.name == TUNED_PROMPTS else {}),
            "why_absent": None,
        }
        for one in fitted
    ]


def _compare(
    entries: list[dict[str, Any]],
    systems: list[System],
    found: Embedded,
    reference: str,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Put the intervals into the entries, and return the differences from the reference."""
    samples = resample(systems, found, resamples, seed)
    figures: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["text_to_image"] is None:
            continue
        drawn, name = samples[entry["name"]], entry["name"]
        figures[name] = {MAP: entry["text_to_image"]["macro"]["map"], TOP1: entry["zero_shot"]["top1"]}
        if IMAGES in drawn.figures:
            figures[name][IMAGES] = entry["image_to_image"]["map"]
        if KEPT in drawn.figures:
            figures[name][KEPT] = entry["retention"]["hit_rate@10"]
        entry["intervals"] = {metric: bounds(values) for metric, values in drawn.figures.items()}
        for i, category in enumerate(found.categories):
            entry["text_to_image"]["per_category"][category]["ap_interval"] = bounds(drawn.aps[:, i])
    return [
        row for name in figures if name != reference for row in difference(name, reference, samples, figures)
    ]


def _warn_of_cut(models: list[dict[str, Any]]) -> None:
    cut = [(one["retention"]["cut"], one["name"]) for one in models if one["retention"]]
    most, name = max(cut, key=lambda pair: pair[0], default=(0, ""))
    if most:
        total = models[0]["retention"]["queries"]
        warnings.warn(
            f"{most:,} of {total:,} captions are longer than the {name} reads, and were cut.",
            TextTruncated,
            stacklevel=3,
        )
