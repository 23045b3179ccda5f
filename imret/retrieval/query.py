"""What is looked for: terms in words or pictures, added and subtracted; and how they are typed.

    golden retriever                       words
    ./pool.jpg  /photos/pool.jpg           a picture file; also ~/... and file://...
    https://example.org/pool.jpg           a picture on the web
    id:2b1c...                             a picture of the collection, by its id
    stored:aves/17.jpg                     one by its path, as hits and `imret search --format paths` give it
    s3://bucket/photos/aves/17.jpg         the same, in a bucket
    2:fruit                                weight 2

Terms stand between separate + and -, and nothing is parsed within one: "black-and-white" is words. What
would be taken for something else is said with its kind in front, as in text:16:9 or image:pool.jpg.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from imret.datasets.spelling import path_on_disk
from imret.errors import DataError, ImageError
from imret.store.types import is_point_id

if TYPE_CHECKING:
    from imret.images.decode import Picture

T = TypeVar("T")

KINDS = ("text", "image", "url", "id", "stored")

# Kinds that are pictures; a model sees them through its other tower than words.
PICTURE_KINDS = ("image", "url", "id", "stored")

_KIND = re.compile(r"(text|image|url|id|stored):(.*)", re.DOTALL)
# What stands before a colon and can only be meant as a number, right or wrong.
_WEIGHT = re.compile(
    r"([-+]?[0-9.,]*[0-9][0-9.,]*(?:e[-+]?[0-9]+)?|[-+]?(?:nan|inf|infinity)):(.*)", re.DOTALL | re.I
)
_PATH = re.compile(r"\.{1,2}/|/|~[^/\s]*/|file://|[A-Za-z]:[\\/]|\.{1,2}\\")
_URL = re.compile(r"https?://", re.I)
_BUCKET = re.compile(r"(s3|gs|az)://.")
_IN_CONTAINER = re.compile(r".+\.(tar|parquet)/.", re.I | re.DOTALL)
# A bare word that ends like a picture is meant as one.
_LIKE_A_FILE = re.compile(r"\S.*\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic|heif)", re.I)


@dataclass(frozen=True)
class Term:
    """One part of a query.

    Attributes:
        value: Words, the path of a picture file, a URL, a point's id, or the path of a stored picture; for
            kind "image" also the content of such a file, or a picture of Pillow's.
        kind: One of KINDS.
        weight: How much it counts: finite, not 0; below 0 it is subtracted.

    Raises:
        ValueError: If the kind is unknown.
        DataError: If the weight is 0 or no finite number, or there is nothing in the value.
    """

    value: str | bytes | Picture
    kind: str = "text"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a term is one of {', '.join(KINDS)}, not {self.kind!r}")
        if not isinstance(self.value, str) and self.kind != "image":
            raise TypeError(f"a term of kind {self.kind} is a str, not {type(self.value).__name__}")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise DataError(
                f"the weight of {self.shown!r} is {self.weight:g}. Give a number above 0, as in 2:fruit, and "
                "subtract with a - before the term."
            )
        if isinstance(self.value, str) and not self.value.strip():
            raise DataError('the query is empty. Say what to look for, for example: imret search "mushroom"')

    @property
    def shown(self) -> str:
        """What to call it in a message."""
        return self.value if isinstance(self.value, str) else "the picture"


Query: TypeAlias = "str | os.PathLike[str] | Picture | Term | Sequence[Term]"


def terms_of(query: Any) -> tuple[Term, ...]:
    """Return the terms of anything that can be a query: a str is words, a path or picture is looked at.

    Raises:
        DataError: If there is no term, or none that is added.
        TypeError: If it is none of these.
    """
    if isinstance(query, str):
        terms: tuple[Term, ...] = (Term(query),)
    elif isinstance(query, Term):
        terms = (query,)
    elif isinstance(query, os.PathLike):
        terms = (Term(os.fspath(query), "image"),)
    elif isinstance(query, Sequence):
        terms = tuple(query)
        if not all(isinstance(term, Term) for term in terms):
            raise TypeError("a query of several terms is a sequence of imret.Term")
    elif hasattr(query, "convert"):  # one of Pillow's; not worth loading Pillow to be sure
        terms = (Term(query, "image"),)
    else:
        raise TypeError(f"a query is words, a path, a picture or terms, not {type(query).__name__}")
    return _checked(terms)


def parse_query(arguments: Sequence[str]) -> tuple[Term, ...]:
    """Return the terms that somebody typed, one argument after the other.

    Arguments of words that follow each other without + or - are one text: quotes around it may be left out.

    Raises:
        DataError: If it is empty, begins or ends with an operator that has no term, has two operators or a
            picture and words side by side, has a weight that is none, or only terms that are subtracted.
    """
    if not any(argument.strip() for argument in arguments):
        raise DataError('the query is empty. Say what to look for, for example: imret search "mushroom"')
    terms: list[Term] = []
    sign, words_may_follow = 1.0, False
    operator: str | None = None
    for argument in arguments:
        if argument in ("+", "-"):
            if operator is not None:
                raise DataError(f"there is no term between {operator!r} and {argument!r}.")
            operator, words_may_follow = argument, False
            sign = -1.0 if argument == "-" else 1.0
            continue
        term = parse_term(argument)
        if operator is None and terms:
            plain = term.kind == "text" and term.weight == 1 and term.value == argument
            if not (plain and words_may_follow):
                raise DataError(
                    f"{terms[-1].shown!r} and {term.shown!r} stand side by side. Put + or - between them, or "
                    "quotes around words that belong together."
                )
            last = terms.pop()
            term = Term(f"{last.shown} {term.shown}", "text", last.weight)
        elif sign < 0:
            term = Term(term.value, term.kind, -term.weight)
        terms.append(term)
        words_may_follow, operator, sign = term.kind == "text", None, 1.0
    if operator is not None:
        what = "add" if operator == "+" else "subtract"
        raise DataError(f"the query ends with {operator!r}. Say what to {what}.")
    return _checked(terms)


def parse_term(argument: str) -> Term:
    """Return one term as it is typed, with its weight.

    Raises:
        DataError: If it is empty, or its weight is no number above 0.
    """
    weight, rest = 1.0, argument
    number = _WEIGHT.fullmatch(argument)
    if number:
        try:
            weight = float(number[1])
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(
                f"the weight {number[1]!r} of {argument!r} is no number above 0. Write it as in 2:fruit or "
                f"0.5:fruit; if the colon belongs to the words: text:{argument}"
            )
        rest = number[2]
    kind, value = _kind_of(rest)
    if not value.strip():
        raise DataError(f"the term {argument!r} says nothing. Say what to look for, as in 2:fruit.")
    return Term(value, kind, weight)


def _kind_of(typed: str) -> tuple[str, str]:
    """Return the kind of a term without its weight, and its value."""
    named = _KIND.fullmatch(typed)
    if named:
        if named[1] == "id" and not is_point_id(named[2]):
            raise DataError(
                f"{typed!r} names no point: an id has 36 characters, as in the hits of --format json. If "
                f"these are words: text:{typed}"
            )
        return named[1], named[2]
    if _URL.match(typed):
        return "url", typed
    if _BUCKET.match(typed):
        return "stored", typed
    if _PATH.match(typed) or _LIKE_A_FILE.fullmatch(typed):
        return "image", typed
    return ("id", typed) if is_point_id(typed) else ("text", typed)


def path_of_term(typed: str) -> str:
    """Return the path that a picture term names: ~ and file:// resolved, spelled as on disk."""
    if typed.startswith("file://"):
        return path_on_disk(unquote(urlsplit(typed).path))
    return path_on_disk(os.path.expanduser(typed))


