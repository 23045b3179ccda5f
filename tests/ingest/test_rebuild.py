"""A rebuild drops no picture that the collection holds and that cannot be embedded again, unless told to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from imret import Encoder, open_store
from imret.cli.main import cli
from imret.errors import DataError
from imret.store import Identity
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoders(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    other = write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    return [Encoder(str(folder), device="cpu", precision="fp32") for folder in (random_model, other)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures here, four on a drive that a link leads to."""
    for seed in range(12):
        draw_picture(tmp_path / "photos" / "local" / f"{seed:02}.png", seed=seed)
    for seed in range(20, 24):
        draw_picture(tmp_path / "drive" / "birds" / f"{seed}.png", seed=seed)
    (tmp_path / "photos" / "usb").symlink_to(tmp_path / "drive" / "birds")
    return tmp_path / "photos"


def run(photos: Path, encoder: Encoder, **options: Any) -> Report:
    with open_store(str(photos.parent / "db")) as store:
        return ingest(store, [FolderSource(photos)], encoder=encoder, **options)


def held(photos: Path) -> tuple[str, list[str]]:
    """Return the fingerprint that the live version belongs to, and the paths that it holds."""
    with (
        open_store(str(photos.parent / "db"), create=False) as store,
        closing(store.open("photos")) as opened,
    ):
        paths = [point.payload["path"] for batch in opened.scan() for point in batch]
        return opened.identity.fingerprint, sorted(paths)


ALL = sorted([*(f"local/{n:02}.png" for n in range(12)), *(f"usb/{n}.png" for n in range(20, 24))])


def refused(photos: Path, encoders: list[Encoder], **options: Any) -> str:
    """Return what a rebuild says that is refused; it must leave the collection as it is."""
    before = held(photos)
    with pytest.raises(DataError) as raised:
        run(photos, encoders[1], rebuild=True, **options)
    assert held(photos) == before
    return str(raised.value)


def test_pictures_that_were_kept_as_missing_are_counted_and_go_only_with_prune(
    photos: Path, encoders: list[Encoder]
) -> None:
    run(photos, encoders[0])
    for n in range(5):
        (photos / "local" / f"{n:02}.png").unlink()
    assert run(photos, encoders[0]).missing == 5
    said = refused(photos, encoders)
    assert "holds 5 pictures that could not be embedded again" in said
    assert f"5 of {photos} whose files are gone, such as {photos}/local/0" in said
    assert f"imret ingest {photos} --model {encoders[1].model_id}" in said
    assert said.endswith("--rebuild --prune")
    report = run(photos, encoders[1], rebuild=True, prune=True)
    assert (report.unchanged, report.encoded) == (11, 0), "what the refused run embedded is kept"
    assert held(photos) == (encoders[1].images_fingerprint, ALL[5:])


def test_pictures_that_are_back_are_embedded_and_nothing_is_asked(
    photos: Path, encoders: list[Encoder]
) -> None:
    run(photos, encoders[0])
    (photos.parent / "drive").rename(photos.parent / "unplugged")
    said = refused(photos, encoders)
    assert f"4 of {photos} out of reach: {photos}/usb is a link to a place that is not there, such as" in said
    assert "--rebuild --prune" not in said
    assert f"imret sources forget {photos}" in said
    assert "4 of" in refused(photos, encoders, prune=True), "what is out of reach is not gone"
    (photos.parent / "unplugged").rename(photos.parent / "drive")
    report = run(photos, encoders[1], rebuild=True)
    assert (report.unchanged, report.encoded) == (12, 4)
    assert held(photos) == (encoders[1].images_fingerprint, ALL)


def test_a_picture_that_is_damaged_now_counts_too(photos: Path, encoders: list[Encoder]) -> None:
    run(photos, encoders[0])
    (photos / "local" / "00.png").write_bytes(b"\x89PNG and no more")
    said = refused(photos, encoders)
    assert "holds 1 picture that could not be embedded again and would be lost" in said
    assert (
        f"1 of {photos} whose files are there and cannot be embedded any more, {photos}/local/00.png" in said
    )
    report = run(photos, encoders[1], rebuild=True, prune=True)
    assert [skip["path"] for skip in report.skipped] == [str(photos / "local" / "00.png")]
    assert held(photos) == (encoders[1].images_fingerprint, ALL[1:])


def test_a_folder_that_lost_almost_all_loses_nothing_even_with_prune(
    photos: Path, encoders: list[Encoder]
) -> None:
    run(photos, encoders[0])
    shutil.rmtree(photos / "local")
    (photos / "usb").unlink()
    draw_picture(photos / "stray.png", seed=70)
    for options in ({}, {"prune": True}):
        said = refused(photos, encoders, **options)
        assert "holds 16 pictures" in said
    assert "16 of" in said
    assert "almost none of its pictures" in said
    photos.rename(photos.parent / "elsewhere")
    photos.mkdir()
    assert "16 of" in refused(photos, encoders)
    with pytest.raises(DataError, match="holds no picture any more"):
        run(photos, encoders[1], rebuild=True, prune=True)


def test_a_picture_that_has_moved_is_not_lost(photos: Path, encoders: list[Encoder]) -> None:
    run(photos, encoders[0])
    (photos / "local" / "00.png").rename(photos / "moved.png")
    report = run(photos, encoders[1], rebuild=True)
    assert (report.added, report.complete) == (16, True)
    assert held(photos)[1] == sorted([*ALL[1:], "moved.png"])


def test_what_a_killed_rebuild_embedded_and_has_been_pruned_since_does_not_come_back(
    photos: Path, encoders: list[Encoder]
) -> None:
    run(photos, encoders[0])

    class Failing(FolderSource):
        looks = 0

        def entries(self) -> Iterator[Any]:
            self.looks += 1
            yield from super().entries()
            if self.looks == 2:
                raise RuntimeError("the power went")

    with (
        open_store(str(photos.parent / "db")) as store,
        pytest.raises(RuntimeError, match="the power went"),
    ):
        ingest(store, [Failing(photos)], encoder=encoders[1], rebuild=True, batch_size=1)
    (photos / "local" / "00.png").unlink()
    assert run(photos, encoders[0], prune=True).removed == 1
    run(photos, encoders[1], rebuild=True)
    assert held(photos) == (encoders[1].images_fingerprint, ALL[1:])


def test_a_missing_picture_that_a_killed_rebuild_had_embedded_is_kept_as_missing(
    photos: Path, encoders: list[Encoder]
) -> None:
    run(photos, encoders[0])
    (photos.parent / "drive").rename(photos.parent / "unplugged")
    refused(photos, encoders)  # the others are embedded by now
    (photos.parent / "unplugged").rename(photos.parent / "drive")
    (photos / "local" / "00.png").unlink()
    assert run(photos, encoders[1], rebuild=True).missing == 1
    assert held(photos) == (encoders[1].images_fingerprint, ALL)


def test_the_command_refuses_with_what_to_type_and_ends_with_1(photos: Path, encoders: list[Encoder]) -> None:
    run(photos, encoders[0])
    (photos / "local" / "00.png").unlink()
    options = ["--db", str(photos.parent / "db"), "--model", str(encoders[1].model_id), "--rebuild"]
    done = CliRunner().invoke(cli, ["ingest", str(photos), *options])
    assert done.exit_code == 1
    assert isinstance(done.exception, DataError)
    assert CliRunner().invoke(cli, ["ingest", str(photos), *options, "--prune"]).exit_code == 0
    with open_store(str(photos.parent / "db")) as store:
        live = store.live("photos")
        assert isinstance(live, Identity)
        assert live.fingerprint == encoders[1].images_fingerprint
