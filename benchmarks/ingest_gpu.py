"""Ingest with ViT-H/14 on a GPU: from JPEG files on disk to searchable, beside the encode alone.

    python benchmarks/ingest_gpu.py [--files 20000] [--rounds 3] [--arch ViT-H-14] [--work build/ingest-gpu] \
        [--results FILE.md]

Draws JPEG files (smooth noise, 500 x 375 at quality 90) and writes a model of random weights, which changes
no time. Then: what a large matrix product reaches; encode-only, a loop over pictures that lie on the GPU in
the model's precision, by the tower that `imret ingest` uses and by stock open_clip under autocast; the ingest
of all files into an empty embedded store, model loaded, until all is indexed; benchmarks/stock.py on some of
them; and whole processes of `imret ingest` on a thousand. Files and model are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from finetune_throughput import device_name, matmul_rate, synchronize
from finetune_whole_run import draw, write_model
from ingest_cpu import middle
from machine import cores
from torch.utils.flop_counter import FlopCounterMode

from imret.models.device import pick_device
from imret.models.encoder import Encoder
from imret.settings import MAX_PIXELS
from imret.store import open_store
from ingest.decode_workers import Decoders
from ingest.pipeline import ingest
from ingest.prefetch import in_lists
from ingest.sources import FolderSource

HERE = Path(__file__).resolve().parent
BATCH = 256
THOUSAND = 1_000
FOR_STOCK = 5_000  # files: its embedded store takes ever longer


def main() -> None:
    """Prepare, measure, and print as a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="ViT-H-14")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--work", type=Path, default=Path("build/ingest-gpu"))
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    page = table(arguments, measure(arguments))
    print(page)
    if arguments.results is not None:
        arguments.results.write_text(page + "\n", encoding="utf-8")


@dataclass
class Measured:
    """Images a second of each part by round, and what they are compared with.

    Attributes:
        alone: Encode-only, by imret's tower and by open_clip's.
        stock: The stock script's, once, without its start.
        cold: Seconds of `imret ingest` on a thousand files; the first reads the weights once more, for their
            fingerprint.
        gflop: Of one picture.
        peak: Operations a second of a large matrix product.
    """

    decoded: list[float]
    alone: dict[str, list[float]]
    whole: list[float]
    stock: float
    cold: list[float]
    gflop: float
    peak: float


def measure(arguments: argparse.Namespace) -> Measured:
    """Draw the files, write the model, and run all parts."""
    work, rounds = arguments.work, arguments.rounds
    photos, model = work / "photos", work / "base"
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, [(photos, number) for number in range(arguments.files)], chunksize=64))
    write_model(model, arguments.arch)
    files = sorted(photos.rglob("*.jpg"))
    thousand, for_stock = (part(files, work / str(n), n) for n in (THOUSAND, FOR_STOCK))
    encoder = Encoder(str(model.resolve()))
    whole = [ingested(photos, encoder, work, arguments.files) for _ in range(rounds)]
    decoded = [decode_only(files, encoder) for _ in range(rounds)]
    say(f"decode-only: {decoded}")
    gflop, alone = encode_only(encoder, str(model), arguments.batch, rounds)
    peak = matmul_rate(encoder.device)
    say(f"encode-only: {alone}, product: {peak:.3g}")
    del encoder
    torch.cuda.empty_cache()
    seconds = [cold(thousand, model, work) for _ in range(rounds + 1)]
    say(f"a thousand, whole processes: {seconds[0]}, {seconds[1:]}")
    return Measured(decoded, alone, whole, of_stock(for_stock, model, work), seconds, gflop, peak)


def table(arguments: argparse.Namespace, measured: Measured) -> str:
    """Return what was measured, as Markdown."""
    alone, gflop, peak, stock = measured.alone, measured.gflop, measured.peak, measured.stock
    rate = {name: statistics.median(runs) for name, runs in alone.items()}
    share = {name: f"{rate[name] * gflop * 1e9 / peak:.0%}" for name in rate}
    done = statistics.median(measured.whole)
    reached = f"{done / rate['imret']:.0%}"
    first, *warm = measured.cold
    rows = [
        ("decode-only, processes", middle(measured.decoded), ""),
        ("encode-only, imret", middle(alone["imret"]), f"{share['imret']} of the product's (goal 60 %)"),
        ("encode-only, stock", middle(alone["stock"]), share["stock"]),
        ("ingest, to the index", middle(measured.whole), f"{reached} of encode-only (goal 80 %)"),
        ("ingest, stock script, without its start", f"{stock:.0f}", f"imret: {done / stock:.1f} times"),
    ]
    return "\n".join(
        [
            f"# Ingest with {arguments.arch} on a GPU",
            "",
            f"{date.today()}; one {device_name(pick_device('auto'))}, {cores()}, Python "
            f"{platform.python_version()}, torch {torch.__version__}; batches of {arguments.batch}; random "
            "weights, JPEG files of smooth noise, 500 x 375. `python benchmarks/ingest_gpu.py --files "
            f"{arguments.files} --rounds {arguments.rounds}`; medians of the rounds, least and most. A large "
            f"product in bfloat16 runs at {peak / 1e12:.0f} TFLOP/s; a picture takes {gflop:.1f} GFLOP. The "
            f"stock script: {min(FOR_STOCK, arguments.files):,} files, one run.",
            "",
            "| | images/s | |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"`imret ingest` of {min(THOUSAND, arguments.files):,} files, whole processes until they can be "
            f"found: {middle(warm)} s (goal 10); {first:.1f} s the first time that a model is used, when "
            "its weights are hashed.",
        ]
    )


