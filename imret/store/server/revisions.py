"""The revisions of documents, in a Qdrant collection of their own.

It holds points of two kinds. Pieces are parts of a revision, base64. A claim says that a revision is number n
of a document, and which bytes it is; its id is made of n, and it is only ever inserted, so of two programs
that claim a number the server takes one. So a change is there whole or not at all, whenever a program or the
server is killed, and of changes at the same time each is made of what the one before it left; on a cluster
that is as good as its write ordering "strong". Hides pieces, claims, and what killed programs left.
"""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client import models

from imret.errors import StoreError, StoreUnavailable
from imret.store.documents import DOCUMENTS, MAX_BYTES, DocumentKind, check_size
from imret.store.server.connection import Connection, ReplacedError, patient_for

PIECE_BYTES = 512 << 10  # as base64 less than the megabyte that proxies let pass
READ_PIECES = 4  # in one request
# For so long what no claim names may be what another program is storing. By the clocks of different machines.
STORING_S = 900.0
_KEPT_CLAIMS = 8  # below the newest, so that a program that was asleep meanwhile finds its number taken
_LOOKS = 5
_TIDY_S = 2.0
_MOST_PIECES = MAX_BYTES // (64 << 10)  # whoever wrote them

_SPACE = uuid.UUID("6f0f3f1c-5d0e-4c7e-9a54-1d2a5c3c8f10")
_NOBODY = uuid.UUID(int=0)


class _Lost(Exception):
    """Pieces of a revision are not there, or not those that were stored."""


@dataclass(frozen=True)
class Claim:
    """A revision of a document.

    Attributes:
        kind: Of the document.
        n: Its number, from 1 on; the highest is the document.
        revision: Names its pieces: when it was begun, and what no other is.
        base: The revision that it was made of; "" of the first.
        size: In bytes; None where the document is removed.
        pieces: How many there are.
        sha256: Of the bytes.
    """

    kind: DocumentKind
    n: int
    revision: str
    base: str
    size: int | None
    pieces: int
    sha256: str


class DamagedRevision(StoreError):
    """What is there of a revision is not what was stored."""


