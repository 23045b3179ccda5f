"""What is in a picture: the label whose text has the highest inner product with it, and how probable it is.

Zero-shot classification as CLIP does it: Radford et al. (2021), "Learning Transferable Visual Models From
Natural Language Supervision", section 3.1.2, https://arxiv.org/abs/2103.00020. A label that was learnt from
pictures is scored by what was learnt instead (`imret.retrieval.concepts`). Hides how a label becomes
sentences, batching, and the ways in which scores become probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError
from imret.images.decode import Source
from imret.images.decode_batches import decode_batches
from imret.retrieval.prompts import Names, common_names, label_texts, recorded_names, templates_for

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.retrieval.concepts import Calibration, Concept, Concepts


@dataclass(frozen=True)
class Prediction:
    """One label for one picture.

    Attributes:
        label: As it was given.
        probability: In [0, 1]; see `probabilities`.
        score: Cosine of picture and what asks for the label, in [-1, 1]. Of labels that were learnt, it
            need not rank as the probability does.
        learnt: Whether what was learnt from pictures asks for the label, instead of words.
    """

    label: str
    probability: float
    score: float
    learnt: bool = False


@dataclass(frozen=True)
class Classification:
    """One picture and what it was taken for.

    Attributes:
        picture: As it was given.
        predictions: Most probable first; equal ones in the order of the labels. Empty if it cannot be read.
        reason: Why it cannot be read; None if it can.
        expected_error: Expected calibration error of the probabilities, on pictures held out; None where they
            are not calibrated, but what the model says.
    """

    picture: Source
    predictions: tuple[Prediction, ...]
    reason: str | None = None
    expected_error: float | None = None


def classify(
    pictures: Iterable[Source],
    labels: Sequence[str],
    *,
    encoder: QueryEncoder,
    names: Names | None = None,
    concepts: Concepts | None = None,
    top_k: int = 3,
) -> list[Classification]:
    """Return what each picture shows, of the labels given.

    Args:
        pictures: Paths, PIL images, or what else `load_image` takes.
        labels: At least two different ones; at least one for a model trained with a sigmoid. See
            `label_texts` for how they are asked for.
        encoder: The model.
        names: What categories are called, as from `imret.datasets.names_csv.read_names`. What is not in it is
            called as it was when the model was tuned, else as `imret.retrieval.prompts` says.
        concepts: Labels that are their names are scored by what was learnt; None to score all by words. Where
            all labels were learnt together, probabilities are calibrated: see `calibration_of`.
        top_k: Predictions for each picture at most, >= 1.

    Returns:
        One for each picture, in their order. One that cannot be read has a reason and no predictions.

    Raises:
        DataError: If the labels are too few, empty, or two of them ask for the same.
        ModelError: If the model cannot be loaded, or does not say its logit scale.
    """
    return list(classify_each(pictures, labels, encoder=encoder, names=names, concepts=concepts, top_k=top_k))


def classify_each(
    pictures: Iterable[Source],
    labels: Sequence[str],
    *,
    encoder: QueryEncoder,
    names: Names | None = None,
    concepts: Concepts | None = None,
    top_k: int = 3,
    on_note: Callable[[Source, str], object] = lambda picture, note: None,
) -> Iterator[Classification]:
    """Return the iterator that `classify` collects: any number of pictures in the memory of two batches.

    What is wrong with the labels or the model is raised by the call, not by the iteration. `on_note` is told
    what is to be known of a picture that is classified: see `imret.images.decode_batches.decode_batches`.
    """
    if isinstance(pictures, (str, os.PathLike, bytes)):
        raise TypeError("classify takes a list of pictures; put the one picture in a list")
    if isinstance(labels, str):
        raise TypeError("classify takes a list of labels; split the text first")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    texts = _texts_by_label(labels, encoder, names)
    encoder.device  # noqa: B018  # loads torch, which pictures need, and with which many labels are quicker
    names = _names(encoder, names)
    _refuse_one_concept(list(texts), concepts, names)
    scorer = LabelScorer.of(texts, encoder, concepts, names)
    return _classified(pictures, list(texts), scorer, encoder, top_k, on_note)


def concepts_of(
    labels: Sequence[str], concepts: Concepts, names: Names | None = None
) -> list[Concept | None]:
    """Return the concept of each label: one that goes by it, else by what people call it.

    Args:
        labels: As they were given.
        concepts: That are known.
        names: What categories are called, where it is not what `imret.retrieval.prompts` says.
    """
    found: list[Concept | None] = []
    for label in labels:
        keys = (concepts.index.exact(name) for name in (label, common_names(label, names)[0]))
        key = next((key for key in keys if key is not None), None)
        found.append(None if key is None else concepts.concepts[key])
    return found


def calibration_of(
    labels: Sequence[str], concepts: Concepts | None, names: Names | None = None
) -> Calibration | None:
    """Return what makes probabilities of labels calibrated ones; None where it is not known.

    Labels that are only some of those that were learnt together are a question within these: given that the
    picture shows one of them, how probable each is follows from the probabilities of all by sharing them out
    anew, which is what a softmax over them does with the same scale and biases.

    Args:
        labels: As they were given.
        concepts: That are known.
        names: As for `concepts_of`.
    """
    if concepts is None:
        return None
    known = {concept.name for concept in concepts_of(labels, concepts, names) if concept is not None}
    return concepts.calibration_of(known) if len(known) == len(labels) else None


@dataclass(frozen=True, eq=False)
class LabelScorer:
    """What labels are asked by, and what their scores become.

    Attributes:
        vectors: (L, D) unit.
        norms: (L,) what a cosine is multiplied with to be a score of the size that texts have.
        offsets: (L,) what is added to it then.
        calibrated: Scale and (L,) biases of scores without their offsets; None for the model's own.
        learnt: L, whether each vector was learnt, and is no text's.
        expected_error: Of calibrated probabilities, on pictures held out.
    """

    vectors: NDArray[np.float32]
    norms: NDArray[np.float32]
    offsets: NDArray[np.float32]
    calibrated: tuple[float, NDArray[np.float64]] | None
    learnt: tuple[bool, ...]
    expected_error: float | None

    @classmethod
    def of(
        cls,
        texts: Mapping[str, Sequence[str]],
        encoder: QueryEncoder,
        concepts: Concepts | None,
        names: Names | None = None,
    ) -> LabelScorer:
        """Return what asks for labels: what was learnt of them, else their sentences."""
        labels = list(texts)
        calibration = calibration_of(labels, concepts, names)
        found = [None] * len(labels) if concepts is None else concepts_of(labels, concepts, names)
        vectors, norms, offsets, biases = [], [], [], []
        for sentences, concept in zip(texts.values(), found, strict=True):
            if concept is None:
                vector = encoder.encode_mean(sentences)
            else:
                vector = concept.text if concept.vector is None else concept.vector
            is_text = concept is None or concept.vector is None
            norm = 1.0 if is_text else float(np.linalg.norm(vector))
            vectors.append(vector / np.float32(norm))
            norms.append(norm)
            offsets.append(concept.offset if concept else 0.0)
            biases.append(calibration.biases[concept.name] if calibration and concept else 0.0)
        calibrated = (calibration.scale, np.array(biases)) if calibration else None
        return cls(
            np.stack(vectors),
            np.array(norms, dtype=np.float32),
            np.array(offsets, dtype=np.float32),
            calibrated,
            tuple(concept is not None and concept.vector is not None for concept in found),
            calibration.error if calibration else None,
        )

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return (B, L) scores of (B, D) pictures that labels are told apart by.

        Those of a softmax where they are calibrated; else of the size that cosines with texts have.
        """
        sized = np.asarray((embeddings @ self.vectors.T) * self.norms, dtype=np.float64)
        if self.calibrated is None:
            return sized + self.offsets
        scale, biases = self.calibrated
        return scale * sized + biases

    def score(
        self, embeddings: NDArray[np.float32], encoder: QueryEncoder
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return (B, L) cosines and probabilities of (B, D) pictures."""
        logits = self.logits(embeddings)
        shares = probabilities(logits, encoder) if self.calibrated is None else _softmax(logits)
        return embeddings @ self.vectors.T, shares


def probabilities(scores: NDArray[np.floating], encoder: QueryEncoder) -> NDArray[np.float64]:
    """Return how probable each label is for each picture, by what the model was trained with.

    A model trained with a softmax (CLIP) tells which of the labels it is: softmax over the labels of logit
    scale x cosine; a row sums to 1, whether or not any label is true. A model trained with a sigmoid
    (SigLIP, SigLIP 2) tells of each label on its own whether it is true: sigmoid of logit scale x cosine +
    logit bias; a row sums to anything.

    A tuned model keeps the scale and the bias of its base and was trained with the loss of its kind. Those of
    a tuned sigmoid are chances among pairs like those of its training, where a label is true as often as one
    of its categories is.

    They are what the model says, not how often it is right: the scale was learnt to tell apart the captions
    of a training batch. Expected calibration error (15 bins) of two small CLIPs on 240 photos of ten nature
    categories, by benchmarks/classify_calibration.py: 0.04 for one that was trained on such categories (right
    91% of the time, at a mean of 0.88), 0.34 for one that was not (right 25%, at a mean of 0.58). So where a
    model knows the labels they may be read as chances; where it does not, they are far too high.

    Args:
        scores: (N, L) cosines of pictures and labels.
        encoder: Whose logit scale and bias apply.

    Returns:
        (N, L) in [0, 1].

    Raises:
        ModelError: If the model's weights hold no logit scale.
    """
    logits = encoder.logit_scale * np.asarray(scores, dtype=np.float64)
    if encoder.logit_bias is not None:
        # tanh, because exp of a large logit overflows
        return np.asarray(0.5 * (1 + np.tanh((logits + encoder.logit_bias) / 2)), dtype=np.float64)
    return _softmax(logits)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)


def _names(encoder: QueryEncoder, given: Names | None) -> Names:
    return {**recorded_names(encoder), **(given or {})}


def _refuse_one_concept(labels: Sequence[str], concepts: Concepts | None, names: Names) -> None:
    """Refuse labels that were learnt as one: there is nothing to choose between them."""
    if concepts is None:
        return
    first: dict[str, str] = {}
    for label, concept in zip(labels, concepts_of(labels, concepts, names), strict=True):
        if concept is not None and (known := first.setdefault(concept.name, label)) != label:
            raise DataError(
                f"labels {known!r} and {label!r} ask for the same, which was learnt as {concept.name!r}. "
                "Leave one out, or score their words (--no-concepts)."
            )


def _texts_by_label(
    labels: Sequence[str], encoder: QueryEncoder, names: Names | None
) -> dict[str, list[str]]:
    """Return what asks for each label; refuse labels between which there is nothing to choose."""
    names = _names(encoder, names)
    templates = templates_for(encoder.files.model_cfg)
    if not labels:
        raise DataError("there are no labels. Name what a picture may show: at least two.")
    texts: dict[str, list[str]] = {}
    first_with: dict[tuple[str, ...], str] = {}
    for number, label in enumerate(labels, start=1):
        if not label.replace("_", " ").strip():
            raise DataError(f"label number {number} is empty. Leave it out, or write what it should be.")
        sentences = label_texts(label, names, templates=templates)
        known = first_with.setdefault(tuple(text.lower() for text in sentences), label)
        if label in texts:
            raise DataError(f"label {label!r} is given twice. Leave one out.")
        if known != label:
            raise DataError(
                f"labels {known!r} and {label!r} ask for the same, in the words {sentences[0]!r}. "
                "Leave one out, or call them differently in a names file."
            )
        texts[label] = sentences
    if len(texts) == 1 and encoder.logit_bias is None:
        raise DataError(
            f"{labels[0]!r} is the only label, and every picture would be one: probabilities are shared out "
            "among the labels. Give at least two, such as what else it might be."
        )
    return texts


def _classified(
    pictures: Iterable[Source],
    labels: list[str],
    scorer: LabelScorer,
    encoder: QueryEncoder,
    top_k: int,
    on_note: Callable[[Source, str], object],
) -> Iterator[Classification]:
    with closing(decode_batches(pictures, encoder.preprocess, on_note=on_note)) as batches:
        for batch in batches:
            pixels = [result for _, result in batch if not isinstance(result, str)]
            if pixels:
                rows = zip(*scorer.score(encoder.encode_pixels(np.stack(pixels)), encoder), strict=True)
            for picture, result in batch:
                if isinstance(result, str):
                    yield Classification(picture, (), result)
                    continue
                cosines, shares = next(rows)
                # Where rounding makes probabilities equal, cosines still differ.
                best = np.lexsort((-cosines, -shares))[:top_k]
                predictions = tuple(
                    Prediction(labels[i], float(shares[i]), float(cosines[i]), scorer.learnt[i]) for i in best
                )
                yield Classification(picture, predictions, expected_error=scorer.expected_error)
