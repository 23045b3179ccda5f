"""Write a drawn data set to a folder, on all cores, the same bytes every time.

    folder/dataset.json                  what it was made from; marks the folder as ours
    folder/{train,test}/<category>/*.jpg
    folder/{train,test}/captions.csv     path,caption; several rows a picture
    folder/{train,test}/attributes.csv   path and the fields of Attributes; one row a picture

Picture i of a split depends on (seed, split, i) and nothing else. A file appears under its name only when it
is whole, so a run that was killed is completed by running it again.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from random import Random

from imret.demo.draw import CATEGORIES, Attributes, choose, draw
from imret.demo.words import AttributeQuery, attribute_queries, captions, category_queries
from imret.errors import DataError
from imret.files import write_atomically

__all__ = ["CATEGORIES", "AttributeQuery", "attribute_queries", "category_queries", "write_dataset"]

GENERATOR = 4  # raise it whenever the same seed would draw or say something else
SIZE = 320  # long side of a picture, pixels
_MARKER = "dataset.json"
_BATCH = 16  # pictures that a worker draws per task

Picture = tuple[str, int]  # split, index


def write_dataset(
    folder: Path | str,
    *,
    train: int,
    test: int,
    seed: int = 0,
    size: int = SIZE,
    workers: int | None = None,
    progress: bool = False,
) -> int:
    """Draw a data set of ten categories with captions and attributes.

    Categories are balanced: n // 10 pictures each, the remainder spread. A complete data set of the same
    numbers, seed and size is left as it is; an incomplete one is completed.

    Args:
        folder: Where to; made if it is not there.
        train: Number of training pictures, at least 1.
        test: Number of test pictures, at least 1; from another random stream than the training pictures.
        seed: Another seed draws other pictures.
        size: Long side of a picture in pixels, at least 32.
        workers: Processes that draw; None: one per core. Above 1 they are spawned, so a script that calls
            this needs its `if __name__ == "__main__"` guard.
        progress: Show a tqdm bar on stderr.

    Returns:
        Number of pictures drawn now: 0 if the data set was complete.

    Raises:
        DataError: If the folder holds files that are not of a drawn data set, or another data set than this
            one, or cannot be written.
        ValueError: If a number is out of range.
    """
    if min(train, test) < 1 or size < 32 or (workers is not None and workers < 1):
        raise ValueError(f"need train, test, workers >= 1 and size >= 32, not {(train, test, workers, size)}")
    folder, numbers = Path(folder), {"train": train, "test": test}
    made_from = {"generator": GENERATOR, **numbers, "seed": seed, "size": size}
    try:
        _claim(folder, made_from)
        todo = _missing(folder, numbers)
        complete = made_from | {"complete": True}
        if todo or _read_marker(folder) != complete:
            _draw_all(folder, todo, seed=seed, size=size, workers=workers, progress=progress)
            for split, n in numbers.items():
                _write_tables(folder / split, split, n, seed)
            write_atomically(folder / _MARKER, _as_json(complete))
    except OSError as error:
        raise DataError(
            f"cannot write the drawn data set to '{folder}': {error}. Choose another folder: imret demo DIR"
        ) from error
    return len(todo)


def _stream(seed: int, split: str, index: int, purpose: str) -> Random:
    """Return one picture's random stream for one purpose; seeded by text, it is the same on every machine."""
    return Random(f"{seed}/{split}/{index}/{purpose}")


def _file(index: int) -> str:
    """Return the path of a picture below its split's folder. It tells the category and nothing else."""
    return f"{CATEGORIES[index % len(CATEGORIES)]}/{index:06d}.jpg"


def _as_json(made_from: dict[str, int]) -> bytes:
    return (json.dumps(made_from, indent=1) + "\n").encode()


def _read_marker(folder: Path) -> dict[str, int] | None:
    """Return what the folder's data set was made from; None if there is no marker.

    Raises:
        DataError: If a file of that name is there and is not a marker.
    """
    path = folder / _MARKER
    if not path.is_file():
        return None
    try:
        marker = json.loads(path.read_bytes())
    except ValueError:
        marker = None
    if not isinstance(marker, dict) or "generator" not in marker:
        raise DataError(
            f"'{path}' is not the marker of a drawn data set, so nothing was written. Choose another folder."
        )
    return marker


