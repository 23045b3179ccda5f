"""The file of a backup: a tar with the engine's files, what is kept with the collection, and a digest.

    shards/0/...            the files of an embedded collection's one shard, holes left out
    shards/0.snapshot       or the snapshots of a server's shards, as that made them
    documents/names         what is kept with the collection, as far as there is any
    imret-backup.json       what it is
    imret-backup.sha256     of all that comes before: the end, without which it is no whole backup

Any tar reads it (holes are written as GNU tar writes them, "sparse 0.1"). Knows nothing of stores.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from imret.errors import DataError, summary
from imret.escape import escape_undecodable
from imret.settings import __version__
from imret.store.documents import DOCUMENTS, MAX_BYTES, DocumentKind
from imret.store.strict_json import parse_object
from imret.store.types import Identity

FORMAT = 1
_NOTE, _END = "imret-backup.json", "imret-backup.sha256"
_MAX_NOTE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_HOLE_BYTES = 64 << 10  # of zeros, from which on it is left out
_MEMBER = re.compile(r"shards/(?P<shard>[0-9]{1,6})(?:\.snapshot|/(?P<path>(?:[\w-][\w.-]*/)*[\w-][\w.-]*))")

Form: TypeAlias = Literal["files", "snapshots"]


@dataclass(frozen=True)
class Note:
    """What a backup says of itself.

    Attributes:
        collection: Name of the collection.
        identity: The encoder that made its vectors.
        points: How many it holds; None where others wrote to it meanwhile.
        shards: How many shards it is in.
        form: Of the shards.
        excluded: What is left out of its sources: patterns by source.
        engine: Of what engine the files are.
        imret: Version of imret that wrote it.
    """

    collection: str
    identity: Identity
    points: int | None
    shards: int
    form: Form
    excluded: dict[str, tuple[str, ...]]
    engine: str
    imret: str = __version__


class Writer:
    """Writes a backup to an open file.

    Args:
        out: The file, empty.
        on_bytes: Called with numbers of bytes that were written.
    """

    def __init__(self, out: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._out = _Digesting(out, on_bytes)
        self._tar = tarfile.TarFile(fileobj=self._out, mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]

    def add_shard_files(self, shard: int, folder: Path) -> None:
        """Add the files of a shard."""
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                self._add(f"shards/{shard}/{path.relative_to(folder).as_posix()}", path)

    def add_snapshot(self, shard: int, file: Path) -> None:
        """Add the snapshot of a shard."""
        self._add(f"shards/{shard}.snapshot", file)

    def end(self, note: Note, documents: Mapping[DocumentKind, bytes | None]) -> None:
        """Add all else, without which the file is no backup."""
        for kind, content in documents.items():
            if content is not None:
                self._add_bytes(f"documents/{kind}", content)
        about = {"format": FORMAT, **asdict(note)}
        self._add_bytes(_NOTE, json.dumps(about, ensure_ascii=False, indent=2).encode())
        self._add_bytes(_END, self._out.hexdigest().encode())
        self._tar.close()

    def _add(self, name: str, path: Path) -> None:
        with open(path, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            pieces = list(_pieces(source, size))
            info = _info(name, sum(length for _, length in pieces))
            if info.size != size:
                listed = [*pieces, (size, 0)]  # the last says where the file ends
                info.pax_headers = {
                    "GNU.sparse.size": str(size),
                    "GNU.sparse.numblocks": str(len(listed)),
                    "GNU.sparse.map": ",".join(f"{at},{length}" for at, length in listed),
                }
            self._tar.addfile(info, _Pieces(source, pieces))

    def _add_bytes(self, name: str, content: bytes) -> None:
        self._tar.addfile(_info(name, len(content)), io.BytesIO(content))


class Reader:
    """A backup that was found to be whole. A context manager.

    Args:
        file: The file.
        on_bytes: Called with numbers of bytes that were looked at.

    Raises:
        DataError: If it is not there, no backup, of another format, cut short or changed.
    """

    def __init__(self, file: str | os.PathLike[str], on_bytes: Callable[[int], None] | None = None) -> None:
        self.shown = repr(escape_undecodable(os.fspath(file)))
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):  # opening a named pipe waits for ever
                raise DataError(f"cannot read {self.shown}: it is no file.")
            self._source = open(file, "rb")  # noqa: SIM115  # closed by __exit__
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read {self.shown}: {getattr(error, 'strerror', None) or error}."
            ) from error
        try:
            self._members = self._listed()
            if on_bytes is not None:
                self._verify(on_bytes)
            self.note = self._note()
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._source.close()

    @property
    def stored_bytes(self) -> int:
        """What the files of the shards take on a disk."""
        return sum(sum(n for _, n in _map_of(member)) for member in self._shard_members())

    def documents(self) -> dict[DocumentKind, bytes | None]:
        """Return what was kept with the collection."""
        return {kind: self._content(f"documents/{kind}", MAX_BYTES) for kind in DOCUMENTS}

    def extract(self, folder: Path, on_bytes: Callable[[int], None]) -> list[Path]:
        """Write the shards to a folder: each a folder of files, or a snapshot.

        Returns:
            Where they are.

        Raises:
            DataError: If what the file holds is not what a backup does.
            OSError: If they cannot be written.
        """
        for member in self._shard_members():
            target = folder / member.name.removeprefix("shards/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as out:
                self._source.seek(member.offset_data)
                for at, length in _map_of(member):
                    out.seek(at)
                    _copy(self._source, out, length, on_bytes)
                out.truncate(member.size)
        suffix = ".snapshot" if self.note.form == "snapshots" else ""
        parts = [folder / f"{shard}{suffix}" for shard in range(self.note.shards)]
        if missing := [part.name for part in parts if not part.exists()]:
            raise self._not_ours(f"shard {missing[0]} is not in it")
        return parts

    def _listed(self) -> list[tarfile.TarInfo]:
        try:
            with tarfile.open(fileobj=self._source, mode="r:") as tar:
                members = tar.getmembers()
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            raise self._cut(f"it cannot be read as a tar: {summary(error)}") from error
        if not members or members[-1].name != _END:
            is_ours = any(member.name == _NOTE for member in members) or any(
                member.name.startswith("shards/") for member in members
            )
            if is_ours:
                raise self._cut("its end is missing")
            raise DataError(
                f"{self.shown} is no backup of imret's. Make one: imret collections backup NAME FILE"
            )
        if len({member.name for member in members}) != len(members):
            raise self._not_ours("it holds a file twice")
        return members

    def _verify(self, on_bytes: Callable[[int], None]) -> None:
        """Compare the digest in the end with that of all before."""
        digest, left = hashlib.sha256(), self._members[-1].offset
        self._source.seek(0)
        while left:
            chunk = self._source.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise self._cut("its end is missing")
            digest.update(chunk)
            on_bytes(len(chunk))
            left -= len(chunk)
        if self._content(_END, 64) != digest.hexdigest().encode():
            raise self._cut("it is not what was written")

    def _note(self) -> Note:
        try:
            content = parse_object((self._content(_NOTE, _MAX_NOTE_BYTES) or b"").decode())
        except (ValueError, RecursionError) as error:
            raise self._not_ours(f"its note cannot be read: {summary(error)}") from error
        if content.get("format") != FORMAT:
            raise DataError(
                f"{self.shown} has format {content.get('format')!r}, and this imret {__version__} reads "
                f"format {FORMAT}. Restore it with the imret that wrote it ({content.get('imret')!r}), or a "
                "newer one."
            )
        try:
            return _parsed(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._not_ours(f"its note is not whole ({summary(error)})") from error

    def _shard_members(self) -> list[tarfile.TarInfo]:
        members = [member for member in self._members if member.name.startswith("shards/")]
        for member in members:
            found = _MEMBER.fullmatch(member.name)
            is_right = found is not None and (found["path"] is None) == (self.note.form == "snapshots")
            if not is_right or not member.isreg() or _is_outside(member):
                raise self._not_ours(f"it holds {member.name[:100]!r}")
        return members

    def _content(self, name: str, at_most: int) -> bytes | None:
        for member in self._members:
            if member.name == name:
                if not member.isreg() or member.sparse is not None or member.size > at_most:
                    raise self._not_ours(f"{name} is none")
                self._source.seek(member.offset_data)
                return self._source.read(member.size)
        return None

    def _cut(self, reason: str) -> DataError:
        return DataError(
            f"{self.shown} is no whole backup: {reason}. Was it cut short or changed on its way here? Copy "
            "it again, or take an older one."
        )

    def _not_ours(self, reason: str) -> DataError:
        return DataError(f"{self.shown} is not as imret writes a backup: {reason}. Make another.")


def _parsed(content: Mapping[str, Any]) -> Note:
    identity, points, form = content["identity"], content["points"], content["form"]
    if form not in ("files", "snapshots") or not isinstance(content["shards"], int):
        raise ValueError("its form is unknown")
    if points is not None and type(points) is not int:
        raise TypeError("points are no number")
    return Note(
        collection=str(content["collection"]),
        identity=Identity(str(identity["model"]), str(identity["fingerprint"]), int(identity["dim"])),
        points=points,
        shards=content["shards"],
        form="files" if form == "files" else "snapshots",
        excluded={str(source): tuple(map(str, some)) for source, some in content["excluded"].items()},
        engine=str(content["engine"]),
        imret=str(content["imret"]),
    )


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def _map_of(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return where the bytes of a member belong, and how many."""
    sparse: Any = member.sparse
    return [(0, member.size)] if sparse is None else [(at, length) for at, length in sparse if length]


