"""Tar files of captioned pictures: the layout that is published, and what is damaged or hostile."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from imret.datasets.scan import Skipped
from imret.datasets.webdataset import MAX_PICTURE_BYTES, Sample, find_shards, read_samples
from imret.errors import DataError
from tests.fakes.benchmark_files import sample, write_tar, write_webdataset


def _read(*shards: Path) -> tuple[list[Sample], list[Skipped]]:
    read = list(read_samples(shards))
    return (
        [one for one in read if isinstance(one, Sample)],
        [one for one in read if isinstance(one, Skipped)],
    )


def test_samples_come_in_order_with_a_caption_a_line(tmp_path: Path) -> None:
    folder = write_webdataset(
        tmp_path / "set", [sample(0, b"a", ["one", "two"]), [*sample(1, b"b", ["three"]), ("s1.json", b"{}")]]
    )
    shards = find_shards(folder, "test")
    assert shards is not None
    samples, skipped = _read(*shards.files)
    assert [(one.name, one.picture, one.captions) for one in samples] == [
        ("0.tar/s0000000", b"a", ("one", "two")),
        ("1.tar/s0000001", b"b", ("three",)),
    ]
    assert [one.path for one in skipped] == ["1.tar/s1"]


def test_names_are_split_at_the_first_dot_and_the_first_known_kind_is_the_picture(tmp_path: Path) -> None:
    members = [
        ("a.b/x.JPG", b"jpg"),
        ("a.b/x.webp", b"webp"),
        ("a.b/x.txt", b"one"),
        ("y.v1.jpg", b"y"),  # a key "y" and a kind "v1.jpg", which is none
        ("y.txt", b"two"),
        ("__meta__/z.jpg", b"z"),
        (".hidden", b"h"),
        ("README", b"r"),
    ]
    samples, skipped = _read(write_tar(tmp_path / "0.tar", members))
    assert [(one.name, one.picture) for one in samples] == [("0.tar/a.b/x", b"webp")]
    assert [(one.path, one.reason.partition(",")[0]) for one in skipped] == [("0.tar/y", "has no picture")]


def test_lines_of_captions_are_those_that_splitlines_sees_the_empty_ones_too(tmp_path: Path) -> None:
    text = b"one\r\n\ntwo\n"
    samples, _ = _read(
        write_tar(tmp_path / "0.tar", [("a.jpg", b"a"), ("a.txt", text), *sample(2, b"c", [])])
    )
    assert [one.captions for one in samples] == [("one", "", "two"), ()]


def test_what_cannot_be_a_sample_is_skipped_with_the_reason(tmp_path: Path) -> None:
    members = [
        ("alone.jpg", b"a"),
        ("text.txt", b"t"),
        ("latin.jpg", b"a"),
        ("latin.txt", b"caf\xe9"),
        *sample(1, b"b", ["fine"]),
        ("s0000001.jpg", b"again"),
    ]
    samples, skipped = _read(write_tar(tmp_path / "0.tar", members))
    assert [one.picture for one in samples] == [b"b"]
    assert [(one.path, one.reason) for one in skipped] == [
        ("0.tar/alone", "has no captions, which is a file .txt"),
        ("0.tar/text", "has no picture, which is one of webp, png, jpg, jpeg"),
        ("0.tar/latin", "its captions are not UTF-8: unexpected end of data at byte 3"),
        ("0.tar/s0000001.jpg", "a second jpg of one sample"),
    ]


def test_a_set_for_classification_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", [("a.jpg", b"a"), ("a.cls", b"3")])
    with pytest.raises(DataError, match=r"has a label \(.cls\) and no captions"):
        list(read_samples([tar]))
    folder = write_webdataset(tmp_path / "set", [sample(0, b"a", ["one"])])
    (folder / "dataset_type.txt").write_text("classification\n")
    with pytest.raises(DataError, match="says 'classification'"):
        find_shards(folder, "test")


def test_a_lacking_shard_or_split_is_told_and_shards_beyond_the_count_are_noted(tmp_path: Path) -> None:
    folder = write_webdataset(tmp_path / "set", [sample(i, b"a", ["x"]) for i in range(12)])
    shards = find_shards(folder, "test")
    assert shards is not None
    assert [file.name for file in shards.files][-3:] == ["9.tar", "10.tar", "11.tar"]
    for count in ("13", "100"):
        (folder / "test" / "nshards.txt").write_text(count)
        with pytest.raises(DataError, match=r"12\.tar"):
            find_shards(folder, "test")
    (folder / "test" / "nshards.txt").write_text("11\n")
    shards = find_shards(folder, "test")
    assert shards is not None
    assert len(shards.files) == 11
    assert "11.tar" in shards.notes[0]
    for count in ("", "many", "0", "-1", "9" * 5000):
        (folder / "test" / "nshards.txt").write_text(count)
        with pytest.raises(DataError, match="no number of tar files"):
            find_shards(folder, "test")
    (folder / "test" / "nshards.txt").unlink()
    assert find_shards(folder / "test", "test") == find_shards(folder, "test")
    with pytest.raises(DataError, match="--split test"):
        find_shards(folder, "train")
    assert find_shards(tmp_path, "test") is None


def test_nothing_is_written_and_links_are_not_followed_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
    hard = tarfile.TarInfo("b.jpg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a.jpg"
    members = [
        link,
        ("a.txt", b"one"),
        hard,
        ("b.txt", b"two"),
        ("../../out.jpg", b"o"),
        ("../../out.txt", b"3"),
    ]
    (tmp_path / "in").mkdir()
    tar = write_tar(tmp_path / "in" / "0.tar", members)
    before = sorted(os.listdir(tmp_path))
    samples, skipped = _read(tar)
    assert [one.name for one in samples] == ["0.tar/../../out"]
    assert [one.path for one in skipped] == ["0.tar/a", "0.tar/b"]
    assert sorted(os.listdir(tmp_path)) == before
    assert os.listdir(tmp_path / "in") == ["0.tar"]


def test_what_is_too_large_is_not_read_and_the_rest_is(tmp_path: Path) -> None:
    file = tmp_path / "0.tar"
    with open(file, "wb") as tar:  # holes, not 2 GB on disk
        for name, size in (
            ("big.jpg", 2_000_000_000),
            ("big.txt", 3),
            ("long.jpg", 1),
            ("long.txt", 5_000_000),
        ):
            header = tarfile.TarInfo(name)
            header.size = size
            tar.write(header.tobuf())
            tar.seek(-(-size // 512) * 512, os.SEEK_CUR)
        for header in (tarfile.TarInfo("c.jpg"), tarfile.TarInfo("c.txt")):
            tar.write(header.tobuf())
        tar.write(bytes(1024))
    tracemalloc.start()
    samples, skipped = _read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [one.name for one in samples] == ["0.tar/c"]
    assert [one.path for one in skipped] == ["0.tar/big", "0.tar/long"]
    assert f"{MAX_PICTURE_BYTES:,} are the most" in skipped[0].reason
    assert peak < 5_000_000


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_asks_for_much_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 4_000_000_000
    write_tar(tmp_path / "0.tar", sample(0, b"a", ["one"]))
    with open(tmp_path / "0.tar", "r+b") as tar:
        tar.seek(4 * 512)
        tar.write(header.tobuf())
        tar.truncate(4_000_010_000)
    samples, skipped = _read(tmp_path / "0.tar")
    assert len(samples) == 1
    assert "a header that asks for" in skipped[0].reason


@pytest.mark.parametrize(
    "damage",
    ["cut in a file", "cut in a header", "cut between files", "a broken header", "a size below nothing"],
)
def test_a_damaged_tar_gives_what_comes_before_the_damage_and_tells_of_it(
    tmp_path: Path, damage: str
) -> None:
    file = write_tar(tmp_path / "0.tar", [*sample(0, b"a" * 600, ["one"]), *sample(1, b"b" * 600, ["two"])])
    second = 5 * 512  # after header, 2 blocks, header, 1 block
    with open(file, "r+b") as tar:
        if damage.startswith("cut"):
            tar.truncate(
                second + {"in a file": 512 + 100, "in a header": 100, "between files": 0}[damage[4:]]
            )
        elif damage == "a broken header":
            tar.seek(second)
            tar.write(b"garbage" * 10)
        else:
            header = tarfile.TarInfo("back.bin")
            data = bytearray(header.tobuf())
            data[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, as tar writes what is below nothing
            data[148:156] = b" " * 8
            data[148:156] = b"%06o\0 " % sum(data)
            tar.seek(second)
            tar.write(data)
    samples, skipped = _read(file)
    assert [one.name for one in samples] == ["0.tar/s0000000"]
    assert any("damaged or cut off after " in one.reason for one in skipped)


@pytest.mark.parametrize("data", [b"", b"no tar file", b"\x1f\x8b\x08" + b"z" * 2000])
def test_what_is_no_tar_file_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    samples, skipped = _read(tmp_path / "0.tar")
    assert not samples
    assert skipped[0].reason.startswith("damaged or cut off after 0 files")


def test_a_tar_file_without_files_holds_no_sample_and_a_pipe_is_refused(tmp_path: Path) -> None:
    assert _read(write_tar(tmp_path / "0.tar", [])) == ([], [])
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(DataError, match="not a tar file"):
        list(read_samples([tmp_path / "1.tar"]))
    with pytest.raises(DataError, match="cannot read the tar file"):
        list(read_samples([tmp_path / "2.tar"]))
