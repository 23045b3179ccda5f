"""The pictures and texts of a run: found, and checked against each other, before anything is decoded.

Opens no picture, and loads neither torch nor a model: what is wrong here is told at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.manifest import is_manifest, read_manifest
from finetune.data.records import (
    Record,
    list_pictures,
    manifest_hash,
    read_records,
    refuse_doubtful_categories,
    with_captions,
)
from imret.datasets.captions_csv import read_captioned, read_captions
from imret.datasets.exclusion import Exclusion
from imret.datasets.names_csv import name_key, read_names
from imret.datasets.scan import but_left_out
from imret.datasets.spelling import path_on_disk
from imret.datasets.unpacked import unpacked
from imret.errors import DataError, counted, some_of

CAPTIONS_NAME = "captions.csv"


@dataclass(frozen=True)
class Listing:
    """Pictures of one folder, before decoding.

    Attributes:
        root: What their paths are relative to.
        records: The pictures.
    """

    root: Path
    records: list[Record]


@dataclass(frozen=True)
class Sources:
    """The pictures and texts of a run, before anything is decoded.

    Attributes:
        labelled: Pictures to train on and to validate with.
        n_test: How many more pictures a manifest sets aside for a test.
        names: What categories are called, by `imret.datasets.names_csv.name_key`, where a file says so.
        replay: Captioned pictures of other things to show again; None without any.
        test_set: Test pictures, whose duplicates are not trained on; None without any.
    """

    labelled: Listing
    n_test: int = 0
    names: Mapping[str, Sequence[str]] | None = None
    replay: Listing | None = None
    test_set: Listing | None = None

    def hash(self) -> str:
        """Return a hash of all of it: the same sources, the same hash."""
        listings = (self.labelled, self.replay, self.test_set)
        parts = [manifest_hash(listing.records) if listing else "" for listing in listings]
        return hashlib.sha256(json.dumps([*parts, self.names]).encode()).hexdigest()


def find_sources(
    train: str | os.PathLike[str],
    *,
    captions: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
    on_message: Callable[[str], None] = lambda _: None,
) -> Sources:
    """Find the pictures and texts of a run and check them against each other.

    Args:
        train: A folder with one sub-folder per category, a manifest, or what stands for tar or Parquet files
            of pictures: see `imret.datasets.unpacked`.
        captions: CSV file of captions; if None, captions.csv in the folder, if there is one.
        names: CSV file of what categories are called.
        replay: CSV file of captioned pictures of other things.
        against: A folder of test pictures, whose duplicates are not trained on.
        exclude: Patterns of what is left out of the folder and of `against`: see
            `imret.datasets.exclusion.Exclusion`.
        on_message: Called with sentences for a person.

    Raises:
        DataError: If any of them cannot be read or does not fit the others.
    """
    if not os.fspath(train):
        raise DataError("no training folder: ''. Is a variable of the shell not set?")
    from_manifest = is_manifest(Path(path_on_disk(train)))
    if not from_manifest:
        train = unpacked(os.fspath(train), exclude)
    train = Path(path_on_disk(train))
    root = train.parent if from_manifest else train
    if captions is None and not from_manifest and (root / CAPTIONS_NAME).is_file():
        captions = root / CAPTIONS_NAME
    captions_of = None
    if captions is not None:
        captions_of = read_captions(captions)
        on_message(f"captions of {counted(len(captions_of))} from {os.fspath(captions)}")
    if from_manifest:
        records = with_captions(read_manifest(train), captions_of or {}, root)
    else:
        records = read_records(train, captions_of, exclude=exclude)
    usable = [record for record in records if record.split != "test"]
    called = _names(names, usable, on_message)
    refuse_doubtful_categories(usable, train, called or ())
    return Sources(
        Listing(root, usable),
        n_test=len(records) - len(usable),
        names=called,
        replay=_replayed(replay, on_message),
        test_set=_test_set(against, root, exclude, on_message),
    )


def _names(
    file: str | os.PathLike[str] | None, records: Sequence[Record], on_message: Callable[[str], None]
) -> dict[str, tuple[str, ...]] | None:
    """Return what a file calls the categories that there are."""
    if file is None:
        return None
    names = read_names(file)
    categories = {name_key(record.category) for record in records}
    if strangers := [category for category in names if category not in categories]:
        first = f"the first {strangers[0]!r}"
        if len(strangers) == len(names):
            raise DataError(
                f"names file {os.fspath(file)!r} names none of the categories, which are "
                f"{some_of(sorted(categories), 10)}; {first}. Write lines of category,name with those."
            )
        on_message(f"names of {len(strangers):,} categories that there are no pictures of, {first}")
    return {category: called for category, called in names.items() if category in categories}


def _replayed(file: str | os.PathLike[str] | None, on_message: Callable[[str], None]) -> Listing | None:
    if file is None:
        return None
    root, captions = read_captioned(file)
    records = [
        Record(path, "", (root / path).stat().st_size, captions=texts)
        for path, texts in sorted(captions.items())
    ]
    on_message(f"{len(records):,} captioned pictures to replay from {os.fspath(file)}")
    return Listing(root, records)


def _test_set(
    folder: str | os.PathLike[str] | None,
    train: Path,
    exclude: Sequence[str],
    on_message: Callable[[str], None],
) -> Listing | None:
    if folder is None:
        return None
    root = Path(path_on_disk(folder))
    if not root.is_dir():
        raise DataError(f"the test folder {str(root)!r} is no folder. Give one of pictures to --against.")
    if train.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"the test folder {str(root)!r} is the training folder {str(train)!r}, or lies above it: every "
            "picture is a copy of itself. Give another to --against."
        )
    records = [
        Record(picture.path, "", picture.size_bytes)
        for picture in list_pictures(root, Exclusion(root, exclude))
    ]
    if not records:
        left_out = but_left_out(str(root), Exclusion(root, exclude))
        raise DataError(
            f"the test folder {str(root)!r} holds no pictures{left_out}. Give another to --against."
        )
    on_message(f"{len(records):,} test pictures to compare with from {root}")
    return Listing(root, records)
