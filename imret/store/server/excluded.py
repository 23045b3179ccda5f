"""What is excluded from the sources of a collection, noted in the metadata of its versions on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imret.store.server.connection import Connection

_KEY = "imret_excluded:"  # a key for each source: what another program notes of another source stays


def read(connection: Connection, physical: str) -> dict[str, tuple[str, ...]]:
    """Return the patterns by source, those of sources that have some."""
    info = connection.request("describe a collection", lambda: connection.client.get_collection(physical))
    metadata: dict[str, Any] = info.config.metadata or {}
    return {
        key[len(_KEY) :]: tuple(map(str, patterns))
        for key, patterns in metadata.items()
        if key.startswith(_KEY) and isinstance(patterns, list) and patterns
    }


def write(connection: Connection, physical: str, excluded: Mapping[str, Sequence[str]]) -> None:
    """Note the patterns of some sources."""
    # Qdrant merges metadata, so that an empty list takes the place of what is forgotten.
    metadata = {f"{_KEY}{source}": list(patterns) for source, patterns in excluded.items()}
    if metadata:
        connection.request(
            "note what is excluded",
            lambda: connection.client.update_collection(physical, metadata=metadata),
        )
