"""Names in a message are some of them, and how many more there are."""

from __future__ import annotations

import pytest

from imret.errors import some_of, summary


@pytest.mark.parametrize(
    ("n", "most", "shown"),
    [
        (0, 3, ""),
        (3, 3, "c0, c1, c2"),
        (4, 3, "c0, c1, c2 and 1 more"),
        (100_000, 2, "c0, c1 and 99,998 more"),
    ],
)
def test_so_many_are_named_and_the_others_counted(n: int, most: int, shown: str) -> None:
    assert some_of((f"c{i}" for i in range(n)), most) == shown


def test_no_name_is_longer_than_a_line() -> None:
    assert len(some_of(["x" * 5000, "y" * 100])) == 202
    assert some_of(["a", "b"], between=",") == "a,b"


def test_a_long_message_is_cut_between_words() -> None:
    said = summary(ValueError("please check your connection and try again " * 20))
    assert len(said) <= 300
    assert said.endswith(" …")
    assert said.removesuffix(" …").split()[-1] in [
        "please",
        "check",
        "your",
        "connection",
        "and",
        "try",
        "again",
    ]
    assert len(summary(ValueError("x" * 1000))) <= 301
    assert summary(ValueError("short.")) == "short"
