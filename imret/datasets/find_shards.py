"""Which tar and Parquet files a name stands for: one, a pattern, or all that a folder or prefix holds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from imret.datasets.exclusion import left_out
from imret.datasets.scan import looks_like_picture
from imret.datasets.shards import TAR, is_shard
from imret.datasets.spelling import path_on_disk
from imret.errors import DataError, some_of
from imret.escape import escape_undecodable
from imret.places.listing import Unlisted, list_tree
from imret.places.names import canonical, expanded, is_url, split_last
from imret.places.reading import patiently
from imret.places.stores import list_folder, look_up
from imret.places.tar import compression, how_to_unpack

_LOOKED_AT = 2_000  # files, until one is a picture or a container


def find_shards(name: str) -> dict[str, set[str] | None] | None:
    """Return which containers a name stands for, by the folder or URL that they lie in; None for all in it.

    Args:
        name: A path or URL of a container or of what holds some, or a pattern of such with braces.

    Returns:
        None if the name stands for something else, or for nothing.

    Raises:
        DataError: If it is a pattern of other files, or of none that is there, or a container that cannot be
            read as it is; or if the store does not answer.
    """
    if is_url(name):
        if "{" in name:
            return _named(name, [split_last(canonical(one)) for one in expanded(name)])
        return _at_url(canonical(name))
    path = os.fspath(path_on_disk(name)) if name else ""
    if "{" in name and not os.path.exists(path):
        return _named(name, [_split_path(one) for one in expanded(name)])
    if os.path.isfile(path):
        if not is_shard(path):
            return None
        _refuse_compressed(path)
        root, unit = _split_path(path)
        return {root: {unit}}
    return {os.path.realpath(path): None} if os.path.isdir(path) and _holds_shards(path) else None


def _at_url(url: str) -> dict[str, set[str] | None] | None:
    if is_shard(url):
        (stored,) = patiently(lambda: look_up([url]))
        if stored is not None and not stored.is_folder:
            _refuse_compressed(url)
            root, unit = split_last(url)
            return {root: {unit}}
    return {url: None} if _holds_shards(url) else None


def _named(pattern: str, places: Sequence[tuple[str, str]]) -> dict[str, set[str] | None]:
    """Return what a pattern names, by what it lies in; what is not there of it is told by the run."""
    found: dict[str, set[str]] = {}
    for root, unit in places:
        if not is_shard(unit):
            raise DataError(
                f"the pattern {pattern!r} names {unit!r}, and stands for tar and Parquet files alone "
                "(.tar, .parquet). Name folders one by one."
            )
        found.setdefault(root, set()).add(unit)
    for root, units in found.items():
        there = _names_in(root)
        if not units & there:
            raise DataError(
                f"of the files that {pattern!r} names none is there: {escape_undecodable(root)!r} has "
                f"{some_of(sorted(name for name in there if is_shard(name)), 3) or 'no such file'}."
            )
    return dict(found)


def _names_in(root: str) -> set[str]:
    if is_url(root):
        return {stored.name for stored in patiently(lambda: list_folder(root))}
    try:
        return set(os.listdir(root))
    except OSError as error:
        raise DataError(f"cannot list the folder {root!r}: {error.strerror}.") from error


def _split_path(path: str) -> tuple[str, str]:
    """Return the folder of a file, without links, and the name in it."""
    above, name = os.path.split(os.path.abspath(path))
    return os.path.realpath(above), name


def _refuse_compressed(place: str) -> None:
    name = place.rpartition("/")[2]
    if (kind := compression(name)) is not None:
        raise DataError(
            f"{place!r} is {how_to_unpack(name, kind)}, and ingest {name[: name.lower().index(TAR)]}.tar."
        )


def _holds_shards(root: str) -> bool:
    """Whether a folder or prefix holds tar or Parquet files, and no picture, as far as a look tells."""
    has_shard = False
    for name in islice(_names_below_url(root) if is_url(root) else _names_below(root), _LOOKED_AT):
        if name.startswith("."):  # left out by any walk
            continue
        if looks_like_picture(name):
            return False
        has_shard |= is_shard(name)
    return has_shard


def _names_below_url(url: str) -> Iterator[str]:
    for listed in list_tree(url):
        if not isinstance(listed, Unlisted):
            yield listed[0].rpartition("/")[2]


def _names_below(root: str) -> Iterator[str]:
    """Yield the names of files and folders below a folder, without asking for more than their names."""
    folders = deque([root])
    while folders:
        try:
            with os.scandir(folders.popleft()) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield entry.name
                    elif left_out(entry.name) is None:
                        folders.append(entry.path)
                        yield ""
        except OSError:
            continue
