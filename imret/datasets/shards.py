"""Pictures in tar and Parquet files: each a picture of its own, with its caption and what else is said of it.

A picture of a tar is any member whose name looks like one; `.txt` and `.json` of the same stem, wherever they
stand in it, are its notes. So img2dataset and WebDataset write, and nothing is lost of what they would not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imret.datasets import kinds
from imret.datasets.exclusion import Exclusion
from imret.datasets.kinds import NOT_DOWNLOADED
from imret.datasets.scan import Ignored, Picture, Skipped, looks_like_picture
from imret.datasets.spelling import composed
from imret.errors import DataError
from imret.places import tar
from imret.places.names import is_url, join
from imret.places.parquet_rows import CATEGORY, DamagedParquet, open_parquet, picture_column, rows
from imret.places.spool import Member, Spool

TAR, PARQUET = ".tar", ".parquet"
MAX_PICTURE_BYTES = 512 << 20
_MAX_NOTE_BYTES = 1_000_000
# Of what is stored beside a vector: an answer may hold hundreds of pictures.
MAX_CAPTION_CHARS = 2_000
_MAX_META_CHARS = 3_000
_MAX_VALUE_CHARS = 500
_CAPTIONS = ("caption", "txt", "text", "TEXT")
# What says nothing of the picture that is not stored anyway, or of another file than the stored one.
_NO_META = frozenset((*_CAPTIONS, CATEGORY, "key", "__key__", "width", "height", "exif", "sha256"))
_NO_META_PREFIX = "__"


@dataclass(frozen=True, slots=True)
class Held:
    """The bytes of a picture, in memory."""

    data: bytes

    def read(self) -> bytes:
        """Return them."""
        return self.data


@dataclass(frozen=True, slots=True)
class ShardPicture(Picture):
    """A picture in a container.

    Attributes:
        unit: Path of the container, which `path` begins with.
        content: Its bytes.
        at: Where they begin in the container; None where they do not lie there as they are.
        caption: What is said of it.
        meta: What else is known of it: texts and numbers by name.
    """

    unit: str
    content: Member | Held
    at: int | None = None
    caption: str | None = None
    meta: Mapping[str, Any] | None = None


def is_shard(name: str) -> bool:
    """Whether a file of this name may hold pictures: a tar file, compressed or not, or a Parquet file."""
    return name.lower().endswith((TAR, PARQUET, *tar.COMPRESSED))


def place_of(root: str, unit: str) -> str:
    """Return the path or URL of a container, given where its source lies and its path below that."""
    return join(root, unit) if is_url(root) else os.path.join(root, *unit.split("/"))


def read_shard(
    root: str, unit: str, exclusion: Exclusion | None = None, *, categories: bool = True
) -> Iterator[ShardPicture | Skipped | Ignored]:
    """Yield the pictures of a container in its order, and what cannot be taken, and why.

    What is wrong with all of it is a skip of its own, with `unseen`: other pictures may be in it.

    Args:
        root: Folder or URL that its path is below.
        unit: Its path.
        exclusion: What is left out of the source.
        categories: Whether a picture that nothing says a category of is in that of its first folder.
    """
    try:
        spool = Spool(place_of(root, unit))
        compression = tar.compression(unit, spool.read_at(0, 6))
        if compression is not None:
            yield Skipped(unit, tar.how_to_unpack(unit.rpartition("/")[2], compression), unseen=True)
            return
        shard = _Shard(unit, spool, exclusion or Exclusion(), categories)
        yield from shard.of_tar() if unit.lower().endswith(TAR) else shard.of_parquet()
        if spool.is_replaced():
            yield Skipped(
                unit, "replaced while it was read: the next run takes what is there then", unseen=True
            )
    except DataError as error:
        yield Skipped(unit, str(error), unseen=True)
    except OSError as error:
        yield Skipped(unit, f"cannot be read: {error.strerror or error}", unseen=True)


@dataclass
class _Shard:
    """A container that is read."""

    unit: str
    spool: Spool
    exclusion: Exclusion
    categories: bool
    seen: set[str] = field(default_factory=set)

    def of_tar(self) -> Iterator[ShardPicture | Skipped | Ignored]:
        """Yield what a tar file holds: first all names, for notes may stand behind their picture."""
        pictures: list[tuple[str, tar.TarMember]] = []
        notes: dict[str, tar.TarMember] = {}
        damage = ""
        with self.spool.open() as file:
            try:
                for member in tar.members(file):
                    entry = self._of_member(member, notes)
                    if isinstance(entry, str):
                        pictures.append((entry, member))
                    elif entry is not None:
                        yield entry
            except tar.DamagedTar as error:
                damage = str(error)
        for name, member in pictures:
            yield self._tar_picture(name, member, notes)
        if damage:
            yield Skipped(self.unit, damage, unseen=True)

    def _of_member(
        self, member: tar.TarMember, notes: dict[str, tar.TarMember]
    ) -> str | Skipped | Ignored | None:
        """Return the name of a picture, what is to be told of another file, or None for a note."""
        name = _tidy(member.name)
        if name is None:
            return Skipped(f"{self.unit}/{member.name}", "its name leads out of the tar file")
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in (".txt", ".json"):
            notes.setdefault(stem + suffix.lower(), member)
            return None
        path = f"{self.unit}/{name}"
        if (reason := self.exclusion.reason_within(path)) is not None:
            return Ignored(path, reason)
        if not looks_like_picture(name):
            return Ignored(path, kinds.kind_of(name))
        return self._refusal(path, member) or name

    def _refusal(self, path: str, member: tar.TarMember) -> Skipped | None:
        if path in self.seen:
            return Skipped(path, "a second file of that name in it; the first is taken")
        self.seen.add(path)
        if member.size_bytes > MAX_PICTURE_BYTES:
            return Skipped(path, _too_large(member.size_bytes))
        if member.at + member.size_bytes > self.spool.size_bytes:
            return Skipped(path, "cut off with the file that it is in")
        return None

    def _tar_picture(self, name: str, member: tar.TarMember, notes: dict[str, tar.TarMember]) -> ShardPicture:
        stem = os.path.splitext(name)[0]
        said = _parsed(self._note(notes.get(f"{stem}.json")))
        text = self._note(notes.get(f"{stem}.txt"))
        if text is not None:
            said = {**said, _CAPTIONS[0]: text.decode("utf-8", "replace")}
        folder, slash, _ = name.partition("/")
        content = Member(self.spool, member.at, member.size_bytes)
        return self._picture(
            f"{self.unit}/{name}", content, member.size_bytes, said, folder if slash else None, member.at
        )

    def _note(self, member: tar.TarMember | None) -> bytes | None:
        if member is None or member.size_bytes > _MAX_NOTE_BYTES:
            return None
        return self.spool.read_at(member.at, member.size_bytes)

    def of_parquet(self) -> Iterator[ShardPicture | Skipped | Ignored]:
        """Yield what a Parquet file holds."""
        with self.spool.open() as file:
            try:
                opened = open_parquet(file)
                column = picture_column(opened)
                if column is None:
                    yield Ignored(self.unit, kinds.kind_of(self.unit))
                    return
                for row in rows(opened, column):
                    yield self._of_row(row.key, row.data, row.columns)
            except DamagedParquet as error:
                yield Skipped(self.unit, str(error), unseen=True)

    def _of_row(
        self, key: str, data: bytes | None, columns: Mapping[str, Any]
    ) -> ShardPicture | Skipped | Ignored:
        name = _tidy(key)
        path = f"{self.unit}/{name or key}"
        if name is None:
            return Skipped(path, "its key leads out of the file")
        if not data:
            return Ignored(path, NOT_DOWNLOADED)
        if (reason := self.exclusion.reason_within(path)) is not None:
            return Ignored(path, reason)
        if path in self.seen:
            return Skipped(path, "a second row of that key in it; the first is taken")
        self.seen.add(path)
        if len(data) > MAX_PICTURE_BYTES:
            return Skipped(path, _too_large(len(data)))
        folder, slash, _ = name.partition("/")
        return self._picture(path, Held(data), len(data), columns, folder if slash else None, None)

    def _picture(
        self,
        path: str,
        content: Member | Held,
        size_bytes: int,
        said: Mapping[str, Any],
        folder: str | None,
        at: int | None,
    ) -> ShardPicture:
        category = said.get(CATEGORY)
        named = str(category).strip() if isinstance(category, (str, int)) else ""
        found = (named or folder or None) if self.categories else None
        return ShardPicture(
            path,
            None if found is None else composed(found),
            size_bytes,
            self.spool.mtime_ns,
            self.unit,
            content,
            at,
            _caption(said),
            _meta(said),
        )


def _tidy(name: str) -> str | None:
    """Return a member's name without what says nothing; None for one that leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or not parts else "/".join(parts)


def _too_large(n_bytes: int) -> str:
    return f"it has {n_bytes:,} bytes, and {MAX_PICTURE_BYTES:,} are the most that are read of one"


def _parsed(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _caption(said: Mapping[str, Any]) -> str | None:
    for name in _CAPTIONS:
        text = said.get(name)
        if isinstance(text, str) and (short := _text(text, MAX_CAPTION_CHARS)):
            return short
    return None


def _meta(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what else is said of a picture, as far as it is short."""
    meta: dict[str, Any] = {}
    left = _MAX_META_CHARS
    for name, value in said.items():
        if name in _NO_META or name.startswith(_NO_META_PREFIX) or not name:
            continue
        if isinstance(value, str):
            value = _text(value, _MAX_VALUE_CHARS + 1)
            if not value or len(value) > _MAX_VALUE_CHARS:
                continue
        elif isinstance(value, bool):
            value = int(value)
        elif not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) >= 2**63:
            continue
        left -= len(repr(value)) + len(name) + 6
        if left < 0:
            break
        meta[_text(name, 100)] = value
    return meta or None


def _text(text: str, most: int) -> str:
    return text.strip()[:most].encode("utf-8", "replace").decode("utf-8").strip()
