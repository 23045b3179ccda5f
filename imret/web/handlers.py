"""What an open collection answers to each question of the API: plain values, ready for JSON."""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imret.errors import DataError, ImageError
from imret.images.decode import Source
from imret.retrieval import search as retrieval
from imret.retrieval.classify import classify_each
from imret.retrieval.fetch import shown_url
from imret.retrieval.filters import make_filter
from imret.retrieval.query import Term, parse_term
from imret.retrieval.results import Hit
from imret.store import Filter, Point
from imret.store.payload import file_of
from imret.web.errors import NotFound
from imret.web.images.files import ImageFiles
from imret.web.images.uploads import Upload, Uploads
from imret.web.pool.served import PooledCollection
from imret.web.schemas import MAX_TERMS, BrowseQuery, SearchIn, TermIn, Which

# Of how many best hits the spread over categories is told.
COUNTED = 200

_UPLOAD = re.compile(r"(?:([0-9.]+):)?upload:([0-9a-f]{64})")


# ---- Terms --------------------------------------------------------------------------------------


def typed_terms(added: Sequence[str], subtracted: Sequence[str]) -> list[TermIn]:
    """Return the terms of an address: what is typed on the command line, and pictures that were sent.

    Raises:
        DataError: If one cannot be read, or names a file.
    """
    if len(added) + len(subtracted) > MAX_TERMS:
        raise DataError(f"a query has at most {MAX_TERMS} terms, not {len(added) + len(subtracted)}.")
    return [*(_typed(one, 1) for one in added), *(_typed(one, -1) for one in subtracted)]


def _typed(argument: str, sign: int) -> TermIn:
    sent = _UPLOAD.fullmatch(argument)
    if sent:
        weight = parse_term(f"{sent[1]}:x").weight if sent[1] else 1.0
        return TermIn(kind="upload", value=sent[2], weight=sign * weight)
    term = parse_term(argument)
    if term.kind == "image":
        raise DataError(
            f"{term.value!r} names a picture file, and the server reads no files of its clients. Send the "
            f"picture itself; if these are words: text:{term.shown}"
        )
    return TermIn.model_construct(kind=term.kind, value=str(term.value), weight=sign * term.weight)


def known_terms(asked: Sequence[TermIn], sent: Sequence[Upload]) -> list[TermIn]:
    """Return terms in which the files of a request have become uploads; those no term names are added.

    Raises:
        DataError: If a term names a file that was not sent.
    """
    named: set[int] = set()
    terms = []
    for term in asked:
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
        TermIn(kind="upload", value=one.sha256, weight=1.0) for i, one in enumerate(sent) if i not in named
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


def is_slow(asked: SearchIn) -> bool:
    """Whether pictures are to be fetched, decoded or compared for a query."""
    return asked.unique or any(term.kind in ("url", "upload") for term in asked.terms)


# ---- Answers ------------------------------------------------------------------------------------


def search(served: PooledCollection, asked: SearchIn, uploads: Uploads) -> dict[str, Any]:
    """Answer a query: `SearchOut` without the timings.

    Raises:
        What `imret.retrieval.search.search` raises; NotFound for a picture that is not there.
    """
    collection = served.collection
    named = {term.value: stored(served, term.value) for term in asked.terms if term.kind == "id"}
    terms = [library_term(term, uploads) for term in asked.terms]
    only = make_filter(categories=asked.category, not_categories=asked.not_category, where=asked.where)
    # One more tells whether there is more; folding looks at the files, and as far as it was asked to.
    spare = 0 if asked.unique else 1

    def find(filter: Filter | None, limit: int, **how: Any) -> list[Hit]:
        return retrieval.search(
            collection,
            terms,
            encoder=served.encoder,
            filter=filter,
            limit=limit,
            min_score=asked.min_score,
            relevant=asked.relevant,
            template=asked.template,
            include_self=asked.include_self,
            **how,
        )

    hits = find(
        only,
        asked.limit + spare,
        offset=asked.offset,
        unique=asked.unique,
        group_by=asked.group_by,
        per_group=asked.per_group,
        sort=asked.sort,
    )
    hits, more = _without_spare(hits, asked)
    counts = None
    if asked.counts:
        everywhere = make_filter(where=asked.where)
        best = find(everywhere, COUNTED)
        among = Counter(hit.category for hit in best if hit.category is not None)
        counts = {
            "of": COUNTED,
            "hits": len(best),
            "categories": [
                {"category": name, "hits": among[name], "images": n}
                for name, n in collection.facet("category", everywhere).items()
            ],
        }
    return {
        "collection": served.name,
        "model": served.identity.model,
        "terms": [_shown(term, named, uploads) for term in asked.terms],
        "hits": [
            {
                "rank": hit.rank,
                "score": round(hit.score, 6),
                "id": hit.id,
                "category": hit.category,
                "path": hit.path,
                "folded": hit.folded,
                "payload": hit.payload,
            }
            for hit in hits
        ],
        "more": more,
        "counts": counts,
    }


