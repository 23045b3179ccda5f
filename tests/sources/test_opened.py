"""One door to stored pictures: what it opens, and that everything that shows pictures goes through it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imret
from imret.errors import DataError, ImageError
from imret.sources.named_roots import NotReachable, NotThere
from imret.sources.opened import Door, own_door
from imret.sources.safe_open import stored_place
from tests.fakes.object_store import Bucket, served_bucket
from tests.fakes.pictures import draw_picture
from tests.fakes.shards import shard_payloads, stored_payload, write_tar


def payload_of(source: str | os.PathLike[str], path: str) -> dict[str, Any]:
    return stored_payload(source, path, b"")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_picture(tmp_path / "private" / "secret.png", seed=1)
    draw_picture(tmp_path / "photos" / "fungi" / "1.png", seed=2)
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "private" / "secret.png")
    return tmp_path / "photos"


def test_a_guarded_door_opens_below_its_folders_alone_and_one_at_a_terminal_what_may_be_read(
    photos: Path,
) -> None:
    inside, linked = payload_of(photos, "fungi/1.png"), payload_of(photos, "link.png")
    for door in (Door(), Door([photos]), own_door()):
        with door.open(inside) as file:
            assert file.read() == (photos / "fungi" / "1.png").read_bytes()
    with own_door().open(linked) as file:
        assert file.read() == (photos / "link.png").read_bytes()
    for guarded, payload in ((Door(), linked), (Door([photos]), linked), (Door([photos / "no"]), inside)):
        with pytest.raises(ImageError, match="leads out"):
            guarded.open(payload)


def test_the_path_of_a_hit_is_opened_as_it_is(photos: Path) -> None:
    with own_door().open({}, str(photos / "fungi" / "1.png")) as file:
        assert file.seekable()
        assert file.tell() == 0
    with pytest.raises(ImageError, match=r"^no such file$"):
        own_door().open({}, str(photos / "gone.png"))
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(ImageError, match=r"^not a regular file$"):
        own_door().open({}, str(photos / "pipe.png"))


# ---- Shards --------------------------------------------------------------------------------------------


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    return {
        f"{i:05}.png": draw_picture(tmp_path / "drawn" / f"{i}.png", seed=i).read_bytes() for i in range(3)
    }


@pytest.fixture
def shards(tmp_path: Path, members: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The payloads of a shard's members, by name."""
    shard = write_tar(tmp_path / "shards" / "a" / "00012.tar", members)
    return shard_payloads(tmp_path / "shards", "a/00012.tar", shard.read_bytes(), members)


def test_members_of_a_tar_are_opened_by_offset(
    tmp_path: Path, members: dict[str, bytes], shards: dict[str, dict[str, Any]]
) -> None:
    for door in (Door(), Door([tmp_path / "shards"]), own_door()):
        for name, data in members.items():
            with door.open(shards[name]) as file:
                assert (file.tell(), file.read()) == (0, data)


def test_a_large_member_is_read_from_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], shards: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setattr("imret.sources.members.IN_MEMORY_BYTES", 100)
    for name, data in members.items():
        with Door().look(stored_place(shards[name])) as opened, opened.file as file:
            assert file.read(10) == data[:10]
            assert file.seek(-5, os.SEEK_END) == len(data) - 5
            assert file.read() == data[-5:]
            assert file.seek(3) == 3
            assert file.read(len(data)) == data[3:]
            assert opened.is_unchanged()


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("change", ["replaced", "shorter", "gone", "no offset"])
def test_a_shard_that_has_changed_gives_nothing_and_says_to_ingest_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    members: dict[str, bytes],
    shards: dict[str, dict[str, Any]],
    change: str,
    is_large: bool,
) -> None:
    if is_large:
        monkeypatch.setattr("imret.sources.members.IN_MEMORY_BYTES", 100)
    shard, payload = tmp_path / "shards" / "a" / "00012.tar", shards["00002.png"]
    if change == "replaced":
        write_tar(shard, {"new.png": members["00001.png"], **members})
    elif change == "shorter":
        shard.write_bytes(shard.read_bytes()[: payload["at"] + 20])
    elif change == "no offset":
        del payload["at"]
    else:
        shard.unlink()
    for door in (Door(), own_door()):
        with pytest.raises(ImageError, match=r"ingest|no such file"):
            door.open(payload)
    if change == "gone":
        return
    with pytest.raises(NotThere, match="ingest again"):
        Door().open(payload)


