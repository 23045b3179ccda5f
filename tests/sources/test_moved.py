"""A folder holds the pictures of a source that has gone: at their places, re-arranged, or within others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imret.sources import moved
from imret.sources.moved import Agreement, compare
from imret.store import Collection, open_store
from tests.sources.filled import fill, write

PATHS = [f"c{n % 3}/{n}.jpg" for n in range(20)]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Collection]:
    with open_store(str(tmp_path / "db")) as store:
        fill(store, "/old/photos", PATHS)
        fill(store, "/old/other", ["x.jpg"])
        with closing(store.open("photos")) as collection:
            yield collection


def test_a_moved_folder_agrees_without_being_walked(
    opened: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "new", PATHS)
    monkeypatch.setattr(moved, "walk", lambda folder: pytest.fail("walked"))
    assert compare(opened, "/old/photos", str(tmp_path / "new")) == Agreement(20, 20, 0)


@pytest.mark.parametrize("at", ["2024/{}", "photos/{}", "flat/x{}"])
def test_a_folder_that_was_rearranged_or_lies_deeper_agrees(
    opened: Collection, tmp_path: Path, at: str
) -> None:
    write(tmp_path / "new", PATHS)
    for path in PATHS:
        target = tmp_path / "new" / at.format(path.replace("/", "-") if "flat" in at else path)
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / path).rename(target)
    agreement = compare(opened, "/old/photos", str(tmp_path / "new"))
    assert agreement == Agreement(20, 20, 0, "" if "flat" in at else at.partition("/")[0])
    assert agreement.moved
    assert compare(opened, "/old/photos", str(tmp_path / "new"), anywhere=False) == Agreement(20, 0, 0)


def test_two_in_twenty_may_have_changed_and_three_may_not(opened: Collection, tmp_path: Path) -> None:
    write(tmp_path / "new", PATHS)
    for n, path in enumerate(PATHS[:3], start=1):
        (tmp_path / "new" / path).write_bytes(b"edited" if n > 1 else b"")
        agreement = compare(opened, "/old/photos", str(tmp_path / "new"))
        assert agreement == Agreement(20, 20 - n, 0)
        assert agreement.moved == (n < 3)


def test_other_pictures_at_the_same_places_do_not_agree(opened: Collection, tmp_path: Path) -> None:
    write(tmp_path / "new", PATHS)
    for path in PATHS:
        file = tmp_path / "new" / path
        file.write_bytes(b"!" * file.stat().st_size)
    assert compare(opened, "/old/photos", str(tmp_path / "new")) == Agreement(20, 0, 0)
    assert compare(opened, "/old/photos", str(tmp_path / "nowhere")) == Agreement(20, 0, 0)
    assert not compare(opened, "/no/source", str(tmp_path / "new")).moved


def test_at_most_a_sample_is_read_and_a_bounded_number_of_files_of_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [f"{n:04}.jpg" for n in range(500)]
    read: list[str] = []
    real = moved.sha256_if_readable
    monkeypatch.setattr(moved, "sha256_if_readable", lambda file: (read.append(str(file)), real(file))[1])
    write(tmp_path / "same", many)
    write(tmp_path / "other", [f"other/{n:04}.jpg" for n in range(5)])
    for path in many:
        (tmp_path / "other" / path).write_bytes(b"?" * len(f"content of {path}"))
    with open_store(str(tmp_path / "db")) as store:
        fill(store, "/old", many)
        with closing(store.open("photos")) as opened:
            assert compare(opened, "/old", str(tmp_path / "same")) == Agreement(32, 32, 0)
            assert len(read) == 32
            assert compare(opened, "/old", str(tmp_path / "other")).found == 0
            assert len(read) <= 32 + 32 + 8 * 32


def test_a_folder_whose_pictures_are_stored_as_well_is_settled(opened: Collection, tmp_path: Path) -> None:
    with open_store(str(tmp_path / "db2")) as store:
        for source in ("/old", "/new"):
            fill(store, source, PATHS)
        with closing(store.open("photos")) as both:
            agreement = compare(both, "/old", "/new")
            assert agreement.settled
            assert not compare(both, "/old", "/newer").settled
