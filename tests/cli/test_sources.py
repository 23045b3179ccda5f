"""`imret sources`: what it prints, what it asks, what it refuses, and that no model is loaded for it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from imret.store import Identity, open_store
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.sources.filled import DIM, contents, fill, write

PATHS = ["fungi/a.jpg", "fungi/b.jpg", "c.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of two sources: `photos`, which is there, and `old`, which has become `new`."""
    write(tmp_path / "photos", PATHS)
    write(tmp_path / "new", [f"x/{path}" for path in PATHS])
    with open_store(str(tmp_path / "db")) as store:
        fill(store, tmp_path / "photos", PATHS)
        fill(store, tmp_path / "old", [f"x/{path}" for path in PATHS])
    return tmp_path


def imret(folder: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    """Run `imret sources ...` as a program that may load no model, in the folder of the store."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['open_clip'] = None\n"
        "from imret.cli.main import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "sources", *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "IMRET_DB": "db", "PYTHONPATH": str(ROOT)},
    )


def sources(folder: Path) -> dict[str, int]:
    with open_store(str(folder / "db"), create=False) as store, closing(store.open("photos")) as opened:
        return {os.path.relpath(source, folder): n for source, n in opened.facet("source").items()}


def test_it_lists_when_nothing_else_is_said(folder: Path) -> None:
    done = imret(folder)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["images", "now", "folder"],
        ["3", "gone", f"{folder}/old"],
        ["3", "present", f"{folder}/photos"],
    ]
    assert "imret sources rename OLD NEW --db db\n" in done.stderr
    assert "imret sources forget OLD --db db\n" in done.stderr
    (one, other) = map(json.loads, imret(folder, "--format", "json").stdout.splitlines())
    assert one == {"folder": f"{folder}/old", "images": 3, "state": "gone", "exclude": []}
    assert other["state"] == "present"


def test_the_collection_is_named_as_everywhere(folder: Path) -> None:
    with open_store(str(folder / "db")) as store:
        fill(store, "/birds", ["a.jpg"], name="birds")
    assert "/birds" in imret(folder, "--collection", "birds").stdout
    assert "no collection 'bird'" in imret(folder, "list", "--collection", "bird").stderr
    done = imret(folder, "forget", "/birds", "--collection", "birds", "--yes")
    assert "to have it again: imret ingest /birds --collection birds" in done.stderr
    assert "holds no pictures; fill it" in imret(folder, "--collection", "birds").stderr
    assert sources(folder) == {"old": 3, "photos": 3}


def test_rename_says_what_it_did_and_again_that_there_is_nothing_to_do(folder: Path) -> None:
    done = imret(folder, "rename", "old/", "new")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "renamed old/ to new: 3 pictures of photos" in done.stderr
    assert sources(folder) == {"new": 3, "photos": 3}
    done = imret(folder, "rename", "old", "new")
    assert done.returncode == 0
    assert "holds no pictures of old (any more); nothing to rename" in done.stderr


def test_rename_to_a_folder_that_is_not_here_needs_a_word(folder: Path) -> None:
    done = imret(folder, "rename", "old", "/team/new")
    assert done.returncode == 1
    assert "--no-check" in done.stderr
    assert imret(folder, "rename", "old", "/team/new", "--no-check").returncode == 0
    assert "/team/new" in imret(folder).stdout


def test_a_slip_of_the_keys_is_refused_with_what_was_meant(folder: Path) -> None:
    for arguments in (["rename", "odl", "new"], ["forget", "photso", "--yes"], ["rename", "Old", "new"]):
        done = imret(folder, *arguments)
        assert done.returncode == 1
        assert "Did you mean '" in done.stderr or arguments[1] == "odl"
    assert sources(folder) == {"old": 3, "photos": 3}


@pytest.mark.parametrize(("answer", "left"), [("y\n", {"photos": 3}), ("n\n", None), ("\n", None)])
def test_forget_asks_with_the_number_of_pictures(
    folder: Path, answer: str, left: dict[str, int] | None
) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = imret(folder, "forget", "old", "old/", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert f"Remove {folder}/old (3 pictures) from photos?" in done.stderr
    assert (done.returncode == 0) == (left is not None)
    assert sources(folder) == (left or {"old": 3, "photos": 3})


def test_forget_without_a_terminal_needs_a_word_and_names_all_or_none(folder: Path) -> None:
    done = imret(folder, "forget", "old")
    assert done.returncode == 1
    assert "There is no terminal to ask at. Say so with --yes." in done.stderr
    assert imret(folder, "forget", "old", "nothing", "--yes").returncode == 1
    assert sources(folder) == {"old": 3, "photos": 3}
    done = imret(folder, "forget", "old", "photos", "--yes")
    assert done.returncode == 0
    assert f"forgot {folder}/old: 3 pictures of photos" in done.stderr
    assert sources(folder) == {}


def test_it_works_through_a_program_that_shares_the_store(folder: Path) -> None:
    with EdgeStore(folder / "db", share=True) as store, closing(store.open("photos")) as opened:
        assert imret(folder, "rename", "old", "new").returncode == 0
        assert imret(folder, "forget", "photos", "--yes").returncode == 0
        assert opened.facet("source") == {f"{folder}/new": 3}
        assert len(contents(store)) == 3


def test_there_must_be_a_store_and_a_collection(folder: Path) -> None:
    assert "nowhere" in imret(folder, "list", "--db", "nowhere").stderr
    with (
        open_store(str(folder / "db")) as store,
        closing(store.open_version("begun", Identity("m", "c3" * 32, DIM))),
    ):
        pass
    assert "is not complete yet" in imret(folder, "--collection", "begun").stderr
