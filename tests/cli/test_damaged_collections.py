"""What every command says of a damaged collection, and that the commands which it names end the damage."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.errors import ImretError
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[Path]:
    """A folder with pictures, a store of two collections of them, and an export of one."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as name:
        folder = Path(name)
        for seed in range(4):
            draw_picture(folder / "some photos" / "fungi" / f"{seed}.png", seed=seed)
        for collection in ("photos", "whole"):
            at = ["--collection", collection, "--db", str(folder / "db")]
            source = str(folder / "some photos")
            done = run("ingest", source, "--model", str(random_model), "--device", "cpu", *at)
            assert done.exit_code == 0, done.output
        done = run("collections", "export", "photos", str(folder / "photos.parquet"), "--db", at[-1])
        assert done.exit_code == 0, done.output
        yield folder


@pytest.fixture
def db(filled: Path) -> Iterator[Path]:
    shutil.copytree(filled / "db", filled / "copy")
    yield filled / "copy"
    shutil.rmtree(filled / "copy")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def refused(*arguments: str) -> str:
    """Return the error that a command ends with; it is one that a user can mend."""
    done = run(*arguments)
    assert isinstance(done.exception, ImretError), (arguments, done.output, done.exception)
    return str(done.exception)


def version_in(collection: Path) -> Path:
    return next(path for path in collection.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name))


def lose_a_file(collection: Path) -> None:
    next(collection.rglob("payload_storage/page_0.dat")).unlink()


def empty_live_json(collection: Path) -> None:
    os.truncate(collection / "live.json", 0)


def lose_identity(collection: Path) -> None:
    (version_in(collection) / "identity.json").unlink()


def make_version_a_file(collection: Path) -> None:
    version = version_in(collection)
    shutil.rmtree(version)
    version.write_bytes(b"")


def make_lock_a_folder(collection: Path) -> None:
    lock = collection / f"{version_in(collection).name}.lock"
    lock.unlink(missing_ok=True)
    (lock / "x").mkdir(parents=True)


DAMAGED: tuple[Callable[[Path], None], ...] = (
    lose_a_file,
    empty_live_json,
    lose_identity,
    make_version_a_file,
    make_lock_a_folder,
)


@pytest.mark.parametrize("harm", DAMAGED)
def test_each_command_names_the_damage_and_its_repair_which_works(
    db: Path, harm: Callable[[Path], None], random_model: Path
) -> None:
    at = ["--db", str(db)]
    harm(db / "photos")
    listed = run("collections", *at)
    assert listed.exit_code == 0, listed.output
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["photos", "damaged"], ["whole", "4"]]
    assert f"what mends it: imret collections show photos --db {db}" in listed.stderr
    photos, whole = map(json.loads, run("collections", *at, "--format", "json").stdout.splitlines())
    assert (photos["state"], photos["images"], photos["disk_bytes"]) == ("damaged", None, None)
    assert photos["reason"].startswith("collection 'photos' in")
    assert (whole["state"], whole["images"], whole["reason"]) == ("complete", 4, None)
    info = run("info", *at)
    assert info.exit_code == 0
    assert "damaged      collection 'photos'" in info.stdout
    assert "images       4" in info.stdout
    for command in (
        ["collections", "show", "photos"],
        ["search", "a red circle", "--model", str(random_model)],
        ["sources"],
        ["collections", "check", "photos"],
        ["collections", "export", "photos", str(db / "x.parquet")],
        ["collections", "optimize", "photos"],
        ["ingest", str(db.parent / "some photos"), "--model", str(random_model)],
    ):
        said = refused(*command, *at)
        assert re.match("collection 'photos' in .* is damaged: ", said), (command, said)
        assert f"imret collections delete photos --yes --db {db}" in said, command
    found = run("search", "a red circle", "--collection", "whole", "--format", "json", *at)
    assert found.exit_code == 0, found.output

    delete, again, restore = [line.strip() for line in said.splitlines()[-3:]]
    assert "(damaged)" in run(*shlex.split(delete)[1:]).stderr
    again = again.replace("FOLDER", f"'{db.parent}/some photos'")
    if "--model" not in again:
        again += f" --model {random_model}"
    done = run(*shlex.split(again)[1:], "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert run("collections", *at).stdout.splitlines()[1].split()[:2] == ["photos", "4"]
    run(*shlex.split(delete)[1:])
    done = run(*shlex.split(restore.replace("FILE", str(db.parent / "photos.parquet")))[1:])
    assert done.exit_code == 0, done.output
    assert run("collections", *at).stdout.splitlines()[1].split()[:2] == ["photos", "4"]


def test_a_backup_that_is_put_back_ends_the_damage(db: Path, filled: Path) -> None:
    lose_a_file(db / "photos")
    shutil.rmtree(db / "photos")
    shutil.copytree(filled / "db" / "photos", db / "photos")
    rows = [line.split()[:2] for line in run("collections", "--db", str(db)).stdout.splitlines()]
    assert rows[1:] == [["photos", "4"], ["whole", "4"]]


def test_what_a_kill_left_is_listed_shown_deleted_and_ingested(db: Path, random_model: Path) -> None:
    at = ["--db", str(db)]
    (db / "photos" / "live.json").unlink()  # as if it had never been made live
    (db / "removed").mkdir()  # what an older imret left of a deletion that was killed
    (db / "removed" / f"{version_in(db / 'photos').name}.lock").write_bytes(b"")
    listed = run("collections", *at)
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["photos", "incomplete"],
        ["removed", "incomplete"],
        ["whole", "4"],
    ]
    why = "an ingest, an import or a deletion was cut short; run it again"
    assert f"photos: {why}; or delete what it left: " in listed.stderr
    assert f"imret collections delete removed --db {db}" in listed.stderr
    row = json.loads(run("collections", *at, "--format", "json").stdout.splitlines()[0])
    assert (row["state"], row["model"]) == ("incomplete", str(random_model))
    assert f"incomplete   {why}" in run("info", *at).stdout
    shown = refused("collections", "show", "removed", *at)
    assert f"imret collections delete removed --db {db}" in shown
    assert "deleted removed (not complete)" in run("collections", "delete", "removed", "--yes", *at).stderr
    source = str(db.parent / "some photos")
    done = run("ingest", source, "--model", str(random_model), "--device", "cpu", *at)
    assert done.exit_code == 0, done.output
    assert [line.split()[:2] for line in run("collections", *at).stdout.splitlines()[1:]] == [
        ["photos", "4"],
        ["whole", "4"],
    ]
