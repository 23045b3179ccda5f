"""Names that are taught over the API: listed, learnt from stored pictures, forgotten.

The one part of the API that changes what a collection answers. So it is for whoever has the token; without
one only for the machine itself: a server that is told of a proxy or of other names may be asked by anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from imret.errors import DataError, StoreError, StoreLocked, StoreUnavailable, counted
from imret.retrieval.concept_query import known_concepts
from imret.retrieval.concepts import MAX_NAME_CHARS, Concept, check_name
from imret.retrieval.limits import MAX_LIMIT, MAX_NAME
from imret.store import Store
from imret.store.types import is_point_id
from imret.web.errors import Forbidden, NotFound, NotWritable, without_places
from imret.web.pool.executors import BoundedExecutor
from imret.web.pool.pooled_collection import PooledCollection
from imret.web.request_bodies import describe_errors, parse_json, read_json_body
from imret.web.schemas import JSONAnswer, Name

if TYPE_CHECKING:
    from imret.web.routes import Api

MAX_SYNONYMS = 20


class TeachIn(BaseModel):
    """A name, and stored pictures that show what it means."""

    model_config = ConfigDict(extra="forbid")

    collection: str | None = Field(
        None, max_length=MAX_NAME, description="Default: the one the server was given."
    )
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    synonyms: list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]] = Field(
        default_factory=list, max_length=MAX_SYNONYMS, description="What else it goes by."
    )
    ids: list[Annotated[str, Field(max_length=100)]] = Field(
        min_length=1, max_length=MAX_LIMIT, description="Of the pictures."
    )


class ConceptOut(BaseModel):
    """A name that was learnt."""

    name: str
    names: list[str] = Field(description="All that it goes by.")
    images: int = Field(description="How many pictures it was learnt from.")
    text: float | None = Field(
        description="Average precision of the words alone over pictures held out; None where none was."
    )
    learnt: float | None = Field(description="The same of what was learnt.")
    text_kept: bool = Field(description="Whether the words are asked as before, for being better.")
    strength: float = Field(description="How far it moves words that hold it, in [0, 1].")
    date: str


class ConceptsOut(BaseModel):
    """The names that a collection's searches know."""

    collection: str
    can_be_taught: bool = Field(description="Whether this server takes further names.")
    concepts: list[ConceptOut]
    notes: list[str] = Field(description="Why some cannot be used, in sentences; mostly empty.")


class TaughtOut(BaseModel):
    """What became of a name that was taught."""

    collection: str
    concept: ConceptOut
    notes: list[str] = Field(description="What was left out, and what became of older names.")


