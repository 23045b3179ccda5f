"""Points of a store that others write to, made such as ingest writes them.

One point without a path would otherwise spoil every search that finds it.
"""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from imret.store import Point
from imret.store.payload import FIELDS

# Of a field that is not ingest's, as text; an answer may hold hundreds of points.
MAX_OTHER_CHARS = 4_000
MAX_TEXT_CHARS = 20_000  # a source and a path are together at most 16,384: see imret.sources.safe_open


def sanitize_payload(point: Point) -> Point:
    """Return a point that has at least the fields of every picture, each of its type.

    What is missing or of another type becomes a path that leads nowhere, or a hash that no other picture has;
    a category that is no text, and other fields that are large or no JSON, are left out. Of a point that
    ingest wrote nothing changes.
    """
    payload = {name: value for name, value in point.payload.items() if _fits(name, value)}
    if "path" not in payload or "source" not in payload or not _names_a_file(payload):
        payload.pop("file_base64", None)
        payload |= {"path": payload.get("path", point.id), "source": ""}
    payload.setdefault("sha256", point.id)
    return point if payload == point.payload else dataclasses.replace(point, payload=payload)


def _fits(name: str, value: Any) -> bool:
    kind = "text" if name == "file_base64" else FIELDS.get(name)
    if kind == "number":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is not None:
        return isinstance(value, str) and len(value) <= MAX_TEXT_CHARS
    if isinstance(value, float):
        return value - value == 0  # JSON has neither infinity nor NaN
    # Not looked into for what a nested value may hold: repr says `nan` and `inf` of those.
    shown = repr(value)
    return len(shown) <= MAX_OTHER_CHARS and (
        isinstance(value, (str, int)) or not ("nan" in shown or "inf" in shown)
    )


def _names_a_file(payload: Mapping[str, Any]) -> bool:
    if "file_base64" not in payload:
        return True
    try:
        os.fsdecode(base64.b64decode(payload["file_base64"]))
    except ValueError:
        return False
    return True
