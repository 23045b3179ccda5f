"""A search through a running `imret serve`: terms out, hits in, over http.client.

Gives what `imret.retrieval.search.search` gives, and says of what it cannot give the same that it cannot
(`FallbackToLocal`): the caller then searches itself. Picture files and URLs are read here and sent, because
the server reads no files of its clients. Imports neither numpy nor a store.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

from imret import errors
from imret.client.discovery import RunningServer
from imret.errors import ImretError, StoreUnavailable
from imret.escape import escape_undecodable
from imret.retrieval import limits
from imret.retrieval.limits import MAX_CONDITIONS, MAX_PICTURES_BYTES
from imret.retrieval.query import Query, Term, read_picture, terms_of
from imret.retrieval.results import ConceptUse, Hit, Hits, SearchWarning, WithoutCondition, sort_hits
from imret.retrieval.search_options import SearchOptions
from imret.settings import __version__
from imret.store.payload import file_of

PAGE = limits.MAX_LIMIT
# Each page costs the server a search of all that come before it, too.
MAX_PAGES = 10

# Fields of SearchOptions that the API calls by another name.
API_NAMES = {"categories": "category", "not_categories": "not_category"}

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0  # the first query of a server may have to load a large model
WAIT_S = 10.0  # for a server that is busy, in all


class FallbackToLocal(Exception):
    """The server gives no answer that can stand for that of `imret.search`: the caller is to search itself.

    Its text goes after "imret serve at URL "; it is empty where searching without the server tells why.

    Attributes:
        problem: What the server says is wrong, if it says so.
    """

    def __init__(self, reason: str, problem: ImretError | None = None) -> None:
        super().__init__(reason)
        self.problem = problem


def search(
    server: RunningServer,
    query: Query,
    options: SearchOptions | None = None,
    *,
    fetch: Callable[[str], bytes] | None = None,
) -> Hits:
    """Return the hits that `imret.search` finds, from a server that runs over the same store.

    Args:
        server: To ask.
        query: As there, without pictures in memory other than the bytes of a file.
        options: As there. More hits than PAGE are had in pages; the order is that over all pages.
        fetch: Gets the bytes of a URL; by default `imret.retrieval.fetch.fetch_picture`.

    Raises:
        FallbackToLocal: If it cannot be asked this, does not answer, or its answer is not imret's; and where
            the message of an error may lack paths, which a server leaves out.
        ImretError: Of the kind and with the message that the server gives; ImageError for a picture that
            cannot be had.
        StoreUnavailable: If it is busy for longer than WAIT_S, or does not answer within ANSWER_TIMEOUT_S.
    """
    terms = terms_of(query)
    options = options or SearchOptions()
    request = _request_of(options)
    _check_paging(options)
    _check_lengths(terms, request)
    request_terms = _RequestTerms(terms, fetch)
    typed = [*request["category"], *request["not_category"], *request["where"]]
    typed += [term.value for term in terms if term.kind == "text"]
    # A server leaves paths out of its messages; where none was typed, there is none to leave out.
    is_pathless = not any("/" in str(text) for text in typed) and all(t.kind != "stored" for t in terms)
    in_groups = options.group_by is not None
    hits: list[Hit] = []
    while True:
        limit = options.limit if in_groups else min(PAGE, options.limit - len(hits))
        page = {"limit": limit, "offset": options.offset + len(hits)}
        answer = _ask(server, {**request, **page}, request_terms, is_pathless)
        new = _hits_of(answer)
        for note in answer.get("notes") or ():
            warnings.warn(str(note), SearchWarning, stacklevel=2)
        hits += new
        if in_groups or len(hits) >= options.limit or not new or not answer.get("more"):
            break
    if len({hit.id for hit in hits}) < len(hits):
        raise FallbackToLocal("answers from another version of the collection on each page")
    # What was left out is the same on every page. Of pages that others came before, none is without hits.
    emptied_by = () if hits else new.emptied_by
    return Hits(
        sort_hits(hits, options.sort), left_out=new.left_out, emptied_by=emptied_by, concepts=new.concepts
    )


def _request_of(options: SearchOptions) -> dict[str, Any]:
    """Return options as the API takes them, without the place of a page and the order."""
    request = {
        API_NAMES.get(field.name, field.name): getattr(options, field.name) for field in fields(options)
    }
    del request["limit"], request["offset"], request["sort"]
    for name in ("category", "not_category"):
        try:
            request[name] = [escape_undecodable(category) for category in request[name]]  # as it is stored
        except UnicodeEncodeError:
            raise FallbackToLocal("") from None  # what has no such form is for make_filter to refuse
    return request


def _check_paging(options: SearchOptions) -> None:
    """Refuse what the server would not give in the same way, page by page."""
    if options.limit > PAGE and (options.unique or options.group_by is not None):
        # Near copies fold over all that is asked for, and the ranks of groups go on through them.
        flag = "--unique" if options.unique else "--group-by"
        raise FallbackToLocal(f"gives at most {PAGE} hits with {flag}")
    if options.limit > PAGE * MAX_PAGES or options.limit + options.offset > limits.MAX_DEPTH:
        raise FallbackToLocal(f"gives at most {PAGE * MAX_PAGES:,} hits, and none after {limits.MAX_DEPTH:,}")
    n_folded = (
        options.offset + options.limit if options.group_by is None else options.limit * options.per_group
    )
    if options.unique and n_folded > limits.MAX_UNIQUE:
        raise FallbackToLocal(f"gives at most {limits.MAX_UNIQUE:,} hits with --unique")
    if options.group_by is not None and options.per_group > limits.MAX_PER_GROUP:
        raise FallbackToLocal(f"gives at most {limits.MAX_PER_GROUP} hits of a group")
    if options.group_by is not None and options.limit * options.per_group > limits.MAX_DEPTH:
        raise FallbackToLocal(f"gives at most {limits.MAX_DEPTH:,} hits in groups")


def _check_lengths(terms: Sequence[Term], request: dict[str, Any]) -> None:
    """Refuse what the server would refuse and the command does not."""
    values = [str(term.value) for term in terms if term.kind in ("text", "stored")]
    texts = [*values, *request["category"], *request["not_category"], *request["where"]]
    if (
        len(terms) > limits.MAX_TERMS
        or any(abs(term.weight) > limits.MAX_WEIGHT for term in terms)
        or max(map(len, texts), default=0) > limits.MAX_TEXT
        or max(len(request["category"]), len(request["not_category"])) > limits.MAX_CATEGORIES
        or len(request["where"]) > MAX_CONDITIONS
        or len(request["collection"]) > limits.MAX_NAME
    ):
        raise FallbackToLocal("does not take so long a query")
    # File names may hold bytes that are no UTF-8, which JSON cannot say.
    for text in (*values, *request["where"], request["collection"]):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise FallbackToLocal("cannot be asked for what is not Unicode") from None


# ---- Terms ----------------------------------------------------------------------------------------------


class _RequestTerms:
    """Terms as the server takes them, and the pictures that go with them; read once for all pages.

    The path of a stored picture may mean a file here or one below the folder that was ingested, and the
    server has another working folder: first it is asked for as what it most likely is, then as the other.

    Raises:
        ImageError: If a picture cannot be had.
        FallbackToLocal: If the pictures are too large.
    """

    def __init__(self, terms: Sequence[Term], fetch: Callable[[str], bytes] | None) -> None:
        self.pictures: list[tuple[str, bytes]] = []  # name, content
        self._terms = terms
        self._numbers: dict[int, int] = {}
        self._flipped = False
        for i, term in enumerate(terms):
            picture = _picture_of(term, fetch)
            if picture is not None:
                self._numbers[i] = len(self.pictures)
                self.pictures.append(picture)
            if sum(len(data) for _, data in self.pictures) > MAX_PICTURES_BYTES:
                raise FallbackToLocal("does not take pictures of so many bytes")

    def flip(self) -> bool:
        """Ask for the paths of stored pictures in the other way; False if there is none."""
        if self._flipped or not any(term.kind == "stored" for term in self._terms):
            return False
        self._flipped = True
        return True

    def terms(self) -> list[dict[str, Any]]:
        """Return the terms for JSON."""
        return [
            {
                "kind": "picture" if i in self._numbers else term.kind,
                "value": str(self._numbers[i]) if i in self._numbers else self._value(term),
                "weight": term.weight,
            }
            for i, term in enumerate(self._terms)
        ]

    def _value(self, term: Term) -> str:
        value = str(term.value)
        if term.kind != "stored":
            return value
        absolute = os.path.abspath(os.path.expanduser(value))
        return absolute if os.path.exists(absolute) != self._flipped else value


def _picture_of(term: Term, fetch: Callable[[str], bytes] | None) -> tuple[str, bytes] | None:
    """Return the name and the content of a term that is a picture."""
    if term.kind == "url":
        if fetch is None:
            from imret.retrieval.fetch import fetch_picture

            fetch = fetch_picture
        return "picture", fetch(str(term.value))
    if term.kind != "image":
        return None
    if isinstance(term.value, bytes):
        return "picture", term.value
    if not isinstance(term.value, str):
        raise FallbackToLocal("cannot be sent a picture that is in memory")
    name = os.path.basename(term.value)
    return name, read_picture(term.value, lambda file: file.read(MAX_PICTURES_BYTES + 1))


# ---- HTTP -----------------------------------------------------------------------------------------------


def _ask(
    server: RunningServer, request: dict[str, Any], request_terms: _RequestTerms, is_pathless: bool
) -> dict[str, Any]:
    """Return the server's answer to one page; wait for a server that is busy."""
    waited_until = time.monotonic() + WAIT_S
    while True:
        query, pictures = {"terms": request_terms.terms(), **request}, request_terms.pictures
        body, kind = _form(query, pictures) if pictures else (_json(query), "application/json")
        status, retry_after_s, answer = _post(server, body, kind)
        if status == 200:
            return answer
        error = _error_of(server, status, answer)
        if status == 503:
            pause_s = min(max(retry_after_s, 0.1), WAIT_S)
            if time.monotonic() + pause_s > waited_until:
                raise error
            time.sleep(pause_s)
        elif status == 400 and request_terms.flip():
            continue
        elif status == 400 and answer.get("kind") and is_pathless:
            raise error
        elif status in (400, 404, 422):
            # Without the server the message is whole; it does not even take longer, where no model is needed.
            raise FallbackToLocal("", error)
        else:
            raise FallbackToLocal(f"does not answer this: {str(error).splitlines()[0]}", error)


