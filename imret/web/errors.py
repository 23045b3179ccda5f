"""What goes wrong, as problem details (RFC 9457): the sentence that the command would print, and a status.

What the server knows and its clients need not stays out: absolute paths become file names, and where its
store is, or what a node of that said, nobody is told.
"""

from __future__ import annotations

import ipaddress
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
    ModelUnknown,
    StoreError,
    StoreLocked,
    StoreUnavailable,
)
from imret.sources.named_roots import NotReachable, NotThere
from imret.store.payload import FIELDS
from imret.web.pool.executors import Busy

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2  # for a store that is away or in use (its own retries have ended by then), and for bodies


class NotFound(DataError):
    """What was asked for by its name or id is not there."""


class Forbidden(DataError):
    """What is asked for is none of the client's business."""


class NotWritable(StoreError):
    """The store cannot be written to."""


# The first that fits.
_STATUS: tuple[tuple[type[ImretError], int], ...] = (
    (NotFound, 404),
    (Forbidden, 403),
    (NotWritable, 409),
    (NotThere, 404),
    (NotReachable, 503),
    (ImageError, 422),
    (DataError, 400),
    (ModelMismatch, 409),
    (ModelUnknown, 409),
    (StoreLocked, 503),
    (StoreUnavailable, 503),
    (ImretError, 500),
)

# An absolute path, of which the last part is kept: quoted, also behind a prefix as in 'ViT-L-14:/srv/x.pt';
# of a file: URL; bare. Not that of another URL, whose // has a colon before.
_ABSOLUTE = re.compile(
    r"(?<=['\"])(?P<prefix>(?:[\w.+-]+:)+)/(?!/)(?:[^'\"/]*/)*"
    r"|(?<=['\"])/(?:[^'\"/]*/)*"
    r"|(?<=file://)(?:/[^/\s'\"]+)+/"
    r"|(?<![\w/.~-])(?:/[^/\s'\"]+)+/"
)

# Where a server is: a URL, a number, a host with a port. One without a dot has a port of four digits or more,
# for the sake of times and ratios; `width:1024` is a condition that somebody mistyped.
_URL = re.compile(r"\b(?!file:)\w+://[^\s'\",)]*[^\s'\",).:]/?")
_IPV6 = re.compile(
    r"\[(?P<inner>[0-9A-Fa-f:.]+)(?:%[\w.-]+)?\](?::\d+)?"
    r"|(?<![\w:.])(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*[0-9A-Fa-f:])(?:%\w+)?(?!\w)"
)
_HOST = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
    r"|(?<![\w.-])(?:localhost|(?:[\w-]+\.)+[A-Za-z]{2,}):\d{2,5}\b"
    rf"|(?<![\w.-])(?!(?:{'|'.join(FIELDS)}):)[A-Za-z][\w-]*:\d{{4,5}}\b"
)


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
    """Return what a client is told of an error.

    Whoever raises an error about an address that the client gave says so in `public`.
    """
    if error.public:
        return error.public
    return without_places(str(error), "the store" if isinstance(error, StoreError) else "a server")


def without_places(text: str, server: str = "the store") -> str:
    """Return a sentence in which paths are the names of their files, and addresses `server`."""

    def without_ipv6(found: re.Match[str]) -> str:
        number, colons = (found["inner"] or found["bare"]), ""
        if number.endswith(":") and not number.endswith("::"):  # of the sentence
            number, colons = number[:-1], ":"
        try:
            ipaddress.IPv6Address(number)
        except ValueError:
            return found[0]
        return server + colons

    text = _ABSOLUTE.sub(lambda found: found["prefix"] or "", text)
    return _HOST.sub(server, _IPV6.sub(without_ipv6, _URL.sub(server, text)))
