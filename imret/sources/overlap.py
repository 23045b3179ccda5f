"""How folders lie to each other: by the components of their real paths, never by their first letters."""

from __future__ import annotations

import os

from imret.datasets.scan import left_out


def path_within(inner: str, outer: str) -> str | None:
    """Return the path of a folder below another, with forward slashes; None where it does not lie below it.

    Args:
        inner: Absolute, as `os.path.realpath` gives it.
        outer: The same. A folder does not lie below itself.
    """
    above = outer if outer.endswith(os.sep) else outer + os.sep
    return inner[len(above) :] if inner.startswith(above) and inner != above else None


def covers(outer: str, inner: str) -> bool:
    """Whether a walk of one source meets the pictures of another, which lies below it.

    One that lies in a hidden or system folder is not met.
    """
    path = path_within(inner, outer)
    return path is not None and not any(left_out(part) for part in path.split("/"))


def overlap(one: str, other: str) -> bool:
    """Whether two different sources hold the same pictures: one of them covers the other."""
    return covers(one, other) or covers(other, one)