def _claim(folder: Path, made_from: dict[str, int]) -> None:
    """Make sure that the folder is ours to write to, and mark it before anything else is written."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = _read_marker(folder)
    if marker is None:
        if any(name != f".{_MARKER}.part" for name in os.listdir(folder)):
            raise DataError(
                f"'{folder}' is not empty and no drawn data set. Nothing was written. Choose another folder."
            )
    else:
        names = ("train", "test", "seed", "size")
        if any(marker.get(name) != made_from[name] for name in names):
            have, want = (", ".join(f"{k} {d.get(k)}" for k in names) for d in (marker, made_from))
            raise DataError(
                f"'{folder}' holds another drawn data set ({have}) than the one asked for ({want}). "
                "Choose another folder, or delete this one."
            )
    if marker is None or marker["generator"] != GENERATOR:
        # An older generator's pictures go before the marker changes: the names are shared, the drawings not.
        for picture in _pictures({name: made_from[name] for name in ("train", "test")}) if marker else ():
            _path(folder, picture).unlink(missing_ok=True)
        write_atomically(folder / _MARKER, _as_json(made_from | {"complete": False}))
    for split in ("train", "test"):
        for category in CATEGORIES:
            (folder / split / category).mkdir(parents=True, exist_ok=True)


def _pictures(numbers: dict[str, int]) -> Iterator[Picture]:
    for split, n in numbers.items():
        for index in range(n):
            yield split, index


def _path(folder: Path, picture: Picture) -> Path:
    split, index = picture
    return folder / split / _file(index)


def _missing(folder: Path, numbers: dict[str, int]) -> list[Picture]:
    """Return the pictures that are not there yet. One listing per folder, not one look-up per picture."""
    drawn = {
        f"{split}/{category}/{name}"
        for split in numbers
        for category in CATEGORIES
        for name in os.listdir(folder / split / category)
    }
    return [(split, index) for split, index in _pictures(numbers) if f"{split}/{_file(index)}" not in drawn]


def _draw_all(
    folder: Path, todo: Sequence[Picture], *, seed: int, size: int, workers: int | None, progress: bool
) -> None:
    batches = [todo[i : i + _BATCH] for i in range(0, len(todo), _BATCH)]
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(workers, len(batches) // 4)  # starting a process costs as much as a few batches
    from tqdm import tqdm

    with tqdm(total=len(todo), unit="images", desc="draw", disable=not progress) as bar:
        for n in _drawn(folder, batches, seed, size, workers):
            bar.update(n)


def _drawn(
    folder: Path, batches: Sequence[Sequence[Picture]], seed: int, size: int, workers: int
) -> Iterator[int]:
    """Draw the batches, here or in a pool, and yield the number of pictures in each one that is done."""
    if workers <= 1 or len(batches) <= 1:
        for batch in batches:
            yield _draw_batch(folder, batch, seed, size)
        return
    # Spawned, not forked: the caller may have threads (torch, the store) whose locks a fork would copy.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_draw_batch, folder, batch, seed, size) for batch in batches]
        try:
            for job in jobs:
                yield job.result()
        except BaseException:  # an error or Ctrl-C: leave at once what is drawn, and draw nothing more
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _draw_batch(folder: Path, batch: Sequence[Picture], seed: int, size: int) -> int:
    """Draw and write some pictures; the one function that worker processes run."""
    for split, index in batch:
        rng = _stream(seed, split, index, "drawing")
        image = draw(_attributes(seed, split, index), size=size, rng=rng)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(72, 95))
        write_atomically(_path(folder, (split, index)), buffer.getvalue())
    return len(batch)


def _attributes(seed: int, split: str, index: int) -> Attributes:
    return choose(index, _stream(seed, split, index, "attributes"))


def _write_tables(folder: Path, split: str, n: int, seed: int) -> None:
    """Write captions.csv and attributes.csv of one split."""
    caption_rows = [["path", "caption"]]
    attribute_rows = [["path", *(column.name for column in fields(Attributes))]]
    for index in range(n):
        attributes = _attributes(seed, split, index)
        attribute_rows.append([_file(index), *map(str, asdict(attributes).values())])
        caption_rows += [
            [_file(index), text] for text in captions(attributes, _stream(seed, split, index, "captions"))
        ]
    for name, rows in (("captions.csv", caption_rows), ("attributes.csv", attribute_rows)):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomically(folder / name, text.getvalue().encode("utf-8"))
