"""The error for a collection that an embedded store does not hold, with the command that ends that."""

from __future__ import annotations

import shlex

from imret.errors import DataError, no_such_collection


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
