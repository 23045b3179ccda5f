"""Captioned pictures in tar files, laid out as CLIP_benchmark lays out its retrieval sets (WebDataset).

    FOLDER/dataset_type.txt   "retrieval"
    FOLDER/test/nshards.txt   how many shards there are
    FOLDER/test/0.tar         s0000000.jpg, s0000000.txt (a caption a line), s0000001.jpg, ...

Files are read one after the other, nothing is unpacked: a name in a tar file is a label, and never a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from imret.datasets.scan import Skipped
from imret.errors import DataError, counted, some_of
from imret.files import irregular
from imret.places.tar import DamagedTar, TarMember, members

PICTURES: Final = ("webp", "png", "jpg", "jpeg")  # the first of these is a sample's picture
_CAPTIONS, _LABEL = "txt", "cls"
MAX_PICTURE_BYTES = 32_000_000
_MAX_TEXT_BYTES = 1_000_000  # of the captions of a picture
_META = re.compile(r"__[^/]*__($|/)")  # what WebDataset keeps for itself


@dataclass(frozen=True)
class Shards:
    """The tar files of a set, in order.

    Attributes:
        files: At least one.
        notes: What a person should know of them.
    """

    files: list[Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it.

    Attributes:
        name: The shard and the key in it, such as "0.tar/s0000012".
        picture: Bytes of its file.
        captions: The lines of its text; none where that is empty.
    """

    name: str
    picture: bytes
    captions: tuple[str, ...]


# ---- Which files ----------------------------------------------------------------------------------


def find_shards(folder: str | os.PathLike[str], split: str) -> Shards | None:
    """Return the shards of a split; None if neither the folder nor its splits hold any.

    Args:
        folder: Of the set, or of one split of it, which the tar files lie in.
        split: Name of the sub-folder.

    Raises:
        DataError: If the set is not one of captions, lacks the split or a shard, or nshards.txt is no number.
    """
    top = Path(folder)
    at = top / split if _tars(top / split) or not _tars(top) else top
    tars = _tars(at)
    if not tars:
        splits = [path.name for path in sorted(top.iterdir()) if path.is_dir() and _tars(path)]
        if not splits:
            return None
        raise DataError(
            f"no tar files of the split {split!r} in {str(top)!r}; there are {some_of(splits)}. "
            f"Choose one: --split {splits[0]}"
        )
    _check_type(at if at == top else top)
    count = at / "nshards.txt"
    if not count.is_file():
        return Shards(tars)
    text = _short_text(count).strip()
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:9]) < 10**6):
        raise DataError(f"{str(count)!r} says {text[:40]!r}, which is no number of tar files.")
    wanted = [at / f"{number}.tar" for number in range(int(text))]
    if missing := [shard.name for shard in wanted if shard not in tars]:
        raise DataError(
            f"{str(count)!r} says {counted(len(wanted), 'tar file')}, and {some_of(missing, 5)} "
            f"{'is' if len(missing) == 1 else 'are'} not there. Download the set again."
        )
    more = [tar.name for tar in tars if tar not in wanted]
    note = f"not read, being beyond the {len(wanted):,} that nshards.txt tells of: {some_of(more, 5)}"
    return Shards(wanted, [note] if more else [])


