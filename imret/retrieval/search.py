"""A query and a filter become ranked hits: the one function that command line and Python share.

Hides near copies, groups, offsets and what is said of an answer. What a query means is in
`imret.retrieval.query_vector`, what is asked beside it in `imret.retrieval.conditions`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from imret.datasets.spelling import composed
from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError, some_of
from imret.retrieval.categories import with_stored_categories
from imret.retrieval.category_names import stored_names
from imret.retrieval.collection_encoder import check_same_encoder
from imret.retrieval.conditions import Asked, conditions_on
from imret.retrieval.counts import count_hits
from imret.retrieval.filter_syntax import in_any_spelling
from imret.retrieval.prompts import Names
from imret.retrieval.query import Query, terms_of
from imret.retrieval.query_vector import QueryEmbedder
from imret.retrieval.results import Facet, Hit, Hits, SearchWarning, sort_hits
from imret.retrieval.search_options import SearchOptions
from imret.store import Collection, Filter, Point, Store
from imret.store.payload import file_of

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.retrieval.dedupe import NearCopies
    from imret.sources.opened import Door


def search(
    store: Store | Collection,
    query: Query,
    *,
    encoder: QueryEncoder | None = None,
    filter: Filter | None = None,
    fetch: Callable[[str], bytes] | None = None,
    collection: str = DEFAULT_COLLECTION,
    categories: Sequence[str] = (),
    not_categories: Sequence[str] = (),
    where: Sequence[str] = (),
    limit: int = 10,
    offset: int = 0,
    min_score: float | None = None,
    relevant: bool = False,
    unique: bool = False,
    group_by: str | None = None,
    per_group: int = 3,
    sort: str = "score",
    template: bool = True,
    concepts: bool = True,
    include_self: bool = False,
) -> Hits:
    """Return the pictures of a collection whose meaning is nearest to a query, best first.

    Several terms are one query: the weighted mean of their unit vectors, made unit again, so that scores
    stay cosines. Where words and pictures are mixed, the weights of the pictures are scaled so that both
    spread the scores of the collection alike: pictures are nearer to each other than to any words, and would
    drown them. Words that are subtracted count half; of a picture that is subtracted, what makes it different
    from the best hits (`imret.retrieval.subtraction`).

    Args:
        store: An open store; or a collection that is open, and stays so, in which case its name is not asked.
        query: A str is words; a path or a picture of Pillow's is a picture to find others like it;
            `imret.Term` is anything else, and a sequence of them a sum. See `imret.retrieval.query`.
        encoder: The collection's encoder; loaded by the name the collection keeps if not given, and only if
            there is something to encode. It is then kept until the store (the collection) is closed.
        filter: Only pictures that pass it.
        fetch: Gets the bytes of a URL; by default `imret.retrieval.fetch.fetch_picture`.
        collection: This and all that follow are as in `imret.retrieval.search_options.SearchOptions`.

    Returns:
        Hits; their ranks are those by score. Equal scores rank by id, so the result is deterministic. What
        was left out, and of no hits which condition left none, is in their `notes`; what was left undone is
        told by a `imret.retrieval.results.SearchWarning`.

    Raises:
        DataError: If the query is empty, has nothing that is added, or its terms cancel out; if the
            collection, a category or a stored picture does not exist, a condition cannot be read, or the
            offset is past the end.
        ImageError: If a picture that is asked for cannot be had or decoded.
        ModelMismatch: If the encoder is not the collection's.
        ModelError: If the collection's model cannot be loaded.
    """
    options = SearchOptions(
        collection=collection,
        categories=categories,
        not_categories=not_categories,
        where=where,
        limit=limit,
        offset=offset,
        min_score=min_score,
        relevant=relevant,
        unique=unique,
        group_by=group_by,
        per_group=per_group,
        sort=sort,
        template=template,
        concepts=concepts,
        include_self=include_self,
    )
    return find_hits(store, query, options, encoder=encoder, filter=filter, fetch=fetch)


def warn(message: str) -> None:
    """Tell what a search left undone as Python's warnings do."""
    warnings.warn(message, SearchWarning, stacklevel=2)


