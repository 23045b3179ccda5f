"""Names in a text: whether it is the name of something, and where it holds such names.

Hides how names are compared: case, Unicode's forms, the signs between words, articles and plurals. Knows
nothing of what a name stands for, nor of models; `imret.retrieval.prompts` says what categories are called.

Words are what stands between spaces and signs. A script that is written without spaces has names that are a
whole text (`NameIndex.exact`), and none within a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from imret.retrieval.plurals import plurals_of, singulars_of

K = TypeVar("K")

# A name of more is no name that anybody would ask by: it is never found, so that a text is looked through in
# time that goes with its length alone.
MAX_WORDS = 16
MAX_WORD_CHARS = 128

ARTICLES = ("a", "an", "the")
_PREPOSITIONS = frozenset(("at", "by", "for", "from", "in", "of", "on", "with", "without"))

# What joins two words into one that means something else: "fish-eye" is no fish.
_HYPHENS = ("-", "\u2010", "\u2011")
_APOSTROPHES = str.maketrans("\u2019\u02bc\uff07", "'''")
_POSSESSIVE = re.compile("['\u2019\u02bc\uff07][sS]$")


def name_words(text: str) -> tuple[str, ...]:
    """Return the words of a name or a query, as they are compared: "The Snowy_owl's" gives (the, snowy, owl).

    In Unicode's NFC and without case; signs, hyphens and underscores separate words, and characters that are
    not seen (controls, joiners, soft hyphens) are left out, as is the s of a possessive.
    """
    return tuple(token.word for token in _tokens(text))


@dataclass(frozen=True)
class NameSpan(Generic[K]):
    """A name in a text.

    Attributes:
        key: Whose name it is.
        start: Character of the text that it begins at.
        end: Character after it.
        plural: Whether it is the plural of a name that was given.
    """

    key: K
    start: int
    end: int
    plural: bool


class NameIndex(Generic[K]):
    """Names of many things, found in texts.

    A name is found in either number ("bird", "birds"), where nothing else was given that very name. A name of
    two things is found as neither: whoever asks by it did not say which. One that has no word, more than
    `MAX_WORDS`, or a word of more than `MAX_WORD_CHARS` characters is never found.

    Args:
        names: What each thing is called.
        either_number: False to find names as they are written alone.

    Attributes:
        ambiguous: Names that more than one thing has, and which.
        unusable: Names that are never found because of their length or lack of words.
    """

    def __init__(self, names: Mapping[K, Sequence[str]], *, either_number: bool = True) -> None:
        given: dict[tuple[str, ...], dict[K, None]] = {}
        spelled: dict[tuple[str, ...], str] = {}
        unusable: dict[str, None] = {}
        for key, own in names.items():
            for name in own:
                words = _bare(name_words(name))
                if _usable(words):
                    given.setdefault(words, {})[key] = None
                    spelled.setdefault(words, name)
                else:
                    unusable[name] = None
        self.ambiguous: dict[str, tuple[K, ...]] = {
            spelled[words]: tuple(keys) for words, keys in given.items() if len(keys) > 1
        }
        self.unusable = tuple(unusable)
        # By its words the one thing that goes by them, and whether they are a plural; None if not one thing.
        self._forms: dict[tuple[str, ...], tuple[K, bool] | None] = {
            words: (next(iter(keys)), False) if len(keys) == 1 else None for words, keys in given.items()
        }
        if either_number:
            self._add_other_numbers(given)
        # Whether a name of more words begins with these; a text is left where none does.
        self._begins = {words[:count] for words in self._forms for count in range(1, len(words))}

    def _add_other_numbers(self, given: Mapping[tuple[str, ...], Mapping[K, None]]) -> None:
        found: dict[tuple[str, ...], dict[K, bool]] = {}
        for words, keys in given.items():
            noun = _noun(words)
            others = [(word, True) for word in plurals_of(words[noun])]
            for one in singulars_of(words[noun]):
                others += [(one, False), *((word, True) for word in plurals_of(one) if word != words[noun])]
            for word, plural in others:
                of_form = found.setdefault((*words[:noun], word, *words[noun + 1 :]), {})
                for key in keys:
                    of_form[key] = of_form.get(key, False) or plural
        for words, of_form in found.items():
            if words not in given:
                self._forms[words] = next(iter(of_form.items())) if len(of_form) == 1 else None
            elif (own := self._forms[words]) and of_form.get(own[0]):
                self._forms[words] = (own[0], True)  # it has both "bird" and "birds"

    def exact(self, text: str) -> K | None:
        """Return what a text is the name of, article and plural aside; None if of nothing, or of two."""
        words = _bare(name_words(text))
        found = self._forms.get(words) if _usable(words) else None
        return found[0] if found else None

    def within(self, text: str) -> list[NameSpan[K]]:
        """Return the names in a text, in order; where two overlap, the longest, of equal ones the leftmost.

        Only whole words are names ("seal" is not in "sealed"), and those that a hyphen joins to another word
        are not ("fish-eye").
        """
        tokens = list(_tokens(text))
        candidates = [span for at in range(len(tokens)) for span in self._starting(tokens, at)]
        candidates.sort(key=lambda span: (span.start - span.end, span.start))
        taken = bytearray(len(text))
        spans = []
        for span in candidates:
            # What was taken before is no shorter, so it covers an end of whatever it overlaps.
            if not (taken[span.start] or taken[span.end - 1]):
                taken[span.start : span.end] = b"\x01" * (span.end - span.start)
                spans.append(span)
        return sorted(spans, key=lambda span: span.start)

    def _starting(self, tokens: Sequence[_Token], at: int) -> Iterator[NameSpan[K]]:
        words: tuple[str, ...] = ()
        if tokens[at].joined:
            return
        for number, token in enumerate(tokens[at : at + MAX_WORDS], at):
            words = (*words, token.word)
            found = self._forms.get(words)
            if found and not (number + 1 < len(tokens) and tokens[number + 1].joined):
                yield NameSpan(found[0], tokens[at].start, token.end, found[1])
            if words not in self._begins:
                return


# ---- Words ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    """A word of a text: as it is compared, where it is, and whether a hyphen joins it to the one before."""

    word: str
    start: int
    end: int
    joined: bool


def _tokens(text: str) -> Iterator[_Token]:
    end = -1
    for start, stop in _runs(text):
        possessive = _POSSESSIVE.search(text, start, stop)
        if possessive and possessive.start() > start:
            stop = possessive.start()
        word = _compared(text[start:stop])
        if word:
            yield _Token(word, start, stop, start - end == 1 and text[end] in _HYPHENS)
            end = stop


def _compared(word: str) -> str:
    if word.isascii():
        return word.lower() if word.isprintable() else "".join(filter(str.isprintable, word)).lower()
    seen = "".join(char for char in word if not _unseen(char))
    if len(seen) > MAX_WORD_CHARS:
        return (
            seen.casefold()
        )  # no name; composing takes time that goes with the square of the marks in a row
    # Casefolding may undo the composition.
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", seen).casefold())
    return composed.translate(_APOSTROPHES)


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Yield where words are, possessives included: letters, digits, their marks, apostrophes between."""
    start = end = -1  # of the word that is open, without the apostrophes at its end
    for at, char in enumerate(text):
        if char.isalnum() or (start >= 0 and not char.isascii() and unicodedata.category(char)[0] == "M"):
            start, end = start if start >= 0 else at, at + 1
        elif start >= 0 and not _unseen(char) and not (at == end and char in "'\u2019\u02bc\uff07"):
            yield start, end
            start = -1
    if start >= 0:
        yield start, end


def _unseen(char: str) -> bool:
    """Whether a character is not seen and separates nothing: a control, a joiner, a soft hyphen."""
    return not char.isprintable() and not char.isspace() and unicodedata.category(char) in ("Cc", "Cf")


def _bare(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return words without the article before them."""
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def _noun(words: tuple[str, ...]) -> int:
    """Return which word of a name has a plural: the last, or that before "of" and the like."""
    return next((at - 1 for at, word in enumerate(words) if at and word in _PREPOSITIONS), len(words) - 1)


def _usable(words: tuple[str, ...]) -> bool:
    return 0 < len(words) <= MAX_WORDS and all(len(word) <= MAX_WORD_CHARS for word in words)