def test_a_forged_member_gives_no_other_bytes(tmp_path: Path, shards: dict[str, dict[str, Any]]) -> None:
    payload = shards["00000.png"]
    secret = tmp_path / "shards" / "secret"
    secret.write_bytes(b"secret" * 100)
    (tmp_path / "shards" / "out.tar").symlink_to("/etc/passwd")
    for change in (
        {"at": 0},
        {"at": payload["at"] + 1},
        {"size_bytes": payload["size_bytes"] - 1},
        {"unit": "secret", "path": "secret/00000.png", "at": 0, "size_bytes": 600},
        {"unit": "out.tar", "path": "out.tar/00000.png", "at": 0},
        {"unit": "../private", "path": "../private/secret.png"},
        {"unit": "a"},
        {"unit": "b/00012.tar"},
        {"unit": 7},
        {"unit": ""},
        {"at": -1},
        {"at": True},
        {"at": "0"},
        {"size_bytes": None},
        {"sha256": "0" * 63},
        {"sha256": None},
    ):
        with pytest.raises(ImageError):
            Door().open(payload | change)


# ---- Buckets -------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with served_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def far(bucket: Bucket, tmp_path: Path, members: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The payloads of a shard in a bucket, and of a picture beside it that is an object of its own."""
    shard = write_tar(tmp_path / "00012.tar", members).read_bytes()
    bucket.put("photos/00012.tar", shard)
    bucket.put("photos/2019/a b?x#.png", members["00000.png"])
    bucket.put("private/secret.png", members["00001.png"])
    root = f"s3://{bucket.name}/photos"
    own = stored_payload(root, "2019/a b?x#.png", members["00000.png"])
    return {"own": own, **shard_payloads(root, "00012.tar", shard, members)}


def test_pictures_of_a_bucket_are_fetched_by_one_ranged_read(
    bucket: Bucket, members: dict[str, bytes], far: dict[str, dict[str, Any]]
) -> None:
    door = Door([f"s3://{bucket.name}/photos/"])
    for name, data in members.items():
        with door.open(far[name]) as file:
            assert file.read() == data
    at, size = far["00000.png"]["at"], len(members["00000.png"])
    assert bucket.gets()[0] == (f"/{bucket.name}/photos/00012.tar", f"bytes={at}-{at + size - 1}")
    assert len(bucket.gets()) == 3
    # The shard was opened once, and what was read a moment ago is not read again.
    assert [method for method, _, _ in bucket.requests].count("HEAD") == 1
    bucket.requests.clear()
    for name, data in members.items():
        with door.open(far[name]) as file:
            assert file.read() == data
    assert bucket.requests == []
    with door.open(far["own"]) as file:
        assert file.read() == members["00000.png"]


