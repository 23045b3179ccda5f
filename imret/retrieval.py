"""A query and a filter become ranked hits: the one function that command line and Python share.

Hides how terms become one vector, the prompt templates, near copies and groups, the check that query and
collection come from one encoder, and the naming of categories that do not exist.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret import DEFAULT_COLLECTION, DEFAULT_MODEL, relevance
from imret.errors import DataError, ImageError, ModelMismatch
from imret.payload import file_of, point_id
from imret.phrases import read_phrases
from imret.query import LOOKED_AT, Query, Term, path_of_term, terms_of
from imret.store import Collection, Filter, Match, Point, Store

if TYPE_CHECKING:
    from imret.encoder import Encoder
    from imret.querycache import CachedEncoder

# CLIP learnt from captions, which are rarely one bare word. Radford et al. (2021), "Learning Transferable
# Visual Models From Natural Language Supervision", section 3.1.4, measured what such frames bring.
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a close-up photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
)
TEMPLATE_MAX_WORDS = 3

SORTS = ("score", "date", "path")
# Points whose vectors tell how a query's scores are spread.
SAMPLE = 512
_LOOK_SIZE = (252, 252)  # what the limits of imret.likeness were measured at


@dataclass(frozen=True)
class Hit:
    """One ranked result.

    Attributes:
        rank: 1 for the best.
        score: Cosine of query and picture, in [-1, 1].
        id: Point id in the collection.
        path: Absolute path of the picture; may hold surrogate escapes.
        category: Its category, or None.
        payload: Everything stored beside its vector.
        folded: Near copies that it stands for; 0 unless they were asked to be folded.
    """

    rank: int
    score: float
    id: str
    path: str
    category: str | None
    payload: dict[str, Any] = field(repr=False)
    folded: int = 0


@dataclass(frozen=True)
class Facet:
    """How often a value of a payload field occurs.

    Attributes:
        value: Of the field.
        hits: Among the hits.
        images: In the whole collection.
    """

    value: str
    hits: int
    images: int


def search(
    store: Store,
    query: Query,
    *,
    collection: str = DEFAULT_COLLECTION,
    encoder: Encoder | None = None,
    categories: Sequence[str] = (),
    filter: Filter | None = None,
    limit: int = 10,
    offset: int = 0,
    min_score: float | None = None,
    relevant: bool = False,
    unique: bool = False,
    group_by: str | None = None,
    per_group: int = 3,
    sort: str = "score",
    template: bool = True,
    include_self: bool = False,
    fetch: Callable[[str], bytes] | None = None,
) -> list[Hit]:
    """Return the pictures of a collection whose meaning is nearest to a query, best first.

    Several terms are one query: the weighted mean of their unit vectors, made unit again, so that scores
    stay cosines. Where words and pictures are mixed, the weights of the pictures are scaled so that both
    spread the scores of the collection alike: pictures are nearer to each other than to any words, and would
    drown them.

    Args:
        store: An open store.
        query: A str is words; a path or a picture of Pillow's is a picture to find others like it;
            `imret.Term` is anything else, and a sequence of them a sum. See `imret.query`.
        collection: Where to look.
        encoder: The collection's encoder; loaded by the name the collection keeps if not given, and only if
            there is something to encode.
        categories: Only pictures of any of these; empty for all.
        filter: Only pictures that pass it.
        limit: Hits at most, >= 1; with `group_by`, groups.
        offset: Best hits (groups) to leave out, >= 0.
        min_score: Least cosine, in [-1, 1].
        relevant: Whether to end where the answers end, which may be at once; see `imret.relevance`.
        unique: Whether near copies are folded into the best of them; `Hit.folded` counts them, as far as they
            rank among twice as many hits as are asked for. Looks at the files, where they can be read.
        group_by: A payload field, "category" say: the best `per_group` hits of each of its values, in the
            order of the best of each. Pictures without the field are in no group.
        per_group: Hits of each group at most, >= 1.
        sort: How the hits that were found are listed: "score", "date" (newest first) or "path".
        template: Whether words, up to three, are put into prompt templates, averaged.
        include_self: Whether a picture that is asked for may be among its own hits, as far as it is the same
            file by its bytes.
        fetch: Gets the bytes of a URL; by default `imret.fetch.fetch_picture`.

    Returns:
        Hits; their ranks are those by score. Equal scores rank by id, so the result is deterministic.

    Raises:
        DataError: If the query is empty, has nothing that is added, or its terms cancel out; if the
            collection, a category or a stored picture does not exist, or the offset is past the end.
        ImageError: If a picture that is asked for cannot be had or decoded.
        ModelMismatch: If the encoder is not the collection's.
        ModelError: If the collection's model cannot be loaded.
    """
    terms = terms_of(query)
    _check_numbers(limit=limit, per_group=per_group, offset=offset, min_score=min_score, sort=sort)
    with closing(store.open(collection)) as opened:
        if encoder is not None:
            check_same_encoder(opened, encoder)
        check_categories(opened, categories)
        only = Filter(must=(Match("category", tuple(categories)),)) if categories else Filter()
        if filter is not None:
            only = Filter((*only.must, *filter.must), (*only.must_not, *filter.must_not))
        asked = _Asked(opened, lambda: encoder or encoder_for(store, collection), template, fetch)
        vector = asked.vector(terms)
        if asked.hashes and not include_self:
            only = Filter(only.must, (*only.must_not, Match("sha256", tuple(asked.hashes))))
        least = -math.inf if min_score is None else min_score
        if relevant:
            least = max(least, asked.least(terms, vector, only))
        if group_by is None:
            points = _best(opened, vector, only, offset, limit, least, unique)
        else:
            points = _groups(opened, vector, only, group_by, per_group, offset, limit, least, unique)
        if offset and not points:
            _check_offset(opened, offset, only, group_by)
    hits = [
        Hit(
            rank=rank,
            score=float(point.score or 0.0),
            id=point.id,
            path=file_of(point.payload),
            category=point.payload.get("category"),
            payload=point.payload,
            folded=folded,
        )
        for rank, (point, folded) in enumerate(points, start=offset + 1)
    ]
    if sort == "date":
        hits.sort(key=lambda hit: str(hit.payload.get("modified", "")), reverse=True)
    elif sort == "path":
        hits.sort(key=lambda hit: hit.path)
    return hits


def facets(
    store: Store,
    hits: Sequence[Hit],
    *,
    collection: str = DEFAULT_COLLECTION,
    field: str = "category",
    filter: Filter | None = None,
) -> list[Facet]:
    """Return how hits and the whole collection spread over the values of a payload field.

    Args:
        store: An open store.
        hits: From `search`.
        collection: Where they were found.
        field: Of the payload.
        filter: Count only pictures that pass it.

    Returns:
        One for each value, that of most hits first, then of most pictures.
    """
    with closing(store.open(collection)) as opened:
        everywhere = opened.facet(field, filter)
    among = Counter(str(hit.payload[field]) for hit in hits if field in hit.payload)
    return sorted(
        (Facet(value, among[value], n) for value, n in everywhere.items()),
        key=lambda facet: (-facet.hits, -facet.images, facet.value),
    )


# ---- What is asked --------------------------------------------------------------------------------------


class _Asked:
    """The terms of one query on their way to one vector; encodes and samples as little as it can."""

    def __init__(
        self,
        collection: Collection,
        encoder: Callable[[], Encoder],
        template: bool,
        fetch: Callable[[str], bytes] | None,
    ) -> None:
        self._collection, self._get_encoder = collection, encoder
        self._template, self._fetch = template, fetch
        self.hashes: list[str] = []  # of the files that are asked for

    @cached_property
    def _encoder(self) -> Encoder:
        encoder = self._get_encoder()
        check_same_encoder(self._collection, encoder)
        return encoder

    @cached_property
    def _sample(self) -> NDArray[np.float32]:
        """(N, D) unit vectors of the collection; ids are hashes, so the first of them are a random choice."""
        for points in self._collection.scan(vectors=True, batch_size=SAMPLE):
            return np.stack([_vector_of(point) for point in points])
        return np.zeros((0, self._collection.identity.dim), dtype=np.float32)

    @cached_property
    def _phrases(self) -> NDArray[np.float32]:
        """(P, D) unit vectors of everyday phrases."""
        return self._encoder.encode_texts(read_phrases())

    def vector(self, terms: Sequence[Term]) -> NDArray[np.float32]:
        """Return the (D,) unit vector of all terms together.

        Raises:
            DataError: If they cancel out.
        """
        self._vectors = [self._vector(term) for term in terms]
        weights = np.array([term.weight for term in terms])
        looked_at = np.array([term.kind in LOOKED_AT for term in terms])
        if looked_at.any() and not looked_at.all() and len(self._sample) > 1:
            spread = (self._sample @ np.stack(self._vectors).T).std(axis=0)  # (terms,)
            words, pictures = spread[~looked_at].mean(), spread[looked_at].mean()
            if words > 0 and pictures > 0:
                weights = np.where(looked_at, weights * words / pictures, weights)
        total = (weights[:, None] * np.stack(self._vectors)).sum(axis=0)
        length = float(np.linalg.norm(total))
        if length < 1e-3 * float(np.abs(weights).sum()):
            raise DataError(
                f"the terms of the query cancel out ({' '.join(term.shown for term in terms)}): what is "
                "added is subtracted again. Leave one out, or change its weight."
            )
        unit: NDArray[np.float32] = (total / length).astype(np.float32)
        return unit

    def least(self, terms: Sequence[Term], vector: NDArray[np.float32], only: Filter) -> float:
        """Return the score at which the answers end; infinite where there are none."""
        best = self._collection.search(vector, limit=relevance.BEST, filter=only)
        if not best or not len(self._sample):
            return math.inf
        added = [(term, one) for term, one in zip(terms, self._vectors, strict=True) if term.weight > 0]
        words = [one for term, one in added if term.kind == "text"]
        phrases = self._sample @ self._phrases.T if len(words) == len(added) else None
        scores = np.array([point.score for point in best], dtype=np.float32)
        end = relevance.cut(self._sample @ vector, scores, phrases)
        found = self._collection.get([point.id for point in best if (point.score or 0) >= end], vectors=True)
        hits = np.stack([_vector_of(point) for point in found.values()])
        for term, one in added:
            own = vector if len(added) == len(terms) == 1 else one
            about = (
                relevance.about_words(hits @ own, hits @ self._phrases.T)
                if term.kind == "text"
                else relevance.about_picture(hits @ own, hits @ self._sample.T)
            )
            if not about:
                return math.inf
        return end

    def _vector(self, term: Term) -> NDArray[np.float32]:
        if term.kind == "text":
            return query_vector(self._encoder, str(term.value), template=self._template)
        if term.kind in ("id", "stored"):
            return self._stored(self._find(term))
        if not isinstance(term.value, str):
            return self._encoder.encode_images([term.value])[0]
        if term.kind == "url":
            return self._looked_at(self._get(term.value), term.value)
        path = path_of_term(term.value)
        try:
            data = Path(path).read_bytes() if os.path.isfile(path) else None
        except OSError as error:
            raise ImageError(f"cannot read the picture {path!r}: {error.strerror}.") from error
        if data is None:
            hint = "" if os.path.isdir(path) else f" If these are words: text:{term.value}"
            what = "is a folder" if os.path.isdir(path) else "does not exist"
            raise ImageError(f"the picture {path!r} {what}.{hint}")
        digest = hashlib.sha256(data).hexdigest()
        for points in self._collection.scan(
            Filter((Match("sha256", (digest,)),)), vectors=True, batch_size=1
        ):
            return self._stored(points[0])  # it is in the collection: no model is needed
        return self._looked_at(data, path)

    def _get(self, url: str) -> bytes:
        if self._fetch is None:
            from imret.fetch import fetch_picture

            return fetch_picture(url)
        return self._fetch(url)

    def _looked_at(self, data: bytes, name: str) -> NDArray[np.float32]:
        from imret.images import load_image

        try:
            image = load_image(data)
        except ImageError as error:
            raise ImageError(f"cannot use the picture {name!r}: {error}") from error
        self.hashes.append(hashlib.sha256(data).hexdigest())
        return self._encoder.encode_images([image])[0]

    def _stored(self, point: Point) -> NDArray[np.float32]:
        self.hashes.append(str(point.payload["sha256"]))
        return _vector_of(point)

    def _find(self, term: Term) -> Point:
        """Return a stored picture by its id or its path.

        Raises:
            DataError: If there is none, or several.
        """
        value, name = str(term.value), self._collection.name
        if term.kind == "id":
            found = self._collection.get([value], vectors=True)
            if not found:
                raise DataError(f"collection {name!r} has no picture with the id {value}.")
            return found[value]
        sources = self._collection.facet("source")
        absolute = os.path.abspath(os.path.expanduser(value))
        places = [
            (source, os.path.relpath(absolute, source).replace(os.sep, "/"))
            for source in sources
            if absolute.startswith(source.rstrip(os.sep) + os.sep)
        ]
        ids = [point_id(*place) for place in [*places, *((source, value) for source in sources)]]
        points = self._collection.get(list(dict.fromkeys(ids)), vectors=True)
        if len(points) == 1:
            return next(iter(points.values()))
        if not points:
            raise DataError(
                f"collection {name!r} has no picture at {value!r}. Give a path as in the hits of "
                "`imret search --format paths`, or one below the folder that was ingested."
            )
        several = ", ".join(sorted(file_of(point.payload) for point in points.values()))
        raise DataError(
            f"several pictures of collection {name!r} are at {value!r}: {several}. Give a whole path."
        )


def _vector_of(point: Point) -> NDArray[np.float32]:
    if point.vector is None:
        raise RuntimeError("the point was asked for with its vector")
    return point.vector


# ---- What is found --------------------------------------------------------------------------------------


def _best(
    collection: Collection,
    vector: NDArray[np.float32],
    only: Filter,
    offset: int,
    limit: int,
    least: float,
    unique: bool,
) -> list[tuple[Point, int]]:
    """Return points from `offset` on with at least a score, and how many near copies each stands for."""
    if math.isinf(least) and least > 0:
        return []
    wanted = offset + limit
    ask = 2 * wanted if unique else wanted
    while True:
        points = collection.search(vector, limit=ask, filter=only or None)
        enough = [point for point in points if (point.score or 0.0) >= least]
        folded = _fold(enough) if unique else [(point, 0) for point in enough]
        if len(folded) >= wanted or len(enough) < ask:
            return folded[offset:wanted]
        ask *= 4


def _fold(points: Sequence[Point]) -> list[tuple[Point, int]]:
    """Return the best of every group of near copies, in order, and how many others each stands for.

    Copies have the same bytes, or look alike by `imret.likeness`, whose judgement of photos saved anew,
    smaller or brighter is better than that of an encoder. Files that cannot be read have their bytes alone.
    """
    from concurrent.futures import ThreadPoolExecutor

    from imret.images import fit_image, load_image
    from imret.likeness import Look, alike, group, look_at

    def look(point: Point) -> Look | None:
        try:
            return look_at(np.asarray(fit_image(load_image(file_of(point.payload)), size=_LOOK_SIZE)))
        except ImageError:
            return None

    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(look, points))
    seen = [i for i, one in enumerate(looks) if one is not None]
    pairs = [(seen[i], seen[j]) for i, j in alike([one for one in looks if one is not None])]
    by_hash: dict[str, int] = {}
    for i, point in enumerate(points):
        first = by_hash.setdefault(str(point.payload.get("sha256", point.id)), i)
        pairs += [(first, i)] if first != i else []
    groups = group(len(points), pairs)
    sizes = Counter(groups.tolist())
    return [(point, sizes[i] - 1) for i, point in enumerate(points) if groups[i] == i]


def _groups(
    collection: Collection,
    vector: NDArray[np.float32],
    only: Filter,
    field: str,
    per_group: int,
    offset: int,
    limit: int,
    least: float,
    unique: bool,
) -> list[tuple[Point, int]]:
    """Return the best points of each value of a field; one exact filtered search a value."""
    found = []
    for value in collection.facet(field, only or None):
        of_value = Filter((*only.must, Match(field, (value,))), only.must_not)
        points = _best(collection, vector, of_value, 0, per_group, least, unique)
        if points:
            found.append(points)
    found.sort(key=lambda points: (-(points[0][0].score or 0.0), points[0][0].id))
    return [one for points in found[offset : offset + limit] for one in points]


def _check_offset(collection: Collection, offset: int, only: Filter, group_by: str | None) -> None:
    n = len(collection.facet(group_by, only or None)) if group_by else collection.count(only or None)
    what = "groups" if group_by else "pictures"
    if offset >= n:
        raise DataError(
            f"offset {offset:,} is past the end: {n:,} {what} of collection {collection.name!r} pass the "
            "filter."
        )


def _check_numbers(*, limit: int, per_group: int, offset: int, min_score: float | None, sort: str) -> None:
    for name, value in (("limit", limit), ("per_group", per_group)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if offset < 0:
        raise ValueError(f"offset must be at least 0, not {offset}")
    if min_score is not None and not -1 <= min_score <= 1:
        raise ValueError(f"min_score is a cosine, in [-1, 1], not {min_score}")
    if sort not in SORTS:
        raise ValueError(f"sort must be one of {', '.join(SORTS)}, not {sort!r}")


# ---- Words, and whose encoder ---------------------------------------------------------------------------


def query_vector(
    encoder: Encoder | CachedEncoder, query: str, *, template: bool = True
) -> NDArray[np.float32]:
    """Return the (D,) unit embedding of a text query.

    A query of up to three words is put into each of `TEMPLATES`; the unit embeddings are averaged and made
    unit again. A longer one is a caption already and is taken as it is.
    """
    words = " ".join(query.split())
    if not template or len(words.split()) > TEMPLATE_MAX_WORDS:
        texts = [words]
    else:
        texts = [frame.format(words) for frame in TEMPLATES]
    return encoder.encode_mean(texts)


def encoder_for(
    store: Store,
    collection: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    notify: Callable[[str], None] | None = None,
) -> Encoder:
    """Return an encoder for a collection: the one named, else the collection's own, else the default.

    Args:
        store: An open store.
        collection: Name; it need not exist yet.
        model: Model name; None for the one the collection keeps.
        arch: Architecture, where the model is a bare checkpoint file.
        device: As for `Encoder`.
        precision: As for `Encoder`.
        notify: Called with a line for the user before anything large is downloaded.

    Raises:
        ModelError: If the model cannot be found.
    """
    from imret.encoder import Encoder

    model = _model_for(store, collection, model)
    return Encoder(model, arch=arch, device=device, precision=precision, notify=notify)


def query_encoder_for(
    store: Store,
    collection: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    notify: Callable[[str], None] | None = None,
) -> CachedEncoder:
    """Return what `encoder_for` does, for asking: a text asked before needs neither torch nor the model.

    Raises:
        ModelError: If the model cannot be found.
    """
    from imret.querycache import CachedEncoder

    model = _model_for(store, collection, model)
    return CachedEncoder(model, arch=arch, device=device, precision=precision, notify=notify)


def _model_for(store: Store, collection: str, model: str | None) -> str:
    if model is not None:
        return model
    live = store.live(collection)
    return DEFAULT_MODEL if live is None else live.model


def check_same_encoder(collection: Collection, encoder: Encoder | CachedEncoder) -> None:
    """Refuse an encoder whose image tower is not the one that made the collection.

    Raises:
        ModelMismatch: If the fingerprints differ, though the dimensions may agree.
    """
    mine, theirs = collection.identity, encoder.images_fingerprint
    if mine.fingerprint == theirs:
        return
    if mine.model == encoder.model_id:
        raise ModelMismatch(
            f"the model {mine.model!r} has changed since collection {collection.name!r} was built: "
            f"its fingerprint was {mine.fingerprint[:8]} and is {theirs[:8]} now.\n"
            f"Put the old weights back, or rebuild: imret ingest SOURCE --collection {collection.name} "
            f"--model {mine.model} --rebuild"
        )
    raise ModelMismatch(
        f"collection {collection.name!r} was built with {mine.model!r} ({mine.fingerprint[:8]}), "
        f"but this search uses {encoder.model_id!r} ({theirs[:8]}).\n"
        f"Search with --model {mine.model} (or none), or rebuild: imret ingest SOURCE "
        f"--collection {collection.name} --model {encoder.model_id} --rebuild"
    )


def check_categories(collection: Collection, categories: Sequence[str]) -> None:
    """Refuse a category that the collection does not have.

    Raises:
        DataError: Naming the unknown category and those that exist, nearest spelling first.
    """
    if not categories:
        return
    existing = collection.facet("category")
    for name in categories:
        if name in existing:
            continue
        if not existing:
            raise DataError(
                f"no category {name!r}: the pictures of collection {collection.name!r} have no categories. "
                "Search without --category."
            )
        near = difflib.get_close_matches(name, existing, n=len(existing), cutoff=0.6)
        listed = [*near, *(other for other in sorted(existing) if other not in near)]
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"no category {name!r} in collection {collection.name!r}.{meant}\nThere are: {', '.join(listed)}"
        )
