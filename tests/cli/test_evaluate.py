"""`imret evaluate`: what is on standard output, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret import Encoder
from imret.cli.evaluate import _labels
from imret.cli.main import cli
from imret.errors import DataError
from imret.models.encoder import TextTruncated
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model, write_training_record
from tests.fakes.pictures import draw_picture


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(12):
        draw_picture(folder / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory, photos: Path, random_model: Path) -> str:
    folder = str(tmp_path_factory.mktemp("db"))
    with open_store(folder) as store:
        ingest(store, [FolderSource(photos)], encoder=Encoder(str(random_model), device="cpu"))
    return folder


def test_json_is_all_that_is_on_stdout_also_where_names_are_no_unicode(
    tmp_path: Path, random_model: Path
) -> None:
    for seed in range(6):
        draw_picture(tmp_path / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    odd = os.fsencode(tmp_path / "fungi") + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write(b"no picture")
    command = [sys.executable, "-m", "imret", "evaluate", str(tmp_path), "--model", str(random_model)]
    done = subprocess.run([*command, "--json", "-"], capture_output=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.decode("utf-8"))
    assert report["data"]["images"] == 6
    assert os.fsencode(report["data"]["skipped"][0]["path"]) == b"fungi/caf\xe9.png"
    assert f"model {random_model}".encode() in done.stderr


def test_training_pictures_give_a_row_of_concepts_too(
    tmp_path: Path, photos: Path, random_model: Path
) -> None:
    for seed in range(10):
        draw_picture(tmp_path / "train" / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=50 + seed)
    options = ["--train", tmp_path / "train", "--model", random_model, "--json", "-"]
    done = _run(photos, *map(str, options))
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["baselines"]
    assert [row["name"] for row in rows][-1] == "concepts"
    assert 0 <= rows[-1]["zero_shot"]["top1"] <= 1


def test_help_is_instant_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom imret.cli.main import cli\n"
        "try:\n    cli.main(['evaluate', '--help'], prog_name='imret')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'open_clip', 'qdrant_client', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--also" in done.stdout


def test_text_is_on_stdout_and_files_are_written(photos: Path, random_model: Path, tmp_path: Path) -> None:
    page, file = tmp_path / "r.html", tmp_path / "r.json"
    model = str(random_model)
    done = _run(
        photos, "--model", model, "--baseline", model, "--also", model, "--html", page, "--json", file
    )
    assert done.exit_code == 0, done.output
    for row in ("baseline", "model", random_model.name):
        assert f"\n{row} " in done.stdout
    assert "difference to the baseline" in done.stdout
    assert "[+0.000, +0.000]" in done.stdout
    assert "Wrote" in done.stderr
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(json.loads(file.read_text())["models"]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give DATA"),
        (["--collection", "photos", "--html", "x.html"], "--html: needs DATA"),
        (["--collection", "--baseline", "m", "--also", "n"], "--baseline, --also: needs DATA"),
        (["data", "--resamples", "3"], "resamples"),
        (["data", "--format", "csv"], "No such option"),
        (["data", "--db", "store"], "--db is where the collection"),
        (["--collection", "--resamples", "200"], "--resamples is about the pictures in DATA"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], said: str) -> None:
    done = _run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "__init__", lambda *_: pytest.fail("loaded"))
    done = _run(photos, "--html", tmp_path / "no" / "r.html")
    assert isinstance(done.exception, DataError)
    assert "its folder does not exist" in str(done.exception)
    done = _run(photos, "--json", tmp_path)
    assert isinstance(done.exception, DataError)
    assert "it is a folder" in str(done.exception)
    done = _run(photos, "--json", tmp_path / "r", "--html", tmp_path / "." / "r")
    assert isinstance(done.exception, DataError)
    assert "--html and --json name the same file" in str(done.exception)
    (tmp_path / "names.csv").write_text("category,name\naves,owl\n")
    done = _run(photos, "--names", tmp_path / "names.csv", "--json", tmp_path / "names.csv")
    assert isinstance(done.exception, DataError)
    assert "over what is read as --names" in str(done.exception)


def test_reports_go_through_links_and_keep_the_permissions_of_what_they_replace(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    for name in ("r.json", "r.html"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o604)
        (tmp_path / f"link.{name}").symlink_to(name)
    done = _run(
        *(photos, "--model", random_model, "--resamples", "100"),
        *("--json", tmp_path / "link.r.json", "--html", tmp_path / "link.r.html"),
    )
    assert done.exit_code == 0, done.output
    for name in ("r.json", "r.html"):
        assert (tmp_path / f"link.{name}").is_symlink()
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o604
        assert (tmp_path / name).stat().st_size > 1000


def test_inputs_that_are_not_there_are_told_before_a_model_is_looked_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "__init__", lambda *_, **__: pytest.fail("a model was looked for"))
    (tmp_path / "c.csv").write_text("path,caption\na.jpg,a bird, red\n")
    for arguments, says in (
        ((tmp_path / "no",), "does not exist"),
        ((photos, "--retention", tmp_path / "no.csv"), "No such file"),
        ((photos, "--retention", tmp_path / "c.csv"), "3 cells in line 2"),
        ((photos, "--train", tmp_path / "no"), "does not exist"),
    ):
        done = _run(*arguments)
        assert isinstance(done.exception, DataError)
        assert says in str(done.exception)


def test_a_collection_is_measured_with_its_own_model(db: str) -> None:
    done = _run("--collection", "--db", db)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("collection photos: 12 pictures")
    assert "through the index" in done.stdout


@pytest.mark.parametrize(
    "verb", [["evaluate", "--collection", "nope"], ["search", "x", "--collection", "nope"]]
)
def test_a_collection_that_is_not_there_is_refused_before_the_default_model_is_fetched(
    db: str, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "__init__", lambda *_, **__: pytest.fail("loaded"))
    done = CliRunner().invoke(cli, [*verb, "--db", db])
    assert isinstance(done.exception, DataError)
    assert "no collection 'nope'" in str(done.exception)


def test_a_folder_beside_a_collection_is_measured_with_the_collections_model(
    db: str, photos: Path, random_model: Path, tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    done = _run(photos, "--collection", "photos", "--db", db, "--json", "-", "--html", page)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["models"][0]["model_id"] == str(random_model)
    assert report["collection"]["exact"]["map"] == pytest.approx(
        report["models"][0]["text_to_image"]["macro"]["map"], abs=2e-4
    )
    assert "Collection photos" in page.read_text(encoding="utf-8")


def test_names_come_from_the_file_then_from_the_model_and_the_model_says_so(
    photos: Path, tmp_path: Path
) -> None:
    model = write_random_model(tmp_path / "tuned", seed=0)
    categories = {"aves": {"called": "owl"}, "fungi": {"called": "toadstool"}}
    write_training_record(model, {"data": {"categories": categories}})
    names = tmp_path / "names.csv"
    names.write_text("category,name\nfungi,morel\navse,bird\n")

    done = _run(photos, "--model", model, "--json", "-")
    asked = {c: about["called"] for c, about in json.loads(done.stdout)["data"]["categories"].items()}
    assert asked == {"aves": "owl", "fungi": "toadstool"}
    assert "tuned with: aves = owl, fungi = toadstool (--names overrides)" in done.stderr

    done = _run(photos, "--model", model, "--json", "-", "--names", names)
    asked = {c: about["called"] for c, about in json.loads(done.stdout)["data"]["categories"].items()}
    assert asked == {"aves": "owl", "fungi": "morel"}
    assert "--names names 1 category without pictures, the first 'avse'; there are aves, fungi" in done.stderr


def test_splits_and_numbers_that_are_measured_as_categories_are_told(
    random_model: Path, tmp_path: Path
) -> None:
    for seed, category in enumerate(("train", "val", "7", "fungi")):
        draw_picture(tmp_path / "photos" / category / "a.png", seed=seed)
    done = _run(tmp_path / "photos", "--model", random_model, "--resamples", "100")
    assert done.exit_code == 0, done.output
    assert "are named like splits of a data set: train, val. They are asked for as that" in done.stderr
    assert "are named like numbers: 7. They are asked for as that, 'a photo of a 7.'" in done.stderr
    (tmp_path / "names.csv").write_text("category,name\ntrain,train\nval,valve\n7,sevenfold\n")
    done = _run(
        *(tmp_path / "photos", "--model", random_model, "--resamples", "100"),
        *("--names", tmp_path / "names.csv"),
    )
    assert "are named like" not in done.stderr


def test_captions_that_were_cut_give_one_warning(photos: Path, random_model: Path, tmp_path: Path) -> None:
    lines = ["path,caption"]
    for i in range(11):
        draw_picture(tmp_path / f"{i}.png", seed=i)
        lines.append(f"{i}.png,{'long ' * 100}{i}")
    (tmp_path / "c.csv").write_text("\n".join(lines))
    with pytest.warns(TextTruncated, match="11 of 11 captions are longer than the model reads") as caught:
        done = _run(photos, "--model", random_model, "--retention", tmp_path / "c.csv")
    assert done.exit_code == 0, done.output
    assert len(caught) == 1
    assert "kept@10" in done.stdout


def test_models_of_one_name_get_rows_of_their_own() -> None:
    assert _labels(("runs/a/best", "runs/b/best/", "ViT-B-32/openai", "x/model", "x/linear probe")) == {
        "best": "runs/a/best",
        "best 2": "runs/b/best/",
        "openai": "ViT-B-32/openai",
        "model 2": "x/model",
        "linear probe 2": "x/linear probe",
    }
