"""The one door to the pictures of stored points: from a payload to an open file.

Everything that shows, copies or compares stored pictures opens them here, so what may be opened is decided
in one place. Hides what kind of place it is. Only reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from imret.errors import ImageError
from imret.images.opening import open_file
from imret.sources.safe_open import StoredPlace, is_below, open_beneath, stored_place
from imret.store.payload import file_of

GONE = "no such file any more; bring the collection up to date: imret ingest"


class Opened:
    """A stored picture, open; closed at the end of `with` unless it was kept.

    Attributes:
        file: At its start; can seek.
        size: Bytes.
    """

    def __init__(self, real: str, file: BinaryIO, info: os.stat_result) -> None:
        self.file, self.size = file, info.st_size
        self._real, self._info, self._is_kept = real, info, False

    @property
    def identity(self) -> tuple[object, ...]:
        """What stands for this very content at this very place: another where either changes."""
        return (os.fsencode(self._real), *_file_identity(self._info))

    def is_unchanged(self) -> bool:
        """Whether nobody wrote to it since it was opened."""
        return _file_identity(os.fstat(self.file.fileno())) == _file_identity(self._info)

    def keep(self) -> BinaryIO:
        """Hand the open file over."""
        self._is_kept = True
        return self.file

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_kept:
            self.file.close()


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

    A door that is not guarded is for the commands of somebody at a terminal: it opens every regular file that
    they may read themselves.
    """

    def __init__(
        self, folders: Sequence[str | os.PathLike[str]] | None = None, *, is_guarded: bool = True
    ) -> None:
        """Resolve the folders; nothing else is looked at yet.

        Args:
            folders: Below which a guarded door opens files; see above.
            is_guarded: See above.
        """
        self._folders = None if folders is None else tuple(os.path.realpath(folder) for folder in folders)
        self._is_guarded = is_guarded

    def open(self, payload: Mapping[str, Any], path: str | None = None) -> BinaryIO:
        """Open a stored picture to read; at its start, can seek, and is the caller's to close.

        Args:
            payload: Of its point.
            path: Its absolute path, where that is known already, as of a hit.

        Raises:
            ImageError: If it is not there, cannot be read, or may not be; the message is the reason.
        """
        if not self._is_guarded:
            return open_file(file_of(payload) if path is None else path)
        return self.look(stored_place(payload)).keep()

    def look(self, place: StoredPlace) -> Opened:
        """Open a stored picture by rules of a guarded door, to learn also which content it is.

        Raises:
            ImageError: If it is gone, cannot be opened, or may not be.
        """
        try:
            real = self._real_place(place)
            return Opened(real, *open_beneath(real))
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

    def _real_place(self, place: StoredPlace) -> str:
        """Return the path without symlinks, if a picture there may be opened."""
        real = os.path.realpath(os.path.join(place.source, place.path))
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


def own_door() -> Door:
    """Return the door of the commands of somebody at a terminal."""
    return Door(is_guarded=False)


def _file_identity(info: os.stat_result) -> tuple[int, ...]:
    # The time of change of the inode too: nobody can set it, as rsync and cp -p do with the other. Not the
    # device: network and overlay file systems are numbered anew at each mount.
    return (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
