"""A query and a filter become ranked hits: the one function that command line and Python share.

Hides near copies, groups, offsets and the naming of categories that do not exist. What a query means is in
`imret.retrieval.query_vector`.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError
from imret.retrieval.collection_encoder import check_same_encoder
from imret.retrieval.dedupe import fold_near_copies
from imret.retrieval.query import Query, terms_of
from imret.retrieval.query_vector import QueryEmbedder
from imret.retrieval.results import SORTS, Facet, Hit, sort_hits
from imret.settings import DEFAULT_COLLECTION
from imret.store import Collection, Filter, Match, Point, Store
from imret.store.payload import file_of

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder


def search(
    store: Store | Collection,
    query: Query,
    *,
    collection: str = DEFAULT_COLLECTION,
    encoder: QueryEncoder | None = None,
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
        store: An open store; or a collection that is open, and stays so, in which case its name is not asked.
        query: A str is words; a path or a picture of Pillow's is a picture to find others like it;
            `imret.Term` is anything else, and a sequence of them a sum. See `imret.retrieval.query`.
        collection: Where to look.
        encoder: The collection's encoder; loaded by the name the collection keeps if not given, and only if
            there is something to encode.
        categories: Only pictures of any of these; empty for all.
        filter: Only pictures that pass it.
        limit: Hits at most, >= 1; with `group_by`, groups.
        offset: Best hits (groups) to leave out, >= 0.
        min_score: Least cosine, in [-1, 1].
        relevant: Whether to end where the answers end, which may be at once; see `imret.retrieval.relevance`.
        unique: Whether near copies are folded into the best of them; `Hit.folded` counts them, as far as they
            rank among twice as many hits as are asked for. Looks at the files, where they can be read.
        group_by: A payload field, "category" say: the best `per_group` hits of each of its values, in the
            order of the best of each. Pictures without the field are in no group.
        per_group: Hits of each group at most, >= 1.
        sort: How the hits that were found are listed: "score", "date" (newest first) or "path".
        template: Whether words, up to three, are put into prompt templates, averaged.
        include_self: Whether a picture that is asked for may be among its own hits, as far as it is the same
            file by its bytes.
        fetch: Gets the bytes of a URL; by default `imret.retrieval.fetch.fetch_picture`.

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
    with _opened(store, collection) as opened:
        if encoder is not None:
            check_same_encoder(opened, encoder)
        only = Filter(must=(Match("category", tuple(categories)),)) if categories else Filter()
        if filter is not None:
            only = Filter((*only.must, *filter.must), (*only.must_not, *filter.must_not))
        named = [one for one in (*only.must, *only.must_not) if isinstance(one, Match)]
        check_categories(opened, [str(v) for one in named if one.field == "category" for v in one.values])
        asked = QueryEmbedder(opened, lambda: encoder or _encoder_of(opened), template, fetch)
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
    return sort_hits(hits, sort)


def facets(
    store: Store | Collection,
    hits: Sequence[Hit],
    *,
    collection: str = DEFAULT_COLLECTION,
    field: str = "category",
    filter: Filter | None = None,
) -> list[Facet]:
    """Return how hits and the whole collection spread over the values of a payload field.

    Args:
        store: An open store, or an open collection of it.
        hits: From `search`.
        collection: Where they were found.
        field: Of the payload.
        filter: Count only pictures that pass it.

    Returns:
        One for each value, that of most hits first, then of most pictures.
    """
    with _opened(store, collection) as opened:
        everywhere = opened.facet(field, filter)
    among = Counter(str(hit.payload[field]) for hit in hits if field in hit.payload)
    return sorted(
        (Facet(value, among[value], n) for value, n in everywhere.items()),
        key=lambda facet: (-facet.hits, -facet.images, facet.value),
    )


def _opened(store: Store | Collection, name: str) -> AbstractContextManager[Collection]:
    return closing(store.open(name)) if hasattr(store, "open") else nullcontext(store)


def _encoder_of(collection: Collection) -> QueryEncoder:
    from imret.models.lazy_encoder import LazyEncoder

    return LazyEncoder(collection.identity.model)


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
        folded = fold_near_copies(enough) if unique else [(point, 0) for point in enough]
        if len(folded) >= wanted or len(enough) < ask:
            return folded[offset:wanted]
        ask *= 4


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
