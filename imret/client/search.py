"""A search through a running `imret serve`: terms out, hits in, over http.client.

Gives what `imret.retrieval.search.search` gives, and says of what it cannot give the same that it cannot
(`NoAnswer`): the caller then searches itself. Picture files and URLs are read here and sent, because the
server reads no files of its clients. Imports neither numpy nor a store.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from imret import errors
from imret.client.discovery import Running
from imret.errors import ImretError, StoreUnavailable
from imret.escape import escape_undecodable
from imret.retrieval.query import Query, Term, read_picture, terms_of
from imret.retrieval.results import Hit, sort_hits
from imret.settings import DEFAULT_COLLECTION, __version__
from imret.store.payload import file_of

PAGE = 500  # hits of one answer
# Each page costs the server a search of all that come before it, too.
MAX_PAGES = 10
# The API's bounds, as imret.web.schemas has them: beyond, it refuses what the command does.
MAX_DEPTH = 10_000
MAX_TERMS = 16
MAX_TEXT = 2_000
MAX_CATEGORIES = 200
MAX_CONDITIONS = 50
MAX_PER_GROUP = 100
MAX_WEIGHT = 1e6
MAX_NAME = 100
# A server takes 32 MB in one request, unless it was told otherwise.
MAX_PICTURES_BYTES = 30_000_000

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0  # the first query of a server may have to load a large model
WAIT_S = 10.0  # for a server that is busy, in all


class NoAnswer(Exception):
    """The server gives no answer that can stand for that of `imret.retrieval.search.search`.

    Its text goes after "imret serve at URL "; it is empty where searching without the server tells why.

    Attributes:
        problem: What the server says is wrong, if it says so.
    """

    def __init__(self, reason: str, problem: ImretError | None = None) -> None:
        super().__init__(reason)
        self.problem = problem


def search(
    running: Running,
    query: Query,
    *,
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
    include_self: bool = False,
    fetch: Callable[[str], bytes] | None = None,
) -> list[Hit]:
    """Return the hits that `imret.search` finds, from a server that runs over the same store.

    Args:
        running: The server.
        query: As there, without pictures in memory other than the bytes of a file.
        collection: Where to look.
        categories: As for `imret.retrieval.filters.make_filter`, and so are the next two; the server reads
            them.
        not_categories: Excluded ones.
        where: Conditions.
        limit: As there, and so are all that follow. More than PAGE are had in pages.
        offset: Best hits to leave out.
        min_score: Least cosine.
        relevant: Whether to end where the answers end.
        unique: Whether near copies are folded.
        group_by: A payload field.
        per_group: Hits of each group.
        sort: One of `imret.retrieval.results.SORTS`; over all pages.
        template: Whether short texts are put into prompt templates.
        include_self: Whether a picture that is asked for may be among its own hits.
        fetch: Gets the bytes of a URL; by default `imret.retrieval.fetch.fetch_picture`.

    Raises:
        NoAnswer: If it cannot be asked this, does not answer, or its answer is not imret's; and where the
            message of an error may lack paths, which a server leaves out.
        ImretError: Of the kind and with the message that the server gives; ImageError for a picture that
            cannot be had.
        StoreUnavailable: If it is busy for longer than WAIT_S, or does not answer within ANSWER_TIMEOUT_S.
    """
    terms = terms_of(query)
    asked: dict[str, Any] = {
        "collection": collection,
        "category": [_printable(one) for one in categories],
        "not_category": [_printable(one) for one in not_categories],
        "where": list(where),
        "min_score": min_score,
        "relevant": relevant,
        "unique": unique,
        "group_by": group_by,
        "per_group": per_group,
        "template": template,
        "include_self": include_self,
    }
    _check_bounds(terms, asked, limit, offset)
    sent = _Sent(terms, fetch)
    typed = [
        *asked["category"],
        *asked["not_category"],
        *where,
        *(t.value for t in terms if t.kind == "text"),
    ]
    pathless = not any("/" in str(one) for one in typed) and not any(t.kind == "stored" for t in terms)
    hits: list[Hit] = []
    while True:
        page = {"limit": min(PAGE, limit - len(hits)), "offset": offset + len(hits)}
        if group_by is not None:
            page["limit"] = limit
        answer = _asked(running, {**asked, **page}, sent, pathless)
        found = _hits_of(answer)
        hits += found
        if group_by is not None or len(hits) >= limit or not found or not answer.get("more"):
            break
    if len({hit.id for hit in hits}) < len(hits):
        raise NoAnswer("answers from another version of the collection on each page")
    return sort_hits(hits, sort)


def _check_bounds(terms: Sequence[Term], asked: dict[str, Any], limit: int, offset: int) -> None:
    """Refuse what the server would refuse and the command does, or would not answer in the same way."""
    said = [str(term.value) for term in terms if term.kind in ("text", "stored")]
    texts = [*said, *asked["category"], *asked["not_category"], *asked["where"]]
    whole = asked["unique"] or asked["group_by"] is not None
    if limit > PAGE and whole:
        # Near copies fold over all that is asked for, and the ranks of groups go on through them.
        option = "--unique" if asked["unique"] else "--group-by"
        raise NoAnswer(f"gives at most {PAGE} hits with {option}")
    if limit > PAGE * MAX_PAGES or limit + offset > MAX_DEPTH:
        raise NoAnswer(f"gives at most {PAGE * MAX_PAGES:,} hits, and none after {MAX_DEPTH:,}")
    if asked["group_by"] is not None and asked["per_group"] > MAX_PER_GROUP:
        raise NoAnswer(f"gives at most {MAX_PER_GROUP} hits of a group")
    if asked["group_by"] is not None and limit * asked["per_group"] > MAX_DEPTH:
        raise NoAnswer(f"gives at most {MAX_DEPTH:,} hits in groups")
    if (
        len(terms) > MAX_TERMS
        or any(abs(term.weight) > MAX_WEIGHT for term in terms)
        or max(map(len, texts), default=0) > MAX_TEXT
        or len(asked["category"]) > MAX_CATEGORIES
        or len(asked["not_category"]) > MAX_CATEGORIES
        or len(asked["where"]) > MAX_CONDITIONS
        or len(asked["collection"]) > MAX_NAME
    ):
        raise NoAnswer("does not take so long a query")
    # File names may hold bytes that are no UTF-8, which JSON cannot say.
    for text in (*said, *asked["where"], asked["collection"]):
        if not _is_unicode(text):
            raise NoAnswer("cannot be asked for what is not Unicode")


def _printable(name: str) -> str:
    # As the payload has it; what has no such form is for make_filter to refuse.
    try:
        return escape_undecodable(name)
    except UnicodeEncodeError:
        raise NoAnswer("") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- Terms ----------------------------------------------------------------------------------------------


class _Sent:
    """Terms as the server takes them, and the pictures that go with them; read once for all pages.

    The path of a stored picture may mean a file here or one below the folder that was ingested, and the
    server has another working folder: first it is asked for as what it most likely is, then as the other.

    Raises:
        ImageError: If a picture cannot be had.
        NoAnswer: If the pictures are too large.
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
                raise NoAnswer("does not take pictures of so many bytes")

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
        raise NoAnswer("cannot be sent a picture that is in memory")
    name = os.path.basename(term.value)
    return name, read_picture(term.value, lambda file: file.read(MAX_PICTURES_BYTES + 1))