def _without_spare(hits: list[Hit], asked: SearchIn) -> tuple[list[Hit], bool]:
    if asked.group_by is not None:
        by_rank = sorted(hits, key=lambda hit: hit.rank)
        groups = list(dict.fromkeys(hit.payload.get(asked.group_by) for hit in by_rank))
        kept = groups[: asked.limit]
        more = len(groups) > asked.limit or (asked.unique and len(groups) == asked.limit)
        return [hit for hit in hits if hit.payload.get(asked.group_by) in kept], more
    if asked.unique:
        return hits, len(hits) == asked.limit
    last = asked.offset + asked.limit
    return [hit for hit in hits if hit.rank <= last], len(hits) > asked.limit


def _shown(term: TermIn, named: Mapping[str, Point], uploads: Uploads) -> dict[str, Any]:
    label = term.value
    if term.kind == "url":
        label = shown_url(term.value)
    elif term.kind == "upload":
        upload = uploads.get(term.value)
        label = upload.name if upload is not None else "a picture"
    elif term.kind == "id":
        label = os.path.basename(str(named[term.value].payload["path"]))
    return {"kind": term.kind, "value": term.value, "weight": term.weight, "label": label}


def browse(served: PooledCollection, asked: BrowseQuery) -> dict[str, Any]:
    """List pictures in order of id: `PicturesOut`. Ids are hashes, so that is a mix of everything.

    Raises:
        DataError: If a category does not exist or a condition cannot be read.
        NotFound: If `after` is no id.
    """
    collection = served.collection
    retrieval.check_categories(collection, [*asked.category, *asked.not_category])
    only = make_filter(categories=asked.category, not_categories=asked.not_category, where=asked.where)
    start = None if asked.after is None else _id(asked.after)
    points = next(iter(collection.scan(only, batch_size=asked.limit + 1, start=start)), [])
    return {
        "collection": served.name,
        "images": collection.count(only),
        "pictures": [_picture(point) for point in points[: asked.limit]],
        "next": points[asked.limit].id if len(points) > asked.limit else None,
    }


def picture(served: PooledCollection, one: str) -> dict[str, Any]:
    """Return a stored picture: `PictureOut`.

    Raises:
        NotFound: If there is none of that id.
    """
    return _picture(stored(served, one))


def stored(served: PooledCollection, one: str) -> Point:
    """Return the point of a picture, without its vector.

    Raises:
        NotFound: If there is none of that id.
    """
    found = served.collection.get([_id(one)])
    if not found:
        raise NotFound(f"collection {served.name!r} has no picture with the id {one}.")
    return found[one]


def categories(served: PooledCollection, asked: Which) -> dict[str, Any]:
    """Count the pictures of each category: `CategoriesOut`.

    Raises:
        DataError: If a category does not exist or a condition cannot be read.
    """
    retrieval.check_categories(served.collection, [*asked.category, *asked.not_category])
    only = make_filter(categories=asked.category, not_categories=asked.not_category, where=asked.where)
    counted = served.collection.facet("category", only)
    images = served.collection.count(only)
    return {
        "collection": served.name,
        "images": images,
        "uncategorised": images - sum(counted.values()),
        "categories": [{"category": name, "images": n} for name, n in counted.items()],
    }


def classify(
    served: PooledCollection,
    pictures: ImageFiles,
    *,
    sent: Sequence[Upload],
    ids: Sequence[str],
    labels: Sequence[str],
    top_k: int,
) -> dict[str, Any]:
    """Say what pictures show: `ClassifyOut`. Without labels, the collection's categories are taken.

    Raises:
        NotFound: If there is no picture of an id.
        DataError: If there are no pictures, or the labels are too few, empty or the same.
    """
    points = [stored(served, one) for one in ids]
    names = [*(one.name for one in sent), *(str(point.payload["path"]) for point in points)]
    if not names:
        raise DataError("there is no picture to classify. Send one, or give the id of a stored one.")
    reasons: dict[int, str] = {}

    def sources() -> Iterator[Source]:
        yield from (one.data for one in sent)
        for i, point in enumerate(points, start=len(sent)):
            try:
                yield pictures.original(point.payload).read()
            except (ImageError, OSError) as error:
                reasons[i] = str(error)
                yield b""

    chosen = list(labels) or list(served.collection.facet("category"))
    each = classify_each(sources(), chosen, encoder=served.encoder, top_k=top_k)
    return {
        "pictures": [
            {
                "name": name,
                "predictions": [
                    {
                        "label": prediction.label,
                        "probability": prediction.probability,
                        "score": round(prediction.score, 6),
                    }
                    for prediction in one.predictions
                ],
                "reason": reasons.get(i, one.reason),
            }
            for i, (name, one) in enumerate(zip(names, each, strict=True))
        ]
    }


def _picture(point: Point) -> dict[str, Any]:
    return {
        "id": point.id,
        "category": point.payload.get("category"),
        "path": file_of(point.payload),
        "payload": point.payload,
    }


def _id(text: str) -> str:
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise NotFound(f"{text[:100]!r} is no id of a picture.")
