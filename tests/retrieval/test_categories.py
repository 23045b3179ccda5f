"""Categories as they are typed: in any case, in either normal form, near to one that exists."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imret.errors import DataError
from imret.retrieval.categories import with_stored_categories
from imret.store import Collection, Filter, Match, Range

E_COMPOSED, E_DECOMPOSED = "\u00e9", "e\u0301"


def collection_of(*categories: str) -> Collection:
    """A collection that knows its categories and its name, and counts how often it is asked for them."""

    def facet(field: str, filter: Filter | None = None) -> dict[str, int]:
        fake.asked += 1
        return Counter(categories)

    fake: Any = SimpleNamespace(name="photos", facet=facet, asked=0)
    return cast(Collection, fake)


def found(collection: Collection, *typed: str | int) -> tuple[str | int, ...]:
    (filter,) = with_stored_categories(collection, [Filter((Match("category", typed),))])
    (condition,) = filter.must
    assert isinstance(condition, Match)
    return condition.values


@pytest.mark.parametrize(
    ("stored", "typed", "meant"),
    [
        (("fungi", "aves"), "fungi", ("fungi",)),
        (("fungi", "aves"), "Fungi", ("fungi",)),
        (("Fungi", "aves"), "fungi", ("Fungi",)),
        (("FUNGI",), "fuNGi", ("FUNGI",)),
        (("fungi", "Fungi"), "Fungi", ("Fungi",)),
        (("fungi", "Fungi"), "fungi", ("fungi",)),
        (("fungi", "Fungi"), "FUNGI", ("fungi", "Fungi")),
        (("stra\u00dfe",), "STRASSE", ("stra\u00dfe",)),
        ((f"caf{E_COMPOSED}",), f"caf{E_DECOMPOSED}", (f"caf{E_COMPOSED}",)),
        ((f"caf{E_DECOMPOSED}",), f"CAF{E_COMPOSED.upper()}", (f"caf{E_DECOMPOSED}",)),
        ((f"{E_COMPOSED}cole",), "\u00c9COLE", (f"{E_COMPOSED}cole",)),
    ],
)
def test_the_case_of_letters_does_not_matter_unless_it_is_all_that_differs(
    stored: tuple[str, ...], typed: str, meant: tuple[str, ...]
) -> None:
    assert found(collection_of(*stored), typed) == meant


def test_of_both_spellings_of_an_older_collection_both_are_meant() -> None:
    both = (f"caf{E_COMPOSED}", f"caf{E_DECOMPOSED}")
    assert found(collection_of(*both), both[0]) == both


def test_every_condition_on_a_category_is_looked_up_and_no_other() -> None:
    collection = collection_of("fungi", "aves")
    path, width = Match("path", ("FUNGI",)), Range("width", gte=1)
    asked = [
        Filter((Match("category", ("FUNGI",)), path), (Match("category", ("Aves", "aves")),)),
        Filter((width,)),
    ]
    assert with_stored_categories(collection, asked) == [
        Filter((Match("category", ("fungi",)), path), (Match("category", ("aves",)),)),
        Filter((width,)),
    ]
    assert cast(Any, collection).asked == 1
    assert with_stored_categories(collection, [Filter((width,))]) == [Filter((width,))]
    assert cast(Any, collection).asked == 1  # what names no category asks for none


@pytest.mark.parametrize(
    ("typed", "meant", "listed"),
    [
        ("fungus", " Did you mean 'Fungi'?", "Fungi, aves, plantae"),
        ("PLANTEA", " Did you mean 'plantae'?", "plantae, Fungi, aves"),
        ("x-ray", "", "Fungi, aves, plantae"),
    ],
)
def test_an_unknown_category_names_the_nearest_and_all_there_are(typed: str, meant: str, listed: str) -> None:
    with pytest.raises(DataError) as error:
        found(collection_of("plantae", "aves", "Fungi"), typed)
    assert str(error.value) == f"no category {typed!r} in collection 'photos'.{meant}\nThere are: {listed}"


def test_a_collection_without_categories_says_so() -> None:
    with pytest.raises(DataError, match=r"no category 'fungi': the pictures .* have no categories"):
        found(collection_of(), "fungi")


def test_a_category_that_is_a_number_is_left_as_it_is() -> None:
    assert found(collection_of("7", "8"), 7) == (7,)