def within_containers(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Return terms in which paths that lead into a tar or Parquet file are those of stored pictures.

    Such a path is what `--format paths` prints of them. Looks at the disk: one of a file is left as it is.
    """
    return tuple(
        Term(term.value, "stored", term.weight)
        if term.kind == "image"
        and isinstance(term.value, str)
        and _IN_CONTAINER.match(term.value)
        and not os.path.isfile(path_of_term(term.value))
        else term
        for term in terms
    )


def check_pictures(terms: Sequence[Term], *, if_words: str = "text:{}") -> None:
    """Refuse picture files that are not there, before anything is loaded to look at them with.

    Args:
        terms: Those that are no files are left alone.
        if_words: How to say that it is words, with {} for what was typed.

    Raises:
        ImageError: If no regular file is there.
    """
    for term in terms:
        if term.kind == "image" and isinstance(term.value, str):
            _regular_file(term.value, if_words)


def _regular_file(typed: str, if_words: str = "text:{}") -> str:
    path = path_of_term(typed)
    if not os.path.isfile(path):
        what = "is no regular file" if os.path.exists(path) else "does not exist"
        what = "is a folder" if os.path.isdir(path) else what
        hint = "" if os.path.exists(path) else f" If these are words: {if_words.replace('{}', typed)}"
        raise ImageError(f"the picture {path!r} {what}.{hint}")
    return path


def read_picture(typed: str, read: Callable[[BinaryIO], T]) -> T:
    """Open the file that a picture term names, and return what `read` makes of it.

    Raises:
        ImageError: If no regular file is there, or it cannot be read.
    """
    path = _regular_file(typed)
    try:
        with open(path, "rb") as file:
            return read(file)
    except OSError as error:
        raise ImageError(f"cannot read the picture {path!r}: {error.strerror}.") from error


def _checked(terms: Sequence[Term]) -> tuple[Term, ...]:
    if not terms:
        raise DataError('the query is empty. Say what to look for, for example: imret search "mushroom"')
    if all(term.weight < 0 for term in terms):
        raise DataError(
            f"the query only says what not to look for ({', '.join(term.shown for term in terms)}). Add what "
            'to look for: imret search "animal" - "fish"'
        )
    return tuple(terms)
