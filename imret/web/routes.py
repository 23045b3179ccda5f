"""The routes of the API: parameters and bodies in, answers of `imret.web.handlers` out, each in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from imret.errors import DataError, ImretError, StoreError, StoreUnavailable
from imret.retrieval.category_names import category_names
from imret.retrieval.limits import MAX_DEPTH, MAX_TEXT, MAX_UNIQUE
from imret.retrieval.prompts import search_prompts, templates_for
from imret.web import handlers
from imret.web.errors import NotFound, told
from imret.web.filling import Filling, FillingProgress
from imret.web.images.answers import ImageAnswers
from imret.web.images.files import ImageFiles
from imret.web.images.uploads import Uploads
from imret.web.metrics import stage, timings
from imret.web.pool.collections import CollectionPool
from imret.web.pool.executors import BoundedExecutor, Busy
from imret.web.pool.pooled_collection import PooledCollection
from imret.web.request_bodies import (
    FORM_TYPES,
    Form,
    flag_field,
    media_type_of,
    number_field,
    parse_json,
    read_form,
    read_json_body,
    validate_search,
)
from imret.web.schemas import (
    MAX_CLASSIFIED,
    MAX_LABELS,
    BrowseQuery,
    CategoriesOut,
    ClassifyOut,
    CollectionsOut,
    Conditions,
    IngestOut,
    JSONAnswer,
    Name,
    PictureOut,
    PicturesOut,
    Problem,
    SearchIn,
    SearchOut,
    SearchQuery,
    TermIn,
    Which,
)

T = TypeVar("T")


# It logs what is wrong with a form, which its sender is told.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

# Text queries that may wait for the model beside those of one batch.
MAX_WAITING_TEXTS = 512
LIST_PATIENCE_S = 1.0  # in which one of the collections has to answer to be listed with its number of images
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in (
        (400, "Wrong input."),
        (404, "Not there."),
        (422, "Wrong input, or a picture that cannot be used."),
        (503, "Too busy, or the store is away; Retry-After says when to ask again."),
    )
}

Id = Annotated[str, Path(max_length=100)]
Size = Annotated[int, Query(ge=1, le=4096, description="Longest side in pixels; rounded up to a step.")]


class Api:
    """The API of one server.

    Args:
        pool: The collections.
        default: The collection that is asked where none is named.
        image_files: Files and thumbnails.
        uploads: Pictures that were sent.
        filling: An ingest in this process.
    """

    def __init__(
        self,
        pool: CollectionPool,
        *,
        default: str,
        image_files: ImageFiles,
        uploads: Uploads,
        filling: Filling | None = None,
    ) -> None:
        self._pool, self._default = pool, default
        self._image_files, self._uploads = image_files, uploads
        self._filling = filling
        # The embedded store answers one request at a time, so more threads would only wait there.
        self._queries = BoundedExecutor("queries", threads=4, waiting=256)
        self._looks = BoundedExecutor("looks", threads=2, waiting=32, retry_after_s=2)
        # Where there are many groups, a search is hundreds of them: one at a time, beside the others.
        self._groups = BoundedExecutor("groups", threads=1, waiting=64)
        self._pictures = ImageAnswers(self.ask, image_files, uploads, pool.telemetry)
        self._executors = (
            self._queries,
            self._looks,
            self._groups,
            *self._pictures.executors,
        )
        for executor in self._executors:
            pool.telemetry.watch_queue(executor.name, lambda executor=executor: executor.depth)  # type: ignore[misc]
        pool.telemetry.watch_queue("texts", lambda: pool.depth)

    def close(self) -> None:
        """End the threads."""
        for executor in self._executors:
            executor.close()

    def router(self) -> APIRouter:
        """Return the routes, to be put below a prefix."""
        router = APIRouter(responses=_PROBLEMS)
        add = router.add_api_route
        add("/search", self.search, response_model=SearchOut, summary="Find pictures by words")
        add(
            "/search",
            self.search_by_pictures,
            methods=["POST"],
            response_model=SearchOut,
            summary="Find pictures by pictures, words, and sums of them",
            openapi_extra=_SEARCH_BODY,
        )
        add(
            "/similar/{id}", self.similar, response_model=SearchOut, summary="Find pictures like a stored one"
        )
        add(
            "/classify",
            self.classify,
            methods=["POST"],
            response_model=ClassifyOut,
            summary="Say what pictures show",
            openapi_extra=_CLASSIFY_BODY,
        )
        add("/categories", self.categories, response_model=CategoriesOut, summary="Count by category")
        add("/collections", self.collections, response_model=CollectionsOut, summary="List collections")
        add("/ingest", self.ingest, response_model=IngestOut, summary="How far an ingest of this server is")
        add("/images", self.images, response_model=PicturesOut, summary="List pictures, a mix of everything")
        add("/images/{id}", self.image, response_class=Response, summary="A picture", responses=_IMAGE)
        add("/images/{id}/payload", self.payload, response_model=PictureOut, summary="What is stored of it")
        add(
            "/thumbnails/{id}",
            self.thumbnail,
            response_class=Response,
            summary="A small picture",
            responses=_IMAGE,
        )
        add(
            "/uploads/{sha256}",
            self.upload,
            response_class=Response,
            summary="A picture that was sent, small",
            responses=_IMAGE,
        )
        return router

    # ---- Search -------------------------------------------------------------------------------------

    async def search(self, query: Annotated[SearchQuery, Query()]) -> Response:
        """Terms are as on the command line, but for picture files, which are posted."""
        terms = handlers.typed_terms(query.q, query.not_)
        return await self._search(SearchIn.model_construct(terms=terms, **_conditions(query)))

    async def search_by_pictures(self, request: Request) -> Response:
        """Send JSON, or a form with that JSON as `query` and files as `picture`."""
        form = Form({}, [])
        if media_type_of(request) in FORM_TYPES:
            form = await read_form(request)
            queries = form.texts.get("query", [])
            if len(queries) > 1:
                raise DataError(f"the form has {len(queries)} fields `query`. Send one.")
            query = validate_search(parse_json(queries[0]) if queries else {})
        else:
            query = validate_search(parse_json(await read_json_body(request)))
        sent = [await self._looks.run(self._uploads.add, name, data) for name, data in form.pictures]
        query.terms = handlers.resolve_pictures(query.terms, sent)
        return await self._search(query)

    async def similar(self, id: Id, query: Annotated[Conditions, Query()]) -> Response:
        """The picture is left out of its own hits, unless it is asked for; no model is needed."""
        terms = [TermIn.model_construct(kind="id", value=id, weight=1.0)]
        return await self._search(SearchIn.model_construct(terms=terms, **_conditions(query)))

    async def _search(self, query: SearchIn) -> Response:
        if query.offset + query.limit > MAX_DEPTH:
            raise DataError(
                f"offset and limit together are at most {MAX_DEPTH:,}, not {query.offset + query.limit:,}. "
                "Narrow the search instead: with categories, conditions, or other words."
            )
        if query.group_by is not None and query.limit * query.per_group > MAX_DEPTH:
            raise DataError(
                f"limit and per_group give at most {MAX_DEPTH:,} hits, not {query.limit * query.per_group:,}."
            )
        n_folded = query.offset + query.limit if query.group_by is None else query.limit * query.per_group
        if query.unique and n_folded > MAX_UNIQUE:
            what = "offset and limit" if query.group_by is None else "limit and per_group"
            raise DataError(f"with unique, {what} give at most {MAX_UNIQUE:,} hits, not {n_folded:,}.")
        started = time.perf_counter()
        with timings() as stages:
            await self._encode_ahead(query)
            executor = self._queries
            if handlers.is_slow(query):
                executor = self._looks
            elif query.group_by is not None:
                executor = self._groups
            result = await self.ask(
                executor,
                query.collection,
                lambda pooled: handlers.search(pooled, query, self._uploads, self._image_files),
            )
            result["timings_ms"] = {name: round(1e3 * seconds, 3) for name, seconds in stages.items()}
        result["timings_ms"]["total"] = round(1e3 * (time.perf_counter() - started), 3)
        return JSONAnswer(result)

    async def _encode_ahead(self, query: SearchIn) -> None:
        """Wait here for the words of a query, rather than in a thread that another query could use."""
        words = [term.value for term in query.terms if term.kind == "text"]
        pooled = self._pool.peek(query.collection or self._default) if words else None
        if pooled is None:
            return
        if self._pool.depth > MAX_WAITING_TEXTS:
            raise Busy("texts", 1)
        names = category_names(pooled.encoder, pooled.names)
        templates = templates_for(pooled.encoder.files.model_cfg)
        prompts = [
            search_prompts(text, template=query.template, names=names, templates=templates) for text in words
        ]
        vectors = [pooled.encoder.submit(texts) for texts in prompts]
        if not all(vector.done() for vector in vectors):
            with stage(self._pool.telemetry, "encode"):
                waited_for = [asyncio.wrap_future(vector) for vector in vectors]
                for vector in waited_for:  # also where this client leaves, or another word fails first
                    vector.add_done_callback(lambda done: done.cancelled() or done.exception())
                # Shielded: others may wait for the same words.
                await asyncio.gather(*map(asyncio.shield, waited_for))

    async def ask(
        self, executor: BoundedExecutor, name: str | None, question: Callable[[PooledCollection], T]
    ) -> T:
        """Return the answer of a collection to a question, of the default one where none is named."""
        collection = name or self._default

        def run() -> T:
            if self._pool.peek(collection) is None and self._pool.store.live(collection) is None:
                self._raise_missing(collection)
            return self._pool.ask(collection, question)

        return await executor.run(run)

    def _raise_missing(self, collection: str) -> None:
        """Say that there is no such collection, as the store says it.

        Raises:
            NotFound: Always, unless it was made this moment.
        """
        try:
            self._pool.store.open(collection).close()
        except DataError as error:
            raise NotFound(str(error), public=error.public) from error

    # ---- What a picture shows -----------------------------------------------------------------------

    async def classify(self, request: Request) -> Response:
        """Send a form: files as `picture`, or `id` of stored pictures; `label`, `top_k`, `collection`.

        Labels that were learnt from pictures are scored by what was learnt; `concepts=false` scores words.
        """
        form = await read_form(request)
        ids, labels = form.texts.get("id", []), form.texts.get("label", [])
        n_pictures = len(ids) + len(form.pictures)
        if n_pictures > MAX_CLASSIFIED or len(labels) > MAX_LABELS:
            raise DataError(
                f"at most {MAX_CLASSIFIED} pictures and {MAX_LABELS:,} labels at a time, not {n_pictures} "
                f"and {len(labels):,}."
            )
        if any(len(label) > MAX_TEXT for label in labels):
            raise DataError(f"a label has at most {MAX_TEXT:,} characters.")
        top_k, with_concepts = number_field(form, "top_k", 3), flag_field(form, "concepts", True)
        collection = next(iter(form.texts.get("collection", [])), None)
        sent = [await self._looks.run(self._uploads.add, name, data) for name, data in form.pictures]
        result = await self.ask(
            self._looks,
            collection,
            lambda pooled: handlers.classify(
                pooled,
                self._image_files,
                sent=sent,
                ids=ids,
                labels=labels,
                top_k=top_k,
                with_concepts=with_concepts,
            ),
        )
        return JSONAnswer(result)

    # ---- What there is ------------------------------------------------------------------------------

    async def categories(self, query: Annotated[Which, Query()]) -> Response:
        """Most pictures first."""
        return JSONAnswer(
            await self.ask(self._queries, query.collection, lambda pooled: handlers.categories(pooled, query))
        )

    async def collections(self) -> Response:
        """Those that cannot be opened now are listed with the reason."""

        def listed() -> list[dict[str, Any]]:
            entries = []
            for name in self._pool.store.collections():
                entry: dict[str, Any] = {"name": name, "model": "", "images": None, "m": None}
                try:
                    with closing(self._pool.store.open(name, patience_s=LIST_PATIENCE_S)) as opened:
                        entry["model"] = opened.identity.model
                        stats = opened.stats()
                    # The colour alone: what a server says of a red one names folders of it.
                    colour = stats.status.partition(":")[0]
                    entry |= {"images": stats.points, "status": colour, "m": stats.m}
                except StoreUnavailable as error:
                    entry["status"] = told(error)
                except ImretError as error:
                    entry["status"] = told(error)
                    with suppress(StoreError):  # damaged, it may have none
                        live = self._pool.store.live(name)
                        entry["model"] = live.model if live else ""
                entries.append(entry)
            return entries

        return JSONAnswer({"default": self._default, "collections": await self._queries.run(listed)})

    async def ingest(self) -> Response:
        """Of `imret serve FOLDER`; ingests of other programs are not told here."""
        progress = FillingProgress() if self._filling is None else self._filling.progress()
        return JSONAnswer(asdict(progress))

    async def images(self, query: Annotated[BrowseQuery, Query()]) -> Response:
        """In order of id, which is a hash of the place: the same order each time."""
        return JSONAnswer(
            await self.ask(self._queries, query.collection, lambda pooled: handlers.browse(pooled, query))
        )

    async def payload(self, id: Id, collection: Name = None) -> Response:
        """For a picture whose id came from elsewhere."""
        return JSONAnswer(
            await self.ask(self._queries, collection, lambda pooled: handlers.picture(pooled, id))
        )

    # ---- Pictures -----------------------------------------------------------------------------------

    async def image(self, request: Request, id: Id, collection: Name = None) -> Response:
        """Upright, at full size, in a format that browsers show."""
        return await self._pictures.stored(request, id, collection, None)

    async def thumbnail(
        self, request: Request, id: Id, size: Size = 320, collection: Name = None
    ) -> Response:
        """Upright, a JPEG that fits a square; never enlarged."""
        return await self._pictures.stored(request, id, collection, size)

    async def upload(self, request: Request, sha256: Id, size: Size = 320) -> Response:
        """As long as the server keeps it."""
        return await self._pictures.upload(request, sha256, size)


# ---- Bodies -------------------------------------------------------------------------------------


def _conditions(query: Conditions) -> dict[str, Any]:
    return {name: getattr(query, name) for name in Conditions.model_fields}


_IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "Unchanged (If-None-Match)."},
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": SearchIn.model_json_schema(ref_template="#/components/schemas/{model}")
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "query": {"type": "string", "description": "The JSON body, as text."},
                        "picture": _FILES,
                    },
                }
            },
        },
    }
}
_CLASSIFY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "picture": _FILES,
                        "id": {"type": "array", "items": {"type": "string", "format": "uuid"}},
                        "label": {"type": "array", "items": {"type": "string"}},
                        "top_k": {"type": "integer", "minimum": 1, "default": 3},
                        "concepts": {"type": "boolean", "default": True},
                        "collection": {"type": "string"},
                    },
                }
            }
        },
    }
}
