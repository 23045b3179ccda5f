"""What is stored beside each vector: a picture's place, its category, and what its file was like.

The one description of the payload that ingest writes and search reads. Hides how a place becomes a
point id, and how file names that are no valid Unicode survive a store that takes only Unicode.
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from imret.escape import escape_undecodable

# What a filter can ask about, by kind: text, whole number, datetime (RFC 3339 in UTC). Without `file_base64`,
# which only pictures with undecodable names have, and what else is known of some: `caption`, `meta`, `at`.
FIELDS: dict[str, Literal["text", "number", "datetime"]] = {
    "category": "text",
    "path": "text",
    "source": "text",
    "sha256": "text",
    "width": "number",
    "height": "number",
    "size_bytes": "number",
    "modified": "datetime",
    "unit": "text",
}

_NAMESPACE = uuid.UUID("6e0a4d0e-6c1f-5d5c-9c53-0c7d3f4b8a11")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def point_id(source: str, path: str) -> str:
    """Return the point id of the picture at `path` below the folder `source`: a UUID, always the same.

    The id is made from the place, not the content, so that two files with one content are two points,
    and a second ingest finds what the first one stored without any list on the side.

    Args:
        source: Absolute folder, as `os.path.realpath` gives it.
        path: Path below it, with forward slashes. Both may hold surrogate escapes (undecodable names).
    """
    name = os.fsencode(source) + b"\0" + os.fsencode(path)
    # RFC 9562 version 5 by hand: uuid.uuid5 takes bytes only from Python 3.12.
    return str(uuid.UUID(bytes=hashlib.sha1(_NAMESPACE.bytes + name).digest()[:16], version=5))


def make_payload(
    *,
    source: str,
    path: str,
    category: str | None,
    sha256: str,
    width: int,
    height: int,
    size_bytes: int,
    modified: str,
    unit: str | None = None,
    at: int | None = None,
    caption: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the payload of one picture: flat but for `meta`, JSON-safe, without None.

    Args:
        source: Absolute folder or URL that was ingested.
        path: Path below it, with forward slashes; of a list of addresses, the address.
        category: First folder below the source; None for a picture in no category.
        sha256: Hex digest of the file's bytes.
        width: Pixels, upright (after EXIF rotation).
        height: Pixels, upright.
        size_bytes: Size of the file.
        modified: Time of last change, from `modified_time`.
        unit: Path of the tar or Parquet file that it lies in, below the source, which `path` begins with.
        at: Where its bytes begin in that, so that they can be read alone: `size_bytes` from there on.
        caption: What is said of it.
        meta: What else is known of it: texts and numbers by name.
    """
    payload: dict[str, Any] = {
        "path": escape_undecodable(path),
        "source": escape_undecodable(source),
        "sha256": sha256,
        "width": width,
        "height": height,
        "size_bytes": size_bytes,
        "modified": modified,
    }
    if category is not None:
        payload["category"] = escape_undecodable(category)
    if unit is not None:
        payload["unit"] = escape_undecodable(unit)
    others = {"at": at, "caption": caption, "meta": None if meta is None else dict(meta)}
    payload |= {name: value for name, value in others.items() if value is not None}
    return _with_exact_place(payload, source, path)


def payload_at(payload: Mapping[str, Any], source: str, path: str) -> dict[str, Any]:
    """Return the payload of a picture that gets another place; what else is stored of it stays.

    Args:
        payload: As it is.
        source: Absolute folder, as for `point_id`.
        path: Path below it, with forward slashes. Both may hold surrogate escapes.
    """
    placed = {name: value for name, value in payload.items() if name != "file_base64"}
    placed |= {"path": escape_undecodable(path), "source": escape_undecodable(source)}
    return _with_exact_place(placed, source, path)


def _with_exact_place(payload: dict[str, Any], source: str, path: str) -> dict[str, Any]:
    if payload["path"] != path or payload["source"] != source:
        # The printable form cannot open the file; these are the exact bytes of its name.
        payload["file_base64"] = base64.b64encode(os.fsencode(os.path.join(source, path))).decode("ascii")
    return payload


def file_of(payload: Mapping[str, Any]) -> str:
    """Return the absolute path or URL of the picture; may hold surrogate escapes.

    It opens the picture, but for one in a container, whose `unit` says so: there it goes on below that file,
    as in /photos/00012.tar/owl.jpg. `imret.sources.opened` opens all of them.
    """
    exact = payload.get("file_base64")
    if exact is not None:
        return os.fsdecode(base64.b64decode(exact))
    return place_of_file(str(payload["source"]), str(payload["path"]))


def place_of_file(source: str, path: str) -> str:
    """Return the absolute path or URL of what lies at a path below a source; of a list the address itself."""
    if "://" in path:
        return path
    if "://" in source:
        return f"{source}/{path}"
    return os.path.join(source, *path.split("/"))


def path_of(payload: Mapping[str, Any]) -> str:
    """Return the exact path below the source, with forward slashes; may hold surrogate escapes."""
    if "file_base64" not in payload:
        return str(payload["path"])
    depth = len(str(payload["path"]).split("/"))
    return "/".join(file_of(payload).split(os.sep)[-depth:])


def source_of(payload: Mapping[str, Any]) -> str:
    """Return the exact folder that was ingested; may hold surrogate escapes."""
    if "file_base64" not in payload:
        return str(payload["source"])
    below = len(os.fsencode(path_of(payload)))
    return os.fsdecode(os.fsencode(file_of(payload))[:-below].rstrip(b"/") or b"/")


def modified_time(mtime_ns: int) -> str:
    """Return a file time as RFC 3339 in UTC with microseconds, which Qdrant can filter by and sorts as text.

    Args:
        mtime_ns: Nanoseconds since 1970. Times outside the years 1 to 9999 are clamped to them.
    """
    try:
        time = _EPOCH + timedelta(microseconds=mtime_ns // 1000)
    except OverflowError:
        time = (datetime.max if mtime_ns > 0 else datetime.min).replace(tzinfo=timezone.utc)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%f").rjust(26, "0") + "Z"