def _post(server: RunningServer, body: bytes, kind: str) -> tuple[int, float, dict[str, Any]]:
    """Send a query; return the status, the seconds to wait before another try, and what came.

    Raises:
        FallbackToLocal: If nothing came that is imret's.
        StoreUnavailable: If nothing came in time.
    """
    headers = {
        "Content-Type": kind,
        "Accept": "application/json",
        "User-Agent": f"imret/{__version__}",
        "Connection": "close",
    }
    if server.token is not None:
        headers["Authorization"] = f"Bearer {server.token}"
    # No proxy, and no redirect is followed: this is about a process of this machine.
    try:
        url = urlsplit(server.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=CONNECT_TIMEOUT_S)
    except (ValueError, http.client.InvalidURL):
        raise FallbackToLocal("is no address to ask") from None
    try:
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
    except OSError as error:
        connection.close()
        raise FallbackToLocal(f"does not answer ({_reason(error)})") from error
    try:
        # Not the end: it may have answered before it had read all.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/api/v1/search", body, headers)
        response = connection.getresponse()
        data = response.read()
    except TimeoutError as error:
        raise StoreUnavailable(
            f"imret serve at {server.url} (process {server.pid}) has not answered within "
            f"{ANSWER_TIMEOUT_S:g} s.\nTry again, or search without it: IMRET_SERVER=off imret search ..."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise FallbackToLocal(f"ended before it had answered ({_reason(error)})") from error
    finally:
        connection.close()
    expected = "application/json" if response.status == 200 else "application/problem+json"
    media_type = (response.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    try:
        answer = json.loads(data) if media_type == expected else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise FallbackToLocal(f"gives no answer of imret's (status {response.status})")
    return response.status, _seconds(response.headers.get("Retry-After")), answer


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or "1")
    except ValueError:  # a date
        return 1.0
    return seconds if math.isfinite(seconds) else 1.0


def _error_of(server: RunningServer, status: int, answer: dict[str, Any]) -> ImretError:
    """Return the error that a problem (RFC 9457) stands for."""
    detail = str(answer.get("detail") or answer.get("title") or f"status {status}")
    kind = getattr(errors, str(answer.get("kind")), None)
    if isinstance(kind, type) and issubclass(kind, ImretError):
        return kind(detail)
    if status == 503:
        return StoreUnavailable(
            f"imret serve at {server.url} is busy: {detail}\n"
            "Try again, or search without it: IMRET_SERVER=off imret search ..."
        )
    return ImretError(detail)


def _hits_of(answer: dict[str, Any]) -> Hits:
    try:
        hits = [
            Hit(
                rank=int(hit["rank"]),
                score=float(hit["score"]),
                id=str(hit["id"]),
                path=file_of(hit["payload"]),
                category=hit["category"],
                payload=dict(hit["payload"]),
                folded=int(hit["folded"]),
            )
            for hit in answer["hits"]
        ]
        # An older server tells none of these.
        emptied_by = [_without_of(without) for without in answer.get("emptied_by") or ()]
        uses = [_use_of(use) for use in answer.get("concepts") or ()]
        return Hits(hits, left_out=int(answer.get("left_out", 0)), emptied_by=emptied_by, concepts=uses)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FallbackToLocal("gives hits that this version of imret does not understand") from error


def _use_of(use: dict[str, Any]) -> ConceptUse:
    return ConceptUse(str(use["name"]), bool(use["whole"]), float(use["strength"]), int(use["images"]))


def _without_of(without: dict[str, Any]) -> WithoutCondition:
    asked = [(str(one["field"]), one["value"]) for one in without["conditions"]]
    return WithoutCondition(
        conditions=tuple(
            (field, tuple(value) if isinstance(value, list) else value) for field, value in asked
        ),
        kept=int(without["kept"]),
        of=str(without["of"]),
        score=float(without["score"]),
        path=str(without["path"]),
    )


def _json(query: dict[str, Any]) -> bytes:
    return json.dumps(query, allow_nan=False).encode("ascii")


def _form(query: dict[str, Any], pictures: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return a form with a query and files, and its media type.

    Source: RFC 7578, multipart/form-data; names of files as the URL Standard's forms have them.
    """
    boundary = os.urandom(16).hex().encode("ascii")
    parts = [(b'name="query"', b"application/json", _json(query))]
    for name, data in pictures:
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = f'name="picture"; filename="{quoted}"'.encode()
        parts.append((head, b"application/octet-stream", data))
    lines = []
    for head, kind, data in parts:
        lines += [b"--" + boundary, b"Content-Disposition: form-data; " + head, b"Content-Type: " + kind]
        lines += [b"", data]
    lines += [b"--" + boundary + b"--", b""]
    return b"\r\n".join(lines), f"multipart/form-data; boundary={boundary.decode('ascii')}"
