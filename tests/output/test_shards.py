"""Hits that lie in shards and buckets: copied, shown, written to a page, by the same door as files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imret.errors import DataError
from imret.output.copy_files import copy_hits
from imret.output.deliver import deliver
from imret.retrieval.results import Hit
from imret.sources.opened import Door
from imret.store.payload import file_of
from tests.fakes.object_store import Bucket, served_bucket
from tests.fakes.pictures import draw_picture
from tests.fakes.shards import shard_payloads, stored_payload, write_tar


def hit_of(rank: int, payload: dict[str, Any]) -> Hit:
    return Hit(rank, 0.5, f"id-{rank}", file_of(payload), None, payload)


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    return {
        name: draw_picture(tmp_path / "drawn" / f"{i}.png", seed=i).read_bytes()
        for i, name in enumerate(("owl.png", "no suffix"))
    }


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with served_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def near(tmp_path: Path, members: dict[str, bytes]) -> list[Hit]:
    """Hits in a shard of a folder."""
    shard = write_tar(tmp_path / "shards" / "0.tar", members).read_bytes()
    payloads = shard_payloads(tmp_path / "shards", "0.tar", shard, members)
    return [hit_of(rank, payload) for rank, payload in enumerate(payloads.values(), start=1)]


@pytest.fixture
def far(bucket: Bucket, members: dict[str, bytes]) -> list[Hit]:
    """A hit in a bucket."""
    bucket.put("photos/2019/owl.png", members["owl.png"])
    payload = stored_payload(f"s3://{bucket.name}/photos", "2019/owl.png", members["owl.png"])
    return [hit_of(1, payload)]


def test_paths_go_on_below_the_shard_and_are_urls_in_a_bucket(
    near: list[Hit], far: list[Hit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver([*near, *far], query="owl", output="paths")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/shards/0.tar/owl.png",
        f"{tmp_path}/shards/0.tar/no suffix",
        "s3://bucket/photos/2019/owl.png",
    ]


def test_copies_out_of_a_shard_are_whole_and_have_its_time_and_a_suffix(
    near: list[Hit], members: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # a second time changes nothing
        assert copy_hits(near, out) == (2, [])
        assert sorted(os.listdir(out)) == ["001_owl.png", "002_no suffix.png"]
    assert (out / "001_owl.png").read_bytes() == members["owl.png"]
    assert (out / "002_no suffix.png").read_bytes() == members["no suffix"]
    assert (out / "001_owl.png").stat().st_mtime == 1_577_934_245  # 2020-01-02T03:04:05Z


def test_what_has_changed_in_a_shard_is_told_and_the_rest_is_copied(near: list[Hit], tmp_path: Path) -> None:
    shard = tmp_path / "shards" / "0.tar"
    data = bytearray(shard.read_bytes())
    data[near[1].payload["at"]] ^= 1
    shard.write_bytes(data)
    copied, failed = copy_hits(near, tmp_path / "out")
    assert copied == 1
    assert failed == [(near[1].path, "it has changed or gone since; ingest again: imret ingest")]


def test_a_page_has_the_pictures_of_shards_and_of_a_named_bucket_without_links(
    near: list[Hit], far: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_ROOTS", "s3://bucket/photos")
    page = tmp_path / "hits.html"
    assert deliver([*near, *far], query="owl", output="paths", html=str(page)) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 3
    assert "href" not in text


@pytest.mark.parametrize("option", ["html", "copy_to"])
def test_an_unnamed_bucket_is_not_asked_and_it_is_said_how_it_is_named(
    far: list[Hit], bucket: Bucket, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs: dict[str, Any] = {option: str(tmp_path / "out")}
    code = deliver(far, query="owl", output="paths", **outputs)
    assert code == (1 if option == "copy_to" else 0)
    assert "IMRET_ROOTS=s3://bucket/photos" in capsys.readouterr().err
    assert bucket.requests == []


def test_a_viewer_gets_copies_of_what_is_no_file_of_its_own(
    near: list[Hit], members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv("IMRET_VIEWER", f"sh -c 'cat \"$@\" > {seen}' viewer")
    deliver(near, query="owl", output="paths", open_them=True)
    assert seen.read_bytes() == members["owl.png"] + members["no suffix"]
    (tmp_path / "shards" / "0.tar").unlink()
    with pytest.raises(DataError, match="nothing to open"):
        deliver(near, query="owl", output="paths", open_them=True)


def test_a_terminal_shows_a_member_or_why_it_cannot(
    near: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from imret.output.deliver import _thumbnails  # what it shows is seen only on a terminal

    class Terminal:
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError

    monkeypatch.setenv("IMRET_PREVIEW", "blocks")
    shown = _thumbnails(Terminal(), Door(is_guarded=False))  # type: ignore[arg-type]
    assert shown is not None
    assert "▀" in shown(near[0])
    (tmp_path / "shards" / "0.tar").unlink()
    assert shown(near[0]) == "(no preview: no such file)\n"
