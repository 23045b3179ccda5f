"""Ingest end to end on a CPU: imret beside the stock script, and beside its own stages alone.

    python benchmarks/ingest_cpu.py PHOTOS MODEL [--files 5000] [--rounds 3] [--output FILE.md]

Saves the photos below PHOTOS anew, each cut a little differently, until there are so many files, no two of
the same bytes. Then, in turns: `imret ingest` and benchmarks/stock.py, whole processes into embedded stores
that are empty, the stock script with the batch size and the workers with which it was fastest on a part of
the files; and in one process the stages of imret, decoding alone and encoding alone, and all of it. On a CPU
all stages want the same cores: together they cannot be faster than the processor time of all allows, which
is given too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from machine import cores
from PIL import Image

HERE = Path(__file__).resolve().parent
BATCH_SIZES, WORKERS = (8, 32), (0, 2)


def make_files(photos: Path, folder: Path, n: int) -> list[Path]:
    """Save photos anew until there are n files, all different: one pixel less at an edge each time."""
    sources = sorted(photos.rglob("*.jpg"))
    files = []
    for number in range(n):
        turn, which = divmod(number, len(sources))
        with Image.open(sources[which]) as image:
            left, top = turn % 8, turn // 8
            cut = image.convert("RGB").crop((left, top, image.width, image.height))
        file = folder / f"{number % 10}" / f"{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        cut.save(file, "JPEG", quality=90)
        files.append(file)
    return files


def timed(command: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """Return wall seconds, processor seconds and stderr of a process and its children."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return wall, sum(after[2:4]) - sum(before[2:4]), done.stderr


class Contenders:
    """The two programs, into empty stores."""

    def __init__(self, model: Path, work: Path) -> None:
        self._model, self._work = str(model), work
        self._env = {**os.environ, "IMRET_HOME": str(work / "home")}

    def stock(self, folder: Path, batch_size: int, workers: int) -> tuple[float, float, float]:
        """Return wall and processor seconds, and the wall seconds of its ingest alone."""
        db = self._work / "stock"
        shutil.rmtree(db, ignore_errors=True)
        options = ["--batch-size", str(batch_size), "--workers", str(workers), "--db", str(db)]
        script = [sys.executable, str(HERE / "stock.py"), "ingest", self._model, str(folder)]
        wall, worked, stderr = timed([*script, *options], self._env)
        return wall, worked, float(json.loads(stderr.splitlines()[-1])["ingest"])

    def imret(self, folder: Path) -> tuple[float, float, float]:
        """Return wall and processor seconds, and what its report says that the ingest took."""
        db, report = self._work / "imret", self._work / "report.json"
        shutil.rmtree(db, ignore_errors=True)
        program = [sys.executable, "-m", "imret", "ingest", str(folder), "--model", self._model]
        wall, worked, _ = timed([*program, "--db", str(db), "--report", str(report)], self._env)
        return wall, worked, float(json.loads(report.read_text())["seconds"])


def stages(
    files: list[Path], model: Path, folder: Path, work: Path, rounds: int
) -> dict[str, list[list[float]]]:
    """Return [wall, processor] seconds of each round: decoding, encoding, and the whole ingest."""
    from imret import Encoder
    from imret.files import sha256_of
    from imret.images.resize import load_pixels
    from imret.store import open_store
    from ingest.pipeline import ingest
    from ingest.sources import FolderSource

    encoder = Encoder(str(model), device="cpu")
    taken: dict[str, list[list[float]]] = {"decode": [], "encode": [], "ingest": []}
    pixels = np.stack([load_pixels(file, encoder.preprocess)[0] for file in files[:512]])
    encoder.encode_pixels(pixels[:32])

    def decode(file: Path) -> None:
        with file.open("rb") as opened:
            load_pixels(opened, encoder.preprocess)
            opened.seek(0)
            sha256_of(opened)

    def decode_all() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, files):
                pass

    def encode_all() -> None:
        for start in range(0, len(files), 32):
            at = start % len(pixels)
            encoder.encode_pixels(pixels[at : at + 32][: len(files) - start])

    for number in range(rounds):
        with open_store(str(work / f"warm{number}")) as store:
            source = FolderSource(folder)
            whole = lambda: ingest(store, [source], encoder=encoder)  # noqa: B023, E731
            for name, run in (("decode", decode_all), ("encode", encode_all), ("ingest", whole)):
                start, worked = time.perf_counter(), time.process_time()
                run()
                taken[name].append([time.perf_counter() - start, time.process_time() - worked])
    return taken


