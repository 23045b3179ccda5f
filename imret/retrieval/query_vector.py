"""A query becomes one vector: terms encoded, looked up or fetched, weighed and added; and where answers end.

Hides the prompt templates, whose encoder it is, the gap between words and pictures, and what is encoded at
all: a picture of the collection, or a text that was asked before, needs no model.
"""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.phrases import read_phrases
from imret.datasets.spelling import composed, spellings
from imret.errors import DataError, ImageError, some_of
from imret.files import sha256_of
from imret.places.names import is_url
from imret.retrieval import relevance, subtraction
from imret.retrieval.category_names import category_names
from imret.retrieval.collection_encoder import check_same_encoder
from imret.retrieval.concept_query import ConceptAnswer, Known, ask_with_concepts, known_concepts
from imret.retrieval.prompts import TEMPLATE_MAX_WORDS, Names, search_prompts, templates_for
from imret.retrieval.query import PICTURE_KINDS, Term, path_of_term, read_picture
from imret.retrieval.results import ConceptUse
from imret.retrieval.web_address import shown_url
from imret.store import Collection, Filter, Match, Point, Store
from imret.store.payload import file_of, point_id

if TYPE_CHECKING:
    from imret.images.decode import Picture
    from imret.models.encoder import QueryEncoder

# Points whose vectors tell how a query's scores are spread.
SAMPLE = 512


def query_vector(
    encoder: QueryEncoder, query: str, *, template: bool = True, names: Names | None = None
) -> NDArray[np.float32]:
    """Return the (D,) unit embedding of a text query: the mean of its prompts, made unit again.

    Args:
        encoder: The model.
        query: Words.
        template: Whether they are put into prompt templates, and names of categories are known.
        names: What categories are called, before what the model was tuned with and what is known everywhere.
    """
    known = category_names(encoder, names) if template else None
    templates = templates_for(encoder.files.model_cfg)
    return encoder.encode_mean(search_prompts(query, template=template, names=known, templates=templates))


# ---- Terms ---------------------------------------------------------------------------------------------


