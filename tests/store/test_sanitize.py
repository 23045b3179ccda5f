"""Points that somebody else wrote are given to the API as ingest would have written them."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest

from imret.errors import ImageError
from imret.sources.safe_open import stored_place
from imret.store import Point
from imret.store.payload import file_of, make_payload
from imret.store.sanitize import sanitize_payload

ID = "00000000-0000-0000-0000-000000000001"
WHOLE: dict[str, Any] = make_payload(
    source="/photos",
    path="aves/1.jpg",
    category="aves",
    sha256="ab" * 32,
    width=4,
    height=3,
    size_bytes=9,
    modified="2024-05-01T00:00:00.000000Z",
)


@pytest.mark.parametrize(
    "payload",
    [
        WHOLE,
        {**WHOLE, "note": "mine", "stars": 4, "weight": 0.5, "tags": ["a", "b"]},
        make_payload(
            **{
                **{k: v for k, v in WHOLE.items() if k != "category"},
                "category": None,
                "path": os.fsdecode(b"caf\xe9.jpg"),
            }
        ),
    ],
)
def test_what_ingest_writes_is_left_as_it_is(payload: dict[str, Any]) -> None:
    point = Point(ID, payload, None, 0.5)
    assert sanitize_payload(point) is point


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"path": "a.jpg"},
        {"path": 5, "source": None, "sha256": {"x": 1}},
        {**WHOLE, "source": 7},
        {**WHOLE, "file_base64": "a"},
        {**WHOLE, "file_base64": "caf\u00e9"},
        {**WHOLE, "file_base64": 5, "source": []},
        {**WHOLE, "path": "x" * 30_000},
    ],
)
def test_a_point_without_a_place_leads_nowhere_and_spoils_nothing(broken: dict[str, Any]) -> None:
    payload = sanitize_payload(Point(ID, broken, None, 0.5)).payload
    assert isinstance(file_of(payload), str)
    assert isinstance(payload["sha256"], str)
    with pytest.raises(ImageError, match="not one that imret ingest writes"):
        stored_place(payload)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("category", ["a", "b"]),
        ("category", 7),
        ("modified", 7),
        ("width", "wide"),
        ("width", True),
        ("other", "x" * 5_000),
        ("other", {"deep": ["x"] * 5_000}),
        ("other", math.nan),
        ("other", [math.inf]),
        ("file_base64", 5),
    ],
)
def test_a_field_of_another_type_or_too_large_is_left_out(name: str, value: Any) -> None:
    payload = sanitize_payload(Point(ID, {**WHOLE, name: value}, None, 0.5)).payload
    assert payload == {key: one for key, one in WHOLE.items() if key != name}
    json.dumps(payload, allow_nan=False)