def find_hits(
    store: Store | Collection,
    query: Query,
    options: SearchOptions,
    *,
    encoder: QueryEncoder | None = None,
    find_encoder: Callable[[], QueryEncoder] | None = None,
    filter: Filter | None = None,
    fetch: Callable[[str], bytes] | None = None,
    notify: Callable[[str], None] = warn,
    counting: bool = False,
    names: Names | None = None,
    door: Door | None = None,
) -> Hits:
    """Return what `search` does, for options in one; arguments, result and errors are those of `search`.

    Args:
        find_encoder: Where no encoder is given, gives it if something has to be encoded: stored pictures, and
            files of the same bytes, need none. Default: the collection's own.
        notify: Called with what the search left undone, in a sentence.
        counting: Also count all that there are to find, in all and of each category.
        names: What categories are called; None for what is stored with the collection.
        door: Opens pictures that are looked at for near copies; None for `imret.sources.opened.own_door`.
    """
    terms = terms_of(query)
    with _opened(store, options.collection) as collection:
        if encoder is not None:
            check_same_encoder(collection, encoder, store=store)
        conditions = conditions_on(collection, options, filter)
        embedder = QueryEmbedder(
            collection,
            lambda: encoder or (find_encoder() if find_encoder else _encoder_of(collection, store)),
            options.template,
            fetch,
            store=store,
            names=lambda: _names_of(collection, notify) if names is None else names,
            concepts=options.concepts,
        )
        vector = embedder.embed(terms)
        for remark in embedder.left_undone:
            notify(remark)
        asked = Asked(collection, vector, options, tuple(conditions), tuple(dict.fromkeys(embedder.hashes)))
        if options.relevant:
            asked = replace(asked, good_from=embedder.relevance_threshold(terms, vector))
        copies = _copies(options, door)
        points = asked.find(copies)
        if copies is not None and copies.compared:
            notify(
                f"duplicates were looked for among the best {copies.compared:,} hits only, and there are "
                "more. Narrow the search (categories, conditions), or ask for more hits: then it looks "
                "further."
            )
        if copies is not None and copies.refused:
            notify(
                f"pictures of {some_of(sorted(copies.refused))} were not looked at for duplicates: they are "
                "fetched only below a URL that is named (imret serve --root, IMRET_ROOTS)."
            )
        if options.offset and not points:
            _check_offset(asked)
        left_out = asked.count_left_out()
        emptied_by = [] if points else asked.emptied_by()
        counts = count_hits(asked) if counting else None
    hits = [_hit(rank, *found) for rank, found in enumerate(points, start=options.offset + 1)]
    return Hits(
        sort_hits(hits, options.sort),
        left_out=left_out,
        emptied_by=emptied_by,
        remarks=embedder.remarks,
        counts=counts,
        concepts=embedder.concepts,
    )


def _hit(rank: int, point: Point, folded: int) -> Hit:
    return Hit(
        rank=rank,
        score=float(point.score or 0.0),
        id=point.id,
        path=file_of(point.payload),
        category=_category_of(point),
        payload=point.payload,
        folded=folded,
    )


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
        if filter is not None:
            (filter,) = with_stored_categories(opened, [in_any_spelling(filter)])
        stored = opened.facet(field, filter)
    spelled = composed if field == "category" else str
    everywhere: Counter[str] = Counter()
    for value, n in stored.items():
        everywhere[spelled(value)] += n
    among = Counter(spelled(str(hit.payload[field])) for hit in hits if field in hit.payload)
    return sorted(
        (Facet(value, among[value], n) for value, n in everywhere.items()),
        key=lambda facet: (-facet.hits, -facet.images, facet.value),
    )


def _category_of(point: Point) -> str | None:
    category = point.payload.get("category")
    return composed(category) if isinstance(category, str) else category


def _opened(store: Store | Collection, name: str) -> AbstractContextManager[Collection]:
    return closing(store.open(name)) if hasattr(store, "open") else nullcontext(store)


def _names_of(collection: Collection, notify: Callable[[str], None]) -> Names:
    store = collection.store
    return {} if store is None else stored_names(store, collection.name, notify=notify)


def _encoder_of(collection: Collection, owner: Store | Collection) -> QueryEncoder:
    from imret.retrieval.kept_encoders import kept_encoder

    return kept_encoder(owner, collection)


# ---- What is found --------------------------------------------------------------------------------------


def _copies(options: SearchOptions, door: Door | None) -> NearCopies | None:
    """Return what folds near copies for one search, if they are to be; loads what decodes pictures."""
    if not options.unique:
        return None
    from imret.retrieval.dedupe import NearCopies

    return NearCopies(door)


def _check_offset(asked: Asked) -> None:
    options, collection = asked.options, asked.collection
    field = options.group_by
    n = (
        len(collection.facet(field, asked.filter or None))
        if field
        else collection.count(asked.filter or None)
    )
    what = "groups" if field else "pictures"
    if 0 < n <= options.offset:  # where there is none at all, a condition is the reason
        raise DataError(
            f"offset {options.offset:,} is past the end: {n:,} {what} of collection {collection.name!r} pass "
            "the filter."
        )