class Teaching:
    """The routes.

    Args:
        api: Asks collections.
        allowed: Whether names may be taught and forgotten.
    """

    def __init__(self, api: Api, *, allowed: bool) -> None:
        self._api, self._allowed = api, allowed
        # It takes seconds of all cores: one at a time, beside the searches.
        self._lessons = BoundedExecutor("lessons", threads=1, waiting=8, retry_after_s=3)

    def close(self) -> None:
        """End the thread."""
        self._lessons.close()

    def add_to(self, router: APIRouter) -> None:
        """Add the routes to those of the API."""
        add = router.add_api_route
        add("/concepts", self.listed, response_model=ConceptsOut, summary="List the names that were taught")
        add(
            "/concepts",
            self.teach,
            methods=["POST"],
            response_model=TaughtOut,
            summary="Teach a name by stored pictures",
            openapi_extra=_TEACH_BODY,
        )
        add(
            "/concepts",
            self.forget,
            methods=["DELETE"],
            response_model=ConceptsOut,
            summary="Forget a name that was taught",
        )

    async def listed(self, collection: Name = None) -> Response:
        """Those of the collection, and of its model."""
        return JSONAnswer(await self._api.ask(self._lessons, collection, self._known))

    async def teach(self, request: Request) -> Response:
        """What is learnt is told from the other pictures of the collection, and kept with it."""
        self._check_allowed()
        try:
            asked = TeachIn.model_validate(parse_json(await read_json_body(request)))
        except ValidationError as error:
            raise DataError(describe_errors(error.errors(include_url=False, include_input=False))) from error
        name, *synonyms = (check_name(text) for text in (asked.name, *asked.synonyms))
        for id in asked.ids:
            if not is_point_id(id):
                raise NotFound(f"{id[:100]!r} is not the id of a picture.")
        return JSONAnswer(
            await self._api.ask(
                self._lessons, asked.collection, lambda pooled: _teach(pooled, name, synonyms, asked.ids)
            )
        )

    async def forget(
        self, name: Annotated[str, Query(max_length=MAX_NAME_CHARS)], collection: Name = None
    ) -> Response:
        """Words alone ask for it again; the pictures stay."""
        self._check_allowed()

        def forget(pooled: PooledCollection) -> dict[str, Any]:
            from imret.concepts.learn import forget_in_collection

            try:
                _writing(lambda: forget_in_collection(_store_of(pooled), pooled.name, [name]))
            except DataError as error:
                raise NotFound(str(error)) from error
            return self._known(pooled)

        return JSONAnswer(await self._api.ask(self._lessons, collection, forget))

    def _known(self, pooled: PooledCollection) -> dict[str, Any]:
        known = known_concepts(_store_of(pooled), pooled.name, pooled.encoder)
        concepts = known.concepts.concepts.values() if known.concepts else ()
        return {
            "collection": pooled.name,
            "can_be_taught": self._allowed,
            "concepts": [_concept_out(concept) for concept in concepts],
            "notes": [without_places(remark) for remark in known.remarks],
        }

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Forbidden(
                "this server is reached by other machines without a token, and takes no names from them. "
                "Teach where it runs: imret learn --name NAME PICTURES; or start it with IMRET_TOKEN."
            )


def _teach(pooled: PooledCollection, name: str, synonyms: list[str], ids: list[str]) -> dict[str, Any]:
    from imret.concepts.examples import examples_by_id, other_examples
    from imret.concepts.learn import Taught, keep_in_collection, learn

    collection = pooled.collection
    own = examples_by_id(collection, ids)
    others = other_examples(
        collection,
        but=[example.sha256 for example in own],
        called=[name, *synonyms],
        names=pooled.names,
    )
    source = f"{counted(len(own))} of collection {pooled.name}"
    lesson = learn(pooled.encoder, [Taught(name, tuple(synonyms), own)], others=others, source=source)
    notes = list(lesson.notes)
    _writing(lambda: notes.extend(keep_in_collection(_store_of(pooled), pooled.name, lesson.concepts)))
    (concept,) = lesson.concepts.concepts.values()
    return {
        "collection": pooled.name,
        "concept": _concept_out(concept),
        "notes": [without_places(note) for note in notes],
    }


def _writing(write: Callable[[], None]) -> None:
    """Write, and say of a store that cannot be written to that this is so.

    Raises:
        NotWritable: If it cannot.
    """
    try:
        write()
    except (StoreUnavailable, StoreLocked):
        raise
    except StoreError as error:
        raise NotWritable(f"the names could not be kept: {error}", public=error.public) from error


def _store_of(pooled: PooledCollection) -> Store:
    store = pooled.collection.store
    if store is None:
        raise RuntimeError("a collection of a pool is one of its store")
    return store


def _concept_out(concept: Concept) -> dict[str, Any]:
    text, learnt = concept.held_out or (None, None)
    return {
        "name": concept.name,
        "names": list(concept.names),
        "images": concept.images,
        "text": text,
        "learnt": learnt,
        "text_kept": concept.vector is None,
        "strength": concept.strength,
        "date": concept.learnt,
    }


_TEACH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": TeachIn.model_json_schema()}},
    }
}
