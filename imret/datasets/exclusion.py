"""What a walk leaves out by its name: what is hidden, of systems and photo programs, and what is excluded.

Everything is decided from names below a folder, so that a walk and whoever asks about a stored path agree.
Hides the patterns, which are those of .gitignore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

from imret.datasets.spelling import composed
from imret.errors import DataError

HIDDEN = "hidden"
SYSTEM_FOLDER = "system folder"
PHOTO_LIBRARY = "photo library"
NO_ORIGINALS = "part of a photo library without originals"
DERIVED = "copy made by a photo program"
EXCLUDED = "excluded"

# Recycle bins, snapshots and indexes, by their names in lower case: systems that make them ignore case.
_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@sharesnap", "@tmp"),  # Synology
        *("@recycle", "@recently-snapshot", "@__thumb", "@transcode"),  # QNAP
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *(
            "network trash folder",
            "temporary items",
            "__macosx",
            "backups.backupdb",
        ),  # macOS, and its servers
        *("~snapshot", "trashbox", "lost+found", "lost.dir"),  # NetApp, Buffalo, Linux, Android
        *("files_trashbin", "files_versions"),  # Nextcloud
        "node_modules",
    )
)
# RECYCLED is the bin of old Windows; a folder "recycled" may be what its pictures show.
_SYSTEM_FOLDERS_EXACT = frozenset(("RECYCLED",))
_PREVIEWS_OF_NEXTCLOUD = re.compile(r"appdata_oc[a-z0-9]{10}")

# Folders that photo programs manage: originals, and copies of them in many sizes.
_APPLE_LIBRARIES = frozenset(
    (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary", ".migratedaplibrary")
)
_LIBRARIES = _APPLE_LIBRARIES | {".apvault", ".lrdata", ".lrlibrary", ".cocatalog", ".imovielibrary"}
_ORIGINALS = ("originals", "masters")  # folders of Apple's libraries, in lower case

_UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_DERIVED = re.compile(
    rf"{_UUID}[-_](?:preview|thumbnail|fullsize)\.(?:jpe?g|webp|png)"  # immich
    r"|[0-9a-f]{40}_[0-9]+x[0-9]+_(?:fit|center|left|right|resize)\.(?:jpe?g|png)"  # PhotoPrism
    r"|syno(?:file|photo)_thumb_\S*\.(?:jpe?g|png)"  # Synology
)


def left_out(name: str) -> str | None:
    """Return why a file or folder of this name is left out wherever it lies; None if it is not."""
    # ".git" and "._photo.jpg" are hidden; "..fungi" or "..." is an odd name that somebody chose.
    if name.startswith(".") and not name.startswith(".."):
        return HIDDEN
    lower = name.lower()
    if lower in _SYSTEM_FOLDERS or name in _SYSTEM_FOLDERS_EXACT or _PREVIEWS_OF_NEXTCLOUD.fullmatch(name):
        return SYSTEM_FOLDER
    if _suffix(name) in _LIBRARIES:
        return PHOTO_LIBRARY
    return DERIVED if _DERIVED.fullmatch(lower) else None


def originals_in(library: str) -> str | None:
    """Return the folder of a photo library that has its originals; None where there is none."""
    if _suffix(library) not in _APPLE_LIBRARIES:
        return None
    try:
        names = sorted(os.listdir(library))
    except OSError:
        return None
    return next((os.path.join(library, name) for name in names if name.lower() in _ORIGINALS), None)


class Exclusion:
    """What a walk of one folder leaves out.

    A pattern without a slash, or with one at its end alone, names files and folders at any depth; any other
    begins at the folder. `*` and `?` stand for characters of one name, `[...]` for one of some, `**` for any
    folders; with a slash at its end a pattern names folders only. The last that fits decides, and one that
    begins with `!` takes in again what those before it exclude, but nothing of an excluded folder. Upper and
    lower case are alike, and so are the normal forms of Unicode.

    Args:
        root: The folder; of a photo library only the originals are taken.
        patterns: In the order in which they were given.

    Raises:
        DataError: If a pattern names nothing.
    """

    def __init__(self, root: str | os.PathLike[str] = "", patterns: Sequence[str] = ()) -> None:
        above = os.path.abspath(root).rstrip(os.sep) + os.sep if root else None
        # Given whole, as a shell completes it, a path is one that begins at the folder.
        self.patterns = tuple(
            pattern[len(above) - 1 :] if above and pattern.startswith(above) else pattern
            for pattern in patterns
        )
        self._rules = [_Rule(pattern) for pattern in self.patterns]
        self._is_library = bool(root) and _suffix(os.path.abspath(root)) in _APPLE_LIBRARIES

    def reason(self, path: str, *, is_folder: bool) -> str | None:
        """Return why what lies at a path is left out, its folders aside; None if it is not.

        Args:
            path: Below the folder, with forward slashes.
            is_folder: Whether it is one.
        """
        return self.reason_by_name(path) or self.reason_by_pattern(path, is_folder=is_folder)

    def reason_by_pattern(self, path: str, *, is_folder: bool) -> str | None:
        """Return why it is left out if the patterns say so."""
        if not self._rules:
            return None
        name, decides = composed(path), None
        for rule in self._rules:
            if rule.fits(name, is_folder):
                rule.has_fitted, decides = True, rule
        return EXCLUDED if decides is not None and not decides.takes_in else None

    def idle(self) -> list[str]:
        """Return the patterns that have fitted nothing yet."""
        return [
            pattern for pattern, rule in zip(self.patterns, self._rules, strict=True) if not rule.has_fitted
        ]

    def reason_by_name(self, path: str) -> str | None:
        """Return why it is left out whatever the patterns say, and whatever it is."""
        if self._is_library and "/" not in path and path.lower() not in _ORIGINALS:
            return NO_ORIGINALS
        return left_out(path.rpartition("/")[2])

    def reason_within(self, path: str, *, is_folder: bool = False) -> str | None:
        """Return why a walk does not come to a path: it, or a folder above it, is left out."""
        above = (self.reason(folder, is_folder=True) for folder in _folders_above(path))
        return next(filter(None, above), None) or self.reason(path, is_folder=is_folder)


def below(folder: str, pattern: str) -> str:
    """Return the pattern that says of the folder above another what a pattern says of that one.

    Args:
        folder: The path of the other one, with forward slashes.
        pattern: As for `Exclusion`.
    """
    takes_in, pattern = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    literal = re.sub(r"([\\*?\[])", r"\\\1", folder)
    between = "/" if _is_anchored(pattern) else "/**/"
    return f"{takes_in}/{literal}{between}{pattern.lstrip('/')}"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _folders_above(path: str) -> Iterator[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _is_anchored(pattern: str) -> bool:
    return "/" in pattern.rstrip("/")


class _Rule:
    """One pattern."""

    def __init__(self, pattern: str) -> None:
        text = composed(pattern)
        self.takes_in = text.startswith("!")
        text = text[1:] if self.takes_in else text
        text = text[1:] if text.startswith("./") else text
        self.has_fitted = False
        self._folders_only = text.endswith("/")
        if not text.strip("/"):
            raise DataError(
                f"the pattern {pattern!r} excludes nothing. Write a name such as 'raw', or '*.tmp.jpg'."
            )
        self._regex = _regex(text)

    def fits(self, path: str, is_folder: bool) -> bool:
        return (is_folder or not self._folders_only) and self._regex.fullmatch(path) is not None


@lru_cache(1_000)
def _regex(pattern: str) -> re.Pattern[str]:
    names = pattern.strip("/").split("/")
    if not _is_anchored(pattern):
        names.insert(0, "**")
    # What stands between two `**`, and within a name between two `*`, is looked for from the left and kept
    # where it is found first, which is enough: without that, every star would multiply the time.
    runs: list[list[str]] = [[]]
    for name in names:
        if name != "**":
            runs[-1].append(name)
        elif len(runs) == 1 or runs[-1]:
            runs.append([])
    numbers = count()
    first, *later = ("/".join(_name_regex(name, numbers) for name in run) for run in runs)
    text = first + ("/" if first and later else "")
    for run in later[:-1]:
        text += _first_found("(?:[^/]+/)*?" + run + "/", numbers)
    if later:
        text += "(?:[^/]+/)*" + later[-1] if later[-1] else ".+"
    try:
        return re.compile(text, re.IGNORECASE | re.DOTALL)
    except re.error:
        raise DataError(
            f"the pattern {pattern!r} has brackets that stand for no characters. Write a range as in [a-z]."
        ) from None


def _first_found(text: str, numbers: Iterator[int]) -> str:
    """Return an expression that is kept where it fits first: an atomic group, new in Python 3.11."""
    name = f"g{next(numbers)}"
    return f"(?=(?P<{name}>{text}))(?P={name})"


_MEMBER = r"(?:\\.|\[:[a-z]+:\]|[^\]\\])"
_TOKEN = re.compile(rf"\\(.)|(\*+)|(\?)|\[([!^]?)(\]{_MEMBER}*|{_MEMBER}+)\]|(.)", re.DOTALL)
_AMONG = re.compile(r"\\(.)|\[:([a-z]+):\]|(.)", re.DOTALL)
_CLASSES = {
    "alpha": "a-z", "digit": "0-9", "alnum": "a-z0-9", "upper": "a-z", "lower": "a-z", "xdigit": "0-9a-f",
    "space": r"\s", "blank": r" \t", "punct": r"!-/:-@\[-`{-~", "graph": "!-~", "print": " -~",
}  # fmt: skip


def _name_regex(name: str, numbers: Iterator[int]) -> str:
    """Return the expression of one name in a pattern."""
    between = [""]  # the stars
    for escaped, stars, mark, negated, among, other in _TOKEN.findall(name):
        if stars:
            between.append("")
        elif mark:
            between[-1] += "[^/]"
        elif among:
            between[-1] += ("(?!/)[^" if negated else "[") + _among_regex(among) + "]"
        else:
            between[-1] += re.escape(escaped or other)
    first, *later = between
    if not later:
        return first
    middle = "".join(_first_found("[^/]*?" + part, numbers) for part in later[:-1] if part)
    return first + middle + "[^/]*" + later[-1]


def _among_regex(text: str) -> str:
    """Return what stands between brackets, as an expression has it."""
    found = ""
    for escaped, kind, other in _AMONG.findall(text):
        if kind:
            found += _CLASSES.get(kind, "")
        else:  # a minus that is not escaped makes a range
            found += re.escape(escaped) if escaped else re.sub(r"[]\\[&~|^]", r"\\\g<0>", other)
    return found
