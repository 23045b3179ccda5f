"""`imret find FOLDER WORDS`: one command from a folder of pictures to the ones that fit."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.settings import store_dir
from imret.store import open_store
from tests.fakes.pictures import draw_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(8):
        draw_picture(tmp_path / "photos" / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    return tmp_path / "photos"


@pytest.fixture
def model(random_model: Path) -> list[str]:
    return ["--model", str(random_model)]


def imret(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def paths(*arguments: str | Path) -> list[str]:
    done = imret(*arguments, "--format", "json", "--limit", "100")
    hits: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(hit["path"] for hit in hits)


def files(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*.png")))


@pytest.mark.parametrize("command", [["find"], []])
def test_a_folder_is_ingested_and_searched_in_one_command(
    command: list[str], photos: Path, model: list[str]
) -> None:
    first = imret(*command, photos, "a red car", *model)
    assert first.stdout.splitlines()[0].split()[0] == "1"
    assert len(first.stdout.splitlines()) == 8
    assert f"{photos}: 8 pictures, to ingest first; Ctrl-C keeps what is done" in first.stderr
    assert "photos: 8 added" in first.stderr
    again = imret(*command, photos, "a red car")
    assert again.stdout == first.stdout
    assert "to ingest" not in again.stderr
    assert [line.split()[0] for line in again.stderr.splitlines()] == ["store"]
    assert "unchanged" not in again.stderr
    assert paths(*command, photos, "a red car") == files(photos)


def test_what_came_is_found_and_what_changed_is_renewed(photos: Path, model: list[str]) -> None:
    imret("find", photos, "car", *model)
    draw_picture(photos / "new.png", seed=50)
    assert paths("find", photos, "car", "--no-ingest") == files(photos / "aves") + files(photos / "fungi")
    done = imret("find", photos, "car")
    assert "1 of 9 pictures not in the collection yet, to ingest first" in done.stderr
    assert paths("find", photos, "car") == files(photos)


def test_only_pictures_of_that_folder_are_found(photos: Path, model: list[str], tmp_path: Path) -> None:
    other = tmp_path / 'oth"er, one'
    draw_picture(other / "x.png", seed=60)
    imret("find", photos, "car", *model)
    assert paths("find", other, "car") == files(other)
    assert paths("find", photos, "car") == files(photos)
    assert paths("find", photos, "car", "--category", "fungi") == files(photos / "fungi")
    assert len(paths("search", "car")) == 9


def test_a_folder_within_one_that_was_ingested_is_searched_alone(photos: Path, model: list[str]) -> None:
    deep = photos / "aves" / "a, b" / 'say "x"'
    draw_picture(deep / "deep.png", seed=70)
    imret("ingest", photos, *model)
    draw_picture(deep / "new.png", seed=71)
    done = imret("find", deep, "car")
    assert f"{deep} is a part of {photos}, which was ingested" in done.stderr
    assert paths("find", deep, "car") == files(deep)
    assert paths("find", photos / "aves", "car") == files(photos / "aves")
    (photos / "nothing").mkdir()
    assert "no pictures in" in str(imret("find", photos / "nothing", "car", code=1).exception)
    with open_store(str(store_dir())) as store, closing(store.open("photos")) as opened:
        assert opened.facet("source") == {str(photos): 10}  # nothing is stored twice


def test_a_flat_pile_stays_one(photos: Path, model: list[str]) -> None:
    imret("ingest", photos, "--no-categories", *model)
    draw_picture(photos / "aves" / "new.png", seed=80)
    imret("find", photos, "car")
    with open_store(str(store_dir())) as store, closing(store.open("photos")) as opened:
        assert (opened.count(), opened.facet("category")) == (9, {})


def test_wrong_usage_is_refused_before_anything_is_ingested(
    photos: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "imret find FOLDER WORDS" in imret(photos, code=2).stderr
    assert "--per-group is for --group-by" in imret(photos, "car", "--per-group", "2", code=2).stderr
    assert "cannot read the condition" in imret(photos, "car", "--where", "x", code=2).stderr
    assert "no such folder" in str(imret("find", "nowhere", "car", code=1).exception)
    assert "nothing of" in str(imret("ingest", photos, *model) and _never_ingested(tmp_path))
    assert "no command 'nowhere'" in imret("nowhere", "car", code=2).stderr


def _never_ingested(tmp_path: Path) -> BaseException | None:
    draw_picture(tmp_path / "unseen" / "x.png", seed=90)
    return imret("find", tmp_path / "unseen", "car", "--no-ingest", code=1).exception


def test_a_slip_of_a_command_is_not_taken_for_a_folder(
    photos: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    photos.rename(tmp_path / "collection")
    said = imret("collection", "list", code=2).stderr
    assert "Did you mean 'collections'? For the folder: imret ./collection WORDS" in said
    assert not store_dir().exists()
    assert len(paths("./collection", "car", *model)) == 8
    draw_picture(tmp_path / "search" / "x.png", seed=95)  # called as a command is
    assert paths("./search", "car") == files(tmp_path / "search")


def test_a_folder_that_has_moved_is_settled_by_an_ingest(
    photos: Path, model: list[str], tmp_path: Path
) -> None:
    imret("find", photos, "car", *model)
    photos.rename(tmp_path / "moved")
    said = str(imret("find", tmp_path / "moved", "car", code=1).exception)
    assert "Has it moved there?" in said
    assert said.endswith("(Settle that with imret ingest; this command goes on from there.)")
    imret("ingest", tmp_path / "moved", "--moved-from", photos)
    assert paths("find", tmp_path / "moved", "car") == files(tmp_path / "moved")


def test_of_no_hits_in_a_folder_the_folder_is_what_is_named(
    photos: Path, model: list[str], tmp_path: Path
) -> None:
    draw_picture(tmp_path / "birds" / "aves" / "9.png", seed=9)
    imret("ingest", photos, *model)
    done = imret("find", tmp_path / "birds", "car", "--category", "fungi")
    assert done.stdout == ""
    assert "no hits: this folder leaves none of 4 pictures; without it the best is" in done.stderr
    assert "--category fungi leaves none of 1 picture" in done.stderr
    assert "source=" not in done.stderr
