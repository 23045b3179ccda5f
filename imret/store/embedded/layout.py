"""The folder of an embedded store: what lies where, and how it changes without a moment of half a state.

    <store>/imret-store.json                      says that the folder is a store, and its format
    <store>/<collection>/live.json                names the live version, those it retired, and the marks
                                                  of `LiveState`
    <store>/<collection>/<version>.lock           held by the one process that has the version open, with
                                                  a note of who that is and how it may be reached
    <store>/<collection>/<version>/identity.json  written last: a version without it was never finished
    <store>/<collection>/<version>/shard/         Qdrant Edge's files

A version is named by the first 16 digits of its encoder's fingerprint, and "-2" where it was made beside a
live one of the same encoder.

Both the program and the worker process use it. Knows nothing of Qdrant.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imret.errors import DataError, StoreError, StoreUnavailable
from imret.files import sync_folder, write_atomically
from imret.store.collection import is_name
from imret.store.embedded.locks import switching
from imret.store.types import Identity, LiveState

FORMAT = 1
MARKER = "imret-store.json"
IDENTITY = "identity.json"
LIVE = "live.json"
_TRASH = ".removed-"
SHARING = 4  # which messages the worker of a sharing program understands: another number, other messages


@dataclass(frozen=True)
class Versions:
    """What live.json says: the live version, and those that it replaced and that may still lie there.

    The marks are those of `LiveState`; empty where an older imret wrote it.
    """

    live: str | None = None
    retired: tuple[str, ...] = ()
    switch: str = ""
    ended: str = ""

    @property
    def state(self) -> LiveState:
        return LiveState(self.live, self.switch, self.ended)


def prepare(folder: Path, *, create: bool) -> None:
    """Make sure that a folder is an embedded store.

    Args:
        folder: Absolute.
        create: Make a store of a folder that is missing or empty.

    Raises:
        StoreUnavailable: If there is no store there and none is to be made.
        StoreError: If it is a file, holds other things, cannot be written, or is of a newer format.
    """
    try:
        marker = read_json(folder / MARKER)
        if marker is None:
            _make_store(folder, create=create)
        elif marker.get("format") != FORMAT:
            raise StoreError(
                f"the store {str(folder)!r} has format {marker.get('format')!r}, this imret reads format "
                f"{FORMAT}. Upgrade imret, or use another folder."
            )
    except OSError as error:
        raise StoreError(f"cannot use the store {str(folder)!r}: {error.strerror or error}") from error


def _make_store(folder: Path, *, create: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise StoreError(
            f"{str(folder)!r} is a file. An embedded store is a folder, and a server starts with http:// or "
            "https://"
        )
    # A kill while the marker was written leaves a hidden temporary file, and nothing else.
    others = sorted(name for name in os.listdir(folder) if not _is_temporary(name)) if folder.is_dir() else []
    if others:
        raise StoreError(
            f"{str(folder)!r} is not a store: it holds {others[0]!r} and no {MARKER}. "
            "Name a new or empty folder with --db."
        )
    if not create:
        raise StoreUnavailable(
            f"there is no store at {str(folder)!r} yet. Fill one: imret ingest FOLDER --db {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, {"format": FORMAT})


def collection_names(folder: Path) -> list[str]:
    """Return the names of the folders that may be collections, sorted.

    Raises:
        StoreUnavailable: If the store was moved or removed since it was opened, or its drive is gone.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and is_name(entry.name))
    except OSError as error:
        raise StoreUnavailable(
            f"the store {str(folder)!r} cannot be read any more: {error.strerror or error}. Put it back, or "
            "run the command again."
        ) from error


def read_versions(collection: Path) -> Versions:
    """Return what live.json says; a collection without one has no live version.

    Raises:
        StoreError: If it cannot be understood.
    """
    path = collection / LIVE
    content = read_json(path)
    if content is None:
        return Versions()
    live, retired = content.get("live"), content.get("retired", [])
    if not isinstance(live, str) or not isinstance(retired, list):
        raise _damaged(path, "it does not name a version")
    marks = (str(content.get(mark, "")) for mark in ("switch", "ended"))
    return Versions(live, tuple(str(name) for name in retired), *marks)


