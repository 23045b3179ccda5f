"""What a model is worth on labelled pictures: retrieval by text and by picture, zero-shot, and retention.

One report compares a model with a baseline, with other models and with what can be had without tuning, on the
same pictures, with intervals. Hides decoding and encoding; the arithmetic is in `imret.evaluation.metrics`
and `imret.evaluation.bootstrap`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.labelled import LabelledFolder, duplicates_in, read_labelled
from imret.evaluation.dataset import Embedded, category_queries, category_scorer, embed, in_common
from imret.evaluation.fitted import (
    CONCEPTS,
    FITTED,
    TUNED_PROMPTS,
    Fitted,
    Learn,
    fitted_baselines,
    training_pictures,
)
from imret.evaluation.report import (
    BaselineReport,
    Category,
    Data,
    EvaluationReport,
    ModelReport,
    Provenance,
    rounded,
)
from imret.evaluation.retention import Captioned, captioned_in, retention_of
from imret.evaluation.scores import LEVELS, image_to_image, text_to_image, worst, zero_shot
from imret.evaluation.significance import (
    IMAGES,
    MAP,
    RETENTION,
    TOP1,
    Resampled,
    System,
    difference,
    resample,
)
from imret.models.fast.tokenizer import TextTruncated
from imret.retrieval.classify import concepts_of
from imret.retrieval.concept_query import model_concepts
from imret.retrieval.prompts import Names, Templates, common_names, evaluation_queries, templates_for
from imret.settings import __version__

if TYPE_CHECKING:
    from imret.models.encoder import Encoder
    from imret.retrieval.concepts import Concepts

# Names of rows that no further model can have.
OTHER_ROWS = frozenset({"baseline", "model", CONCEPTS, *FITTED})


def find_inputs(
    data: str | os.PathLike[str],
    *,
    retention: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
) -> tuple[LabelledFolder, LabelledFolder | None, Captioned | None]:
    """Find the pictures of an evaluation, the training pictures and the captions; no model is needed.

    Args and errors are those of `evaluate`.
    """
    pictures = read_labelled(data, exclude)
    training = training_pictures(train, pictures, exclude) if train is not None else None
    return pictures, training, captioned_in(retention) if retention is not None else None


def evaluate(
    data: str | os.PathLike[str],
    *,
    encoder: Encoder,
    baseline: Encoder | None = None,
    also: Mapping[str, Encoder] | None = None,
    names: Names | None = None,
    retention: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    concepts: bool = True,
    learn: Learn | None = None,
    resamples: int = 2000,
    seed: int = 0,
    on_picture: Callable[[], object] = lambda: None,
) -> EvaluationReport:
    """Score a model on a folder of labelled pictures, and compare it with others.

    Text queries are the categories by their common names, in templates that training does not use, the same
    for every model of a family. They are fixed; the intervals are over the pictures.

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
        train: Labelled pictures of the same categories, which the probe, kNN, centroid, adapters and tuned
            prompts are fitted on, as the baseline (else the model) embeds them.
        exclude: Patterns of what is left out of both folders: see `imret.datasets.exclusion.Exclusion`.
        concepts: Whether categories are asked by what was learnt of them, where a model's folder has it, as
            searches ask.
        learn: Learns concepts from the training pictures, for a row of these beside the others that are
            fitted on them: `imret.concepts.from_training.learn_from`.
        resamples: Bootstrap draws for the intervals, >= 1.
        seed: Of the draws.
        on_picture: Called for each picture that was encoded.

    Returns:
        The report; its `models` are the baseline first, then the model, then the others.

    Warns:
        TextTruncated: Once, if captions do not fit a model's context; the message counts them.
        UserWarning: If the concepts in a model's folder cannot be used; the message says why.

    Raises:
        DataError: If a folder holds no pictures in categories, or the captions file is not what it should be.
        ModelError: If a model cannot be loaded.
        ValueError: If two rows would have one name.
    """
    began = time.monotonic()
    encoders = _rows(encoder, baseline, also or {})
    pictures, training, captions = find_inputs(data, retention=retention, train=train, exclude=exclude)

    sets = in_common(_embedded(pictures, list(encoders.values()), on_picture))
    known = [
        _learnt(name, model, sets[0].categories, names) if concepts else None
        for name, model in encoders.items()
    ]
    systems = [
        _system(name, model, embedded, names, captions, learnt, on_picture)
        for (name, model), embedded, learnt in zip(encoders.items(), sets, known, strict=True)
    ]
    embedded, reference, first = sets[0], systems[0].name, next(iter(encoders.values()))
    fitted = fitted_baselines(training, first, embedded, names, on_picture, learn=learn) if training else None
    samples = resample([*systems, *(fitted.systems if fitted else ())], embedded, resamples, seed)

    models = [
        _model_report(system, model, embedded, samples[system.name], _number(learnt, embedded, names))
        for system, model, learnt in zip(systems, encoders.values(), known, strict=True)
    ]
    baselines = _baseline_reports(fitted, embedded, samples, reference, with_learnt=learn is not None)
    rows: list[ModelReport | BaselineReport] = [*models, *baselines]
    figures = {row.name: _figures(row) for row in rows}
    differences = [
        row for name in samples if name != reference for row in difference(name, reference, samples, figures)
    ]
    _warn_of_cut(models)
    return EvaluationReport(
        data=_data(
            os.fspath(data),
            embedded,
            names,
            templates_for(encoder.files.model_cfg),
            duplicates_in(training, pictures) if training else [],
        ),
        reference=reference,
        models=models,
        baselines=baselines,
        differences=differences,
        recall_levels=[rounded(level) for level in LEVELS],
        provenance=Provenance(
            imret=__version__,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            seconds=round(time.monotonic() - began, 1),
            device=str(encoder.device),
            precision=encoder.precision,
            resamples=resamples,
            seed=seed,
        ),
    )


def _rows(encoder: Encoder, baseline: Encoder | None, also: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """Return the models by the name of their row, the baseline first."""
    taken = OTHER_ROWS & set(also)
    if taken:
        raise ValueError(f"{sorted(taken)[0]!r} is the name of another row; give the model a name of its own")
    return {**({"baseline": baseline} if baseline else {}), "model": encoder, **also}


def _embedded(
    pictures: LabelledFolder, encoders: list[Encoder], on_picture: Callable[[], object]
) -> list[Embedded]:
    """Return the pictures embedded by each model; models that share an image tower share the work."""
    by_tower: dict[tuple[str, str, str], Embedded] = {}
    sets = []
    for encoder in encoders:
        tower = (encoder.images_fingerprint, str(encoder.device), encoder.precision)
        if tower not in by_tower:
            by_tower[tower] = embed(pictures, encoder, on_picture)
        sets.append(by_tower[tower])
    return sets


def _system(
    name: str,
    encoder: Encoder,
    embedded: Embedded,
    names: Names | None,
    captions: Captioned | None,
    concepts: Concepts | None,
    on_picture: Callable[[], object],
) -> System:
    """Return what a model makes of the pictures, and of the captioned ones."""
    scores: NDArray[np.floating] = (
        category_queries(encoder, embedded.categories, names) @ embedded.vectors.T
        if concepts is None
        else category_scorer(encoder, embedded.categories, names, concepts).logits(embedded.vectors).T
    )  # (Q, N)
    by_picture, image_aps = image_to_image(embedded)
    caption_hits = retention_of(captions, encoder, on_picture, concepts=concepts) if captions else None
    return System(name, scores, image_aps, caption_hits, by_picture)


def _learnt(row: str, encoder: Encoder, categories: Sequence[str], names: Names | None) -> Concepts | None:
    """Return the concepts in a model's folder, where they know a category; warn of unusable ones."""
    known = model_concepts(encoder)
    for remark in known.remarks:
        warnings.warn(f"the row of {row}: {remark}", stacklevel=4)
    found = known.concepts
    return found if found is not None and any(concepts_of(categories, found, names)) else None


