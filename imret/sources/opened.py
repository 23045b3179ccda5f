"""The one door to the pictures of stored points: from a payload to an open file.

Everything that shows, copies or compares stored pictures opens them here, so what may be opened is decided
in one place. Hides what kind of place it is: a file, an object of a bucket, the member of a tar or the row of
a Parquet file in either. Only reads.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from imret.errors import ImageError
from imret.images.opening import open_file
from imret.places.names import is_url
from imret.settings import read_settings
from imret.sources.members import IN_MEMORY_BYTES, checked, open_part, spooled
from imret.sources.named_roots import GONE_SINCE, NamedRoots, NotReachable, NotThere
from imret.sources.parquet_rows import ParquetRows
from imret.sources.safe_open import StoredPlace, is_below, open_beneath, stored_place
from imret.store.payload import file_of

GONE = "no such file any more; bring the collection up to date: imret ingest"

_WEB = ("http://", "https://")
MAX_FETCHED_BYTES = 512 << 20  # of a picture in a bucket or container; larger ones were not ingested
_RECENT_BYTES = 128 << 20


class Opened:
    """A stored picture, open; closed at the end of `with` unless it was kept.

    Attributes:
        identity: What stands for this very content at this very place: another where either changes.
        size: Bytes.
        is_far: Whether its bytes have to be fetched from a bucket, when `file` is asked for.
    """

    def __init__(
        self,
        identity: tuple[object, ...],
        size: int,
        read: Callable[[], BinaryIO],
        *,
        holding: BinaryIO | None = None,
        info: os.stat_result | None = None,
        is_far: bool = False,
    ) -> None:
        """Remember how it is read.

        Args:
            identity: See above.
            size: Bytes.
            read: Gives the file, at its start; what it raises, `file` raises.
            holding: What is open already, and is closed in any case.
            info: Of a file that is checked by it; None for what is checked by its hash.
            is_far: See above.
        """
        self.identity, self.size, self.is_far = identity, size, is_far
        self._read, self._holding, self._info = read, holding, info
        self._file: BinaryIO | None = None
        self._is_kept = False

    @property
    def file(self) -> BinaryIO:
        """The picture; at its start when it is first asked for; can seek.

        Raises:
            ImageError: If it cannot be had, or is not what was ingested.
        """
        if self._file is None:
            self._file = self._read()
        return self._file

    def is_unchanged(self) -> bool:
        """Whether nobody wrote to it since it was opened."""
        if self._info is None:
            return True
        return _file_identity(os.fstat(self.file.fileno())) == _file_identity(self._info)

    def keep(self) -> BinaryIO:
        """Hand the open file over."""
        file = self.file
        self._is_kept = True
        return file

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_kept:
            return
        for file in (self._file, self._holding):
            if file is not None:
                file.close()


class Door:
    """Opens the pictures of stored points by their payloads. Thread-safe.

    A payload is data: in a shared Qdrant anybody may have written it. A guarded door, which stands before
    pictures that others are shown, opens a file only if it is a regular one whose real place lies below a
    folder that may be shown:

    - `folders` is None: below the real place of the payload's own `source`, which must be an absolute folder,
      and not the whole file system. That is for a store that only those write to who may see every picture
      that this process can read.
    - `folders` is given: below the real place of one of these, whatever `source` says. A forged payload
      cannot widen that.

    Symlinks are followed as ingest follows them, as long as the file that they lead to lies below such a
    folder. One that leads out of them all is refused although ingest has read it: whoever may write into a
    folder of pictures can lay a link to what only this process may read, and that its picture could be found
    is not yet a decision to show it to everybody who sees the page. Naming the link's target is.

    All of that holds for the file that is read, not only for its name: the name is resolved first, then what
    it resolved to is opened folder by folder without following any link, so that one laid meanwhile is an
    error. Not covered: hard links cannot be told from files; and whoever may replace a `source` itself by a
    link chooses what lies below it, unless `folders` are named.

    By any door, what lies in a bucket is fetched only below a URL that was named (`roots`, or IMRET_ROOTS),
    never because a payload names it; and only if it is, by its hash, what was ingested. The latter holds for
    a member of a tar, too.

    A door that is not guarded is for the commands of somebody at a terminal: it opens every regular file that
    they may read themselves.
    """

    def __init__(
        self,
        roots: Sequence[str | os.PathLike[str]] | None = None,
        *,
        urls: Sequence[str] = (),
        is_guarded: bool = True,
    ) -> None:
        """Resolve the folders; nothing else is looked at yet, and nothing is connected to.

        Args:
            roots: Folders and URLs below which pictures may be opened; see above. None for folders that were
                ingested, and URLs of IMRET_ROOTS.
            urls: Further URLs, which say nothing of folders.
            is_guarded: See above.

        Raises:
            DataError: If a URL is none of a bucket.
        """
        named = read_settings().roots if roots is None else [os.fspath(root) for root in roots]
        self._folders = (
            None if roots is None else tuple(os.path.realpath(root) for root in named if not is_url(root))
        )
        self._urls = NamedRoots([*(root for root in named if is_url(root)), *urls])
        self._is_guarded = is_guarded
        self._recent, self._rows = _Recent(_RECENT_BYTES), ParquetRows()

    def open(self, payload: Mapping[str, Any], path: str | None = None) -> BinaryIO:
        """Open a stored picture to read; at its start, can seek, and is the caller's to close.

        Args:
            payload: Of its point.
            path: Its absolute path, where that is known already, as of a hit.

        Raises:
            ImageError: If it is not there, cannot be read, or may not be; the message is the reason.
        """
        if not self._is_guarded and is_plain_file(payload):
            return open_file(file_of(payload) if path is None else path)
        with self.look(stored_place(payload)) as opened:
            return opened.keep()

    def look(self, place: StoredPlace) -> Opened:
        """Open a stored picture, or what holds it, to learn which content it is; a bucket is not asked.

        Raises:
            ImageError: If it is gone, cannot be opened, or may not be.
        """
        if place.size_bytes > MAX_FETCHED_BYTES:
            raise ImageError(
                f"its {place.size_bytes:,} bytes are more than the {MAX_FETCHED_BYTES:,} that are read of one"
            )
        if place.is_far:
            return self._far(place)
        try:
            real, file, info = self._local_file(place)
        except FileNotFoundError:
            if not os.path.isdir(place.source):
                raise ImageError(
                    "the folder that was ingested is not there; if its drive is mounted, "
                    "bring the collection up to date: imret ingest"
                ) from None
            raise ImageError(GONE) from None
        except NotADirectoryError:
            raise ImageError(GONE) from None
        except PermissionError:
            raise ImageError("no permission to read it") from None
        except OSError as error:  # also where something changed between two looks
            raise ImageError(f"cannot be opened: {error.strerror}") from None
        exact = os.fsencode(real)
        if place.unit is None:
            return Opened((exact, *_file_identity(info)), info.st_size, lambda: file, holding=file, info=info)

        def read() -> BinaryIO:
            if not _is_parquet(place):
                return open_part(file, _offset(place), place.size_bytes, place.sha256)
            name = (exact, *_file_identity(info))
            try:
                with file:
                    data = self._rows.read(name, lambda: _again(file), _key(place), is_own=True)
            except OSError as error:
                raise ImageError(f"cannot be read: {error.strerror or error}") from error
            return io.BytesIO(checked(data, place.sha256))

        return Opened((exact, *_content(place)), place.size_bytes, read, holding=file)

    def refusal(self, payload: Mapping[str, Any]) -> str:
        """Return, of a picture in a bucket that no URL names, that bucket; else nothing."""
        if is_plain_file(payload):
            return ""
        file, source = file_of(payload), str(payload["source"])
        place = source if is_url(source) else file.rpartition("/")[0]
        return place if is_url(file) and not self._urls.holds(file) else ""

    def fetch(self, place: StoredPlace) -> None:
        """Fetch a picture from its bucket, so that it is at hand for those who open it next.

        Raises:
            ImageError: As `look` and `Opened.file`.
        """
        if place.is_far and place.size_bytes <= IN_MEMORY_BYTES:
            with self.look(place) as opened:
                opened.file.close()

    def _far(self, place: StoredPlace) -> Opened:
        if place.file.startswith(_WEB):
            raise ImageError("it lies on the web, from where pictures are not fetched again to be shown")
        if not self._urls.holds(place.file):
            raise ImageError("it lies in a bucket that was not named: imret serve --root URL, or IMRET_ROOTS")
        identity = (place.file, *_content(place))
        is_whole, is_row = place.unit is None, _is_parquet(place)
        at = 0 if is_whole or is_row else _offset(place)

        def read() -> BinaryIO:
            kept = self._recent.get(identity)
            if kept is not None:
                return io.BytesIO(kept)
            try:
                return self._read_far(place, at, identity)
            except NotReachable:
                raise
            except ImageError:
                self._urls.forget(place.file)  # what was opened may be an object of before
                self._rows.forget(place.file)
                return self._read_far(place, at, identity)

        return Opened(identity, place.size_bytes, read, is_far=not self._recent.has(identity))

    def _read_far(self, place: StoredPlace, at: int, identity: tuple[object, ...]) -> BinaryIO:
        if _is_parquet(place):
            with self._urls.told(place.file):
                data = self._rows.read(place.file, lambda: self._urls.open(place.file), _key(place))
            self._recent.put(identity, checked(data, place.sha256))
            return io.BytesIO(data)
        chunks: Iterable[bytes] = self._urls.chunks(place.file, at, place.size_bytes)
        if place.size_bytes > IN_MEMORY_BYTES:
            return spooled(chunks, place.sha256)
        data = checked(b"".join(chunks), place.sha256)
        self._recent.put(identity, data)
        return io.BytesIO(data)

    def _local_file(self, place: StoredPlace) -> tuple[str, BinaryIO, os.stat_result]:
        """Open the file that holds a picture; return also its path without symlinks."""
        if not self._is_guarded:
            file = open_file(place.file)
            return place.file, file, os.fstat(file.fileno())
        real = self._real_place(place)
        return (real, *open_beneath(real))

    def _real_place(self, place: StoredPlace) -> str:
        """Return the path without symlinks, if a picture there may be opened."""
        real = os.path.realpath(place.file)
        if self._folders is not None:
            if not any(is_below(real, folder) for folder in self._folders):
                raise ImageError("it leads out of the folders that may be shown")
            return real
        folder = os.path.realpath(place.source)
        if folder == os.sep:
            raise ImageError("the folder that it was ingested from is the whole file system")
        if not is_below(real, folder):
            raise ImageError("it leads out of the folder that was ingested")
        return real


class _Recent:
    """Bytes that were fetched a moment ago, as many as have room; those used longest ago go."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._n_bytes = max_bytes, 0
        self._kept: OrderedDict[object, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, key: object) -> bool:
        return key in self._kept

    def get(self, key: object) -> bytes | None:
        with self._lock:
            data = self._kept.get(key)
            if data is not None:
                self._kept.move_to_end(key)
            return data

    def put(self, key: object, data: bytes) -> None:
        with self._lock:
            self._n_bytes += len(data) - len(self._kept.pop(key, b""))
            self._kept[key] = data
            while self._n_bytes > self._max_bytes:
                self._n_bytes -= len(self._kept.popitem(last=False)[1])


def own_door() -> Door:
    """Return the door of the commands of somebody at a terminal."""
    return Door(is_guarded=False)


def is_plain_file(payload: Mapping[str, Any]) -> bool:
    """Whether a picture is a file of its own in a folder of this machine."""
    where = (str(payload.get("source", "")), str(payload.get("path", "")))
    return payload.get("unit") is None and not any(map(is_url, where))


def _offset(place: StoredPlace) -> int:
    if place.at is None:
        raise NotThere(GONE_SINCE)
    return place.at


def _is_parquet(place: StoredPlace) -> bool:
    return place.unit is not None and place.unit.lower().endswith(".parquet")


def _key(place: StoredPlace) -> str:
    return place.path[len(place.unit or "") + 1 :]


def _again(file: BinaryIO) -> BinaryIO:
    """Return an open file once more, to be kept when it is closed."""
    return os.fdopen(os.dup(file.fileno()), "rb")


def _content(place: StoredPlace) -> tuple[object, ...]:
    return (place.at, place.size_bytes, place.sha256)


def _file_identity(info: os.stat_result) -> tuple[int, ...]:
    # The time of change of the inode too: nobody can set it, as rsync and cp -p do with the other. Not the
    # device: network and overlay file systems are numbered anew at each mount.
    return (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
