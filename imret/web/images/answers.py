"""Answers that are pictures: fetched, decoded or sent as they are, each by threads of its own kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from imret.images.decode_memory import SMALL_BYTES
from imret.web import handlers
from imret.web.errors import NotFound
from imret.web.images.files import ImageFiles
from imret.web.images.thumbnails import ImageResponse, ToDecode, ToFetch
from imret.web.images.uploads import Uploads
from imret.web.metrics import Telemetry, stage
from imret.web.pool.executors import BoundedExecutor
from imret.web.pool.pooled_collection import PooledCollection
from imret.web.single_flight import SingleFlight

T = TypeVar("T")

# A page asks for thumbnails by an address that has the content's hash in it; others look again.
_KEEP = {"Cache-Control": "private, max-age=0, must-revalidate"}
_KEEP_LONG = {"Cache-Control": "private, max-age=604800"}


class Ask(Protocol):
    """Gives the answer of a collection, of the default one where none is named."""

    async def __call__(
        self, executor: BoundedExecutor, name: str | None, question: Callable[[PooledCollection], T]
    ) -> T: ...


class ImageAnswers:
    """Gives the pictures of points, and those that were sent, to the clients of a server."""

    def __init__(self, ask: Ask, image_files: ImageFiles, uploads: Uploads, telemetry: Telemetry) -> None:
        """Start the threads; `ask` answers for a collection."""
        self._ask, self._image_files, self._uploads = ask, image_files, uploads
        self._telemetry = telemetry
        # Not behind pictures that are fetched from slow hosts or compared by the thousand.
        self._originals = BoundedExecutor("originals", threads=2, waiting=64)
        self._thumbnails = BoundedExecutor("thumbnails", threads=4, waiting=1024)
        # Thumbnails and originals alike; here they may wait for memory.
        self._large = BoundedExecutor("large pictures", threads=2, waiting=1024, retry_after_s=2)
        # And here for a bucket; that takes no processor.
        self._fetches = BoundedExecutor("fetches", threads=16, waiting=1024, retry_after_s=2)
        self._flights = SingleFlight()
        self.executors = (self._originals, self._thumbnails, self._large, self._fetches)

    async def stored(self, request: Request, id: str, collection: str | None, size: int | None) -> Response:
        """Answer with the picture of a point; without a size, the original."""
        files = self._image_files

        def look(pooled: PooledCollection) -> tuple[ImageResponse | ToDecode | ToFetch | str, dict[str, Any]]:
            payload = handlers.stored_point(pooled, id).payload
            etag = files.etag(payload, size)
            if etag in request.headers.get("if-none-match", ""):
                return etag, payload
            return files.ready(payload, size), payload

        def make() -> ImageResponse | None:
            if size is None:
                return files.decoded(payload)
            with stage(self._telemetry, "thumbnail"):
                return files.decoded(payload, size)

        executor = self._originals if size is None else self._thumbnails
        response, payload = await self._ask(executor, collection, look)
        if isinstance(response, str):
            return Response(status_code=304, headers={"ETag": response, **_KEEP})
        if isinstance(response, ToFetch):
            await self._flights.do(response.key, lambda: self._fetches.run(files.fetch, payload))
            response = await executor.run(files.at_hand, payload, size)
        if isinstance(response, ToDecode):
            decoded = await self._decoded(executor, response, make)
            if decoded is None:  # replaced meanwhile
                decoded = await executor.run(files.original, payload)
            response = decoded
        return _image_response(request, response)

    async def upload(self, request: Request, sha256: str, size: int) -> Response:
        """Answer with the thumbnail of a picture that was sent."""
        response = await self._thumbnails.run(self._uploads.ready, sha256, size)
        if isinstance(response, ToDecode):
            response = await self._decoded(
                self._thumbnails, response, lambda: self._uploads.thumbnail(sha256, size)
            )
        if response is None:
            raise NotFound("this picture is not kept any more. Send it again.")
        return _image_response(request, response)

    async def _decoded(self, executor: BoundedExecutor, what: ToDecode, make: Callable[[], T]) -> T:
        """Return what `make` gives, for all who ask for it now; large pictures keep no others waiting."""
        if what.n_bytes >= SMALL_BYTES:
            executor = self._large
        return await self._flights.do(what.key, lambda: executor.run(make))


def _image_response(request: Request, response: ImageResponse) -> Response:
    headers = {"ETag": response.etag, "Content-Length": str(response.size)}
    headers |= _KEEP_LONG if "v" in request.query_params else _KEEP
    if response.data is not None:
        return Response(response.data, media_type=response.media_type, headers=headers)
    return StreamingResponse(
        response.chunks(),
        media_type=response.media_type,
        headers=headers,
        background=BackgroundTask(response.close),
    )
