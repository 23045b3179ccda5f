"""What is excluded is left out, remembered with its folder, and taken over when the folder moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret import Encoder, open_store
from imret.cli.main import cli
from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.sources.stored import forget_source, list_sources, rename_source
from imret.store import Store
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LOCAL_MODE_WARNINGS]

ALL = ["aves/1.png", "aves/1.small.png", "fungi/2.png", "raw/3.png"]


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, path in enumerate(ALL):
        draw_picture(tmp_path / "photos" / path, seed=seed)
    return tmp_path / "photos"


@pytest.fixture(params=["embedded", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "embedded":
        with open_store(str(tmp_path / "db")) as opened:
            yield opened
    else:
        with QdrantOverHTTP() as server, open_store(server.url) as opened:
            yield opened


def run(
    store: Store, folder: Path, encoder: Encoder, exclude: Sequence[str] | None = None, **options: object
) -> Report:
    return ingest(store, [FolderSource(folder, exclude=exclude)], encoder=encoder, **options)  # type: ignore[arg-type]


def paths(store: Store) -> list[str]:
    with closing(store.open("photos")) as opened:
        return sorted(point.payload["path"] for batch in opened.scan() for point in batch)


def test_what_is_excluded_is_remembered_until_something_else_is_said(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    report = run(store, photos, encoder, ["raw/", "*.small.png"])
    assert (report.added, report.ignored) == (2, {"excluded": 2})
    assert paths(store) == ["aves/1.png", "fungi/2.png"]
    (source,) = list_sources(store)
    assert source.exclude == ("raw/", "*.small.png")
    report = run(store, photos, encoder, prune=True)
    assert (report.added, report.removed, report.left_out, report.unchanged) == (0, 0, 0, 2)
    # Others are excluded now: what was left out comes in, and what is stored stays without --prune.
    report = run(store, photos, encoder, ["fungi"])
    assert (report.added, report.left_out, report.missing, report.removed) == (2, 1, 0, 0)
    assert paths(store) == ALL
    report = run(store, photos, encoder, prune=True)
    assert (report.removed, report.left_out) == (1, 0)
    assert paths(store) == ["aves/1.png", "aves/1.small.png", "raw/3.png"]
    report = run(store, photos, encoder, [])
    assert (report.added, store.excluded("photos")) == (1, {})
    assert paths(store) == ALL


def test_it_goes_with_the_folder_to_its_new_place_and_is_forgotten_with_it(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    run(store, photos, encoder, ["raw/"])
    moved = photos.rename(photos.parent / "moved")
    rename_source(store, photos, moved)
    assert store.excluded("photos") == {str(moved): ("raw/",)}
    again = moved.rename(photos.parent / "again")
    run(store, again, encoder, moved_from=[str(moved)])
    assert store.excluded("photos") == {str(again): ("raw/",)}
    assert "raw/3.png" not in paths(store)
    within = (
        again.rename(photos.parent / "holds" / "it") if (photos.parent / "holds").mkdir() is None else None
    )
    assert within is not None
    run(store, within.parent, encoder, moved_from=[str(again)])
    assert store.excluded("photos") == {str(within.parent): ("/it/**/raw/",)}
    assert run(store, within.parent, encoder).added == 0
    forget_source(store, within.parent)
    assert store.excluded("photos") == {}


def test_a_folder_around_a_source_takes_over_what_was_excluded_from_it(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    run(store, photos, encoder, ["/raw"])
    draw_picture(photos.parent / "raw" / "9.png", seed=9)
    for name in ("db", "home"):  # what the test itself has there
        (photos.parent / name).mkdir(exist_ok=True)
    report = run(store, photos.parent, encoder)
    assert report.added == 1
    assert store.excluded("photos") == {str(photos.parent): ("/photos/raw",)}
    assert "raw/9.png" in paths(store)
    assert "photos/raw/3.png" not in paths(store)


def test_an_excluded_folder_may_be_a_source_of_its_own(store: Store, photos: Path, encoder: Encoder) -> None:
    run(store, photos, encoder, ["raw/"])
    run(store, photos / "raw", encoder)
    assert {source.folder: source.images for source in list_sources(store)} == {
        str(photos): 3,
        str(photos / "raw"): 1,
    }
    assert run(store, photos, encoder, prune=True).removed == 0
    with pytest.raises(DataError, match="lies within"):
        run(store, photos / "aves", encoder)


def test_a_rebuild_leaves_out_what_was_excluded(
    store: Store, photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    run(store, photos, encoder, ["raw/"])
    other = Encoder(str(write_random_model(tmp_path / "other", seed=1)), device="cpu", precision="fp32")
    run(store, photos, other, rebuild=True)
    assert paths(store) == ["aves/1.png", "aves/1.small.png", "fungi/2.png"]
    assert store.excluded("photos") == {str(photos): ("raw/",)}
    # What is stored and excluded only now is no loss that a rebuild makes without a word.
    with pytest.raises(DataError, match=r"1 of .*photos that are left out now, by their names"):
        run(store, photos, encoder, ["fungi"], rebuild=True)
    run(store, photos, encoder, ["fungi"], rebuild=True, prune=True)
    assert paths(store) == ["aves/1.png", "aves/1.small.png", "raw/3.png"]
    assert store.excluded("photos") == {str(photos): ("fungi",)}


def test_what_is_excluded_and_cannot_be_read_is_an_error_with_its_file(
    photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    with open_store(str(tmp_path / "db")) as store:
        run(store, photos, encoder, ["raw/"])
        file = tmp_path / "db" / "photos" / "excluded.json"
        assert json.loads(file.read_text()) == {str(photos): ["raw/"]}
        file.write_text("{")
        with pytest.raises(StoreError, match=r"excluded\.json.*Remove it"):
            run(store, photos, encoder)
        store.rename("photos", "other")
        file.with_name("x").parent.mkdir(exist_ok=True)
        store.drop("other")
        assert not (tmp_path / "db" / "other").exists()


# ---- As people type it -----------------------------------------------------------------------------------


def imret(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_the_command_excludes_says_what_it_remembers_and_takes_it_back(
    photos: Path, random_model: Path
) -> None:
    db = ["--db", str(photos.parent / "db")]
    command = ["ingest", str(photos), "--model", str(random_model), *db]
    done = imret(*command, "--exclude", "raw/", "--exclude", "*.small.png")
    assert "photos: 2 added, 0 skipped" in done.stderr
    assert "left out: 2 excluded by a pattern" in done.stderr
    done = imret(*command)
    assert f"{photos} without raw/ '*.small.png', as before; --no-exclude takes all" in done.stderr
    listed = imret("sources", *db)
    assert f"{photos} is ingested without raw/ '*.small.png'" in listed.stderr
    listed = imret("sources", "list", "--format", "json", *db)
    assert json.loads(listed.stdout)["exclude"] == ["raw/", "*.small.png"]
    assert "photos: 2 added, 2 unchanged" in imret(*command, "--no-exclude").stderr
    done = imret(*command, "--exclude", "raw/")
    assert "1 picture of the collection left out now, by name; --prune removes it" in done.stderr
    assert "left out nothing" not in done.stderr
    done = imret(*command, "--exclude", f"{photos}/raw", "--exclude", "photos/aves")
    assert "note: --exclude photos/aves left out nothing; one with a slash" in done.stderr
    assert "left out: 1 excluded by a pattern" in done.stderr
    assert imret(*command, "--exclude", "raw/", "--no-exclude").exit_code == 2
    refused = imret(*command, "--exclude", "/")
    assert isinstance(refused.exception, DataError)
    assert "the pattern '/' excludes nothing" in str(refused.exception)


def test_everything_that_walks_a_folder_excludes(photos: Path, random_model: Path, tmp_path: Path) -> None:
    model = ["--model", str(random_model)]
    done = imret("classify", str(photos), "--labels", "a,b", "--exclude", "raw", *model, "--format", "json")
    assert len(done.stdout.splitlines()) == 3, done.output
    done = imret("evaluate", str(photos), "--exclude", "raw", "--json", "-", "--resamples", "100", *model)
    assert "raw" not in done.stdout and '"aves"' in done.stdout, done.output  # noqa: PT018
    (photos / "captions.csv").write_text("path,caption\naves/1.png,a bird\nraw/3.png,raw\n")
    shutil.copytree(photos / "aves", tmp_path / "test" / "raw")
    done = imret(
        *("finetune", str(photos), "--from-scratch", "--check", "--exclude", "raw"),
        *("--against", str(tmp_path / "test")),
    )
    assert isinstance(done.exception, DataError)
    assert (
        "holds no pictures, but what is left out: 1 excluded by a pattern. Give another to --against"
        in str(done.exception)
    )
    done = imret("finetune", str(photos), "--from-scratch", "--check", "--exclude", "raw")
    assert done.exit_code == 0, done.output
    assert "raw" not in done.stdout
    (photos / "m.csv").write_text("path,category\naves/1.png,aves\n")
    done = imret("finetune", str(photos / "m.csv"), "--from-scratch", "--check", "--exclude", "raw")
    assert done.exit_code == 2


def test_what_is_excluded_of_a_collection_that_went_away_is_an_error(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "db")) as store:
        assert store.excluded("photos") == {}
        with pytest.raises(ChangedMeanwhile):
            store.exclude("photos", {"/a": ["raw/"]})
        assert store.collections() == []


def test_an_excluded_folder_of_which_pictures_are_stored_is_taken_in_when_they_are_out(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    run(store, photos, encoder)
    run(store, photos, encoder, ["raw/"])
    with pytest.raises(DataError, match=r"(?s)raw.* is left out of .*stored there still.*--prune") as refused:
        run(store, photos / "raw", encoder)
    assert "link" not in str(refused.value)
    run(store, photos, encoder, prune=True)
    assert run(store, photos / "raw", encoder).added == 1


def test_a_folder_all_of_which_is_excluded_is_not_taken_for_a_drive_that_is_away(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    run(store, photos, encoder)
    with pytest.raises(
        DataError, match=r"(?s)all pictures of .* are left out by --exclude.*4 from it"
    ) as refused:
        run(store, photos, encoder, ["*"], prune=True)
    assert "mounted" not in str(refused.value)
    assert len(paths(store)) == 4
