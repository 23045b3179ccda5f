"""`imret collections`: what it prints, what it asks, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from imret.cli.main import cli
from imret.store import Identity
from imret.store.embedded.store import EdgeStore
from imret.store.parquet import export_collection
from tests import ROOT

DIM = 16
MODEL = Identity("models/nature tuned", "a1" * 32, DIM)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that can be, with a store of 3 and of 1,200 images in it."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as name:
        with EdgeStore(Path(name) / "db") as store:
            fill(store, "few", 3)
            fill(store, "many", 1_200)
        yield Path(name)


def fill(store: EdgeStore, name: str, n: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32)
    payloads = [{"category": f"c{i % 2}", "source": f"/photos {i % 2}", "path": f"{i}.jpg"} for i in range(n)]
    with closing(store.open_version(name, MODEL)) as opened:
        opened.upsert([str(uuid.UUID(int=i + 1)) for i in range(n)], vectors, payloads)
    store.promote(name, MODEL)


def names_in(folder: Path) -> list[str]:
    with EdgeStore(folder / "db") as store:
        return store.collections()


def imret(folder: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    """Run `imret collections ...` as a program, with the store and its folder as the working folder."""
    return subprocess.run(
        [sys.executable, "-m", "imret", "collections", *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "IMRET_DB": "db", "PYTHONPATH": str(ROOT)},
    )


def test_it_lists_when_nothing_else_is_said(folder: Path) -> None:
    done = imret(folder)
    assert done.returncode == 0, done.stderr
    header, few, many = done.stdout.splitlines()
    assert header.split() == ["name", "images", "size", "model"]
    assert few.split()[:2] == ["few", "3"]
    assert many.split()[:2] == ["many", "1,200"]
    assert few.endswith(" MB  models/nature tuned")
    assert len({line.index("model") for line in (header, few, many)}) == 1
    assert done.stderr == ""
    (one, other) = map(json.loads, imret(folder, "--format", "json").stdout.splitlines())
    assert one["name"] == "few"
    assert (other["images"], other["model"]) == (1_200, MODEL.model)
    assert other["disk_bytes"] > 0


def test_a_collection_that_somebody_holds_is_listed_without_its_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EdgeStore.__init__.__kwdefaults__, "lock_timeout_s", 0.0)
    with EdgeStore(folder / "db") as store, closing(store.open("many")):
        done = CliRunner().invoke(cli, ["collections", "--db", str(folder / "db")])
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["few", "3"], ["many", "-"]]
    assert "many: its images cannot be counted now; the collection 'many' in" in done.stderr


def test_show_tells_categories_and_folders(folder: Path) -> None:
    done = imret(folder, "show", "many")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[3][:2] == ["images", "1,200,"]
    assert ["categories", "c0", "600"] in lines
    assert ["folders", "/photos", "0", "600"] in lines
    found = json.loads(imret(folder, "show", "many", "--format", "json").stdout)
    assert found["sources"] == {"/photos 0": 600, "/photos 1": 600}
    assert found["index"] == {"status": "exact scan", "vectors": 0, "m": 16}
    assert " ".join(lines[6]) == "index not needed yet, as each search compares all 1,200 vectors, exactly"
    assert "no collection 'lots'" in imret(folder, "show", "lots").stderr


def test_check_tells_what_imret_did_not_write_and_ends_with_3_until_it_is_removed(folder: Path) -> None:
    done = imret(folder, "check", "few")  # made by this test, without the fields of a picture
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "checked      3 points",
        "found        3 that imret did not write (3 by payload)",
    ]
    assert lines[2] == f"point        {uuid.UUID(int=1)}  there is no sha256"
    assert "remove them: imret collections check few --remove --db db" in done.stderr
    done = imret(folder, "check", "few", "--remove", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first = found.pop("first")
    assert found == {
        "name": "few",
        "checked": 3,
        "found": 3,
        "removed": 3,
        "kinds": {"id": 0, "vector": 0, "payload": 3},
        "damaged": {},
    }
    assert first[0] == {"id": str(uuid.UUID(int=1)), "payload": "there is no sha256"}
    done = imret(folder, "check", "few")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["checked      0 points", "found        0 that imret did not write"]
    done = imret(folder, "check", "many")
    assert done.stdout.splitlines()[-1] == "             and 1,190 more"
    assert "no collection 'lots'" in imret(folder, "check", "lots").stderr


def test_check_tells_what_is_damaged_of_what_is_kept_with_a_collection(folder: Path) -> None:
    with EdgeStore(folder / "db") as store:
        store.change_document("few", "names", lambda _: b"{}")
        store.change_document("few", "concepts", lambda _: b"kept")
    imret(folder, "check", "few", "--remove")
    (folder / "db" / "few" / "names.document").write_bytes(b"{}")
    done = imret(folder, "check", "few")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("names        the names kept with collection 'few' in ")
    assert "names.document" in done.stdout
    assert "remove them: imret collections check few --remove --db db" in done.stderr
    done = imret(folder, "export", "few", "few.parquet")
    assert done.returncode == 1
    assert "imret collections check few --remove --db" in done.stderr
    done = imret(folder, "check", "few", "--remove", "--format", "json")
    assert done.returncode == 0
    assert list(json.loads(done.stdout)["damaged"]) == ["names"]
    assert imret(folder, "check", "few").returncode == 0
    assert imret(folder, "export", "few", "few.parquet").returncode == 0
    with EdgeStore(folder / "db") as store:
        assert (store.document("few", "names"), store.document("few", "concepts")) == (None, b"kept")


def test_rename_says_how_to_search(folder: Path) -> None:
    done = imret(folder, "rename", "few", "some")
    assert (done.returncode, done.stdout) == (0, "")
    assert "renamed few to some; search it: imret search TEXT --collection some --db db" in done.stderr
    assert names_in(folder) == ["many", "some"]
    done = imret(folder, "rename", "some", "many")
    assert done.returncode == 1
    assert "cannot rename 'some' to 'many'" in done.stderr


@pytest.mark.parametrize(("answer", "kept"), [("y\n", []), ("n\n", ["few", "many"]), ("\n", ["few", "many"])])
def test_delete_asks_with_the_number_of_images(folder: Path, answer: str, kept: list[str]) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = imret(folder, "delete", "many", "few", "many", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert "Delete many (1,200 images), few (3 images) from db? [y/N]" in done.stderr
    assert names_in(folder) == kept
    if kept:
        assert done.returncode == 1
        assert "nothing was deleted" in done.stderr
    else:
        assert done.returncode == 0
        again = "imret ingest '/photos 0' '/photos 1' --collection few --model 'models/nature tuned' --db db"
        assert f"to make it again: {again}" in done.stderr


def test_delete_without_a_terminal_needs_yes(folder: Path) -> None:
    done = imret(folder, "delete", "few")
    assert done.returncode == 1
    assert "Delete few (3 images) from db? There is no terminal to ask at. Say so with --yes." in done.stderr
    done = imret(folder, "delete", "few", "nonesuch", "--yes")  # all or none
    assert done.returncode == 1
    assert "no collection 'nonesuch'" in done.stderr
    assert names_in(folder) == ["few", "many"]
    assert imret(folder, "delete", "few", "--yes").returncode == 0
    assert names_in(folder) == ["many"]


def test_delete_takes_also_what_is_not_complete(folder: Path) -> None:
    with EdgeStore(folder / "db") as store:
        store.open_version("half", MODEL).close()
    done = imret(folder, "delete", "half", "--yes")
    assert "deleted half (not complete)" in done.stderr
    assert not (folder / "db" / "half").exists()


def test_export_and_import_through_a_file(folder: Path) -> None:
    done = imret(folder, "export", "many", "many.parquet")
    assert (done.returncode, done.stdout) == (0, "")
    assert "exported 1,200 images of many to many.parquet in " in done.stderr
    assert "%|" not in done.stderr  # no progress bar where there is no terminal
    done = imret(folder, "export", "many", "many.parquet")
    assert done.returncode == 1
    assert "'many.parquet' exists already. Name another file, or replace it with --overwrite." in done.stderr
    assert imret(folder, "export", "few", "many.parquet", "--overwrite").returncode == 0

    done = imret(folder, "import", "many.parquet")  # it is called few inside
    assert done.returncode == 1
    assert "collection 'few' exists already" in done.stderr
    done = imret(folder, "import", "many.parquet", "--collection", "copy")
    assert done.returncode == 0
    assert "imported 3 images into copy at db in " in done.stderr
    assert "2 folders of it are not here; where one is now: imret sources rename OLD NEW" in done.stderr
    assert "its model is models/nature tuned" in done.stderr
    assert imret(folder, "import", "many.parquet", "--collection", "many", "--merge").returncode == 0
    assert imret(folder, "import", "many.parquet", "--replace").returncode == 0
    with EdgeStore(folder / "db") as store:
        counts = {}
        for name in store.collections():
            with closing(store.open(name)) as opened:
                counts[name] = opened.count()
    assert counts == {"copy": 3, "few": 3, "many": 1_200}


def test_a_bad_file_makes_no_store(folder: Path) -> None:
    (folder / "noise.parquet").write_bytes(b"noise")
    done = imret(folder, "import", "noise.parquet", "--db", "new")
    assert done.returncode == 1
    assert "'noise.parquet' is no whole Parquet file" in done.stderr
    assert not (folder / "new").exists()


def test_an_import_makes_a_store_where_there_is_none(folder: Path) -> None:
    with EdgeStore(folder / "db") as store:
        export_collection(store, "few", folder / "few.parquet")
    assert imret(folder, "import", "few.parquet", "--db", "new").returncode == 0
    with EdgeStore(folder / "new", create=False) as store:
        assert store.collections() == ["few"]


def test_optimize_tells_the_state_before_and_after(folder: Path) -> None:
    done = imret(folder, "optimize", "many")
    assert done.returncode == 0
    assert "many: index not needed yet, as each search compares all 1,200 vectors, exactly" in done.stderr
    assert " s\n" in done.stderr
    assert "for so few vectors that is as fast as an index" in done.stderr


def test_a_collection_is_named_by_option_as_everywhere_else_or_by_argument(folder: Path) -> None:
    by_option = imret(folder, "show", "--collection", "few")
    assert (by_option.returncode, by_option.stdout) == (0, imret(folder, "show", "few").stdout)
    assert imret(folder, "optimize", "--collection", "many").returncode == 0
    assert imret(folder, "export", "--collection", "few", "few.parquet").returncode == 0
    assert imret(folder, "import", "few.parquet", "--collection", "few", "--replace").returncode == 0
    assert imret(folder, "rename", "--collection", "few", "some").returncode == 0
    assert names_in(folder) == ["many", "some"]
    done = imret(folder, "delete", "some", "--collection", "many", "--yes")
    assert done.returncode == 0
    assert names_in(folder) == []


def test_wrong_usage_is_told_apart() -> None:
    run = CliRunner().invoke
    for arguments, message in (
        (["nonesuch"], "no command 'nonesuch'"),
        (["import", "a", "--replace", "--merge"], "exclude each other"),
        (["delete"], "Missing argument 'NAME...'"),
        (["show"], "Missing argument 'NAME'"),
        (["export", "photos"], "Missing argument 'FILE'"),
        (["export", "a.parquet", "--collection"], "requires an argument"),
        (["rename", "--collection", "photos"], "Missing argument 'NEW'"),
        (["show", "photos", "--collection", "photos"], "--collection is what NAME is. Give one of them."),
    ):
        done = run(cli, ["collections", *arguments])
        assert done.exit_code == 2
        assert message in done.output


def test_every_command_has_help_with_an_example() -> None:
    commands = ["list", "show", "rename", "delete", "export", "import", "pull"]
    commands += ["backup", "restore", "check", "optimize"]
    help_text = CliRunner().invoke(cli, ["collections", "--help"]).output
    listed = re.findall(r"^  (\w+)  +\w", help_text.partition("Every day:")[2], re.MULTILINE)
    assert listed == commands
    for name in commands:
        shown = CliRunner().invoke(cli, ["collections", name, "--help"]).output
        assert "  Examples:\n    imret collections" in shown
