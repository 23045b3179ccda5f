"""What goes wrong, as problem details (RFC 9457): the sentence that the command would print, and a status.

What the server knows and its clients need not stays out: absolute paths become file names, and where its
store is, or what a node of that said, nobody is told.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from imret.errors import (
    DataError,
    ImageError,
    ImretError,
    ModelMismatch,
    StoreError,
    StoreLocked,
    StoreUnavailable,
)
from imret.web.pool.executors import Busy

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2  # for a store that is away or in use (its own retries have ended by then), and for bodies


class NotFound(DataError):
    """What was asked for by its name or id is not there."""


# The first that fits.
_STATUS: tuple[tuple[type[ImretError], int], ...] = (
    (NotFound, 404),
    (ImageError, 422),
    (DataError, 400),
    (ModelMismatch, 409),
    (StoreLocked, 503),
    (StoreUnavailable, 503),
    (ImretError, 500),
)

# An absolute path, quoted or bare, of which the last part is kept. Not of a URL, whose // has a colon before.
_SERVER = re.compile(r"\w+://[^\s'\",)]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_ABSOLUTE = re.compile(r"(?<=['\"])/(?:[^'\"/]*/)*|(?<![\w:/.~-])(?:/[^/\s'\"]+)+/")


def problem_body(status: int, detail: str, *, kind: str = "") -> bytes:
    """Return the JSON of a problem, in ASCII: a file name may hold lone surrogates, which no UTF-8 does.

    Args:
        status: HTTP status.
        detail: For people.
        kind: Name of the class in `imret.errors`; empty for what is none of them.
    """
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if kind:
        content["kind"] = kind
    return json.dumps(content).encode("ascii")


def problem(status: int, detail: str, *, kind: str = "", retry_after_s: int | None = None) -> Response:
    """Return the response that says what went wrong; see `problem_body`.

    Args:
        status: HTTP status.
        detail: For people.
        kind: Name of the class in `imret.errors`.
        retry_after_s: When to ask again.
    """
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Response(problem_body(status, detail, kind=kind), status, headers=headers, media_type=MEDIA_TYPE)


def problem_for(error: Exception) -> Response:
    """Return the answer for an error; one that nobody foresaw says nothing of itself."""
    if isinstance(error, Busy):
        return problem(503, str(error), retry_after_s=error.retry_after_s)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            # What stands in imret.errors, not a class of some module's own.
            public = next(cls for cls in type(error).__mro__ if cls.__module__ == ImretError.__module__)
            return problem(
                status,
                told(error),
                kind=public.__name__,
                retry_after_s=RETRY_AFTER_S if status == 503 else None,
            )
    return problem(500, "The server failed to answer this. Its log says why.")


def told(error: ImretError) -> str:
    """Return what a client is told of an error."""
    if error.public:
        return error.public
    text = _ABSOLUTE.sub("", str(error))
    # A store on a server says where that is; a URL in other errors is one that the client gave.
    return _SERVER.sub("the store", text) if isinstance(error, StoreError) else text