def middle(values: list[float]) -> str:
    """Return a median with least and most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Measure and print, as a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = make_files(arguments.photos, work / "photos", arguments.files)
        page = table(files, measure(files, arguments.model.resolve(), work, arguments.rounds))
    print(page)
    if arguments.output is not None:
        arguments.output.write_text(page + "\n", encoding="utf-8")


@dataclass
class Measured:
    """Seconds of all parts.

    Attributes:
        tried: Of the stock script on a part of the files, by batch size and workers; the best ran on all.
        n_tried: How many files that part has.
        taken: By program, [wall, processor, ingest alone] of each round of whole processes.
        alone: By stage, [wall, processor] of each round in one warm process.
    """

    tried: dict[tuple[int, int], float]
    n_tried: int
    taken: dict[str, list[tuple[float, float, float]]]
    alone: dict[str, list[list[float]]]

    @property
    def best(self) -> tuple[int, int]:
        """Batch size and workers with which the stock script was fastest."""
        return min(self.tried, key=self.tried.__getitem__)


def measure(files: list[Path], model: Path, work: Path, rounds: int) -> Measured:
    """Run all parts."""
    part = work / "part"
    (part / "all").mkdir(parents=True)
    for file in files[:: max(1, len(files) // 500)]:
        os.link(file, part / "all" / file.name)
    contenders = Contenders(model, work)
    tried = {
        (size, workers): contenders.stock(part, size, workers)[2]
        for size, workers in itertools.product(BATCH_SIZES, WORKERS)
    }
    measured = Measured(tried, len(list(part.rglob("*.jpg"))), {"stock": [], "imret": []}, {})
    for _ in range(rounds):
        measured.taken["stock"].append(contenders.stock(work / "photos", *measured.best))
        measured.taken["imret"].append(contenders.imret(work / "photos"))
    measured.alone = stages(files, model, work / "photos", work, rounds)
    return measured


def table(files: list[Path], measured: Measured) -> str:
    """Return what was measured, as Markdown."""
    import torch

    n, (batch_size, workers) = len(files), measured.best
    rate = {name: n / statistics.median(wall for wall, _ in runs) for name, runs in measured.alone.items()}
    worked = {name: statistics.median(cpu for _, cpu in runs) for name, runs in measured.alone.items()}
    slower = min(rate["decode"], rate["encode"])
    floor = n * (os.cpu_count() or 1) / (worked["decode"] + worked["encode"])
    size = statistics.mean(float(np.prod(Image.open(file).size)) for file in files[:200])
    settings = ", ".join(f"{b} and {w}: {seconds:.1f} s" for (b, w), seconds in measured.tried.items())
    names = {"decode": "decoding and hashing", "encode": "encoding", "ingest": "the whole ingest"}
    return "\n".join(
        [
            "# Ingest end to end on a CPU",
            "",
            f"{date.today()}, {cores()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}. {n:,} JPEG files, "
            f"{size / 1e6:.2f} megapixels on average. Medians of {len(measured.taken['imret'])} rounds in "
            f"turns, least and most; load average {os.getloadavg()[0]:.1f} at the end.",
            "",
            "| whole processes | wall s | processor s | images/s without start |",
            "|---|---|---|---|",
            *whole_rows(n, measured.taken),
            "",
            f"The stock script with batches of {batch_size} and {workers} workers; on "
            f"{measured.n_tried} files, by batch size and workers: {settings}.",
            "",
            "| one process, warm | images/s | processor ms an image |",
            "|---|---|---|",
            *(f"| {names[name]} | {rate[name]:.0f} | {1e3 * worked[name] / n:.2f} |" for name in rate),
            "",
            f"The whole ingest reaches {rate['ingest'] / slower:.0%} of the slower stage alone (goal 90 %). "
            f"Both stages want the same cores: their processor time allows {floor:.0f} images/s, of which it "
            f"reaches {rate['ingest'] / floor:.0%}.",
        ]
    )


def whole_rows(n: int, taken: dict[str, list[tuple[float, float, float]]]) -> list[str]:
    """Return the rows of both programs, and of their ratio."""
    rows, medians = [], []
    for name in ("stock", "imret"):
        walls, busy, ingests = (list(column) for column in zip(*taken[name], strict=True))
        rates = [n / seconds for seconds in ingests]
        rows.append(f"| {name} | {middle(walls)} | {middle(busy)} | {middle(rates)} |")
        medians.append([statistics.median(column) for column in (walls, busy, ingests)])
    ratios = [stock / imret for stock, imret in zip(*medians, strict=True)]
    rows.append(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |")
    return rows


if __name__ == "__main__":
    main()
