"""What a text asks for, where it is or holds a name that a category goes by: the words to ask in instead.

A model knows "bird" and hardly "aves". Whoever calls a category by any of its names asks in its first; the
name of a folder within a longer text gives way to that, too. What holds no such name is left as it is.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from imret.errors import DataError, StoreError, StoreUnavailable
from imret.retrieval.names import ARTICLES, NameIndex, name_words
from imret.retrieval.prompts import COMMON_NAMES, Names, article_of, recorded_names

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.store import Store

# A shorter folder ("tv", "17"), or one called like these, is too often meant as something else within a text.
_SHORTEST_ALIAS = 3
_FUNCTION_WORDS = frozenset((word,) for word in (*ARTICLES, "and", "for", "from", "not", "with", "without"))


class CategoryNames:
    """Names of categories, to ask by: those given, then those that are known everywhere.

    A name of two categories that are called differently asks for neither.

    Args:
        names: What categories are called, by `name_key` of the folder, the first name first.
    """

    def __init__(self, names: Names) -> None:
        known = {key: called for key, called in COMMON_NAMES.items() if key not in names}
        # By the first name, not by the folder: two folders may be called the same.
        self._whole = [NameIndex(_by_first_name(named)) for named in (names, known)]
        self._within = NameIndex(self._aliases({**known, **names}), either_number=False)

    def first_name(self, text: str) -> str | None:
        """Return what a category is called first whose name a text is, an article and the plural aside."""
        for index in self._whole:
            if (name := index.exact(text)) is not None:
                return name
        return None

    def replaced(self, text: str) -> str:
        """Return a text with the names of folders in it replaced by the first names of their categories."""
        parts, end = [], 0
        for span in self._within.within(text):
            before = text[end : span.start]
            article = re.search(r"\b(?:a|an)(?=[\s_]+$)", before, re.IGNORECASE)
            if article:
                before = before[: article.start()] + article_of(span.key) + before[article.end() :]
            parts += [before, span.key]
            end = span.end
        return "".join([*parts, text[end:]])

    def _aliases(self, names: Names) -> dict[str, list[str]]:
        """Return the folders' names that give way within a text, by what they give way to.

        Not those that are words of the first name ("orange" of "orange fruit", "birds" of "bird"), nor a name
        of another category: who types them says what is meant. And no numbers and no words of two letters.
        """
        found: dict[str, list[str]] = {}
        for key, called in names.items():
            words = name_words(key)
            too_short = len("".join(words)) < _SHORTEST_ALIAS or words in _FUNCTION_WORDS
            if too_short or not re.search(r"[^\W\d_]", key) or self.first_name(key) != called[0]:
                continue
            if not NameIndex({True: [key]}).within(called[0].replace("-", " ")):
                found.setdefault(called[0], []).append(key)
        return found


def _by_first_name(names: Names) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, called in names.items():
        found.setdefault(called[0], []).extend((key, *called))
    return found


# ---- Whose names ---------------------------------------------------------------------------------------

# Of each encoder those that were asked by last: made once, as a model may have been tuned on many categories.
_kept: weakref.WeakKeyDictionary[QueryEncoder, tuple[Names, CategoryNames]] = weakref.WeakKeyDictionary()


def category_names(encoder: QueryEncoder, names: Names | None = None) -> CategoryNames:
    """Return what a query is asked by: names given or stored, then those that the model was tuned with.

    Args:
        encoder: The model.
        names: What categories are called, as `resolve_names` has them or as they are stored.
    """
    given = names or {}
    kept = _kept.get(encoder)
    if kept is not None and kept[0] == given:
        return kept[1]
    resolved = {**recorded_names(encoder), **given}
    made = _made(tuple((key, tuple(called)) for key, called in resolved.items()))
    _kept[encoder] = (given, made)
    return made


@lru_cache(maxsize=8)
def _made(names: tuple[tuple[str, tuple[str, ...]], ...]) -> CategoryNames:
    return CategoryNames(dict(names))


# ---- As a document -------------------------------------------------------------------------------------


def parse_names(content: bytes | None) -> dict[str, tuple[str, ...]]:
    """Return the names that a document holds; none if there is none.

    Raises:
        DataError: If it is none that `keep_names` stored.
    """
    if content is None:
        return {}
    try:
        names: Any = json.loads(content)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, Mapping) or not all(map(_is_list_of_names, names.values())):
        raise DataError(
            "the names that are stored with the collection are not what imret writes. Store them again: "
            "imret ingest FOLDER --names FILE"
        )
    return {key: tuple(called) for key, called in names.items()}


def _is_list_of_names(called: object) -> bool:
    return isinstance(called, list) and bool(called) and all(isinstance(name, str) for name in called)


def stored_names(
    store: Store, name: str, *, notify: Callable[[str], object] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return what the categories of a collection are called by what is stored with it.

    Args:
        store: An open store.
        name: Of the collection.
        notify: Told why, where they cannot be read: then there are none. None to raise.

    Raises:
        StoreUnavailable: If the store does not answer.
        StoreError, DataError: If they cannot be read.
    """
    try:
        return parse_names(store.document(name, "names"))
    except StoreUnavailable:
        raise
    except (StoreError, DataError) as error:
        if notify is None:
            raise
        notify(f"asking without the names of its categories: {error}")
        return {}


def keep_names(store: Store, name: str, names: Names) -> None:
    """Store with a collection what its categories are called, in the place of what was stored before.

    Args:
        store: An open store.
        name: Of the collection, of which a version is live.
        names: By `name_key`; none to forget them.

    Raises:
        What `Store.change_document` raises.
    """
    if not names:
        store.remove_document(name, "names")
        return
    content = json.dumps({key: list(called) for key, called in names.items()}, ensure_ascii=False).encode()
    store.change_document(name, "names", lambda old: content)
