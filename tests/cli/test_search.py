"""`imret search` and `imret similar`, typed as people do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from imret import Encoder
from imret.cli.main import cli
from imret.errors import DataError, ImageError
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("search")
    for seed in range(12):
        draw_picture(folder / "photos" / ("fungi", "aves")[seed % 2] / f"{seed:02}.png", seed=seed)
    with open_store(str(folder / "db")) as store:
        encoder = Encoder(random_model, device="cpu", precision="fp32")
        ingest(store, [FolderSource(folder / "photos")], encoder=encoder)
    return folder


def imret(db: Path, *arguments: str) -> Result:
    command, *others = arguments
    return CliRunner().invoke(cli, [command, "--db", str(db / "db"), *others], catch_exceptions=False)


def rows(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_terms_are_arguments_of_their_own(db: Path) -> None:
    picture = str(db / "photos" / "aves" / "01.png")
    hits = rows(imret(db, "search", "wing", "+", picture, "-", "2:fruit", "--format", "json"))
    other = rows(imret(db, "search", "--format", "json", "wing", "+", picture, "-", "2:fruit"))
    assert hits == other
    assert len(hits) == 10
    assert picture not in [row["path"] for row in hits]
    with_it = rows(
        imret(db, "search", "wing", "+", picture, "--include-self", "-n", "12", "--format", "json")
    )
    assert picture in [row["path"] for row in with_it]


def test_the_number_of_hits_goes_by_the_names_that_people_know(db: Path) -> None:
    for name in ("--limit", "-n", "--top", "-t"):
        assert len(imret(db, "search", "wing", name, "3").stdout.splitlines()) == 3


def test_words_need_no_quotes(db: Path) -> None:
    assert imret(db, "search", "a", "red", "wing").stdout == imret(db, "search", "a red wing").stdout


def test_similar_is_a_search_by_a_file_an_id_or_a_stored_path(db: Path) -> None:
    picture = str(db / "photos" / "aves" / "01.png")
    hits = rows(imret(db, "similar", picture, "--format", "json", "-n", "3"))
    (itself, *_) = rows(imret(db, "similar", picture, "--format", "json", "--include-self"))
    assert itself["path"] == picture
    for name in (str(itself["id"]), "stored:aves/01.png", f"file://{picture}"):
        assert rows(imret(db, "similar", name, "--format", "json", "-n", "3")) == hits
    with pytest.raises(ImageError, match=r"the picture 'gone' does not exist"):
        imret(db, "similar", "gone")


def test_stored_pictures_are_searched_by_where_the_model_is_gone(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = imret(db, "similar", "stored:aves/01.png").stdout

    def gone(*_: object, **__: object) -> None:
        raise AssertionError("a model was looked for")

    monkeypatch.setattr("imret.retrieval.collection_encoder.collection_encoder", gone)
    assert imret(db, "similar", "stored:aves/01.png").stdout == expected


def test_filters_hold_together(db: Path) -> None:
    hits = rows(
        imret(
            db,
            "search",
            "wing",
            "--not-category",
            "fungi",
            "--where",
            "path!=aves/01.png",
            "--format",
            "json",
        )
    )
    assert sorted(str(row["path"])[-11:] for row in hits) == [f"aves/{i:02}.png" for i in (3, 5, 7, 9, 11)]
    assert rows(imret(db, "search", "wing", "--where", "width>64", "--format", "json")) == []
    for arguments, says in (
        (("--category", "avse"), r"no category 'avse'.*Did you mean 'aves'"),
        (("--not-category", "avse"), r"no category 'avse'"),
        (("--where", "category=avse"), r"no category 'avse'"),
        (("--offset", "12"), r"offset 12 is past the end: 12 pictures"),
    ):
        with pytest.raises(DataError, match=says):
            imret(db, "search", "wing", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", ""], "the query is empty"),
        (["search"], "the query is empty"),
        (["search", "wing", "+"], "the query ends with '+'"),
        (["search", "0:wing"], "no number above 0"),
        (["search", "wing", "--where", "wdth=3"], "no field 'wdth' to filter by. Did you mean 'width'"),
        (["search", "wing", "--where", "width"], "cannot read the condition 'width'"),
        (["similar", "id:7", "--where", "width>=x"], "id:7"),
        (
            ["similar", "text:a red wing"],
            "it takes a picture, and these are words: imret search 'a red wing'",
        ),
    ],
)
def test_what_cannot_be_read_of_the_command_is_wrong_usage(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, [*arguments, "--db", "nowhere"], catch_exceptions=False)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())


def test_a_picture_that_is_not_there_is_told_before_a_model_or_a_store_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.cli.search._from_server", lambda *_: pytest.fail("asked"))
    for arguments, hint in (
        (["similar", "my pool.jpg"], "If these are words: imret search 'my pool.jpg'"),
        (["search", "wing", "+", "my pool.jpg"], "If these are words: text:my pool.jpg"),
    ):
        with pytest.raises(ImageError, match=rf"the picture 'my pool.jpg' does not exist. {hint}"):
            CliRunner().invoke(cli, [*arguments, "--db", str(tmp_path)], catch_exceptions=False)


def test_facets_take_the_place_of_hits(db: Path) -> None:
    result = imret(db, "search", "wing", "--limit", "5", "--facets", "--format", "json")
    counts = rows(result)
    assert {row["category"]: row["images"] for row in counts} == {"fungi": 6, "aves": 6}
    assert sum(int(str(row["hits"])) for row in counts) == 5


def test_no_hits_are_said_on_stderr(db: Path) -> None:
    result = imret(db, "search", "wing", "--min-score", "0.99")
    assert (result.exit_code, result.stdout) == (0, "")
    assert re.fullmatch(
        r"no hits: --min-score 0\.99 leaves none of 12 pictures; without it the best is \S+ \S+\.png\n",
        result.stderr,
    )


def test_what_was_left_out_is_said_on_stderr_and_in_every_line_of_json(db: Path) -> None:
    picture = str(db / "photos" / "aves" / "01.png")
    for arguments in (["similar", picture], ["search", "wing", "-", picture], ["search", picture]):
        result = imret(db, *arguments, "--format", "json")
        assert result.stderr == "1 identical picture left out (--include-self)\n"
        assert {row["left_out"] for row in rows(result)} == {1}
        result = imret(db, *arguments, "--include-self", "--format", "json")
        assert result.stderr == ""
        assert {row["left_out"] for row in rows(result)} == {0}


def test_the_case_of_a_category_does_not_matter_wherever_one_is_taken(db: Path) -> None:
    expected = rows(imret(db, "search", "wing", "--category", "aves", "--format", "json"))
    assert len(expected) == 6
    for arguments in (
        ["--category", "Aves"],
        ["--not-category", "FUNGI"],
        ["--where", "category=AVES"],
        ["--where", "category!=Fungi"],
    ):
        assert rows(imret(db, "search", "wing", *arguments, "--format", "json")) == expected
    counts = rows(imret(db, "search", "wing", "--category", "Aves", "--facets", "--format", "json"))
    assert counts == [{"category": "aves", "hits": 6, "images": 6}]


def test_paths_that_hits_are_told_by_obey_nobody(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(db)
    result = imret(db, "search", "wing", "--where", "width>=9999")
    assert re.search(r"the best is \S+ photos/(aves|fungi)/\d\d\.png$", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-0"], "--null is for --format paths, not table."),
        (["--payload"], "--payload is for --format json, not table."),
        (["--preview", "--format", "tsv"], "--preview is for --format table, not tsv."),
        (["--facets", "--format", "paths"], "--facets has no paths"),
        (["--facets", "--open"], "--open is for hits, and --facets shows none."),
        (["--facets", "--preview"], "--preview is for hits, and --facets shows none."),
        (["--per-group", "2"], "--per-group is for --group-by, which is not given."),
        (["--limit", "0"], "0 is not in the range x>=1"),
        (["--min-score", "2"], "2.0 is not in the range -1<=x<=1"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(db: Path, arguments: list[str], says: str) -> None:
    result = imret(db, "search", "wing", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_what_could_not_be_written_is_refused_before_the_search(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.cli.search._from_store", lambda *_, **__: pytest.fail("searched"))
    picture = str(db / "photos" / "aves" / "01.png")
    (tmp_path / "file").touch()
    for arguments, says in (
        (("--html", str(tmp_path)), "which --html names: it is a folder"),
        (("--html", str(tmp_path / "no" / "a.html")), "its folder does not exist"),
        (("--html", "-"), "would be standard output"),
        (("--html", picture), "over what is read as"),
        (("--copy-to", str(tmp_path / "file" / "in")), "which --copy-to names: .* is a file"),
    ):
        with pytest.raises(DataError, match=says):
            imret(db, "similar", picture, *arguments)


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_copies_and_sheet_are_made_though_nobody_reads_what_is_printed(
    db: Path, tmp_path: Path, closed: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "imret", "search", "wing", "--db", str(db / "db")]
    options = ["--html", str(tmp_path / "a.html"), "--copy-to", str(tmp_path / "copies")]
    streams = {name: writing if name in closed else subprocess.PIPE for name in ("stdout", "stderr")}
    done = subprocess.run([*command, *options], **streams)  # type: ignore[call-overload]
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.html").stat().st_size > 1000
    assert len(os.listdir(tmp_path / "copies")) == 10


def test_a_preview_where_there_is_no_terminal_says_so_and_writes_none(db: Path) -> None:
    result = imret(db, "search", "wing", "--preview")
    assert result.stdout == imret(db, "search", "wing").stdout
    assert "no thumbnails: this is no terminal" in result.stderr


def test_a_private_address_is_not_asked_unless_that_is_wanted(db: Path) -> None:
    with pytest.raises(ImageError, match=r"loopback address.*\n.*--allow-private-urls"):
        imret(db, "search", "http://127.0.0.1:9/a.jpg")
    with pytest.raises(ImageError, match=r"Cannot fetch http://127\.0\.0\.1:9/a\.jpg") as caught:
        imret(db, "similar", "http://127.0.0.1:9/a.jpg", "--allow-private-urls")
    assert "loopback" not in str(caught.value)


def test_what_is_noted_of_a_picture_that_is_asked_with_is_told_each_time(db: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((256, 256), 80).save(whole)  # as many bytes in each row
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: -whole.stat().st_size // 40])
    for _ in range(2):  # of a picture that is kept, too
        for arguments in (["similar", str(cut)], ["search", "wing", "-", str(cut)]):
            result = imret(db, *arguments, "--format", "json")
            (note,) = result.stderr.splitlines()
            assert note.startswith(f"the picture {str(cut)!r}: "), note
            assert "missing" in note
            assert len(rows(result)) == 10
    assert imret(db, "similar", str(whole)).stderr == ""