def _number(concepts: Concepts | None, embedded: Embedded, names: Names | None) -> int:
    """Return how many categories are asked by what was learnt of them."""
    if concepts is None:
        return 0
    return sum(concept is not None for concept in concepts_of(embedded.categories, concepts, names))


def _model_report(
    system: System, encoder: Encoder, embedded: Embedded, samples: Resampled, learnt: int
) -> ModelReport:
    assert system.image_to_image is not None
    return ModelReport(
        name=system.name,
        model_id=encoder.model_id,
        fingerprint=encoder.fingerprint,
        text_to_image=text_to_image(system.scores, embedded, samples.ap_intervals),
        image_to_image=system.image_to_image,
        zero_shot=zero_shot(system.scores, embedded),
        retention=system.caption_hits.report if system.caption_hits else None,
        worst=worst(system.scores, embedded),
        intervals=samples.intervals,
        learnt=learnt,
    )


def _baseline_reports(
    fitted: Fitted | None,
    embedded: Embedded,
    samples: Mapping[str, Resampled],
    on: str,
    *,
    with_learnt: bool,
) -> list[BaselineReport]:
    """Return what needs no tuning, or why it is absent."""
    if fitted is None:
        why = "needs labelled training pictures: --train FOLDER"
        names = (*FITTED, CONCEPTS) if with_learnt else FITTED
        return [BaselineReport(name, on, why_absent=why) for name in names]
    reports = [
        BaselineReport(
            name=system.name,
            on=on,
            text_to_image=text_to_image(system.scores, embedded, samples[system.name].ap_intervals),
            zero_shot=zero_shot(system.scores, embedded),
            prompts=fitted.prompts if system.name == TUNED_PROMPTS else None,
            intervals=samples[system.name].intervals,
        )
        for system in fitted.systems
    ]
    return reports + [BaselineReport(name, on, why_absent=why) for name, why in fitted.absent.items()]


def _figures(row: ModelReport | BaselineReport) -> dict[str, float]:
    """Return the figures that rows are compared by, those that this one has."""
    figures: dict[str, float | None] = {}
    if row.text_to_image and row.zero_shot:
        figures = {MAP: row.text_to_image.macro.map, TOP1: row.zero_shot.top1}
    if isinstance(row, ModelReport):
        figures[IMAGES] = row.image_to_image.map
        figures[RETENTION] = row.retention.hit_rate[10] if row.retention else None
    return {metric: value for metric, value in figures.items() if value is not None}


def _data(
    source: str, embedded: Embedded, names: Names | None, templates: Templates, duplicates: list[str]
) -> Data:
    return Data(
        source=source,
        images=len(embedded.paths),
        categories={
            name: Category(
                called=common_names(name, names)[0],
                images=int((embedded.labels == i).sum()),
                queries=evaluation_queries(name, names, templates=templates),
            )
            for i, name in enumerate(embedded.categories)
        },
        skipped=embedded.skipped,
        duplicates_in_train=duplicates,
    )


def _warn_of_cut(models: list[ModelReport]) -> None:
    with_captions = [(model.name, model.retention) for model in models if model.retention]
    name, retention = max(with_captions, key=lambda pair: pair[1].cut, default=("", None))
    if retention and retention.cut:
        warnings.warn(
            f"{retention.cut:,} of {retention.queries:,} captions are longer than the {name} reads, and were "
            "cut.",
            TextTruncated,
            stacklevel=3,
        )
