"""What people call a category, and the sentences that ask for it.

Shared by training, which must not use the sentences that it is judged with, and by evaluation. A file of
names may say otherwise than the table here.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence

from imret.errors import DataError

# Every name is true of the whole group (a newt is no frog), except where everyday speech has only the
# narrower word. The first is the name a query is made of; the others take turns with it in training.
# CLIP knows common names two to five times better than scientific ones: Parashar et al. (2023), "Prompting
# Scientific Names for Zero-Shot Species Recognition", https://arxiv.org/abs/2310.09929
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "actinopterygii": ("fish", "ray-finned fish"),
    "amphibia": ("amphibian", "frog or salamander"),
    "animalia": ("animal",),
    "arachnida": ("arachnid", "spider or scorpion"),
    "aves": ("bird",),
    "chromista": ("seaweed or kelp",),
    "fungi": ("mushroom", "fungus"),
    "insecta": ("insect", "bug"),
    "mammalia": ("mammal",),
    "mollusca": ("mollusk", "snail or shellfish"),
    "plantae": ("plant",),
    "protozoa": ("slime mold",),
    "reptilia": ("reptile",),
}

# Averaged to ask for a category. None of them is a training style, so that a score on validation does not
# measure how well a wording was memorised.
EVALUATION_TEMPLATES: tuple[str, ...] = (
    "a photo of the {name}.",
    "a picture showing {}.",
    "one photo of {}, outdoors.",
)


def name_key(category: str) -> str:
    """Return what a category goes by in `names`, however its folder and a file of names spell it.

    Case does not matter, nor whether an umlaut is one character or two: folders from a Mac have two, and
    what is typed has one.
    """
    return unicodedata.normalize("NFC", category).strip().lower()


def common_names(category: str, names: Mapping[str, Sequence[str]] | None = None) -> tuple[str, ...]:
    """Return what people call a category: "aves" gives ("bird",); an unknown name is used as words.

    Args:
        category: Name of its folder.
        names: From `read_names`; what is in it comes before what is known here.
    """
    key = name_key(category)
    if names and key in names:
        return tuple(names[key])
    words = " ".join(category.replace("_", " ").split())
    return COMMON_NAMES.get(key) or (words or category,)


def read_names(file: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read what categories are to be called.

    Args:
        file: UTF-8 CSV with a header line that begins with category,name; what comes after in a line are
            more names, and a category may have several lines. The first name is the one that queries use.

    Returns:
        Names by `name_key` of the category, each once, in the order of the file.

    Raises:
        DataError: If the file cannot be read, does not begin with category,name, names nothing, or has a
            line without a category or a name; the message gives the line.
    """
    shown = repr(os.fspath(file))
    found: dict[str, dict[str, None]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = [cell.strip().lower() for cell in next(reader, [])]
            if header[:2] != ["category", "name"]:
                raise DataError(
                    f"names file {shown} begins with {','.join(header)!r}. Begin it with: category,name"
                )
            for row in reader:
                if not row:
                    continue
                category = name_key(row[0])
                words = [" ".join(cell.split()) for cell in row[1:] if cell.strip()]
                if not category or not words:
                    raise DataError(
                        f"names file {shown} has no {'name' if category else 'category'} in line "
                        f"{reader.line_num}. Fill it in, or remove the line."
                    )
                found.setdefault(category, {}).update(dict.fromkeys(words))
    except OSError as error:
        raise DataError(f"cannot read the names file {shown}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read the names file {shown} as UTF-8 CSV: {error}. Save it as UTF-8."
        ) from error
    if not found:
        raise DataError(f"names file {shown} names no category. Write lines of category,name.")
    return {category: tuple(words) for category, words in found.items()}


def fill(template: str, name: str) -> str:
    """Put a name into a template: `{}` becomes "an owl", `{name}` becomes "owl"."""
    article = "an" if name[:1].lower() in tuple("aeiou") else "a"
    # In one pass: a name may itself hold braces.
    return re.sub(r"\{(name)?\}", lambda slot: name if slot[1] else f"{article} {name}", template)


def evaluation_queries(category: str, names: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return the sentences whose averaged embedding asks for a category; `names` as in `common_names`."""
    return [fill(template, common_names(category, names)[0]) for template in EVALUATION_TEMPLATES]