def part(files: list[Path], folder: Path, n: int) -> Path:
    """Return a folder with links to n of the files."""
    for file in files[:: max(1, len(files) // n)][:n]:
        link = folder / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(file, link)
    return folder


def say(text: str) -> None:
    """Print at once: a machine that is lent may go back before the end."""
    print(text, flush=True)


@torch.inference_mode()
def encode_only(
    encoder: Encoder, model: str, batch: int, rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """Return GFLOP a picture, and images a second of each round by imret's tower and by open_clip's."""
    import stock

    device = encoder.device
    pixels = torch.randn(batch, 3, *encoder.preprocess.size, device=device)
    ours: Any = encoder._tower("image")
    plain, _, _ = stock.load(model, str(device))
    exact = pixels.to(torch.bfloat16 if encoder.precision == "bf16" else torch.float32)
    contenders: dict[str, Callable[[], Any]] = {
        "imret": lambda: torch.nn.functional.normalize(ours.encode_image(exact).float(), dim=-1),
        "stock": lambda: next(stock.encoded(plain, [(pixels, [""])], str(device))),
    }
    with FlopCounterMode(display=False) as counter:
        ours.encode_image(exact[:1])
    alone: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            synchronize(device)
            began = time.perf_counter()
            for _ in range(20):
                run()
            synchronize(device)
            alone[name].append(20 * batch / (time.perf_counter() - began))
    return counter.get_total_flops() / 1e9, alone


def ingested(photos: Path, encoder: Encoder, work: Path, n: int) -> float:
    """Return images a second of an ingest into an empty store, from the first look to the index."""
    shutil.rmtree(work / "db", ignore_errors=True)
    marks: list[str] = []
    with open_store(str(work / "db")) as store:
        began, worked = time.perf_counter(), time.process_time()
        done = ingest(
            store,
            [FolderSource(photos)],
            encoder=encoder,
            on_stage=lambda stage: marks.append(f"{stage} after {time.perf_counter() - began:.1f} s"),
        )
        taken, busy = time.perf_counter() - began, time.process_time() - worked
    say(f"ingest: {n / taken:.0f} a second, {taken:.1f} s ({busy:.1f} of this process): {marks}")
    assert done.added == n
    return n / taken


def decode_only(files: list[Path], encoder: Encoder) -> float:
    """Return images a second that as many processes decode as there are cores, once they run."""
    n = os.cpu_count() or 1
    names = [str(file) for file in files[:6000]]
    with closing(Decoders(encoder.preprocess, max_pixels=MAX_PIXELS)) as decoders:
        decoders.spread(n)
        while not all(line.has_begun() for line in decoders._starting):
            time.sleep(0.05)
        with ThreadPoolExecutor(n) as pool:
            began = time.perf_counter()
            for _ in pool.map(decoders.decode, in_lists(names, lambda: decoders.at_once)):
                pass
            return len(names) / (time.perf_counter() - began)


def of_stock(photos: Path, model: Path, work: Path) -> float:
    """Return images a second of the stock script, without its start."""
    shutil.rmtree(work / "stock", ignore_errors=True)
    script = [sys.executable, str(HERE / "stock.py"), "ingest", str(model), str(photos)]
    options = ["--db", str(work / "stock"), "--batch-size", str(BATCH), "--workers", str(os.cpu_count())]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=True)
    return len(list(photos.rglob("*.jpg"))) / float(json.loads(done.stderr.splitlines()[-1])["ingest"])


def cold(photos: Path, model: Path, work: Path) -> float:
    """Return the seconds of a whole `imret ingest` into an empty store."""
    shutil.rmtree(work / "few", ignore_errors=True)
    env = {**os.environ, "IMRET_HOME": str(work / "home")}
    program = [sys.executable, "-m", "imret", "ingest", str(photos), "--model", str(model)]
    began = time.perf_counter()
    subprocess.run([*program, "--db", str(work / "few")], capture_output=True, text=True, check=True, env=env)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