def write_versions(collection: Path, versions: Versions) -> None:
    """Replace live.json in one step."""
    write_json(collection / LIVE, asdict(versions))


def is_retired(version: Path) -> bool:
    """Whether another version has replaced this one.

    Raises:
        StoreError: If live.json cannot be understood.
    """
    known = read_versions(version.parent)
    return version.name in known.retired and version.name != known.live


def read_identity(version: Path) -> Identity | None:
    """Return the encoder of a version, or None if there is no such version, or it was never finished.

    Raises:
        StoreError: If its identity.json cannot be understood, or is of a newer format.
    """
    path = version / IDENTITY
    content = read_json(path)
    if content is None:
        return None
    if content.get("format") != FORMAT:
        raise StoreError(f"{str(path)!r} has format {content.get('format')!r}, not {FORMAT}. Upgrade imret.")
    try:
        return Identity(str(content["model"]), str(content["fingerprint"]), int(content["dim"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{error!r}") from error


def write_identity(version: Path, identity: Identity, engine: str) -> None:
    """Write identity.json, which makes the version exist.

    Args:
        version: Its folder.
        identity: The encoder.
        engine: Name and version of the engine, for whoever has to migrate it.
    """
    write_json(version / IDENTITY, {"format": FORMAT, **asdict(identity), "engine": engine})


def version_folders(collection: Path) -> list[Path]:
    """Return the folders of all versions, finished or not, sorted."""
    if not collection.is_dir():
        return []
    with os.scandir(collection) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))


def locked_versions(collection: Path) -> list[Path]:
    """Return the folders of all versions, and of those that somebody may be making: they have a lock only."""
    names = {path.name for path in version_folders(collection)}
    if collection.is_dir():
        names |= {path.name.removesuffix(".lock") for path in collection.glob("[!.]*.lock")}
    return [collection / name for name in sorted(names)]


def rename(source: Path, target: Path) -> None:
    """Give a collection another name in one step, durably; the caller holds the locks of its versions.

    Raises:
        OSError: If the target exists and is not empty.
    """
    with switching(source):
        os.rename(source, target)
    sync_folder(target.parent)


def move_to_trash(version: Path) -> None:
    """Make a version vanish in one step, then delete its files; the caller holds its lock."""
    if version.is_dir():
        trash = version.with_name(f"{_TRASH}{version.name}-{os.getpid()}-{time.monotonic_ns()}")
        os.rename(version, trash)
        shutil.rmtree(trash, ignore_errors=True)


def empty_trash(parent: Path) -> None:
    """Delete what killed removals left behind in the store's or a collection's folder."""
    with suppress(FileNotFoundError), os.scandir(parent) as entries:
        for entry in list(entries):
            if entry.name.startswith(_TRASH):
                shutil.rmtree(entry.path, ignore_errors=True)


def size_bytes(folder: Path) -> int:
    """Return the space that the files of a folder take; Qdrant's are sparse, so less than their length."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
    return total


def taken(source: Path, target: Path) -> DataError:
    """Return the error for a collection that cannot be renamed because another has the name."""
    store = str(target.parent)
    return DataError(
        f"cannot rename {source.name!r} to {target.name!r}: {store!r} holds {target.name!r} already. "
        "Use another name, or delete it first: "
        f"imret collections delete {target.name} --db {shlex.quote(store)}"
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no file.

    Raises:
        StoreError: If it holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step, durably: after a crash it is the old or the new one, and whole.

    Raises:
        StoreError: If it cannot be written, for example because the disk is full; the old one stays.
    """
    try:
        write_atomically(path, json.dumps(content, indent=2) + "\n", durable=True)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith((".part", ".tmp"))


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{str(path)!r} is damaged: {reason}.\n"
        f"Move {str(path.parent)!r} away and ingest again; the pictures themselves are not in the store."
    )