# Of pictures that were asked for, by the hash of their files: the next page of hits asks for them again.
PICTURES_KEPT = 256
_pictures_of: weakref.WeakKeyDictionary[QueryEncoder, dict[str, _Encoded]] = weakref.WeakKeyDictionary()
_phrases_of: weakref.WeakKeyDictionary[QueryEncoder, NDArray[np.float32]] = weakref.WeakKeyDictionary()
_samples_of: weakref.WeakKeyDictionary[Collection, NDArray[np.float32]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Encoded:
    """A picture that was asked with: its (D,) unit vector, and what was noted of it."""

    vector: NDArray[np.float32]
    notes: tuple[str, ...]


class QueryEmbedder:
    """The terms of one query on their way to one vector; encodes and samples as little as it can.

    Args:
        collection: What is asked.
        encoder: Gives its encoder; called when something has to be encoded.
        template: Whether short texts are put into prompt templates.
        fetch: Gets the bytes of a URL; None for `imret.retrieval.fetch.fetch_picture`.
        store: Of the collection, for what an error advises.
        names: What categories are called; called when words are to be encoded.
        concepts: Whether words may ask with what was learnt of a concept.

    Attributes:
        hashes: Of the files of the pictures that are asked for, SHA-256 in hex, once `embed` has returned.
        remarks: What was noticed of those pictures, such as that the end of one is missing, in sentences.
        concepts: Those that had a part in the query.
        left_undone: Why concepts that there are could have none, in sentences.
    """

    def __init__(
        self,
        collection: Collection,
        encoder: Callable[[], QueryEncoder],
        template: bool,
        fetch: Callable[[str], bytes] | None,
        *,
        store: Store | Collection | None = None,
        names: Callable[[], Names] = dict,
        concepts: bool = True,
    ) -> None:
        self._collection, self._get_encoder, self._store = collection, encoder, store
        self._template, self._fetch, self._get_names = template, fetch, names
        self._with_concepts = concepts
        # Of words that concepts had a part in: what they ask with alone, and with those.
        self._answers: dict[str, tuple[NDArray[np.float32], ConceptAnswer]] = {}
        self._scale, self._offset = 1.0, 0.0  # see `_size`
        self.hashes: list[str] = []
        self.remarks: list[str] = []
        self.concepts: list[ConceptUse] = []
        self.left_undone: list[str] = []

    @cached_property
    def _encoder(self) -> QueryEncoder:
        encoder = self._get_encoder()
        check_same_encoder(self._collection, encoder, store=self._store)
        return encoder

    @cached_property
    def _names(self) -> Names:
        return self._get_names()

    @cached_property
    def _known(self) -> Known:
        store = self._collection.store
        if store is None or not self._with_concepts:
            return Known()
        known = known_concepts(store, self._collection.name, self._encoder)
        self.left_undone += known.remarks
        return known

    @cached_property
    def _sample(self) -> NDArray[np.float32]:
        """(N, D) unit vectors of the collection; ids are hashes, so the first of them are a random choice.

        Kept as long as the handle of the collection is open.
        """
        if self._collection not in _samples_of:
            _samples_of[self._collection] = self._sampled()
        return _samples_of[self._collection]

    def _sampled(self) -> NDArray[np.float32]:
        for points in self._collection.scan(vectors=True, batch_size=SAMPLE):
            return np.stack([_vector_of(point) for point in points])
        return np.zeros((0, self._collection.identity.dim), dtype=np.float32)

    @property
    def _phrases(self) -> NDArray[np.float32]:
        """(P, D) unit vectors of everyday phrases; encoded once for every encoder."""
        if self._encoder not in _phrases_of:
            _phrases_of[self._encoder] = self._encoder.encode_bank(read_phrases())
        return _phrases_of[self._encoder]

    @cached_property
    def _phrase_scores(self) -> NDArray[np.float32]:
        """(N, P) scores of everyday phrases with the sample."""
        scores: NDArray[np.float32] = self._sample @ self._phrases.T
        return scores

    def embed(self, terms: Sequence[Term]) -> NDArray[np.float32]:
        """Return the (D,) unit vector of all terms together; `imret.retrieval.subtraction` has those below 0.

        Raises:
            DataError: If they cancel out.
        """
        self._vectors = [self._vector(term) for term in terms]
        vectors = np.stack(self._vectors)
        weights = np.array([term.weight for term in terms])
        if np.linalg.norm(weights @ vectors) < 1e-3 * float(
            np.abs(weights) @ np.linalg.norm(vectors, axis=1)
        ):
            raise DataError(
                f"the terms of the query cancel out ({' '.join(term.shown for term in terms)}): what is "
                "added is subtracted again. Leave one out, or change its weight."
            )
        is_picture = np.array([term.kind in PICTURE_KINDS for term in terms])
        added = np.where(weights > 0, weights, 0.0)
        asked = self._balanced(added, vectors, is_picture) @ vectors
        total = asked - subtraction.WORDS * (np.where(is_picture, 0.0, added - weights) @ vectors)
        for weight, vector in zip(weights[is_picture], vectors[is_picture], strict=True):
            if weight < 0:
                total += weight * self._less_like(vector, asked / added.sum())
        self._scale, self._offset = self._size(terms, total)
        unit: NDArray[np.float32] = (total / np.linalg.norm(total)).astype(np.float32)
        return unit

    def _size(self, terms: Sequence[Term], total: NDArray[np.float64]) -> tuple[float, float]:
        """Return what a cosine is multiplied by, and what is added, to score as the words alone would.

        What a concept asks with is not unit, and its scores lack an offset (`Concept.vector`). The ranking
        needs neither; to compare with what phrases score does.
        """
        if not self._answers:
            return 1.0, 0.0
        moved, offset = np.zeros_like(total), 0.0
        for term, vector in zip(terms, self._vectors, strict=True):
            if term.kind == "text" and str(term.value) in self._answers:
                alone, answer = self._answers[str(term.value)]
                weight = term.weight if term.weight > 0 else subtraction.WORDS * term.weight
                moved += weight * (vector - alone)
                offset += weight * answer.offset
        length = max(float(np.linalg.norm(total - moved)), 1e-3)  # words may cancel out where concepts do not
        return float(np.linalg.norm(total)) / length, offset / length

    def _balanced(
        self, weights: NDArray[np.float64], vectors: NDArray[np.float32], is_picture: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return weights with which words and pictures spread the scores of the collection alike."""
        words, pictures = (weights > 0) & ~is_picture, (weights > 0) & is_picture
        if not words.any() or not pictures.any() or len(self._sample) < 2:
            return weights
        spread = (self._sample @ vectors.T).std(axis=0)  # (terms,)
        of_words, of_pictures = spread[words].mean(), spread[pictures].mean()
        if not (of_words > 0 and of_pictures > 0):
            return weights
        return np.where(is_picture, weights * of_words / of_pictures, weights)

    def _less_like(self, picture: NDArray[np.float32], query: NDArray[np.float64]) -> NDArray[np.float32]:
        unit = (query / np.linalg.norm(query)).astype(np.float32)
        # Some more than are taken: copies of the picture do not count.
        nearest = self._collection.search(unit, limit=2 * subtraction.HITS)
        points = self._collection.get([point.id for point in nearest], vectors=True)
        hits = [_vector_of(points[point.id]) for point in nearest if point.id in points]
        of_hits = np.stack(hits) if hits else np.zeros((0, len(unit)), dtype=np.float32)
        return subtraction.less_like(picture, query.astype(np.float32), of_hits, self._sample)

    def relevance_threshold(self, terms: Sequence[Term], vector: NDArray[np.float32]) -> float:
        """Return the score at which the collection's answers end; infinite where there are none."""
        # The pictures that are asked with are there of course.
        others = Filter(must_not=(Match("sha256", tuple(self.hashes)),)) if self.hashes else None
        best = self._collection.search(vector, limit=relevance.BEST, filter=others)
        if not best or not len(self._sample):
            return math.inf
        added = [pair for pair in zip(terms, self._vectors, strict=True) if pair[0].weight > 0]
        is_words = all(term.kind == "text" for term, _ in added)
        phrases = self._phrase_scores if is_words else None
        scores = np.array([point.score for point in best], dtype=np.float32)
        fall = relevance.FALL_OF_CAPTION if all(_is_caption(term) for term, _ in added) else relevance.FALL
        # Phrases score as texts do, so what scores a concept gives are compared in that size.
        general, best_scores = (of * self._scale + self._offset for of in (self._sample @ vector, scores))
        cut = relevance.cut(general, best_scores, phrases, fall=fall)
        end = (cut - self._offset) / self._scale
        above = [point.id for point in best if (point.score or 0) >= end]
        points = self._collection.get(above, vectors=True)
        if not points:  # nothing scores more than a picture in general
            return math.inf
        hits = np.stack([_vector_of(point) for point in points.values()])
        for term, term_vector in added:
            is_about = (
                self._is_about_words(hits, term_vector, term)
                if term.kind == "text"
                else relevance.about_picture(hits @ term_vector, hits @ self._sample.T)
            )
            if not is_about:
                return math.inf
        return end

    def _is_about_words(self, hits: NDArray[np.float32], words: NDArray[np.float32], term: Term) -> bool:
        alone, offset = words, 0.0
        if str(term.value) in self._answers:
            alone, answer = self._answers[str(term.value)]
            offset = answer.offset
        return relevance.about_words(
            hits @ words + np.float32(offset),
            hits @ self._phrases.T,
            likeness=self._phrases @ alone,
            usual=float(np.median(self._phrase_scores)),
            images=self._collection.count(),
            logit_scale=self._encoder.logit_scale,
            is_caption=_is_caption(term),
        )

    def _vector(self, term: Term) -> NDArray[np.float32]:
        if term.kind == "text":
            return self._of_words(str(term.value))
        if term.kind in ("id", "stored"):
            return self._stored(self._find(term))
        if isinstance(term.value, bytes):
            return self._of_file(term.value, "that was given", hashlib.sha256(term.value).hexdigest())
        if not isinstance(term.value, str):
            return self._encoded(term.value)
        if term.kind == "url":
            data = self._get(term.value)
            return self._of_file(data, repr(shown_url(term.value)), hashlib.sha256(data).hexdigest())
        path = path_of_term(term.value)
        digest = read_picture(term.value, sha256_of)
        return self._of_file(path, repr(path), digest)

    def _of_words(self, text: str) -> NDArray[np.float32]:
        """Return what words ask with: their unit vector, or what concepts make of it, which is not unit."""
        alone = self._text_vector(text)
        if self._known.concepts is None:
            return alone
        answer = ask_with_concepts(self._known.concepts, text, alone, self._encoder, self._text_vector)
        if answer.uses:
            self._answers[text] = alone, answer
            self.concepts += [use for use in answer.uses if use not in self.concepts]
        return answer.vector

    def _text_vector(self, text: str) -> NDArray[np.float32]:
        names = self._names if self._template else None
        return query_vector(self._encoder, text, template=self._template, names=names)

    def _get(self, url: str) -> bytes:
        if self._fetch is None:
            from imret.retrieval.fetch import fetch_picture

            return fetch_picture(url)
        return self._fetch(url)

    def _of_file(self, source: str | bytes, name: str, digest: str) -> NDArray[np.float32]:
        """Return the vector of a file's path or content; one that the collection holds needs no model."""
        same = Filter((Match("sha256", (digest,)),))
        for points in self._collection.scan(same, vectors=True, batch_size=1):
            return self._stored(points[0])
        kept = _pictures_of.setdefault(self._encoder, {})
        encoded = kept.get(digest)
        if encoded is None:
            encoded = self._decoded_and_encoded(source, name)
            for oldest in list(kept)[: len(kept) - PICTURES_KEPT + 1]:
                kept.pop(oldest, None)  # another thread may have been faster
            kept[digest] = encoded
        self.hashes.append(digest)
        self.remarks += [f"the picture {name}: {note}" for note in encoded.notes]
        return encoded.vector

    def _decoded_and_encoded(self, source: str | bytes, name: str) -> _Encoded:
        from imret.images.decode_memory import DECODE_MEMORY
        from imret.images.resize import load_pixels

        encoder = self._encoder
        notes: list[str] = []
        try:
            with DECODE_MEMORY.reserving() as reserve:  # as ingest does
                pixels, _ = load_pixels(source, encoder.preprocess, reserve=reserve, on_note=notes.append)
        except ImageError as error:
            raise ImageError(f"cannot use the picture {name}: {error}") from error
        return _Encoded(encoder.encode_pixels(pixels[None])[0], tuple(dict.fromkeys(notes)))

    def _encoded(self, image: Picture) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._encoder.encode_images([image])[0]
        return vector

    def _stored(self, point: Point) -> NDArray[np.float32]:
        self.hashes.append(str(point.payload["sha256"]))
        return _vector_of(point)

    def _at(self, places: Iterable[tuple[str, str]]) -> dict[str, Point]:
        return self._collection.get(list(dict.fromkeys(starmap(point_id, places))), vectors=True)

    def _find(self, term: Term) -> Point:
        """Return a stored picture by its id or its path.

        Raises:
            DataError: If there is none, or several.
        """
        value, name = str(term.value), self._collection.name
        if term.kind == "id":
            points = self._collection.get([value], vectors=True)
            if not points:
                raise DataError(f"collection {name!r} has no picture with the id {value}.")
            return points[value]
        sources = self._collection.facet("source")
        absolute = os.path.abspath(os.path.expanduser(value))
        places = [
            (source, os.path.relpath(absolute, source).replace(os.sep, "/"))
            for source in sources
            if absolute.startswith(source.rstrip(os.sep) + os.sep)
        ]
        places += [(source, value) for source in sources]
        places += [
            (source, value[len(source) + 1 :])
            for source in sources
            if is_url(source) and value.startswith(f"{source}/")
        ]
        points = self._at(places) or self._at(_in_other_spellings(places, absolute, sources))
        if len(points) == 1:
            return next(iter(points.values()))
        if not points:
            raise DataError(
                f"collection {name!r} has no picture at {value!r}. Give a path as in the hits of "
                "`imret search --format paths`, or one below the folder that was ingested."
            )
        several = some_of(sorted(file_of(point.payload) for point in points.values()))
        raise DataError(
            f"several pictures of collection {name!r} are at {value!r}: {several}. Give a whole path."
        )


def _is_caption(term: Term) -> bool:
    """Whether a term is a text that says more than a name."""
    return term.kind == "text" and len(str(term.value).split()) > TEMPLATE_MAX_WORDS


def _in_other_spellings(
    places: Iterable[tuple[str, str]], absolute: str, sources: Iterable[str]
) -> list[tuple[str, str]]:
    """Return the places that a path means in either normal form of Unicode.

    Args:
        places: Those that it means as it was typed: source, and path below it.
        absolute: The path.
        sources: Of the collection.
    """
    others = [
        (source, "/".join(absolute.split(os.sep)[source.rstrip(os.sep).count(os.sep) + 1 :]))
        for source in sources
        if composed(absolute).startswith(composed(source).rstrip(os.sep) + os.sep)
    ]
    return [(source, way) for source, path in [*places, *others] for way in spellings(path)]


def _vector_of(point: Point) -> NDArray[np.float32]:
    if point.vector is None:
        raise RuntimeError("the point was asked for with its vector")
    return point.vector
