"""What a store holds: its collections, their models, their pictures by category, index and size."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from imret.store import Store


def describe(store: Store, collection: str | None = None) -> dict[str, Any]:
    """Return the store and every collection in it, or one of them, JSON-safe.

    Returns:
        {"engine", "address", "collections": [{"name", "model", "fingerprint", "dim", "images",
        "categories": {name: images}, "uncategorised", "index": {"status", "vectors"}, "disk_bytes",
        "building": [models of versions not yet complete]}]}. disk_bytes is None where the engine does
        not tell.

    Raises:
        DataError: If there is none of that name.
    """
    names = store.collections() if collection is None else [collection]
    collections = [describe_collection(store, name) for name in names]
    return {"engine": store.engine, "address": store.address, "collections": collections}


def describe_collection(store: Store, name: str) -> dict[str, Any]:
    """Return one collection as `describe` lists it.

    Raises:
        DataError: If there is none of that name.
        StoreLocked: If another process has it open (embedded only).
    """
    with closing(store.open(name)) as collection:
        stats = collection.stats()
        categories = collection.facet("category")
        return {
            "name": name,
            "model": collection.identity.model,
            "fingerprint": collection.identity.fingerprint,
            "dim": collection.identity.dim,
            "images": stats.points,
            "categories": categories,
            "uncategorised": stats.points - sum(categories.values()),
            "index": {"status": stats.status, "vectors": stats.indexed},
            "disk_bytes": stats.disk_bytes,
            "building": [identity.model for identity in store.staged_versions(name)],
        }


def format_table(description: dict[str, Any]) -> str:
    """Return the description as text for a terminal."""
    lines = [f"store        {description['address']} ({description['engine']})"]
    if not description["collections"]:
        lines.append("             no collections yet; make one: imret ingest FOLDER")
    for collection in description["collections"]:
        index, disk_bytes = collection["index"], collection["disk_bytes"]
        size = f", {disk_bytes / 1e6:,.1f} MB on disk" if disk_bytes is not None else ""
        lines += [
            "",
            f"collection   {collection['name']}",
            f"images       {collection['images']:,}{size}",
            f"model        {collection['model']}",
            f"fingerprint  {collection['fingerprint'][:16]}, {collection['dim']} dimensions",
            f"index        {index['status']}, {index['vectors']:,} vectors indexed",
        ]
        staged = collection["building"]
        lines += [f"building     a version with {model}, not complete yet" for model in staged]
        rows = [*collection["categories"].items()]
        if collection["uncategorised"]:
            rows.append(("(none)", collection["uncategorised"]))
        width = max((len(name) for name, _ in rows), default=0)
        label = "categories"
        for name, count in rows:
            lines.append(f"{label:<11}  {name:<{width}}  {count:>9,}")
            label = ""
    return "\n".join(lines)
