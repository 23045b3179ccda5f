"""Everything that a run looks at: found, checked, decoded, and set apart for training and validation.

Hides where pictures and texts come from, and what is left out of training. What was decided is in a Report.
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
from finetune.data.duplicates import Leak, find_duplicates, find_groups, find_leaks
from finetune.data.manifest import is_manifest, read_manifest
from finetune.data.pixels import ImageSet, training_size
from finetune.data.records import (
    Record,
    list_pictures,
    manifest_hash,
    read_records,
    refuse_one_category,
    split_records,
    with_captions,
)
from finetune.data.replay import hold_out, replayed_records
from finetune.data.report import Report
from finetune.data.token_lengths import TokenLengths, measure_token_lengths
from finetune.model.base_model import Base
from imret.datasets.captions_csv import read_captions
from imret.datasets.names_csv import name_key, read_names
from imret.errors import DataError

CAPTIONS_NAME = "captions.csv"

_MIB = 1 << 20


@dataclass(frozen=True)
class Listing:
    """Pictures of one folder, before decoding.

    Attributes:
        root: What their paths are below of.
        records: The pictures.
    """

    root: Path
    records: list[Record]


@dataclass(frozen=True)
class Sources:
    """What a run is made of, before anything is decoded.

    Attributes:
        labelled: Pictures to train on and to validate with.
        test: How many more a manifest means for a test.
        names: What categories are called, by `imret.datasets.names_csv.name_key`, where a file says so.
        again: Captioned pictures of other things to show again; None if there are none.
        against: Pictures that training is judged by; None if there are none.
    """

    labelled: Listing
    test: int = 0
    names: Mapping[str, Sequence[str]] | None = None
    again: Listing | None = None
    against: Listing | None = None

    def hash(self) -> str:
        """Return a hash of all of it: the same sources, the same hash."""
        parts = [
            manifest_hash(some.records) if some else "" for some in (self.labelled, self.again, self.against)
        ]
        return hashlib.sha256(json.dumps([*parts, self.names]).encode()).hexdigest()


@dataclass(frozen=True)
class Data:
    """Everything that is looked at, decoded or ready to be.

    Attributes:
        train: To train on, larger than the model's pictures so that there is something to crop.
        validation: To score on, at the model's own size.
        replay: To show again, of other things; None if there are none.
        captioned: To measure retention on; None if there are none.
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
        again = [
            *(self.replay.records if self.replay else ()),
            *(self.captioned.records if self.captioned else ()),
        ]
        return manifest_hash([*self.train.records, *self.validation.records, *again])


# ---- Before decoding -------------------------------------------------------------------------------------


def find_sources(
    train: str | os.PathLike[str],
    *,
    captions: str | os.PathLike[str] | None = None,
    names: str | os.PathLike[str] | None = None,
    replay: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Sources:
    """Find the pictures and texts of a run and check them against each other.

    Args:
        train: A folder with one sub-folder per category, or a manifest.
        captions: CSV file of captions; if None, captions.csv in the folder, if there is one.
        names: CSV file of what categories are called.
        replay: CSV file of captioned pictures of other things.
        against: A folder of test pictures, which must not be among those to train on.
        say: Called with sentences for a person.

    Raises:
        DataError: If any of them cannot be read or does not fit the others.
    """
    train = Path(train)
    from_manifest = is_manifest(train)
    root = train.parent if from_manifest else train
    if captions is None and not from_manifest and (root / CAPTIONS_NAME).is_file():
        captions = root / CAPTIONS_NAME
    told = None
    if captions is not None:
        told = read_captions(captions)
        say(f"captions of {len(told):,} pictures from {os.fspath(captions)}")
    if from_manifest:
        records = with_captions(read_manifest(train), told or {}, root)
    else:
        records = read_records(train, told)
    usable = [record for record in records if record.split != "test"]
    return Sources(
        Listing(root, usable),
        test=len(records) - len(usable),
        names=_names(names, usable, say),
        again=_replayed(replay, say),
        against=_test_pictures(against, root, say),
    )


def _names(
    file: str | os.PathLike[str] | None, records: Sequence[Record], say: Callable[[str], None]
) -> dict[str, tuple[str, ...]] | None:
    """Return the names of the categories that there are."""
    if file is None:
        return None
    names = read_names(file)
    categories = {name_key(record.category) for record in records}
    if strangers := [category for category in names if category not in categories]:
        first = f"the first {strangers[0]!r}"
        if len(strangers) == len(names):
            raise DataError(
                f"names file {os.fspath(file)!r} names none of the categories, which are "
                f"{', '.join(sorted(categories)[:10])}; {first}. Write lines of category,name with those."
            )
        say(f"names of {len(strangers):,} categories that there are no pictures of, {first}")
    return {category: called for category, called in names.items() if category in categories}


def _replayed(file: str | os.PathLike[str] | None, say: Callable[[str], None]) -> Listing | None:
    if file is None:
        return None
    root, found = replayed_records(file)
    say(f"{len(found):,} captioned pictures to replay from {os.fspath(file)}")
    return Listing(root, found)


def _test_pictures(
    folder: str | os.PathLike[str] | None, train: Path, say: Callable[[str], None]
) -> Listing | None:
    if folder is None:
        return None
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"the test folder {str(root)!r} is no folder. Give one of pictures to --against.")
    if train.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"the test folder {str(root)!r} is the training folder {str(train)!r}, or lies above it: every "
            "picture is a copy of itself. Give another to --against."
        )
    records = [Record(path, "", (), size_bytes) for path, size_bytes in sorted(list_pictures(root))]
    if not records:
        raise DataError(f"the test folder {str(root)!r} holds no pictures. Give another to --against.")
    say(f"{len(records):,} test pictures to compare with from {root}")
    return Listing(root, records)