def test_a_large_picture_of_a_bucket_is_fetched_in_pieces_to_disk(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], far: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setattr("imret.sources.opened.IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("imret.sources.named_roots._CHUNK_BYTES", 128)
    with Door([f"s3://{bucket.name}"]).open(far["00001.png"]) as file:
        assert file.read() == members["00001.png"]
    assert len(bucket.gets()) == -(-len(members["00001.png"]) // 128)
    monkeypatch.setattr("imret.sources.opened.MAX_FETCHED_BYTES", 100)
    with pytest.raises(ImageError, match="more than the 100 that are read"):
        Door([f"s3://{bucket.name}"]).open(far["00002.png"])
    monkeypatch.undo()


def test_looking_asks_no_bucket(bucket: Bucket, far: dict[str, dict[str, Any]]) -> None:
    door = Door([f"s3://{bucket.name}/photos"])
    seen = [door.look(stored_place(payload)) for payload in far.values()]
    assert all(opened.is_far for opened in seen)
    assert len({opened.identity for opened in seen}) == len(far)
    assert bucket.requests == []


@pytest.mark.parametrize("change", ["replaced", "shorter", "gone"])
def test_a_shard_of_a_bucket_that_has_changed_gives_nothing(
    bucket: Bucket, tmp_path: Path, members: dict[str, bytes], far: dict[str, dict[str, Any]], change: str
) -> None:
    door = Door([f"s3://{bucket.name}/photos"])
    door.open(far["00000.png"]).close()  # it stays open
    other = write_tar(tmp_path / "other.tar", {"new.png": members["00001.png"], **members}).read_bytes()
    if change == "gone":
        bucket.remove("photos/00012.tar")
    else:
        bucket.put("photos/00012.tar", other if change == "replaced" else other[:100])
    with pytest.raises(NotThere, match="ingest again"):
        door.open(far["00001.png"])
    if change == "replaced":  # and ingested again
        again = shard_payloads(f"s3://{bucket.name}/photos", "00012.tar", other, members)
        with door.open(again["00001.png"]) as file:
            assert file.read() == members["00001.png"]


def test_nothing_is_fetched_but_below_a_named_root(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, far: dict[str, dict[str, Any]]
) -> None:
    root = f"s3://{bucket.name}/photos"
    for door in (Door(), own_door(), Door([tmp_path]), Door([f"{root}/2020"]), Door([f"{root}-of-others"])):
        with pytest.raises(ImageError, match="a bucket that was not named"):
            door.open(far["00000.png"])
        assert door.refusal(far["00000.png"]) == root
    monkeypatch.setenv("IMRET_ROOTS", f"s3://other-bucket {root}")
    for door in (Door(), own_door()):
        assert door.refusal(far["00000.png"]) == ""
        door.open(far["00000.png"]).close()


FORGED = (
    {"source": "file:///etc", "path": "passwd"},
    {"source": "http://127.0.0.1:1/photos"},
    {"source": "https://evil.example/photos"},
    {"source": "ftp://bucket/photos"},
    {"source": "s3://other-bucket/photos"},
    {"source": "s3://bucket/private", "path": "secret.png"},
    {"source": "s3://bucket/photos/../private", "path": "secret.png"},
    {"source": "s3://bucket/photos", "path": "../private/secret.png"},
    {"source": "s3://bucket/photos/.", "path": "../private/secret.png"},
    {"source": "s3://bucket//photos"},
    {"source": "s3://bucket/photos/"},
    {"source": "s3://bucket/photos?endpoint_override=evil.example"},
    {"source": "s3://bucket/photos/x?endpoint_override=evil.example&scheme=http"},
    {"source": "s3://key:secret@bucket/photos"},
    {"source": "s3://bucket:80/photos"},
    {"source": "s3://bucket/photos\n"},
    {"source": "s3://"},
    {"source": "S3://bucket/photos"},
    {"source": "s3:/bucket/photos"},
    {"source": "//bucket/photos"},
    {"source": "s3://bucket/photos", "path": "//evil.example/a.png"},
    {"source": "s3://bucket/photos", "size_bytes": 1 << 50},
    {"source": "s3://bucket/photos", "size_bytes": -1},
    {"source": "s3://bucket/photos", "sha256": ""},
)


@pytest.mark.parametrize("change", FORGED, ids=lambda change: " ".join(map(str, change.values())))
def test_a_forged_payload_makes_nobody_fetch(
    bucket: Bucket, far: dict[str, dict[str, Any]], change: dict[str, Any]
) -> None:
    door = Door([f"s3://{bucket.name}/photos"])
    bucket.requests.clear()
    with pytest.raises(ImageError):
        door.open(far["own"] | change)
    # What has an odd name below the root is asked for there, as the name of an object.
    assert {key for _, key, _ in bucket.requests} <= {
        f"/{bucket.name}/photos/x?endpoint_override=evil.example&scheme=http/2019/a b?x#.png"
    }


def test_a_store_that_refuses_or_is_away_is_told_without_its_name(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, far: dict[str, dict[str, Any]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # at which nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NotReachable, match="does not answer") as caught:
            Door([f"s3://{bucket.name}/photos"]).open(far["own"])
    assert bucket.name not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_root_that_is_no_bucket_is_refused() -> None:
    for url in ("https://example.org/photos", "file:///photos", "s3://", "s3://a:1/b", "s3://a/../b"):
        with pytest.raises(DataError):
            Door([url])


# Who opens a stored picture by its path, and why no door is needed: it is asked for the file, not shown.
_BESIDE_THE_DOOR = {
    "imret/client/search.py",  # the path of a hit
    "imret/retrieval/search.py",  # the same
    "imret/retrieval/conditions.py",  # the same
    "imret/retrieval/query_vector.py",  # names several in an error
    "imret/web/handlers.py",  # the path of a picture
    "imret/sources/opened.py",
    "imret/sources/safe_open.py",
    "imret/store/payload.py",
    "ingest/last_look.py",  # looks whether a file of its own source can be read
    "ingest/settle.py",  # compares places
}


def test_nothing_else_opens_pictures_by_their_payloads() -> None:
    root = Path(imret.__file__).parents[1]
    users = {
        file.relative_to(root).as_posix()
        for package in ("imret", "ingest", "finetune")
        for file in (root / package).rglob("*.py")
        if re.search(r"\bfile_of\b", file.read_text())
    }
    assert users == _BESIDE_THE_DOOR
