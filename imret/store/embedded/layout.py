"""The folder of an embedded store: what lies where, and how it changes without a moment of half a state.

    <store>/imret-store.json                      says that the folder is a store, and its format
    <store>/<collection>/live.json                names the live version, those it retired, and the marks
                                                  of `LiveState`
    <store>/<collection>/excluded.json            what is left out of which source
    <store>/<collection>/<kind>.document          see `imret.store.embedded.documents`
    <store>/<collection>/<version>.lock           held by the one process that has the version open, with
                                                  a note of who that is and how it may be reached
    <store>/<collection>/<version>/identity.json  written last: a version without it was never finished
    <store>/<collection>/<version>/flushed*.json  what lay there, see `imret.store.embedded.inventory`
    <store>/<collection>/<version>/shard/         Qdrant Edge's files

A version is named by the first 16 digits of its encoder's fingerprint, and "-2" where it was made beside a
live one of the same encoder.

Both the program and the worker process use it. Knows nothing of Qdrant.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imret.errors import DataError, StoreDamaged, StoreError, StoreUnavailable
from imret.files import sync_folder, write_atomically
from imret.store.collection import is_name
from imret.store.embedded import documents, inventory
from imret.store.embedded.damage import damaged
from imret.store.embedded.locks import SWITCH_LOCK, LiveMeanwhile, remove_if_empty, switching
from imret.store.embedded.permissions import obstacle
from imret.store.types import Identity, LiveState

FORMAT = 1
MARKER = "imret-store.json"
IDENTITY = "identity.json"
LIVE = "live.json"
EXCLUDED = "excluded.json"
_TRASH = ".removed-"
_VERSION = re.compile(r"[0-9a-f]{16}(-2)?")
SHARING = 5  # which messages the worker of a sharing program understands: another number, other messages


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
        marker = _read_marker(folder)
        if marker is None:
            if not _holds_collections(folder):
                _make_store(folder, create=create)
            else:  # lost, and with it nothing that the collections do not say themselves
                with suppress(StoreError):  # a full disk is searched all the same
                    write_json(folder / MARKER, {"format": FORMAT})
        elif marker != FORMAT:
            raise StoreError(
                f"the store {str(folder)!r} has format {marker!r}, this imret reads format {FORMAT}. Upgrade "
                "imret, or use another folder."
            )
    except OSError as error:
        why = obstacle(folder, store=folder, write=create, error=error) or error.strerror or error
        raise StoreError(
            f"cannot use the store {str(folder)!r}: {why}.\nName another: --db FOLDER"
        ) from error


def _read_marker(folder: Path) -> Any:
    """Return the format that the marker says, or None if there is none, or nothing in it any more.

    Raises:
        StoreError: If it cannot be read.
    """
    path = folder / MARKER
    if path.is_dir():
        remove_if_empty(path)
    try:
        return json.loads(path.read_bytes())["format"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        if why := obstacle(path, store=folder, write=False, error=error):
            raise _unreadable(StoreError, folder, why) from error
        raise StoreError(
            f"cannot read {str(path)!r}: {error.strerror or error}. Mend that, or move it away: it is made "
            "anew where there are collections."
        ) from error


def _unreadable(kind: type[StoreError], folder: Path, why: str) -> StoreError:
    """Return the error for a store that this user may not read; clients of a server learn less."""
    return kind(f"cannot read the store {str(folder)!r}: {why}.", public="the store cannot be read.")


def _holds_collections(folder: Path) -> bool:
    """Whether a folder has a collection with a version of a format that can be read."""
    try:
        names = collection_names(folder)
    except StoreUnavailable:
        return False
    versions = (version for name in names for version in version_folders(folder / name))
    return any(_identity_in(version) or inventory.read(version) for version in versions)


def _identity_in(version: Path) -> Identity | None:
    with suppress(StoreError):
        return read_identity(version)
    return None


def _make_store(folder: Path, *, create: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise StoreError(
            f"{str(folder)!r} is a file. An embedded store is a folder, and a server starts with http:// or "
            "https://"
        )
    # A kill while the marker was written leaves a hidden temporary file, and nothing else.
    names = os.listdir(folder) if folder.is_dir() else []
    others = sorted(name for name in names if not _is_temporary(name) and name != MARKER)
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
        if why := obstacle(folder, store=folder, write=False, error=error):
            raise _unreadable(StoreUnavailable, folder, why) from error
        raise StoreUnavailable(
            f"the store {str(folder)!r} cannot be read any more: {error.strerror or error}. Put it back, or "
            "run the command again."
        ) from error


def read_versions(collection: Path) -> Versions:
    """Return what live.json says; a collection without one has no live version.

    Raises:
        StoreDamaged: If it cannot be understood.
    """
    path = collection / LIVE
    content = read_json(path)
    if content is None:
        return Versions()
    live, retired = content.get("live"), content.get("retired", [])
    if not isinstance(live, str) or not isinstance(retired, list):
        raise damaged(collection, f"{LIVE} does not name a version")
    marks = (str(content.get(mark, "")) for mark in ("switch", "ended"))
    return Versions(live, tuple(str(name) for name in retired), *marks)


def write_versions(collection: Path, versions: Versions) -> None:
    """Replace live.json in one step."""
    write_json(collection / LIVE, asdict(versions))


def read_excluded(collection: Path) -> dict[str, tuple[str, ...]]:
    """Return what is left out of the sources of a collection: patterns by source.

    Raises:
        StoreError: If it cannot be read or understood.
    """
    path = collection / EXCLUDED
    try:
        content = json.loads(path.read_bytes())
        return {str(source): tuple(map(str, patterns)) for source, patterns in content.items() if patterns}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        why = obstacle(path, store=collection.parent, write=False, error=error)
        raise StoreError(f"cannot read {str(path)!r}: {why or error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{str(path)!r}, which says what is excluded from the folders of the collection, is broken: "
            f"{error}. Remove it, and say again with --exclude what is."
        ) from error


def write_excluded(collection: Path, excluded: Mapping[str, Sequence[str]]) -> None:
    """Note patterns of some sources; none for a source of which nothing is left out."""
    with switching(collection):
        known = {**read_excluded(collection), **excluded}
        write_json(
            collection / EXCLUDED, {name: list(patterns) for name, patterns in known.items() if patterns}
        )


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
        StoreDamaged: If its identity.json cannot be understood, or was lost.
        StoreError: If it cannot be read, or is of a newer format.
    """
    path = version / IDENTITY
    content = read_json(path)
    if content is None:
        _check_never_finished(version)
        return None
    if content.get("format") != FORMAT:
        raise StoreError(f"{str(path)!r} has format {content.get('format')!r}, not {FORMAT}. Upgrade imret.")
    try:
        return Identity(str(content["model"]), str(content["fingerprint"]), int(content["dim"]))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(version.parent, f"{version.name}/{IDENTITY} is broken: {error!r}") from error