def _is_outside(member: tarfile.TarInfo) -> bool:
    """Whether pieces of a member overlap, or lie behind its end."""
    end = 0
    for at, length in _map_of(member):
        if at < end or length < 0 or at + length > member.size:
            return True
        end = at + length
    return False


def _pieces(source: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file holds something other than zeros, and how much."""
    zeros = bytes(_HOLE_BYTES)
    begin = end = 0
    for start, stop in _stored(source.fileno(), size):
        for at in range(start, stop, _HOLE_BYTES):
            source.seek(at)
            data = source.read(min(_HOLE_BYTES, stop - at))
            if data == zeros[: len(data)]:
                continue
            if at != end:
                if end > begin:
                    yield begin, end - begin
                begin = at
            end = at + len(data)
    if end > begin:
        yield begin, end - begin


def _stored(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield from where to where a file system has stored something of a file; all, if it does not know."""
    at = 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
            end = min(os.lseek(descriptor, at, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # of which there is nothing more
                yield at, size
            return
        yield at, end
        at = end


def _copy(source: IO[bytes], out: IO[bytes], length: int, on_bytes: Callable[[int], None]) -> None:
    while length:
        chunk = source.read(min(length, _CHUNK_BYTES))
        if not chunk:
            raise OSError("the file has become shorter")
        out.write(chunk)
        on_bytes(len(chunk))
        length -= len(chunk)


class _Pieces(io.RawIOBase):
    """The pieces of a file, one after the other, as `tarfile` reads them."""

    def __init__(self, source: IO[bytes], pieces: list[tuple[int, int]]) -> None:
        self._source = source
        self._left = list(reversed(pieces))

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size and self._left:
            at, length = self._left.pop()
            self._source.seek(at)
            part = self._source.read(min(size, length))
            if not part:
                break
            parts.append(part)
            size -= len(part)
            if len(part) < length:
                self._left.append((at + len(part), length - len(part)))
        return b"".join(parts)


class _Digesting:
    """A file that is written to from its begin to its end, and its digest so far."""

    def __init__(self, out: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._out = out
        self._on_bytes = on_bytes
        self._digest = hashlib.sha256()
        self._at = 0

    def write(self, data: bytes) -> int:
        self._out.write(data)
        self._digest.update(data)
        self._at += len(data)
        self._on_bytes(len(data))
        return len(data)

    def tell(self) -> int:
        return self._at

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
