"""`imret ingest`, typed as people do: what it warns of, and the report that it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.errors import DataError, ModelError
from imret.models.encoder import Encoder
from imret.models.lazy_encoder import LazyEncoder
from ingest.report import Report
from ingest.summary import summarise
from tests.fakes.pictures import draw_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures in two categories."""
    for seed, category in enumerate(("aves", "aves", "fungi")):
        draw_picture(tmp_path / "photos" / category / f"{seed}.png", seed=seed)
    return tmp_path / "photos"


def imret_ingest(photos: Path, model: Path, *arguments: str) -> Result:
    db = str(photos.parent / "db")
    command = ["ingest", str(photos), "--model", str(model), "--db", db, *arguments]
    return CliRunner().invoke(cli, command)


def test_folders_that_are_named_like_splits_are_told_where_they_become_categories(
    photos: Path, random_model: Path
) -> None:
    assert "Warning" not in imret_ingest(photos, random_model).stderr
    (photos / "aves").rename(photos / "train")
    (photos / "fungi").rename(photos / "test")
    done = imret_ingest(photos, random_model)
    assert done.exit_code == 0, done.output
    assert f"Warning: test and train in {photos} look like the splits of one data set" in done.stderr
    assert "become categories; to have none: --no-categories" in done.stderr
    assert "Warning" not in imret_ingest(photos, random_model, "--no-categories").stderr


def test_what_was_found_is_told_before_a_model_is_looked_for(photos: Path) -> None:
    done = imret_ingest(photos, photos / "no-model")
    assert isinstance(done.exception, ModelError)
    assert done.stderr.startswith("found 3 pictures in 2 categories: aves 2, fungi 1\n")
    done = imret_ingest(photos / "aves", photos / "no-model", "--collection", "birds")
    where = f"--collection birds --db {photos / 'db'}"
    assert f"If 'aves' is a category itself, as fungi beside it: imret ingest {photos} {where}" in done.stderr


