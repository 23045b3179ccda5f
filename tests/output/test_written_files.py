"""What a command cannot write is refused before its work, and so is what would overwrite what it reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imret.errors import DataError
from imret.output.written_files import check_output_folder, check_outputs
from tests.fakes.pictures import draw_picture


def test_an_option_is_named_with_its_file_and_what_is_wrong(tmp_path: Path) -> None:
    check_outputs({"--report": None, "--html": str(tmp_path / "a.html")})
    for file, reason in ((tmp_path, "it is a folder"), (tmp_path / "no" / "a", "its folder does not exist")):
        with pytest.raises(DataError, match=f"cannot write '{file}', which --report names: {reason}"):
            check_outputs({"--report": str(file)})
    with pytest.raises(DataError, match=r"--html - would be standard output.*--html ./-"):
        check_outputs({"--html": "-"})


def test_two_outputs_are_not_one_file_however_it_is_spelled(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    file = tmp_path / "file"
    file.touch()
    os.link(file, tmp_path / "other name")
    for one, two in (("new", "new"), ("new", "./new"), ("new", "link"), ("file", "other name")):
        with pytest.raises(DataError, match="--html and --json name the same file"):
            check_outputs({"--html": f"{tmp_path}/{one}", "--json": f"{tmp_path}/{two}"})
    check_outputs({"--html": f"{tmp_path}/new", "--json": f"{tmp_path}/file"})
    check_outputs({"--html": "/dev/null", "--json": "/dev/null"})


def test_an_output_is_not_what_is_read(tmp_path: Path) -> None:
    photo = draw_picture(tmp_path / "photos" / "aves" / "a.png")
    names = tmp_path / "names.csv"
    names.touch()
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "open_clip_config.json"
    config.touch()
    (tmp_path / "link").symlink_to(names)
    inputs = {
        "--names": names,
        "DATA": tmp_path / "photos",
        "--model": str(tmp_path / "model"),
        "--train": None,
    }
    for file, name in (
        (names, "--names"),
        (tmp_path / "link", "--names"),
        (photo, "DATA"),
        (tmp_path / "photos" / "new.png", "DATA"),
        (config, "--model"),
    ):
        with pytest.raises(DataError, match=f"--html would write '{file}' over what is read as {name}"):
            check_outputs({"--html": str(file)}, inputs=inputs)
    for file in (tmp_path / "photos" / "report.json", tmp_path / "model" / "report.html"):
        check_outputs({"--html": str(file)}, inputs=inputs)
        file.touch()
        check_outputs({"--html": str(file)}, inputs=inputs)  # a second run


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for folder in ("file", "file/in/it", "link"):
        with pytest.raises(
            DataError, match=f"'{tmp_path}/{folder}', which --copy-to names: .*file' is a file"
        ):
            check_output_folder("--copy-to", f"{tmp_path}/{folder}")
    check_output_folder("--copy-to", tmp_path / "new" / "deep")
    check_output_folder("--copy-to", tmp_path)
    check_output_folder("--copy-to", None)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_picture_is_not_written_over(tmp_path: Path) -> None:
    draw_picture(tmp_path / "bird.png", seed=0)
    (tmp_path / "link.html").symlink_to(tmp_path / "bird.png")
    for file in ("bird.png", "link.html"):
        with pytest.raises(DataError, match="--html would write over the picture"):
            check_outputs({"--html": str(tmp_path / file)})
    check_outputs({"--html": str(tmp_path / "new.png")})
