"""Which `imret serve` runs over which store: the note that it writes, and that `imret search` reads.

One file a server, in a folder that only this user can enter. A server holds a lock on its note while it
lives, so that what a kill -9 leaves behind is told from a live one without connecting. Of several servers
over one store the newest counts; when it ends, the one before. Stands on the path of every search, so it
imports little.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imret.errors import DataError
from imret.settings import state_dir

_MAX_BYTES = 65_536
# A note is locked within moments of its making; what has no name yet after this long never gets one.
_UNFINISHED_S = 60.0
_CONNECT_S = 0.5


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        url: Where it answers, as http://127.0.0.1:8750.
        address: Of its store: an absolute folder without links, or a URL in its one spelling.
        pid: Of its process.
        token: What it wants to be shown, or None.
        since: When it began to answer, in seconds since 1970.
    """

    url: str
    address: str
    pid: int
    token: str | None = field(repr=False)
    since: float


@contextlib.contextmanager
def announced(*, url: str, address: str | os.PathLike[str], token: str | None = None) -> Iterator[Running]:
    """Let searches know of a server as long as the block runs, or its process lives.

    Notes that dead servers have left are removed.

    Args:
        url: Where it answers, from this machine.
        address: Of its store, as for `imret.store.open_store`.
        token: What it wants to be shown.

    Raises:
        DataError: If the note cannot be written, or its folder belongs to somebody else.
    """
    running = Running(url, one_spelling(address), os.getpid(), token, time.time())
    folder = _folder()
    try:
        _make_private(folder)
        _sweep(folder)
        note, lock = _write(folder, running)
    except OSError as error:
        raise DataError(
            f"cannot note in {str(folder)!r} that a server runs: {error.strerror or error}.\n"
            "Set IMRET_HOME to a folder that you can write to."
        ) from error
    try:
        yield running
    finally:
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(OSError):  # another server has swept it away, or somebody the folder
            os.unlink(note)


def find(address: str | os.PathLike[str]) -> Running | None:
    """Return the server of this user that runs over a store, the newest of several; None if there is none.

    What is no note, belongs to another user, or can be read or written by others, is passed over.

    Args:
        address: As for `imret.store.open_store`.
    """
    address = one_spelling(address)
    folder = _folder()
    newest: Running | None = None
    try:
        names = os.listdir(folder) if _is_own(os.stat(folder), stat.S_ISDIR) else []
    except OSError:
        return None
    for name in names:
        if name.startswith(_key(address)):
            one = _read(os.path.join(folder, name))
            if one and one.address == address and (newest is None or one.since > newest.since):
                newest = one
    return newest


def one_spelling(address: str | os.PathLike[str]) -> str:
    """Return an address as all that mean the same store: a folder absolute, a URL with its port."""
    text = os.fspath(address)
    if "://" not in text:
        return os.path.realpath(os.path.expanduser(text))
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    host = host.lower()
    if ":" not in host.rpartition("]")[2]:
        host += ":6333"  # as `imret.store` takes it
    return f"{scheme.lower()}://{user}{at}{host}{(slash + path).rstrip('/')}"


# ---- Notes ----------------------------------------------------------------------------------------------


def _folder() -> Path:
    # A user each: IMRET_HOME may be shared.
    return state_dir() / f"running-{os.geteuid()}"


def _key(address: str) -> str:
    """Return what the names of a store's notes begin with."""
    return hashlib.sha256(os.fsencode(address)).hexdigest()[:32] + "-"


def _make_private(folder: Path) -> None:
    """Make the folder, for this user alone.

    Raises:
        DataError: If it is another's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if hasattr(os, "geteuid") and folder.lstat().st_uid != os.geteuid():
        raise DataError(
            f"the folder {str(folder)!r} belongs to another user. Set IMRET_HOME to one of yours."
        )
    folder.chmod(0o700)


def _is_own(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file is of a kind and is for this user alone."""
    if not is_kind(status.st_mode):
        return False
    # Windows has no such bits; there, a user's folders are for the user alone.
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o077)


def _write(folder: Path, running: Running) -> tuple[Path, int | None]:
    """Write a note, locked from the moment that it has its name; return it and what holds the lock."""
    # Not named by its pid: containers that share a home have the same ones.
    note = folder / f"{_key(running.address)}{os.urandom(8).hex()}.json"
    lock, unnamed = tempfile.mkstemp(prefix=".", dir=folder)  # 0600, and not inherited by other programs
    try:
        held = _lock(lock)
        os.write(lock, json.dumps(asdict(running)).encode("ascii"))
        if not held:  # Windows does not rename what is open
            os.close(lock)
        os.replace(unnamed, note)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(lock)
        with contextlib.suppress(OSError):
            os.unlink(unnamed)
        raise
    return note, lock if held else None


def _read(path: str) -> Running | None:
    """Return what a note says, if it can be trusted and its server lives."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        note = os.open(path, flags)
    except OSError:
        return None
    try:
        if not _is_own(os.fstat(note), stat.S_ISREG):
            return None
        running = _parsed(os.read(note, _MAX_BYTES))
        return running if running is not None and _lives(note, running) else None
    except OSError:
        return None
    finally:
        os.close(note)


def _parsed(text: bytes) -> Running | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    kinds: dict[str, Any] = {
        "url": str,
        "address": str,
        "pid": int,
        "token": (str, type(None)),
        "since": (int, float),
    }
    if not isinstance(said, dict) or not all(isinstance(said.get(key), kinds[key]) for key in kinds):
        return None
    return Running(**{key: said[key] for key in kinds})


def _sweep(folder: Path) -> None:
    """Remove the notes of dead servers."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            unfinished = path.name.startswith(".")
            if unfinished and path.stat().st_mtime > time.time() - _UNFINISHED_S:
                continue
            if _read(str(path)) is None:
                path.unlink()


# ---- Locks ----------------------------------------------------------------------------------------------


def _lock(file: int) -> bool:
    """Lock an open file until it is closed or the process ends; False where there are no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; some network file systems
        return False
    return True


def _lives(note: int, running: Running) -> bool:
    """Whether the server that wrote a note holds it locked; where that does not show, whether it answers."""
    try:
        import fcntl

        fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until it is closed
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return _answers(running.url)
    return False


def _answers(url: str) -> bool:
    import socket
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=_CONNECT_S):
            return True
    except (OSError, ValueError):
        return False
