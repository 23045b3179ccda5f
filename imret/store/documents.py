"""Which documents a collection may have beside its points, how large they may be, and the error for damage.

How they are read and changed says `imret.store.protocol.Store`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from imret.errors import DataError, StoreError

DocumentKind: TypeAlias = Literal["names", "concepts", "missing"]
DOCUMENTS: tuple[DocumentKind, ...] = get_args(DocumentKind)
# Those that go into an exported file; the others an ingest makes again.
EXPORTED: tuple[DocumentKind, ...] = ("names", "concepts")

# 65,000 concepts of 1,024 float32. A file that brings a larger one is not of an imret.
MAX_BYTES = 256 << 20


def check_kind(kind: str) -> None:
    """Raise ValueError for what is no kind of document."""
    if kind not in DOCUMENTS:
        raise ValueError(f"a document is one of {', '.join(DOCUMENTS)}, not {kind!r}")


def check_size(name: str, kind: str, content: bytes | None) -> None:
    """Refuse a document that is too large.

    Raises:
        DataError: If it is.
    """
    if content is not None and len(content) > MAX_BYTES:
        raise DataError(
            f"the {kind} of collection {name!r} would take {len(content) / 1e6:,.0f} MB, and at most "
            f"{MAX_BYTES / 1e6:,.0f} MB are kept with a collection."
        )


class BrokenDocument(StoreError):
    """A document is there, and is not what was stored. The pictures do not depend on it."""


def broken(name: str, kind: str, address: str, reason: object) -> BrokenDocument:
    """Return the error for a document that is damaged, with the command that ends it.

    Args:
        name: Of the collection.
        kind: Of the document.
        address: Of the store, as for --db.
        reason: What is wrong, without a full stop.
    """
    import shlex

    return BrokenDocument(
        f"the {kind} kept with collection {name!r} in {address} are damaged: {reason}. The pictures are "
        f"not touched by that.\nRemove the {kind} alone, to make them again: "
        f"imret collections check {name} --remove --db {shlex.quote(address)}",
        public=f"the {kind} kept with collection {name!r} are damaged. Where it is served, "
        f"imret collections check {name} says why.",
    )
