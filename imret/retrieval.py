"""A query and a filter become ranked hits: the one function that command line and Python share.

Hides the prompt templates, the check that query and collection come from one encoder, and the naming of
categories that do not exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret import DEFAULT_COLLECTION, DEFAULT_MODEL
from imret.errors import DataError, ModelMismatch
from imret.payload import file_of
from imret.store import Collection, Filter, Match, Store

if TYPE_CHECKING:
    from imret.encoder import Encoder

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
    """

    rank: int
    score: float
    id: str
    path: str
    category: str | None
    payload: dict[str, Any] = field(repr=False)


def search(
    store: Store,
    query: str,
    *,
    collection: str = DEFAULT_COLLECTION,
    encoder: Encoder | None = None,
    categories: Sequence[str] = (),
    limit: int = 10,
    template: bool = True,
) -> list[Hit]:
    """Return the pictures of a collection whose meaning is nearest to a text, best first.

    Args:
        store: An open store.
        query: What to look for, in words.
        collection: Where to look.
        encoder: The collection's encoder; loaded by the name the collection keeps if not given.
        categories: Only pictures of any of these; empty for all.
        limit: Hits at most, >= 1.
        template: Whether a query of up to three words is put into prompt templates, averaged.

    Returns:
        At most `limit` hits. Equal scores rank by id, so the result is deterministic.

    Raises:
        DataError: If the query is empty, or the collection or a category does not exist; the message
            names those that do.
        ModelMismatch: If the encoder is not the collection's.
        ModelError: If the collection's model cannot be loaded.
    """
    if not query.strip():
        raise DataError('the query is empty. Say what to look for, for example: imret search "mushroom"')
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    with closing(store.open(collection)) as opened:
        if encoder is None:
            encoder = encoder_for(store, collection)
        check_same_encoder(opened, encoder)
        check_categories(opened, categories)
        only = Filter(must=(Match("category", tuple(categories)),)) if categories else None
        vector = query_vector(encoder, query, template=template)
        points = opened.search(vector, limit=limit, filter=only)
    return [
        Hit(
            rank=rank,
            score=float(point.score or 0.0),
            id=point.id,
            path=file_of(point.payload),
            category=point.payload.get("category"),
            payload=point.payload,
        )
        for rank, point in enumerate(points, start=1)
    ]


def query_vector(encoder: Encoder, query: str, *, template: bool = True) -> NDArray[np.float32]:
    """Return the (D,) unit embedding of a text query.

    A query of up to three words is put into each of `TEMPLATES`; the unit embeddings are averaged and made
    unit again. A longer one is a caption already and is taken as it is.
    """
    words = " ".join(query.split())
    if not template or len(words.split()) > TEMPLATE_MAX_WORDS:
        texts = [words]
    else:
        texts = [frame.format(words) for frame in TEMPLATES]
    mean = encoder.encode_texts(texts).mean(axis=0)
    unit: NDArray[np.float32] = (mean / np.linalg.norm(mean)).astype(np.float32)
    return unit


def encoder_for(
    store: Store,
    collection: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    notify: Callable[[str], None] | None = None,
    existing: bool = False,
) -> Encoder:
    """Return an encoder for a collection: the one named, else the collection's own, else the default.

    Args:
        store: An open store.
        collection: Name.
        model: Model name; None for the one the collection keeps.
        arch: Architecture, where the model is a bare checkpoint file.
        device: As for `Encoder`.
        precision: As for `Encoder`.
        notify: Called with a line for the user before anything large is downloaded.
        existing: Whether the collection has to exist: a name that does not is then refused before the
            default model is downloaded for it.

    Raises:
        DataError: If the collection has to exist and does not.
        ModelError: If the model cannot be found.
    """
    from imret.encoder import Encoder

    if existing and store.live(collection) is None:
        store.open(collection).close()  # says which there are
    if model is None:
        live = store.live(collection)
        model = DEFAULT_MODEL if live is None else live.model
    return Encoder(model, arch=arch, device=device, precision=precision, notify=notify)


def check_same_encoder(collection: Collection, encoder: Encoder) -> None:
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
