"""What a walk leaves out, told in a few words: how many files of which kinds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from imret.datasets.exclusion import DERIVED, EXCLUDED, NO_ORIGINALS, PHOTO_LIBRARY, SYSTEM_FOLDER
from imret.errors import some_of

NOT_DOWNLOADED = "not downloaded"  # a row or line that was to have a picture, and has none
EMPTY = "empty"

_NOT_BY_NAME = "not a picture by its name"
_MOST = 8  # kinds that are told

_RAW = frozenset(
    (
        *(".3fr", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr"),
        *(".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".ori", ".pef", ".raf"),
        *(".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    )
)
_VIDEO = frozenset(
    (
        *(".3gp", ".avi", ".flv", ".insv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".ogv", ".webm", ".wmv"),
    )
)
# What systems put into every folder is nobody's picture.
_NOT_TOLD = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini"))

# JPEG, PNG, GIF, TIFF. One that is no picture after all is told so when it is named like one.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")

# One of a kind, and several.
_OTHERS = {
    SYSTEM_FOLDER: ("system folder", "system folders"),
    PHOTO_LIBRARY: ("photo library", "photo libraries"),
    NO_ORIGINALS: ("part of the photo library without originals",) * 2,
    DERIVED: ("copy made by a photo program", "copies made by photo programs"),
    EXCLUDED: ("excluded by a pattern", "excluded by a pattern"),
    NOT_DOWNLOADED: (NOT_DOWNLOADED, NOT_DOWNLOADED),
    EMPTY: ("empty file", "empty files"),
}


def kind_of(name: str) -> str:
    """Return why a file that is not named like a picture is left out, to be counted."""
    suffix = os.path.splitext(name)[1].lower()
    if name.lower() in _NOT_TOLD:
        return f"{_NOT_BY_NAME} ({name.lower()})"
    return f"{_NOT_BY_NAME} (*{suffix})" if suffix else _NOT_BY_NAME


def may_be_misnamed(reason: str) -> bool:
    """Whether a file that is left out for a reason may be a picture all the same: nothing says what it is."""
    suffix = _suffix_in(reason)
    return reason.startswith(_NOT_BY_NAME) and suffix not in _RAW and suffix not in _VIDEO


def holds_picture(file: str) -> bool:
    """Whether the first bytes of a file are those of a picture of a kind that is read."""
    if not os.path.isfile(file):  # a pipe would be waited for
        return False
    try:
        with open(file, "rb") as data:
            start = data.read(12)
    except OSError:
        return False
    return start.startswith(_BEGINNINGS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _suffix_in(reason: str) -> str:
    return reason[len(_NOT_BY_NAME) + 3 : -1]


def but_left_out(ignored: Mapping[str, int]) -> str:
    """Return what to say of a folder without pictures: ", but what is left out: 3 RAW (.nef)"; or nothing."""
    found = in_words(ignored)
    return f", but what is left out: {found}" if found else ""


def in_words(ignored: Mapping[str, int]) -> str:
    """Return what was left out: "120 RAW (.cr2, .nef), 3 .psd, 7 without a suffix"; most first.

    Hidden files are not told, nor what systems put into every folder. Empty where there is nothing to tell.

    Args:
        ignored: Number of names by the reason why they were left out, as a walk gives it.
    """
    n_of: Counter[str] = Counter()
    suffixes: dict[str, Counter[str]] = {"RAW": Counter(), "video": Counter()}
    for reason, n in ignored.items():
        if reason in _OTHERS:
            n_of[_OTHERS[reason][n != 1]] += n
        elif reason == _NOT_BY_NAME:
            n_of["without a suffix"] += n
        elif reason.startswith(_NOT_BY_NAME) and (suffix := _suffix_in(reason)).startswith("."):
            group = "RAW" if suffix in _RAW else "video" if suffix in _VIDEO else suffix
            n_of[group] += n
            if group in suffixes:
                suffixes[group][suffix] += n
    kinds = []
    for kind, n in n_of.most_common():
        among = ", ".join(suffix for suffix, _ in suffixes.get(kind, Counter()).most_common())
        several = "s" if kind == "video" and n != 1 else ""
        kinds.append(f"{n:,} {kind}{several}" + (f" ({among})" if among else ""))
    return some_of(kinds, _MOST)
