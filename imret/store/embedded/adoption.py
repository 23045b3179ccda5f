"""The engine's files of a version as they leave a store and come into one: linked, unpacked, put together.

A shard's snapshot of a Qdrant server is such files in a tar, and Qdrant Edge opens them as its own, with the
graph, the int8 vectors and the payload indexes that the server has made. Of several shards it opens the
segments in one folder, as each point is in one shard alone; hides what has to be heeded there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import qdrant_edge as qe

from imret.errors import DataError, StoreError, summary
from imret.files import sync_folder
from imret.store.embedded import damage, locks
from imret.store.embedded import layout as folder
from imret.store.embedded.engine_config import compression_of, engine_config, stored_creation
from imret.store.embedded.engine_version import engine_version
from imret.store.embedded.read_only import copy_sparse, is_never_written
from imret.store.exported_file import check_space
from imret.store.placement import Creation
from imret.store.types import Identity

_SEGMENTS, _LOG = "segments", "wal"
_LEFT_OUT = {"temp_segments", ".wal", "optimizing"}  # what the engine makes again, and its lock


def link_files(shard: Path, target: Path) -> None:
    """Give the files of a shard a second place, as they are this moment: nobody may write to it meanwhile.

    What the engine never writes again is linked where that can be, so that a large shard takes a moment.

    Raises:
        OSError: If a file cannot be read or written, or the disk has too little space for what is copied.
    """
    files = (Path(parent, name) for parent, _, names in os.walk(shard) for name in names)
    check_space(str(target.parent), sum(_size(file) for file in files if not is_never_written(file.name)))
    for parent, folders, names in os.walk(shard):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.endswith(".deleted")]
        place = target / Path(parent).relative_to(shard)
        place.mkdir(parents=True)
        for name in names:
            if name in _LEFT_OUT:
                continue
            source = Path(parent, name)
            if is_never_written(name):
                with suppress(OSError):  # another disk, or one without links
                    os.link(source, place / name)
                    continue
            copy_sparse(source, place / name)


def _size(file: Path) -> int:
    """Return what a copy of a file takes, without its holes."""
    info = file.stat()
    return min(info.st_size, info.st_blocks * 512)


def unpack(snapshot: Path, target: Path) -> None:
    """Make the files of a shard of its snapshot.

    Raises:
        DataError: If it is none, or damaged.
        StoreError: If the disk is full.
    """
    with _of_engine(f"unpack {snapshot.name!r}"):
        qe.EdgeShard.unpack_snapshot(str(snapshot), str(target))


def adopt(
    version: Path,
    identity: Identity,
    parts: Sequence[Path],
    *,
    owner: locks.LockOwner,
    index_from_kb: int,
) -> int:
    """Make a version of the files of shards, which are moved.

    Args:
        version: Its folder; what an earlier attempt left in its place is removed.
        identity: The encoder of the vectors.
        parts: The folder of each shard, on the disk of the store.
        owner: Whom to name to other processes.
        index_from_kb: As for `Shard`.

    Returns:
        How many points it holds.

    Raises:
        LockedElsewhere: If another process has it open.
        LiveMeanwhile: If it is live.
        DataError: If the files are no shard's, or of other vectors.
    """
    version.parent.mkdir(exist_ok=True)
    lock, is_begun, is_made = locks.VersionLock(version, owner), False, False
    try:
        folder.empty(version)
        is_begun = True
        version.mkdir()
        shard = version / "shard"
        _put_together(parts, shard)
        points = _opened(shard, identity, index_from_kb)
        sync_folder(version)
        folder.write_identity(version, identity, engine_version())  # which makes it exist
        sync_folder(version.parent)
        is_made = True
        return points
    finally:
        if is_begun and not is_made:
            folder.move_to_trash(version)
        lock.release(remove=is_begun and not is_made)


def _put_together(parts: Sequence[Path], shard: Path) -> None:
    """Move the segments of shards into one.

    The engine passes over a change whose number is not above that of the point's last one, and numbers begin
    where the log does: so the log that stays is that of the shard with the highest, else changes to points
    of another would be lost without a word.
    """
    first, *others = sorted(parts, key=_last_change, reverse=True)
    os.rename(first, shard)
    for part in others:
        for segment in sorted((part / _SEGMENTS).iterdir()):
            target = shard / _SEGMENTS / segment.name
            if target.exists():
                raise DataError(f"two shards hold the same segment, {segment.name}. Were they copied twice?")
            os.rename(segment, target)
        shutil.rmtree(part, ignore_errors=True)


def _last_change(part: Path) -> int:
    """Return the number of the last change that the segments of a shard hold.

    Raises:
        DataError: If it is no shard.
    """
    try:
        if not (part / _LOG).is_dir():
            raise FileNotFoundError(f"it has no folder {_LOG!r}")
        segments = [entry for entry in (part / _SEGMENTS).iterdir() if entry.is_dir()]
        states = [json.loads((segment / "segment.json").read_bytes()) for segment in segments]
        return max((int(state.get("version") or 0) for state in states), default=0)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{part.name!r} holds no shard of Qdrant's: {summary(error)}.") from error


def _opened(shard: Path, identity: Identity, index_from_kb: int) -> int:
    """Have the engine open the files and note its own configuration beside them; return the points."""
    config = engine_config(identity.dim, index_from_kb, _layout_of(shard))
    with _of_engine("open the files"):
        try:
            engine = qe.EdgeShard.load(str(shard), config)
        except Exception as error:
            if not damage.is_engine_failure(error) or "ncompatible" not in str(error):
                raise
            # Vectors kept in another way, as other versions of imret may: what is there decides.
            (shard / "edge_config.json").unlink(missing_ok=True)
            engine = qe.EdgeShard.load(str(shard))
        try:
            points: int = engine.count(qe.CountRequest(exact=True))
            records, _ = engine.scroll(qe.ScrollRequest(limit=1, with_payload=False, with_vector=True))
            engine.flush()
        finally:
            engine.close()
    for record in records:
        size = len(record.vector) if isinstance(record.vector, list) else 0
        if size != identity.dim:
            raise DataError(f"the files hold vectors of {size} dimensions, not of {identity.dim}.")
    return points


def _layout_of(shard: Path) -> Creation:
    """Return how vectors are compressed in the files of a shard, else an index would make them anew.

    Where Edge has not noted it, the segments say; those that are filled have none.
    """
    layout = stored_creation(shard)
    for segment in (shard / _SEGMENTS).glob("*/segment.json"):
        if layout.quantize is None:
            layout = compression_of(json.loads(segment.read_bytes()))
    return layout


@contextmanager
def _of_engine(doing: str) -> Iterator[None]:
    """Turn what the engine raises into an error that says what it was to do."""
    try:
        yield
    except BaseException as error:
        if not damage.is_engine_failure(error):
            raise
        text = " ".join(str(error).split()).rstrip(".")
        if "No space left" in text:
            raise StoreError(f"the disk is full: Qdrant Edge failed to {doing}. Free some space.") from error
        raise DataError(
            f"Qdrant Edge failed to {doing}: {text}. Are they damaged, or of a newer Qdrant than "
            f"{engine_version()} reads?"
        ) from error
