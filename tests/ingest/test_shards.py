"""Tar and Parquet files as sources: written by the writers that people use, and by hand."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret import Encoder, open_store
from imret.datasets.scan import Ignored, Skipped
from imret.errors import DataError
from imret.places.reading import read_range
from imret.store import Point
from ingest.dry_run import dry_run
from ingest.find_source import find_sources
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.shards import ShardSource
from ingest.sources import Entry, FolderSource, PartSource, Record
from tests.fakes.pictures import draw_picture

N = 6


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("pictures")
    return [draw_picture(folder / f"{seed}.jpg", seed=seed).read_bytes() for seed in range(N)]


def write_tar(file: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def entries(folder: Path, **options: Any) -> list[Entry]:
    return list(ShardSource(str(folder), **options).entries())


def records(folder: Path, **options: Any) -> dict[str, Record]:
    return {entry.path: entry for entry in entries(folder, **options) if isinstance(entry, Record)}


def skips(folder: Path) -> dict[str, str]:
    return {entry.path: entry.reason for entry in entries(folder) if isinstance(entry, Skipped)}


def run(names: list[Path] | list[str], db: Path, encoder: Encoder, **options: Any) -> Report:
    with open_store(str(db)) as store:
        return ingest(store, find_sources([str(name) for name in names]), encoder=encoder, **options)


def stored(db: Path) -> dict[str, Point]:
    with open_store(str(db), create=False) as store, closing(store.open("photos")) as opened:
        return {p.payload["path"]: p for batch in opened.scan(vectors=True) for p in batch}


# ---- What lies in them ----------------------------------------------------------------------------


def test_a_tar_by_webdatasets_writer_has_captions_categories_and_what_else_is_said(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    wds = pytest.importorskip("webdataset", reason="needs webdataset")
    with wds.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for n, data in enumerate(pictures):
            said = {
                "category": "fungi",
                "url": f"http://x/{n}",
                "sha256": "other",
                "exif": "{}",
                "none": None,
            }
            writer.write({"__key__": f"00000{n:04}", "jpg": data, "txt": f"caption {n}", "json": said})
    found = records(tmp_path)
    assert list(found) == [f"00000.tar/00000{n:04}.jpg" for n in range(N)]
    for n, record in enumerate(found.values()):
        assert record.read() == pictures[n]
        assert (record.category, record.caption, record.meta) == (
            "fungi",
            f"caption {n}",
            {"url": f"http://x/{n}"},
        )
        assert (record.unit, record.size_bytes, record.file) == ("00000.tar", len(pictures[n]), None)
        assert record.at is not None
        assert read_range(str(tmp_path / "00000.tar"), record.at, record.size_bytes) == pictures[n]


def img2dataset_writers() -> Any:
    """Return the module of img2dataset's own writers, without what the rest of it needs."""
    pytest.importorskip("webdataset", reason="needs webdataset")
    home = importlib.util.find_spec("img2dataset")
    if home is None or not home.submodule_search_locations:
        pytest.skip("needs img2dataset: pip install --no-deps img2dataset fsspec")
    file = Path(home.submodule_search_locations[0]) / "writer.py"
    spec = importlib.util.spec_from_file_location("img2dataset_writer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("layout", ["WebDatasetSampleWriter", "ParquetSampleWriter"])
def test_what_img2dataset_writes_is_read_without_what_it_could_not_download(
    layout: str, tmp_path: Path, pictures: list[bytes]
) -> None:
    import pyarrow as pa

    texts = ("key", "url", "caption", "status", "error_message", "exif", "sha256")
    fields = {**dict.fromkeys(texts, "string"), "width": "int32", "height": "int32"}
    schema = pa.schema([pa.field(name, getattr(pa, kind)()) for name, kind in fields.items()])
    if layout == "ParquetSampleWriter":
        schema = schema.append(pa.field("txt", pa.string()))
    writer = getattr(img2dataset_writers(), layout)(0, str(tmp_path), True, 5, schema, "jpg")
    for n, data in enumerate(pictures):
        is_lost = n == 2
        meta: dict[str, Any] = dict.fromkeys(fields)
        meta |= {"key": f"00000{n:04}", "url": f"http://x/{n}", "caption": f"caption {n}"}
        meta |= {"status": "failed_to_download" if is_lost else "success", "width": 64, "height": 48}
        writer.write(None if is_lost else data, meta["key"], meta["caption"], meta)
    writer.close()
    (tmp_path / "00000_stats.json").write_text("{}")
    found = records(tmp_path)
    assert [record.read() for record in found.values()] == [data for n, data in enumerate(pictures) if n != 2]
    assert [record.caption for record in found.values()] == [f"caption {n}" for n in range(N) if n != 2]
    assert all(record.meta and record.meta["url"].startswith("http://x/") for record in found.values())
    lost = [entry.reason for entry in entries(tmp_path) if not isinstance(entry, Record)]
    assert lost == (["not downloaded"] if layout == "ParquetSampleWriter" else [])


def test_parquet_of_hugging_face_has_its_pictures_and_their_paths_as_keys(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    images = [{"bytes": data, "path": f"birds/{n}.jpg"} for n, data in enumerate(pictures)]
    images += [{"bytes": None, "path": "lost.jpg"}, None]
    columns = {"image": images, "text": [f"caption {n}" for n in range(N + 2)], "label": list(range(N + 2))}
    parquet.write_table(pa.table(columns), tmp_path / "train-0.parquet", row_group_size=3)
    found = records(tmp_path)
    assert list(found) == [f"train-0.parquet/birds/{n}.jpg" for n in range(N)]
    record = found["train-0.parquet/birds/3.jpg"]
    assert (record.read(), record.category, record.caption) == (pictures[3], "birds", "caption 3")
    assert (record.meta, record.at) == ({"label": 3}, None)
    assert [e.reason for e in entries(tmp_path) if isinstance(e, Ignored)] == ["not downloaded"] * 2


def test_labels_of_hugging_face_are_categories_by_their_names(tmp_path: Path, pictures: list[bytes]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    images = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(pictures)]
    coarse, labels = [0] * N, [n % 2 for n in range(N - 2)] + [7, None]
    table = pa.table({"image": images, "coarse": coarse, "label": labels})
    features = {
        "image": {"_type": "Image"},
        "coarse": {"names": ["animal"], "_type": "ClassLabel"},
        "label": {"names": ["owl", "fox"], "_type": "ClassLabel"},
    }
    said = json.dumps({"info": {"features": features}})
    parquet.write_table(table.replace_schema_metadata({"huggingface": said}), tmp_path / "train.parquet")
    found = list(records(tmp_path).values())
    assert [record.category for record in found] == ["owl", "fox", "owl", "fox", None, None]
    assert found[1].meta == {"coarse": "animal", "label": "fox"}
    assert found[N - 2].meta == {"coarse": "animal", "label": 7}
    for odd in ("[]", "{", '{"info": 3}', '{"info": {"features": {"label": {"names": 3}}}}'):
        parquet.write_table(table.replace_schema_metadata({"huggingface": odd}), tmp_path / "train.parquet")
        assert {record.category for record in records(tmp_path).values()} == {None}


def test_rows_without_a_key_are_known_by_their_pictures_wherever_they_stand(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"jpg": pictures}), tmp_path / "a.parquet")
    before = records(tmp_path)
    parquet.write_table(pa.table({"jpg": pictures[::-1][:3]}), tmp_path / "a.parquet")
    after = records(tmp_path)
    assert len(before) == N
    assert set(after) < set(before)


