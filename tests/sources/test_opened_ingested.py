"""What ingest stores of shards, Parquet files and prefixes is what the door opens, here and in a bucket."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from imret.errors import ImageError
from imret.sources.named_roots import NotThere
from imret.sources.opened import Door
from imret.store.payload import make_payload
from ingest.remote import ListSource, PrefixSource
from ingest.shards import ShardSource
from ingest.sources import Record, Source
from tests.fakes.object_store import Bucket, served_bucket
from tests.fakes.pictures import draw_picture

pa = pytest.importorskip("pyarrow", reason="needs the extra remote: pip install 'imret[remote]'")
pq = pytest.importorskip("pyarrow.parquet")

LAYOUTS = ("img2dataset tar", "img2dataset", "hugging face", "without keys", "one large group")


@pytest.fixture
def drawn(tmp_path: Path) -> dict[str, bytes]:
    """Pictures by what they are called."""
    return {f"{i:09}": draw_picture(tmp_path / "drawn" / f"{i}.png", seed=i).read_bytes() for i in range(12)}


def write_container(folder: Path, layout: str, drawn: Mapping[str, bytes]) -> Path:
    """Write pictures as img2dataset and Hugging Face's datasets do."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "img2dataset tar":
        file = folder / "00000.tar"
        with tarfile.open(file, "w") as archive:
            for key, data in drawn.items():
                said = json.dumps({"key": key, "caption": "a drawing"}).encode()
                for suffix, content in (("png", data), ("json", said), ("txt", b"a drawing")):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return file
    file = folder / "00000.parquet"
    pictures = list(drawn.values())
    columns: dict[str, Any]
    if layout == "hugging face":
        columns = {
            "image": [{"bytes": data, "path": f"train/{key}.png"} for key, data in drawn.items()],
            "label": list(range(len(drawn))),
        }
    elif layout == "without keys":
        columns = {"image": [{"bytes": data, "path": None} for data in pictures]}
    else:
        columns = {"key": list(drawn), "status": ["success"] * len(drawn), "jpg": pictures}
    table = pa.table(columns)
    if layout == "without keys":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(columns["image"], kind)})
    pq.write_table(table, file, row_group_size=len(drawn) if layout == "one large group" else 5)
    return file


def payloads_of(source: Source) -> dict[bytes, dict[str, Any]]:
    """Return what ingest would store of each picture of a source, by its bytes."""
    import hashlib

    found = {}
    for record in source.entries():
        if isinstance(record, Record):
            data = record.read()
            found[data] = make_payload(
                source=record.source,
                path=record.path,
                category=record.category,
                sha256=hashlib.sha256(data).hexdigest(),
                width=64,
                height=48,
                size_bytes=len(data),
                modified=record.modified,
                unit=record.unit,
                at=record.at,
            )
    return found


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with served_bucket(monkeypatch) as bucket:
        yield bucket


def check_all(door: Door, payloads: Mapping[bytes, dict[str, Any]], drawn: Mapping[str, bytes]) -> None:
    assert sorted(payloads) == sorted(drawn.values())
    for data, payload in payloads.items():
        with door.open(payload) as file:
            assert file.read() == data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_a_container_in_a_folder_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: dict[str, bytes], layout: str
) -> None:
    if layout == "one large group":
        monkeypatch.setattr("imret.sources.parquet_rows._GROUP_BYTES", 100)
    write_container(tmp_path / "shards" / "a", layout, drawn)
    payloads = payloads_of(ShardSource(str(tmp_path / "shards")))
    check_all(Door(), payloads, drawn)
    check_all(Door(is_guarded=False), payloads, drawn)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_a_container_in_a_bucket_are_opened(
    tmp_path: Path, bucket: Bucket, drawn: dict[str, bytes], layout: str
) -> None:
    file = write_container(tmp_path, layout, drawn)
    bucket.put(f"data/{file.name}", file.read_bytes())
    root = f"s3://{bucket.name}/data"
    payloads = payloads_of(ShardSource(root))
    bucket.requests.clear()
    check_all(Door([root]), payloads, drawn)
    if file.suffix == ".parquet":  # read by row groups, not by pictures
        n_requests = len(bucket.requests)
        check_all(Door([root]), dict(itertools.islice(payloads.items(), 5)), dict(list(drawn.items())[:5]))
        assert n_requests < 2 * len(drawn)


