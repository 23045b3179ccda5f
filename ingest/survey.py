"""What lies in the folders of a run, at a glance: how many pictures of which categories, and odd levels.

Asked before a model is looked for: a folder too high up or too far down makes categories that nobody wants,
and that shows only in the answers, when hours of embedding are over. Opens no picture.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from imret.datasets.doubtful_categories import doubtful_categories
from imret.datasets.exclusion import Exclusion
from imret.datasets.scan import looks_like_picture
from imret.datasets.spelling import composed
from imret.errors import counted, some_of
from imret.escape import escape_control, quoted
from ingest.sources import Source

_SHOWN = 5  # categories that are named, the largest
_NAMED = 3  # folders that are named in a sentence
# To tell whether a folder is one of many: folders beside it, and files in each, that are looked at.
_BESIDE, _IN_EACH = 50, 50


@dataclass
class Level:
    """What lies in the first folder of a path, which becomes a category.

    Attributes:
        here: Pictures that lie in it itself.
        below: Pictures by the folder in it that they lie in, however deep.
    """

    here: int = 0
    below: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Pictures in it, however deep."""
        return self.here + self.below.total()


@dataclass
class Found:
    """What lies in one folder of a run.

    Attributes:
        root: The folder.
        categorised: Whether its first folders are categories.
        here: Pictures that lie in it itself, which have no category.
        levels: What lies in its first folders, by category.
        exclude: Patterns of what is left out of it.
    """

    root: str
    categorised: bool
    here: int = 0
    levels: dict[str, Level] = field(default_factory=dict)
    exclude: Sequence[str] = ()

    @property
    def total(self) -> int:
        """Pictures in it, however deep."""
        return self.here + sum(level.total for level in self.levels.values())


def survey(sources: Iterable[Source]) -> list[Found]:
    """Return what lies in each of some folders, by the names of files."""
    return [_look_through(source) for source in sources]


def _look_through(source: Source) -> Found:
    found = Found(source.root, source.categories, exclude=source.exclusion.patterns)
    for folder, n in source.glance():
        if n == 0:
            continue
        if not folder:
            found.here += n
            continue
        first, _, rest = folder.partition("/")
        level = found.levels.setdefault(composed(first), Level())
        if rest:
            level.below[composed(rest.partition("/")[0])] += n
        else:
            level.here += n
    return found


def categories_of(found: Sequence[Found]) -> dict[str, int]:
    """Return how many pictures each category has, most first."""
    counts: Counter[str] = Counter()
    for one in found:
        if one.categorised:
            counts.update({category: level.total for category, level in one.levels.items()})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def in_words(found: Sequence[Found]) -> str:
    """Return "found 1,250 pictures in 42 categories: aves 400, fungi 300, ... and 37 more", or as it is.

    Empty where there is no picture: what is said of that says more.
    """
    total, categories = sum(one.total for one in found), categories_of(found)
    if not total:
        return ""
    said = f"found {counted(total)}"
    if categories:
        largest = [f"{escape_control(category)} {n:,}" for category, n in categories.items()]
        several = "category" if len(categories) == 1 else "categories"
        said += f" in {len(categories):,} {several}: {some_of(largest, _SHOWN)}"
    without = sum(one.here for one in found if one.categorised)
    if without and categories:
        lie = "it lies" if without == 1 else "they lie"
        said += f"; {without:,} without a category, as {lie} in no sub-folder"
    return said


def odd_levels(found: Sequence[Found], where: str) -> list[str]:
    """Return what is to be said of folders that seem to be a level too high or too low, by sentence.

    Args:
        found: From `survey`.
        where: Options that name the store and the collection, as a command that is advised needs them.
    """
    said = [_odd_level(one, where) for one in found if one.categorised and one.total]
    sentences = [sentence for sentence in said if sentence]
    if len(sentences) > _NAMED:
        sentences[_NAMED:] = [f"and {len(sentences) - _NAMED:,} more of these folders are like that"]
    return sentences


def _odd_level(found: Found, where: str) -> str:
    if not found.levels:
        return _without_categories(found, where)
    nested = {category for category, level in found.levels.items() if not level.here}
    if splits := doubtful_categories(found.levels, nested=nested).splits:
        return _splits(found, splits, nested, where)
    if len(found.levels) == 1 and not found.here:
        return _one_category(found, where)
    return _same_below(found, nested, where)