def test_parquet_beside_a_tar_of_its_name_or_without_pictures_is_no_source(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    write_tar(tmp_path / "0.tar", [("a.jpg", pictures[0])])
    parquet.write_table(pa.table({"jpg": pictures}), tmp_path / "0.parquet")
    parquet.write_table(pa.table({"key": ["a"]}), tmp_path / "1.parquet")
    assert list(records(tmp_path)) == ["0.tar/a.jpg"]
    assert [e.path for e in entries(tmp_path) if isinstance(e, Ignored)] == ["1.parquet"]


def test_each_member_that_looks_like_a_picture_is_one_and_its_notes_stand_anywhere(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    said = json.dumps(
        {"category": "from json", "caption": "of json", "score": 0.5, "deep": {"x": 1}}
    ).encode()
    write_tar(
        tmp_path / "a.tar",
        [
            ("aves/1.json", said),
            ("./aves/1.jpg", pictures[0]),
            ("2.small.jpg", pictures[1]),  # a picture of its own, as 2.large.png is
            ("2.large.png", pictures[2]),
            ("fungi/3.jpg", pictures[3]),
            ("2.small.txt", "späte Zeile".encode()),
            ("broken.json", b"{"),
            ("broken.jpg", pictures[4]),
            ("._hidden.jpg", b"x"),
            ("notes.npy", b"x"),
        ],
    )
    found = records(tmp_path)
    assert {path: (record.category, record.caption) for path, record in found.items()} == {
        "a.tar/aves/1.jpg": ("from json", "of json"),
        "a.tar/2.small.jpg": (None, "späte Zeile"),
        "a.tar/2.large.png": (None, None),
        "a.tar/fungi/3.jpg": ("fungi", None),
        "a.tar/broken.jpg": (None, None),
    }
    assert found["a.tar/aves/1.jpg"].meta == {"score": 0.5}
    assert {record.category for record in records(tmp_path, categories=False).values()} == {None}
    assert set(records(tmp_path, exclude=["fungi/", "*.png"])) == {
        "a.tar/aves/1.jpg", "a.tar/2.small.jpg", "a.tar/broken.jpg"
    }  # fmt: skip


def test_two_members_of_one_name_are_the_first_and_a_skip(tmp_path: Path, pictures: list[bytes]) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", pictures[0]), ("b.jpg", pictures[1]), ("a.jpg", pictures[2])])
    assert {path: record.read() for path, record in records(tmp_path).items()} == {
        "a.tar/a.jpg": pictures[0], "a.tar/b.jpg": pictures[1]
    }  # fmt: skip
    assert skips(tmp_path) == {"a.tar/a.jpg": "a second file of that name in it; the first is taken"}


def test_a_name_that_leads_out_of_a_tar_is_a_skip(tmp_path: Path, pictures: list[bytes]) -> None:
    write_tar(tmp_path / "a.tar", [("../../etc/a.jpg", pictures[0]), ("/b.jpg", pictures[1])])
    assert list(records(tmp_path)) == ["a.tar/b.jpg"]
    assert list(skips(tmp_path).values()) == ["its name leads out of the tar file"]


@pytest.mark.parametrize("at", ["within a picture", "between two"])
def test_a_truncated_tar_gives_what_is_whole_and_says_where_it_ends(
    at: str, tmp_path: Path, pictures: list[bytes]
) -> None:
    file = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", data) for n, data in enumerate(pictures)])
    whole = records(tmp_path)
    third = whole["a.tar/2.jpg"]
    assert third.at is not None
    cut = third.at + 100 if at == "within a picture" else third.at - 512
    file.write_bytes(file.read_bytes()[:cut])
    assert list(records(tmp_path)) == ["a.tar/0.jpg", "a.tar/1.jpg"]
    told = skips(tmp_path)
    assert "damaged or cut off after" in told["a.tar"]
    if at == "within a picture":
        assert told["a.tar/2.jpg"] == "cut off with the file that it is in"


@pytest.mark.parametrize("content", [b"", b"not a tar file" * 100, b"PAR1" * 50])
@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_file_that_is_none_of_these_is_a_skip(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    told = skips(tmp_path)
    assert list(told) == [name]
    assert "damaged" in told[name]


def test_a_compressed_tar_says_how_to_unpack_it(tmp_path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    os.link(tmp_path / "a.tar.gz", tmp_path / "named.tar")
    told = skips(tmp_path)
    assert told["a.tar.gz"].endswith("Unpack it once, to a .tar: gunzip a.tar.gz")
    assert "gzip" in told["named.tar"]
    with pytest.raises(DataError, match=r"gunzip a.tar.gz, and ingest a.tar"):
        find_sources([str(tmp_path / "a.tar.gz")])


def test_a_shard_that_is_replaced_while_it_is_read_is_told_and_taken_by_the_next_run(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    write_tar(tmp_path / "s" / "a.tar", [("1.jpg", pictures[0]), ("2.jpg", pictures[1])])
    reading = iter(ShardSource(str(tmp_path / "s")).entries())
    first = next(reading)
    os.replace(write_tar(tmp_path / "b.tar", [("3.jpg", pictures[2])]), tmp_path / "s" / "a.tar")
    rest = list(reading)
    assert isinstance(first, Record)
    assert first.read() == pictures[0]
    assert isinstance(rest[-1], Skipped)
    assert rest[-1].reason.startswith("replaced while it was read")
    assert rest[-1].unseen
    assert list(records(tmp_path / "s")) == ["a.tar/3.jpg"]


# ---- What becomes of them -------------------------------------------------------------------------


def test_shards_give_the_vectors_and_facts_that_their_pictures_give_as_files(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    for n, data in enumerate(pictures):
        file = tmp_path / "files" / "fungi" / f"{n}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    members = [(f"fungi/{n}.jpg", data) for n, data in enumerate(pictures)]
    write_tar(tmp_path / "tars" / "0.tar", [*members[:4], ("fungi/0.txt", b"a caption")])
    write_tar(tmp_path / "tars" / "1.tar", members[4:])
    assert run([tmp_path / "files"], tmp_path / "one", encoder).added == N
    report = run([tmp_path / "tars"], tmp_path / "two", encoder)
    assert (report.added, report.encoded, len(report.skipped)) == (N, N, 0)
    files, members_stored = stored(tmp_path / "one"), stored(tmp_path / "two")
    for n in range(N):
        shard = f"{0 if n < 4 else 1}.tar"
        one, other = files[f"fungi/{n}.jpg"], members_stored[f"{shard}/fungi/{n}.jpg"]
        np.testing.assert_array_equal(one.vector, other.vector)
        same = ("category", "sha256", "width", "height", "size_bytes")
        assert {name: one.payload[name] for name in same} == {name: other.payload[name] for name in same}
        assert other.payload["unit"] == shard
        part = read_range(str(tmp_path / "tars" / shard), other.payload["at"], other.payload["size_bytes"])
        assert part == pictures[n]
    assert members_stored["0.tar/fungi/0.jpg"].payload["caption"] == "a caption"
    again = run([tmp_path / "tars"], tmp_path / "two", encoder)
    assert (again.unchanged, again.added, again.encoded, again.compared) == (N, 0, 0, 0)


def test_what_goes_from_a_shard_or_with_it_is_missing_and_goes_with_prune(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    members = [(f"{n}.jpg", data) for n, data in enumerate(pictures)]
    write_tar(tmp_path / "t" / "0.tar", members[:3])
    write_tar(tmp_path / "t" / "1.tar", members[3:5])
    write_tar(tmp_path / "t" / "2.tar", members[5:])
    run([tmp_path / "t"], tmp_path / "db", encoder)
    write_tar(tmp_path / "t" / "0.tar", members[:2])
    os.utime(tmp_path / "t" / "0.tar", ns=(1, 1))
    (tmp_path / "t" / "2.tar").unlink()
    with open_store(str(tmp_path / "db"), create=False) as store:
        told = dry_run(store, find_sources([str(tmp_path / "t")]), prune=True)
    assert (told.removed, told.unchanged) == (2, 4)
    report = run([tmp_path / "t"], tmp_path / "db", encoder)
    assert (report.unchanged, report.missing, report.removed, report.encoded) == (4, 2, 0, 0)
    report = run([tmp_path / "t"], tmp_path / "db", encoder, prune=True)
    assert (report.unchanged, report.missing, report.removed) == (4, 0, 2)
    assert sorted(stored(tmp_path / "db")) == ["0.tar/0.jpg", "0.tar/1.jpg", "1.tar/3.jpg", "1.tar/4.jpg"]


def test_a_truncated_shard_loses_nothing_that_is_stored(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    file = write_tar(tmp_path / "t" / "0.tar", [(f"{n}.jpg", data) for n, data in enumerate(pictures)])
    run([tmp_path / "t"], tmp_path / "db", encoder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    report = run([tmp_path / "t"], tmp_path / "db", encoder, prune=True)
    assert report.removed == 0
    assert len(stored(tmp_path / "db")) == N
    assert sum(one.images for one in report.out_of_reach) > 0
    file.unlink()
    write_tar(tmp_path / "t" / "1.tar", [("x.jpg", pictures[0])])
    assert run([tmp_path / "t"], tmp_path / "db", encoder, prune=True).moved == 1


def test_pictures_that_go_to_other_shards_keep_their_vectors(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    members = [(f"{n}.jpg", data) for n, data in enumerate(pictures)]
    write_tar(tmp_path / "t" / "old.tar", members)
    run([tmp_path / "t"], tmp_path / "db", encoder)
    (tmp_path / "t" / "old.tar").unlink()
    write_tar(tmp_path / "t" / "a.tar", members[:3])
    write_tar(tmp_path / "t" / "b.tar", members[3:])
    report = run([tmp_path / "t"], tmp_path / "db", encoder)
    assert (report.moved, report.encoded, report.missing) == (N, 0, 0)
    assert len(stored(tmp_path / "db")) == N


def test_some_of_the_shards_of_a_folder_are_ingested_and_the_others_are_not_missed(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    for n, data in enumerate(pictures):
        write_tar(tmp_path / "t" / f"{n:05}.tar", [("a.jpg", data)])
    pattern = str(tmp_path / "t" / "{00000..00003}.tar")
    assert run([pattern], tmp_path / "db", encoder).added == 4
    one = [str(tmp_path / "t" / f"0000{n}.tar") for n in (3, 4)]
    (source,) = find_sources(one)
    assert source.root == str(tmp_path / "t")
    report = run(one, tmp_path / "db", encoder, prune=True)
    assert (report.added, report.unchanged, report.removed) == (1, 1, 0)
    (tmp_path / "t" / "00002.tar").unlink()
    report = run([pattern], tmp_path / "db", encoder, prune=True)
    assert [skip["path"] for skip in report.skipped] == [str(tmp_path / "t" / "00002.tar")]
    assert (report.unchanged, report.removed) == (3, 1)
    with pytest.raises(DataError, match=r"none is there.*00000.tar"):
        find_sources([str(tmp_path / "t" / "{00010..00012}.tar")])


def test_units_of_shards_are_ingested_one_by_one_and_only_changed_ones_have_another_digest(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    for n, data in enumerate(pictures):
        write_tar(tmp_path / "t" / f"{n}.tar", [("a.jpg", data)])
    source = ShardSource(str(tmp_path / "t"))
    units = {unit.name: unit for unit in source.units()}
    assert list(units) == [f"{n}.tar" for n in range(N)]
    assert all(unit.is_container for unit in units.values())
    with open_store(str(tmp_path / "db")) as store:
        for unit in source.units():
            report = ingest(store, [PartSource(source, [unit])], encoder=encoder, prune=True)
            assert (report.added, report.removed) == (1, 0)
    assert len(stored(tmp_path / "db")) == N
    write_tar(tmp_path / "t" / "2.tar", [("b.jpg", pictures[0]), ("c.jpg", pictures[1])])
    now = {unit.name: unit.digest for unit in source.units()}
    assert [name for name, digest in now.items() if digest != units[name].digest] == ["2.tar"]


def test_a_folder_of_pictures_with_a_tar_in_it_stays_one_and_a_source_of_both_kinds_loses_nothing(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    for n in range(3):
        (tmp_path / "t").mkdir(exist_ok=True)
        (tmp_path / "t" / f"{n}.jpg").write_bytes(pictures[n])
    write_tar(tmp_path / "t" / "0.tar", [("x.jpg", pictures[3])])
    (source,) = find_sources([str(tmp_path / "t")])
    assert isinstance(source, FolderSource)
    assert run([tmp_path / "t"], tmp_path / "db", encoder).added == 3
    assert run([tmp_path / "t" / "0.tar"], tmp_path / "db", encoder, prune=True).added == 1
    report = run([tmp_path / "t"], tmp_path / "db", encoder, prune=True)
    assert (report.unchanged, report.removed, report.missing) == (3, 0, 0)
    assert len(stored(tmp_path / "db")) == 4


def test_a_member_above_the_pixel_limit_is_a_skip_and_the_others_are_taken(
    tmp_path: Path, pictures: list[bytes], encoder: Encoder
) -> None:
    large = draw_picture(tmp_path / "large.png", size=(400, 300)).read_bytes()
    write_tar(tmp_path / "t" / "0.tar", [("a.jpg", pictures[0]), ("large.png", large)])
    report = run([tmp_path / "t"], tmp_path / "db", encoder, max_pixels=10_000)
    assert report.added == 1
    (skip,) = report.skipped
    assert skip["path"].endswith("0.tar/large.png")
    assert "pixels" in skip["reason"]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("ingest.shards.read_shard", lambda *_, **__: pytest.fail("opened"))


def test_the_units_of_shards_are_listed_without_opening_one(
    tmp_path: Path, pictures: list[bytes], unread: Callable[[], None]
) -> None:
    write_tar(tmp_path / "t" / "0.tar", [("a.jpg", pictures[0])])
    unread()
    assert [unit.name for unit in ShardSource(str(tmp_path / "t")).units()] == ["0.tar"]
