"""`--prune` removes what is gone, and nothing that only cannot be reached."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from imret import Encoder, open_store
from imret.cli.main import cli
from imret.datasets import exclusion
from imret.errors import DataError
from imret.sources.stored import forget_source
from imret.store import Collection, Point
from ingest import reconcile
from ingest.pipeline import ingest
from ingest.report import Report, Unreached
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures here, on a share, and on a drive that a link leads to; one picture is on all three."""
    for folder, first in (("photos/local", 0), ("photos/nas", 10), ("drive/birds", 20)):
        for seed in (first, first + 1, 99):
            draw_picture(tmp_path / folder / f"{seed}.png", seed=seed)
    (tmp_path / "photos" / "usb").symlink_to(tmp_path / "drive" / "birds")
    return tmp_path / "photos"


def run(photos: Path, encoder: Encoder, source: type[FolderSource] = FolderSource, **options: Any) -> Report:
    with open_store(str(photos.parent / "db")) as store:
        return ingest(store, [source(photos)], encoder=encoder, **options)


def paths(photos: Path) -> list[str]:
    with open_store(str(photos.parent / "db"), create=False) as store:
        return sorted(p.payload["path"] for batch in store.open("photos").scan() for p in batch)


ALL = [
    f"{f}/{n}.png"
    for f, ns in (("local", (0, 1, 99)), ("nas", (10, 11, 99)), ("usb", (20, 21, 99)))
    for n in ns
]