# ---- Decoding --------------------------------------------------------------------------------------------


def prepare(
    sources: Sources,
    base: Base,
    config: FinetuneConfig,
    *,
    opened: contextlib.ExitStack,
    on_picture: Callable[[int], object] = lambda _: None,
) -> Data:
    """Decode every picture once; leave out what must not be trained on, and set validation apart.

    Args:
        sources: From `find_sources`.
        base: Says how pictures are fitted and texts are read.
        config: Says how much is kept in memory and how validation is carved off.
        opened: Closes the pictures.
        on_picture: Called for each picture that was decoded, with how many there are.

    Raises:
        DataError: If what can be read and may be trained on is of one category, a category's name is too
            long for the model, or nothing is left to replay.
        ModelError: If the model's tokenizer cannot be loaded.
    """
    labelled, again, against = sources.labelled, sources.again, sources.against
    lengths = _lengths(sources, base)
    large, small = training_size(base.preprocess.size), base.preprocess.size
    total = sum(len(some.records) for some in (labelled, again, against) if some)

    def pictures(root: Path, records: Sequence[Record], size: tuple[int, int], budget_bytes: int) -> ImageSet:
        made = ImageSet(root, records, size=size, preprocess=base.preprocess, budget_bytes=budget_bytes)
        opened.callback(made.close)
        return made

    every = pictures(labelled.root, labelled.records, large, config.cache_mib * _MIB)
    skipped = every.load(lambda: on_picture(total), look=True)
    leaks = {}
    test = None
    if against is not None:
        test = pictures(against.root, against.records, large, 0)
        unseen = test.load(lambda: on_picture(total), look=True)
        skipped += [replace(one, path=str(against.root / one.path)) for one in unseen]
        leaks = find_leaks(every.records, every.looks, test.records, test.looks)
    for_validation = [i for i, record in enumerate(every.records) if record.split == "validation"]
    if for_validation:
        judged = [every.records[i] for i in for_validation]
        found = find_leaks(every.records, every.looks, judged, [every.looks[i] for i in for_validation])
        leaks = {i: leak for i, leak in found.items() if every.records[i].split == "train"} | leaks
    every.select([i for i in range(len(every.records)) if i not in leaks])
    refuse_one_category(every.records, labelled.root)
    groups, copies = find_duplicates(labelled.root, every.records, every.looks)
    train, validation = split_records(
        every.records, share=config.validation_share, seed=config.seed, groups=groups.tolist()
    )
    held_out = pictures(labelled.root, [every.records[i] for i in validation], small, 0)  # rarely looked at
    replay = captioned = None
    again_leaks: dict[int, Leak] = {}
    if again is not None:
        replay = pictures(again.root, again.records, large, config.cache_mib * _MIB // 2)
        skipped += replay.load(lambda: on_picture(total), look=True)
        judged_looks = [every.looks[i] for i in validation]
        again_leaks = find_leaks(replay.records, replay.looks, held_out.records, judged_looks)
        if test is not None:
            again_leaks = find_leaks(replay.records, replay.looks, test.records, test.looks) | again_leaks
        replay.select([i for i in range(len(replay.records)) if i not in again_leaks])
        if not replay.records:
            raise DataError(
                f"of the {len(again.records):,} captioned pictures to replay none can be read and is no "
                "picture of validation or of the test. Mend them, or leave out --replay."
            )
        shown, kept = hold_out(find_groups(replay.looks).tolist(), seed=config.seed)
        captioned = pictures(again.root, [replay.records[i] for i in kept], small, 0)
        replay.select(shown)
    report = Report(
        train=[every.records[i] for i in train],
        validation=held_out.records,
        names=sources.names,
        skipped=skipped,
        copies=copies,
        leaks=[*leaks.values(), *again_leaks.values()],
        test=sources.test,
        against=None if test is None else len(test.records),
        lengths=lengths,
        lost=sorted({record.category for record in labelled.records} - {r.category for r in every.records}),
    )
    return Data(every.select(train), held_out, replay, captioned, sources.names, report)


def _lengths(sources: Sources, base: Base) -> TokenLengths:
    return measure_token_lengths(
        sources.labelled.records,
        sources.again.records if sources.again else (),
        base.make_token_counter(),
        context=base.context_length,
        names=sources.names,
    )
