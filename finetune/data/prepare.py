"""The pictures and texts of a run: found, checked, decoded, and split into training and validation.

Hides where they come from and what is left out of training. What was decided is in a Report.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.duplicates import Leak, find_duplicates, find_leaks
from finetune.data.manifest import is_manifest, read_manifest
from finetune.data.pixels import ImageSet, Noted, training_size
from finetune.data.records import (
    Record,
    list_pictures,
    manifest_hash,
    read_records,
    refuse_doubtful_categories,
    refuse_one_category,
    split_records,
    with_captions,
)
from finetune.data.replay import hold_out, replayed_records
from finetune.data.report import Report
from finetune.data.token_lengths import measure_token_lengths
from finetune.model.base_model import Base
from imret.datasets.captions_csv import read_captions
from imret.datasets.exclusion import Exclusion
from imret.datasets.names_csv import name_key, read_names
from imret.datasets.scan import Skipped, but_left_out
from imret.datasets.spelling import path_on_disk
from imret.errors import DataError, counted, some_of
from imret.images.phash import ImageHash, cluster
from imret.models.tokenizer import count_tokens

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


@dataclass(frozen=True)
class Data:
    """The pictures of a run, decoded or ready to be.

    Attributes:
        train: To train on, larger than the model's input so that they can be cropped.
        validation: To score on, at the model's own size.
        replay: Of other things, to show again; None without any.
        captioned: To measure retention on; None without any.
        names: What categories are called, where a file says so.
        report: What was found and decided.
    """

    train: ImageSet
    validation: ImageSet
    replay: ImageSet | None
    captioned: ImageSet | None
    names: Mapping[str, Sequence[str]] | None
    report: Report

    def manifest_hash(self) -> str:
        """Return a hash of the pictures that could be read."""
        image_sets = (self.train, self.validation, self.replay, self.captioned)
        return manifest_hash([record for images in image_sets if images for record in images.records])


# ---- Before decoding -------------------------------------------------------------------------------------


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
        train: A folder with one sub-folder per category, or a manifest.
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
    train = Path(path_on_disk(train))
    from_manifest = is_manifest(train)
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
    root, records = replayed_records(file)
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


# ---- Decoding --------------------------------------------------------------------------------------------


def prepare(
    sources: Sources,
    base: Base,
    config: FinetuneConfig,
    *,
    opened: contextlib.ExitStack,
    on_image: Callable[[int], object] = lambda _: None,
) -> Data:
    """Decode every picture once, leave out what must not be trained on, and split off validation.

    Args:
        sources: From `find_sources`.
        base: Says how pictures are fitted and texts are tokenized.
        config: Says how much is kept in memory and how validation is split off.
        opened: Closes the image sets.
        on_image: Called for each picture that was decoded, with the number of all pictures.

    Raises:
        DataError: If the pictures that can be read and trained on are of one category, a category's name is
            too long for the model, or nothing is left to replay.
        ModelError: If the model's tokenizer cannot be loaded.
    """
    lengths = measure_token_lengths(
        sources.labelled.records,
        sources.replay.records if sources.replay else (),
        lambda text: count_tokens(base.tokenizer, text),
        context=base.context_length,
        names=sources.names,
    )
    decoder = _Decoder(sources, base, opened, on_image)
    cache_bytes = config.cache_mib << 20
    labelled = decoder.decode(sources.labelled, cache_bytes)
    test_set = decoder.decode(sources.test_set, 0, full_paths=True) if sources.test_set else None
    leaks = _drop_leaks(labelled, test_set)
    refuse_one_category(labelled.records, labelled.folder)
    groups, duplicates = find_duplicates(labelled.folder, labelled.records, labelled.hashes)
    train, validation = split_records(
        labelled.records, share=config.validation_share, seed=config.seed, groups=groups.tolist()
    )
    held_out = decoder.at_model_size(labelled, validation, cache_bytes // 4)
    replay = captioned = None
    if sources.replay is not None:
        replay = decoder.decode(sources.replay, cache_bytes // 2)
        leaks += _drop_replay_leaks(replay, held_out, [labelled.hashes[i] for i in validation], test_set)
        if not replay.records:
            raise DataError(
                f"of the {len(sources.replay.records):,} captioned pictures to replay none can be read and "
                "is no picture of validation or of the test. Mend them, or leave out --replay."
            )
        shown, kept = hold_out(cluster(replay.hashes).tolist(), seed=config.seed)
        captioned = decoder.at_model_size(replay, kept, cache_bytes // 4)
        replay.select(shown)
    categories = {record.category for record in labelled.records}
    report = Report(
        train=[labelled.records[i] for i in train],
        validation=held_out.records,
        names=sources.names,
        skipped=decoder.skipped,
        noted=decoder.noted,
        duplicates=duplicates,
        leaks=leaks,
        test=sources.n_test,
        against=None if test_set is None else len(test_set.records),
        lengths=lengths,
        lost=sorted({record.category for record in sources.labelled.records} - categories),
    )
    return Data(labelled.select(train), held_out, replay, captioned, sources.names, report)


class _Decoder:
    """Makes the image sets of a run; collects what cannot be read in `skipped`, notes in `noted`."""

    def __init__(
        self,
        sources: Sources,
        base: Base,
        opened: contextlib.ExitStack,
        on_image: Callable[[int], object],
    ) -> None:
        self.skipped: list[Skipped] = []
        self.noted: list[Noted] = []
        self._preprocess, self._opened = base.preprocess, opened
        listings = (sources.labelled, sources.replay, sources.test_set)
        total = sum(len(listing.records) for listing in listings if listing)
        self._on_image = lambda: on_image(total)

    def decode(self, listing: Listing, budget_bytes: int, *, full_paths: bool = False) -> ImageSet:
        """Decode and hash a listing at the size that training crops from."""
        size = training_size(self._preprocess.size)
        images = self._image_set(listing.root, listing.records, size, budget_bytes)
        skipped = images.load(self._on_image, with_hashes=True)
        noted = images.noted
        if full_paths:
            skipped = [replace(skip, path=str(listing.root / skip.path)) for skip in skipped]
            noted = [replace(one, path=str(listing.root / one.path)) for one in noted]
        self.skipped += skipped
        self.noted += noted
        return images

    def at_model_size(self, images: ImageSet, positions: Sequence[int], budget_bytes: int) -> ImageSet:
        """Return some of the pictures at the model's own size, decoded when they are first scored."""
        records = [images.records[i] for i in positions]
        return self._image_set(images.folder, records, self._preprocess.size, budget_bytes)

    def _image_set(
        self, root: Path, records: Sequence[Record], size: tuple[int, int], budget_bytes: int
    ) -> ImageSet:
        images = ImageSet(root, records, size=size, preprocess=self._preprocess, budget_bytes=budget_bytes)
        self._opened.callback(images.close)
        return images


