"""Which `imret serve` runs over which store: the record that it writes, and that `imret search` reads.

One file a server, in a folder that only this user can enter. A server holds a lock on its record while it
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

from imret import system
from imret.errors import DataError
from imret.net import accepts_connections, qdrant_port
from imret.settings import state_dir

_MAX_BYTES = 65_536
# A record is locked within moments of its making; what has no name yet after this long never gets one.
_UNFINISHED_S = 60.0
_CONNECT_S = 0.5


@dataclass(frozen=True)
class RunningServer:
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
def register(
    *, url: str, address: str | os.PathLike[str], token: str | None = None
) -> Iterator[RunningServer]:
    """Let searches know of a server as long as the block runs, or its process lives.

    Records that dead servers have left are removed.

    Args:
        url: Where it answers, from this machine.
        address: Of its store, as for `imret.store.open_store`.
        token: What it wants to be shown.

    Raises:
        DataError: If the record cannot be written, or its folder belongs to somebody else.
    """
    server = RunningServer(url, canonical_address(address), os.getpid(), token, time.time())
    folder = _folder()
    try:
        _make_private(folder)
        _sweep(folder)
        record, lock = _write(folder, server)
    except OSError as error:
        raise DataError(
            f"cannot note in {str(folder)!r} that a server runs: {error.strerror or error}.\n"
            "Set IMRET_HOME to a folder that you can write to."
        ) from error
    try:
        yield server
    finally:
        os.close(lock)
        with contextlib.suppress(OSError):  # another server has swept it away, or somebody the folder
            os.unlink(record)


def find_server(address: str | os.PathLike[str]) -> RunningServer | None:
    """Return the server of this user that runs over a store, the newest of several; None if there is none.

    What is no record, belongs to another user, or can be read or written by others, is passed over.

    Args:
        address: As for `imret.store.open_store`.
    """
    address = canonical_address(address)
    folder = _folder()
    try:
        names = os.listdir(folder) if _is_private(os.stat(folder), stat.S_ISDIR) else []
    except OSError:
        return None
    servers = [_read(os.path.join(folder, name)) for name in names if name.startswith(_prefix(address))]
    running = [server for server in servers if server is not None and server.address == address]
    return max(running, key=lambda server: server.since, default=None)


def canonical_address(address: str | os.PathLike[str]) -> str:
    """Return an address as all that mean the same store: a folder absolute, a URL with its port."""
    text = os.fspath(address)
    if "://" not in text:
        return os.path.realpath(os.path.expanduser(text))
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    host = host.lower()
    if ":" not in host.rpartition("]")[2]:
        host += f":{qdrant_port(scheme.lower(), path)}"
    return f"{scheme.lower()}://{user}{at}{host}{(slash + path).rstrip('/')}"


# ---- Records --------------------------------------------------------------------------------------------


def _folder() -> Path:
    # A user each: IMRET_HOME may be shared.
    return state_dir() / f"running-{system.user_id()}"


def _prefix(address: str) -> str:
    """Return what the names of a store's records begin with."""
    return hashlib.sha256(os.fsencode(address)).hexdigest()[:32] + "-"


def _make_private(folder: Path) -> None:
    """Make the folder, for this user alone.

    Raises:
        DataError: If it is another's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not system.is_mine(folder.lstat()):
        raise DataError(
            f"the folder {str(folder)!r} belongs to another user. Set IMRET_HOME to one of yours."
        )
    folder.chmod(0o700)


def _is_private(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file is of a kind and is for this user alone."""
    return is_kind(status.st_mode) and system.is_mine(status) and system.is_closed_to_others(status)


def _write(folder: Path, server: RunningServer) -> tuple[Path, int]:
    """Write a record, locked from the moment that it has its name; return it and what holds the lock.

    Not `imret.files.write_atomically`, whose file is closed, and with it unlocked, when it has its name.
    """
    # Not named by its pid: containers that share a home have the same ones.
    record = folder / f"{_prefix(server.address)}{os.urandom(8).hex()}.json"
    lock, unnamed = tempfile.mkstemp(prefix=".", dir=folder)  # 0600, and not inherited by other programs
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            system.lock(lock)
        os.write(lock, json.dumps(asdict(server)).encode("ascii"))
        os.replace(unnamed, record)
    except BaseException:
        os.close(lock)
        with contextlib.suppress(OSError):
            os.unlink(unnamed)
        raise
    return record, lock


def _read(path: str) -> RunningServer | None:
    """Return what a record says, if it can be trusted and its server lives."""
    try:
        record = os.open(path, os.O_RDONLY | system.NOFOLLOW | system.NONBLOCK | system.BINARY)
    except OSError:
        return None
    try:
        if not _is_private(os.fstat(record), stat.S_ISREG):
            return None
        server = _parsed(os.read(record, _MAX_BYTES))
        return server if server is not None and _is_alive(record, server) else None
    except OSError:
        return None
    finally:
        os.close(record)


def _parsed(text: bytes) -> RunningServer | None:
    types: dict[str, Any] = {
        "url": str,
        "address": str,
        "pid": int,
        "token": (str, type(None)),
        "since": (int, float),
    }
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict) or not all(isinstance(values.get(key), types[key]) for key in types):
        return None
    return RunningServer(**{key: values[key] for key in types})


def _sweep(folder: Path) -> None:
    """Remove the records of dead servers."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            is_unnamed = path.name.startswith(".")
            if is_unnamed and path.stat().st_mtime > time.time() - _UNFINISHED_S:
                continue
            if _read(str(path)) is None:
                path.unlink()


def _is_alive(record: int, server: RunningServer) -> bool:
    """Whether the writer of a record holds it locked; where that does not show, whether it answers."""
    try:
        system.lock(record, shared=True)  # until it is closed
    except BlockingIOError:
        return True
    except OSError:
        return _answers(server.url)
    return False


def _answers(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        return accepts_connections(parts.hostname or "", parts.port or 80, timeout_s=_CONNECT_S)
    except ValueError:
        return False
