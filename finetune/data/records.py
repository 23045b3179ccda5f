"""Records of training pictures: read from a folder, and split into training and validation.

Hides what is left out and why. Opens no picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from finetune.data.species import Taxon
from imret.datasets.doubtful_categories import doubtful_categories, looks_like_split
from imret.datasets.exclusion import Exclusion
from imret.datasets.names_csv import name_key
from imret.datasets.scan import Picture, Skipped, but_left_out, looks_like_picture, walk
from imret.datasets.spelling import composed, path_on_disk
from imret.errors import DataError, counted, some_of
from imret.retrieval.prompts import TRAINING_TEMPLATES, fill

# Number of a random stream; finetune.data.batches has the others.
_SPLIT = 2


@dataclass(frozen=True, slots=True)
class Record(Picture):
    """A training picture, before decoding.

    Attributes:
        category: First folder of the path, or what a manifest says; empty where none is needed.
        captions: Its own captions; empty where it has none.
        taxon: What species it shows; None where that is not known.
        split: "train" or, where a manifest says so, "validation" or "test".
    """

    category: str
    mtime_ns: int = 0  # training does not ask
    captions: tuple[str, ...] = ()
    taxon: Taxon | None = None
    split: str = "train"


def read_records(
    folder: str | os.PathLike[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    *,
    exclude: Sequence[str] = (),
) -> list[Record]:
    """List the pictures of a folder that has one sub-folder per category.

    Hidden files, files that are no pictures by their name, and pictures in no category are left out.

    Args:
        folder: The training folder; categories may hold folders of their own.
        captions: Captions by path below the folder, for some of the pictures or all.
        exclude: Patterns of what is left out: see `imret.datasets.exclusion.Exclusion`.

    Returns:
        Records in the order of their paths.

    Raises:
        DataError: If the folder is missing or holds no pictures in categories, if there is only one
            category, or if captions were given for a path that is no picture in a category.
    """
    root = Path(path_on_disk(folder))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"training folder {str(root)!r} {what}. "
            "Give a folder with one sub-folder per category, or a manifest: a .csv or .parquet file."
        )
    records: list[Record] = []
    loose = 0
    exclusion = Exclusion(root, exclude)
    for picture in list_pictures(root, exclusion):
        if picture.category is None:
            loose += 1
            continue
        records.append(Record(picture.path, picture.category, picture.size_bytes, picture.mtime_ns))
    if not records:
        content = f"{counted(loose)} in no category" if loose else "no pictures"
        content += "" if loose else but_left_out(str(root), exclusion)
        raise DataError(
            f"training folder {str(root)!r} holds {content}. Put them in one sub-folder per category."
        )
    meant = {path: texts for path, texts in (captions or {}).items() if not exclusion.reason_within(path)}
    records = with_captions(records, meant, root)
    refuse_one_category(records, root)
    return records


def list_pictures(root: Path, exclusion: Exclusion | None = None) -> list[Picture]:
    """Return every file below `root` that is named like a picture and not left out, in the order of paths."""
    pictures = []
    for entry in walk(str(root), exclusion):
        if isinstance(entry, Picture):
            pictures.append(entry)
        elif isinstance(entry, Skipped) and looks_like_picture(entry.path):
            folder, _, below = entry.path.partition("/")  # decoding finds what is wrong with it
            pictures.append(Picture(entry.path, composed(folder) if below else None, 0, 0))
    return sorted(pictures, key=lambda picture: picture.path)


def with_captions(
    records: Sequence[Record], captions: Mapping[str, Sequence[str]], root: Path
) -> list[Record]:
    """Return records with the captions of their paths added to those that they have.

    Of two paths that differ only in the normal form of Unicode, the one that is spelled alike is meant.

    Raises:
        DataError: If a path is that of no record; the message counts them and names the first.
    """
    known = {record.path for record in records}
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in known:
        by_name[composed(path)].append(path)
    captions_of: dict[str, tuple[str, ...]] = {}
    strangers = []
    for path, texts in captions.items():
        meant = [path] if path in known else by_name.get(composed(path), ())
        if not meant:
            strangers.append(path)
        for spelled in meant:
            captions_of[spelled] = (*captions_of.get(spelled, ()), *texts)
    if strangers:
        raise DataError(
            f"{len(strangers):,} of the {len(captions):,} captioned paths are not pictures in a category of "
            f"{str(root)!r}; the first is {strangers[0]!r}, the first picture there {records[0].path!r}. "
            "Write paths relative to that folder, or take those lines out."
        )
    return [
        replace(record, captions=(*record.captions, *captions_of.get(record.path, ()))) for record in records
    ]


def refuse_one_category(records: Sequence[Record], root: Path) -> None:
    """Raise DataError if the records to train on are all of one category, or there are none."""
    categories = {record.category for record in records if record.split == "train"}
    if not categories:
        raise DataError(f"{str(root)!r} has no picture to train on that can be read. Add some.")
    if len(categories) == 1:
        (category,) = categories
        cure = "Add a second category."
        if looks_like_split(category):
            cure = f"If its folders are the categories: imret finetune {shlex.quote(str(root / category))}"
        raise DataError(
            f"{str(root)!r} has one category with pictures to train on that can be read, "
            f"{category!r}: there is nothing to tell apart. {cure}"
        )


def refuse_doubtful_categories(records: Sequence[Record], root: Path, named: Container[str]) -> None:
    """Refuse to train on splits of a data set, and on numbers, as if they were what pictures show.

    Args:
        records: To train on and to validate with.
        root: The training folder or manifest.
        named: By `name_key`, the categories of which a file says what they are called; these are meant.

    Raises:
        DataError: If there are such categories; the message names them and says what to do.
    """
    nested: dict[str, bool] = {}
    for record in records:
        nested[record.category] = nested.get(record.category, True) and record.path.count("/") > 1
    doubtful = doubtful_categories(nested, nested={category for category, deep in nested.items() if deep})
    splits, numbers = (
        [category for category in categories if name_key(category) not in named]
        for categories in (doubtful.splits, doubtful.numbers)
    )
    if splits:
        if root.is_dir():
            train = next((name for name in splits if name_key(name).startswith("train")), None)
            test = next((name for name in splits if name_key(name).startswith("test")), "")
            against = f" --against {shlex.quote(str(root / test))}" if test else ""
            cure = (
                f"Train on one of them: imret finetune {shlex.quote(str(root / train))}{against}\n"
                "Validation pictures are kept aside from it, or named by a manifest with a column split."
                if train is not None
                else "If they are splits, move them out of the folder, and train on what is left."
            )
        else:
            cure = "Write what they are into a column split, and what pictures show into the category."
        raise DataError(
            f"{str(root)!r} has {_counted(splits)} named like the splits of a data set, and would be "
            f"trained on as {fill(TRAINING_TEMPLATES[0], splits[0])!r}. {cure}\nIf pictures show that, "
            f"say so with --names FILE, a CSV of category,name with lines such as {splits[0]},{splits[0]}"
        )
    if numbers:
        raise DataError(
            f"{str(root)!r} has {_counted(numbers)} named by a number, and would be trained on as "
            f"{fill(TRAINING_TEMPLATES[0], numbers[0])!r}.\nSay what they show with --names FILE, a CSV of "
            f"category,name with lines such as {numbers[0]},owl. If they are the parts of a download, write "
            "a manifest that says what each picture shows."
        )


def _counted(categories: Sequence[str]) -> str:
    return f"{'categories' if len(categories) > 1 else 'a category'} ({some_of(categories, 5)})"


def manifest_hash(records: Sequence[Record]) -> str:
    """Return a sha256 over everything known of every picture: the same data, the same hash."""
    digest = hashlib.sha256()
    for record in records:
        taxon = record.taxon and astuple(record.taxon)
        line = json.dumps(
            [record.path, record.category, record.captions, record.size_bytes, taxon, record.split]
        )
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def split_records(
    records: Sequence[Record], *, share: float, seed: int, groups: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Split off validation: the records meant for it or, without any, the same share of every category.

    Pictures of one group, such as duplicates, stay on one side. A category of two groups or more has at least
    one picture on either side; one of a single group is trained on. A group that lies in several categories
    goes where the smallest of them needs it.

    Args:
        records: All usable records.
        share: Wanted share of validation, in [0, 1).
        seed: Decides which pictures.
        groups: For each record the number of its group; if None, each is a group of its own.

    Returns:
        Positions of the training and of the validation records, each in order.
    """
    meant = [i for i, record in enumerate(records) if record.split == "validation"]
    if meant:
        return [i for i, record in enumerate(records) if record.split != "validation"], meant
    groups = range(len(records)) if groups is None else groups
    sizes = {category: Counter(groups[i] for i in at) for category, at in by_category(records).items()}
    in_validation: dict[int, bool] = {}  # by group
    # Small categories first: they have the fewest groups to choose from.
    for number, (_, units) in sorted(enumerate(sizes.items()), key=lambda entry: len(entry[1][1])):
        if share <= 0 or len(units) < 2:
            in_validation.update({unit: in_validation.get(unit, False) for unit in units})
            continue
        wanted = max(1, round(share * units.total()))
        taken = sum(n for unit, n in units.items() if in_validation.get(unit))
        open_units = [unit for unit in units if unit not in in_validation]
        most = len(open_units) - (not any(in_validation.get(unit) is False for unit in units))
        chosen: set[int] = set()
        shuffled = np.random.default_rng((seed, _SPLIT, number)).permutation(len(open_units))
        for unit in (open_units[i] for i in shuffled):
            if len(chosen) < most and taken + units[unit] <= wanted:
                chosen.add(unit)
                taken += units[unit]
        if not taken and most:
            chosen.add(min((open_units[i] for i in shuffled), key=units.__getitem__))
        in_validation.update({unit: unit in chosen for unit in open_units})
    validation = [i for i, group in enumerate(groups) if in_validation[group]]
    return [i for i, group in enumerate(groups) if not in_validation[group]], validation


def by_category(records: Sequence[Record]) -> dict[str, list[int]]:
    """Return the positions of each category's records, categories in order of name."""
    positions: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        positions[record.category].append(i)
    return dict(sorted(positions.items()))
