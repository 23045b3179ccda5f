"""Published benchmarks in small, in the true layouts: tars of CLIP_benchmark, Parquet of INQUIRE-Rerank."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tests.fakes.pictures import draw_picture

# One file of a tar: its name, and its bytes.
Member = tuple[str, bytes]


def picture_bytes(folder: Path, seed: int) -> bytes:
    """Return the file of a drawn picture; another seed is another picture."""
    file = folder / f".drawn-{seed}.jpg"
    draw_picture(file, seed=seed)
    data = file.read_bytes()
    file.unlink()
    return data


def write_tar(file: Path, members: Sequence[Member | tarfile.TarInfo]) -> Path:
    """Write a tar file of members, or of headers alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file


def sample(number: int, picture: bytes, captions: Sequence[str]) -> list[Member]:
    """Return the files of a sample, named as CLIP_benchmark's export names them."""
    return [(f"s{number:07d}.jpg", picture), (f"s{number:07d}.txt", "\n".join(captions).encode())]


def write_webdataset(folder: Path, shards: Sequence[Sequence[Member]], *, split: str = "test") -> Path:
    """Write a retrieval set as `clip_benchmark_export_wds` does."""
    for number, members in enumerate(shards):
        write_tar(folder / split / f"{number}.tar", members)
    (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def drawn_webdataset(folder: Path, n: int = 12, shards: int = 2) -> Path:
    """Write a retrieval set of n drawn pictures with 1 to 3 captions each."""
    samples = [
        sample(i, picture_bytes(folder.parent, i), [f"thing {i} of kind {j}" for j in range(1 + i % 3)])
        for i in range(n)
    ]
    each = -(-n // shards)
    return write_webdataset(folder, [list(chain(*samples[i : i + each])) for i in range(0, n, each)])


def inquire_row(query: str, image: int, relevant: Any, picture: bytes | None) -> dict[str, Any]:
    """Return a row with the columns of INQUIRE-Rerank that matter, and some of those that do not."""
    return {
        "image": {"bytes": picture, "path": f"{image}.jpg"},
        "query": query,
        "relevant": relevant,
        "clip_score": 0.3,
        "inat24_image_id": image,
        "inat24_file_name": f"train/00001_Animalia/{image}.jpg",
        "supercategory": "Species",
        "latitude": None,
    }


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]], *, group: int = 4) -> Path:
    """Write rows as the Hub does: pictures as a struct of bytes and path, in small row groups."""
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, file, row_group_size=group)
    return file


def drawn_inquire(folder: Path, *, split: str = "test", queries: int = 4, pictures: int = 6) -> Path:
    """Write judged lists in two parts below `data`, as downloaded; some pictures are in two lists."""
    rows = [
        inquire_row(f"thing {q}", image, int(i % 3 == q % 3), picture_bytes(folder.parent, image))
        for q in range(queries)
        for i, image in enumerate(range(3 * q, 3 * q + pictures))
    ]
    half = len(rows) // 2
    for part, some in enumerate((rows[:half], rows[half:])):
        write_parquet(folder / "data" / f"{split}-{part:05d}-of-00002.parquet", some)
    return folder
