"""Folders that have moved or overlap: told from their pictures, nothing stored twice, vectors kept."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret import Encoder, open_store
from imret.errors import DataError, ModelMismatch
from imret.sources.stored import forget_source, rename_source
from imret.store import Point
from imret.store.payload import payload_at, point_id
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.settle import find_moved
from ingest.sources import FolderSource
from tests import ROOT
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

NAMES = ("aves/a.png", "aves/b.png", "fungi/c.png", "fungi/deep/d.png", "e.png")


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    return Encoder(str(folder), device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        draw_picture(tmp_path / "photos" / name, seed=seed)
    return tmp_path / "photos"


def run(db: Path, encoder: Encoder, *folders: Path, flat: bool = False, **options: Any) -> Report:
    with open_store(str(db)) as store:
        sources = [FolderSource(folder, categories=not flat) for folder in folders]
        return ingest(store, sources, encoder=encoder, **options)


def points(db: Path, collection: str = "photos") -> list[Point]:
    with open_store(str(db), create=False) as store, closing(store.open(collection)) as opened:
        return [point for batch in opened.scan(vectors=True) for point in batch]


def check(db: Path, encoder: Encoder, *roots: Path) -> None:
    """The collection holds the files of these folders, once each, with their vectors and categories."""
    found = {(p.payload["source"], p.payload["path"]): p for p in points(db)}
    assert len(found) == len(points(db))
    files = {(str(root), str(file.relative_to(root))) for root in roots for file in root.rglob("*.png")}
    assert found.keys() == files
    for (source, path), point in found.items():
        assert point.id == point_id(source, path)
        assert point.payload.get("category") == (path.partition("/")[0] if "/" in path else None)
        expected = encoder.encode_images([Path(source) / path])[0]
        np.testing.assert_allclose(point.vector, expected, atol=1e-5)


# ---- Moved ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a file", "a link that leads nowhere"])
def test_a_moved_folder_is_asked_about_and_keeps_its_vectors(
    photos: Path, tmp_path: Path, encoder: Encoder, left: str
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    moved = photos.rename(tmp_path / "moved")
    if left == "an empty folder":
        photos.mkdir()
    elif left == "a file":
        photos.write_bytes(b"")
    elif left == "a link that leads nowhere":
        photos.symlink_to(tmp_path / "nowhere")
    before = {p.payload["path"]: p.vector for p in points(db)}
    with pytest.raises(DataError) as raised:
        run(db, encoder, moved)
    assert f"If so: the same command with --moved-from {photos}\n" in str(raised.value)
    assert "5 of 5 pictures of it that were looked for are in" in str(raised.value)
    assert "--second-copy" in str(raised.value)
    assert {p.payload["source"] for p in points(db)} == {str(photos)}, "nothing was changed"
    report = run(db, encoder, moved, moved_from=[str(photos)])
    assert (report.unchanged, report.encoded, report.total) == (5, 0, 5)
    assert report.taken_over == {str(photos): 5}
    check(db, encoder, moved)
    for point in points(db):
        np.testing.assert_array_equal(point.vector, before[point.payload["path"]])
    # The same command again, as after a kill.
    again = run(db, encoder, moved, moved_from=[str(photos)])
    assert (again.unchanged, again.taken_over) == (5, {})
    assert "is no source of 'photos' (any more)" in again.notes[0]
    assert run(db, encoder, moved).notes == []


def test_a_second_copy_is_one_when_it_is_said_and_only_noted_from_then_on(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, copy = tmp_path / "db", tmp_path / "copy"
    run(db, encoder, photos)
    shutil.copytree(photos, copy)
    photos.rename(tmp_path / "unplugged")
    report = run(db, encoder, copy, second_copy=True)
    assert (report.added, report.encoded, report.taken_over) == (5, 0, {})
    assert len(points(db)) == 10
    (note,) = run(db, encoder, copy).notes
    assert note.endswith(f"if it is gone for good: imret sources forget {photos} --db {db}")


def test_a_copy_beside_a_folder_that_is_there_is_no_question(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(tmp_path / "db", encoder, photos)
    shutil.copytree(photos, tmp_path / "copy")
    report = run(tmp_path / "db", encoder, tmp_path / "copy")
    assert (report.added, report.encoded, report.notes) == (5, 0, [])
    check(tmp_path / "db", encoder, photos, tmp_path / "copy")


def test_a_moved_folder_that_was_rearranged_keeps_its_vectors(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    moved = photos.rename(tmp_path / "moved")
    (moved / "aves").rename(moved / "birds")
    (moved / "e.png").rename(moved / "fungi" / "e.png")
    for one, other in (("birds/b.png", "spare"), ("fungi/c.png", "birds/b.png"), ("spare", "fungi/c.png")):
        (moved / one).rename(moved / other)  # two change places
    draw_picture(moved / "new.png", seed=70)
    with pytest.raises(DataError, match="5 of 5 pictures of it that were looked for are in"):
        run(db, encoder, moved)
    report = run(db, encoder, moved, moved_from=[str(photos)], prune=True)
    assert report.encoded == 1  # the new one
    check(db, encoder, moved)


def test_a_folder_that_was_rearranged_altogether_is_recognised(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    moved = tmp_path / "moved"
    for n, file in enumerate(sorted(photos.rglob("*.png"))):
        (moved / f"{2020 + n}").mkdir(parents=True)
        file.rename(moved / f"{2020 + n}" / "picture.png")
    shutil.rmtree(photos)
    with pytest.raises(DataError, match="Has it moved there"):
        run(db, encoder, moved)
    report = run(db, encoder, moved, moved_from=[str(photos)])
    assert (report.moved, report.encoded) == (5, 0)
    check(db, encoder, moved)


def test_a_folder_that_was_copied_in_part_goes_on_with_a_note(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, part = tmp_path / "db", tmp_path / "part"
    run(db, encoder, photos)
    shutil.copytree(photos / "aves", part / "aves")
    photos.rename(tmp_path / "unplugged")
    first = run(db, encoder, part)
    (note,) = first.notes
    assert (first.added, first.encoded) == (2, 0)
    assert "2 of 5 pictures of it that were looked for are in" in note
    assert note.endswith(f"the same command with --moved-from {photos}")
    # When the rest has come it is asked about, and no picture is there twice in the end.
    shutil.copytree(tmp_path / "unplugged", part, dirs_exist_ok=True)
    with pytest.raises(DataError, match="Has it moved there"):
        run(db, encoder, part)
    report = run(db, encoder, part, moved_from=[str(photos)])
    assert (report.encoded, report.total) == (0, 5)
    check(db, encoder, part)


def test_several_folders_whose_parent_was_renamed_move_together(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, a, b = tmp_path / "db", tmp_path / "a", tmp_path / "b"
    for name, first in (("photos", 10), ("scans", 20), ("scans2", 30)):
        for seed in range(first, first + 3):
            draw_picture(a / name / "x" / f"{seed % 10}.png", seed=seed)
    run(db, encoder, a / "photos", a / "scans", a / "scans2")
    a.rename(b)
    new = [b / "scans2", b / "photos", b / "scans"]
    with pytest.raises(DataError) as raised:
        run(db, encoder, *new)
    for name in ("photos", "scans", "scans2"):
        assert f" --moved-from {a / name}" in str(raised.value).splitlines()[-2]
    report = run(db, encoder, *new, moved_from=[str(a / "photos"), str(a / "scans"), str(a / "scans2")])
    assert (report.unchanged, report.encoded) == (9, 0)
    check(db, encoder, *new)


def test_folders_that_became_parts_of_one_keep_their_vectors_and_get_its_categories(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, b = tmp_path / "db", tmp_path / "b"
    draw_picture(tmp_path / "scans" / "aves" / "a.png", seed=60)  # the same place below another source
    run(db, encoder, photos, tmp_path / "scans")
    b.mkdir()
    photos.rename(b / "photos")
    (tmp_path / "scans").rename(b / "scans")
    report = run(db, encoder, b, moved_from=[str(photos), str(tmp_path / "scans")])
    assert (report.unchanged, report.encoded) == (6, 0)
    check(db, encoder, b)


def test_a_folder_of_a_moved_one_keeps_its_vectors(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    moved = photos.rename(tmp_path / "moved")
    (note,) = run(db, encoder, moved / "aves").notes
    assert "2 of 5 pictures of it that were looked for are in" in note
    report = run(db, encoder, moved, moved_from=[str(photos)])
    assert report.encoded == 0
    assert report.taken_over == {str(photos): 5, str(moved / "aves"): 2}
    check(db, encoder, moved)


def test_a_folder_that_moved_into_an_ingested_one_is_told_when_its_pictures_are_stored_twice(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, big = tmp_path / "db", tmp_path / "big"
    draw_picture(big / "x.png", seed=60)
    run(db, encoder, big, photos)
    photos.rename(big / "holiday")
    report = run(db, encoder, big)
    assert (report.added, report.encoded) == (5, 0)
    (note,) = report.notes
    assert note.endswith(f"if it is gone for good: imret sources forget {photos} --db {db}")
    assert run(db, encoder, big).notes == [note]
    assert run(db, encoder, big, second_copy=True).notes == []
    with open_store(str(db)) as store:
        forget_source(store, photos)
    assert run(db, encoder, big).notes == []
    check(db, encoder, big)


def test_a_link_that_leads_to_another_drive_now_is_a_move(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, link = tmp_path / "db", tmp_path / "link"
    link.symlink_to(photos)
    run(db, encoder, link)
    moved = photos.rename(tmp_path / "moved")
    link.unlink()
    link.symlink_to(moved)
    with pytest.raises(DataError, match=f"with --moved-from {photos}"):
        run(db, encoder, link)
    assert run(db, encoder, link, moved_from=[str(photos)]).unchanged == 5


def test_other_pictures_and_no_pictures_are_no_move(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    photos.rename(tmp_path / "unplugged")
    for seed, name in enumerate(NAMES):
        draw_picture(tmp_path / "new" / name, seed=seed + 100)
    assert run(db, encoder, tmp_path / "new").added == 5
    with pytest.raises(DataError, match=r"none of the 5 pictures of .* --no-check"):
        run(db, encoder, tmp_path / "new", moved_from=[str(photos)])
    with pytest.raises(
        DataError, match=r"holds no pictures of a folder \S+photoz\. Did you mean '\S+photos'"
    ):
        run(db, encoder, tmp_path / "new", moved_from=[str(tmp_path / "photoz")])
    with pytest.raises(DataError, match="is one of the folders to ingest"):
        run(db, encoder, tmp_path / "new", moved_from=[str(tmp_path / "new")])
    with pytest.raises(DataError, match="collection 'none' holds no pictures of a folder"):
        run(db, encoder, tmp_path / "new", moved_from=[str(photos)], collection="none")


def test_a_rebuild_takes_a_moved_folder_with_it_in_both_versions(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="Has it moved there"):
        run(db, other_encoder, moved, rebuild=True)
    with pytest.raises(ModelMismatch):
        run(db, other_encoder, moved, moved_from=[str(photos)])
    report = run(db, other_encoder, moved, rebuild=True, moved_from=[str(photos)])
    assert (report.added, report.encoded) == (5, 5)
    check(db, other_encoder, moved)


def test_a_rebuild_names_what_to_do_about_a_folder_that_is_gone(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    db = tmp_path / "db"
    for name, seed in (("more", 40), ("gone", 50)):
        draw_picture(tmp_path / name / "x.png", seed=seed)
    run(db, encoder, photos, tmp_path / "more", tmp_path / "gone", collection="all")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(DataError) as raised:
        run(db, other_encoder, photos, rebuild=True, collection="all")
    said = str(raised.value)
    assert f"imret sources rename {tmp_path / 'gone'} NEW --collection all" in said
    assert f"imret sources forget {tmp_path / 'gone'} --collection all" in said
    assert f"Name every folder: imret ingest {photos} {tmp_path / 'more'} --model" in said


def test_a_rebuild_that_was_stopped_brings_back_no_folder_that_was_forgotten(
    photos: Path, tmp_path: Path, encoder: Encoder, other_encoder: Encoder
) -> None:
    db, more = tmp_path / "db", tmp_path / "more"
    draw_picture(more / "x.png", seed=40)
    run(db, encoder, photos, more)
    with open_store(str(db)) as store:
        identity = type(store.live("photos"))(  # type: ignore[misc]
            other_encoder.model_id, other_encoder.images_fingerprint, other_encoder.dim
        )
        with closing(store.open_version("photos", identity)) as staged:
            staged.upsert(
                [point_id("/forgotten", "x.png")],
                np.ones((1, other_encoder.dim), np.float32),
                [{**points_of(store)[0].payload, "source": "/forgotten", "sha256": "0" * 64}],
            )
    run(db, other_encoder, photos, more, rebuild=True)
    check(db, other_encoder, photos, more)


def points_of(store: Any) -> list[Point]:
    with closing(store.open("photos")) as opened:
        return [point for batch in opened.scan(vectors=True) for point in batch]


def test_a_collection_that_came_from_another_machine_finds_its_pictures_here(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    """As an import makes one: sources with paths of another machine."""
    db, away = tmp_path / "db", "/srv/another machine/photos"
    run(db, encoder, photos)
    with open_store(str(db)) as store, closing(store.open("photos")) as opened:
        there = points_of(store)
        opened.upsert(
            [point_id(away, p.payload["path"]) for p in there],
            np.stack([p.vector for p in there if p.vector is not None]),
            [payload_at(p.payload, away, p.payload["path"]) for p in there],
        )
        opened.delete([p.id for p in there])
    for file in photos.rglob("*.png"):
        os.utime(file, ns=(0, 7 * 10**9))  # a copy by a program that keeps no times
    with pytest.raises(DataError, match=f"with --moved-from '{away}'"):
        run(db, encoder, photos)
    report = run(db, encoder, photos, moved_from=[away])
    assert (report.unchanged, report.encoded) == (5, 0)
    check(db, encoder, photos)


# ---- Overlapping ----------------------------------------------------------------------------------------


def test_a_folder_within_a_source_is_refused_with_the_one_to_ingest(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos, collection="all")
    (tmp_path / "link").symlink_to(photos / "fungi")
    for inner in (photos / "fungi", photos / "fungi" / "deep", tmp_path / "link"):
        with pytest.raises(
            DataError, match=rf"lies within {photos}, .*\n.* imret ingest {photos} --collection all"
        ):
            run(db, encoder, inner, collection="all")
    assert len(points(db, "all")) == 5
    assert run(db, encoder, photos / "fungi", collection="another").added == 2


def test_a_folder_around_a_source_absorbs_it_and_nothing_is_embedded_again(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos / "fungi")
    run(db, encoder, photos / "aves")
    report = run(db, encoder, photos)
    assert report.taken_over == {str(photos / "aves"): 2, str(photos / "fungi"): 2}
    assert (report.unchanged, report.added, report.encoded) == (4, 1, 1)
    check(db, encoder, photos)


def test_a_collection_that_holds_both_already_is_mended_by_the_outer_one(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    with open_store(str(db)) as store, closing(store.open("photos")) as opened:
        for point in points_of(store):
            if point.payload["path"].startswith("fungi/"):
                inner, path = str(photos / "fungi"), point.payload["path"].removeprefix("fungi/")
                opened.upsert(
                    [point_id(inner, path)],
                    point.vector[None],  # type: ignore[index]
                    [payload_at(point.payload, inner, path)],
                )
    assert len(points(db)) == 7
    with pytest.raises(DataError, match="lies within"):
        run(db, encoder, photos / "fungi")
    report = run(db, encoder, photos)
    assert report.taken_over == {str(photos / "fungi"): 2}
    assert (report.unchanged, report.encoded) == (5, 0)
    check(db, encoder, photos)


def test_folders_that_overlap_or_are_named_twice_are_refused_in_one_command(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "photos2").mkdir()
    draw_picture(tmp_path / "photos2" / "x.png", seed=9)
    (tmp_path / "link").symlink_to(photos)
    db = tmp_path / "db"
    for folders, said in (
        ((photos, photos / "fungi"), f"fungi lies within {photos}, .* Name {photos} alone"),
        ((photos / "fungi" / "deep", tmp_path / "photos2", photos), "deep lies within"),
        ((photos, tmp_path / "link"), "is named twice"),
    ):
        with pytest.raises(DataError, match=said):
            run(db, encoder, *folders)
    with open_store(str(db)) as store:
        assert store.collections() == []
    assert run(db, encoder, photos, tmp_path / "photos2").added == 6, "names that begin alike do not overlap"


def test_a_hidden_folder_within_a_source_is_a_source_of_its_own(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, hidden = tmp_path / "db", photos / ".private"
    draw_picture(hidden / "x" / "y.png", seed=9)
    run(db, encoder, hidden)
    report = run(db, encoder, photos, prune=True)
    assert (report.added, report.taken_over) == (5, {})
    assert run(db, encoder, hidden, prune=True).unchanged == 1
    assert len(points(db)) == 6


def test_an_absorbed_folder_of_a_flat_pile_gets_no_category(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(tmp_path / "db", encoder, photos / "fungi")
    report = run(tmp_path / "db", encoder, photos, flat=True)
    assert (report.updated, report.unchanged, report.added) == (0, 2, 3)
    assert all("category" not in point.payload for point in points(tmp_path / "db"))


def test_a_folder_that_is_a_source_by_another_name_is_refused(
    photos: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is mounted twice, or on a file system to which Photos is photos."""
    db = tmp_path / "db"
    run(db, encoder, photos)
    again = tmp_path / "Photos"
    shutil.copytree(photos, again)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
        with pytest.raises(
            DataError, match=rf"by another name.*\n.*\n.*imret sources rename {photos} {again}"
        ):
            run(db, encoder, again)
    with open_store(str(db)) as store:
        rename_source(store, photos, again)
    check(db, encoder, again)


