"""How folders lie to each other: by the components of their real paths, never by their first letters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from imret.datasets.exclusion import Exclusion


def path_within(inner: str, outer: str) -> str | None:
    """Return the path of a folder below another, with forward slashes; None where it does not lie below it.

    Args:
        inner: Absolute, as `os.path.realpath` gives it.
        outer: The same. A folder does not lie below itself.
    """
    above = outer if outer.endswith(os.sep) else outer + os.sep
    return inner[len(above) :] if inner.startswith(above) and inner != above else None


def covers(outer: str, inner: str, patterns: Sequence[str] = ()) -> bool:
    """Whether a walk of one source meets the pictures of another, which lies below it.

    One that lies in a folder that is left out is not met.

    Args:
        outer: The source that is walked.
        inner: The other.
        patterns: What is excluded from the outer one: see `imret.datasets.exclusion.Exclusion`.
    """
    path = path_within(inner, outer)
    return path is not None and Exclusion(outer, patterns).reason_within(path, is_folder=True) is None


def overlap(one: str, other: str, excluded: Mapping[str, Sequence[str]] = MappingProxyType({})) -> bool:
    """Whether two different sources hold the same pictures: one of them covers the other.

    Args:
        one: A source.
        other: Another.
        excluded: By source, what is excluded from it.
    """
    return covers(one, other, excluded.get(one, ())) or covers(other, one, excluded.get(other, ()))