def test_the_rate_leaves_out_the_loading_of_the_model(
    photos: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Encoder.load_image_tower

    def slowly(self: Encoder) -> None:
        time.sleep(1)
        load(self)

    monkeypatch.setattr(Encoder, "load_image_tower", slowly)
    report = photos.parent / "r.json"
    done = imret_ingest(photos, random_model, "--report", str(report))
    told = json.loads(report.read_text())
    assert told["seconds"] > 1 > told["encoding_s"] > 0
    assert told["images_per_s"] > 3
    assert told["categories"] == {"aves": 2, "fungi": 1}
    assert re.search(r"photos: 3 added, 0 skipped in \d+\.\d s; 3 pictures embedded\n", done.stderr)
    again = imret_ingest(photos, random_model)
    assert re.search(r"photos: 0 added, 3 unchanged, 0 skipped in \d+\.\d s\n", again.stderr)


def test_a_rate_is_told_where_it_was_measured_over_some_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("photos", "db", "embedded", "m", "f", ["/photos"], added=1200, encoded=1200)
    report.encoding_s, report.seconds = 60.0, 100.0
    summarise(report, None, check_content=False, where="")
    told = "in 100.0 s; 1,200 pictures embedded in 60 s, 20.0 a second, once the model was loaded"
    assert told in capsys.readouterr().err


# ---- The report ------------------------------------------------------------------------------------------


def test_a_report_that_could_not_be_written_is_refused_before_the_work(
    photos: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LazyEncoder, "__init__", lambda *_, **__: pytest.fail("a model was looked for"))
    picture = photos / "fungi" / "2.png"
    before = picture.read_bytes()
    for file, reason in (
        (photos.parent, "it is a folder"),
        (photos / "no" / "r.json", "its folder does not exist"),
        (photos / ("x" * 300), "File name too long"),
        (picture, "over what is read as"),
    ):
        done = imret_ingest(photos, random_model, "--report", str(file))
        assert isinstance(done.exception, DataError)
        assert "--report" in str(done.exception)
        assert reason in str(done.exception)
    assert picture.read_bytes() == before
    assert not (photos.parent / "db").exists()


def test_a_report_goes_through_links_and_into_pipes_and_is_a_usual_file_otherwise(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "usual").touch()
    (tmp_path / "link.json").symlink_to("real.json")
    for name in ("r.json", "link.json"):
        done = imret_ingest(photos, random_model, "--report", str(tmp_path / name))
        assert done.exit_code == 0, done.output
    assert (tmp_path / "link.json").is_symlink()
    for name in ("r.json", "real.json"):
        assert json.loads((tmp_path / name).read_text())["model"] == str(random_model)
        assert (tmp_path / name).stat().st_mode == (tmp_path / "usual").stat().st_mode
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert imret_ingest(photos, random_model, "--report", str(tmp_path / "pipe")).exit_code == 0
    reader.join()
    assert json.loads(read[0])["unchanged"] == 3
    assert (tmp_path / "pipe").is_fifo()


def test_a_report_to_standard_output_is_all_that_is_there(photos: Path, random_model: Path) -> None:
    command = [sys.executable, "-m", "imret", "ingest", str(photos), "--model", str(random_model)]
    for name in ("-", "/dev/stdout"):
        done = subprocess.run(
            [*command, "--db", str(photos.parent / "db"), "--report", name], capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["skipped"] == 0
        assert b"photos: 3 added" in done.stderr or b"3 unchanged" in done.stderr


def test_what_was_done_is_told_also_where_the_report_is_lost(photos: Path, random_model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # its reader is gone
    done = imret_ingest(photos, random_model, "--report", f"/dev/fd/{writing}")
    os.close(writing)
    assert "photos: 3 added" in done.stderr
    assert isinstance(done.exception, DataError)
    assert f"cannot write the report '/dev/fd/{writing}': Broken pipe" in str(done.exception)


# ---- What is left out ------------------------------------------------------------------------------------


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"of another kind")


def test_what_is_left_out_is_told_by_kind(photos: Path, random_model: Path) -> None:
    touch(*(photos / "aves" / name for name in ("1.NEF", "2.nef", "3.cr2", "a.psd", ".hidden.jpg")))
    touch(photos / "@Recycle" / "aves" / "1.jpg")
    (photos / "IMG_0001").write_bytes((photos / "fungi" / "2.png").read_bytes())
    library = photos / "My Photos.photoslibrary"
    touch(library / "originals" / "0" / "1.jpg")
    report = photos.parent / "r.json"
    done = imret_ingest(photos, random_model, "--report", str(report), "--strict")
    assert done.exit_code == 0, done.output  # nothing was skipped
    assert "photos: 3 added, 0 skipped" in done.stderr
    assert (
        "left out: 3 RAW (.nef, .cr2), 1 system folder, 1 without a suffix, 1 photo library, 1 .psd"
        in done.stderr
    )
    assert f"of these {photos}/IMG_0001 holds a picture by its content" in done.stderr
    where = f"--db {photos.parent / 'db'}"
    assert f"for the originals of that library: imret ingest '{library}/originals' {where}" in done.stderr
    told = json.loads(report.read_text())
    assert (told["ignored"]["hidden"], told["ignored"]["not a picture by its name (*.nef)"]) == (1, 2)
    assert (told["misnamed"], told["photo_libraries"]) == ([f"{photos}/IMG_0001"], [str(library)])


def test_a_folder_without_pictures_says_what_is_in_it_and_does_not_stop_the_others(
    photos: Path, random_model: Path
) -> None:
    raw, bare = photos.parent / "raw", photos.parent / "bare"
    touch(*(raw / f"{n}.NEF" for n in range(3)))
    bare.mkdir()
    (photos / "fungi" / "2.png").rename(bare / "photo.png_large")
    said = f"no pictures in '{raw}', but what is left out: 3 RAW (.nef). Expected files such as .jpg"
    alone = imret_ingest(raw, random_model)
    assert isinstance(alone.exception, DataError)
    assert said in str(alone.exception)
    done = imret_ingest(raw, random_model, str(photos), str(bare))
    assert "photos: 2 added, 0 skipped" in done.stderr
    assert isinstance(done.exception, DataError)
    assert said in str(done.exception)
    assert f"no pictures in '{bare}', but what is left out: 1 .png_large." in str(done.exception)
    assert f"{bare}/photo.png_large holds a picture by its content: give such files" in str(done.exception)
    library = photos.parent / "Pictures" / "My.photoslibrary"
    touch(library / "originals" / "0" / "1.heic")
    alone = imret_ingest(library.parent, random_model)
    assert f"1 photo library. For the originals of the library: imret ingest {library}/originals --db" in str(
        alone.exception
    )
    # One that has lost its pictures is kept from --prune, and does not stop the others either.
    for file in (photos / "aves").iterdir():
        file.rename(raw / file.name)
    done = imret_ingest(raw, random_model, str(photos), "--prune")
    assert "photos: 0 added, 2 moved, 0 skipped" in done.stderr or "photos: 2 added" in done.stderr
    assert f"'{photos}' holds no picture any more, but the collection holds 2 from it" in str(done.exception)


def test_a_run_that_shall_be_spread_is_refused_what_cannot_be(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw_picture(photos / "a.png")
    base = ["ingest", str(photos), "--db", str(tmp_path / "db")]
    done = CliRunner().invoke(cli, [*base, "--ray", "local"])
    assert "--ray needs a store that other machines can reach" in str(done.exception)
    assert "--db http://HOST:6333" in str(done.exception)
    done = CliRunner().invoke(cli, [*base, "--ray", "ray://head:10001"])
    assert "ray job submit --address http://head:8265 -- imret ingest SOURCE" in str(done.exception)
    done = CliRunner().invoke(cli, [*base, "--actors", "2"])
    assert done.exit_code == 2
    assert "--actors and --gpus-per-actor are for --ray" in done.stderr
