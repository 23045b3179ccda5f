"""Filters in the words of Qdrant Edge."""

from __future__ import annotations

import qdrant_edge as qe

from imret.store.filter import Condition, Filter, Ids, Match, Range
from imret.store.placement import LINKED


def edge_filter(filter: Filter | None) -> qe.Filter | None:
    """Return a filter as Qdrant Edge takes it, None for one that keeps all."""
    if not filter:
        return None
    return qe.Filter(
        must=[_condition(condition) for condition in filter.must],
        must_not=[_condition(condition) for condition in filter.must_not],
    )


def has_links(filter: Filter | None) -> bool:
    """Whether the graph has links of their own between the points that a filter keeps.

    They are between points of one value. ACORN, which steps over the others, then takes two to four times as
    long, and finds no more.
    """
    if not filter or filter.must_not or len(filter.must) != 1:
        return False
    match = filter.must[0]
    return isinstance(match, Match) and match.field in LINKED and len(match.values) == 1


def _condition(condition: Condition) -> qe.FieldCondition | qe.HasIdCondition | qe.Filter:
    if isinstance(condition, Ids):
        return qe.HasIdCondition(set(condition.ids))
    if isinstance(condition, Range):
        if condition.is_datetime:
            return qe.FieldCondition(key=condition.field, range=qe.RangeDateTime(**condition.datetimes()))
        return qe.FieldCondition(key=condition.field, range=qe.RangeFloat(**condition.numbers()))
    return _match(condition)


def _match(match: Match) -> qe.FieldCondition | qe.Filter:
    texts = [value for value in match.values if isinstance(value, str)]
    numbers = [value for value in match.values if isinstance(value, int)]
    by_type = [
        qe.FieldCondition(key=match.field, match=qe.MatchAny(values))  # either type
        for values in (texts, numbers)
        if values
    ]
    return by_type[0] if len(by_type) == 1 else qe.Filter(should=list(by_type))
