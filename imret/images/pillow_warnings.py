"""Pillow's warnings about odd metadata, off while pictures are decoded."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def pillow_warnings_off() -> Iterator[None]:
    """Ignore Pillow's warnings about odd metadata while any thread decodes.

    Not warnings.catch_warnings: that saves and restores all filters, and two threads that overlap restore
    each other's. This adds and removes one filter, for Pillow's modules only.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for entry in list(warnings.filters):
                    if entry[0] == "ignore" and getattr(entry[3], "pattern", None) == r"PIL\.":
                        with contextlib.suppress(ValueError, AttributeError):
                            warnings.filters.remove(entry)  # type: ignore[attr-defined]
