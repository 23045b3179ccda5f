"""Training pictures to rows of an evaluation: every baseline fitted, and concepts, which others learn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.datasets.labelled import LabelledFolder, category_of, read_labelled
from imret.errors import DataError, some_of
from imret.evaluation.baselines import (
    centroids,
    linear_probe,
    nearest_neighbours,
    task_residual,
    tip_adapter,
    tuned_prompts,
)
from imret.evaluation.dataset import Embedded, category_queries, category_scorer, embed
from imret.evaluation.significance import System
from imret.retrieval.concepts import Concepts
from imret.retrieval.prompts import Names, common_names, templates_for

if TYPE_CHECKING:
    from imret.models.encoder import Encoder

TUNED_PROMPTS, LINEAR_PROBE, KNN, CENTROID, TIP_ADAPTER, TASK_RESIDUAL = FITTED = (
    "zero-shot, tuned prompts",
    "linear probe",
    "kNN (k=20)",
    "class centroid",
    "Tip-Adapter",
    "TaskRes",
)
CONCEPTS = "concepts"


def training_pictures(
    train: str | os.PathLike[str], evaluated: LabelledFolder, exclude: Sequence[str] = ()
) -> LabelledFolder:
    """Find the training pictures of the categories that are evaluated; those of others are left alone.

    Raises:
        DataError: If the folder is the one that is evaluated, or lacks a category of it.
    """
    training = read_labelled(train, exclude)
    if os.path.realpath(training.folder) == os.path.realpath(evaluated.folder):
        raise DataError(
            f"--train is {os.fspath(train)!r}, the very pictures that are evaluated: a probe would have seen "
            "the answers. Give other pictures of the same categories."
        )
    lacking = [name for name in evaluated.categories if name not in training.categories]
    if lacking:
        raise DataError(
            f"the training pictures in {os.fspath(train)!r} have no category {some_of(lacking)}, which is "
            f"evaluated. There are: {some_of(training.categories)}. Give a folder that has them all."
        )
    wanted = set(evaluated.categories)
    return replace(
        training, pictures=[picture for picture in training.pictures if picture.category in wanted]
    )


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Training pictures of the categories that are evaluated, as one model embeds them.

    Attributes:
        encoder: The model.
        categories: Names of folders, C.
        called: What people call each, the name for sentences first.
        files: Of the pictures, M.
        labels: (M,) int in [0, C).
        vectors: (M, D) unit embeddings.
    """

    encoder: Encoder
    categories: Sequence[str]
    called: Sequence[tuple[str, ...]]
    files: Sequence[str]
    labels: NDArray[np.int64]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was fitted on training pictures.

    Attributes:
        systems: Those that could be.
        prompts: The sentence that was chosen for each category.
        absent: Why others could not be, by name.
    """

    systems: list[System]
    prompts: dict[str, str]
    absent: dict[str, str]


Learn: TypeAlias = Callable[[TrainingSet], Concepts]


def fitted_baselines(
    training: LabelledFolder,
    encoder: Encoder,
    embedded: Embedded,
    names: Names | None = None,
    on_picture: Callable[[], object] = lambda: None,
    *,
    learn: Learn | None = None,
) -> Fitted:
    """Fit every baseline on the training pictures, as one model embeds them.

    Args:
        training: From `training_pictures`.
        encoder: The model.
        embedded: The pictures to score, embedded by it.
        names: What categories are called, where it is not what `imret.retrieval.prompts` says.
        on_picture: Called for each picture that was encoded.
        learn: Learns concepts of the categories, for a row of these.

    Raises:
        DataError: If no training picture of a category can be read.
    """
    train = _training_set(training, encoder, embedded.categories, names, on_picture)
    vectors, labels = train.vectors, train.labels
    templates = templates_for(encoder.files.model_cfg)
    prompts, chosen = tuned_prompts(
        encoder.encode_texts, vectors, labels, embedded.categories, names, templates=templates
    )
    data = vectors, labels, embedded.vectors, len(embedded.categories)
    text = category_queries(encoder, embedded.categories, names)
    adapted = text, vectors, labels, embedded.vectors
    systems = [
        System(TUNED_PROMPTS, prompts @ embedded.vectors.T),
        System(LINEAR_PROBE, linear_probe(*data)),
        System(KNN, nearest_neighbours(*data)),
        System(CENTROID, centroids(*data)),
        System(TIP_ADAPTER, tip_adapter(*adapted, scale=encoder.logit_scale)),
        System(TASK_RESIDUAL, task_residual(*adapted, scale=encoder.logit_scale)),
    ]
    absent = {}
    if learn is not None:
        try:
            concepts = learn(train)
        except DataError as error:  # such as a folder's name that can be no concept's
            absent[CONCEPTS] = str(error)
        else:
            scorer = category_scorer(encoder, embedded.categories, names, concepts)
            systems.append(System(CONCEPTS, scorer.logits(embedded.vectors).T))
    return Fitted(systems, dict(zip(embedded.categories, chosen, strict=True)), absent)


def _training_set(
    training: LabelledFolder,
    encoder: Encoder,
    categories: Sequence[str],
    names: Names | None,
    on_picture: Callable[[], object],
) -> TrainingSet:
    train = embed(training, encoder, on_picture)
    lacking = [name for name in categories if name not in train.categories]
    if lacking:
        raise DataError(
            f"no training picture of {some_of(lacking)} in {str(training.folder)!r} can be read. "
            "Mend them, or leave out --train."
        )
    number = {name: i for i, name in enumerate(categories)}
    labels = np.array([number.get(category_of(path), -1) for path in train.paths], dtype=np.int64)
    files = [os.path.join(training.folder, path) for path in train.paths]
    return TrainingSet(
        encoder,
        categories,
        [common_names(name, names) for name in categories],
        [file for file, label in zip(files, labels, strict=True) if label >= 0],
        labels[labels >= 0],
        train.vectors[labels >= 0],
    )
