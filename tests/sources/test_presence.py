"""What is gone, and what only cannot be reached: an empty mount point, a link to nowhere, an error."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imret.sources.presence import OutOfReach, folder_state, presence


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.jpg", "a/deep/3.jpg", "b/4.jpg", "5.jpg"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(b"x")
    return tmp_path / "root"


def seen(root: Path, path: str, **options: Any) -> object:
    found = presence(str(root), [path], **options)[path]
    return (found.folder, found.reason) if isinstance(found, OutOfReach) else found


def test_a_file_that_left_a_folder_with_others_is_gone_and_so_is_a_folder_that_left_one(root: Path) -> None:
    (root / "a" / "1.jpg").unlink()
    shutil.rmtree(root / "b")
    assert seen(root, "a/1.jpg") == "gone"
    assert seen(root, "b/4.jpg") == "gone"
    assert seen(root, "b/never/was.jpg") == "gone"
    assert seen(root, "a/2.jpg") == seen(root, "a/deep/3.jpg") == "here"


@pytest.mark.parametrize("left", [None, ".DS_Store", ".keep", "lost+found", "Thumbs.db", "desktop.ini"])
def test_an_empty_folder_may_be_the_place_of_a_drive(root: Path, left: str | None) -> None:
    (root / "b" / "4.jpg").unlink()
    if left:
        (root / "b" / left).write_bytes(b"")
    assert seen(root, "b/4.jpg") == ("b", "is empty now")
    assert seen(root, "b/2024/may/6.jpg") == ("b", "is empty now")
    (root / "b" / "notes.txt").write_text("not a drive's place: somebody works here")
    assert seen(root, "b/4.jpg") == "gone"


@pytest.mark.parametrize("target", ["nowhere", "nowhere/deeper"])
def test_a_link_that_leads_nowhere_anywhere_on_the_way_says_nothing(root: Path, target: str) -> None:
    (root / "usb").symlink_to(root.parent / target)
    (root / "a" / "card").symlink_to(root.parent / target)
    (root / "b" / "link.jpg").symlink_to(root.parent / target / "x.jpg")
    nowhere = "is a link to a place that is not there"
    assert seen(root, "usb/x.jpg") == ("usb", nowhere)
    assert seen(root, "a/card/deep/x.jpg") == ("a/card", nowhere)
    assert seen(root, "b/link.jpg") == ("b", "holds links to places that are not there")


def test_a_link_to_a_mount_point_that_is_empty_says_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (root / "usb").symlink_to(tmp_path / "mnt")
    assert seen(root, "usb/x.jpg") == ("usb", "is empty now")


def test_links_that_lead_round_say_nothing(root: Path) -> None:
    (root / "up").symlink_to(root)
    (root / "self").symlink_to("self")
    assert seen(root, "up/not/there.jpg") == ("up", "is a link that leads back to a folder above it")
    assert seen(root, "self/x.jpg") == ("self", "is a link that leads back to itself")


def test_a_folder_or_link_that_became_a_file_is_gone_and_a_file_that_became_a_folder(root: Path) -> None:
    shutil.rmtree(root / "b")
    (root / "b").write_bytes(b"")
    (root / "5.jpg").unlink()
    (root / "5.jpg").mkdir()
    assert seen(root, "b/4.jpg") == "gone"
    assert seen(root, "5.jpg") == "gone"


@pytest.mark.parametrize("code", ["EACCES", "EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EPERM", "ENODEV"])
@pytest.mark.parametrize("call", ["stat", "scandir"])
def test_an_error_says_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, code: str, call: str) -> None:
    error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    real = getattr(os, call)

    def failing(path: Any, *args: Any, **options: Any) -> Any:
        if os.fspath(path) == str(root / "b"):
            raise error
        return real(path, *args, **options)

    monkeypatch.setattr(os, call, failing)
    assert seen(root, "b/9.jpg") == ("b", f"cannot be read: {error.strerror}")
    assert seen(root, "b/deeper/9.jpg") == ("b", f"cannot be read: {error.strerror}")
    assert seen(root, "a/9.jpg") == "gone"


def test_a_file_that_cannot_be_looked_at_is_not_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Any, *args: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "lstat", failing)
    assert seen(root, "b/4.jpg") == ("b", "cannot be read: Input/output error")
    assert seen(root, "x" * 300 + ".jpg") == ("", "cannot be read: Input/output error")


def test_nothing_is_gone_from_a_source_that_is_gone_or_empty_itself(root: Path) -> None:
    root.rename(root.parent / "elsewhere")
    assert seen(root, "a/1.jpg") == ("", "is not there")
    root.mkdir()
    assert seen(root, "a/1.jpg") == seen(root, "5.jpg") == ("", "is empty now")
    assert seen(root, "a/.hidden.jpg") == ("", "is empty now")


def test_what_a_walk_could_not_look_into_is_not_gone_though_it_can_be_read_again(root: Path) -> None:
    again = "could not be read a moment ago"
    assert seen(root, "b/9.jpg", unseen={"b"}) == ("b", again)
    assert seen(root, "b/deeper/9.jpg", unseen={"b"}) == ("b", again)
    assert seen(root, "a/9.jpg", unseen={"b"}) == "gone"
    assert seen(root, "a/9.jpg", unseen={""}) == ("", again)
    assert seen(root, "b/4.jpg", unseen={"b"}) == "here"


def test_what_no_walk_meets_by_its_name_is_left_out_whether_it_is_there_or_not(root: Path) -> None:
    (root / "a" / ".hidden.jpg").write_bytes(b"x")
    (root / "a" / "notes.txt").write_bytes(b"x")
    assert seen(root, "a/.hidden.jpg") == seen(root, "a/notes.txt") == "left out"
    assert seen(root, "@eaDir/1.jpg") == seen(root, "#recycle/a/1.jpg") == "left out"


def test_a_drive_that_goes_while_the_files_are_looked_at_takes_none_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.lstat

    def unmounting(path: Any, *args: Any, **options: Any) -> Any:
        if os.fspath(path).endswith("2.jpg") and (root / "a").exists():
            (root / "a").rename(root.parent / "unplugged")
            (root / "a").mkdir()
        return real(path, *args, **options)

    monkeypatch.setattr(os, "lstat", unmounting)
    found = presence(str(root), ["a/1.jpg", "a/2.jpg", "a/deep/3.jpg", "b/4.jpg"])
    assert found["a/1.jpg"] == found["b/4.jpg"] == "here"
    assert found["a/2.jpg"] == found["a/deep/3.jpg"] == OutOfReach("a", "is empty now")


def test_a_drive_that_comes_back_while_the_folders_are_looked_at_has_its_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").rename(root.parent / "unplugged")
    real = os.scandir

    def mounting(path: Any) -> Any:
        if (root.parent / "unplugged").exists():
            (root.parent / "unplugged").rename(root / "a")
        return real(path)

    monkeypatch.setattr(os, "scandir", mounting)
    assert seen(root, "a/1.jpg") == "here"


def test_a_place_a_thousand_folders_deep_is_looked_for(root: Path) -> None:
    assert seen(root, "d/" * 1500 + "x.jpg") == "gone"


@pytest.fixture
def unreadable(root: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (root / "b").chmod(0o000)
    yield root / "b"
    (root / "b").chmod(0o755)


def test_a_folder_without_permission_says_nothing(root: Path, unreadable: Path) -> None:
    assert seen(root, "b/4.jpg") == ("b", "cannot be read: Permission denied")


def test_the_state_of_a_source(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder_state(root) == "present"
    assert folder_state(root / "nowhere") == "gone"
    assert folder_state(root / "5.jpg") == folder_state(root / "5.jpg" / "x") == "gone"
    (tmp_path / "empty").mkdir()
    assert folder_state(tmp_path / "empty") == "empty"
    monkeypatch.setattr(
        os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no"))
    )
    assert folder_state(root) == "unreadable"
