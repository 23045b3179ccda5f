"""Concepts of the training pictures of an evaluation, for its row of them."""

from __future__ import annotations

import numpy as np

from imret.concepts.examples import Example
from imret.concepts.learn import Taught, learn
from imret.evaluation.fitted import TrainingSet
from imret.files import sha256_if_readable
from imret.retrieval.concepts import Concepts


def learn_from(training: TrainingSet) -> Concepts:
    """Learn concepts of the categories; what is chosen is chosen by cross-validation within the pictures.

    Raises:
        DataError: As `imret.concepts.learn.learn`, such as for a category whose name can be no concept's.
    """
    taught = []
    for number, (category, called) in enumerate(zip(training.categories, training.called, strict=True)):
        examples = [
            # One that has gone since it was embedded is known by its path, which is no other's.
            Example(sha256_if_readable(training.files[i]) or training.files[i], training.vectors[i][None])
            for i in np.flatnonzero(training.labels == number).tolist()
        ]
        folder = " ".join(category.replace("_", " ").split())
        taught.append(Taught(called[0], (*called[1:], folder or category), examples))
    return learn(training.encoder, taught, source="training pictures").concepts
