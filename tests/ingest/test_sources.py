"""What a folder gives: records, what is skipped and why, what is left out."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
from pathlib import Path

import pytest

from imret.datasets.scan import Ignored, Skipped
from imret.errors import DataError
from imret.escape import escape_undecodable
from imret.sources.presence import OutOfReach
from imret.store.payload import file_of, make_payload, modified_time, path_of, point_id
from ingest import sources
from ingest.sources import FolderSource, PartSource, Record, Unit


def _touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    return file


def _records(folder: Path, *, categories: bool = True) -> dict[str, str | None]:
    source = FolderSource(folder, categories=categories)
    return {entry.path: entry.category for entry in source.entries() if isinstance(entry, Record)}


def _skips(folder: Path) -> dict[str, str]:
    return {
        entry.path: entry.reason for entry in FolderSource(folder).entries() if isinstance(entry, Skipped)
    }


def test_the_category_is_the_first_folder_below_the_root(tmp_path: Path) -> None:
    _touch(tmp_path / "fungi" / "a.jpg")
    _touch(tmp_path / "fungi" / "2024" / "may" / "b.PNG")
    _touch(tmp_path / "loose.webp")
    assert _records(tmp_path) == {"fungi/2024/may/b.PNG": "fungi", "fungi/a.jpg": "fungi", "loose.webp": None}


def test_a_flat_pile_has_no_categories(tmp_path: Path) -> None:
    _touch(tmp_path / "2024" / "a.jpg")
    assert _records(tmp_path, categories=False) == {"2024/a.jpg": None}


def test_hidden_and_system_names_are_ignored_and_counted_by_reason(tmp_path: Path) -> None:
    for name in (
        ".git/a.jpg",
        "fungi/.hidden.jpg",
        "fungi/._a.jpg",
        "fungi/@eaDir/a.jpg",
        "notes.txt",
        "README",
    ):
        _touch(tmp_path / name)
    ignored = {e.path: e.reason for e in FolderSource(tmp_path).entries() if isinstance(e, Ignored)}
    assert ignored == {
        ".git": "hidden",
        "fungi/.hidden.jpg": "hidden",
        "fungi/._a.jpg": "hidden",
        "fungi/@eaDir": "system folder",
        "notes.txt": "not a picture by its name (*.txt)",
        "README": "not a picture by its name",
    }


@pytest.mark.parametrize(
    "name", ["...", "..fungi", "a" * 200, "with space", "quote\"'", "new\nline", "🍄", "a.jpg"]
)
def test_odd_category_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    _touch(tmp_path / name / "a.jpg")
    assert _records(tmp_path) == {f"{name}/a.jpg": name}
    assert _skips(tmp_path) == {}


def test_undecodable_names_survive_into_the_payload_and_back(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    (record,) = [e for e in FolderSource(tmp_path).entries() if isinstance(e, Record)]
    payload = make_payload(
        source=record.source, path=record.path, category=record.category,
        sha256="0", width=1, height=1, size_bytes=1, modified=record.modified,
    )  # fmt: skip
    payload["path"].encode("utf-8")
    payload["category"].encode("utf-8")
    assert payload["category"] == r"caf\xe9"
    assert os.fsencode(file_of(payload)) == folder + b"/\xff.jpg"
    assert path_of(payload) == record.path


def test_a_symlink_to_a_folder_is_followed(tmp_path: Path) -> None:
    _touch(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "fungi").symlink_to(tmp_path / "elsewhere")
    assert _records(tmp_path / "photos") == {"fungi/a.jpg": "fungi"}


def test_symlink_loops_end_and_are_named(tmp_path: Path) -> None:
    _touch(tmp_path / "fungi" / "a.jpg")
    (tmp_path / "fungi" / "up").symlink_to(tmp_path)
    (tmp_path / "fungi" / "self.jpg").symlink_to("self.jpg")
    assert _records(tmp_path) == {"fungi/a.jpg": "fungi"}
    assert _skips(tmp_path) == {
        "fungi/up": "symlink loop: it leads back to a folder above it",
        "fungi/self.jpg": "symlink loop: it leads back to itself",
    }


def test_a_dangling_symlink_a_pipe_and_a_folder_named_like_a_picture_are_skipped_with_reasons(
    tmp_path: Path,
) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert _skips(tmp_path) == {
        "folder.jpg": "a folder, not a picture",
        "gone.jpg": "dangling symlink",
        "pipe.jpg": "not a regular file",
    }


@pytest.mark.parametrize("name", ["nas", "trip 2019.08", "a.jpg"])
def test_what_cannot_be_looked_at_is_skipped_by_name_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _touch(tmp_path / "b.jpg")
    (tmp_path / name).mkdir()  # the place of a share that is away
    real = os.stat

    def failing(path: str, **options: object) -> os.stat_result:
        if os.fspath(path) == str(tmp_path / name):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", failing)
    assert _skips(tmp_path) == {name: "cannot be read: Transport endpoint is not connected"}
    assert _records(tmp_path) == {"b.jpg": None}


def test_folders_hundreds_deep_are_walked(tmp_path: Path) -> None:
    depth, here = 700, os.getcwd()
    os.chdir(tmp_path)
    try:  # step by step: the whole path is longer than one call may take
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("a.jpg").write_bytes(b"x")
    finally:
        os.chdir(here)
    assert list(_records(tmp_path)) == ["d/" * depth + "a.jpg"]


def test_a_missing_folder_and_a_file_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder: .*nothing"):
        FolderSource(tmp_path / "nothing")
    with pytest.raises(DataError, match="is a file; ingest takes a folder"):
        FolderSource(_touch(tmp_path / "a.jpg"))


def test_a_source_knows_what_is_at_its_places(tmp_path: Path) -> None:
    _touch(tmp_path / "fungi" / "a.jpg")
    found = FolderSource(tmp_path).presence(["fungi/a.jpg", "fungi/b.jpg", "fungi/" + "x" * 300 + ".jpg"])
    assert list(found.values())[:2] == ["here", "gone"]
    assert list(found.values())[2] == OutOfReach("fungi", "cannot be read: File name too long")


def test_one_place_has_one_id_and_two_places_two() -> None:
    assert point_id("/a", "b/c.jpg") == point_id("/a", "b/c.jpg")
    assert point_id("/a", "b/c.jpg") != point_id("/a/b", "c.jpg")
    assert point_id("/a", "caf\udce9.jpg") != point_id("/a", r"caf\xe9.jpg")


def test_times_are_rfc3339_to_the_microsecond_also_far_out() -> None:
    assert modified_time(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456Z"
    assert modified_time(-1) == "1969-12-31T23:59:59.999999Z"
    assert modified_time(10**21).startswith("9999-12-31T")
    assert modified_time(-(10**21)).startswith("0001-01-01T")


def test_printable_leaves_good_names_alone() -> None:
    assert escape_undecodable("grün 🍄.jpg") == "grün 🍄.jpg"


def _units(folder: Path) -> dict[str, Unit]:
    return {unit.name: unit for unit in FolderSource(folder).units()}


def test_the_units_of_a_folder_hold_what_its_walk_gives_in_bounded_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SLICE", 4)
    monkeypatch.setattr(sources, "MOST_IN_SLICE", 6)
    for number in range(40):
        _touch(tmp_path / f"{number % 3}" / f"{number:02}.jpg")
    _touch(tmp_path / "notes.txt")
    units = list(FolderSource(tmp_path).units())
    assert len({unit.name for unit in units}) == len(units) > 5
    assert units[0].name == ""
    assert [entry for unit in units for entry in unit.entries()] == list(FolderSource(tmp_path).entries())
    assert all(sum(isinstance(entry, Record) for entry in unit.entries()) <= 6 for unit in units)
    assert sum(unit.size_bytes for unit in units) == 40
    assert pickle.loads(pickle.dumps(units[1])).digest == units[1].digest
    assert list(pickle.loads(pickle.dumps(units[1])).entries()) == list(units[1].entries())


def test_a_picture_that_comes_changes_or_goes_changes_the_digest_of_its_slice_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SLICE", 5)
    for number in range(60):
        _touch(tmp_path / f"{number:03}.jpg")
    before = _units(tmp_path)
    assert {name: unit.digest for name, unit in before.items()} == {
        name: unit.digest for name, unit in _units(tmp_path).items()
    }

    def changed() -> set[str]:
        now = _units(tmp_path)
        names = before.keys() | now.keys()
        return {n for n in names if n not in now or n not in before or now[n].digest != before[n].digest}

    (tmp_path / "030.jpg").write_bytes(b"other")
    assert len(changed()) == 1
    (tmp_path / "030.jpg").unlink()
    assert len(changed()) <= 2  # two where it was the first of one
    _touch(tmp_path / "030.jpg")
    os.utime(tmp_path / "030.jpg", ns=(1, 1))
    assert len(changed()) == 1


def test_a_part_of_a_source_is_a_source_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SLICE", 4)
    for number in range(20):
        _touch(tmp_path / "fungi" / f"{number:02}.jpg")
    whole = FolderSource(tmp_path)
    first, second, *_ = whole.units()
    part = PartSource(whole, [second])
    assert part.root == whole.root
    assert list(part.entries()) == list(second.entries())
    (other,) = (entry for entry in list(first.entries())[:1] if isinstance(entry, Record))
    assert part.presence([other.path]) == {other.path: "here"}


def test_a_record_reads_its_file_or_the_content_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"from disk")
    (record,) = (entry for entry in FolderSource(tmp_path).entries() if isinstance(entry, Record))
    assert record.read() == b"from disk"
    assert record.file == str(tmp_path / "a.jpg")
    held = dataclasses.replace(record, content=_Held(b"from memory"))
    assert held.file is None
    with held.open() as file:
        assert file.read() == held.read() == b"from memory"
    assert held.id == record.id


@dataclasses.dataclass(frozen=True)
class _Held:
    data: bytes

    def read(self) -> bytes:
        return self.data
