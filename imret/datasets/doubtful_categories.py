"""Categories that hardly are any: the splits of a data set, and numbers.

A folder above train/ and test/, or the shards of a download, look like folders of categories. What is made of
them, "a photo of a test", is no caption that anybody wants, and no figure measured with it means anything.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from imret.datasets.exclusion import Exclusion
from imret.datasets.names_csv import name_key
from imret.datasets.scan import looks_like_picture

# train, val2017, test_set, Training Images
_SPLIT = re.compile(
    r"(train|training|val|valid|validation|test|testing|dev|eval|evaluation|holdout)"
    r"([ _-]?(set|split|data|images?|imgs?|\d+))*"
)
# A train is also a thing to see. Nobody photographs a val.
_ALSO_A_THING = "train"


@dataclass(frozen=True)
class Doubtful:
    """Categories, sorted, that are named like something else.

    Attributes:
        splits: Named like splits of a data set: train, val2017.
        numbers: Of digits and no letter: 0, 3.0, 00000, 2024-05-01.
    """

    splits: list[str]
    numbers: list[str]


def doubtful_categories(categories: Iterable[str], *, nested: Collection[str] = ()) -> Doubtful:
    """Return which categories are hardly any, by their names.

    A category "train" is taken for the thing that runs on rails where other categories are there that are no
    splits, and its pictures lie in it without folders of their own.

    Args:
        categories: Names of folders, or what a manifest says.
        nested: Those of them whose pictures all lie in folders of their own, as a split's do.
    """
    names = sorted(set(categories))
    splits = [name for name in names if looks_like_split(name)]
    others = len(names) - len(splits)
    if others > 1 and [name_key(name) for name in splits] == [_ALSO_A_THING] and splits[0] not in nested:
        splits = []
    return Doubtful(splits, [name for name in names if _is_number(name)])


def doubtful_folders(folder: str | os.PathLike[str], exclude: Sequence[str] = ()) -> Doubtful:
    """Return which folders in a folder are hardly categories; nothing where it cannot be read.

    Args:
        folder: The folder.
        exclude: Patterns of what is left out of it.
    """
    exclusion = Exclusion(folder, exclude)
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.is_dir() and not exclusion.reason(entry.name, is_folder=True)
            ]
        nested = {name for name in names if looks_like_split(name) and _is_nested(os.path.join(folder, name))}
    except OSError:  # whoever reads its pictures says what is wrong
        return Doubtful([], [])
    return doubtful_categories(names, nested=nested)


def _is_nested(folder: str) -> bool:
    """Whether no picture lies in a folder itself."""
    with os.scandir(folder) as entries:
        return not any(looks_like_picture(entry.name) for entry in entries)


def looks_like_split(category: str) -> bool:
    """Whether a category is named like a split of a data set."""
    return _SPLIT.fullmatch(name_key(category)) is not None


def _is_number(name: str) -> bool:
    if not any(map(str.isdigit, name)):
        return False
    if not any(map(str.isalpha, name)):
        return True
    with contextlib.suppress(ValueError):
        float(name)  # 1e3
        return True
    return False
