"""Forms and JSON of requests, bounded and validated."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from imret.errors import DataError
from imret.web.schemas import MAX_CLASSIFIED, MAX_LABELS, SearchIn

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")

# A query in JSON or in the field of a form: reading it holds up everybody, so it is small. Its longest terms
# and conditions are a third of that.
MAX_JSON_BYTES = 4 << 20

# Faults of one input that are named; a million of them make a worse answer than the first.
MAX_DESCRIBED = 10

MAX_MEMBERS = 100  # of one object; a query has some twenty
MAX_NAMED = 100  # characters of a field's name, which the client chose


@dataclass(frozen=True)
class Form:
    """A form that was posted: texts by field, and files with their names."""

    texts: Mapping[str, list[str]]
    pictures: list[tuple[str, bytes]]


async def read_form(request: Request) -> Form:
    """Return the form of a request.

    Raises:
        DataError: If it has none, one that cannot be read, or one of too many fields or files.
    """
    if media_type_of(request) not in FORM_TYPES:
        raise DataError("send a form: Content-Type multipart/form-data.")
    texts: dict[str, list[str]] = {}
    pictures = []
    try:
        form = await _parse_form(request)
    except MultiPartException as error:
        raise DataError(f"the form cannot be read: {error.message}") from error
    for name, value in form.multi_items():
        if isinstance(value, str):
            texts.setdefault(name, []).append(value)
        elif name == "picture":
            pictures.append((value.filename or "", await value.read()))
    await form.close()
    return Form(texts, pictures)


async def _parse_form(request: Request) -> FormData:
    fields = MAX_LABELS + MAX_CLASSIFIED + 8
    if media_type_of(request) == FORM_TYPES[1]:
        return await FormParser(request.headers, request.stream(), max_fields=fields).parse()
    return await _InMemoryParser(
        request.headers, request.stream(), max_files=MAX_CLASSIFIED, max_fields=fields
    ).parse()


class _InMemoryParser(MultiPartParser):
    """What is sent is bounded and not for the disk, which may be full."""

    spool_max_size = sys.maxsize


async def read_json_body(request: Request) -> bytes:
    """Return the body of a request that is JSON.

    Raises:
        DataError: If it has more than `MAX_JSON_BYTES`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise DataError(f"the query is too large: at most {MAX_JSON_BYTES:,} bytes of JSON.")
    return bytes(body)


def media_type_of(request: Request) -> str:
    """Return the media type of a request's body, in lower case, without parameters; "" if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def number_field(form: Form, name: str, default: int) -> int:
    """Return a field of a form as a number.

    Raises:
        DataError: If it is not a number from 1 to `MAX_LABELS`.
    """
    texts = form.texts.get(name)
    if not texts:
        return default
    digits = texts[0].lstrip("0") if texts[0].isascii() and texts[0].isdecimal() else ""
    if not (digits and len(digits) < 10 and int(digits) <= MAX_LABELS):
        raise DataError(f"{name} is a number from 1 to {MAX_LABELS}, not {texts[0][:100]!r}.")
    return int(digits)


def flag_field(form: Form, name: str, default: bool) -> bool:
    """Return a field of a form as true or false.

    Raises:
        DataError: If it says neither.
    """
    texts = form.texts.get(name)
    if not texts:
        return default
    if texts[0] not in ("true", "false"):
        raise DataError(f"{name} is true or false, not {texts[0][:100]!r}.")
    return texts[0] == "true"


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says.

    Raises:
        DataError: If it is no JSON, or has an object of more than `MAX_MEMBERS` members.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the query is not JSON: {str(error)[:200]}") from error


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members) > MAX_MEMBERS:
        raise DataError(f"the query has an object of {len(members):,} members: at most {MAX_MEMBERS}.")
    return dict(members)


def validate_search(content: Any) -> SearchIn:
    """Return the query that JSON holds.

    Raises:
        DataError: If it is not one; the message names up to `MAX_DESCRIBED` faults.
    """
    try:
        return SearchIn.model_validate(content)
    except ValidationError as error:
        raise DataError(describe_errors(error.errors(include_url=False, include_input=False))) from error


def describe_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with an input, in one sentence a field."""
    sentences = []
    for error in errors[:MAX_DESCRIBED]:
        field = ".".join(str(part)[:MAX_NAMED] for part in error["loc"])
        sentences.append(f"{field or 'the query'}: {error['msg'].rstrip('.')}.")
    if len(errors) > MAX_DESCRIBED:
        sentences.append(f"(And {len(errors) - MAX_DESCRIBED:,} more.)")
    return " ".join(sentences)