# ---- HTTP -----------------------------------------------------------------------------------------------


def _asked(running: Running, asked: dict[str, Any], sent: _Sent, pathless: bool) -> dict[str, Any]:
    """Return the server's answer to one page; wait for a server that is busy."""
    waited_until = time.monotonic() + WAIT_S
    while True:
        query = {"terms": sent.terms(), **asked}
        body, kind = _form(query, sent.pictures) if sent.pictures else (_json(query), "application/json")
        status, retry_after, answer = _posted(running, body, kind)
        if status == 200:
            return answer
        problem = _problem(running, status, answer)
        if status == 503:
            pause = min(max(retry_after, 0.1), WAIT_S)
            if time.monotonic() + pause > waited_until:
                raise problem
            time.sleep(pause)
        elif status == 400 and sent.flip():
            continue
        elif status == 400 and answer.get("kind") and pathless:
            raise problem
        elif status in (400, 404, 422):
            # Without the server the message is whole; it does not even take longer, where no model is needed.
            raise NoAnswer("", problem)
        else:
            raise NoAnswer(f"does not answer this: {str(problem).splitlines()[0]}", problem)


def _posted(running: Running, body: bytes, kind: str) -> tuple[int, float, dict[str, Any]]:
    """Send a query; return the status, the seconds to wait before another try, and what came.

    Raises:
        NoAnswer: If nothing came that is imret's.
        StoreUnavailable: If nothing came in time.
    """
    headers = {
        "Content-Type": kind,
        "Accept": "application/json",
        "User-Agent": f"imret/{__version__}",
        "Connection": "close",
    }
    if running.token is not None:
        headers["Authorization"] = f"Bearer {running.token}"
    # No proxy, and no redirect is followed: this is about a process of this machine.
    try:
        url = urlsplit(running.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=CONNECT_TIMEOUT_S)
    except (ValueError, http.client.InvalidURL):
        raise NoAnswer("is no address to ask") from None
    try:
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
    except OSError as error:
        connection.close()
        raise NoAnswer(f"does not answer ({_reason(error)})") from error
    try:
        # Not the end: it may have answered before it had read all.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/api/v1/search", body, headers)
        response = connection.getresponse()
        data = response.read()
    except TimeoutError as error:
        raise StoreUnavailable(
            f"imret serve at {running.url} (process {running.pid}) has not answered within "
            f"{ANSWER_TIMEOUT_S:g} s.\nTry again, or search without it: IMRET_SERVER=off imret search ..."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"ended before it had answered ({_reason(error)})") from error
    finally:
        connection.close()
    expected = "application/json" if response.status == 200 else "application/problem+json"
    media_type = (response.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    try:
        answer = json.loads(data) if media_type == expected else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswer(f"gives no answer of imret's (status {response.status})")
    return response.status, _seconds(response.headers.get("Retry-After")), answer


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or "1")
    except ValueError:  # a date
        return 1.0
    return seconds if math.isfinite(seconds) else 1.0


def _problem(running: Running, status: int, answer: dict[str, Any]) -> ImretError:
    """Return the error that a problem (RFC 9457) stands for."""
    detail = str(answer.get("detail") or answer.get("title") or f"status {status}")
    named = getattr(errors, str(answer.get("kind")), None)
    if isinstance(named, type) and issubclass(named, ImretError):
        return named(detail)
    if status == 503:
        return StoreUnavailable(
            f"imret serve at {running.url} is busy: {detail}\n"
            "Try again, or search without it: IMRET_SERVER=off imret search ..."
        )
    return ImretError(detail)


def _hits_of(answer: dict[str, Any]) -> list[Hit]:
    try:
        return [
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
    except (KeyError, TypeError, ValueError) as error:
        raise NoAnswer("gives hits that this version of imret does not understand") from error


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