def _drop_leaks(labelled: ImageSet, test_set: ImageSet | None) -> list[Leak]:
    """Leave out duplicates of test pictures and of those that a manifest means for validation."""
    leaks: dict[int, Leak] = {}
    if test_set is not None:
        leaks = find_leaks(labelled.records, labelled.hashes, test_set.records, test_set.hashes)
    validation = [i for i, record in enumerate(labelled.records) if record.split == "validation"]
    if validation:
        records = [labelled.records[i] for i in validation]
        hashes = [labelled.hashes[i] for i in validation]
        found = find_leaks(labelled.records, labelled.hashes, records, hashes)
        leaks = {i: leak for i, leak in found.items() if labelled.records[i].split == "train"} | leaks
    labelled.select([i for i in range(len(labelled.records)) if i not in leaks])
    return [*leaks.values()]


def _drop_replay_leaks(
    replay: ImageSet, held_out: ImageSet, held_out_hashes: Sequence[ImageHash], test_set: ImageSet | None
) -> list[Leak]:
    """Leave out of replay the duplicates of validation and test pictures."""
    leaks = find_leaks(replay.records, replay.hashes, held_out.records, held_out_hashes)
    if test_set is not None:
        leaks = find_leaks(replay.records, replay.hashes, test_set.records, test_set.hashes) | leaks
    replay.select([i for i in range(len(replay.records)) if i not in leaks])
    return [*leaks.values()]
