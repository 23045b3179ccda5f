"""What a name that somebody typed is a source of: a folder, a prefix, tar and Parquet files, a list."""

from __future__ import annotations

import os
from collections.abc import Sequence

from imret.datasets.addresses import is_list
from imret.datasets.find_shards import find_shards
from imret.datasets.spelling import path_on_disk
from imret.errors import DataError
from imret.places.names import canonical, is_url, split_last
from imret.places.reading import patiently
from imret.places.stores import list_folder
from ingest.remote import ListSource, PrefixSource
from ingest.shards import ShardSource
from ingest.sources import FolderSource, Source


def find_sources(
    names: Sequence[str], *, categories: bool = True, exclude: Sequence[str] | None = None
) -> list[Source]:
    """Return the sources that names stand for; containers in one folder are one source, however many.

    Args:
        names: A folder or URL; a tar or Parquet file, or a pattern of such with braces; a text file of
            addresses.
        categories: As for `FolderSource`.
        exclude: The same.

    Raises:
        DataError: If one is not there, or is none of these.
    """
    sources: list[Source] = []
    shards: dict[str, set[str]] = {}
    places: dict[str, int] = {}
    for name in names:
        found = find_shards(name)
        if found is None:
            sources.append(_find(name, categories, exclude))
            continue
        for root, units in found.items():
            if units is None:
                sources.append(ShardSource(root, categories=categories, exclude=exclude))
            else:
                shards.setdefault(root, set()).update(units)
                places.setdefault(root, len(sources))
    for root, at in sorted(places.items(), key=lambda item: -item[1]):
        sources.insert(at, ShardSource(root, only=shards[root], categories=categories, exclude=exclude))
    return sources


def _find(name: str, categories: bool, exclude: Sequence[str] | None) -> Source:
    """Return the source of a name that stands for no containers."""
    if is_url(name):
        url = canonical(name)
        if not patiently(lambda: list_folder(url)):
            raise DataError(
                f"nothing lies below {url!r}. Check the name; what is there shows a listing of "
                f"{split_last(url)[0]!r}."
            )
        return PrefixSource(url, categories=categories, exclude=exclude)
    path = os.fspath(path_on_disk(name)) if name else ""
    if is_list(path):
        return ListSource(os.path.realpath(path), exclude=exclude)
    if os.path.isfile(path):
        raise DataError(
            f"{name!r} is a file; ingest takes a folder of pictures, one sub-folder per category, tar and "
            "Parquet files (.tar, .parquet), and text files of addresses (.txt)."
        )
    return FolderSource(name, categories=categories, exclude=exclude)
