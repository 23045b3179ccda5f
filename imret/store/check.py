"""What lies in a collection that imret did not put there: found, told, removed.

A store that others write to may hold vectors that spoil every search (NaN), or points that are no pictures.
Fields that they added to a picture are theirs, whatever is in them. Reads a collection as it lies there, a
batch at a time, and the documents that are kept with it. Does not open the pictures.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from imret.store.collection import Collection
from imret.store.documents import DOCUMENTS, BrokenDocument
from imret.store.filter import parse_datetime
from imret.store.payload import FIELDS
from imret.store.protocol import Store
from imret.store.types import RawPoint

Kind = Literal["id", "vector", "payload"]

OPTIONAL = ("category", "unit")  # a picture may be in none
FIRST = 10  # findings that a report has in full
MAX_SHOWN = 40  # characters of a value


@dataclass(frozen=True)
class Finding:
    """A point that imret did not write.

    Attributes:
        id: Of the point.
        reasons: What of it is not as imret writes it: of an id, a vector or a payload, in a sentence.
    """

    id: str | int
    reasons: dict[Kind, str]


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        checked: Points that were looked at.
        found: Points that imret did not write.
        removed: How many of those were removed.
        kinds: How many have something wrong with the id, the vector, the payload.
        first: The first `FIRST` of them, in order of id.
    """

    checked: int = 0
    found: int = 0
    removed: int = 0
    kinds: dict[Kind, int] = field(default_factory=lambda: {"id": 0, "vector": 0, "payload": 0})
    first: list[Finding] = field(default_factory=list)


def check_collection(
    collection: Collection, *, remove: bool = False, on_points: Callable[[int], object] = lambda n: None
) -> CheckReport:
    """Look at every point of a collection; memory stays at one batch.

    Args:
        collection: Is searched and filled meanwhile without harm.
        remove: Remove what is found.
        on_points: Called with the number of points of each batch that was looked at.

    Raises:
        StoreUnavailable, StoreError: As for every question to a collection.
    """
    report = CheckReport()
    for points in collection.inspect():
        found = [
            (point, reasons) for point in points if (reasons := reasons_of(point, collection.identity.dim))
        ]
        for point, reasons in found:
            for kind in reasons:
                report.kinds[kind] += 1
            if len(report.first) < FIRST:
                report.first.append(Finding(point.id, reasons))
        if remove and found:
            collection.delete_raw([point for point, _ in found])
            report.removed += len(found)
        report.checked += len(points)
        report.found += len(found)
        on_points(len(points))
    return report


def check_documents(store: Store, name: str, *, remove: bool = False) -> dict[str, str]:
    """Return which of the documents kept with a collection are damaged, and why.

    Args:
        store: An open store.
        name: Of the collection.
        remove: Remove them.

    Raises:
        StoreUnavailable, StoreError: If one cannot be read for another reason, or be removed.
    """
    found: dict[str, str] = {}
    for kind in DOCUMENTS:
        try:
            store.document(name, kind)
        except BrokenDocument as error:
            found[kind] = str(error).partition("\n")[0]
            if remove:
                store.remove_document(name, kind)
    return found


def reasons_of(point: RawPoint, dim: int) -> dict[Kind, str]:
    """Return why a point is none of imret's, by what is wrong; empty for one that ingest could have written.

    Args:
        point: As it lies there.
        dim: Length of the collection's vectors.
    """
    reasons: dict[Kind, str] = {}
    if isinstance(point.id, int):
        reasons["id"] = "the id is a number, not a UUID"
    if vector := _vector_reason(point.vector, dim):
        reasons["vector"] = vector
    if payload := next(_payload_reasons(point.payload), ""):
        reasons["payload"] = payload
    return reasons


def _vector_reason(vector: Any, dim: int) -> str:
    if not vector and not isinstance(vector, list):
        return "there is no vector"
    if not isinstance(vector, list):
        return f"the vectors have names: {', '.join(map(repr, list(vector)[:3]))}"
    if any(isinstance(number, list) for number in vector):
        return "there are several vectors"
    if len(vector) != dim:
        return f"the vector has {len(vector):,} numbers, not {dim:,}"
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in vector):
        return "the vector holds NaN or infinity"
    return "" if any(vector) else "the vector is zero"


def _payload_reasons(payload: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in FIELDS.items():
        if name not in payload:
            if name not in OPTIONAL:
                yield f"there is no {name}"
        elif not _is_of(kind, payload[name]):
            yield f"{name} is {_shown(payload[name])}, no {kind}"
    if "file_base64" in payload and not _is_file_name(payload["file_base64"]):
        yield f"file_base64 is {_shown(payload['file_base64'])}, no file's name"


def _is_of(kind: str, value: Any) -> bool:
    if kind == "number":
        return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, str):
        return False
    if kind == "datetime":
        try:
            parse_datetime(value)
        except ValueError:
            return False
    return True


def _is_file_name(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(os.fsdecode(base64.b64decode(value, validate=True)))
    except ValueError:
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