@pytest.mark.parametrize("deeper", ["", "birds"])
def test_a_folder_that_a_link_in_a_source_leads_to_is_refused(
    photos: Path, tmp_path: Path, encoder: Encoder, deeper: str
) -> None:
    db, usb = tmp_path / "db", tmp_path / "usb"
    for seed in (80, 81):
        draw_picture(usb / "birds" / f"{seed}.png", seed=seed)
    (photos / "usb").symlink_to(usb)
    run(db, encoder, photos)
    refusal = rf"lies by a link within {photos}, .*\n.* imret ingest {photos} --db \S+$"
    with pytest.raises(DataError, match=refusal):
        run(db, encoder, usb / deeper)
    assert len(points(db)) == 7
    os.link(usb / "birds" / "80.png", tmp_path / "hard.png")  # a copy that shares its bytes is a copy
    (tmp_path / "backup").mkdir()
    (tmp_path / "hard.png").rename(tmp_path / "backup" / "80.png")
    assert run(db, encoder, tmp_path / "backup").added == 1


def test_a_folder_with_a_link_to_a_source_says_so_and_how_it_is_mended(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db, usb = tmp_path / "db", tmp_path / "usb"
    for seed in (80, 81):
        draw_picture(usb / f"{seed}.png", seed=seed)
    run(db, encoder, usb)
    (photos / "a link").symlink_to(usb)  # the first that the walk meets
    report = run(db, encoder, photos)
    (note,) = report.notes
    assert note == (
        f"{usb} lies within {photos} by a link, so its pictures are stored twice; to have them once: "
        f"imret sources forget {usb} --db {db}"
    )
    assert (report.added, report.encoded) == (7, 5)


# ---- The command ----------------------------------------------------------------------------------------


def imret(folder: Path, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `imret ...` in a folder; with an answer, at a terminal."""
    ours, theirs = pty.openpty()
    try:
        if answer is not None:
            os.write(ours, answer.encode())
        return subprocess.run(
            [sys.executable, "-m", "imret", *arguments],
            stdin=subprocess.DEVNULL if answer is None else theirs,
            capture_output=True, text=True, cwd=folder,
            env={**os.environ, "IMRET_DB": "db", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("answer", "n_points"), [("\n", 5), ("y\n", 5), ("n\n", 10)])
def test_at_a_terminal_it_asks(
    photos: Path, tmp_path: Path, encoder: Encoder, answer: str, n_points: int
) -> None:
    run(tmp_path / "db", encoder, photos)
    photos.rename(tmp_path / "moved")
    done = imret(tmp_path, "ingest", "moved", answer=answer)
    assert done.returncode == 0, done.stderr
    assert "Has it moved there? [Y/n]" in done.stderr
    assert len(points(tmp_path / "db")) == n_points
    assert (f"{photos} has moved: 5 pictures, with their vectors" in done.stderr) == (n_points == 5)


def test_without_a_terminal_it_stops_before_any_model_is_looked_for(
    photos: Path, tmp_path: Path, random_model: Path
) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    assert imret(tmp_path, "ingest", "photos", "--model", "model").returncode == 0
    photos.rename(tmp_path / "moved")
    (tmp_path / "model").rename(tmp_path / "model elsewhere")
    done = imret(tmp_path, "ingest", "moved")
    assert done.returncode == 1
    assert f"If so: the same command with --moved-from {photos}" in done.stderr
    assert "model" not in done.stderr
    # The command that it names does it.
    (tmp_path / "model elsewhere").rename(tmp_path / "model")
    done = imret(tmp_path, "ingest", "moved", "--moved-from", "photos", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    assert f"{photos} has moved: 5 pictures, with their vectors" in done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["taken_over"] == {str(photos): 5}


def test_ingesting_a_source_that_is_gone_names_rename_and_forget(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(tmp_path / "db", encoder, photos)
    photos.rename(tmp_path / "moved")
    done = imret(tmp_path, "ingest", "photos/")
    assert done.returncode == 1
    assert "no such folder: 'photos/'" in done.stderr
    assert f"If it has moved: imret ingest NEW --moved-from {photos}" in done.stderr
    assert f"If it is gone for good: imret sources forget {photos}" in done.stderr
    photos.mkdir()
    done = imret(tmp_path, "ingest", "photos", "--prune")
    assert "Is its drive mounted? Nothing was removed" in done.stderr
    assert f"imret sources forget {photos}" in done.stderr
    photos.rmdir()
    done = imret(tmp_path, "ingest", "nothing")
    assert "The collection holds" not in done.stderr
    assert imret(tmp_path, "ingest", "nothing", "--db", "new db").returncode == 1
    assert not (tmp_path / "new db").exists()


def test_what_was_absorbed_is_told(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    run(tmp_path / "db", encoder, photos / "fungi")
    done = imret(tmp_path, "ingest", "photos")
    assert f"{photos / 'fungi'} is a part of {photos} now: 2 pictures, with their vectors" in done.stderr


def test_what_is_asked_about_can_be_asked_for(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    run(tmp_path / "db", encoder, photos)
    moved = photos.rename(tmp_path / "moved")
    with open_store(str(tmp_path / "db")) as store:
        (one,) = find_moved(store, [FolderSource(moved)])
        assert (one.old, one.new.root, one.agreement.found) == (str(photos), str(moved), 5)
        assert find_moved(store, [FolderSource(moved)], collection="none") == []


def test_a_source_that_is_still_there_has_not_moved_whatever_is_said(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    for seed, name in enumerate(NAMES, 30):
        draw_picture(tmp_path / "other" / name, seed=seed)
    shutil.copy(photos / "e.png", tmp_path / "other" / "aves" / "copy.png")
    run(db, encoder, photos)
    run(db, encoder, tmp_path / "other")
    with pytest.raises(DataError, match="is still there, so it has not moved"):
        run(db, encoder, tmp_path / "other", moved_from=[str(photos)])
    check(db, encoder, photos, tmp_path / "other")


def test_a_move_that_would_mix_two_folders_is_refused(photos: Path, tmp_path: Path, encoder: Encoder) -> None:
    db = tmp_path / "db"
    for seed, name in enumerate(NAMES, 30):
        draw_picture(tmp_path / "other" / name, seed=seed)
    run(db, encoder, photos)
    run(db, encoder, tmp_path / "other")
    photos.joinpath("e.png").rename(tmp_path / "other" / "copy.png")
    shutil.rmtree(photos)
    with pytest.raises(DataError, match="a rename would mix two folders"):
        run(db, encoder, tmp_path / "other", moved_from=[str(photos)])
    assert len(points(db)) == 10


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_within_a_folder_that_is_not_there_stays_and_is_not_pruned(
    photos: Path, tmp_path: Path, encoder: Encoder, left: str
) -> None:
    db, disk = tmp_path / "db", photos / "disk"
    draw_picture(disk / "aves" / "z.png", seed=60)
    run(db, encoder, disk)
    disk.rename(tmp_path / "unplugged")
    if left == "an empty folder":
        disk.mkdir()
    report = run(db, encoder, photos, prune=True)
    assert (report.removed, report.taken_over) == (0, {})
    (note,) = report.notes
    assert note.startswith(f"{disk}, a source that lies within {photos}, is not there now")
    assert {p.payload["source"] for p in points(db)} == {str(photos), str(disk)}
    if left == "an empty folder":
        disk.rmdir()
    (tmp_path / "unplugged").rename(disk)
    assert run(db, encoder, photos, prune=True).taken_over == {str(disk): 1}
    check(db, encoder, photos)


def test_the_advice_about_a_rename_into_another_source_can_be_typed(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    db = tmp_path / "db"
    run(db, encoder, photos)
    draw_picture(tmp_path / "more" / "aves" / "x.png", seed=61)
    run(db, encoder, tmp_path / "more")
    with open_store(str(db)) as store, pytest.raises(DataError) as raised:
        rename_source(store, photos, tmp_path / "more" / "photos", check=False)
    assert f"imret sources forget {photos} --db {db}" in str(raised.value)
