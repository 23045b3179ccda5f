"""Errors for what an embedded store does not hold, or not any more, with the command that ends that."""

from __future__ import annotations

import shlex
from pathlib import Path

from imret import system
from imret.errors import DataError, StoreError, no_such_collection
from imret.store.collection import changed_meanwhile
from imret.store.embedded import layout as folder


def no_such(address: str, name: str, existing: list[str], is_staged: bool, is_left_over: bool) -> DataError:
    """Return it.

    Args:
        address: Of the store.
        name: Of the collection.
        existing: Those that it holds.
        is_staged: Whether a version is being made.
        is_left_over: Whether there is what an ingest or a deletion that was cut short has left.
    """
    at = f" --db {shlex.quote(address)}"
    if is_staged:
        return DataError(f"collection {name!r} is not complete yet. Run its ingest again to finish it.")
    if is_left_over:
        return DataError(
            f"of collection {name!r} in {address!r} there is what an ingest or a deletion left that was cut "
            "short, and no picture. Run the ingest again, or delete that: "
            f"imret collections delete {name}{at}"
        )
    what = no_such_collection(name, existing, f"in {address!r}", "It holds none yet")
    # Whoever renames, deletes or shows one does not want to make it; where there are some, one is meant.
    return DataError(what if existing else f"{what}\nMake it: imret ingest FOLDER --collection {name}{at}")


def check_not_replaced(address: str, version: Path, place: system.HeldFolder, *, to_fill: bool) -> None:
    """Make sure that a version that was opened again is what was open, and still worth filling.

    Args:
        address: Of the store.
        version: Its folder.
        place: The folder that was open.
        to_fill: Whether it is open to be filled, and not to be read only.

    Raises:
        StoreError: If it is another.
        ChangedMeanwhile: If it has been replaced.
    """
    collection = version.parent
    if not place.is_at(version):
        raise StoreError(
            f"the collection {collection.name!r} in {address!r} was dropped by another program "
            "while this one used it. Run the command again."
        )
    if to_fill and folder.is_retired(version):
        raise changed_meanwhile(collection.name, address)
