"""Labelled pictures, embedded by one model; what cannot be read is kept apart, with the reason.

Decoding runs one batch ahead of the model. In memory are two batches of pixels, and the embeddings.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.labelled import LabelledFolder, category_of
from imret.datasets.scan import Skipped
from imret.errors import DataError, counted
from imret.images.decode import Source
from imret.images.decode_batches import decode_batches
from imret.models.fast.tokenizer import TextTruncated
from imret.retrieval.classify import LabelScorer
from imret.retrieval.prompts import Names, evaluation_queries, templates_for

if TYPE_CHECKING:
    from imret.models.encoder import Encoder
    from imret.retrieval.concepts import Concepts


@dataclass(frozen=True)
class Embedded:
    """Labelled pictures, embedded by one model.

    Attributes:
        paths: N, below the folder.
        labels: (N,) int, index into `categories`.
        categories: Names, sorted; each has a picture.
        vectors: (N, D) unit embeddings.
        skipped: What could not be read, and why.
    """

    paths: list[str]
    labels: NDArray[np.int64]
    categories: list[str]
    vectors: NDArray[np.float32]
    skipped: list[Skipped]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """(Q, N) whether a picture answers the query of each category."""
        relevant: NDArray[np.bool_] = np.arange(len(self.categories))[:, None] == self.labels[None, :]
        return relevant


def embed(
    pictures: LabelledFolder, encoder: Encoder, on_picture: Callable[[], object] = lambda: None
) -> Embedded:
    """Embed labelled pictures.

    Raises:
        DataError: If the readable ones are of fewer than two categories.
        ModelError: If the model cannot be loaded.
    """
    vectors, readable, unreadable = encode(pictures.folder, pictures.paths, encoder, on_picture)
    embedded = _embedded(readable, vectors, [*pictures.skipped, *unreadable])
    if len(embedded.categories) < 2:
        first = f" The first: {unreadable[0].path!r}: {unreadable[0].reason}" if unreadable else ""
        raise DataError(
            f"of {counted(len(pictures.paths))} in {str(pictures.folder)!r} only {len(readable):,} can "
            f"be read, in {counted(len(embedded.categories), 'category', 'categories')}, and two are needed."
            f"{first}"
        )
    return embedded


def _embedded(paths: list[str], vectors: NDArray[np.float32], skipped: list[Skipped]) -> Embedded:
    categories = sorted({category_of(path) for path in paths})
    number = {name: i for i, name in enumerate(categories)}
    labels = np.array([number[category_of(path)] for path in paths], dtype=np.int64)
    return Embedded(paths, labels, categories, vectors, skipped)


def in_common(sets: Sequence[Embedded]) -> list[Embedded]:
    """Return the same pictures of each; a comparison is paired, so what one model cannot take, none gets."""
    if all(embedded.paths == sets[0].paths for embedded in sets):
        return list(sets)
    shared = set.intersection(*(set(embedded.paths) for embedded in sets))
    skipped = list({picture.path: picture for embedded in sets for picture in embedded.skipped}.values())
    result = []
    for embedded in sets:
        keep = [i for i, path in enumerate(embedded.paths) if path in shared]
        result.append(_embedded([embedded.paths[i] for i in keep], embedded.vectors[keep], skipped))
    return result


def encode(
    folder: Path, paths: Sequence[str], encoder: Encoder, on_picture: Callable[[], object] = lambda: None
) -> tuple[NDArray[np.float32], list[str], list[Skipped]]:
    """Return (N, D) embeddings of the readable pictures, their paths, and what is wrong with the others."""
    return encode_named(((path, folder / path) for path in paths), encoder, on_picture)


def encode_named(
    pictures: Iterable[tuple[str, Source] | Skipped],
    encoder: Encoder,
    on_picture: Callable[[], object] = lambda: None,
    *,
    exact: bool = False,
) -> tuple[NDArray[np.float32], list[str], list[Skipped]]:
    """Return (N, D) embeddings of pictures wherever they are, their names, and what is wrong with others.

    Args:
        pictures: Names and what `load_image` takes, in any number; what is skipped already goes along.
        encoder: The model.
        on_picture: Called for each picture that was encoded, or cannot be decoded.
        exact: Make pixels as open_clip's own transform does, which takes longer.
    """
    rows, readable = [], []
    skipped: list[Skipped] = []
    names: deque[str] = deque()  # of what is being decoded

    def sources() -> Iterator[Source]:
        for picture in pictures:
            if isinstance(picture, Skipped):
                skipped.append(picture)
            else:
                names.append(picture[0])
                yield picture[1]

    with closing(decode_batches(sources(), encoder.preprocess, exact=exact)) as batches:
        for batch in batches:
            pixels = []
            for _, result in batch:
                name = names.popleft()
                if isinstance(result, str):
                    skipped.append(Skipped(name, result))
                else:
                    pixels.append(result)
                    readable.append(name)
                on_picture()
            if pixels:
                rows.append(encoder.encode_pixels(np.stack(pixels)))
    vectors = np.concatenate(rows) if rows else np.zeros((0, encoder.dim), np.float32)
    return vectors, readable, skipped


def category_queries(
    encoder: Encoder, categories: Sequence[str], names: Names | None = None
) -> NDArray[np.float32]:
    """Return (Q, D) unit embeddings that ask for categories: as a search for their names does.

    Args:
        encoder: The model.
        categories: Q names of folders.
        names: What they are called, where it is not what `imret.retrieval.prompts` says.
    """
    templates = templates_for(encoder.files.model_cfg)
    queries = [evaluation_queries(name, names, templates=templates) for name in categories]
    means = np.stack([encoder.encode_texts(sentences).mean(axis=0) for sentences in queries])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), dtype=np.float32)


def category_scorer(
    encoder: Encoder, categories: Sequence[str], names: Names | None, concepts: Concepts
) -> LabelScorer:
    """Return what scores categories by what was learnt of them, and the others as `category_queries` does.

    Args:
        encoder: The model.
        categories: Names of folders.
        names: As for `category_queries`.
        concepts: That the model has.
    """
    templates = templates_for(encoder.files.model_cfg)
    texts = {name: evaluation_queries(name, names, templates=templates) for name in categories}
    return LabelScorer.of(texts, encoder, concepts, names)


def encode_captions(encoder: Encoder, captions: Sequence[str]) -> tuple[NDArray[np.float32], int]:
    """Return (T, D) unit embeddings, and how many of the captions were cut to what the model reads.

    Instead of a warning for each: among thousands of captions some are too long, which is no news.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = encoder.encode_texts(captions)
    cut = [warning for warning in caught if issubclass(warning.category, TextTruncated)]
    for other in caught:
        if not issubclass(other.category, TextTruncated):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return vectors, len(cut)
