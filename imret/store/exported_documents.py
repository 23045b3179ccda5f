"""The documents of a collection in the metadata of its exported file: parts of base64, and what they make.

Not as rows: those are points. In parts, as a reader of Parquet takes no text of any length.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from imret.store.documents import EXPORTED, MAX_BYTES, DocumentKind
from imret.store.protocol import Store

PART_BYTES = 768 << 10  # a megabyte of base64


@dataclass(frozen=True)
class Described:
    """A document that a file says it holds.

    Attributes:
        bytes: How many it is.
        parts: How many parts it is in.
        sha256: Of the bytes.
    """

    bytes: int
    parts: int
    sha256: str


def describe(documents: Mapping[DocumentKind, bytes]) -> dict[str, Any]:
    """Return what the note of a file says of documents, as JSON values."""
    return {
        kind: asdict(Described(len(content), len(_parts(content)), hashlib.sha256(content).hexdigest()))
        for kind, content in documents.items()
    }


def parts_of(documents: Mapping[DocumentKind, bytes]) -> dict[bytes, bytes]:
    """Return the parts of documents, each with the key that it has in a file's metadata."""
    return {
        _key(kind, i): base64.b64encode(part)
        for kind, content in documents.items()
        for i, part in enumerate(_parts(content))
    }


def parse(note: object) -> dict[DocumentKind, Described] | None:
    """Return what a note says of documents; None if it says nothing, as that of an older imret.

    Raises:
        ValueError: If it is not as `describe` makes it, or one is larger than any that is kept.
    """
    if note is None:
        return None
    if not isinstance(note, dict):
        raise ValueError("documents are no object")
    if unknown := sorted(set(note) - set(EXPORTED)):
        raise ValueError(f"this imret does not know what {unknown[0]!r} is; upgrade it")
    described = {}
    for kind in EXPORTED:
        if kind not in note:
            continue
        try:
            about = Described(**note[kind])
        except TypeError as error:
            raise ValueError(f"its {kind} are not described") from error
        if not (type(about.bytes) is type(about.parts) is int and isinstance(about.sha256, str)):
            raise ValueError(f"its {kind} are not described")
        if not 0 <= about.bytes <= MAX_BYTES:
            raise ValueError(
                f"its {kind} take {about.bytes / 1e6:,.0f} MB, and no more than {MAX_BYTES / 1e6:,.0f} MB "
                "are kept with a collection"
            )
        if about.parts != -(-about.bytes // PART_BYTES):
            raise ValueError(f"its {kind} are not described")
        described[kind] = about
    return described


def join(
    described: Mapping[DocumentKind, Described], metadata: Mapping[bytes, bytes]
) -> dict[DocumentKind, bytes | None]:
    """Return every kind of document: what a file holds of it, None if nothing.

    Raises:
        ValueError: If one is not whole.
    """
    documents: dict[DocumentKind, bytes | None] = dict.fromkeys(EXPORTED)
    for kind, about in described.items():
        try:
            parts = [metadata[_key(kind, i)] for i in range(about.parts)]
            content = b"".join(base64.b64decode(part, validate=True) for part in parts)
        except (KeyError, ValueError) as error:
            raise ValueError(f"its {kind} are not whole") from error
        if (len(content), hashlib.sha256(content).hexdigest()) != (about.bytes, about.sha256):
            raise ValueError(f"its {kind} are not what was exported")
        documents[kind] = content
    return documents


def keep(store: Store, name: str, documents: Mapping[DocumentKind, bytes | None], *, replace: bool) -> None:
    """Keep with a collection what a file holds.

    Args:
        store: An open store.
        name: Of the collection.
        documents: From `join`; what is not in it stays as it is.
        replace: Take the place of what the collection has, None of anything; else of nothing alone.
    """
    for kind, content in documents.items():
        if replace and content is None:
            store.remove_document(name, kind)
        elif content is not None:
            store.change_document(name, kind, partial(_chosen, content, replace))


def _chosen(new: bytes, replace: bool, old: bytes | None) -> bytes:
    return new if replace or old is None else old


def _parts(content: bytes) -> list[bytes]:
    return [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]


def _key(kind: str, i: int) -> bytes:
    return f"imret.{kind}.{i}".encode()