def _check_never_finished(version: Path) -> None:
    """Raise StoreDamaged for a version without identity.json that has had one, and points."""
    noted = inventory.read(version)
    if noted is None or noted.points == 0:
        # Nothing is lost, unless it is live. Looked at twice: it may have been replaced this moment.
        if read_versions(version.parent).live != version.name or (version / IDENTITY).exists():
            return
        if read_versions(version.parent).live != version.name:
            return
    if not version.exists():
        reason = f"its live version, the folder {version.name}, is missing"
    elif not version.is_dir():
        reason = f"{version.name} is a file where a folder should be"
    else:
        reason = f"{version.name}/{IDENTITY} is missing"
    raise damaged(version.parent, reason, version=version)


def write_identity(version: Path, identity: Identity, engine: str) -> None:
    """Write identity.json, which makes the version exist.

    Args:
        version: Its folder.
        identity: The encoder.
        engine: Name and version of the engine, for whoever has to migrate it.
    """
    write_json(version / IDENTITY, {"format": FORMAT, **asdict(identity), "engine": engine})


def engine_of(version: Path) -> str:
    """Return name and version of the engine that made a version, "?" where that is not known."""
    with suppress(StoreError):
        return str((read_json(version / IDENTITY) or {}).get("engine", "?"))
    return "?"


def version_of(collection: Path, identity: Identity, *, staged: bool) -> str:
    """Return the name of a version's folder.

    An encoder has two, to fill one while the other is live; with none live, an ingest and an import that
    begin at the same time each have their own.
    """
    plain, second = identity.version, f"{identity.version}-2"
    is_second = read_versions(collection).live == second
    return plain if is_second == staged else second


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
        shutil.rmtree(_renamed_to_trash(version), ignore_errors=True)
    else:
        version.unlink(missing_ok=True)


def empty(version: Path) -> None:
    """Remove what is there of a version that is to be made anew; the caller holds its lock.

    Raises:
        LiveMeanwhile: If it is live.
    """
    if read_versions(version.parent).live == version.name:
        raise LiveMeanwhile(
            f"another program has filled the collection {version.parent.name!r} of "
            f"{str(version.parent.parent)!r} meanwhile. Run the command again."
        )
    move_to_trash(version)


def remove(collection: Path) -> Path:
    """Make a collection vanish in one step, whatever is left of it; the caller holds its versions' locks.

    Returns:
        What it is called now; the caller deletes that.
    """
    with ExitStack() as stack:
        with suppress(StoreDamaged):  # nobody else can switch, either
            stack.enter_context(switching(collection))
        trash = _renamed_to_trash(collection)
    sync_folder(collection.parent)
    return trash


def _renamed_to_trash(path: Path) -> Path:
    trash = path.with_name(f"{_TRASH}{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    os.rename(path, trash)
    return trash


def is_own(collection: Path) -> bool:
    """Whether a folder is a collection, or what is left of one, and not somebody's own."""
    names = os.listdir(collection)
    return not names or any(_is_own(name) for name in names)


def is_left_over(collection: Path) -> bool:
    """Whether a folder is what an ingest or a deletion that was cut short has left: all in it is imret's."""
    try:
        return all(_is_own(name) for name in os.listdir(collection))
    except OSError:
        return False


def _is_own(name: str) -> bool:
    own = name in (LIVE, EXCLUDED, SWITCH_LOCK, *documents.FILES)
    own = own or name.startswith(_TRASH) or _is_temporary(name)
    return own or _VERSION.fullmatch(name.removesuffix(".lock")) is not None


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
    """Return the object in a JSON file of a collection, or None if there is no file.

    Raises:
        StoreDamaged: If it holds something else.
        StoreError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise _broken(path, "is a folder where a file should be") from None
    except OSError as error:
        store = path.parent.parent if path.name == LIVE else path.parent.parent.parent
        if why := obstacle(path, store=store, write=False, error=error):
            raise _unreadable(StoreError, store, why) from error
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"is broken: {error}") from error
    if not isinstance(content, dict):
        raise _broken(path, "holds no JSON object")
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


def _broken(path: Path, what: str) -> StoreDamaged:
    """Return the error for live.json or a version's identity.json."""
    if path.name == IDENTITY:
        collection = path.parent.parent
        return damaged(collection, f"{path.parent.name}/{IDENTITY} {what}", version=path.parent)
    return damaged(path.parent, f"{path.name} {what}")
