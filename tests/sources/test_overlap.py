"""Folders lie within each other by their components."""

from __future__ import annotations

import pytest

from imret.sources.overlap import covers, overlap, path_within


@pytest.mark.parametrize(
    ("inner", "outer", "path"),
    [
        ("/a/b", "/a", "b"),
        ("/a/b/c", "/a", "b/c"),
        ("/a", "/", "a"),
        ("/ab", "/a", None),
        ("/a b/c", "/a", None),
        ("/a", "/a", None),
        ("/", "/", None),
        ("/", "/a", None),
        ("/a", "/a/b", None),
        ("/caf\udce9/x", "/caf\udce9", "x"),
    ],
)
def test_a_folder_lies_within_another_by_components(inner: str, outer: str, path: str | None) -> None:
    assert path_within(inner, outer) == path


def test_a_source_does_not_cover_what_its_walk_leaves_out() -> None:
    assert covers("/home/me", "/home/me/photos")
    assert not covers("/home/me", "/home/me/.cache/photos")
    assert not covers("/home/me", "/home/me/photos/@eaDir")
    assert covers("/home/.me", "/home/.me/photos")
    assert overlap("/a/b", "/a")
    assert overlap("/a", "/a/b")
    assert not overlap("/a", "/a")
