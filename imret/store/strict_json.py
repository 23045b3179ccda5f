"""JSON of others, read as the standard has it: no key twice, no NaN."""

from __future__ import annotations

import json
from typing import Any


def parse_object(text: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError: If it is no JSON object, has a key twice, or a number that is none.
        RecursionError: If it is nested deeper than Python reads.
    """
    payload = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    if not isinstance(payload, dict):
        raise ValueError(f"a payload is an object, not {text[:50]!r}")
    return payload


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    payload = dict(pairs)
    if len(payload) != len(pairs):
        raise ValueError("a payload has a key twice")
    return payload


def _refuse_constant(name: str) -> float:
    raise ValueError(f"a payload holds {name}")
