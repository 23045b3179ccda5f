"""`imret benchmark`: what is on standard output, what is told, exit codes, and what is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.errors import DataError
from tests.fakes.benchmark_files import (
    drawn_inquire,
    drawn_webdataset,
    inquire_row,
    picture_bytes,
    sample,
    write_parquet,
    write_tar,
)
from tests.fakes.pictures import draw_picture


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["benchmark", *map(str, arguments)])


def test_judged_lists_print_the_published_figures_with_intervals_and_how_they_were_made(
    tmp_path: Path, random_model: Path
) -> None:
    folder = drawn_inquire(tmp_path / "set")
    done = _run(folder, "--model", random_model, "--device", "cpu", "--k", 3, "--resamples", 100)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 queries, 15 pictures of ")
    assert lines[1].startswith(f"{random_model} (")
    assert "fp32 on cpu" in lines[1]
    assert [line.split()[0] for line in lines[4:]] == ["mAP", "nDCG", "MRR", "mAP@3", "nDCG@3", "MRR@3"]
    assert "95 % interval over queries" in lines[3]
    assert f"model {random_model}, cpu, fp32" in done.stderr


def test_captions_are_one_json_object_with_every_figure(tmp_path: Path, random_model: Path) -> None:
    folder = drawn_webdataset(tmp_path / "set")
    done = _run(folder, "--model", random_model, "--format", "json", "--resamples", 100)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert list(report["figures"]) == [
        f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)
    ]
    figure = report["figures"]["image_retrieval_recall@5"]
    assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
    assert (report["data"]["images"], report["data"]["queries"], report["data"]["left_out"]) == (12, 24, [])
    assert report["made"]["resamples"] == 100
    assert {"imret", "date", "seconds", "device", "precision", "seed"} <= set(report["made"])
    assert len(report["fingerprint"]) >= 8
    again = json.loads(_run(folder, "--model", random_model, "--format", "json", "--resamples", 100).stdout)
    assert again["figures"] == report["figures"]


def test_a_csv_beside_a_folder_of_pictures_is_enough(tmp_path: Path, random_model: Path) -> None:
    for seed in range(4):
        draw_picture(tmp_path / "photos" / f"{seed}.png", seed=seed)
    rows = [f"a thing,{seed}.png,{seed % 2}" for seed in range(4)]
    (tmp_path / "judged.csv").write_text("\n".join(["query,path,relevant", *rows]))
    done = _run(tmp_path / "judged.csv", "--images", tmp_path / "photos", "--model", random_model)
    assert done.exit_code == 0, done.output
    assert "1 query, 4 pictures" in done.stdout


def test_what_is_left_out_is_told_with_the_result_and_exit_code_1(tmp_path: Path, random_model: Path) -> None:
    members = [file for i in range(9) for file in sample(i, picture_bytes(tmp_path, i), [f"thing {i}"])]
    for i in range(0, 14, 2):
        members[i] = (members[i][0], b"no picture")
    done = _run(write_tar(tmp_path / "0.tar", members), "--model", random_model)
    assert done.exit_code == 1
    assert "2 captions, 2 pictures" in done.stdout
    assert "0.tar/s0000000: " in done.stderr
    assert "and 2 more, which --format json lists" in done.stderr
    assert "left out: 7. The figures are not those of the whole set" in done.stderr
    assert "Note: of 2 pictures every caption finds its own among the first 10" in done.stderr
    rows = [inquire_row("fox", n, int(n > 0), picture_bytes(tmp_path, n)) for n in range(3)]
    rows[2]["image"] = {"bytes": b"no picture", "path": None}
    done = _run(write_parquet(tmp_path / "a.parquet", rows), "--model", random_model, "--format", "json")
    assert done.exit_code == 1
    assert [one["path"] for one in json.loads(done.stdout)["data"]["left_out"]] == ["2"]


def test_names_from_a_tar_cannot_command_the_terminal(tmp_path: Path, random_model: Path) -> None:
    members = [("\x1b[2J\x07.jpg", b"no picture"), ("\x1b[2J\x07.txt", b"one")]
    members += sample(1, picture_bytes(tmp_path, 1), ["two"])
    done = _run(write_tar(tmp_path / "0.tar", members), "--model", random_model)
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert "\x07" not in done.output


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("gone",), "no such file or folder: 'gone'"),
        (("judged", "captions"), "two benchmarks"),
        (("judged", "--split", "validation"), "there are test"),
        (("captions", "--split", "train"), "there are test"),
        (("captions", "--images", "photos"), "--images is about CSV files"),
        (("captions", "--model", "smal"), "Did you mean --model small?"),
        (("captions", "--model", "./gone"), "'./gone' was not found"),
    ],
)
def test_what_cannot_be_run_is_told_before_a_model_is_looked_for(
    typed: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn_inquire(tmp_path / "judged")
    drawn_webdataset(tmp_path / "captions", n=2)
    done = _run(*typed)
    assert done.exit_code == 1
    assert message in str(done.exception)
    assert not isinstance(done.exception, DataError) or "Traceback" not in done.output


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom imret.cli.main import cli\n"
        "try:\n    cli.main(['benchmark', '--help'], prog_name='imret')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'open_clip', 'qdrant_client', 'PIL', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "INQUIRE-Rerank" in done.stdout


def test_what_is_misspelt_is_asked_about() -> None:
    done = CliRunner().invoke(cli, ["benchmrk"], prog_name="imret")
    assert done.exit_code == 2
    assert "Did you mean 'benchmark'?" in done.stderr
    done = _run("x", "--spilt", "test")
    assert done.exit_code == 2
    assert "--split" in done.stderr
