"""Reads that fail are tried again from where they failed; what is not there, or refused, is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imret.errors import DataError
from imret.places import reading
from imret.places.reading import PatientFile, patiently, read_range, read_whole
from imret.places.spool import Member, Spool
from imret.places.stores import NotThere, Refused, list_folder, look_up
from tests.fakes.object_store import Bucket, served_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, served_bucket(patch) as served:
        yield served


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAUSES_S", (0.0, 0.0, 0.0))


class FailsOnce:
    """A file each part of 10 kB of which cannot be read the first time."""

    def __init__(self, file: Any) -> None:
        self.file, self.failed = file, set[int]()

    def size(self) -> int:
        return int(self.file.size())

    def read_at(self, n_bytes: int, offset: int) -> bytes:
        last = (offset + n_bytes - 1) // 10_000
        for part in range(offset // 10_000, last + 1):
            if part not in self.failed:
                self.failed.add(part)
                if part == offset // 10_000:
                    raise OSError("curlCode: 56, Failure when receiving data from the peer")
                return bytes(self.file.read_at(part * 10_000 - offset, offset))  # what came until then
        return bytes(self.file.read_at(n_bytes, offset))

    def close(self) -> None:
        self.file.close()


def test_a_read_that_fails_once_at_each_10_kb_loses_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(0).randbytes(123_456)
    url = bucket.put("a.tar", data)
    files: list[FailsOnce] = []
    really_open = reading.open_object

    def open_failing(place: str) -> FailsOnce:
        files.append(FailsOnce(really_open(place)))
        return files[-1]

    monkeypatch.setattr(reading, "open_object", open_failing)
    assert read_whole(url) == data
    assert files[0].failed == set(range(13))
    spool = Spool(url)
    assert (spool.size_bytes, spool.read_at(0, len(data))) == (len(data), data)
    assert Member(spool, 50_000, 20_000).read() == data[50_000:70_000]


def test_a_part_of_a_file_or_an_object_is_read_alone(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    for place in (str(tmp_path / "a"), bucket.put("part", b"0123456789")):
        assert read_range(place, 3, 4) == b"3456"
        assert read_range(place, 8, 4) == b"89"


def test_an_object_that_is_not_there_is_not_waited_for(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAUSES_S", (1e9,))
    with pytest.raises(NotThere, match=r"nothing is at 's3://bucket/none.jpg'"):
        PatientFile("s3://bucket/none.jpg")


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket) -> None:
    with pytest.raises(Refused, match=f"there is no bucket 'nobody' at {bucket.endpoint}.*AWS_ENDPOINT_URL"):
        list_folder("s3://nobody/photos")
    with pytest.raises(Refused, match="there is no bucket 'nobody'"):
        list_folder("s3://nobody")


def test_where_nothing_answers_the_endpoint_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"nothing answers at http://127.0.0.1:1") as silent:
        list_folder("s3://bucket/photos")
    assert not isinstance(silent.value, Refused)


def test_what_lies_in_a_bucket_is_told_with_sizes_and_times(bucket: Bucket) -> None:
    bucket.put("told/x.jpg", b"123")
    bucket.put("told/below/y.jpg", b"1")
    found = {stored.name: stored for stored in list_folder("s3://bucket/told")}
    assert (found["x.jpg"].size_bytes, found["below"].is_folder) == (3, True)
    assert found["x.jpg"].mtime_ns > 10**18
    assert look_up(["s3://bucket/told/x.jpg", "s3://bucket/told/no"]) == [found["x.jpg"], None]
    assert list_folder("s3://bucket/nothing") == []


def test_patience_ends_with_the_last_reason() -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise DataError("away")

    with pytest.raises(DataError, match="away"):
        patiently(fail, pauses_s=(0, 0))
    assert len(tries) == 3


def test_keys_that_are_refused_are_told_with_where_they_come_from(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.put("locked/a.jpg", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with bucket.refusing():
        for read in (lambda: list_folder("s3://bucket/locked"), lambda: read_whole(url)):
            with pytest.raises(
                Refused, match=r"lets nobody with these keys read.*AWS_ACCESS_KEY_ID"
            ) as refused:
                read()
            assert "another" not in str(refused.value)


def test_an_object_that_is_replaced_while_it_is_copied_is_copied_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.put("changing.tar", b"old" * 1_000)
    really_read = PatientFile.read_at

    def read_and_replace(file: PatientFile, offset: int, n_bytes: int) -> bytes:
        data = really_read(file, offset, n_bytes)
        if data.startswith(b"old"):
            bucket.put("changing.tar", b"newer" * 1_000)
        return data

    monkeypatch.setattr(PatientFile, "read_at", read_and_replace)
    assert Spool(url).read_at(0, 10) == b"newernewer"


def test_a_spool_knows_that_its_file_was_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"one")
    spool = Spool(str(file))
    assert not spool.is_replaced()
    other = tmp_path / "b.tar"
    other.write_bytes(b"two")
    other.replace(file)
    assert spool.is_replaced()
    assert spool.read_at(0, 3) == b"one"
    with pytest.raises(OSError, match="ends within it"):
        Member(spool, 1, 9).read()
