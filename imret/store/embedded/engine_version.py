"""Which engine it is, without loading it."""

from __future__ import annotations

from importlib.metadata import version


def engine_version() -> str:
    """Return name and version of the engine, for whoever has to migrate what it made."""
    return f"qdrant-edge-py {version('qdrant-edge-py')}"
