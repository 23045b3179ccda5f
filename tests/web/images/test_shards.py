"""Pictures of shards and buckets over HTTP: shown by ranged reads, and none fetched that no root names."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from imret import Encoder
from imret.store import open_store
from imret.store.payload import point_id
from imret.web.app import create_app
from imret.web.images.files import ImageFiles
from imret.web.pool.collections import CollectionPool
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.object_store import Bucket, served_bucket
from tests.fakes.pictures import draw_picture
from tests.fakes.shards import shard_payloads, stored_payload, write_tar

UNNAMED = {"source": "s3://other-bucket/photos", "sha256": "ab" * 32}


@dataclass
class Served:
    """A server over a collection whose pictures lie in a shard, in one of a bucket, and in the bucket itself.

    Attributes:
        client: Asks it.
        ids: Of the points, by a name for each.
        data: Their pictures' bytes, likewise.
        shard: The local one.
        bucket: The bucket.
    """

    client: TestClient
    ids: dict[str, str]
    data: dict[str, bytes]
    shard: Path
    bucket: Bucket

    def get(self, what: str, name: str, **headers: str) -> Any:
        return self.client.get(f"/api/v1/{what}/{self.ids[name]}", headers=headers)


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def served(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served_bucket(monkeypatch) as bucket:
        folder = tmp_path / "drawn"
        members = {f"{i}.png": draw_picture(folder / f"{i}.png", seed=i).read_bytes() for i in range(4)}
        turned = io.BytesIO()
        tags = Image.Exif()
        tags[0x0112] = 6
        Image.open(folder / "0.png").save(turned, "PNG", exif=tags)  # one that is sent as a JPEG
        members["turned.png"] = turned.getvalue()
        shard = write_tar(tmp_path / "shards" / "0.tar", members)
        bucket.put("photos/0.tar", shard.read_bytes())
        bucket.put("photos/own.png", members["3.png"])
        root = f"s3://{bucket.name}/photos"
        payloads: dict[str, dict[str, Any]] = {}
        for prefix, source in (("near", tmp_path / "shards"), ("far", root)):
            of_shard = shard_payloads(source, "0.tar", shard.read_bytes(), members)
            payloads |= {f"{prefix} {name}": payload for name, payload in of_shard.items()}
        own = stored_payload(root, "own.png", members["3.png"])
        payloads |= {"own": own, "forged": own | UNNAMED}
        ids = {name: point_id(payload["source"], payload["path"]) for name, payload in payloads.items()}
        db = tmp_path / "store"
        with open_store(db) as store:
            ingest(store, [FolderSource(folder)], encoder=encoder)
            with closing(store.open("photos")) as opened:
                points = [point for some in opened.scan(vectors=True) for point in some]
                opened.delete([point.id for point in points])
                vectors = np.stack([points[i % len(points)].vector for i in range(len(ids))])  # type: ignore[misc]
                opened.upsert(list(ids.values()), vectors, list(payloads.values()))
        pool = CollectionPool(lambda: open_store(db, create=False), device="cpu", precision="fp32")
        files = ImageFiles(tmp_path / "thumbnails", roots=[tmp_path / "shards", f"{root}/"])
        app = create_app(pool, default="photos", image_files=files, host="127.0.0.1", port=8750)
        client = TestClient(app, base_url="http://127.0.0.1:8750", raise_server_exceptions=False)
        data = {f"{prefix} {name}": member for prefix in ("near", "far") for name, member in members.items()}
        data["own"] = members["3.png"]
        bucket.requests.clear()
        with closing(pool):
            yield Served(client, ids, data, shard, bucket)


def test_thumbnails_and_originals_of_shards_and_buckets_are_shown(served: Served) -> None:
    for name, data in served.data.items():
        thumbnail, original = served.get("thumbnails", name), served.get("images", name)
        assert thumbnail.status_code == original.status_code == 200
        assert Image.open(io.BytesIO(thumbnail.content)).format == "JPEG"
        if "turned" in name:
            assert original.headers["content-type"] == "image/jpeg"
        else:
            assert original.content == data
            assert original.headers["content-type"] == "image/png"
    # Each picture of the bucket was read once, by its range, for both.
    assert sorted(key for key, _ in served.bucket.gets()) == [
        *[f"/{served.bucket.name}/photos/0.tar"] * 5,
        f"/{served.bucket.name}/photos/own.png",
    ]


def test_what_is_kept_or_unchanged_asks_no_bucket(served: Served) -> None:
    first = served.get("thumbnails", "far 0.png")
    served.bucket.requests.clear()
    assert served.get("thumbnails", "far 0.png").content == first.content
    unchanged = served.get("thumbnails", "far 0.png", **{"If-None-Match": first.headers["etag"]})
    assert unchanged.status_code == 304
    never_read = served.get("images", "far 1.png", **{"If-None-Match": '"no such"'})
    etag = never_read.headers["etag"]
    assert etag != first.headers["etag"]
    served.bucket.requests.clear()
    assert served.get("images", "far 1.png", **{"If-None-Match": etag}).status_code == 304
    assert served.bucket.requests == []


def test_a_shard_that_has_changed_is_not_found_and_says_what_to_do(served: Served) -> None:
    other = served.shard.read_bytes()[512:]
    served.shard.write_bytes(other)
    served.bucket.put("photos/0.tar", other)
    served.bucket.remove("photos/own.png")
    for name in ("near 0.png", "far 0.png", "own"):
        for what in ("thumbnails", "images"):
            answer = served.get(what, name)
            assert answer.status_code == 404
            assert "ingest again: imret ingest" in answer.json()["detail"]


def test_a_forged_source_is_refused_and_nothing_is_fetched(served: Served) -> None:
    for what in ("thumbnails", "images"):
        answer = served.get(what, "forged")
        assert answer.status_code == 422
        assert "a bucket that was not named" in answer.json()["detail"]
        assert "other" not in answer.text
    assert served.bucket.requests == []


def test_a_bucket_that_does_not_answer_is_to_be_tried_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # at which nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        answer = served.get("thumbnails", "far 0.png")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "does not answer" in answer.json()["detail"]
    assert served.get("thumbnails", "near 0.png").status_code == 200


def test_classify_and_duplicates_go_through_the_same_door(served: Served) -> None:
    names = ["near 1.png", "far 1.png", "own"]
    form = [("id", (None, served.ids[name])) for name in [*names, "forged"]]
    form += [("label", (None, label)) for label in ("owl", "mushroom")]
    pictures = served.client.post("/api/v1/classify", files=form).json()["pictures"]
    assert [bool(picture["predictions"]) for picture in pictures] == [True, True, True, False]
    assert "a bucket that was not named" in pictures[3]["reason"]
    found = served.client.get("/api/v1/search", params={"q": "owl", "unique": "true", "limit": "20"}).json()
    # Five pictures, each once, and the one that may not be looked at.
    assert sum(hit["folded"] + 1 for hit in found["hits"]) == len(served.ids)
    assert len(found["hits"]) <= 6
    assert any("not looked at for duplicates" in note for note in found["notes"])
    assert not any(os.sep + "other" in note for note in found["notes"])
