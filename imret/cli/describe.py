"""What a store holds: its collections, their models, their pictures by category, index and size."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

from imret.errors import StoreDamaged, StoreError, StoreUnavailable, summary
from imret.escape import escape_control
from imret.store import Identity, Stats, Store

# Of a collection that cannot be described: what it is, by which key the reason is found.
UNDESCRIBED = ("unavailable", "damaged", "incomplete")

# In which a collection has to answer to be described among others: a person waits, and the others are there.
PATIENCE_S = 2.0


def describe(store: Store, collection: str | None = None) -> dict[str, Any]:
    """Return the store and every collection in it, or one of them, JSON-safe.

    Returns:
        {"engine", "address", "collections": [{"name", "model", "fingerprint", "dim", "images",
        "categories": {name: images}, "uncategorised", "index": {"status", "vectors", "m"}, "disk_bytes",
        "building": [models of versions not yet complete], "names": {category: [names stored with the
        collection]}}]}. disk_bytes, and the vectors of the index, are
        None where the engine does not tell; index is as in `imret.store.Stats`. Of a collection that cannot
        be asked now {"name", "model", "unavailable": why}, the model None where that is not known either; of
        one that has lost files {"name", "model", "damaged": why}; and of what an ingest or a deletion that
        was cut short has left {"name", "model", "incomplete": why}.

    Raises:
        DataError: If there is none of that name.
    """
    collections = describe_all(store) if collection is None else [describe_if_it_answers(store, collection)]
    return {"engine": store.engine, "address": store.address, "collections": collections}


def describe_all(store: Store) -> list[dict[str, Any]]:
    """Return every collection of a store, by name, as `describe` lists it, also what is not complete."""
    names = store.collections()
    described = [describe_if_it_answers(store, name) for name in names]
    for name in set(store.incomplete()) - set(names):
        building: list[Identity] = []
        with suppress(StoreError):
            building = store.staged_versions(name)
        why = "an ingest, an import or a deletion was cut short; run it again"
        model = building[0].model if building else None
        described.append({"name": name, "model": model, "incomplete": why})
    return sorted(described, key=lambda one: str(one["name"]))


def describe_if_it_answers(store: Store, name: str) -> dict[str, Any]:
    """Return one collection as `describe` lists it, also where another process or a lost node has it."""
    try:
        return describe_collection(store, name, patience_s=PATIENCE_S)
    except StoreError as error:
        model = None
        if not isinstance(error, StoreUnavailable):
            with suppress(StoreError):
                live = store.live(name)
                model = live.model if live else None
        how = "damaged" if isinstance(error, StoreDamaged) else "unavailable"
        return {"name": name, "model": model, how: summary(error)}


def describe_collection(store: Store, name: str, *, patience_s: float | None = None) -> dict[str, Any]:
    """Return one collection as `describe` lists it.

    Args:
        store: Its store.
        name: Of the collection.
        patience_s: How long it is waited for, as for `Store.open`.

    Raises:
        DataError: If there is none of that name.
        StoreLocked: If another process has it open (embedded only).
        StoreUnavailable: If its store, or a part of it, does not answer.
    """
    with closing(store.open(name, patience_s=patience_s)) as collection:
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
            "index": {"status": stats.status, "vectors": stats.indexed, "m": stats.m},
            "disk_bytes": stats.disk_bytes,
            "building": [identity.model for identity in store.staged_versions(name)],
            "names": {key: list(called) for key, called in _names_of(store, name).items()},
        }


def _names_of(store: Store, name: str) -> dict[str, tuple[str, ...]]:
    from imret.retrieval.category_names import stored_names

    # Where they are damaged, `imret collections check` says so; the collection can be described all the same.
    return stored_names(store, name, notify=lambda why: None)


def undescribed(collection: dict[str, Any]) -> str:
    """Return which of `UNDESCRIBED` a collection is, "" if none."""
    return next((how for how in UNDESCRIBED if how in collection), "")


def format_table(description: dict[str, Any], where: str = "") -> str:
    """Return the description as text for a terminal.

    Args:
        description: From `describe`.
        where: The options that name the store in a command, after a blank; "" where it is found without.
    """
    lines = [f"store        {description['address']} ({description['engine']})"]
    if not description["collections"]:
        lines.append(f"             no collections yet; make one: imret ingest FOLDER{where}")
    for collection in description["collections"]:
        lines += ["", f"collection   {collection['name']}"]
        how = undescribed(collection)
        if how:
            if collection["model"]:
                lines.append(f"model        {collection['model']}")
            lines.append(f"{how:<11}  {collection[how]}")
        else:
            lines += _table_of(collection)
    return "\n".join(lines)


def _table_of(collection: dict[str, Any]) -> list[str]:
    index, disk_bytes = collection["index"], collection["disk_bytes"]
    stats = Stats(collection["images"], index["vectors"], disk_bytes, index["status"], index["m"])
    size = f", {disk_bytes / 1e6:,.1f} MB on disk" if disk_bytes is not None else ""
    lines = [
        f"images       {collection['images']:,}{size}",
        f"model        {collection['model']}",
        f"fingerprint  {collection['fingerprint'][:16]}, {collection['dim']} dimensions",
        f"index        {stats.index}",
    ]
    lines += [f"building     a version with {model}, not complete yet" for model in collection["building"]]
    label = "names"
    for key, called in collection["names"].items():
        lines.append(f"{label:<11}  {escape_control(key)} = {escape_control(', '.join(called))}")
        label = ""
    rows = [*collection["categories"].items()]
    if collection["uncategorised"]:
        rows.append(("(none)", collection["uncategorised"]))
    width = max((len(name) for name, _ in rows), default=0)
    label = "categories"
    for name, count in rows:
        lines.append(f"{label:<11}  {name:<{width}}  {count:>9,}")
        label = ""
    return lines