def _tars(folder: Path) -> list[Path]:
    """Return the tar files in a folder, 2.tar before 10.tar."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda path: [int(part) if part.isdecimal() else -1 for part in _parts(path)])


def _parts(path: Path) -> list[str]:
    return re.findall(r"[0-9]{1,18}", path.stem) or [path.stem]


def _check_type(top: Path) -> None:
    file = top / "dataset_type.txt"
    if file.is_file() and (kind := _short_text(file).strip().lower()) != "retrieval":
        raise DataError(
            f"{str(file)!r} says {kind[:40]!r}: pictures with labels. Of captions it would say 'retrieval'."
        )


def _short_text(file: Path) -> str:
    with open(file, encoding="utf-8", errors="replace") as text:
        return text.read(1000)


# ---- Samples --------------------------------------------------------------------------------------


def read_samples(shards: Sequence[Path]) -> Iterator[Sample | Skipped]:
    """Yield the captioned pictures of tar files in their order, and what cannot be taken, and why.

    In memory is one sample. The name of a file is split at its first dot, into a key and what it holds; what
    follows one another with the same key is a sample; its captions are the lines of its text, as
    `str.splitlines` sees them, the empty ones too. That is what CLIP_benchmark reads. What it stops at (a
    picture without text) is skipped here; a damaged header, which it takes for the end of the file, is told.

    Args:
        shards: Tar files, not compressed.

    Raises:
        DataError: If a file cannot be opened, or samples have labels where captions should be.

    Source: https://github.com/webdataset/webdataset, `base_plus_ext` and `group_by_keys`, of version 1.0.2;
        https://github.com/LAION-AI/CLIP_benchmark, `build_wds_dataset`, of version 1.6.2.
    """
    for shard in shards:
        group = _Group(shard.name, "")
        for name, data in _files(shard):
            if name is None:
                yield Skipped(shard.name, str(data))
                continue
            folder, slash, base = name.rpartition("/")
            stem, _, kind = base.partition(".")
            if not stem or not kind or _META.match(name):
                continue
            if (key := folder + slash + stem) != group.key:
                yield from group.finished()
                group = _Group(shard.name, key)
            if kind.lower() in group.files:
                yield Skipped(f"{shard.name}/{name}", f"a second {kind.lower()} of one sample")
            else:
                group.files[kind.lower()] = data
        yield from group.finished()


@dataclass
class _Group:
    """Files that follow one another under one key: their bytes, or why they have none."""

    shard: str
    key: str
    files: dict[str, bytes | str] = field(default_factory=dict)

    def finished(self) -> Iterator[Sample | Skipped]:
        if not self.files:
            return
        name = f"{self.shard}/{self.key}"
        picture = next((self.files[kind] for kind in PICTURES if kind in self.files), None)
        text = self.files.get(_CAPTIONS)
        if text is None and _LABEL in self.files:
            raise DataError(
                f"sample {name!r} has a label (.{_LABEL}) and no captions (.{_CAPTIONS}): it is of a set for "
                "classification. Give a set for retrieval, such as wds_mscoco_captions."
            )
        if isinstance(picture, str) or picture is None:
            yield Skipped(name, picture or f"has no picture, which is one of {', '.join(PICTURES)}")
        elif isinstance(text, str) or text is None:
            yield Skipped(name, text or f"has no captions, which is a file .{_CAPTIONS}")
        else:
            try:
                yield Sample(name, picture, tuple(text.decode("utf-8").splitlines()))
            except UnicodeDecodeError as error:
                yield Skipped(name, f"its captions are not UTF-8: {error.reason} at byte {error.start}")


def _files(shard: Path) -> Iterator[tuple[str | None, bytes | str]]:
    """Yield the name and bytes of each file, or why it has none; without a name, what is wrong with all."""
    try:
        if what := irregular(shard):
            raise DataError(f"{str(shard)!r} is {what}, not a tar file.")
        raw = open(shard, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"cannot read the tar file {str(shard)!r}: {error.strerror}.") from error
    with raw:
        try:
            for n_before, member in enumerate(members(raw)):
                yield member.name, _content(raw, member, n_before)
        except DamagedTar as error:
            yield None, str(error)


def _content(raw: BinaryIO, member: TarMember, n_before: int) -> bytes | str:
    """Return the bytes of a file, why they are not read, or "" where nobody asks for them."""
    kind = member.name.rpartition("/")[2].partition(".")[2].lower()
    if kind not in (*PICTURES, _CAPTIONS):
        return ""
    most = _MAX_TEXT_BYTES if kind == _CAPTIONS else MAX_PICTURE_BYTES
    if not 0 <= member.size_bytes <= most:
        return f"its .{kind} has {member.size_bytes:,} bytes, and {most:,} are the most that are read"
    raw.seek(member.at)
    data = raw.read(member.size_bytes)
    if len(data) < member.size_bytes:
        raise DamagedTar(f"damaged or cut off after {counted(n_before + 1, 'file')}: unexpected end of data")
    return data
