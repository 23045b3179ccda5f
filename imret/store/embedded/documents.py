"""The documents of a collection in an embedded store: a file each, `KIND.document`, in its folder.

Its first line says what it is, a mark that no other revision has, and the digest of the bytes after it. It is
written whole or not at all; whoever changes one does so while nobody else does, and reads without a lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from imret.errors import StoreError
from imret.files import sync_folder, write_atomically
from imret.store.documents import DOCUMENTS, MAX_BYTES, BrokenDocument, DocumentKind, broken, check_size
from imret.store.embedded.locks import switching
from imret.store.embedded.permissions import obstacle
from imret.store.types import new_mark

_SUFFIX = ".document"
FILES = frozenset(f"{kind}{_SUFFIX}" for kind in DOCUMENTS)
_HEADER = re.compile(rb"imret-document 1 ([0-9a-f]{16}) ([0-9a-f]{64})\n")
_DAMAGED = "damaged"  # a mark
_HEADER_BYTES = len(b"imret-document 1 ") + 16 + 1 + 64 + 1


def read(collection: Path, kind: DocumentKind) -> tuple[str, bytes | None]:
    """Return the mark and the bytes of a document; "" and None if there is none.

    Raises:
        BrokenDocument: If it is not what was written.
        StoreError: If it cannot be read.
    """
    data = _read(collection, kind, _HEADER_BYTES + MAX_BYTES + 1)
    if data is None:
        return "", None
    import hashlib  # brings OpenSSL, which most programs at an embedded store never need

    header = _HEADER.match(data)
    content = data[_HEADER_BYTES:]
    if header is None or hashlib.sha256(content).hexdigest() != header[2].decode():
        what = "it does not begin as one" if header is None else "its bytes are not those that were written"
        raise _broken(collection, kind, f"the file {str(path_of(collection, kind))!r} is damaged, as {what}")
    return header[1].decode(), content


def mark(collection: Path, kind: DocumentKind) -> str:
    """Return the mark of a document, "" if there is none; reads a line.

    Raises:
        StoreError: If it cannot be read.
    """
    try:
        data = _read(collection, kind, _HEADER_BYTES)
    except BrokenDocument:
        return _DAMAGED
    if data is None:
        return ""
    header = _HEADER.match(data)
    return _DAMAGED if header is None else header[1].decode()


def change(
    collection: Path,
    kind: DocumentKind,
    make: Callable[[bytes | None], bytes | None],
    check_live: Callable[[], None],
) -> None:
    """Change a document. See `Store.change_document`.

    Args:
        collection: Its folder.
        kind: Of the document.
        make: The change.
        check_live: Raises where there is no live version.

    Raises:
        FileNotFoundError: If the collection is gone meanwhile.
    """
    while True:
        check_live()
        before, old = read(collection, kind)
        new = make(old)
        check_size(collection.name, kind, new)
        if new == old:
            return
        # Not held while the change is made, which may take a while and use the store.
        with switching(collection):
            check_live()
            if mark(collection, kind) == before:
                _write(path_of(collection, kind), new)
                return


def remove(collection: Path, kind: DocumentKind) -> None:
    """Remove a document, whatever it is.

    Raises:
        FileNotFoundError: If the collection is gone.
    """
    with switching(collection):
        _write(path_of(collection, kind), None)


def path_of(collection: Path, kind: DocumentKind) -> Path:
    return collection / f"{kind}{_SUFFIX}"


def _write(path: Path, content: bytes | None) -> None:
    try:
        if content is None:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # not every file system syncs folders
                sync_folder(path.parent)
            return
        import hashlib

        header = f"imret-document 1 {new_mark()} {hashlib.sha256(content).hexdigest()}\n"
        write_atomically(path, header.encode() + content, durable=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _read(collection: Path, kind: DocumentKind, at_most: int) -> bytes | None:
    path = path_of(collection, kind)
    try:
        with open(path, "rb") as file:
            return file.read(at_most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise _broken(collection, kind, f"{str(path)!r} is a folder where a file should be") from None
    except OSError as error:
        why = obstacle(path, store=collection.parent, write=False, error=error)
        raise StoreError(
            f"cannot read {str(path)!r}: {why or error.strerror or error}.",
            public=f"the {kind} kept with collection {collection.name!r} cannot be read.",
        ) from error


def _broken(collection: Path, kind: DocumentKind, reason: str) -> BrokenDocument:
    return broken(collection.name, kind, str(collection.parent), reason)
