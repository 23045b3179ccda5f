"""What an open collection answers to each question of the API: plain values, ready for JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from imret.errors import DataError, ImageError
from imret.images.decode import Source
from imret.retrieval import search as retrieval
from imret.retrieval.categories import with_stored_categories
from imret.retrieval.classify import classify_each
from imret.retrieval.concept_query import Known, known_concepts
from imret.retrieval.counts import composed_counts
from imret.retrieval.filter_syntax import make_filter
from imret.retrieval.limits import MAX_TERMS, MAX_UNIQUE
from imret.retrieval.query import Term, parse_term
from imret.retrieval.results import Hit, HitCounts, WithoutCondition
from imret.retrieval.search_options import SearchOptions
from imret.retrieval.web_address import shown_url
from imret.store import Collection, Filter, Point
from imret.store.payload import file_of
from imret.store.types import is_point_id
from imret.web.errors import NotFound, without_places
from imret.web.images.files import ImageFiles
from imret.web.images.uploads import Upload, Uploads
from imret.web.pool.pooled_collection import PooledCollection
from imret.web.schemas import BrowseQuery, SearchIn, TermIn, Which

_UPLOAD = re.compile(r"(?:([0-9.]+):)?upload:([0-9a-f]{64})")


# ---- Terms --------------------------------------------------------------------------------------


def typed_terms(added: Sequence[str], subtracted: Sequence[str]) -> list[TermIn]:
    """Return the terms of an address: what is typed on the command line, and pictures that were sent.

    Raises:
        DataError: If one cannot be read, or names a file.
    """
    if len(added) + len(subtracted) > MAX_TERMS:
        raise DataError(f"a query has at most {MAX_TERMS} terms, not {len(added) + len(subtracted)}.")
    return [*(_typed_term(text, 1) for text in added), *(_typed_term(text, -1) for text in subtracted)]


def _typed_term(argument: str, sign: int) -> TermIn:
    upload = _UPLOAD.fullmatch(argument)
    if upload:
        weight = parse_term(f"{upload[1]}:x").weight if upload[1] else 1.0
        return TermIn(kind="upload", value=upload[2], weight=sign * weight)
    term = parse_term(argument)
    if term.kind == "image":
        raise DataError(
            f"{term.value!r} names a picture file, and the server reads no files of its clients. Send the "
            f"picture itself; if these are words: text:{term.shown}"
        )
    return TermIn.model_construct(kind=term.kind, value=str(term.value), weight=sign * term.weight)


def resolve_pictures(query_terms: Sequence[TermIn], sent: Sequence[Upload]) -> list[TermIn]:
    """Return terms in which the files of a request have become uploads; those no term names are added.

    Raises:
        DataError: If a term names a file that was not sent.
    """
    named: set[int] = set()
    terms = []
    for term in query_terms:
        if term.kind != "picture":
            terms.append(term)
            continue
        number = int(term.value) if term.value.isascii() and term.value.isdecimal() else len(sent)
        if number >= len(sent):
            raise DataError(
                f"a term asks for file number {term.value!r} of this request, which has {len(sent)}. Files "
                "are counted from 0."
            )
        named.add(number)
        terms.append(TermIn(kind="upload", value=sent[number].sha256, weight=term.weight))
    terms += [
        TermIn(kind="upload", value=upload.sha256, weight=1.0)
        for i, upload in enumerate(sent)
        if i not in named
    ]
    return terms


def library_term(term: TermIn, uploads: Uploads) -> Term:
    """Return a term as the library takes it.

    Raises:
        NotFound: If it is a picture that is not kept any more.
        DataError: If its weight is 0 or there is nothing in it.
    """
    if term.kind != "upload":
        return Term(term.value, term.kind, term.weight)
    upload = uploads.get(term.value)
    if upload is None:
        raise NotFound("a picture of this query is not kept any more. Send it again.")
    return Term(upload.data, "image", term.weight)


def is_slow(query: SearchIn) -> bool:
    """Whether pictures are to be fetched, decoded or compared for a query."""
    return query.unique or any(term.kind in ("url", "upload") for term in query.terms)


# ---- Answers ------------------------------------------------------------------------------------


def search(
    pooled: PooledCollection, query: SearchIn, uploads: Uploads, image_files: ImageFiles
) -> dict[str, Any]:
    """Answer a query: `SearchOut` without the timings.

    Raises:
        What `imret.retrieval.search.search` raises; NotFound for a picture that is not there.
    """
    points = {term.value: stored_point(pooled, term.value) for term in query.terms if term.kind == "id"}
    terms = [library_term(term, uploads) for term in query.terms]
    notes: list[str] = []
    # One more tells whether there is more; folding looks at the files, and as far as it was asked to.
    options = _options(query, limit=query.limit + (0 if query.unique else 1))
    found = retrieval.find_hits(
        pooled.collection,
        terms,
        options,
        encoder=pooled.encoder,
        notify=lambda note: notes.append(without_places(note)),
        counting=query.counts,
        names=pooled.names,
        door=image_files.door,
    )
    hits, more = _without_spare(found, query)
    if more and query.unique and query.group_by is None and query.offset + 2 * query.limit > MAX_UNIQUE:
        more = False  # the next page would be refused
        notes.append(
            f"duplicates are looked for among the first {MAX_UNIQUE:,} hits. Narrow the search to see others."
        )
    return {
        "collection": pooled.name,
        "model": pooled.identity.model,
        "terms": [_term_out(term, points, uploads) for term in query.terms],
        "hits": [_hit_out(hit) for hit in hits],
        "more": more,
        "left_out": found.left_out,
        "emptied_by": [_without_out(without) for without in found.emptied_by],
        "notes": [*found.remarks, *notes],
        "concepts": [asdict(use) for use in found.concepts],
        "counts": None if found.counts is None else _counts_out(found.counts),
    }


def _options(query: SearchIn, *, limit: int) -> SearchOptions:
    return SearchOptions(
        categories=query.category,
        not_categories=query.not_category,
        where=query.where,
        limit=limit,
        offset=query.offset,
        min_score=query.min_score,
        relevant=query.relevant,
        unique=query.unique,
        group_by=query.group_by,
        per_group=query.per_group,
        sort=query.sort,
        template=query.template,
        concepts=query.concepts,
        include_self=query.include_self,
    )


def _filter_of(collection: Collection, query: Which) -> Filter | None:
    asked = make_filter(categories=query.category, not_categories=query.not_category, where=query.where)
    return with_stored_categories(collection, [asked])[0] if asked else None


def _counts_out(counts: HitCounts) -> dict[str, Any]:
    categories = [
        {"category": name, "hits": counts.categories.get(name, 0), "images": n}
        for name, n in counts.images.items()
    ]
    return {
        "hits": counts.hits,
        "complete": counts.complete,
        "uncategorised": counts.uncategorised,
        "categories": categories,
    }


def _hit_out(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "score": round(hit.score, 6),
        "id": hit.id,
        "category": hit.category,
        "path": hit.path,
        "folded": hit.folded,
        "payload": hit.payload,
    }


def _without_out(without: WithoutCondition) -> dict[str, Any]:
    return {
        "conditions": [{"field": field, "value": value} for field, value in without.conditions],
        "kept": without.kept,
        "of": without.of,
        "score": round(without.score, 6),
        "path": without.path,
    }


def _without_spare(hits: list[Hit], query: SearchIn) -> tuple[list[Hit], bool]:
    if query.group_by is not None:
        by_rank = sorted(hits, key=lambda hit: hit.rank)
        groups = list(dict.fromkeys(hit.payload.get(query.group_by) for hit in by_rank))
        shown = groups[: query.limit]
        more = len(groups) > query.limit or (query.unique and len(groups) == query.limit)
        return [hit for hit in hits if hit.payload.get(query.group_by) in shown], more
    if query.unique:
        return hits, len(hits) == query.limit
    last = query.offset + query.limit
    return [hit for hit in hits if hit.rank <= last], len(hits) > query.limit


def _term_out(term: TermIn, points: Mapping[str, Point], uploads: Uploads) -> dict[str, Any]:
    label = term.value
    if term.kind == "url":
        label = shown_url(term.value)
    elif term.kind == "upload":
        upload = uploads.get(term.value)
        label = upload.name if upload is not None else "a picture"
    elif term.kind == "id":
        label = os.path.basename(str(points[term.value].payload["path"]))
    return {"kind": term.kind, "value": term.value, "weight": term.weight, "label": label}


def browse(pooled: PooledCollection, query: BrowseQuery) -> dict[str, Any]:
    """List pictures in order of id: `PicturesOut`. Ids are hashes, so that is a mix of everything.

    Raises:
        DataError: If a category does not exist or a condition cannot be read.
        NotFound: If `after` is no id.
    """
    collection = pooled.collection
    filter = _filter_of(collection, query)
    start = None if query.after is None else _checked_id(query.after)
    points = next(iter(collection.scan(filter, batch_size=query.limit + 1, start=start)), [])
    return {
        "collection": pooled.name,
        "images": collection.count(filter),
        "pictures": [_picture_out(point) for point in points[: query.limit]],
        "next": points[query.limit].id if len(points) > query.limit else None,
    }


def picture(pooled: PooledCollection, id: str) -> dict[str, Any]:
    """Return a stored picture: `PictureOut`.

    Raises:
        NotFound: If there is none of that id.
    """
    return _picture_out(stored_point(pooled, id))


def stored_point(pooled: PooledCollection, id: str) -> Point:
    """Return the point of a picture, without its vector.

    Raises:
        NotFound: If there is none of that id.
    """
    points = pooled.collection.get([_checked_id(id)])
    if not points:
        raise NotFound(f"collection {pooled.name!r} has no picture with the id {id}.")
    return points[id]


def categories(pooled: PooledCollection, query: Which) -> dict[str, Any]:
    """Count the pictures of each category: `CategoriesOut`.

    Raises:
        DataError: If a category does not exist or a condition cannot be read.
    """
    filter = _filter_of(pooled.collection, query)
    images = pooled.collection.count(filter)
    counts = composed_counts(pooled.collection.facet("category", filter))
    return {
        "collection": pooled.name,
        "images": images,
        "uncategorised": max(0, images - sum(counts.values())),  # it may be written to between the two
        "categories": [{"category": name, "images": n} for name, n in counts.items()],
    }


def classify(
    pooled: PooledCollection,
    image_files: ImageFiles,
    *,
    sent: Sequence[Upload],
    ids: Sequence[str],
    labels: Sequence[str],
    top_k: int,
    with_concepts: bool = True,
) -> dict[str, Any]:
    """Say what pictures show: `ClassifyOut`. Without labels, the collection's categories are taken.

    Raises:
        NotFound: If there is no picture of an id.
        DataError: If there are no pictures, or the labels are too few, empty or the same.
    """
    points = [stored_point(pooled, id) for id in ids]
    names = [*(upload.name for upload in sent), *(str(point.payload["path"]) for point in points)]
    if not names:
        raise DataError("there is no picture to classify. Send one, or give the id of a stored one.")
    reasons: dict[int, str] = {}

    def sources() -> Iterator[Source]:
        yield from (upload.data for upload in sent)
        for i, point in enumerate(points, start=len(sent)):
            try:
                yield image_files.original(point.payload).read()
            except (ImageError, OSError) as error:
                reasons[i] = str(error)
                yield b""

    labels = list(labels) or list(pooled.collection.facet("category"))
    store = pooled.collection.store
    known = known_concepts(store, pooled.name, pooled.encoder) if store and with_concepts else Known()
    found = classify_each(
        sources(), labels, encoder=pooled.encoder, names=pooled.names, concepts=known.concepts, top_k=top_k
    )
    results = list(found)
    return {
        "expected_error": next((one.expected_error for one in results if one.predictions), None),
        "notes": [without_places(remark) for remark in known.remarks],
        "pictures": [
            {
                "name": name,
                "predictions": [
                    {
                        "label": prediction.label,
                        "probability": prediction.probability,
                        "score": round(prediction.score, 6),
                        "learnt": prediction.learnt,
                    }
                    for prediction in result.predictions
                ],
                "reason": reasons.get(i, result.reason),
            }
            for i, (name, result) in enumerate(zip(names, results, strict=True))
        ],
    }


def _picture_out(point: Point) -> dict[str, Any]:
    return {
        "id": point.id,
        "category": point.payload.get("category"),
        "path": file_of(point.payload),
        "payload": point.payload,
    }


def _checked_id(text: str) -> str:
    if is_point_id(text):
        return text
    raise NotFound(f"{text[:100]!r} is not the id of a picture.")
