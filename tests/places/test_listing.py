"""Listings: every file once, in order, from many folders at a time, in flat memory."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from imret.errors import DataError
from imret.places.listing import Unlisted, list_tree
from imret.places.stores import Stored


def test_a_folder_is_listed_in_the_order_of_names_at_each_level(tmp_path: Path) -> None:
    for name in ("b/2.tar", "b/10.tar", "a.tar", "b/deep/x.tar", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    os.utime(tmp_path / "a.tar", ns=(7, 7))
    (tmp_path / "away").symlink_to(tmp_path / "nowhere")
    found = [listed for listed in list_tree(str(tmp_path)) if not isinstance(listed, Unlisted)]
    assert [path for path, _ in found] == ["a.tar", "b/10.tar", "b/2.tar", "b/deep/x.tar", "c"]
    assert found[0][1] == Stored("a.tar", False, 5, 7)


def test_a_folder_that_is_not_entered_is_not_listed(tmp_path: Path) -> None:
    for name in ("in/a", "out/b"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = list(list_tree(str(tmp_path), enter=lambda path: path != "out"))
    assert [listed[0] for listed in found if not isinstance(listed, Unlisted)] == ["in/a"]


def test_a_folder_that_cannot_be_listed_is_told_and_the_others_are_listed() -> None:
    def look(folder: str) -> list[Stored]:
        if folder == "s3://b":
            return [Stored("x", True), Stored("y", True), Stored("a", False, 1, 1)]
        if folder.endswith("/x"):
            raise DataError("away")
        return [Stored("z", False, 2, 2)]

    found = list(list_tree("s3://b", list_one=look))
    assert found == [
        ("a", Stored("a", False, 1, 1)),
        Unlisted("x", "away"),
        ("y/z", Stored("z", False, 2, 2)),
    ]
    with pytest.raises(DataError, match="away"):
        list(list_tree("s3://b/x", list_one=look))


def test_folders_are_listed_many_at_a_time() -> None:
    asked: list[int] = []
    at_work = 0
    lock = threading.Lock()

    def look(folder: str) -> list[Stored]:
        nonlocal at_work
        if folder == "s3://b":
            return [Stored(f"{n:03}", True) for n in range(40)]
        with lock:
            at_work += 1
            asked.append(at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return [Stored("a", False, 1, 1)]

    assert len(list(list_tree("s3://b", list_one=look))) == 40
    assert max(asked) > 4


def test_a_million_objects_are_listed_in_flat_memory() -> None:
    listed: list[str] = []

    def look(folder: str) -> list[Stored]:
        listed.append(folder)
        if folder == "s3://b":
            return [Stored(f"{n:04}", True) for n in range(1_000)]
        return [Stored(f"{n:04}.jpg", False, 0, 1) for n in range(1_000)]

    tracemalloc.start()
    try:
        n = sum(1 for _ in list_tree("s3://b", list_one=look))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n == 1_000_000
    assert len(listed) == 1_001
    assert peak < 20_000_000
