"""Prefixes of an object store, shards in one, and lists of addresses as sources."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imret import Encoder, open_store
from imret.datasets.scan import Ignored, Skipped
from imret.errors import DataError
from imret.places import reading
from imret.places.stores import Refused, Stored
from ingest import remote
from ingest.find_source import find_sources
from ingest.pipeline import ingest
from ingest.remote import ListSource, PrefixSource
from ingest.report import Report
from ingest.shards import ShardSource
from ingest.sources import Record
from tests.fakes.object_store import Bucket, served_bucket
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, served_bucket(patch) as served:
        yield served


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAUSES_S", (0.0, 0.0, 0.0))


def picture(folder: Path, seed: int) -> bytes:
    return draw_picture(folder / f"drawn-{seed}.jpg", seed=seed).read_bytes()


def run(names: list[str], db: Path, encoder: Encoder, **options: Any) -> Report:
    with open_store(str(db)) as store:
        return ingest(store, find_sources(names), encoder=encoder, **options)


def paths(db: Path) -> list[str]:
    with open_store(str(db), create=False) as store, closing(store.open("photos")) as opened:
        return sorted(point.payload["path"] for batch in opened.scan() for point in batch)


def test_a_prefix_is_ingested_once_and_followed_as_a_folder_is(
    bucket: Bucket, tmp_path: Path, encoder: Encoder
) -> None:
    for seed, name in enumerate(("fungi/a.jpg", "fungi/b.jpg", "aves/2024/c.jpg", "d.jpg")):
        bucket.put(f"followed/{name}", picture(tmp_path, seed))
    bucket.put("followed/notes.doc", b"x")
    bucket.put("followed/fungi/empty.jpg", b"")
    url = f"{bucket.url}/followed"
    report = run([f"{url}/?ignored=1"], tmp_path / "db", encoder)
    assert (report.added, report.skipped) == (4, [])
    assert report.ignored == {"empty": 1, "not a picture by its name (*.doc)": 1}
    assert paths(tmp_path / "db") == ["aves/2024/c.jpg", "d.jpg", "fungi/a.jpg", "fungi/b.jpg"]
    with open_store(str(tmp_path / "db")) as store, closing(store.open("photos")) as opened:
        assert opened.facet("source") == {url: 4}
        assert opened.facet("category") == {"fungi": 2, "aves": 1}
    again = run([url], tmp_path / "db", encoder)
    assert (again.unchanged, again.encoded) == (4, 0)
    bucket.put("followed/fungi/moved.jpg", picture(tmp_path, 0))
    bucket.remove("followed/fungi/a.jpg")
    bucket.remove("followed/d.jpg")
    report = run([url], tmp_path / "db", encoder)
    assert (report.moved, report.unchanged, report.missing, report.encoded) == (1, 2, 1, 0)
    assert run([url], tmp_path / "db", encoder, prune=True).removed == 1
    assert paths(tmp_path / "db") == ["aves/2024/c.jpg", "fungi/b.jpg", "fungi/moved.jpg"]


def test_a_listing_that_changes_during_the_run_loses_nothing_else(
    bucket: Bucket, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        bucket.put(f"changing/{seed}.jpg", picture(tmp_path, seed))
    really_read = remote.read_whole

    def read_and_change(url: str) -> bytes:
        if url.endswith("/0.jpg"):
            bucket.put("changing/9.jpg", picture(tmp_path, 9))
        if url.endswith("/3.jpg"):
            bucket.remove("changing/3.jpg")
        return really_read(url)

    monkeypatch.setattr(remote, "read_whole", read_and_change)
    report = run([f"{bucket.url}/changing"], tmp_path / "db", encoder)
    assert report.added == 5
    assert [skip["path"] for skip in report.skipped] == [f"{bucket.url}/changing/3.jpg"]
    monkeypatch.undo()
    report = run([f"{bucket.url}/changing"], tmp_path / "db", encoder)
    assert (report.added, report.unchanged, report.missing) == (1, 5, 0)


def test_shards_in_a_bucket_are_ingested_as_those_of_a_folder(
    bucket: Bucket, tmp_path: Path, encoder: Encoder
) -> None:
    for shard in range(2):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for n in range(3):
                content = picture(tmp_path, 3 * shard + n)
                info = tarfile.TarInfo(f"{n}.jpg")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        bucket.put(f"tars/{shard:05}.tar", data.getvalue())
    (source,) = find_sources([f"{bucket.url}/tars"])
    assert isinstance(source, ShardSource)
    assert run([bucket.url + "/tars/{00000..00000}.tar"], tmp_path / "db", encoder).added == 3
    report = run([f"{bucket.url}/tars"], tmp_path / "db", encoder)
    assert (report.added, report.unchanged) == (3, 3)
    bucket.remove("tars/00001.tar")
    assert run([f"{bucket.url}/tars"], tmp_path / "db", encoder, prune=True).removed == 3


def test_what_cannot_be_a_source_says_why_and_what_to_do(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there is no bucket 'nowhere'"):
        find_sources(["s3://nowhere/photos"])
    with pytest.raises(DataError, match="nothing lies below 's3://bucket/nothing'"):
        find_sources(["s3://bucket/nothing"])
    with pytest.raises(DataError, match="text file, one a line"):
        find_sources(["https://example.org/photos/"])
    with pytest.raises(DataError, match="stands for tar and Parquet files alone"):
        find_sources([str(tmp_path / "{a,b}")])
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is a file; ingest takes a folder.*\.tar, \.parquet"):
        find_sources([str(tmp_path / "a.docx")])


def test_a_run_that_is_refused_half_way_ends_with_the_reason(
    bucket: Bucket, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("refused/a.jpg", picture(tmp_path, 0))

    def refuse(url: str) -> bytes:
        raise Refused("the store lets nobody with these keys read it")

    monkeypatch.setattr(remote, "read_whole", refuse)
    with pytest.raises(Refused, match="lets nobody with these keys"):
        run([f"{bucket.url}/refused"], tmp_path / "db", encoder)


def test_a_prefix_of_many_empty_objects_is_counted_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(url: str) -> list[Stored]:
        if url == "s3://bucket":
            return [Stored(f"{n:03}", True) for n in range(40)]
        return [Stored(f"{n:04}.jpg", False, 0, 1) for n in range(1_000)]

    monkeypatch.setattr("imret.places.listing.list_folder", look)
    source = PrefixSource("s3://bucket")
    assert sum(isinstance(entry, Ignored) for entry in source.entries()) == 40_000
    largest = max(sum(1 for _ in unit.entries()) for unit in source.units())
    assert largest <= 16_384


def test_a_list_of_addresses_is_fetched_once_and_followed_by_its_lines(
    bucket: Bucket, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = {f"https://example.org/{n}.jpg": picture(tmp_path, n) for n in range(2)}
    fetched: list[str] = []

    def fetch(url: str, **_: Any) -> bytes:
        fetched.append(url)
        return web[url.partition("?")[0]]

    monkeypatch.setattr("imret.retrieval.fetch.fetch_picture", fetch)
    url = bucket.put("listed/c.jpg", picture(tmp_path, 2))
    file = tmp_path / "urls.txt"
    lines = [
        "# photos",
        "https://example.org/0.jpg?token=SECRET",
        "",
        "https://example.org/1.jpg",
        url,
        "no address",
    ]
    file.write_text("\n".join([*lines, "https://example.org/0.jpg?other"]))
    (source,) = find_sources([str(file)])
    assert isinstance(source, ListSource)
    assert [entry.path for entry in source.entries() if isinstance(entry, Record)] == [*web, url]
    assert [entry.path for entry in source.entries() if isinstance(entry, Skipped)] == [
        "line 6",
        "https://example.org/0.jpg",
    ]
    report = run([str(file)], tmp_path / "db", encoder)
    assert (report.added, len(report.skipped)) == (3, 2)
    assert "https://example.org/0.jpg?token=SECRET" in fetched
    assert paths(tmp_path / "db") == [*web, url]
    with open_store(str(tmp_path / "db")) as store, closing(store.open("photos")) as opened:
        (points,) = opened.scan()
        assert "SECRET" not in str([point.payload for point in points])
        sizes = {point.payload["path"]: point.payload["size_bytes"] for point in points}
        assert sizes["https://example.org/1.jpg"] == len(web["https://example.org/1.jpg"])
    fetched.clear()
    file.write_text("https://example.org/0.jpg\n")
    report = run([str(file)], tmp_path / "db", encoder, prune=True)
    assert (report.unchanged, report.removed, fetched) == (1, 2, [])
