"""Examples of names become concepts, with a report of what each is worth on pictures held out.

Learning is closed-form: seconds, on a CPU. What it is told apart from are the other categories and, where
there are some, other pictures, which all together count as one category of the mean size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret import system
from imret.concepts.calibration import calibrate
from imret.concepts.cross_validation import Choice, Examples, choose, mix
from imret.concepts.discriminant import OTHER
from imret.concepts.examples import Example
from imret.errors import DataError, counted, some_of
from imret.evaluation.bootstrap import draw_counts, interval, resampled_ap
from imret.files import write_atomically
from imret.retrieval.concept_query import FILE_NAME, read_model_concepts
from imret.retrieval.concepts import Concept, Concepts, NewerFormat, check_name
from imret.retrieval.names import name_words
from imret.retrieval.query_vector import query_vector

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.store import Store

# Fewer held-out pictures say nothing of probabilities.
_CALIBRATED_FROM = 50
_CELLS = 2_000_000  # of a matrix of draws: bounds how long the intervals take


@dataclass(frozen=True, eq=False)
class Taught:
    """A name that is to be learnt, and its pictures.

    Attributes:
        name: For people and in sentences.
        names: What else it goes by.
        examples: Its pictures.
    """

    name: str
    names: tuple[str, ...]
    examples: Sequence[Example]


@dataclass(frozen=True)
class Row:
    """What became of a name.

    Attributes:
        name: Of the concept.
        images: How many pictures, each counted once.
        text: Average precision of the text over the pictures held out; None where none was.
        learnt: The same of what was learnt.
        gain: 95 % interval of the difference, over pictures.
        text_kept: Whether the text is asked as before, for being better.
    """

    name: str
    images: int
    text: float | None
    learnt: float | None
    gain: tuple[float, float] | None
    text_kept: bool


@dataclass(frozen=True, eq=False)
class Lesson:
    """What was learnt.

    Attributes:
        concepts: To be kept.
        rows: Of each name, in the order given.
        text: Mean over the names of the average precision of their texts; None where none was held out.
        learnt: The same of what was learnt.
        gain: 95 % interval of the difference.
        shrinkage: Of the covariance, as chosen.
        notes: What was left out, in sentences.
    """

    concepts: Concepts
    rows: tuple[Row, ...]
    text: float | None
    learnt: float | None
    gain: tuple[float, float] | None
    shrinkage: float
    notes: tuple[str, ...]


def learn(
    encoder: QueryEncoder,
    taught: Sequence[Taught],
    *,
    others: Sequence[Example] = (),
    source: str = "",
    seed: int = 0,
) -> Lesson:
    """Learn concepts from examples.

    Args:
        encoder: That embedded them.
        taught: Names with their pictures. A picture that comes twice under one name counts once; one that
            comes under two is left out.
        others: Pictures of none of them.
        source: Where the pictures came from, for people.
        seed: Of what is held out, and of the intervals.

    Raises:
        DataError: If a name cannot be one, two are the same, a name has no picture, or there is nothing to
            tell it from.
    """
    checked = check_names([one.name for one in taught])
    named = [replace(one, name=name) for one, name in zip(taught, checked, strict=True)]
    own, others, notes = _each_once(named, others)
    if len(own) == 1 and not others:
        raise DataError(
            f"{named[0].name!r} is the only thing there are pictures of, and nothing is there to tell it "
            "from. Give pictures of other things: --others FOLDER, or a collection that holds some."
        )
    texts = np.stack([query_vector(encoder, one.name) for one in named])
    examples = _examples(own, others, texts)
    choice = choose(examples, seed=seed)
    sums = examples.sums()
    mixed = mix(sums.directions([choice.shrinkage])[0], texts, sums, choice.shares)
    vectors, offsets = sums.in_place_of(texts, mixed)
    concepts = [
        Concept(
            one.name,
            tuple(dict.fromkeys((one.name, *map(check_name, one.names)))),
            None if share == 1 else vector.astype(np.float32),
            text,
            0.0 if share == 1 else float(offset),
            _strength(precision, share),
            len(pictures),
            None if np.isnan(precision).any() else (float(precision[0]), float(precision[1])),
            source,
        )
        for one, pictures, share, vector, text, offset, precision in zip(
            named, own, choice.shares, vectors, texts, offsets, choice.precisions, strict=True
        )
    ]
    found = _calibrated(Concepts.of(encoder, concepts), choice, examples, encoder, seed)
    return _report(found, choice, examples, notes, seed)


def _strength(precision: NDArray[np.float64], share: float) -> float:
    """Return how far a concept moves a query that holds its name: by as much as it is better than the text.

    On drawn pictures with attributes ("blue butterfly") and on photos a fixed strength that helps where the
    text knows little costs attributes where it knows much: benchmarks/concepts.py.
    """
    if share == 1:
        return 0.0
    gain = 1 - share if np.isnan(precision).any() else precision[1] - precision[0]
    return float(np.clip(gain, 0, 1))


def check_names(names: Sequence[str]) -> list[str]:
    """Return names as they are kept, of what is to be learnt together.

    Raises:
        DataError: If one cannot be a name, or two are the same.
    """
    seen: dict[tuple[str, ...], str] = {}
    checked = [check_name(name) for name in names]
    for name in checked:
        words = name_words(name)
        if not words:
            raise DataError(f"the name {name!r} has no word to ask for. Call it differently.")
        if words in seen:
            raise DataError(
                f"{seen[words]!r} and {name!r} are one name, and are to be learnt as two. Put their pictures "
                "into one folder, or call one differently (--names)."
            )
        seen[words] = name
    return checked


def _each_once(
    taught: Sequence[Taught], others: Sequence[Example]
) -> tuple[list[list[Example]], list[Example], list[str]]:
    """Return the pictures of each name and those of none, each once; and what was left out."""
    own = [{example.sha256: example for example in one.examples} for one in taught]
    owners: dict[str, int] = {}
    for pictures in own:
        for digest in pictures:
            owners[digest] = owners.get(digest, 0) + 1
    shared = {digest for digest, n in owners.items() if n > 1}
    kept = [[one for digest, one in pictures.items() if digest not in shared] for pictures in own]
    empty = [one.name for one, pictures in zip(taught, kept, strict=True) if not pictures]
    if empty:
        why = "; those it has are under another name, too" if shared else ""
        raise DataError(f"there is no picture of {some_of(empty, 5)} to learn from{why}.")
    notes = []
    again = sum(len(one.examples) for one in taught) - sum(map(len, own))
    if again:
        notes.append(f"{counted(again)} came again under the same name, and counted once")
    if shared:
        notes.append(f"{counted(len(shared))} came under two names, and counted for none")
    rest = {one.sha256: one for one in others if one.sha256 not in owners}
    return kept, list(rest.values()), notes


def _examples(
    own: Sequence[Sequence[Example]], others: Sequence[Example], texts: NDArray[np.float32]
) -> Examples:
    pictures = [*(one for of_name in own for one in of_name), *others]
    n_own = len(pictures) - len(others)
    labels = np.repeat([*range(len(own)), OTHER], [*map(len, own), len(others)]).astype(np.int64)
    weights = np.ones(len(pictures))
    weights[n_own:] = min(1.0, n_own / len(own) / max(len(others), 1)) if len(own) > 1 else 1.0
    views = np.repeat(np.arange(len(pictures)), [len(one.vectors) for one in pictures])
    return Examples(np.concatenate([one.vectors for one in pictures]), views, labels, weights, texts)


def _calibrated(
    concepts: Concepts, choice: Choice, examples: Examples, encoder: QueryEncoder, seed: int
) -> Concepts:
    """Return concepts with their calibration, where enough was held out and each is told from the others."""
    at = choice.held_out & (examples.labels != OTHER)
    names = list(concepts.concepts)
    if len(names) < 2 or at.sum() < _CALIBRATED_FROM or encoder.logit_bias is not None:
        return concepts
    labels = examples.labels[at]
    fitted = calibrate(
        names, choice.learnt[:, at], choice.texts[:, at], labels, encoder.logit_scale, seed=seed
    )
    # Of a vector's own scores, which lack the offset.
    biases = {
        name: bias + fitted.scale * concepts.concepts[name].offset for name, bias in fitted.biases.items()
    }
    return replace(concepts, calibrations=(replace(fitted, biases=biases),))


def _report(
    concepts: Concepts, choice: Choice, examples: Examples, notes: Iterable[str], seed: int
) -> Lesson:
    judged = ~np.isnan(choice.precisions[:, 0])
    gains = _gains(choice, examples, judged, seed)
    rows = [
        Row(
            concept.name,
            concept.images,
            concept.held_out[0] if concept.held_out else None,
            concept.held_out[1] if concept.held_out else None,
            gains.get(number),
            concept.vector is None,
        )
        for number, concept in enumerate(concepts.concepts.values())
    ]
    text, learnt = choice.precisions[judged].mean(axis=0) if judged.any() else (None, None)
    return Lesson(
        concepts,
        tuple(rows),
        None if text is None else float(text),
        None if learnt is None else float(learnt),
        gains.get(OTHER),
        choice.shrinkage,
        tuple(notes),
    )


def _gains(
    choice: Choice, examples: Examples, judged: NDArray[np.bool_], seed: int
) -> Mapping[int, tuple[float, float]]:
    """Return intervals of what is gained, by number of the name; of the mean under OTHER."""
    if not judged.any():
        return {}
    labels = examples.labels[choice.held_out]
    numbers = np.flatnonzero(judged)
    relevant = labels[None] == numbers[:, None]
    resamples = int(np.clip(_CELLS // len(labels), 100, 1000))
    differences = np.concatenate(
        [
            resampled_ap(choice.learnt[judged][:, choice.held_out], relevant, counts)
            - resampled_ap(choice.texts[judged][:, choice.held_out], relevant, counts)
            for counts in draw_counts(labels, resamples, seed=seed)
        ]
    )  # (B, names)
    gains = {int(number): interval(differences[:, at]) for at, number in enumerate(numbers)}
    return {**gains, OTHER: interval(differences.mean(axis=1))}


# ---- Keeping them --------------------------------------------------------------------------------------


def keep_in_collection(store: Store, collection: str, learnt: Concepts) -> list[str]:
    """Keep concepts with a collection, beside those that it has of the same encoder.

    Returns:
        What became of older ones, in sentences.

    Raises:
        DataError: If there is no such collection.
        StoreError: If they cannot be written; then the old ones stay.
    """
    notes: list[str] = []

    def change(content: bytes | None) -> bytes:
        notes.clear()
        old = None if content is None else _readable(content, f"collection {collection!r}", notes)
        return _together(old, learnt, notes).to_bytes()

    store.change_document(collection, "concepts", change)
    return notes


def keep_in_folder(folder: str | os.PathLike[str], learnt: Concepts) -> list[str]:
    """Keep concepts in a model folder; returns and errors are those of `keep_in_collection`.

    Of programs that keep some at the same time each adds to what the other left, where folders can be locked.

    Raises:
        DataError: If those that are there are of a newer format.
        OSError: If they cannot be written; then the old ones stay.
    """
    notes: list[str] = []
    with _alone_in(folder):
        try:
            old = read_model_concepts(folder)
        except NewerFormat:
            raise
        except DataError as error:
            old = None
            notes.append(_replaced(error))
        write_atomically(Path(folder) / FILE_NAME, _together(old, learnt, notes).to_bytes())
    return notes


@contextmanager
def _alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep others who do the same out of a folder, where the system has locks on folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # on Windows no folder can be opened
        yield
        return
    try:
        with suppress(OSError):
            system.lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def forget_in_collection(store: Store, collection: str, names: Sequence[str]) -> None:
    """Remove concepts of a collection.

    Raises:
        DataError: If there is no such collection, or one of the names is no concept's of it.
    """

    def change(content: bytes | None) -> bytes | None:
        if content is None:
            raise DataError(f"collection {collection!r} has no concepts of its own.")
        rest = Concepts.from_bytes(content, f"collection {collection!r}").without(names)
        return rest.to_bytes() if rest.concepts else None

    store.change_document(collection, "concepts", change)


def _readable(content: bytes, where: str, notes: list[str]) -> Concepts | None:
    try:
        return Concepts.from_bytes(content, where)
    except NewerFormat:
        raise
    except DataError as error:
        notes.append(_replaced(error))
        return None


def _replaced(error: DataError) -> str:
    return f"the concepts that were there could not be read, and are replaced: {error}"


def _together(old: Concepts | None, learnt: Concepts, notes: list[str]) -> Concepts:
    """Return old and new concepts; of two that share a name it is the one's whose own name it is."""
    new_own = {name_words(name) for name in learnt.concepts}
    # Within what was learnt together, too: a name is a category's own before it is another's synonym.
    learnt = replace(learnt, concepts=_without_names(learnt.concepts, new_own, notes))
    if old is None:
        return learnt
    if (old.images_fingerprint, old.dim) != (learnt.images_fingerprint, learnt.dim):
        notes.append(
            f"{counted(len(old.concepts), 'concept')} learnt with {old.model!r} went: another model's "
            f"pictures say nothing here ({some_of(list(old.concepts), 5)})"
        )
        return learnt
    again = [name for name in old.concepts if name_words(name) in new_own]
    if again:
        notes.append(f"learnt again: {some_of(again, 5)}")
    older = old.without(again)
    older = replace(older, concepts=_without_names(older.concepts, new_own, notes))
    kept_names = {name_words(name) for one in older.concepts.values() for name in one.names}
    mine = _without_names(learnt.concepts, kept_names - new_own, notes)
    return older.with_others(replace(learnt, concepts=mine))


def _without_names(
    concepts: Mapping[str, Concept], taken: set[tuple[str, ...]], notes: list[str]
) -> dict[str, Concept]:
    """Return concepts without the names that are another's; their own they keep."""
    changed = {}
    for key, concept in concepts.items():
        own = name_words(key)
        lost = [name for name in concept.names if name_words(name) in taken - {own}]
        if lost:
            notes.append(f"{some_of(lost, 5)} is no name of {key!r} any more, but another's")
        changed[key] = replace(concept, names=tuple(name for name in concept.names if name not in lost))
    return changed