class Revisions:
    """Reads and changes documents, each in the Qdrant collection that a caller calls its place.

    Args:
        connection: To the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client

    def read(self, place: str, kind: DocumentKind) -> tuple[Claim | None, bytes | None]:
        """Return a document, and its newest claim.

        Raises:
            DamagedRevision: If it is not what was stored.
        """
        head = self.head(place, kind)
        for _ in range(_LOOKS):
            if head is None or head.size is None:
                return head, None
            try:
                return head, self._content(place, head)
            except (_Lost, ReplacedError) as error:
                before, head = head, self.head(place, kind)
                if head == before:
                    reason = f"revision {before.revision} in {place!r} is damaged: {error}"
                    raise DamagedRevision(reason) from None
        raise StoreError("other programs go on changing it")

    def change(
        self,
        place: str,
        name: str,
        kind: DocumentKind,
        change: Callable[[bytes | None], bytes | None] | None,
    ) -> bool:
        """Change a document, or remove it, whatever it is, where there is no `change`.

        Args:
            place: The Qdrant collection; is made where it is not there.
            name: Of the collection, for people.
            kind: Of the document.
            change: See `Store.change_document`.

        Returns:
            Whether it was changed; False if another program came first: then try again.
        """
        head, old = (self.head(place, kind), None) if change is None else self.read(place, kind)
        new = None if change is None else change(old)
        check_size(name, kind, new)
        is_there = head is not None and head.size is not None
        if (new is None and not is_there) or (new is not None and new == old):
            return True
        self._make(place, name)
        claim = self._store(place, kind, head, new)
        if claim is None:
            return False
        done = self._claim(place, claim)
        with suppress(StoreError), patient_for(_TIDY_S):  # else the next change does
            self._tidy(place, claim)
        return done

    def drop(self, place: str) -> None:
        """Remove all documents of a place."""
        if self._exists(place):
            self._connection.request("delete the documents", lambda: self._client.delete_collection(place))

    def head(self, place: str, kind: DocumentKind) -> Claim | None:
        """Return the newest claim of a document; None where there never was one."""
        return max(self._claims(place, [kind]), key=lambda claim: claim.n, default=None)

    def _claims(self, place: str, kinds: Sequence[str]) -> list[Claim]:
        of_kinds = models.FieldCondition(key="kind", match=models.MatchAny(any=[*kinds]))
        try:
            records, _ = self._connection.request(
                "look up the documents",
                lambda: self._client.scroll(
                    place, scroll_filter=models.Filter(must=[of_kinds]), limit=1_000, with_payload=True
                ),
            )
        except StoreUnavailable:
            raise
        except StoreError:
            if self._exists(place):
                raise
            return []  # no document was ever stored
        return [claim for record in records if (claim := _claim_of(record.payload or {})) is not None]

    def _content(self, place: str, claim: Claim) -> bytes:
        import hashlib

        ids = _piece_ids(claim.revision, claim.pieces)
        parts: list[bytes] = []
        for start in range(0, len(ids), READ_PIECES):
            some = ids[start : start + READ_PIECES]
            records = self._connection.request(
                "read a document",
                lambda some=some: self._client.retrieve(place, some, with_payload=True),  # type: ignore[misc]
            )
            found = {str(record.id): record.payload or {} for record in records}
            for i, id_ in enumerate(some, start):
                if id_ not in found:
                    raise _Lost(f"piece {i + 1:,} of {claim.pieces:,} is missing")
                try:
                    parts.append(base64.b64decode(found[id_]["data"], validate=True))
                except (KeyError, TypeError, ValueError):
                    raise _Lost(f"piece {i + 1:,} of {claim.pieces:,} cannot be read") from None
        content = b"".join(parts)
        if hashlib.sha256(content).hexdigest() != claim.sha256:
            raise _Lost("its bytes are not those that were stored")
        return content

    def _make(self, place: str, name: str) -> None:
        """Make the Qdrant collection for documents, and its indexes, as far as they are not there."""
        if not self._exists(place):
            try:
                self._connection.request(f"make the collection {place!r}", lambda: self._create(place, name))
            except StoreUnavailable:
                raise
            except StoreError:  # another program was first, or an earlier try whose answer got lost
                if not self._exists(place):
                    raise
        info = self._connection.request("describe a collection", lambda: self._client.get_collection(place))
        for field in ("kind", "of"):
            if field not in info.payload_schema:
                self._connection.request(
                    f"index {field!r}",
                    lambda field=field: self._client.create_payload_index(  # type: ignore[misc]
                        place, field, field_schema=models.PayloadSchemaType.KEYWORD, wait=True
                    ),
                )

    def _exists(self, place: str) -> bool:
        listed = self._connection.request("list its collections", self._client.get_collections)
        return place in {one.name for one in listed.collections}

    def _create(self, place: str, name: str) -> bool:
        # One shard: its order of writes is what decides between two claims. Nothing is searched by vectors.
        return self._client.create_collection(
            place,
            vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT),
            shard_number=1,
            on_disk_payload=True,
            metadata={"imret_documents_of": name},
        )

    def _store(
        self, place: str, kind: DocumentKind, head: Claim | None, content: bytes | None
    ) -> Claim | None:
        """Store the pieces of a new revision; return its claim, or None if that took too long."""
        import hashlib

        begun = time.monotonic()
        revision = f"{int(time.time()):x}-{secrets.token_hex(8)}"
        data = content or b""
        pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
        self._connection.send_all(
            "store a document",
            [
                lambda id_=id_, piece=piece: self._client.upsert(  # type: ignore[misc]
                    place, [_point(id_, of=revision, data=base64.b64encode(piece).decode())], wait=True
                )
                for id_, piece in zip(_piece_ids(revision, len(pieces)), pieces, strict=True)
            ],
        )
        if time.monotonic() - begun > STORING_S / 2:  # another program may have taken them for leftovers
            return None
        return Claim(
            kind=kind,
            n=1 if head is None else head.n + 1,
            revision=revision,
            base="" if head is None else head.revision,
            size=None if content is None else len(content),
            pieces=len(pieces),
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def _claim(self, place: str, claim: Claim) -> bool:
        """Claim the number of a revision; return whether it got it."""
        id_ = str(uuid.uuid5(_SPACE, f"{claim.kind}:{claim.n}"))
        never = models.Filter(must=[models.HasIdCondition(has_id=[str(_NOBODY)])])
        self._connection.request(
            "store a document",
            lambda: self._client.upsert(
                place,
                [_point(id_, **asdict(claim))],
                wait=True,
                ordering=models.WriteOrdering.STRONG,
                update_filter=never,  # a point that is there stays, which tells nobody: hence the look
            ),
        )
        by_number = {other.n: other for other in self._claims(place, [claim.kind])}
        if by_number.get(claim.n) != claim:
            return False
        following = by_number.get(claim.n + 1)
        return max(by_number) == claim.n or (following is not None and following.base == claim.revision)

    def _tidy(self, place: str, claim: Claim) -> None:
        """Remove what is not needed any more: pieces of older revisions, and what killed programs left."""
        claims = self._claims(place, DOCUMENTS)
        heads = {kind: max((c.n for c in claims if c.kind == kind), default=0) for kind in DOCUMENTS}
        current = {c.revision for c in claims if c.n == heads[c.kind]}
        replaced = {c.revision for c in claims} - current
        stored = self._connection.request(
            "look up the documents", lambda: self._client.facet(place, "of", limit=1_000, exact=True)
        )
        # One that was refused its number goes as well.
        mine = {claim.revision} - current
        for hit in stored.hits:
            revision = str(hit.value)
            if revision in replaced | mine or (revision not in current and _is_left_over(revision)):
                self._delete(place, models.FieldCondition(key="of", match=models.MatchValue(value=revision)))
        old = [
            str(uuid.uuid5(_SPACE, f"{c.kind}:{c.n}")) for c in claims if c.n < heads[c.kind] - _KEPT_CLAIMS
        ]
        if old:
            self._delete(place, models.HasIdCondition(has_id=list(old)))

    def _delete(self, place: str, condition: models.Condition) -> None:
        selector = models.FilterSelector(filter=models.Filter(must=[condition]))
        self._connection.request(
            "remove an older document", lambda: self._client.delete(place, selector, wait=True)
        )


def _point(id_: str, **payload: Any) -> models.PointStruct:
    return models.PointStruct(id=id_, vector=[1.0], payload=payload)


def _piece_ids(revision: str, pieces: int) -> list[str]:
    return [str(uuid.uuid5(_SPACE, f"{revision}:{i}")) for i in range(pieces)]


def _claim_of(payload: dict[str, Any]) -> Claim | None:
    """Return a claim as it was stored; None for what another program put there."""
    try:
        size = payload["size"]
        claim = Claim(
            kind=payload["kind"],
            n=int(payload["n"]),
            revision=str(payload["revision"]),
            base=str(payload["base"]),
            size=None if size is None else int(size),
            pieces=int(payload["pieces"]),
            sha256=str(payload["sha256"]),
        )
        return claim if 0 <= claim.pieces <= _MOST_PIECES else None
    except (KeyError, TypeError, ValueError):
        return None


def _is_left_over(revision: str) -> bool:
    """Whether pieces that no claim names were begun so long ago that nobody stores them any more."""
    begun, _, _ = revision.partition("-")
    try:
        return abs(time.time() - int(begun, 16)) > STORING_S
    except ValueError:
        return True