def test_a_row_group_is_read_once_for_its_neighbours(
    tmp_path: Path, bucket: Bucket, drawn: dict[str, bytes]
) -> None:
    file = write_container(tmp_path, "img2dataset", drawn)
    bucket.put(f"data/{file.name}", file.read_bytes())
    payloads = list(payloads_of(ShardSource(f"s3://{bucket.name}/data")).values())
    door = Door([f"s3://{bucket.name}/data"])
    door.open(payloads[0]).close()
    bucket.requests.clear()
    for payload in payloads[1:5]:
        door.open(payload).close()
    assert bucket.requests == []
    door.open(payloads[5]).close()
    assert bucket.requests != []


@pytest.mark.parametrize("is_far", [False, True])
@pytest.mark.parametrize("change", ["other pictures", "row gone", "rows moved", "damaged", "gone"])
def test_a_parquet_file_that_has_changed_gives_no_other_picture(
    tmp_path: Path, bucket: Bucket, drawn: dict[str, bytes], change: str, is_far: bool
) -> None:
    file = write_container(tmp_path / "shards", "img2dataset", drawn)
    key = f"data/{file.name}"
    bucket.put(key, file.read_bytes())
    root = f"s3://{bucket.name}/data" if is_far else str(tmp_path / "shards")
    payloads = payloads_of(ShardSource(root))
    door = Door([root])
    data, payload = list(payloads.items())[7]
    door.open(next(iter(payloads.values()))).close()  # the file is open, its keys are known
    names, pictures = list(drawn), list(drawn.values())
    changed = {
        "other pictures": dict(zip(names, pictures[::-1], strict=True)),
        "row gone": dict(list(drawn.items())[:7]),
        "rows moved": dict(list(drawn.items())[3:]),
    }.get(change)
    if changed is not None:
        write_container(tmp_path / "shards", "img2dataset", changed)
        bucket.put(key, file.read_bytes())
    elif change == "damaged":
        file.write_bytes(b"PAR1" + bytes(500))
        bucket.put(key, file.read_bytes())
    else:
        file.unlink()
        bucket.remove(key)
    if change == "rows moved":  # the key counts, not the number of the row
        with door.open(payload) as opened:
            assert opened.read() == data
        return
    with pytest.raises(ImageError) as caught:
        door.open(payload)
    if change in ("other pictures", "row gone"):
        assert isinstance(caught.value, NotThere)


def test_pictures_of_a_prefix_and_of_a_list_of_addresses_are_opened_below_a_named_root(
    tmp_path: Path, bucket: Bucket, drawn: dict[str, bytes]
) -> None:
    for key, data in drawn.items():
        bucket.put(f"photos/2019/{key}.png", data)
    root = f"s3://{bucket.name}/photos"
    check_all(Door([root]), payloads_of(PrefixSource(root)), drawn)
    addresses = tmp_path / "addresses.txt"
    addresses.write_text("".join(f"{root}/2019/{key}.png\n" for key in drawn))
    listed = payloads_of(ListSource(str(addresses)))
    check_all(Door([root]), listed, drawn)
    bucket.requests.clear()
    for door in (Door(), Door([tmp_path]), Door([f"{root}/2020"]), Door(is_guarded=False)):
        for payload in listed.values():
            with pytest.raises(ImageError, match="was not named"):
                door.open(payload)
    on_web = next(iter(listed.values())) | {"path": "http://127.0.0.1:1/a.png"}
    with pytest.raises(ImageError, match="lies on the web"):
        Door([root]).open(on_web)
    with pytest.raises(ImageError, match="not named"):
        Door([root]).open(on_web | {"path": "file://etc/passwd"})
    assert bucket.requests == []
