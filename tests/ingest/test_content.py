"""Size and time as before, and other content: a few files are compared at each run, all when asked for."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from imret import Encoder, open_store
from imret.cli.main import cli
from imret.store import Point
from ingest.content_sample import CONTENT_SAMPLE, Sample, draw_from
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


def draw(file: Path, colour: int, size: tuple[int, int] = (40, 20)) -> Path:
    """Write a picture of one colour whose file is as large as those of other colours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour % 256, colour // 256, 7)).save(file.with_suffix(".bmp"))
    return file.with_suffix(".bmp")


def redraw(file: Path, colour: int, size: tuple[int, int] = (40, 20)) -> None:
    """Draw another picture of the same size and time, as `exiftool -P` may."""
    before = file.stat()
    draw(file, colour, size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def run(photos: Path, encoder: Encoder, *more: Path, **options: Any) -> Report:
    with open_store(str(photos.parent / "db")) as store:
        return ingest(store, [FolderSource(one) for one in (photos, *more)], encoder=encoder, **options)


def stored(photos: Path) -> dict[str, Point]:
    with open_store(str(photos.parent / "db"), create=False) as store:
        points = [p for batch in store.open("photos").scan(vectors=True) for p in batch]
    return {point.payload["path"]: point for point in points}


@pytest.mark.parametrize("check_content", [False, True])
def test_a_picture_that_was_rewritten_with_its_size_and_time_is_renewed(
    tmp_path: Path, encoder: Encoder, check_content: bool
) -> None:
    photos = tmp_path / "photos"
    files = [draw(photos / "a" / f"{n}", n) for n in range(5)]
    run(photos, encoder)
    redraw(files[2], 100, (20, 40))
    report = run(photos, encoder, check_content=check_content)
    assert (report.updated, report.unchanged, report.encoded) == (1, 4, 1)
    assert (report.compared, report.other_content, report.total) == (5, 1, 5)
    point = stored(photos)["a/2.bmp"]
    assert (point.payload["width"], point.payload["height"]) == (20, 40)
    np.testing.assert_allclose(point.vector, encoder.encode_images([files[2]])[0], atol=1e-5)
    assert run(photos, encoder, check_content=check_content).other_content == 0


def test_a_run_compares_a_few_and_check_content_all(tmp_path: Path, encoder: Encoder) -> None:
    photos = tmp_path / "photos"
    files = [draw(photos / "a" / f"{n:03}", n) for n in range(100)]
    run(photos, encoder)
    for n, file in enumerate(files):
        redraw(file, 1000 + n)
    report = run(photos, encoder)
    assert (report.compared, report.other_content, report.updated) == (32, 32, 32)
    assert (report.unchanged, report.total, CONTENT_SAMPLE) == (68, 100, 32)
    report = run(photos, encoder, check_content=True)
    assert (report.compared, report.other_content, report.unchanged) == (100, 68, 32)
    for path, point in stored(photos).items():
        np.testing.assert_allclose(point.vector, encoder.encode_images([photos / path])[0], atol=1e-5)


def test_the_few_are_of_all_folders_together(tmp_path: Path, encoder: Encoder) -> None:
    for folder in ("one", "two"):
        for n in range(40):
            draw(tmp_path / folder / f"{n}", n)
    run(tmp_path / "one", encoder, tmp_path / "two")
    assert run(tmp_path / "one", encoder, tmp_path / "two").compared == 32


def test_the_few_are_no_more_where_there_are_more_folders_than_that(tmp_path: Path, encoder: Encoder) -> None:
    folders = [draw(tmp_path / f"{n:02}" / "a", n).parent for n in range(40)]
    run(folders[0], encoder, *folders[1:])
    assert run(folders[0], encoder, *folders[1:]).compared == 32


def test_each_folder_has_its_share_of_the_few_and_none_is_passed_over_at_every_run() -> None:
    def sizes(n_folders: int) -> list[int]:
        return [sample.size for sample in draw_from(n_folders)]

    assert [sum(sizes(n)) for n in (1, 2, 3, 31, 32, 33, 500)] == [32] * 7
    assert set(sizes(3)) == {10, 11}
    assert draw_from(0) == []
    seen = Counter(n for _ in range(200) for n, size in enumerate(sizes(40)) if size)
    assert len(seen) == 40


def test_large_files_are_read_up_to_a_bound(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    sizes = {draw(photos / f"{n}", n).stat().st_size for n in range(10)}
    run(photos, encoder)
    monkeypatch.setattr("ingest.content_sample.CONTENT_SAMPLE_BYTES", 3 * max(sizes))
    report = run(photos, encoder)
    assert (report.compared, report.unchanged) == (3, 10)
    assert run(photos, encoder, check_content=True).compared == 10


def test_content_that_changed_to_that_of_another_picture_costs_no_encoding(
    tmp_path: Path, encoder: Encoder
) -> None:
    photos = tmp_path / "photos"
    a, b = draw(photos / "x" / "a", 1), draw(photos / "x" / "b", 2)
    run(photos, encoder)
    redraw(a, 2)
    redraw(b, 1)  # they have changed places
    report = run(photos, encoder)
    assert (report.other_content, report.updated) == (2, 2)
    for path, point in stored(photos).items():
        np.testing.assert_allclose(point.vector, encoder.encode_images([photos / path])[0], atol=1e-5)


def test_one_that_was_spoilt_or_cannot_be_read_is_told_and_keeps_what_is_stored(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    a, b = draw(photos / "x" / "a", 1), draw(photos / "x" / "b", 2)
    run(photos, encoder)
    info = a.stat()
    a.write_bytes(bytes(info.st_size))
    os.utime(a, ns=(info.st_atime_ns, info.st_mtime_ns))
    real = open

    def failing(file: Any, *args: Any, **options: Any) -> Any:
        if os.fspath(file) == str(b) if not isinstance(file, int) else False:
            raise OSError(5, "Input/output error")
        return real(file, *args, **options)

    monkeypatch.setattr("builtins.open", failing)
    report = run(photos, encoder)
    assert (report.compared, report.other_content, report.updated, report.unchanged) == (2, 1, 0, 0)
    assert sorted(skip["path"] for skip in report.skipped) == [str(a), str(b)]
    assert len(stored(photos)) == 2


def test_a_file_that_is_compared_can_be_refiled(tmp_path: Path, encoder: Encoder) -> None:
    photos = tmp_path / "photos"
    files = [draw(photos / "a" / f"{n}", n) for n in range(3)]
    run(photos, encoder)
    redraw(files[0], 9)
    with open_store(str(tmp_path / "db")) as store:
        report = ingest(store, [FolderSource(photos, categories=False)], encoder=encoder)
    assert (report.updated, report.unchanged, report.encoded) == (3, 0, 1)
    assert all("category" not in point.payload for point in stored(photos).values())


def test_the_command_says_so(tmp_path: Path, encoder: Encoder) -> None:
    photos = tmp_path / "photos"
    files = [draw(photos / "a" / f"{n}", n) for n in range(5)]
    run(photos, encoder)
    redraw(files[0], 100)
    base = ["ingest", str(photos), "--db", str(tmp_path / "db"), "--report", str(tmp_path / "report.json")]
    done = CliRunner().invoke(cli, base)
    said = "1 of 5 files with size and time as before that were compared had other content, which is renewed"
    assert f"{said}; --check-content compares all\n" in done.stderr
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["compared"], written["other_content"]) == (5, 1)
    redraw(files[1], 101)
    done = CliRunner().invoke(cli, [*base, "--check-content"])
    assert f"{said}\n" in done.stderr
    assert "content" not in CliRunner().invoke(cli, [*base, "--check-content"]).stderr


def test_every_file_has_the_same_chance_to_be_drawn() -> None:
    class One:
        size_bytes = 1

    counts: Counter[int] = Counter()
    for _ in range(3000):
        sample = Sample(4)
        pairs: list[Any] = [(One(), n) for n in range(20)]
        rest = [pair for start in (0, 7, 14) for pair in sample.draw(pairs[start : start + 7])]
        kept, unread = sample.drawn()
        assert sorted(number for _, number in (*rest, *kept)) == list(range(20))
        assert unread == []
        counts.update(int(number) for _, number in kept)  # type: ignore[call-overload]
    assert set(counts) == set(range(20))
    assert all(480 < n < 720 for n in counts.values()), counts  # 600 expected, 5 sigma = 110
