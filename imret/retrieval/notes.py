"""What is to be said of an answer beside its hits: what was left out, and which condition left none.

The same sentences for all who ask, who name a condition in their own way: `in_python`, `on_command_line`.
Loads nothing else.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from imret.errors import counted
from imret.retrieval.results import MANY, ConceptUse, Hits, WithoutCondition

# Of categories that were asked for, so many are named.
_NAMED = 5


def in_python(field: str, value: Any) -> str:
    """Return a field of a search's options as an argument in Python: "categories=['fungi']"."""
    if isinstance(value, tuple):
        shown = f"[{', '.join(map(repr, value[:_NAMED]))}{', ...' if len(value) > _NAMED else ''}]"
    else:
        shown = repr(value)
    return "filter" if field == "filter" else f"{field}={shown}"


def on_command_line(field: str, value: Any) -> str:
    """Return a field of a search's options as it is typed: "--category fungi"."""
    if field == "filter":
        return "the filter"
    if value is False:
        return "--no-" + field.replace("_", "-")
    flag = {"categories": "--category", "not_categories": "--not-category"}.get(field)
    if flag is None:
        flag = "--" + field.replace("_", "-")
        return flag if value is True else f"{flag} {shlex.quote(_shown(value))}"
    shown = " ".join(f"{flag} {shlex.quote(name)}" for name in value[:_NAMED])
    return f"{shown} ..." if len(value) > _NAMED else shown


def notes_of(
    hits: Hits,
    naming: Callable[[str, Any], str] = in_python,
    *,
    shown: Callable[[str], str] = str,
) -> list[str]:
    """Return what is to be said of an answer, a sentence each.

    Args:
        hits: The answer.
        naming: How a condition is named to whom it is told.
        shown: How a path is.
    """
    notes = [*hits.remarks, *(_use(use, naming) for use in hits.concepts)]
    if hits.left_out:
        notes.append(f"{_identical(hits.left_out)} left out ({naming('include_self', True)})")
    notes += [_reason(without, naming, shown) for without in hits.emptied_by]
    return notes


def _use(use: ConceptUse, naming: Callable[[str, Any], str]) -> str:
    """Return what part a concept had in the query."""
    how = "asked as" if use.whole else "moved to what was"
    learnt = f"learnt from {counted(use.images)}"
    return f'"{use.name}" was {how} {learnt} ({naming("concepts", False)} asks the words alone)'


def _reason(without: WithoutCondition, naming: Callable[[str, Any], str], shown: Callable[[str], str]) -> str:
    """Return why there are no hits."""
    best = f"the best is {without.score:.3f} {shown(without.path)}"
    names = [naming(field, value) for field, value in without.conditions]
    kept = _kept(without)
    if len(names) > 1:
        together = f"{', '.join(names[:-1])} and {names[-1]}"
        return f"no hits: {together} together leave none of {kept}; without them {best}"
    field = without.conditions[0][0]
    if field == "include_self":
        return f"no hits: nothing else is left of {kept}; with {names[0]} {best}"
    if field == "relevant":
        return f"no hits: none of {kept} is a good match ({names[0]}); without it {best}"
    return f"no hits: {names[0]} leaves none of {kept}; without it {best}"


def _identical(n: int) -> str:
    return f"{n:,}{' or more' if n == MANY else ''} identical picture{'' if n == 1 else 's'}"


def _kept(without: WithoutCondition) -> str:
    n = f"{without.kept:,}{' or more' if without.of and without.kept == MANY else ''}"
    if without.of == "relevant":
        return f"{n} good match{'' if without.kept == 1 else 'es'}"
    score = " of such a score" if without.of else ""
    return f"{n} picture{'' if without.kept == 1 else 's'}{score}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
