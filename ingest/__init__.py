"""Fill a collection from pictures: scan, decode, encode and store, overlapped and resumable.

    from ingest import FolderSource, ingest

Stands on `imret` and is imported by nothing in it; the two meet in a collection.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.pipeline import ingest
    from ingest.report import Report
    from ingest.sources import FolderSource

__all__ = ["FolderSource", "Report", "ingest"]

_HOME = {"FolderSource": "sources", "Report": "report", "ingest": "pipeline"}


def __getattr__(name: str) -> Any:
    """Load what is asked for from its module (PEP 562): `ingest.decode_workers` starts without the rest."""
    if name not in _HOME:
        raise AttributeError(f"module 'ingest' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ingest.{_HOME[name]}"), name)