def test_a_share_and_a_drive_that_are_not_mounted_keep_their_pictures_and_are_told(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    (photos.parent / "drive").rename(photos.parent / "unplugged")
    (photos / "nas").rename(photos.parent / "unmounted")
    (photos / "nas").mkdir()
    (photos / "local" / "0.png").unlink()
    for prune, (removed, missing) in ((False, (0, 1)), (True, (1, 0)), (True, (0, 0))):
        report = run(photos, encoder, prune=prune)
        assert (report.removed, report.missing, report.encoded) == (removed, missing, 0)
        assert sorted(report.out_of_reach, key=lambda one: one.folder) == [
            Unreached(str(photos / "nas"), "is empty now", 3),
            Unreached(str(photos / "usb"), "is a link to a place that is not there", 3),
        ]
        assert (report.as_dict()["out_of_reach"], len(report.as_dict()["unreached"])) == (6, 2)
    assert paths(photos) == ALL[1:]
    # Back again, nothing is embedded anew; gone for good, they go.
    (photos / "nas").rmdir()
    (photos.parent / "unmounted").rename(photos / "nas")
    report = run(photos, encoder, prune=True)
    assert (report.unchanged, report.encoded) == (5, 0)
    shutil.rmtree(photos / "nas")
    (photos / "usb").unlink()
    assert run(photos, encoder, prune=True).removed == 6
    assert paths(photos) == ["local/1.png", "local/99.png"]


def test_the_command_tells_what_it_kept_and_how_it_goes(photos: Path, encoder: Encoder) -> None:
    run(photos, encoder)
    (photos / "nas").rename(photos.parent / "unmounted")
    (photos / "nas").mkdir()
    file = photos.parent / "report.json"
    done = CliRunner().invoke(
        cli, ["ingest", str(photos), "--db", str(photos.parent / "db"), "--prune", "--report", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert f"kept 3 pictures: {photos / 'nas'} is empty now" in done.stderr
    assert "remove the empty folder or the link, and run again with --prune" in done.stderr
    written = json.loads(file.read_text())
    assert written["out_of_reach"] == 3
    assert written["unreached"] == [{"folder": str(photos / "nas"), "reason": "is empty now", "images": 3}]


def test_a_picture_on_an_unmounted_share_is_not_taken_for_moved_when_its_copy_is_met(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    shutil.copyfile(photos / "nas" / "10.png", photos / "local" / "copy.png")
    (photos / "nas").rename(photos.parent / "unmounted")
    (photos / "nas").mkdir()
    report = run(photos, encoder, prune=True)
    assert (report.added, report.moved, report.removed, report.encoded) == (1, 0, 0, 0)
    assert paths(photos) == sorted([*ALL, "local/copy.png"])


def test_a_folder_that_is_emptied_by_a_move_keeps_its_points_until_it_is_removed(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    (photos / "local").rename(photos / "here")
    (photos / "local").mkdir()
    report = run(photos, encoder)
    assert (report.added, report.encoded) == (3, 0)
    (photos / "local").rmdir()
    assert run(photos, encoder).removed == 3
    assert paths(photos) == sorted(path.replace("local", "here") for path in ALL)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN])
@pytest.mark.parametrize("call", ["stat", "listdir"])
def test_a_folder_that_cannot_be_read_keeps_its_pictures_also_when_it_can_be_again(
    photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    run(photos, encoder)
    (photos / "nas" / "10.png").unlink()
    real = getattr(os, call)

    def failing(path: Any, *args: Any, **options: Any) -> Any:
        if os.fspath(path) == str(photos / "nas"):
            raise OSError(code, os.strerror(code))
        return real(path, *args, **options)

    class Flaky(FolderSource):
        def entries(self) -> Iterator[Any]:  # the share is back when the walk has ended
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing)
                yield from super().entries()

    report = run(photos, encoder, Flaky, prune=True)
    assert report.removed == 0
    assert report.out_of_reach == [Unreached(str(photos / "nas"), "could not be read a moment ago", 1)]
    assert [skip["path"] for skip in report.skipped] == [str(photos / "nas")], "and it is told"
    assert paths(photos) == ALL
    assert run(photos, encoder, prune=True).removed == 1


def test_a_source_that_goes_during_the_run_loses_nothing(photos: Path, encoder: Encoder) -> None:
    run(photos, encoder)

    class Going(FolderSource):
        looks = 0

        def entries(self) -> Iterator[Any]:
            self.looks += 1
            for n, entry in enumerate(super().entries()):
                if n == 4 and self.looks == 2:
                    photos.rename(photos.parent / "unplugged")
                yield entry

    report = run(photos, encoder, Going, prune=True)
    assert report.removed == 0
    assert sum(one.images for one in report.out_of_reach) > 0
    assert paths(photos) == ALL
    with pytest.raises(DataError, match="no such folder"):
        run(photos, encoder, prune=True)


def test_a_source_that_is_gone_when_the_walk_begins_is_an_error_with_its_name(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    source = FolderSource(photos)
    photos.rename(photos.parent / "unplugged")
    with (
        open_store(str(photos.parent / "db")) as store,
        pytest.raises(DataError, match=r"photos' cannot be read any more: No such file or directory"),
    ):
        ingest(store, [source], encoder=encoder, prune=True)
    assert paths(photos) == ALL


def test_an_emptied_source_keeps_its_pictures_without_prune_too(photos: Path, encoder: Encoder) -> None:
    run(photos, encoder)
    photos.rename(photos.parent / "unplugged")
    photos.mkdir()
    report = run(photos, encoder)
    assert report.out_of_reach == [Unreached(str(photos), "is empty now", 9)]


def test_a_mount_point_that_something_was_put_into_keeps_what_is_stored_of_it(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    photos.rename(photos.parent / "unmounted")
    draw_picture(photos / "stray.png", seed=70)
    report = run(photos, encoder, prune=True)
    assert (report.added, report.removed) == (1, 0)
    (kept,) = report.out_of_reach
    assert kept.images == 9
    assert "almost none of its pictures" in kept.reason
    assert paths(photos) == sorted([*ALL, "stray.png"])


def test_a_stray_picture_that_is_known_by_now_makes_no_others_gone(tmp_path: Path, encoder: Encoder) -> None:
    photos = tmp_path / "photos"
    for seed in range(12):
        draw_picture(photos / "nas" / f"{seed}.png", seed=seed)
    run(photos, encoder)
    photos.rename(tmp_path / "unmounted")
    draw_picture(photos / "stray.png", seed=70)
    for prune, missing in ((True, 0), (True, 0), (False, 12), (True, 0)):
        report = run(photos, encoder, prune=prune)
        assert (report.removed, report.missing) == (0, missing)
    shutil.rmtree(photos)
    (tmp_path / "unmounted").rename(photos)
    assert run(photos, encoder, prune=True).removed == 1
    assert len(paths(photos)) == 12


def test_what_a_system_writes_into_a_mount_point_makes_no_folder_of_pictures(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    shutil.rmtree(photos / "nas")
    (photos / "nas").mkdir()
    (photos / "nas" / "Thumbs.db").write_bytes(b"thumbs")
    report = run(photos, encoder, prune=True)
    assert report.removed == 0
    (kept,) = report.out_of_reach
    assert kept.reason == "is empty now"


def test_a_picture_that_became_a_link_to_what_is_gone_goes_and_one_that_leads_to_a_drive_stays(
    photos: Path, encoder: Encoder
) -> None:
    run(photos, encoder)
    for name, target in (
        ("0.png", photos / "nas" / "no.png"),
        ("1.png", photos.parent / "unmounted" / "1.png"),
    ):
        (photos / "local" / name).unlink()
        (photos / "local" / name).symlink_to(target)
    report = run(photos, encoder)
    assert (report.missing, [one.images for one in report.out_of_reach]) == (1, [1])
    report = run(photos, encoder, prune=True)
    assert (report.removed, report.out_of_reach) == (
        1,
        [Unreached(str(photos / "local"), "holds links to places that are not there", 1)],
    )
    (photos.parent / "unmounted").mkdir()  # the place of the drive, which is not in it
    assert run(photos, encoder, prune=True).removed == 0
    (photos.parent / "unmounted" / "another.png").write_bytes(b"the drive, without that picture")
    assert run(photos, encoder, prune=True).removed == 1
    assert paths(photos) == [path for path in ALL if path not in ("local/0.png", "local/1.png")]


@pytest.mark.parametrize("holds", ["nothing", "a picture", "a pipe instead"])
def test_a_picture_that_became_a_folder_or_a_pipe_goes(photos: Path, encoder: Encoder, holds: str) -> None:
    run(photos, encoder)
    place = photos / "local" / "0.png"
    place.unlink()
    if holds == "a pipe instead":
        os.mkfifo(place)
    else:
        place.mkdir()
    if holds == "a picture":
        draw_picture(place / "new.png", seed=70)
    assert run(photos, encoder).missing == 1
    assert run(photos, encoder, prune=True).removed == 1
    expected = sorted([*ALL[1:], *(["local/0.png/new.png"] if holds == "a picture" else [])])
    assert paths(photos) == expected


def test_two_folders_whose_names_are_written_out_alike_leave_each_other_their_pictures(
    tmp_path: Path, encoder: Encoder
) -> None:
    photos = tmp_path / "photos"
    folders = [os.path.join(tmp_path, os.fsdecode(b"caf\xe9")), os.path.join(tmp_path, r"caf\xe9")]
    try:
        for seed, folder in enumerate(folders):
            draw_picture(Path(folder) / "here.png", seed=seed)
            for n in range(3):
                draw_picture(Path(folder) / f"{n}.png", seed=10 * seed + n + 2)
    except OSError:
        pytest.skip("this file system takes no name that is no Unicode")

    def ingested(*which: int, **options: Any) -> Report:
        with open_store(str(tmp_path / "db")) as store:
            sources = [FolderSource(folders[i]) for i in which]
            return ingest(store, sources, encoder=encoder, **options)

    ingested(0)
    ingested(1)
    for i in (0, 1, 0, 1):
        report = ingested(i, prune=True)
        assert (report.unchanged, report.removed, report.missing, report.out_of_reach) == (4, 0, 0, [])
    assert len(paths(photos)) == 8
    os.unlink(os.path.join(folders[0], "0.png"))
    assert ingested(1, prune=True).removed == 0
    assert ingested(1).missing == 0
    assert ingested(0, 1, prune=True).removed == 1
    with open_store(str(tmp_path / "db")) as store:
        assert forget_source(store, folders[0]) == 3
    assert len(paths(photos)) == 4
    assert ingested(1, prune=True).unchanged == 4


def test_what_is_left_out_by_its_name_now_is_counted_and_goes_with_prune(
    photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "@Recycle").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(photos / "local" / name, photos / "@Recycle" / name)
    with monkeypatch.context() as older:
        older.setattr(exclusion, "_SYSTEM_FOLDERS", frozenset())
        assert run(photos, encoder).added == 11
    report = run(photos, encoder)
    assert (report.left_out, report.missing, report.removed, report.unchanged) == (2, 0, 0, 9)
    assert len(paths(photos)) == 11
    report = run(photos, encoder, prune=True)
    assert (report.left_out, report.removed, report.encoded) == (0, 2, 0)
    assert paths(photos) == ALL


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Pictures of which no two have the same content."""
    for seed in range(6):
        draw_picture(tmp_path / "plain" / "fungi" / f"{seed}.png", seed=seed)
    return tmp_path / "plain"


def test_what_is_known_to_be_missing_is_not_looked_for_again_until_something_else_changes(
    plain: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(plain, encoder)
    files = sorted(plain.rglob("*.png"))
    kept = [file.read_bytes() for file in files]
    looks: list[str] = []
    really_scan = reconcile.scan_source

    def scan(target: Collection, root: str, **options: Any) -> Iterator[list[Point]]:
        looks.append(root)
        return really_scan(target, root, **options)

    monkeypatch.setattr(reconcile, "scan_source", scan)

    def missing_then() -> tuple[int, bool]:
        looks.clear()
        report = run(plain, encoder)
        return report.missing, bool(looks)

    assert missing_then() == (0, False)
    files[0].unlink()
    assert missing_then() == (1, True)
    assert missing_then() == (1, False)  # it is known
    files[1].unlink()
    assert missing_then() == (2, True)
    assert missing_then() == (2, False)
    draw_picture(plain / "fungi" / "later.png", seed=99)
    assert missing_then() == (2, False)  # one more with a file explains itself
    files[0].write_bytes(kept[0])  # one comes back, and another goes
    files[2].unlink()
    assert missing_then() == (2, True)
    assert missing_then() == (2, False)
    files[1].write_bytes(kept[1])
    files[2].write_bytes(kept[2])
    assert missing_then() == (0, False)
    files[0].unlink()
    assert missing_then() == (1, True)
    assert run(plain, encoder, prune=True).removed == 1
    assert missing_then() == (0, False)


def test_a_note_of_what_is_missing_that_is_broken_or_of_another_version_is_not_believed(
    plain: Path, encoder: Encoder
) -> None:
    run(plain, encoder)
    next(iter(sorted(plain.rglob("*.png")))).unlink()
    assert run(plain, encoder).missing == 1
    for broken in (b"{", b"[]", b'{"version": "x", "sources": {}}', b'{"version": 1, "sources": 3}'):
        with open_store(str(plain.parent / "db")) as store:
            store.change_document("photos", "missing", lambda _, new=broken: new)
        assert run(plain, encoder).missing == 1
