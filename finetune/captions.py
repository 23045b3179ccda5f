"""Category names to the sentences a model is trained with, and captions read from a file.

Hides the training templates and the checks on captions.csv. Knows nothing of pictures or tensors; what
categories are called, and the sentences that models are judged with, are in `imret.wording`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from imret.errors import DataError
from imret.wording import common_names, fill

# `{}` takes a name with its article, `{name}` the bare name. One style serves a whole batch: if templates
# differed within it, a model could tell pictures of one category apart by wording, and would be pushed to.
STYLES: tuple[str, ...] = (
    "a photo of {}",
    "{name}",
    "a picture of {}",
    "{}",
    "a close-up photo of {}",
    "a photo of {} in nature",
    "an image of the {name}",
    "this is {}",
)


def category_captions(
    categories: Sequence[str], *, draw: int, names: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return one caption per category, all in one style, for one batch.

    Args:
        categories: Folder names.
        draw: Any number >= 0, drawn anew for each batch; picks the style and which common name is used.
        names: What categories are called, where it is not what `imret.wording` says.
    """
    style = STYLES[draw % len(STYLES)]
    turn = draw // len(STYLES)
    called = [common_names(category, names) for category in categories]
    return [fill(style, options[turn % len(options)]) for options in called]


# What may stand before the thing itself. Two captions that differ only in it say the same of a picture, and
# a loss that took them for different would push equal pictures apart.
_FRAME = re.compile(r"(this is|(a|an|the|one) ([\w-]+ )?(photo|picture|image|drawing) (of|showing)) (?=\S)")


def caption_key(caption: str) -> str:
    """Return what two captions share if they say the same.

    Case, spacing, a final stop and a frame such as "a photo of" do not matter.
    """
    words = " ".join(caption.lower().split()).rstrip(".")
    frame = _FRAME.match(words)
    return words[frame.end() :] if frame else words


def read_captions(file: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read a CSV file with the columns `path` and `caption`; other columns are ignored.

    Args:
        file: UTF-8 CSV with a header line. `path` is relative to the training folder, with forward slashes;
            a picture may have several lines, each another caption. A batch takes the captions of one
            place in the list, so keep one order for all pictures, such as from detailed to bare.

    Returns:
        Captions by path, each in the order of the file.

    Raises:
        DataError: If the file cannot be read, lacks a column, or holds an empty path or caption; the message
            names the line.
    """
    captions: dict[str, list[str]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or ())
            if missing := [name for name in ("path", "caption") if name not in columns]:
                raise DataError(
                    f"captions file {os.fspath(file)!r} has no column {' and no column '.join(missing)}; "
                    f"its first line is {','.join(columns)!r}. Begin it with: path,caption"
                )
            for row in reader:
                path = Path((row["path"] or "").strip()).as_posix()
                caption = " ".join((row["caption"] or "").split())
                if path == "." or not caption:
                    what = "path" if path == "." else "caption"
                    raise DataError(
                        f"captions file {os.fspath(file)!r} has an empty {what} in line {reader.line_num}. "
                        "Fill it in, or remove the line."
                    )
                captions.setdefault(path, []).append(caption)
    except OSError as error:
        raise DataError(f"cannot read the captions file {os.fspath(file)!r}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read the captions file {os.fspath(file)!r} as UTF-8 CSV: {error}."
        ) from error
    return {path: tuple(found) for path, found in captions.items()}
