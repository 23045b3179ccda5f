"""What a walk leaves out by name: systems' and photo programs' own folders, and what patterns exclude."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest

from imret.datasets.exclusion import Exclusion, below, originals_in
from imret.datasets.scan import Ignored, Picture, walk
from imret.errors import DataError
from imret.sources.presence import presence
from ingest.sources import FolderSource


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def pictures(root: Path, *patterns: str) -> list[str]:
    """The pictures that a walk meets, which is also what everything else says of them."""
    exclusion = Exclusion(root, patterns)
    met = [entry.path for entry in walk(str(root), exclusion) if isinstance(entry, Picture)]
    there = [str(file.relative_to(root)) for file in root.rglob("*.jpg")]
    states = presence(str(root), there, exclusion=exclusion)
    assert sorted(met) == sorted(path for path in there if states[path] == "here")
    assert all(states[path] == "left out" for path in there if path not in met)
    assert FolderSource(root, exclude=patterns).count() == len(met)
    return sorted(met)


@pytest.mark.parametrize(
    "folder",
    [
        *("@eaDir", "#recycle", "#snapshot", "#SNAPSHOT", "@Recycle", "@Recently-Snapshot", "@__thumb"),
        *("$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "Recycler", "System Volume Information", "RECYCLED"),
        *(".Trashes", ".Trash-1000", ".snapshot", ".zfs", ".@__thumb", ".dtrash", ".thumbnails", ".immich"),
        *("~snapshot", "lost+found", "LOST.DIR", "__MACOSX", "Network Trash Folder", "FOUND.000", "trashbox"),
        "Backups.backupdb",
        *("appdata_oc0123456789", "files_trashbin"),
        *("Photos Library.photoslibrary", "iPhoto Library.photolibrary", "A.aplibrary"),
        *("iPhoto Library.migratedphotolibrary", "Lightroom Catalog Previews.lrdata", "L.lrlibrary"),
    ],
)
def test_folders_of_systems_and_of_photo_programs_are_left_out(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/aves/1.jpg", f"aves/{folder}/originals/2.jpg", "aves/3.jpg")
    assert pictures(tmp_path) == ["aves/3.jpg"]


@pytest.mark.parametrize("folder", ["recycled", "snapshot", "recycle", "thumbs", "Masters", "library"])
def test_folders_that_are_named_almost_so_are_not(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/1.jpg")
    assert pictures(tmp_path) == [f"{folder}/1.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301-preview.jpeg",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301_thumbnail.webp",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709_720x720_fit.jpg",
        "SYNOFILE_THUMB_M.jpg",
    ],
)
def test_small_copies_that_photo_programs_make_are_left_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"thumbs/ab/{name}", "thumbs/3f2504e0-4f89-11d3-9a0c-0305e82c3301.jpg", "a-preview.jpg")
    met = [entry.path for entry in walk(str(tmp_path)) if isinstance(entry, Picture)]
    assert met == ["a-preview.jpg", "thumbs/3f2504e0-4f89-11d3-9a0c-0305e82c3301.jpg"]


def test_of_a_photo_library_that_is_named_the_originals_are_taken(tmp_path: Path) -> None:
    library = tmp_path / "Photos Library.photoslibrary"
    touch(
        library,
        "originals/0/1.jpg",
        "resources/derivatives/0/1.jpg",
        "private/2.jpg",
        "originals/resources/3.jpg",
    )
    assert pictures(library) == ["originals/0/1.jpg", "originals/resources/3.jpg"]
    assert pictures(library / "originals") == ["0/1.jpg", "resources/3.jpg"]
    assert originals_in(str(library)) == str(library / "originals")
    assert originals_in(str(tmp_path / "gone.photoslibrary")) is None


ALL = ["a.jpg", "raw/1.jpg", "trips/raw/2.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ([], ALL),
        (["raw"], ["a.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["raw/"], ["a.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["RAW"], ["a.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["./raw"], ["a.jpg", "trips/raw/2.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["/raw"], ["a.jpg", "trips/raw/2.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["raw*"], ["a.jpg", "trips/rome/3.jpg"]),
        (["raw.jpg"], ["a.jpg", "raw/1.jpg", "trips/raw/2.jpg", "trips/rome/3.jpg"]),
        (["trips/*.jpg"], ALL),
        (["trips/**/*.jpg"], ["a.jpg", "raw/1.jpg"]),
        (["**/raw/**"], ["a.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["trips/r?w"], ["a.jpg", "raw/1.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        (["[0-9].jpg"], ["a.jpg", "trips/rome/raw.jpg"]),
        (["[!a].jpg"], ["a.jpg", "trips/rome/raw.jpg"]),
        (["*.jpg", "!raw.jpg"], ["trips/rome/raw.jpg"]),
        (["trips", "!raw.jpg"], ["a.jpg", "raw/1.jpg"]),
        (["!raw.jpg", "*.jpg"], []),
        ([r"\[0-9].jpg", "[.jpg", "[]"], ALL),
        (["a.jpg/"], ALL),
        (["[[:digit:]].jpg"], ["a.jpg", "trips/rome/raw.jpg"]),
        (["[![:alpha:]].jpg"], ["a.jpg", "trips/rome/raw.jpg"]),
        ([r"[\-a].jpg"], ["raw/1.jpg", "trips/raw/2.jpg", "trips/rome/3.jpg", "trips/rome/raw.jpg"]),
        ([r"[1\-3].jpg"], ["a.jpg", "trips/raw/2.jpg", "trips/rome/raw.jpg"]),
        (["t*i*s/**/r*w*"], ["a.jpg", "raw/1.jpg", "trips/rome/3.jpg"]),
        (["**/rome/**/3.jpg"], ["a.jpg", "raw/1.jpg", "trips/raw/2.jpg", "trips/rome/raw.jpg"]),
        (["*.j*p*g", "!*a*"], ["a.jpg", "trips/rome/raw.jpg"]),
        (["*"], []),
    ],
)
def test_patterns_exclude_as_those_of_gitignore_do(
    tmp_path: Path, patterns: list[str], left: list[str]
) -> None:
    touch(tmp_path, *ALL)
    assert pictures(tmp_path, *patterns) == left


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 30 + "b", "a" * 250),
        ("a/" + "**/a/" * 12 + "b", "a/" * 1_000 + "c"),
        ("*?" * 60, "/" + "a" * 50),
    ],
)
def test_many_stars_take_no_time(pattern: str, path: str) -> None:
    began = time.process_time()
    assert Exclusion("", [pattern]).reason(path, is_folder=False) is None
    assert time.process_time() - began < 2


def test_a_pattern_fits_in_either_normal_form_of_unicode(tmp_path: Path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "Vögel/1.jpg"), "b.jpg")
    for form in ("NFC", "NFD"):
        assert pictures(tmp_path, unicodedata.normalize(form, "vögel")) == ["b.jpg"]  # type: ignore[arg-type]


def test_what_is_excluded_is_ignored_also_where_it_cannot_be_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "share").symlink_to("nowhere")
    assert list(walk(str(tmp_path), Exclusion(tmp_path, ["share/"])))[1:] == [Ignored("share", "excluded")]


@pytest.mark.parametrize("pattern", ["", "/", "!", "[z-a]"])
def test_a_pattern_that_can_fit_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(DataError, match="the pattern"):
        Exclusion("", [pattern])


def test_the_patterns_of_a_folder_hold_within_it_when_it_is_a_part_of_another(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{path}" for folder in ("in [1]", "other") for path in ALL))
    for pattern in ("raw", "/raw", "raw*", "trips/rome/", "[0-9].jpg"):
        alone = pictures(tmp_path / "in [1]", pattern)
        together = pictures(tmp_path, below("in [1]", pattern))
        assert together == [f"in [1]/{path}" for path in alone] + [f"other/{path}" for path in ALL]