def _splits(found: Found, splits: Sequence[str], nested: set[str], where: str) -> str:
    """Say that train, test and the like become categories, and what to ingest instead."""
    alike, become = (
        ("look like the splits of one data set", "become categories")
        if len(splits) > 1
        else ("looks like a split of a data set", "becomes a category")
    )
    what = f"Warning: {_and(splits)} in {escape_control(found.root)} {alike}, and {become}"
    if not nested.intersection(splits):
        return f"{what}; to have none: --no-categories"
    deep = [split for split in splits if split in nested]
    below = {escape_control(name) for split in deep for name in found.levels[split].below}
    return f"{what} in place of {some_of(sorted(below), _NAMED)}. {_ingest(found, deep, where)}"


def _one_category(found: Found, where: str) -> str:
    """Say that all pictures have the same category, and whether a level below would have several."""
    ((category, level),) = found.levels.items()
    said = f"{_all(found.total)} of one category, {escape_control(category)!r}"
    if not level.here and len(level.below) > 1:
        names = some_of([escape_control(name) for name in sorted(level.below)], _NAMED)
        return (
            f"Warning: {said}. If the folders in it ({names}) are the categories: "
            f"{_command(found, [category], where)}"
        )
    return f"note: {said}, so no search can tell categories apart; to have none: --no-categories"


def _same_below(found: Found, nested: set[str], where: str) -> str:
    """Say of folders that all hold the same folders that those may be the categories; else nothing."""
    levels = found.levels
    if len(nested) < len(levels) or found.here or not all(map(_has_letter, levels)):
        return ""  # years that hold months, for example
    shared = set.intersection(*(set(level.below) for level in levels.values()))
    shared = {name for name in shared if _has_letter(name)}
    # Categories that all hold "raw" and "edited" are categories: what is shared has to be the longer list.
    if len(shared) <= max(2, len(levels)):
        return ""
    names = some_of([escape_control(name) for name in sorted(shared)], _NAMED)
    return (
        f"Warning: {_and(sorted(levels))} in {escape_control(found.root)} become categories, and all hold "
        f"the same folders ({names}). If those are the categories: {_command(found, sorted(levels), where)}"
    )


def _without_categories(found: Found, where: str) -> str:
    """Say that no picture has a category, and whether the folder above would have several."""
    beside = _others_beside(found.root)
    if not beside:
        return f"note: {_all(found.total)} without a category, as no sub-folder holds any of them"
    above, name = os.path.split(found.root)
    folders = some_of([escape_control(other) for other in beside], _NAMED)
    return (
        f"Warning: {_all(found.total)} without a category, as no sub-folder holds any of them. "
        f"If {escape_control(name)!r} is a category itself, as {folders} beside it: "
        f"imret ingest {quoted(above)}{where}"
    )


def _others_beside(root: str) -> list[str]:
    """Return the folders beside one, if half of them hold pictures: then it may be one category of many."""
    above = os.path.dirname(root)
    if above in (root, os.path.dirname(above), os.path.realpath(os.path.expanduser("~"))):
        return []  # of a disk, or of everything that this user has
    exclusion = Exclusion(above)
    with_pictures, n_looked_at = [], 0
    try:
        with os.scandir(above) as entries:
            folders = [entry for entry in islice(entries, 20 * _BESIDE) if entry.is_dir()]
        for folder in sorted(folders, key=lambda entry: entry.name)[:_BESIDE]:
            if folder.name == os.path.basename(root) or exclusion.reason(folder.name, is_folder=True):
                continue
            n_looked_at += 1
            with os.scandir(folder.path) as entries:
                if any(looks_like_picture(entry.name) for entry in islice(entries, _IN_EACH)):
                    with_pictures.append(folder.name)
    except OSError:
        return []
    return with_pictures if 2 * len(with_pictures) >= n_looked_at else []


def _ingest(found: Found, names: Sequence[str], where: str) -> str:
    if len(names) == 1:
        return f"If that is not meant: {_command(found, names, where)}"
    each = " or ".join(quoted(os.path.join(found.root, name)) for name in names[:2])
    return f"If that is not meant, ingest {each}, or each of them: {_command(found, names, where)}"


def _command(found: Found, names: Sequence[str], where: str) -> str:
    """Return the command that ingests some of the folders in one."""
    shown = " ".join(quoted(os.path.join(found.root, name)) for name in names[:_NAMED])
    return f"imret ingest {shown}{' ...' if len(names) > _NAMED else ''}{where}"


def _all(n: int) -> str:
    return "the 1 picture is" if n == 1 else f"all {counted(n)} are"


def _and(names: Sequence[str]) -> str:
    """Return "test and train", or "a, b, c and 4 more"."""
    shown = [escape_control(name) for name in names]
    if len(shown) > _NAMED + 1:
        return some_of(shown, _NAMED)
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _has_letter(name: str) -> bool:
    return any(map(str.isalpha, name))
